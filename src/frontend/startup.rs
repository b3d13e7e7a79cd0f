//! From an accepted socket to a client whose identity is proven.

use std::sync::Arc;

use crate::wire::stream::Stream;

/// What a connection turned out to be once its start-up was over.
#[derive(Debug)]
pub enum Startup {
    /// A client; AuthenticationOk was sent, ParameterStatus and what follows were not.
    Client(Box<Login>),
    /// A request to cancel what runs for the client with this key.
    Cancel { process_id: i32, key: Vec<u8> },
    /// Refused or gone; the answer was sent and the reason logged.
    Closed,
}

/// An authenticated client.
#[derive(Debug)]
pub struct Login {
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
}

/// How crossfade proves at a backend that it acts for this user.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// From the configuration or the client (secret of the user).
    Secret(crate::config::Secret),
    /// The SCRAM client key seen during a client's SCRAM login against a verifier (RFC 5802: ClientProof XOR ClientSignature); valid where the server holds the same verifier.
    ScramClientKey { verifier: Arc<str>, client_key: [u8; 32] },
}
