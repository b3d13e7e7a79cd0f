//! SCRAM-SHA-256 and -PLUS (RFC 5802, RFC 7677, RFC 5929) as Postgres speaks them. Pure: messages in, messages out.
//!
//! Why not pgwire's and postgres-protocol's own: `docs/decisions/authentication.md`.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Mechanism without channel binding.
pub const SCRAM: &str = "SCRAM-SHA-256";
/// Mechanism with channel binding; offered over TLS only.
pub const SCRAM_PLUS: &str = "SCRAM-SHA-256-PLUS";
/// Iterations of verifiers that we derive: Postgres' default.
pub const ITERATIONS: u32 = 4096;
/// More iterations than this are refused: a hostile server would burn our CPU (CVE-2026-42198).
pub const MAX_ITERATIONS: u32 = 1_000_000;

const EMPTY: &str = "The message is empty.";
const PLUS_HEADER: &str = "p=tls-server-end-point,,";

/// A SHA-256 sized key.
pub type Key = [u8; 32];

/// The two keys that follow from a password, a salt and an iteration count.
#[derive(Clone)]
pub struct Keys {
    /// What the client proves to have.
    pub client: Key,
    /// What the server proves to have.
    pub server: Key,
}

impl Keys {
    /// The password goes through `SASLprep` where it can, as Postgres does. Costs about 1 ms per 4096 iterations: not on
    /// the event loop. `None` without iterations or above [`MAX_ITERATIONS`].
    pub fn derive(password: &str, salt: &[u8], iterations: u32) -> Option<Self> {
        if iterations == 0 || iterations > MAX_ITERATIONS {
            return None;
        }
        let iterations = usize::try_from(iterations).ok()?;
        let salted = pgwire::api::auth::sasl::scram::gen_salted_password(password, salt, iterations);
        Some(Self { client: mac(&salted, &[b"Client Key"]), server: mac(&salted, &[b"Server Key"]) })
    }
}

/// What a server keeps instead of a password.
#[derive(Clone, Eq, PartialEq)]
pub struct Verifier {
    /// PBKDF2 iterations.
    pub iterations: u32,
    /// Salt, decoded.
    pub salt: Vec<u8>,
    /// SHA-256 of the client key.
    pub stored_key: Key,
    /// Signs the server's last message.
    pub server_key: Key,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Verifier(i={}, ***)", self.iterations)
    }
}

impl Verifier {
    /// Reads `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>` as in `pg_authid`.
    pub fn parse(text: &str) -> Option<Self> {
        let (parameters, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
        let (iterations, salt) = parameters.split_once(':')?;
        let (stored, server) = keys.split_once(':')?;
        let salt = STANDARD.decode(salt).ok()?;
        let iterations = iterations.parse().ok().filter(|&i| i > 0)?;
        (!salt.is_empty()).then_some(())?;
        Some(Self { iterations, salt, stored_key: decode_key(stored)?, server_key: decode_key(server)? })
    }

    /// What Postgres would keep for these keys.
    pub fn new(keys: &Keys, salt: Vec<u8>, iterations: u32) -> Self {
        Self { iterations, salt, stored_key: hash(&keys.client), server_key: keys.server }
    }
}

impl std::fmt::Display for Verifier {
    /// As in `pg_authid`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [salt, stored, server] =
            [&self.salt[..], &self.stored_key, &self.server_key].map(|bytes| STANDARD.encode(bytes));
        write!(f, "SCRAM-SHA-256${}:{salt}${stored}:{server}", self.iterations)
    }
}

