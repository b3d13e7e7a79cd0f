//! From an accepted socket to a client whose identity is proven.

use std::sync::{Arc, atomic::Ordering};

use bytes::BufMut;
use tokio::time::timeout_at;

use super::{
    Counters, Peer, Shared,
    auth::Claim,
    limits::{ClientSlot, LoginSlot},
    packet::{self, Packet, Parameters, Refusal},
    tls::ServerTls,
};
use crate::{
    config::Config,
    error::ClientError,
    wire::{
        stream::{Buffered, ReadError, Stream, put_message},
        tls::ALPN,
    },
};

/// What a connection turned out to be once its start-up was over.
#[derive(Debug)]
pub enum Startup {
    /// A client; AuthenticationOk was sent, ParameterStatus and what follows were not.
    Client(Box<Login>),
    /// A request to cancel what runs for the client with this key.
    Cancel {
        /// As in the BackendKeyData that the client got.
        process_id: i32,
        /// 1 to 256 bytes, unchecked: compare in constant time.
        key: Vec<u8>,
        /// To be dropped once the request was passed on: libpq waits for the end of the connection.
        stream: Stream,
        /// Counts as a login until dropped.
        slot: LoginSlot,
    },
    /// Refused or gone; the answer was sent and the reason logged.
    Closed,
}

/// An authenticated client.
#[derive(Debug)]
pub struct Login {
    /// The id shown by SHOW CLIENTS, in the log and in errors of our own.
    pub id: u64,
    /// The socket.
    pub stream: Stream,
    /// Bytes that arrived behind the last authentication message (a pipelining client).
    pub rest: Vec<u8>,
    /// Role name.
    pub user: String,
    /// Database name as the client gave it (user name when it gave none).
    pub database: String,
    /// The other start-up parameters, as written, in order (`options`, `replication`, unknown ones too); `user`, `database` and `_pq_.*` left out.
    pub parameters: Vec<(String, String)>,
    /// Minor version of protocol 3 that was agreed on: 0 or 2.
    pub minor: u16,
    /// What the backends are logged in with when the configuration names no other credentials.
    pub credentials: Credentials,
    /// `address:port`, or `unix`.
    pub peer: String,
    /// Counts as a client until dropped.
    pub slot: ClientSlot,
}

/// How crossfade proves at a backend that it acts for this user.
#[derive(Clone)]
pub enum Credentials {
    /// From the configuration or the client (secret of the user).
    Secret(crate::config::Secret),
    /// The SCRAM client key seen during a client's SCRAM login against a verifier (RFC 5802: ClientProof XOR ClientSignature); valid where the server holds the same verifier.
    ScramClientKey {
        /// As in `pg_authid`.
        verifier: Arc<str>,
        /// As good as a password there.
        client_key: [u8; 32],
    },
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Credentials::Secret(secret) => secret.fmt(f),
            Credentials::ScramClientKey { .. } => f.write_str("ScramClientKey(***)"),
        }
    }
}

/// Leads a fresh connection to its login, a cancel request or its end, within `timeouts.client_login` of its accept.
/// Keeps nothing of what it needed on the way.
pub async fn accept(stream: Stream, peer: Peer, shared: &Shared) -> Startup {
    let config = shared.config.load_full();
    let mut attempt =
        Attempt { shared, config: &config, id: shared.next_client(), conn: Some(Buffered::new(stream)) };
    let deadline = peer.accepted + config.timeouts.client_login;
    let Ok(result) = timeout_at(deadline.into(), attempt.run(peer)).await else {
        // Without a word, as Postgres: the client may be anywhere in an exchange.
        Counters::count(&shared.counters.timeouts);
        tracing::info!(client = attempt.id, %peer, "login timed out");
        return Startup::Closed;
    };
    let Err(refusal) = result else { return result.unwrap_or(Startup::Closed) };
    match &refusal {
        Refusal::Silent(reason) => tracing::debug!(client = attempt.id, %peer, reason, "connection closed"),
        Refusal::Told(error) => {
            tracing::info!(client = attempt.id, %peer, sqlstate = error.sqlstate, reason = error.message, "login refused");
            if !error.sqlstate.starts_with("28P") {
                shared.counters.refusals.fetch_add(1, Ordering::Relaxed);
            }
            // The deadline bounds this too; whether the client still listens does not matter.
            let _ = timeout_at(deadline.into(), attempt.tell(error)).await;
        }
    }
    Startup::Closed
}

