//! Proves who a client is: SCRAM, MD5, certificate, trust. An unknown user goes through the whole exchange and then
//! fails with the words of a wrong password: which names exist cannot be asked.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::{Buf, BufMut, BytesMut};
use md5::{Digest, Md5};
use subtle::ConstantTimeEq;

use super::{Counters, Shared, packet::Refusal, startup::Credentials};
use crate::{
    config::{AuthMethod, Config, Secret},
    error::ClientError,
    wire::{
        frame,
        scram::{self, ITERATIONS, Key, Keys, SCRAM, SCRAM_PLUS, ScramError, Server, Verifier},
        stream::{Buffered, ReadError, Stream},
        tls::common_name,
    },
};

/// Bytes of a SASL message, as in Postgres.
const MAX_SASL: usize = 1024;
/// Bytes of a password message, as in Postgres (`PG_MAX_AUTH_TOKEN_LENGTH`).
const MAX_PASSWORD: usize = 65_535;
/// How long an answer of `auth.query` is believed.
const LOOKUP_LIFE: Duration = Duration::from_secs(5);
/// Users remembered at once; the caches start afresh beyond it.
const MAX_REMEMBERED: usize = 10_000;

/// What is remembered between logins, and the key of made-up salts.
pub(super) struct Secrets {
    /// Salts of plain-text and of unknown users follow from it, so that they look alike.
    salt_key: Key,
    /// User -> the password it was derived from, and the verifier.
    verifiers: Mutex<HashMap<String, (String, Arc<Verifier>)>>,
    /// One derivation at a time: a thousand clients of one user that arrive together cost one.
    deriving: tokio::sync::Mutex<()>,
    looked_up: Mutex<HashMap<String, (Instant, Option<Secret>)>>,
}

impl Secrets {
    pub(super) fn new() -> Self {
        Self {
            salt_key: scram::random(),
            verifiers: Mutex::default(),
            deriving: tokio::sync::Mutex::default(),
            looked_up: Mutex::default(),
        }
    }

    fn salt(&self, user: &str) -> Vec<u8> {
        scram::mac(&self.salt_key, &[b"salt", user.as_bytes()])[..16].to_vec()
    }

    /// What an unknown user is checked against; nobody has a password for it.
    fn mock(&self, user: &str) -> Arc<Verifier> {
        let keys = Keys { client: scram::random(), server: scram::random() };
        Arc::new(Verifier::new(&keys, self.salt(user), ITERATIONS))
    }

    fn known_verifier(&self, user: &str, password: &str) -> Option<Arc<Verifier>> {
        let verifiers = self.verifiers.lock().unwrap_or_else(PoisonError::into_inner);
        verifiers.get(user).filter(|(of, _)| of == password).map(|(_, verifier)| Arc::clone(verifier))
    }

    /// The verifier of a plain-text password: derived once, on a thread for blocking work.
    async fn verifier(&self, user: &str, password: &str) -> Option<Arc<Verifier>> {
        if let Some(known) = self.known_verifier(user, password) {
            return Some(known);
        }
        let _one_at_a_time = self.deriving.lock().await;
        if let Some(known) = self.known_verifier(user, password) {
            return Some(known);
        }
        let (salt, owned) = (self.salt(user), password.to_owned());
        let derive = move || {
            Keys::derive(&owned, &salt, ITERATIONS).map(|keys| Verifier::new(&keys, salt, ITERATIONS))
        };
        let verifier = Arc::new(tokio::task::spawn_blocking(derive).await.ok()??);
        let mut verifiers = self.verifiers.lock().unwrap_or_else(PoisonError::into_inner);
        if verifiers.len() >= MAX_REMEMBERED {
            verifiers.clear();
        }
        verifiers.insert(user.to_owned(), (password.to_owned(), Arc::clone(&verifier)));
        Some(verifier)
    }

    fn forget(&self, user: &str) {
        self.looked_up.lock().unwrap_or_else(PoisonError::into_inner).remove(user);
    }
}