/// Why an exchange failed. The words are Postgres' own (`auth-scram.c`).
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ScramError {
    /// Not a message of RFC 5802, or not the one that was due.
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    /// Well formed, but against the rules.
    #[error("{message}")]
    Violation {
        /// Primary message.
        message: &'static str,
        /// Detail, may be empty.
        detail: &'static str,
    },
    /// Well formed, but asks for what neither Postgres nor we offer.
    #[error("{0}")]
    Unsupported(&'static str),
    /// The client believes that we cannot bind the channel although we offered it: somebody took the offer away.
    #[error("SCRAM channel binding negotiation error")]
    Downgrade,
    /// The client is bound to another TLS connection.
    #[error("SCRAM channel binding check failed")]
    Binding,
    /// Wrong password, or an unknown user.
    #[error("the proof is wrong")]
    Proof,
}

use ScramError::{Malformed, Unsupported, Violation};

/// Server side, between server-first and client-final.
#[derive(Debug)]
pub struct Server {
    verifier: Arc<Verifier>,
    doomed: bool,
    gs2: &'static str,
    binding: Vec<u8>,
    nonce: String,
    /// client-first-bare "," server-first
    transcript: String,
}

impl Server {
    /// Reads client-first, gives server-first. `plus`: the client chose [`SCRAM_PLUS`]; `end_point`: hash of our
    /// certificate when PLUS was offered; `doomed`: the user is not known, the exchange goes on to its end and fails.
    pub fn first(
        verifier: Arc<Verifier>,
        doomed: bool,
        (plus, end_point): (bool, Option<&[u8]>),
        message: &[u8],
        server_nonce: &str,
    ) -> Result<(Self, String), ScramError> {
        let first = ClientFirst::parse(message, plus, end_point.is_some())?;
        let nonce = format!("{}{server_nonce}", first.nonce);
        let answer = format!("r={nonce},s={},i={}", STANDARD.encode(&verifier.salt), verifier.iterations);
        let transcript = format!("{},{answer}", first.bare);
        let binding = if plus { end_point.unwrap_or_default().to_vec() } else { Vec::new() };
        Ok((Self { verifier, doomed, gs2: first.gs2, binding, nonce, transcript }, answer))
    }

    /// Reads client-final; gives server-final and the client key that the client has thereby shown.
    pub fn finish(self, message: &[u8]) -> Result<(String, Key), ScramError> {
        let text = std::str::from_utf8(message).map_err(|_| Malformed("not UTF-8"))?;
        if text.is_empty() {
            return Err(Malformed(EMPTY));
        }
        let (without_proof, proof) = text.rsplit_once(",p=").ok_or(Malformed("no proof"))?;
        let mut attributes = without_proof.split(',');
        let channel =
            attributes.next().and_then(|a| a.strip_prefix("c=")).ok_or(Malformed("no channel binding"))?;
        let nonce = attributes.next().and_then(|a| a.strip_prefix("r=")).ok_or(Malformed("no nonce"))?;
        if attributes.any(|a| !is_attribute(a)) {
            return Err(Malformed("garbage among the attributes of client-final"));
        }
        let proof = decode_key(proof).ok_or(Malformed("Malformed proof in client-final-message."))?;
        let expected = STANDARD.encode([self.gs2.as_bytes(), &self.binding].concat());
        if !bool::from(expected.as_bytes().ct_eq(channel.as_bytes())) {
            return Err(if self.binding.is_empty() {
                let message = "unexpected SCRAM channel-binding attribute in client-final-message";
                Violation { message, detail: "" }
            } else {
                ScramError::Binding
            });
        }
        if nonce != self.nonce {
            return Err(Violation { message: "invalid SCRAM response", detail: "Nonce does not match." });
        }
        let signed: [&[u8]; 3] = [self.transcript.as_bytes(), b",", without_proof.as_bytes()];
        let client_key = xor(&proof, &mac(&self.verifier.stored_key, &signed));
        let proven = hash(&client_key).ct_eq(&self.verifier.stored_key);
        if self.doomed || !bool::from(proven) {
            return Err(ScramError::Proof);
        }
        let signature = mac(&self.verifier.server_key, &signed);
        Ok((format!("v={}", STANDARD.encode(signature)), client_key))
    }
}

struct ClientFirst<'a> {
    gs2: &'static str,
    bare: &'a str,
    nonce: &'a str,
}

