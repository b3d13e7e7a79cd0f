//! Logs in at a backend: startup message, authentication, what the server tells about itself. The server is not trusted:
//! every length, count and order is checked, and the whole login has one deadline.

use std::{
    collections::HashMap,
    io,
    sync::{Mutex, PoisonError},
};

use bytes::{Buf, BufMut, BytesMut};
use md5::{Digest, Md5};
use tokio::time::{Instant, timeout_at};

use super::{
    connection::{Dialed, dial},
    tls::BackendTlsContext,
};
use crate::{
    config::{Backend, Secret, Timeouts, TlsMode},
    frontend::{packet::MAX_STARTUP, startup::Credentials},
    wire::{
        frame,
        scram::{self, Client, ClientBinding, Key, Keys, SCRAM, SCRAM_PLUS, ScramError, Verifier},
        stream::{Buffered, Stream},
    },
};

/// Bytes of one message until the login is over.
const MAX_MESSAGE: usize = 64 * 1024;
/// `ParameterStatus` messages, and as many notices.
const MAX_REPORTS: usize = 1000;
/// Bytes of all of them together.
const MAX_REPORT_BYTES: usize = 1024 * 1024;
/// Bytes of a cancel key (protocol 3.2).
const MAX_KEY: usize = 256;

/// On whose behalf a server connection is made.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    /// Role name at the backend.
    pub user: &'a str,
    /// Its proof.
    pub credentials: &'a Credentials,
    /// Database at the backend.
    pub database: &'a str,
}

/// A server connection that is ready for the first query, outside a transaction.
#[derive(Debug)]
pub struct Established {
    /// The socket.
    pub stream: Stream,
    /// What the server reported, in its order and spelling.
    pub parameter_status: Vec<(String, String)>,
    /// For cancel requests; 0 when the server gave none.
    pub process_id: i32,
    /// For cancel requests; 4 bytes, up to 256 with protocol 3.2, none when the server gave none.
    pub key: Vec<u8>,
    /// Minor version of protocol 3 that the server agreed to.
    pub minor: u16,
    /// Whole `NoticeResponse` frames that came during login.
    pub notices: Vec<Vec<u8>>,
    /// Bytes behind `ReadyForQuery` (a notice of a server that shuts down); nearly always empty.
    pub rest: Vec<u8>,
}