/// A client that claims to be `user`.
pub(super) struct Claim<'a> {
    pub(super) shared: &'a Shared,
    pub(super) config: &'a Config,
    pub(super) user: &'a str,
    /// Hash of the certificate that this connection saw; `None` without TLS: PLUS is not offered.
    pub(super) end_point: Option<Arc<[u8]>>,
}

impl Claim<'_> {
    /// Asks for proof and checks it. `AuthenticationOk` is left to the caller.
    pub(super) async fn prove(&self, conn: &mut Buffered) -> Result<Credentials, Refusal> {
        let secret = self.secret().await?;
        let result = match (self.config.auth.method, secret) {
            (AuthMethod::Trust, Some(secret)) => Ok(Credentials::Secret(secret)),
            (AuthMethod::Trust, None) => {
                Err(ClientError::fatal("28000", format!("role \"{}\" is not known here", self.user)).into())
            }
            (AuthMethod::Certificate, secret) => self.certificate(&conn.stream, secret),
            // A stored SCRAM verifier cannot answer an MD5 challenge, nor an MD5 hash a SCRAM one: what is stored
            // decides, as in Postgres ("md5" does SCRAM then) and pgbouncer.
            (_, Some(Secret::ScramVerifier(text))) => self.scram_verifier(conn, text).await,
            (_, Some(Secret::Md5(hash))) => {
                let hex = hash.strip_prefix("md5").unwrap_or_default().to_owned();
                self.md5(conn, Some(hex)).await.map(|()| Credentials::Secret(Secret::Md5(hash)))
            }
            (AuthMethod::Md5, Some(Secret::Password(password))) => {
                let hex = hex(&Md5::new().chain_update(&password).chain_update(self.user).finalize());
                self.md5(conn, Some(hex)).await.map(|()| Credentials::Secret(Secret::Password(password)))
            }
            (AuthMethod::Scram, Some(Secret::Password(password))) => {
                let verifier = self.shared.secrets.verifier(self.user, &password).await;
                self.scram(conn, verifier).await.map(|_| Credentials::Secret(Secret::Password(password)))
            }
            (AuthMethod::Md5, None | Some(Secret::None)) => {
                self.md5(conn, None).await.map(|()| Credentials::Secret(Secret::None))
            }
            (AuthMethod::Scram, None | Some(Secret::None)) => {
                self.scram(conn, None).await.map(|_| Credentials::Secret(Secret::None))
            }
        };
        if matches!(&result, Err(Refusal::Told(e)) if e.sqlstate.starts_with("28")) {
            Counters::count(&self.shared.counters.failures);
            // The password may have changed a moment ago: the next attempt asks again.
            self.shared.secrets.forget(self.user);
        }
        result
    }

    /// From the configuration, else by `auth.query`.
    async fn secret(&self) -> Result<Option<Secret>, Refusal> {
        if let Some(user) = self.config.auth.users.get(self.user) {
            return Ok(Some(user.secret.clone()));
        }
        let Some(lookup) = self.shared.lookup.as_ref().filter(|_| self.config.auth.query.is_some()) else {
            return Ok(None);
        };
        let cache = &self.shared.secrets.looked_up;
        if let Some((at, found)) = cache.lock().unwrap_or_else(PoisonError::into_inner).get(self.user)
            && at.elapsed() < LOOKUP_LIFE
        {
            return Ok(found.clone());
        }
        let found = lookup(self.user.to_owned()).await.map_err(|reason| {
            tracing::error!(user = self.user, reason, "auth.query failed");
            ClientError::fatal("08006", "the user could not be looked up")
                .hint("The source could not be asked (auth.query); the log of crossfade says why.")
        })?;
        let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= MAX_REMEMBERED {
            cache.clear();
        }
        cache.insert(self.user.to_owned(), (Instant::now(), found.clone()));
        Ok(found)
    }

    fn certificate(&self, stream: &Stream, secret: Option<Secret>) -> Result<Credentials, Refusal> {
        let certificate = match stream {
            Stream::TlsServer(tls) => tls.get_ref().1.peer_certificates().and_then(<[_]>::first),
            Stream::Tcp(_) | Stream::Unix(_) | Stream::TlsClient(_) => None,
        };
        let Some(certificate) = certificate else {
            let error = ClientError::fatal("28000", "connection requires a valid client certificate");
            return Err(error.hint("Connect over TLS with sslcert and sslkey.").into());
        };
        match (common_name(certificate), secret) {
            (Some(name), Some(secret)) if name == self.user => Ok(Credentials::Secret(secret)),
            _ => {
                let message = format!("certificate authentication failed for user \"{}\"", self.user);
                Err(ClientError::fatal("28000", message).into())
            }
        }
    }

    /// MD5 challenge. `hash`: hexadecimal MD5 of password and user name; without it the exchange is for show.
    async fn md5(&self, conn: &mut Buffered, hash: Option<String>) -> Result<(), Refusal> {
        let salt: [u8; 4] = scram::random();
        frame::put(&mut conn.output, b'R', |body| {
            body.put_u32(5);
            body.put_slice(&salt);
        });
        conn.flush().await.map_err(ReadError::Io)?;
        let body = self.answer(conn, MAX_PASSWORD, "password").await?;
        let answer = match body.split_last() {
            Some((0, answer)) if !answer.contains(&0) => answer,
            _ => return Err(protocol("invalid password packet size")),
        };
        let known = hash.is_some();
        let hash = hash.unwrap_or_default();
        let expected = format!("md5{}", hex(&Md5::new().chain_update(&hash).chain_update(salt).finalize()));
        let proven = bool::from(expected.as_bytes().ct_eq(answer));
        if known && proven { Ok(()) } else { Err(self.wrong_password()) }
    }

    async fn scram_verifier(&self, conn: &mut Buffered, text: String) -> Result<Credentials, Refusal> {
        let parsed = Verifier::parse(&text).map(Arc::new);
        let client_key = self.scram(conn, parsed).await?;
        Ok(Credentials::ScramClientKey { verifier: text.into(), client_key })
    }

    /// The SASL exchange. Without a verifier it is for show.
    async fn scram(&self, conn: &mut Buffered, verifier: Option<Arc<Verifier>>) -> Result<Key, Refusal> {
        let end_point = self.end_point.as_deref();
        frame::put(&mut conn.output, b'R', |body| {
            body.put_u32(10);
            for name in end_point.is_some().then_some(SCRAM_PLUS).into_iter().chain([SCRAM]) {
                body.put_slice(name.as_bytes());
                body.put_u8(0);
            }
            body.put_u8(0);
        });
        let (plus, client_first) = self.initial_response(conn).await?;
        let doomed = verifier.is_none();
        let verifier = verifier.unwrap_or_else(|| self.shared.secrets.mock(self.user));
        let (server, answer) =
            Server::first(verifier, doomed, (plus, end_point), &client_first, &scram::nonce())
                .map_err(|e| self.scram_refusal(&e))?;
        let client_final = self.challenge(conn, answer.as_bytes()).await?;
        let (answer, key) = server.finish(&client_final).map_err(|e| self.scram_refusal(&e))?;
        // Leaves with AuthenticationOk.
        frame::put(&mut conn.output, b'R', |body| {
            body.put_u32(12);
            body.put_slice(answer.as_bytes());
        });
        Ok(key)
    }

    /// Reads `SASLInitialResponse`: did the client choose PLUS, and its client-first.
    async fn initial_response(&self, conn: &mut Buffered) -> Result<(bool, Vec<u8>), Refusal> {
        conn.flush().await.map_err(ReadError::Io)?;
        let mut body = self.answer(conn, MAX_SASL, "SASL").await?;
        let end = body.iter().position(|&b| b == 0).ok_or_else(|| protocol("invalid string in message"))?;
        let mechanism = body.split_to(end);
        body.advance(1);
        let plus = match &mechanism[..] {
            name if name == SCRAM.as_bytes() => false,
            name if name == SCRAM_PLUS.as_bytes() && self.end_point.is_some() => true,
            _ => return Err(protocol("client selected an invalid SASL authentication mechanism")),
        };
        let length = body.try_get_i32().map_err(|_| protocol("insufficient data left in message"))?;
        match usize::try_from(length) {
            Ok(length) if length == body.len() => Ok((plus, body.to_vec())),
            // No initial response: RFC 4422 wants an empty challenge, which the client answers with it.
            Err(_) if length == -1 && body.is_empty() => Ok((plus, self.challenge(conn, b"").await?)),
            _ => Err(protocol("invalid message format")),
        }
    }

    async fn challenge(&self, conn: &mut Buffered, data: &[u8]) -> Result<Vec<u8>, Refusal> {
        frame::put(&mut conn.output, b'R', |body| {
            body.put_u32(11);
            body.put_slice(data);
        });
        conn.flush().await.map_err(ReadError::Io)?;
        Ok(self.answer(conn, MAX_SASL, "SASL").await?.to_vec())
    }

    /// The body of the client's next message. An impossible length is a failed proof, as in Postgres.
    async fn answer(&self, conn: &mut Buffered, max: usize, what: &str) -> Result<BytesMut, Refusal> {
        match conn.message(max).await {
            Ok((b'p', body)) => Ok(body),
            Err(ReadError::Length { tag: b'p', .. }) => Err(self.wrong_password()),
            Ok((tag, _)) | Err(ReadError::Length { tag, .. }) => {
                Err(protocol(format!("expected {what} response, got message type {tag}")))
            }
            Err(error @ (ReadError::Eof | ReadError::Io(_))) => Err(error.into()),
        }
    }

    fn scram_refusal(&self, error: &ScramError) -> Refusal {
        let message = error.to_string();
        match error {
            ScramError::Proof => self.wrong_password(),
            ScramError::Malformed(detail) => {
                ClientError::fatal("08P01", "malformed SCRAM message").detail(*detail).into()
            }
            ScramError::Violation { detail: "", .. } => ClientError::fatal("08P01", message).into(),
            ScramError::Violation { detail, .. } => ClientError::fatal("08P01", message).detail(*detail).into(),
            ScramError::Unsupported(_) => ClientError::fatal("0A000", message).into(),
            ScramError::Binding => ClientError::fatal("28000", message).into(),
            ScramError::Downgrade => ClientError::fatal("28000", message)
                .detail(
                    "The client supports SCRAM channel binding but thinks the server does not. However, this server \
                     does support channel binding.",
                )
                .into(),
        }
    }

    fn wrong_password(&self) -> Refusal {
        ClientError::fatal("28P01", format!("password authentication failed for user \"{}\"", self.user))
            .into()
    }
}

/// A secret as it stands in `pg_authid` or in a file: a SCRAM verifier, an MD5 hash, else a password.
pub fn parse_secret(text: String) -> Secret {
    let is_md5 = |hex: &str| hex.len() == 32 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    if Verifier::parse(&text).is_some() {
        Secret::ScramVerifier(text)
    } else if text.strip_prefix("md5").is_some_and(is_md5) {
        Secret::Md5(text)
    } else {
        Secret::Password(text)
    }
}

fn protocol(message: impl Into<String>) -> Refusal {
    ClientError::fatal("08P01", message).into()
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}

impl From<ReadError> for Refusal {
    /// As Postgres: a peer that is gone or does not keep to the format gets no answer.
    fn from(error: ReadError) -> Self {
        Refusal::Silent(match error {
            ReadError::Eof => "the client closed the connection",
            ReadError::Length { .. } => "invalid message length",
            ReadError::Io(_) => "the connection failed",
        })
    }
}