impl<'a> ClientFirst<'a> {
    fn parse(message: &'a [u8], plus: bool, offered: bool) -> Result<Self, ScramError> {
        let text = std::str::from_utf8(message).map_err(|_| Malformed("not UTF-8"))?;
        if text.is_empty() {
            return Err(Malformed(EMPTY));
        }
        if text.contains('\0') {
            return Err(Malformed("Message length does not match input length."));
        }
        let mut parts = text.splitn(3, ',');
        let flag = parts.next().unwrap_or_default();
        let gs2 = match (flag, plus) {
            ("n" | "y", true) => {
                return Err(Malformed(
                    "The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include channel binding data.",
                ));
            }
            ("n", false) => "n,,",
            ("y", false) if offered => return Err(ScramError::Downgrade),
            ("y", false) => "y,,",
            ("p=tls-server-end-point", true) if offered => PLUS_HEADER,
            _ if flag.starts_with("p=") && !plus => {
                return Err(Malformed(
                    "The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message includes channel binding data.",
                ));
            }
            _ if flag.starts_with("p=") => return Err(Unsupported("unsupported SCRAM channel-binding type")),
            _ => return Err(Malformed("Unexpected channel-binding flag.")),
        };
        match parts.next() {
            Some("") => {}
            Some(a) if a.starts_with("a=") => {
                return Err(Unsupported("client uses authorization identity, but it is not supported"));
            }
            _ => return Err(Malformed("unexpected attribute in client-first-message")),
        }
        let bare = parts.next().ok_or(Malformed("no client-first-message-bare"))?;
        if bare.starts_with("m=") {
            return Err(Unsupported("client requires an unsupported SCRAM extension"));
        }
        let mut attributes = bare.split(',');
        // The user name here is ignored, as in Postgres: the one of the startup packet counts.
        attributes.next().filter(|a| a.starts_with("n=")).ok_or(Malformed("attribute \"n\" expected"))?;
        let nonce = attributes
            .next()
            .and_then(|a| a.strip_prefix("r="))
            .ok_or(Malformed("attribute \"r\" expected"))?;
        if !nonce.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Violation { message: "non-printable characters in SCRAM nonce", detail: "" });
        }
        if attributes.any(|a| !is_attribute(a)) {
            return Err(Malformed("garbage among the attributes of client-first"));
        }
        Ok(Self { gs2, bare, nonce })
    }
}

/// What the client side knows about the channel.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ClientBinding {
    /// No TLS, or a certificate whose hash RFC 5929 leaves undefined.
    Unable,
    /// Over TLS, but the server did not offer PLUS.
    NotOffered,
    /// Over TLS with PLUS; hash of the server's certificate.
    EndPoint(Vec<u8>),
}

/// Client side, between client-first and server-first.
#[derive(Debug)]
pub struct Client {
    channel: String,
    bare: String,
    nonce: String,
}

/// The server's challenge.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Challenge {
    /// Salt, decoded.
    pub salt: Vec<u8>,
    /// At most [`MAX_ITERATIONS`].
    pub iterations: u32,
    nonce: String,
    text: String,
}

impl Client {
    /// Gives client-first.
    pub fn new(binding: &ClientBinding, nonce: String) -> (Self, String) {
        let (header, data) = match binding {
            ClientBinding::Unable => ("n,,", &[][..]),
            ClientBinding::NotOffered => ("y,,", &[][..]),
            ClientBinding::EndPoint(hash) => (PLUS_HEADER, hash.as_slice()),
        };
        let bare = format!("n=,r={nonce}");
        let first = format!("{header}{bare}");
        (Self { channel: STANDARD.encode([header.as_bytes(), data].concat()), bare, nonce }, first)
    }