/// Why there is no server connection.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The server refused: its whole `ErrorResponse` frame, to be passed on as it is.
    #[error("the server refused the login: {}", frame::error_text(.0))]
    Server(Vec<u8>),
    /// No connection, or it broke.
    #[error("no connection: {0}")]
    Io(#[from] io::Error),
    /// `timeouts.server_connect` passed.
    #[error("the login took too long")]
    Timeout,
    /// TLS is missing, or its handshake failed.
    #[error("TLS: {0}")]
    Tls(String),
    /// The server does not keep to the protocol.
    #[error("the server broke the protocol: {0}")]
    Protocol(String),
    /// We hold back: the server asks for something that we do not have or must not give.
    #[error("{0}")]
    Refused(&'static str),
}

/// Keys derived from passwords at this backend, by user: PBKDF2 takes longer than all else in a login.
#[derive(Default)]
pub(super) struct KeyCache(Mutex<HashMap<String, Derived>>);

struct Derived {
    password: String,
    salt: Vec<u8>,
    iterations: u32,
    keys: Keys,
}

impl KeyCache {
    const MAX_USERS: usize = 10_000;

    async fn keys(&self, user: &str, password: &str, salt: &[u8], iterations: u32) -> Option<Keys> {
        {
            let cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let same = |d: &&Derived| d.password == password && d.salt == salt && d.iterations == iterations;
            if let Some(derived) = cache.get(user).filter(same) {
                return Some(derived.keys.clone());
            }
        }
        let (owned, salt_owned) = (password.to_owned(), salt.to_owned());
        let derive = move || Keys::derive(&owned, &salt_owned, iterations);
        let keys = tokio::task::spawn_blocking(derive).await.ok()??;
        let derived =
            Derived { password: password.to_owned(), salt: salt.to_owned(), iterations, keys: keys.clone() };
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= Self::MAX_USERS {
            cache.clear();
        }
        cache.insert(user.to_owned(), derived);
        Some(keys)
    }
}

/// Connects and logs in within `timeouts.server_connect`. `parameters` go into the startup message as they are; `minor`
/// is 0 or 2 and asks for protocol 3.0 or 3.2.
pub async fn connect(
    backend: &Backend,
    tls: &BackendTlsContext,
    who: &Who<'_>,
    parameters: &[(String, String)],
    minor: u16,
    timeouts: &Timeouts,
) -> Result<Established, LoginError> {
    let deadline = Instant::now() + timeouts.server_connect;
    let startup = startup_message(who, parameters, minor)?;
    let prefer = backend.tls.mode == TlsMode::Prefer;
    let dial = |plain| dial(backend, tls, plain, (timeouts, deadline));
    let run = async {
        // As libpq's "prefer": TLS that fails, or that pg_hba.conf does not want, is done without.
        let first = match dial(false).await {
            Err(LoginError::Tls(_)) if prefer => dial(true).await?,
            other => other?,
        };
        let encrypted = first.stream.is_tls();
        match Login::new(first, tls, who, minor).run(startup.clone()).await {
            Err(LoginError::Server(error)) if prefer && encrypted && not_admitted(&error) => {
                let second = Login::new(dial(true).await?, tls, who, minor).run(startup).await;
                second.map_err(|_| LoginError::Server(error))
            }
            other => other,
        }
    };
    timeout_at(deadline, run).await.map_err(|_| LoginError::Timeout)?
}

/// `pg_hba.conf` has no line for this.
fn not_admitted(error: &[u8]) -> bool {
    error.get(frame::HEADER..).and_then(|body| frame::error_field(body, b'C')) == Some(b"28000")
}

fn startup_message(
    who: &Who<'_>,
    parameters: &[(String, String)],
    minor: u16,
) -> Result<BytesMut, LoginError> {
    let own = [("user", who.user), ("database", who.database)];
    let all = own.into_iter().chain(parameters.iter().map(|(k, v)| (k.as_str(), v.as_str())));
    let mut out = BytesMut::new();
    let mut fits = true;
    frame::put_body(&mut out, |body| {
        body.put_u32(3 << 16 | u32::from(minor));
        for (name, value) in all {
            fits &= !name.is_empty() && !name.contains('\0') && !value.contains('\0');
            for text in [name, value] {
                body.put_slice(text.as_bytes());
                body.put_u8(0);
            }
        }
        body.put_u8(0);
    });
    if fits && out.len() <= MAX_STARTUP + 4 {
        Ok(out)
    } else {
        Err(LoginError::Refused("the startup parameters do not fit into a startup message"))
    }
}

struct Login<'a> {
    conn: Buffered,
    end_point: Option<Vec<u8>>,
    local: bool,
    context: &'a BackendTlsContext,
    who: &'a Who<'a>,
    minor: u16,
    notices: Vec<Vec<u8>>,
    /// Bytes of notices and reports so far.
    reported: usize,
}

impl<'a> Login<'a> {
    fn new(dialed: Dialed, context: &'a BackendTlsContext, who: &'a Who<'a>, minor: u16) -> Self {
        let Dialed { stream, end_point, local } = dialed;
        let conn = Buffered::new(stream);
        Self { conn, end_point, local, context, who, minor, notices: Vec::new(), reported: 0 }
    }

    async fn run(mut self, startup: BytesMut) -> Result<Established, LoginError> {
        self.conn.output = startup;
        self.conn.flush().await?;
        self.authenticate().await?;
        self.until_ready().await
    }

    /// The next message that is not a notice or an error.
    async fn message(&mut self) -> Result<(u8, BytesMut), LoginError> {
        loop {
            let (tag, body) = self.conn.message(MAX_MESSAGE).await?;
            match tag {
                b'E' => return Err(LoginError::Server(frame(tag, &body))),
                b'N' => {
                    self.account(body.len(), self.notices.len())?;
                    self.notices.push(frame(tag, &body));
                }
                _ => return Ok((tag, body)),
            }
        }
    }

