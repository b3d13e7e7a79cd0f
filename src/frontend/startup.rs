//! From an accepted socket to a client whose identity is proven.

use std::sync::{Arc, atomic::Ordering};

use bytes::{BufMut, BytesMut};
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
        frame,
        stream::{Buffered, ReadError, Stream},
        tls::ALPN,
    },
};

/// What a connection turned out to be once its start-up was over.
#[derive(Debug)]
pub enum Startup {
    /// A client; `AuthenticationOk` is in its greeting, `ParameterStatus` and what follows are the caller's.
    Client(Box<Login>),
    /// A request to cancel what runs for the client with this key.
    Cancel {
        /// As in the `BackendKeyData` that the client got.
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
    /// Still to be sent: `AuthenticationOk`, and what stands before it. It leaves with what the session begins with, as in
    /// Postgres: a packet less for each login.
    pub greeting: BytesMut,
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
    /// Where it is.
    pub peer: Peer,
    /// Counts as a client until dropped.
    pub slot: ClientSlot,
}

/// How crossfade proves at a backend that it acts for this user.
#[derive(Clone)]
pub enum Credentials {
    /// From the configuration or the client (secret of the user).
    Secret(crate::config::Secret),
    /// The SCRAM client key seen during a client's SCRAM login against a verifier (RFC 5802: `ClientProof` XOR `ClientSignature`); valid where the server holds the same verifier.
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
            if error.sqlstate != "28P01" {
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
        if let Some(tls) = &tls
            && self.begins_with_tls().await?
        {
            self.handshake(tls, true).await?;
            end_point.clone_from(&tls.end_point);
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
        let conn = self.conn_mut()?;
        if let Some(negotiate) = &found.negotiate {
            negotiate.encode(&mut conn.output);
        }
        if found.user.is_empty() {
            return Err(
                ClientError::fatal("28000", "no PostgreSQL user name specified in startup packet").into()
            );
        }
        let plain_tcp = matches!(conn.stream, Stream::Tcp(_));
        if plain_tcp && self.config.client_tls.as_ref().is_some_and(|tls| tls.require) {
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
        let credentials = Claim { shared, config, user: &found.user, end_point }.prove(conn).await?;
        let max = config.auth.users.get(&found.user).and_then(|user| user.max_clients).filter(|_| !admin);
        if !slot.belongs_to(&found.user, max) {
            let message = format!("too many connections for role \"{}\"", found.user);
            return Err(ClientError::fatal("53300", message).hint("Raise max_clients of this user.").into());
        }
        frame::put(&mut conn.output, b'R', |body| body.put_u32(0));
        Counters::count(&shared.counters.logins);
        tracing::debug!(client = self.id, %peer, user = found.user, database = found.database, "logged in");
        let Buffered { stream, input, output } = self.conn()?;
        Ok(Startup::Client(Box::new(Login {
            id: self.id,
            stream,
            greeting: output,
            rest: input.to_vec(),
            user: found.user,
            database: found.database,
            parameters: found.others,
            minor: found.minor,
            credentials,
            peer,
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

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, time::Duration};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;
    use crate::{
        backend::{
            login::{Established, LoginError, Who, connect},
            tls::BackendTlsContext,
        },
        config::{AuthMethod, Secret, TlsMode},
        frontend::testing::{Certificates, backend, config, serve, shared, timeouts},
        wire::scram::{Keys, Verifier},
    };

    fn password(text: &str) -> Secret {
        Secret::Password(text.to_owned())
    }

    /// What was answered: single bytes as they are, messages as type and the interesting fields.
    fn show(mut bytes: &[u8]) -> String {
        let mut out = Vec::new();
        while let [tag, rest @ ..] = bytes {
            if matches!(tag, b'N' | b'S') && !matches!(rest, [0, 0, ..]) {
                out.push(char::from(*tag).to_string());
                bytes = rest;
                continue;
            }
            let length = rest.first_chunk().map_or(0, |l| usize::try_from(u32::from_be_bytes(*l)).unwrap());
            let Some(body) = rest.get(4..length) else { break };
            let fields = [b'C', b'M'].map(|code| {
                let field = frame::error_field(&bytes[frame::HEADER..], code).unwrap_or_default();
                std::str::from_utf8(field).unwrap()
            });
            out.push(match tag {
                b'E' => format!("E{} {}", fields[0], fields[1].trim_start_matches("crossfade: ")),
                _ => format!("{}{}", char::from(*tag), body.get(3).copied().unwrap_or_default()),
            });
            bytes = &rest[length..];
        }
        out.join(",")
    }

    /// Sends every step and reads what comes until there is nothing for a moment.
    async fn talk(address: SocketAddr, steps: &[&[u8]], cut: bool) -> String {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let mut got = Vec::new();
        for step in steps {
            for piece in step.chunks(if cut { 1 } else { usize::MAX }) {
                let _ = socket.write_all(piece).await;
                tokio::task::yield_now().await;
            }
            let mut chunk = [0; 4096];
            let wait = Duration::from_millis(60);
            while let Ok(Ok(n @ 1..)) = tokio::time::timeout(wait, socket.read(&mut chunk)).await {
                got.extend_from_slice(&chunk[..n]);
            }
        }
        let end = match tokio::time::timeout(Duration::from_millis(60), socket.read(&mut [0; 1])).await {
            Ok(_) => "closed",
            Err(_) => "open",
        };
        format!("{}|{end}", show(&got))
    }

    fn packet(version: u32, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 8).unwrap();
        [&length.to_be_bytes(), &version.to_be_bytes(), body].concat()
    }

    /// Postgres 18 answers all of these the same (measured), but for the ones marked.
    #[tokio::test]
    async fn answers_of_the_first_packets() {
        let (address, _logins) = serve(shared(config(AuthMethod::Scram, &[]), None)).await;
        let ssl = packet(80_877_103, b"");
        let gss = packet(80_877_104, b"");
        let hello = packet(0x30000, b"user\0u\0\0");
        let response =
            |body: &[u8]| [&b"p"[..], &(u32::try_from(body.len()).unwrap() + 4).to_be_bytes(), body].concat();
        let first = response(b"SCRAM-SHA-256\0\0\0\0\x0cn,,n=,r=abcd");
        let huge = [b"p", &0x7fff_ffff_u32.to_be_bytes()[..]].concat();
        let wrong = "R10,R11,E28P01 password authentication failed for user \"u\"|closed";
        let rows: Vec<(Vec<&[u8]>, &str)> = vec![
            (vec![b"\0\0\0\x03"], "|closed"),
            (vec![b"\xff\xff\xff\xf0"], "|closed"),
            (vec![b"\x7f\xff\xff\xff"], "|closed"),
            (vec![b"\x16\x03\x01\x00\x05"], "|closed"),
            (vec![b"GET / HTTP/1.0\r\n\r\n"], "|closed"),
            (vec![&ssl, &gss], "N,N|open"),
            (vec![&gss, &ssl, &hello], "N,N,R10|open"),
            (
                vec![&ssl, &ssl],
                "N,E0A000 unsupported frontend protocol 1234.5679: server supports 3.0 to 3.2|closed",
            ),
            (
                vec![&gss, &gss],
                "N,E0A000 unsupported frontend protocol 1234.5680: server supports 3.0 to 3.2|closed",
            ),
            (vec![&hello, b"p\0\0\0\x03"], "R10,E28P01 password authentication failed for user \"u\"|closed"),
            (vec![&hello, &huge], "R10,E28P01 password authentication failed for user \"u\"|closed"),
            (vec![&hello, b"Q\0\0\0\x05\0"], "R10,E08P01 expected SASL response, got message type 81|closed"),
            (vec![&hello, b"p\0\0\0\x04"], "R10,E08P01 invalid string in message|closed"),
            (vec![&hello, &first, b"p\0\0\0\x04"], "R10,R11,E08P01 malformed SCRAM message|closed"),
            (vec![&hello, &first, &huge], wrong),
        ];
        for (steps, expected) in rows {
            for cut in [false, true] {
                assert_eq!(talk(address, &steps, cut).await, expected, "{steps:?} {cut}");
            }
        }
        let stuffed = [&ssl[..], &hello].concat();
        assert_eq!(
            talk(address, &[&stuffed], false).await,
            "N,E08P01 received unencrypted data after SSL request|closed"
        );
        let cancel = packet(80_877_102, b"\0\0\0\x01key.");
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(&cancel).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "cancel 1 4");
    }

    struct Client<'a> {
        mode: TlsMode,
        ca: Option<&'a std::path::Path>,
        identity: Option<(std::path::PathBuf, std::path::PathBuf)>,
    }

    const PLAIN: Client<'static> = Client { mode: TlsMode::Disable, ca: None, identity: None };

    /// Logs in with our own client side.
    async fn log_in(
        address: SocketAddr,
        user: &str,
        credentials: &Credentials,
        client: &Client<'_>,
    ) -> Result<Established, String> {
        let mut backend = backend(address, client.mode, client.ca.map(Into::into));
        backend.tls.identity.clone_from(&client.identity);
        let context = BackendTlsContext::load(&backend).map_err(|e| e.to_string())?;
        let who = Who { user, credentials, database: "app" };
        let options = [("options".to_owned(), "-c a=b".to_owned())];
        let refused = |error: LoginError| error.to_string().replace("the server refused the login: ", "");
        connect(&backend, &context, &who, &options, 2, &timeouts()).await.map_err(refused)
    }

    #[tokio::test]
    async fn methods_and_secrets() {
        let keys = Keys::derive("pw", b"some salt", 4096).unwrap();
        let verifier = Verifier::new(&keys, b"some salt".to_vec(), 4096).to_string();
        let md5 = |user: &str| postgres_protocol::password::md5(b"pw", user);
        let users = [
            ("plain", password("pw")),
            ("verifier", Secret::ScramVerifier(verifier)),
            ("hashed", Secret::Md5(md5("hashed"))),
            ("none", Secret::None),
        ];
        for method in [AuthMethod::Scram, AuthMethod::Md5] {
            let shared = shared(config(method, &users), None);
            let (address, mut logins) = serve(Arc::clone(&shared)).await;
            for (user, attempt) in
                [("plain", "px"), ("verifier", "px"), ("hashed", "px"), ("none", ""), ("unknown", "pw")]
            {
                let error =
                    log_in(address, user, &Credentials::Secret(password(attempt)), &PLAIN).await.unwrap_err();
                assert_eq!(
                    error,
                    format!("28P01 crossfade: password authentication failed for user \"{user}\"")
                );
            }
            for user in ["plain", "verifier", "hashed"] {
                let result = log_in(address, user, &Credentials::Secret(password("pw")), &PLAIN).await;
                let established = result.unwrap_or_else(|e| panic!("{method:?} {user}: {e}"));
                assert_eq!(established.parameter_status, [("server_version".to_owned(), "18".to_owned())]);
                assert_eq!((established.process_id, &established.key[..]), (7, &b"keyy"[..]));
                let login = logins.recv().await.unwrap();
                assert_eq!((&login.user[..], &login.database[..], login.minor), (user, "app", 2));
                assert_eq!(login.parameters, [("options".to_owned(), "-c a=b".to_owned())]);
                // What the client has shown opens the next server that holds the same secret.
                let again = log_in(address, user, &login.credentials, &PLAIN).await;
                assert!(again.is_ok(), "{method:?} {user}: {again:?}");
                logins.recv().await.unwrap();
            }
            assert_eq!(shared.counters.failures.load(Ordering::Relaxed), 5);
            assert_eq!(shared.limits.logins(), 0);
        }
    }

    #[tokio::test]
    async fn another_verifier_is_noticed() {
        let text = |salt: &[u8]| {
            let keys = Keys::derive("pw", salt, 4096).unwrap();
            Verifier::new(&keys, salt.to_vec(), 4096).to_string()
        };
        let users = [("app", Secret::ScramVerifier(text(b"salt of the server")))];
        let (address, _logins) = serve(shared(config(AuthMethod::Scram, &users), None)).await;
        let keys = Keys::derive("pw", b"another", 4096).unwrap();
        let credentials =
            Credentials::ScramClientKey { verifier: text(b"another").into(), client_key: keys.client };
        let error = log_in(address, "app", &credentials, &PLAIN).await.unwrap_err();
        assert_eq!(error, "the server holds another SCRAM verifier for this user than crossfade");
    }

    #[tokio::test]
    async fn tls_modes_and_channel_binding() {
        let files = Certificates::new();
        files.issue("server", "localhost", &rcgen::PKCS_ECDSA_P384_SHA384);
        files.issue("elsewhere", "elsewhere", &rcgen::PKCS_ECDSA_P256_SHA256);
        files.issue("bob", "bob", &rcgen::PKCS_ECDSA_P256_SHA256);
        files.self_signed("alone", &rcgen::PKCS_ED25519);
        let ca = files.path("ca.crt");
        let alone = files.path("alone.crt");
        let (server, other) = (ca.as_path(), alone.as_path());
        let rows = [
            ("server", TlsMode::Disable, None, "28000"),
            ("server", TlsMode::Prefer, None, ""),
            ("server", TlsMode::Require, None, ""),
            ("server", TlsMode::Require, Some(other), "TLS: invalid peer certificate"),
            ("server", TlsMode::VerifyCa, None, "TLS: invalid peer certificate"),
            ("server", TlsMode::VerifyCa, Some(server), ""),
            ("server", TlsMode::VerifyFull, Some(server), ""),
            ("elsewhere", TlsMode::VerifyCa, Some(server), ""),
            ("elsewhere", TlsMode::VerifyFull, Some(server), "TLS: invalid peer certificate"),
            // No PLUS with Ed25519; trusted because it stands in the file itself.
            ("alone", TlsMode::VerifyFull, Some(other), ""),
        ];
        for (certificate, mode, ca, expected) in rows {
            let mut config = config(AuthMethod::Scram, &[("app", password("pw"))]);
            config.client_tls = Some(files.client_tls(certificate, true));
            let shared = shared(config, None);
            assert_eq!(shared.tls.load().as_ref().unwrap().end_point.is_some(), certificate != "alone");
            let (address, mut logins) = serve(shared).await;
            let client = Client { mode, ca, identity: None };
            let result = log_in(address, "app", &Credentials::Secret(password("pw")), &client).await;
            match result {
                Ok(_) => {
                    assert_eq!("", expected, "{certificate} {mode:?}");
                    assert!(logins.recv().await.unwrap().stream.is_tls());
                }
                Err(error) => {
                    assert!(
                        !expected.is_empty() && error.starts_with(expected),
                        "{certificate} {mode:?}: {error}"
                    );
                }
            }
        }
    }

    #[tokio::test]
    async fn certificates_prove_names() {
        let files = Certificates::new();
        files.issue("server", "localhost", &rcgen::PKCS_ECDSA_P256_SHA256);
        files.issue("bob", "bob", &rcgen::PKCS_ECDSA_P256_SHA256);
        files.self_signed("stranger", &rcgen::PKCS_ECDSA_P256_SHA256);
        let mut config = config(AuthMethod::Certificate, &[("bob", password("pw")), ("eve", password("pw"))]);
        config.client_tls = Some(files.client_tls("server", false));
        let (address, _logins) = serve(shared(config, None)).await;
        for (user, certificate, mode, expected) in [
            ("bob", Some("bob"), TlsMode::Require, None),
            (
                "eve",
                Some("bob"),
                TlsMode::Require,
                Some("28000 crossfade: certificate authentication failed"),
            ),
            (
                "bob",
                None,
                TlsMode::Require,
                Some("28000 crossfade: connection requires a valid client certificate"),
            ),
            ("bob", Some("bob"), TlsMode::Disable, Some("28000 crossfade: connection requires a valid")),
            ("bob", Some("stranger"), TlsMode::Require, Some("no connection")),
        ] {
            let path = |name: &str, end: &str| files.path(&format!("{name}.{end}"));
            let identity = certificate.map(|name| (path(name, "crt"), path(name, "key")));
            let client = Client { mode, ca: None, identity };
            let result = log_in(address, user, &Credentials::Secret(Secret::None), &client).await;
            match expected {
                None => assert!(result.is_ok(), "{result:?}"),
                Some(expected) => {
                    let error = result.unwrap_err();
                    assert!(error.starts_with(expected), "{user} {certificate:?}: {error}");
                }
            }
        }
    }

    #[tokio::test]
    async fn direct_tls_demands_alpn_and_stuffed_bytes_are_counted() {
        let files = Certificates::new();
        files.issue("server", "localhost", &rcgen::PKCS_ECDSA_P256_SHA256);
        let mut config = config(AuthMethod::Trust, &[("u", Secret::None)]);
        config.client_tls = Some(files.client_tls("server", true));
        let shared = shared(config, None);
        let (address, mut logins) = serve(Arc::clone(&shared)).await;
        let roots = crate::wire::tls::read_certificates(&files.path("ca.crt")).unwrap();
        for (alpn, works) in [(Some(ALPN), true), (None, false), (Some(&b"http/1.1"[..]), false)] {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let mut store = rustls::RootCertStore::empty();
            store.add_parsable_certificates(roots.iter().cloned());
            let mut tls = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(store)
                .with_no_client_auth();
            tls.alpn_protocols = alpn.into_iter().map(<[u8]>::to_vec).collect();
            let tcp = TcpStream::connect(address).await.unwrap();
            let name = "localhost".try_into().unwrap();
            let mut answer = [0; 9];
            let played = async {
                let mut socket = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, tcp).await?;
                socket.write_all(&packet(0x30000, b"user\0u\0\0")).await?;
                socket.read_exact(&mut answer).await
            };
            assert_eq!(played.await.is_ok(), works, "{alpn:?}");
            if works {
                assert_eq!(answer, *b"R\0\0\0\x08\0\0\0\0");
                assert!(logins.recv().await.unwrap().stream.is_tls());
            }
        }
        let stuffed = [packet(80_877_103, b""), packet(0x30000, b"user\0u\0\0")].concat();
        let answer = talk(address, &[&stuffed], false).await;
        assert_eq!(answer, "E08P01 received unencrypted data after SSL request|closed");
        assert_eq!(shared.counters.stuffed.load(Ordering::Relaxed), 1);
        let plain = talk(address, &[&packet(0x30000, b"user\0u\0\0")], false).await;
        assert_eq!(plain, "E28000 TLS is required|closed");
    }

    #[tokio::test]
    async fn limits_and_the_deadline() {
        let mut config = config(AuthMethod::Trust, &[("u", Secret::None), ("boss", Secret::None)]);
        config.limits.max_clients = 2;
        config.limits.max_logins = 3;
        config.admin.admin_users = vec!["boss".to_owned()];
        config.timeouts.client_login = Duration::from_millis(400);
        config.auth.users.get_mut("u").unwrap().max_clients = Some(1);
        let shared = shared(config, None);
        let (address, mut logins) = serve(Arc::clone(&shared)).await;
        let hello = |user: &str| packet(0x30000, format!("user\0{user}\0\0").as_bytes());
        let console = packet(0x30000, b"user\0boss\0database\0crossfade\0\0");
        let mut first_socket = TcpStream::connect(address).await.unwrap();
        first_socket.write_all(&hello("u")).await.unwrap();
        let first = logins.recv().await.unwrap();
        let refused = talk(address, &[&hello("u")], false).await;
        assert_eq!(refused, "E53300 too many connections for role \"u\"|closed");
        let mut second_socket = TcpStream::connect(address).await.unwrap();
        second_socket.write_all(&hello("boss")).await.unwrap();
        let second = logins.recv().await.unwrap();
        assert_eq!(
            talk(address, &[&hello("boss")], false).await,
            "E53300 sorry, too many clients already|closed"
        );
        assert!(talk(address, &[&console], false).await.starts_with("R0,"));
        drop((first, second, logins.recv().await));
        assert_eq!(shared.limits.clients(), 0);

        // Silent clients cost their own deadline only, and at most max_logins of them are borne.
        let mut silent = Vec::new();
        for _ in 0..3 {
            let mut socket = TcpStream::connect(address).await.unwrap();
            socket.write_all(b"\0").await.unwrap();
            silent.push(socket);
        }
        tokio::time::timeout(Duration::from_secs(5), async {
            while shared.limits.logins() < 3 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        let refused = talk(address, &[&hello("u")], false).await;
        assert_eq!(refused, "E53300 sorry, too many clients are logging in|closed");
        for mut socket in silent {
            assert_eq!(socket.read(&mut [0; 1]).await.unwrap_or(0), 0);
        }
        assert_eq!(shared.counters.timeouts.load(Ordering::Relaxed), 3);
        assert_eq!((shared.limits.logins(), shared.limits.clients()), (0, 0));
    }

    #[tokio::test]
    async fn users_are_looked_up_and_remembered_for_a_while() {
        let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let lookup: crate::frontend::Lookup = Arc::new(move |user| {
            count.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move {
                match user.as_str() {
                    "known" => Ok(Some(crate::frontend::auth::parse_secret("pw".to_owned()))),
                    "broken" => Err("the source is down, password=hunter2".to_owned()),
                    _ => Ok(None),
                }
            })
        });
        let mut config = config(AuthMethod::Scram, &[]);
        config.auth.query = Some("SELECT 1".to_owned());
        let (address, _logins) = serve(shared(config, Some(lookup))).await;
        for (user, attempt, expected, asked_then) in [
            ("known", "pw", "", 1),
            ("known", "pw", "", 1),
            ("known", "px", "28P01", 1),
            ("known", "pw", "", 2),
            ("unknown", "pw", "28P01", 3),
            ("broken", "pw", "08006 crossfade: the user could not be looked up", 4),
        ] {
            let result = log_in(address, user, &Credentials::Secret(password(attempt)), &PLAIN).await;
            let error = result.err().unwrap_or_default();
            assert!(
                error.starts_with(expected) && error.is_empty() == expected.is_empty(),
                "{user}: {error}"
            );
            assert_eq!(asked.load(Ordering::Relaxed), asked_then, "{user}");
        }
    }
}