    /// Reads server-first.
    pub fn challenge(&self, message: &[u8]) -> Result<Challenge, ScramError> {
        let text = std::str::from_utf8(message).map_err(|_| Malformed("not UTF-8"))?;
        let mut attributes = text.split(',');
        let mut take = |name: &str| attributes.next().and_then(|a| a.strip_prefix(name));
        let nonce = take("r=").ok_or(Malformed("no nonce in server-first"))?;
        let salt =
            take("s=").and_then(|s| STANDARD.decode(s).ok()).ok_or(Malformed("no salt in server-first"))?;
        let iterations: u32 =
            take("i=").and_then(|i| i.parse().ok()).ok_or(Malformed("no iteration count in server-first"))?;
        if nonce.len() <= self.nonce.len() || !nonce.starts_with(&self.nonce) {
            return Err(Malformed("the server's nonce does not continue ours"));
        }
        if salt.is_empty() || iterations == 0 {
            return Err(Malformed("empty salt or no iterations in server-first"));
        }
        if iterations > MAX_ITERATIONS {
            return Err(Unsupported("the server demands more than 1000000 SCRAM iterations"));
        }
        Ok(Challenge { salt, iterations, nonce: nonce.to_owned(), text: text.to_owned() })
    }

    /// Gives client-final and the signature that server-final must carry.
    pub fn prove(self, challenge: &Challenge, keys: &Keys) -> (String, Key) {
        let without_proof = format!("c={},r={}", self.channel, challenge.nonce);
        let signed = [self.bare.as_bytes(), b",", challenge.text.as_bytes(), b",", without_proof.as_bytes()];
        let proof = xor(&keys.client, &mac(&hash(&keys.client), &signed));
        (format!("{without_proof},p={}", STANDARD.encode(proof)), mac(&keys.server, &signed))
    }
}

/// Does server-final carry the signature that [`Client::prove`] expects?
pub fn verify_final(message: &[u8], expected: &Key) -> Result<(), ScramError> {
    let text = std::str::from_utf8(message).map_err(|_| Malformed("not UTF-8"))?;
    let signature = text
        .split(',')
        .next()
        .and_then(|a| a.strip_prefix("v="))
        .and_then(decode_key)
        .ok_or(Malformed("no signature"))?;
    if bool::from(signature.ct_eq(expected)) { Ok(()) } else { Err(ScramError::Proof) }
}

/// 18 random bytes, base64: as long as Postgres' own.
pub fn nonce() -> String {
    STANDARD.encode(random::<18>())
}

/// Bytes from the operating system's generator.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system has randomness");
    bytes
}