    fn account(&mut self, bytes: usize, count: usize) -> Result<(), LoginError> {
        self.reported += bytes;
        if count >= MAX_REPORTS || self.reported > MAX_REPORT_BYTES {
            return Err(protocol("endless reports during login"));
        }
        Ok(())
    }

    /// Up to and with `AuthenticationOk`.
    async fn authenticate(&mut self) -> Result<(), LoginError> {
        // One method per login: a server that asks again and again would never be done.
        let mut asked = false;
        let mut negotiated = false;
        loop {
            let (tag, mut body) = self.message().await?;
            if tag == b'v' && !std::mem::replace(&mut negotiated, true) && !asked {
                self.negotiate(body)?;
                continue;
            }
            if tag != b'R' {
                return Err(protocol(format!("message type 0x{tag:02x} before AuthenticationOk")));
            }
            let kind = body.try_get_u32().map_err(|_| protocol("short authentication request"))?;
            if kind == 0 {
                return if body.is_empty() { Ok(()) } else { Err(protocol("long AuthenticationOk")) };
            }
            if std::mem::replace(&mut asked, true) {
                return Err(protocol("a second authentication request"));
            }
            match kind {
                3 => self.cleartext().await?,
                5 => self.md5(&body).await?,
                10 => self.sasl(&body).await?,
                _ => {
                    return Err(LoginError::Refused(
                        "the server asks for an authentication method that crossfade does not have",
                    ));
                }
            }
        }
    }

    /// `NegotiateProtocolVersion`: an older server that says so. It knows none of our options since we send none.
    fn negotiate(&mut self, mut body: BytesMut) -> Result<(), LoginError> {
        let version = body.try_get_u32().map_err(|_| protocol("short NegotiateProtocolVersion"))?;
        let count = body.try_get_u32().map_err(|_| protocol("short NegotiateProtocolVersion"))?;
        // Postgres up to 17 sends the minor version alone or with the major one, by release.
        let minor = match version >> 16 {
            0 | 3 => version & 0xffff,
            _ => return Err(protocol("another major version of the protocol")),
        };
        if minor > u32::from(self.minor) || count != 0 || !body.is_empty() {
            return Err(protocol("NegotiateProtocolVersion for what was not asked"));
        }
        self.minor = if minor >= 2 { 2 } else { 0 };
        Ok(())
    }

    async fn answer(&mut self, data: &[&[u8]]) -> Result<(), LoginError> {
        frame::put(&mut self.conn.output, b'p', |body| data.iter().for_each(|part| body.put_slice(part)));
        Ok(self.conn.flush().await?)
    }

    async fn cleartext(&mut self) -> Result<(), LoginError> {
        let Credentials::Secret(Secret::Password(password)) = self.who.credentials else {
            return Err(LoginError::Refused(
                "the server asks for the password itself, and crossfade does not have it",
            ));
        };
        if !self.local && !self.conn.stream.is_tls() {
            return Err(LoginError::Refused(
                "the server asks for a password in clear text over an unencrypted connection",
            ));
        }
        self.answer(&[password.as_bytes(), b"\0"]).await
    }

    async fn md5(&mut self, salt: &[u8]) -> Result<(), LoginError> {
        let salt: [u8; 4] = salt.try_into().map_err(|_| protocol("an MD5 salt is 4 bytes"))?;
        let answer = match self.who.credentials {
            Credentials::Secret(Secret::Password(password)) => postgres_protocol::authentication::md5_hash(
                self.who.user.as_bytes(),
                password.as_bytes(),
                salt,
            ),
            Credentials::Secret(Secret::Md5(hash)) => {
                let hex = hash.strip_prefix("md5").unwrap_or_default();
                format!(
                    "md5{}",
                    crate::frontend::auth::hex(&Md5::new().chain_update(hex).chain_update(salt).finalize())
                )
            }
            Credentials::Secret(Secret::ScramVerifier(_) | Secret::None)
            | Credentials::ScramClientKey { .. } => {
                return Err(LoginError::Refused(
                    "the server asks for an MD5 answer, and crossfade has no password for it",
                ));
            }
        };
        self.answer(&[answer.as_bytes(), b"\0"]).await
    }

