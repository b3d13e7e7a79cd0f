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
        scram::{self, Client, ClientBinding, Key, Keys, SCRAM, SCRAM_PLUS, ScramError, Verifier},
        stream::{Buffered, Stream, put_body, put_message},
    },
};

/// Bytes of one message until the login is over.
const MAX_MESSAGE: usize = 64 * 1024;
/// ParameterStatus messages, and as many notices.
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
    /// Whole NoticeResponse frames that came during login.
    pub notices: Vec<Vec<u8>>,
    /// Bytes behind ReadyForQuery (a notice of a server that shuts down); nearly always empty.
    pub rest: Vec<u8>,
}

/// Why there is no server connection.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The server refused: its whole ErrorResponse frame, to be passed on as it is.
    #[error("the server refused the login: {}", error_text(.0))]
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

/// SQLSTATE and message of an ErrorResponse frame; empty where it has none.
pub fn error_text(frame: &[u8]) -> String {
    format!("{} {}", error_field(frame, b'C'), error_field(frame, b'M'))
}

/// One field of an ErrorResponse or NoticeResponse frame; empty when it is not there or not text.
pub fn error_field(frame: &[u8], code: u8) -> &str {
    let body = frame.get(5..).unwrap_or_default();
    let field = body.split(|&b| b == 0).find(|field| field.first() == Some(&code));
    field.and_then(|field| std::str::from_utf8(&field[1..]).ok()).unwrap_or_default()
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
            Err(LoginError::Server(frame)) if prefer && encrypted && error_field(&frame, b'C') == "28000" => {
                let second = Login::new(dial(true).await?, tls, who, minor).run(startup).await;
                second.map_err(|_| LoginError::Server(frame))
            }
            other => other,
        }
    };
    timeout_at(deadline, run).await.map_err(|_| LoginError::Timeout)?
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
    put_body(&mut out, |body| {
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
    match fits && out.len() <= MAX_STARTUP + 4 {
        true => Ok(out),
        false => Err(LoginError::Refused("the startup parameters do not fit into a startup message")),
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

    /// Up to and with AuthenticationOk.
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

    /// NegotiateProtocolVersion: an older server that says so. It knows none of our options since we send none.
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
        put_message(&mut self.conn.output, b'p', |body| data.iter().for_each(|part| body.put_slice(part)));
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
                let digest = Md5::new().chain_update(hex).chain_update(salt).finalize();
                digest.iter().fold("md5".to_owned(), |text, b| format!("{text}{b:02x}"))
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

    /// From AuthenticationOk to ReadyForQuery.
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
    put_message(&mut out, tag, |out| out.put_slice(body));
    out.to_vec()
}

fn protocol(what: impl Into<String>) -> LoginError {
    LoginError::Protocol(what.into())
}

fn hostile(error: &ScramError) -> LoginError {
    LoginError::Protocol(error.to_string())
}