/// HMAC-SHA-256 over the concatenated parts.
pub fn mac(key: &[u8], parts: &[&[u8]]) -> Key {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

fn hash(data: &[u8]) -> Key {
    Sha256::digest(data).into()
}

fn xor(a: &Key, b: &Key) -> Key {
    std::array::from_fn(|i| a[i] ^ b[i])
}

fn decode_key(text: &str) -> Option<Key> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

fn is_attribute(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() >= 2 && bytes[0].is_ascii_alphabetic() && bytes[1] == b'='
}

/// Runs arbitrary bytes through every parser: the body of the fuzz target, replayed over its corpus by a test.
/// Lines are client-first, client-final, server-first, server-final and a verifier.
#[doc(hidden)]
pub fn exercise(data: &[u8]) {
    let mut lines = data.splitn(5, |&b| b == b'\n');
    let mut next = || lines.next().unwrap_or_default();
    let (first, last, server_first, server_final, verifier) = (next(), next(), next(), next(), next());
    let keys = Keys { client: [1; 32], server: [2; 32] };
    let ours = Arc::new(Verifier::new(&keys, b"salt".to_vec(), 1));
    for channel in [(false, None), (false, Some(&b"hash"[..])), (true, Some(&b"hash"[..]))] {
        if let Ok((server, answer)) = Server::first(Arc::clone(&ours), false, channel, first, "N") {
            assert!(answer.contains(",i=1"), "{answer}");
            assert!(server.finish(last).is_err(), "a proof without the key");
        }
    }
    let (client, _) = Client::new(&ClientBinding::Unable, "abc".to_owned());
    if let Ok(challenge) = client.challenge(server_first) {
        assert!(challenge.iterations <= MAX_ITERATIONS);
        let (_, expected) = client.prove(&challenge, &keys);
        assert!(verify_final(server_final, &expected).is_err(), "a signature without the key");
    }
    if let Some(verifier) = std::str::from_utf8(verifier).ok().and_then(Verifier::parse) {
        assert!(verifier.iterations > 0 && !verifier.salt.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &[u8] = b"hash of the certificate";

    fn pencil() -> (Keys, Arc<Verifier>) {
        let keys = Keys::derive("pencil", b"salt", 4096).unwrap();
        let verifier = Arc::new(Verifier::new(&keys, b"salt".to_vec(), 4096));
        (keys, verifier)
    }

    /// Plays both sides against each other.
    fn play(binding: &ClientBinding, channel: (bool, Option<&[u8]>), doomed: bool) -> Result<(), ScramError> {
        let (keys, verifier) = pencil();
        let (client, first) = Client::new(binding, nonce());
        let (server, answer) = Server::first(verifier, doomed, channel, first.as_bytes(), &nonce())?;
        let challenge = client.challenge(answer.as_bytes())?;
        let (last, expected) = client.prove(&challenge, &keys);
        let (server_final, client_key) = server.finish(last.as_bytes())?;
        assert_eq!(client_key, keys.client);
        verify_final(server_final.as_bytes(), &expected)
    }

    #[test]
    fn sides_agree_and_downgrades_fail() {
        use ClientBinding::{EndPoint, NotOffered, Unable};
        let offered = Some(HASH);
        for (binding, channel, doomed, expected) in [
            (Unable, (false, None), false, Ok(())),
            (Unable, (false, offered), false, Ok(())),
            (NotOffered, (false, None), false, Ok(())),
            (NotOffered, (false, offered), false, Err(ScramError::Downgrade)),
            (EndPoint(HASH.to_vec()), (true, offered), false, Ok(())),
            (EndPoint(b"other".to_vec()), (true, offered), false, Err(ScramError::Binding)),
            (EndPoint(HASH.to_vec()), (true, offered), true, Err(ScramError::Proof)),
            (Unable, (false, None), true, Err(ScramError::Proof)),
        ] {
            assert_eq!(play(&binding, channel, doomed), expected, "{binding:?} {channel:?} {doomed}");
        }
    }

    #[test]
    fn client_first_refusals() {
        let (_, verifier) = pencil();
        for (plus, offered, message, expected) in [
            (false, false, "", "message is empty"),
            (false, false, "n,,n=,r=a\0b", "length does not match"),
            (false, false, "n", "unexpected attribute"),
            (false, false, "n,", "no client-first-message-bare"),
            (false, false, "n,,", "\"n\" expected"),
            (false, false, "x,,n=,r=abc", "channel-binding flag"),
            (false, false, "n,a=me,n=,r=abc", "authorization identity"),
            (false, false, "n,,m=x,n=,r=abc", "unsupported SCRAM extension"),
            (false, false, "n,,n=,s=abc", "\"r\" expected"),
            (false, false, "n,,n=,r=a b", "non-printable"),
            (false, false, "n,,n=,r=abc,", "garbage"),
            (false, true, "y,,n=,r=abc", "negotiation error"),
            (false, true, "p=tls-server-end-point,,n=,r=abc", "includes channel binding"),
            (true, true, "n,,n=,r=abc", "does not include channel binding"),
            (true, true, "p=tls-unique,,n=,r=abc", "unsupported SCRAM channel-binding type"),
        ] {
            let end_point = offered.then_some(HASH);
            let error =
                Server::first(Arc::clone(&verifier), false, (plus, end_point), message.as_bytes(), "N")
                    .unwrap_err()
                    .to_string();
            assert!(error.contains(expected), "{message:?}: {error}");
        }
    }

    #[test]
    fn client_final_refusals() {
        let (_, verifier) = pencil();
        let proof = STANDARD.encode([0; 32]);
        for (message, expected) in [
            (String::new(), "message is empty"),
            ("c=biws,r=abcN".into(), "no proof"),
            (format!("r=abcN,c=biws,p={proof}"), "no channel binding"),
            (format!("c=biws,p={proof}"), "no nonce"),
            (format!("c=biws,r=abcX,p={proof}"), "invalid SCRAM response"),
            (format!("c=eSws,r=abcN,p={proof}"), "unexpected SCRAM channel-binding attribute"),
            ("c=biws,r=abcN,p=AAAA".into(), "Malformed proof"),
            (format!("c=biws,r=abcN,,p={proof}"), "garbage"),
            (format!("c=biws,r=abcN,p={proof}"), "proof is wrong"),
        ] {
            let (server, _) =
                Server::first(Arc::clone(&verifier), false, (false, None), b"n,,n=,r=abc", "N").unwrap();
            let error = server.finish(message.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{message:?}: {error}");
        }
    }

    #[test]
    fn hostile_server_first() {
        for message in [
            "",
            "r=abc,s=c2FsdA==,i=4096",
            "r=xyzN,s=c2FsdA==,i=4096",
            "r=abcN,s=,i=4096",
            "r=abcN,s=!,i=1",
            "r=abcN,s=c2FsdA==,i=0",
            "r=abcN,s=c2FsdA==,i=-1",
            "r=abcN,s=c2FsdA==,i=1000001",
            "r=abcN,s=c2FsdA==,i=99999999999999",
            "r=abcN,s=c2FsdA==",
            "e=other-error",
        ] {
            let (client, _) = Client::new(&ClientBinding::Unable, "abc".to_owned());
            assert!(client.challenge(message.as_bytes()).is_err(), "{message}");
        }
    }

    #[test]
    fn verifiers() {
        let (_, verifier) = pencil();
        let text = verifier.to_string();
        assert_eq!(Verifier::parse(&text).as_ref(), Some(&*verifier));
        for bad in ["", "SCRAM-SHA-256$", "SCRAM-SHA-256$0:c2FsdA==$:", "md5abc", &text[..text.len() - 1]] {
            assert_eq!(Verifier::parse(bad), None, "{bad}");
        }
        // Made by Postgres 18 for the password "secret".
        let made = Verifier::parse(
            "SCRAM-SHA-256$4096:ddEgsVl2baaX7/+BlLDpUg==$EH3hxsccyKbhAEtsY0MbgFcGLyJxWBNLHCInzfPRipo=:\
             U6wKPsv3EOSvAXVB7BuOCQOACZ56niybZHada3+ysBU=",
        )
        .unwrap();
        let keys = Keys::derive("secret", &made.salt, made.iterations).unwrap();
        assert_eq!(Verifier::new(&keys, made.salt.clone(), made.iterations), made);
        // RFC 7677, section 3.
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let keys = Keys::derive("pencil", &salt, 4096).unwrap();
        let verifier = Arc::new(Verifier::new(&keys, salt, 4096));
        let (server, _) = Server::first(
            verifier,
            false,
            (false, None),
            b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
            "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
        )
        .unwrap();
        let (last, _) = server
            .finish(b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
            .unwrap();
        assert_eq!(last, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn the_fuzzers_corpus_replays() {
        let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/scram")).unwrap();
        let inputs: Vec<Vec<u8>> = files.map(|f| std::fs::read(f.unwrap().path()).unwrap()).collect();
        assert!(inputs.len() >= 10);
        for input in &inputs {
            (0..=input.len()).for_each(|cut| exercise(&input[..cut]));
        }
    }
}