    async fn sasl(&mut self, offered: &[u8]) -> Result<(), LoginError> {
        let offers = |name: &str| offered.split(|&b| b == 0).any(|offer| offer == name.as_bytes());
        let (mechanism, binding) = match self.end_point.take() {
            Some(hash) if offers(SCRAM_PLUS) => (SCRAM_PLUS, ClientBinding::EndPoint(hash)),
            Some(_) if offers(SCRAM) => (SCRAM, ClientBinding::NotOffered),
            None if offers(SCRAM) => (SCRAM, ClientBinding::Unable),
            _ => return Err(LoginError::Refused("the server offers no SASL mechanism that crossfade has")),
        };
        let (client, first) = Client::new(&binding, scram::nonce());
        let length = i32::try_from(first.len()).expect("client-first is short");
        self.answer(&[mechanism.as_bytes(), b"\0", &length.to_be_bytes(), first.as_bytes()]).await?;
        let challenge = client.challenge(&self.sasl_message(11).await?).map_err(|e| hostile(&e))?;
        let keys = self.keys(&challenge.salt, challenge.iterations).await?;
        let (last, signature) = client.prove(&challenge, &keys);
        self.answer(&[last.as_bytes()]).await?;
        scram::verify_final(&self.sasl_message(12).await?, &signature)
            .map_err(|_| protocol("the server could not prove that it knows the password"))
    }

    async fn sasl_message(&mut self, expected: u32) -> Result<BytesMut, LoginError> {
        let (tag, mut body) = self.message().await?;
        match (tag, body.try_get_u32()) {
            (b'R', Ok(kind)) if kind == expected => Ok(body),
            _ => Err(protocol("unexpected message in a SASL exchange")),
        }
    }

    async fn keys(&self, salt: &[u8], iterations: u32) -> Result<Keys, LoginError> {
        match self.who.credentials {
            Credentials::Secret(Secret::Password(password)) => {
                let keys = self.context.keys.keys(self.who.user, password, salt, iterations).await;
                keys.ok_or(LoginError::Refused("no keys could be derived from the password"))
            }
            Credentials::ScramClientKey { verifier, client_key } => {
                let verifier =
                    Verifier::parse(verifier).filter(|v| v.salt == salt && v.iterations == iterations);
                let server: Option<Key> = verifier.map(|v| v.server_key);
                let differs = "the server holds another SCRAM verifier for this user than crossfade";
                Ok(Keys { client: *client_key, server: server.ok_or(LoginError::Refused(differs))? })
            }
            Credentials::Secret(Secret::ScramVerifier(_) | Secret::Md5(_) | Secret::None) => {
                Err(LoginError::Refused("the server asks for SCRAM, and crossfade has no password for it"))
            }
        }
    }

    /// From `AuthenticationOk` to `ReadyForQuery`.
    async fn until_ready(mut self) -> Result<Established, LoginError> {
        let mut parameter_status = Vec::new();
        let (mut process_id, mut key) = (0, Vec::new());
        loop {
            let (tag, mut body) = self.message().await?;
            match tag {
                b'S' => {
                    self.account(body.len(), parameter_status.len())?;
                    parameter_status.push(parameter(&body)?);
                }
                b'K' => {
                    process_id = body.try_get_i32().map_err(|_| protocol("short BackendKeyData"))?;
                    if body.is_empty() || body.len() > MAX_KEY || (self.minor == 0 && body.len() != 4) {
                        return Err(protocol(format!("a cancel key of {} bytes", body.len())));
                    }
                    key = body.to_vec();
                }
                b'Z' if body[..] == *b"I" => break,
                b'Z' => return Err(protocol("a transaction is open right after login")),
                _ => return Err(protocol(format!("message type 0x{tag:02x} during login"))),
            }
        }
        let Self { conn: Buffered { stream, input, .. }, notices, minor, .. } = self;
        Ok(Established { stream, parameter_status, process_id, key, minor, notices, rest: input.to_vec() })
    }
}