struct Attempt<'a> {
    shared: &'a Shared,
    config: &'a Config,
    id: u64,
    /// `None` while TLS is negotiated, and when that failed.
    conn: Option<Buffered>,
}

impl Attempt<'_> {
    async fn run(&mut self, peer: Peer) -> Result<Startup, Refusal> {
        let limits = &self.shared.limits;
        let Some(login_slot) = limits.login(self.config.limits.max_logins) else {
            return Err(ClientError::fatal("53300", "sorry, too many clients are logging in")
                .hint("Raise limits.max_logins, or find out who connects so often.")
                .into());
        };
        let client_slot = limits.client(self.config.limits.max_clients);
        let (found, end_point) = match self.first_packets().await? {
            (Packet::Startup(found), end_point) => (found, end_point),
            (Packet::Cancel { process_id, key }, _) => {
                let stream = self.conn()?.stream;
                return Ok(Startup::Cancel { process_id, key, stream, slot: login_slot });
            }
            (Packet::Tls | Packet::Gss, _) => unreachable!("answered on the way"),
        };
        let slot = self.admit(&found, client_slot)?;
        self.log_in(found, end_point, slot, peer).await
    }

    /// The connection, for good.
    fn conn(&mut self) -> Result<Buffered, Refusal> {
        self.conn.take().ok_or(Refusal::Silent("the connection is gone"))
    }

    fn conn_mut(&mut self) -> Result<&mut Buffered, Refusal> {
        self.conn.as_mut().ok_or(Refusal::Silent("the connection is gone"))
    }

    /// Answers requests for encryption until the client says what it wants. With it comes the hash of our certificate
    /// when there is TLS.
    async fn first_packets(&mut self) -> Result<(Packet, Option<Arc<[u8]>>), Refusal> {
        let tls = self.shared.tls.load_full().filter(|_| self.config.client_tls.is_some());
        let (mut tls_done, mut gss_done, mut end_point) = (false, false, None);
        if let Some(tls) = &tls {
            if self.begins_with_tls().await? {
                self.handshake(tls, true).await?;
                end_point.clone_from(&tls.end_point);
            }
        }
        loop {
            let conn = self.conn_mut()?;
            conn.need(4).await?;
            let length = packet::length([conn.input[0], conn.input[1], conn.input[2], conn.input[3]])?;
            conn.need(length).await?;
            let bytes = conn.input.split_to(length);
            match packet::parse(&bytes[4..], tls_done, gss_done)? {
                Packet::Gss => {
                    gss_done = true;
                    self.answer(b'N', "GSSAPI encryption").await?;
                }
                Packet::Tls => {
                    tls_done = true;
                    // None on a Unix socket, and no second layer: as Postgres.
                    let tls = tls.as_ref().filter(|_| matches!(&conn.stream, Stream::Tcp(_)));
                    self.answer(if tls.is_some() { b'S' } else { b'N' }, "SSL").await?;
                    if let Some(tls) = tls {
                        self.handshake(tls, false).await?;
                        end_point.clone_from(&tls.end_point);
                        gss_done = true;
                    }
                }
                wanted @ (Packet::Cancel { .. } | Packet::Startup(_)) => return Ok((wanted, end_point)),
            }
        }
    }

    /// Is the first byte of a TLS handshake waiting? (Direct TLS, Postgres 17.)
    async fn begins_with_tls(&mut self) -> Result<bool, Refusal> {
        match &self.conn_mut()?.stream {
            Stream::Tcp(tcp) => {
                let mut first = [0];
                let count = tcp.peek(&mut first).await.map_err(ReadError::Io)?;
                Ok(count == 1 && first[0] == 0x16)
            }
            Stream::Unix(_) | Stream::TlsServer(_) | Stream::TlsClient(_) => Ok(false),
        }
    }

    /// Answers a request for encryption. Bytes behind it were not encrypted although the client asked for encryption:
    /// a man in the middle wants them to be taken for the client's own (CVE-2021-23214).
    async fn answer(&mut self, answer: u8, what: &str) -> Result<(), Refusal> {
        let counters = &self.shared.counters;
        let conn = self.conn.as_mut().ok_or(Refusal::Silent("the connection is gone"))?;
        conn.output.put_u8(answer);
        if conn.input.is_empty() {
            return Ok(conn.flush().await.map_err(ReadError::Io)?);
        }
        Counters::count(&counters.stuffed);
        if answer == b'S' {
            // Where TLS was about to begin, an error can only stand in its place.
            conn.output.clear();
        }
        Err(ClientError::fatal("08P01", format!("received unencrypted data after {what} request"))
            .detail("This could be either a client-software bug or evidence of an attempted man-in-the-middle attack.")
            .into())
    }

    async fn handshake(&mut self, tls: &ServerTls, direct: bool) -> Result<(), Refusal> {
        let Stream::Tcp(tcp) = self.conn()?.stream else {
            return Err(Refusal::Silent("TLS on something that is not plain TCP"));
        };
        let stream = tls.acceptor.accept(tcp).await.map_err(|error| {
            tracing::info!(client = self.id, %error, "TLS handshake failed");
            Counters::count(&self.shared.counters.tls_failures);
            Refusal::Silent("TLS handshake failed")
        })?;
        if direct && stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(Refusal::Silent("direct TLS without ALPN protocol negotiation extension"));
        }
        self.conn = Some(Buffered::new(Stream::TlsServer(Box::new(stream))));
        Ok(())
    }

    /// May this client go on to prove who it is?
    fn admit(&mut self, found: &Parameters, slot: Option<ClientSlot>) -> Result<ClientSlot, Refusal> {
        let required = self.config.client_tls.as_ref().is_some_and(|tls| tls.require);
        if required && matches!(self.conn_mut()?.stream, Stream::Tcp(_)) {
            return Err(ClientError::fatal("28000", "TLS is required")
                .hint("Connect with sslmode=require or stricter.")
                .into());
        }
        // An operator gets in when everything is full.
        let slot = slot.or_else(|| self.is_admin(found).then(|| self.shared.limits.client(usize::MAX))?);
        let refuse = || {
            ClientError::fatal("53300", "sorry, too many clients already").hint("Raise limits.max_clients.")
        };
        Ok(slot.ok_or_else(refuse)?)
    }

    fn is_admin(&self, found: &Parameters) -> bool {
        found.database == ADMIN_DATABASE && self.config.admin.admin_users.contains(&found.user)
    }

    async fn log_in(
        &mut self,
        found: Parameters,
        end_point: Option<Arc<[u8]>>,
        mut slot: ClientSlot,
        peer: Peer,
    ) -> Result<Startup, Refusal> {
        let (shared, config) = (self.shared, self.config);
        let admin = self.is_admin(&found);
        let conn = self.conn_mut()?;
        if let Some(negotiate) = &found.negotiate {
            negotiate.encode(&mut conn.output);
        }
        let credentials = Claim { shared, config, user: &found.user, end_point }.prove(conn).await?;
        let max = config.auth.users.get(&found.user).and_then(|user| user.max_clients).filter(|_| !admin);
        if !slot.belongs_to(&found.user, max) {
            let message = format!("too many connections for role \"{}\"", found.user);
            return Err(ClientError::fatal("53300", message).hint("Raise max_clients of this user.").into());
        }
        put_message(&mut conn.output, b'R', |body| body.put_u32(0));
        conn.flush().await.map_err(ReadError::Io)?;
        Counters::count(&shared.counters.logins);
        tracing::debug!(client = self.id, %peer, user = found.user, database = found.database, "logged in");
        let Buffered { stream, input, .. } = self.conn()?;
        Ok(Startup::Client(Box::new(Login {
            id: self.id,
            stream,
            rest: input.to_vec(),
            user: found.user,
            database: found.database,
            parameters: found.others,
            minor: found.minor,
            credentials,
            peer: peer.to_string(),
            slot,
        })))
    }

    async fn tell(&mut self, error: &ClientError) {
        let Some(conn) = &mut self.conn else { return };
        error.encode(self.id, &mut conn.output);
        if conn.flush().await.is_ok() {
            conn.drain_arrived();
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut conn.stream).await;
        }
    }
}

/// The database name that means crossfade's own console.
pub const ADMIN_DATABASE: &str = "crossfade";