fn parameter(body: &[u8]) -> Result<(String, String), LoginError> {
    let mut texts = body.split(|&b| b == 0).map(|text| std::str::from_utf8(text));
    match (texts.next(), texts.next(), texts.next(), texts.next()) {
        (Some(Ok(name)), Some(Ok(value)), Some(Ok("")), None) => Ok((name.to_owned(), value.to_owned())),
        _ => Err(protocol("malformed ParameterStatus")),
    }
}

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::with_capacity(body.len() + 5);
    frame::put(&mut out, tag, |out| out.put_slice(body));
    out.to_vec()
}

fn protocol(what: impl Into<String>) -> LoginError {
    LoginError::Protocol(what.into())
}

fn hostile(error: &ScramError) -> LoginError {
    LoginError::Protocol(error.to_string())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::{
        backend::connection::cancel,
        frontend::testing::{backend, timeouts},
    };

    /// A server that answers whatever comes with the next of these byte strings, then closes or stays silent.
    async fn play(mode: TlsMode, answers: Vec<Vec<u8>>, silent: bool) -> Result<Established, LoginError> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let backend = backend(listener.local_addr().unwrap(), mode, None);
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            for answer in answers {
                let _ = socket.read(&mut [0; 4096]).await;
                let _ = socket.write_all(&answer).await;
            }
            if silent {
                std::future::pending::<()>().await;
            }
            let _ = socket.shutdown().await;
            let _ = socket.read(&mut [0; 4096]).await;
        });
        let credentials = Credentials::Secret(Secret::Password("pw".to_owned()));
        let who = Who { user: "u", credentials: &credentials, database: "d" };
        let context = BackendTlsContext::load(&backend).unwrap();
        let mut timeouts = timeouts();
        if silent {
            timeouts.server_connect = std::time::Duration::from_millis(100);
        }
        let result = connect(&backend, &context, &who, &[], 0, &timeouts).await;
        server.abort();
        result
    }

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        frame(tag, body)
    }

    #[tokio::test]
    async fn hostile_servers() {
        let ok = message(b'R', b"\0\0\0\0");
        let after = |rest: &[u8]| vec![[&ok[..], rest].concat()];
        let sasl = message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0");
        let bomb = message(b'R', b"\0\0\0\x0br=x,s=c2FsdA==,i=2000000000");
        let status = message(b'S', b"a\0b\0").repeat(1001);
        let rows: Vec<(Vec<Vec<u8>>, &str)> = vec![
            (vec![], "no connection"),
            (vec![b"R".to_vec()], "no connection"),
            (vec![b"R\0\0\0\x03".to_vec()], "the server broke the protocol: message type 0x52 of 3 bytes"),
            (vec![b"R\xff\xff\xff\xff".to_vec()], "the server broke the protocol: message type 0x52 of"),
            (vec![message(b'R', b"")], "the server broke the protocol: short authentication request"),
            (vec![message(b'R', b"\0\0\0\0x")], "the server broke the protocol: long AuthenticationOk"),
            (vec![message(b'R', b"\0\0\0\x07")], "the server asks for an authentication method"),
            (vec![message(b'R', b"\0\0\0\x05abc")], "the server broke the protocol: an MD5 salt"),
            (vec![message(b'R', b"\0\0\0\x03"), sasl.clone()], "the server broke the protocol: a second"),
            (vec![message(b'R', b"\0\0\0\x0aFOO\0\0")], "the server offers no SASL mechanism"),
            (vec![message(b'R', b"\0\0\0\x0a")], "the server offers no SASL mechanism"),
            (vec![sasl.clone(), ok.clone()], "the server broke the protocol: unexpected message in a SASL"),
            (
                vec![sasl.clone(), bomb],
                "the server broke the protocol: malformed SCRAM message: the server's nonce",
            ),
            (vec![sasl, message(b'R', b"\0\0\0\x0b\xff")], "the server broke the protocol: malformed SCRAM"),
            (vec![message(b'Z', b"I")], "the server broke the protocol: message type 0x5a before"),
            (
                vec![message(b'v', b"\0\x03\0\x02\0\0\0\0")],
                "the server broke the protocol: NegotiateProtocolVersion",
            ),
            (vec![message(b'v', b"\0")], "the server broke the protocol: short NegotiateProtocolVersion"),
            (vec![message(b'E', b"")], "the server refused the login"),
            (vec![message(b'E', b"C53300\0Mfull\0\0")], "the server refused the login: 53300 full"),
            (vec![message(b'E', b"C\xff\xfe\0M")], "the server refused the login"),
            (after(&message(b'S', b"a")), "the server broke the protocol: malformed ParameterStatus"),
            (after(&message(b'S', b"a\0b\0c\0")), "the server broke the protocol: malformed ParameterStatus"),
            (after(&status), "the server broke the protocol: endless reports"),
            (after(&message(b'N', b"x").repeat(1001)), "the server broke the protocol: endless reports"),
            (after(&message(b'K', b"\0")), "the server broke the protocol: short BackendKeyData"),
            (after(&message(b'K', b"\0\0\0\x01")), "the server broke the protocol: a cancel key of 0 bytes"),
            (after(&message(b'K', &[7; 261])), "the server broke the protocol: a cancel key of 257 bytes"),
            (after(&message(b'Z', b"T")), "the server broke the protocol: a transaction is open"),
            (after(&message(b'D', b"")), "the server broke the protocol: message type 0x44"),
            (after(&ok), "the server broke the protocol: message type 0x52 during login"),
        ];
        for (answers, expected) in rows {
            let shown = answers.iter().map(|a| a.escape_ascii().to_string()).collect::<String>();
            let error = play(TlsMode::Disable, answers, false).await.unwrap_err().to_string();
            assert!(error.starts_with(expected), "{}: {error}", &shown[..shown.len().min(100)]);
        }
        assert!(matches!(play(TlsMode::Disable, Vec::new(), true).await, Err(LoginError::Timeout)));
        let good = [
            &message(b'N', b"Mhello\0\0")[..],
            &message(b'K', b"\0\0\0\x01keyy"),
            &message(b'Z', b"I"),
            b"N\0",
        ];
        let established = play(TlsMode::Disable, after(&good.concat()), false).await.unwrap();
        assert_eq!(established.notices, [message(b'N', b"Mhello\0\0")]);
        assert_eq!((established.process_id, &established.rest[..]), (1, &b"N\0"[..]));
    }

    #[tokio::test]
    async fn answers_to_the_tls_request() {
        for (answer, expected) in [
            (&b"N"[..], "TLS: the server does not support TLS"),
            (b"Sx", "the server broke the protocol: received unencrypted data"),
            (b"NR\0\0\0\x08\0\0\0\0", "the server broke the protocol: received unencrypted data"),
            (b"x", "the server broke the protocol: neither S nor N"),
            (b"E\0\0\0\x0aMevil\0", "TLS: the server answered the TLS request with an error"),
            (b"", "no connection"),
        ] {
            let error = play(TlsMode::Require, vec![answer.to_vec()], false).await.unwrap_err().to_string();
            assert!(
                error.starts_with(expected) && !error.contains("evil"),
                "{}: {error}",
                answer.escape_ascii()
            );
        }
    }

    #[tokio::test]
    async fn cancel_waits_for_the_end() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let backend = backend(listener.local_addr().unwrap(), TlsMode::Disable, None);
        let context = BackendTlsContext::load(&backend).unwrap();
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut got = [0; 20];
            socket.read_exact(&mut got).await.unwrap();
            drop(socket);
            let _held = listener.accept().await.unwrap();
            std::future::pending::<()>().await;
            got
        });
        let wait = std::time::Duration::from_millis(300);
        cancel(&backend, &context, (7, b"long key"), &timeouts(), wait * 20).await.unwrap();
        let late = cancel(&backend, &context, (7, b"long key"), &timeouts(), wait).await;
        assert!(
            matches!(late, Err(LoginError::Timeout)),
            "a server that never closes holds us for the timeout only"
        );
        server.abort();
    }
}
