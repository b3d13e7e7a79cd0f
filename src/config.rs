//! Checked configuration: nothing missing, nothing contradictory.
//!
//! [`file`] is `proxy.toml` as written, [`check`] turns it into [`Config`] and reports every mistake
//! at once, [`reload`] publishes the next one. Everything but [`Listen`] and `admin.http` is hot.

pub mod check;
pub mod file;
pub mod reload;
mod rows;
pub mod schema;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::{
    compare::rules::Rules,
    route::policy::{Policy, Share},
};

/// Everything crossfade was told, checked. Immutable; shared as `Arc<Config>`.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients connect. Needs a restart.
    pub listen: Listen,
    /// TLS towards clients; `None` answers `N` to an `SSLRequest`.
    pub client_tls: Option<ClientTls>,
    /// How clients prove who they are.
    pub auth: Auth,
    /// The two databases, indexed by [`crate::Side::index`].
    pub backends: [Backend; 2],
    /// How server connections are shared.
    pub pool: Pool,
    /// Bounds on what a client may use.
    pub limits: Limits,
    /// Deadlines.
    pub timeouts: Timeouts,
    /// HTTP endpoint and the roles of the admin console.
    pub admin: Admin,
    /// Logging.
    pub log: Log,
    /// Metrics and spans for an OpenTelemetry collector.
    pub telemetry: Telemetry,
    /// What all mirrored repositories share.
    pub mirror: Mirror,
    /// Reads that are executed on the other side as well, to be compared.
    pub shadow: Shadow,
    /// Weights and switches of every repository, ready to route with.
    pub policy: Arc<Policy>,
    /// Hash of the file's effective content, hexadecimal; the label of `crossfade_config_info`.
    pub hash: String,
}

/// `[listen]`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Listen {
    /// TCP addresses, IPv4 and IPv6. Port 0 picks a free port (logged; written to `port_file`).
    pub addresses: Vec<SocketAddr>,
    /// Directory of a Unix socket `.s.PGSQL.<port of the first address>`.
    pub unix_socket_dir: Option<PathBuf>,
    /// Data-path threads, each with a runtime of its own.
    pub threads: usize,
    /// Listen backlog.
    pub backlog: u32,
}

/// `[client_tls]`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClientTls {
    /// Clients that do not ask for TLS are refused.
    pub require: bool,
    /// PEM certificate chain.
    pub certificate: PathBuf,
    /// PEM private key.
    pub key: PathBuf,
    /// PEM bundle that client certificates must chain to.
    pub client_ca: Option<PathBuf>,
}

/// `[auth]`
#[derive(Clone, Debug)]
pub struct Auth {
    /// What a client must present.
    pub method: AuthMethod,
    /// Users known from the file and the users file, by name.
    pub users: std::collections::HashMap<String, User>,
    /// Looks up users that the file does not know: run on the source, `$1` is the user name; returns one row of name
    /// and password or verifier.
    pub query: Option<String>,
}

/// Authentication method towards clients.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AuthMethod {
    /// SCRAM-SHA-256, and -PLUS over TLS.
    Scram,
    /// MD5 challenge.
    Md5,
    /// Client certificate whose common name is the user name.
    Certificate,
    /// No proof at all; only when written out.
    Trust,
}

/// A user of the proxy.
#[derive(Clone, Debug)]
pub struct User {
    /// Login name.
    pub name: String,
    /// What the client's proof is checked against.
    pub secret: Secret,
    /// Credentials on each backend where they differ from the client's: user name and password.
    pub backend: [Option<(String, Secret)>; 2],
    /// Overrides `pool.mode`.
    pub pool_mode: Option<PoolMode>,
    /// Overrides `pool.size`.
    pub pool_size: Option<usize>,
    /// At most this many clients of this user at once.
    pub max_clients: Option<usize>,
}

/// A password or what stands for it. Its `Debug` shows no secret.
#[derive(Clone, Eq, PartialEq)]
pub enum Secret {
    /// Plain text.
    Password(String),
    /// `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>` as in `pg_authid`.
    ScramVerifier(String),
    /// `md5` and 32 hexadecimal digits as in `pg_authid`.
    Md5(String),
    /// None: trust, certificates, peer.
    None,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Secret::Password(_) => "Password(***)",
            Secret::ScramVerifier(_) => "ScramVerifier(***)",
            Secret::Md5(_) => "Md5(***)",
            Secret::None => "None",
        })
    }
}

/// `[source]` and `[target]`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Backend {
    /// Host name, address, or directory of a Unix socket when it begins with `/`.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Name of the database there.
    pub database: String,
    /// TLS towards this backend.
    pub tls: BackendTls,
    /// Role of crossfade's own control connections (catalog, checks, `auth_query`).
    pub control_user: String,
    /// Its password.
    pub control_secret: Secret,
}

/// TLS towards a backend.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BackendTls {
    /// As libpq's `sslmode`.
    pub mode: TlsMode,
    /// PEM bundle to verify against; the web's roots when absent.
    pub ca: Option<PathBuf>,
    /// Client certificate and key, PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// As libpq's `sslmode`; `allow` is not offered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TlsMode {
    /// Never.
    Disable,
    /// When the server offers it.
    Prefer,
    /// Always, without verifying.
    Require,
    /// Always, and the chain must verify.
    VerifyCa,
    /// Always, and the chain and host name must verify.
    VerifyFull,
}

/// When a server connection goes back to the pool.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PoolMode {
    /// When the client leaves.
    Session,
    /// When the transaction ends.
    Transaction,
}

/// `[pool]`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pool {
    /// Default mode.
    pub mode: PoolMode,
    /// Server connections per user and backend, over all threads.
    pub size: usize,
    /// Kept open per user and backend even when idle.
    pub min_size: usize,
    /// Server connections per backend over all users.
    pub max_server_connections: usize,
    /// Prepared statements kept per server connection in transaction mode.
    pub max_prepared_statements: usize,
}

/// `[limits]`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Clients at once, logged in or not.
    pub max_clients: usize,
    /// Clients at once that have not logged in yet.
    pub max_logins: usize,
    /// Bytes of one frontend message after login.
    pub max_message_bytes: usize,
    /// Bytes of one statement that are analysed; longer text is unknown.
    pub max_statement_bytes: usize,
    /// Names of prepared statements that one client may use at once.
    pub max_client_statements: usize,
    /// Different statements executed in one extended batch before its Sync.
    pub max_batch_statements: usize,
    /// Bytes of plan cache per thread.
    pub plan_cache_bytes: usize,
}

/// `[timeouts]`; `None` is "never". Names are pgbouncer's where it has one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Timeouts {
    /// From accept to logged in.
    pub client_login: Duration,
    /// A client outside a transaction says nothing.
    pub client_idle: Option<Duration>,
    /// A client inside a transaction says nothing.
    pub idle_transaction: Option<Duration>,
    /// From the first statement of a transaction to its end.
    pub transaction: Option<Duration>,
    /// A statement runs on the server.
    pub query: Option<Duration>,
    /// A client waits for a server connection.
    pub query_wait: Option<Duration>,
    /// TCP connect, TLS and login at a backend.
    pub server_connect: Duration,
    /// Wait between attempts at a backend that refused.
    pub server_login_retry: Duration,
    /// An unused server connection is closed.
    pub server_idle: Option<Duration>,
    /// A server connection this old is closed when unused.
    pub server_lifetime: Option<Duration>,
    /// A cancel request waits for the backend to close its connection.
    pub cancel_wait: Duration,
    /// From SIGTERM to the end of the last client.
    pub drain: Duration,
    /// TCP keepalive idle time on every connection.
    pub tcp_keepalive: Option<Duration>,
    /// Linux `TCP_USER_TIMEOUT`.
    pub tcp_user: Option<Duration>,
}

/// `[mirror]`
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Mirror {
    /// `serve` installs what mirroring needs; otherwise `crossfade mirror install` does.
    pub install: bool,
    /// Connections that apply rows, per backend, over all threads.
    pub connections: usize,
    /// A row of the follower is locked by somebody else.
    pub lock_timeout: Duration,
    /// A transaction waits: then it is looked whether it is in a deadlock over both databases.
    pub deadlock_after: Duration,
    /// The follower does not answer.
    pub apply_timeout: Duration,
    /// A follower that failed is left alone this long: writes go to the journal at once.
    pub retry_after: Duration,
    /// A journal row of a transaction in flight becomes the repairer's business at this age.
    pub journal_grace: Duration,
    /// Write weights between 0 and 100: from one of the target's turns to its next.
    pub slice: Duration,
}

/// `[shadow]`, and what repositories say of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Shadow {
    /// Is any read executed twice?
    pub any: bool,
    /// By the index of the repository.
    pub repositories: Vec<Shadowed>,
    /// Connections per backend, and reads executed at once.
    pub connections: usize,
    /// Reads that wait for their second execution; more are dropped.
    pub queue: usize,
    /// Reads executed per second; more are dropped.
    pub max_per_second: usize,
    /// Bytes of the rows of one answer; a larger one is not compared.
    pub max_result_bytes: usize,
    /// A read that has waited longer is dropped: it would meet rows that have changed since.
    pub expire: Duration,
    /// Of the second execution.
    pub statement_timeout: Duration,
    /// Are values of rows kept as evidence, or only their keys and columns?
    pub values: bool,
    /// File in which the evidence outlives the process.
    pub evidence: Option<PathBuf>,
}

/// What of one repository is executed twice, and how it is compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Shadowed {
    /// Share of its reads.
    pub share: Share,
    /// What comparing overlooks.
    pub rules: Rules,
}

impl Default for Shadow {
    /// Nothing is executed twice.
    fn default() -> Self {
        Self {
            any: false,
            repositories: Vec::new(),
            connections: 4,
            queue: 1_000,
            max_per_second: 10_000,
            max_result_bytes: 16 << 20,
            expire: Duration::from_millis(250),
            statement_timeout: Duration::from_secs(5),
            values: false,
            evidence: None,
        }
    }
}

impl Default for Shadowed {
    fn default() -> Self {
        Self { share: Share::NONE, rules: Rules::default() }
    }
}

/// `[admin]`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Admin {
    /// `/metrics`, `/healthz`, `/readyz`, `/state`, the page that shows it, and `/act`. Needs a restart.
    pub http: Option<SocketAddr>,
    /// Users that may change things on the console (database `crossfade`).
    pub admin_users: Vec<String>,
    /// Users that may only look.
    pub stats_users: Vec<String>,
    /// With it, actions are taken by HTTP.
    pub token: Option<Token>,
}

/// A secret of which only the SHA-256 is kept. Its `Debug` shows nothing.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct Token([u8; 32]);

impl Token {
    /// Of this text.
    pub fn new(text: &str) -> Self {
        Self(Sha256::digest(text).into())
    }

    /// Is this the text? Takes as long whatever is given.
    pub fn is(&self, given: &[u8]) -> bool {
        let given: [u8; 32] = Sha256::digest(given).into();
        self.0.ct_eq(&given).into()
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(***)")
    }
}

/// `[log]`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Log {
    /// A `tracing` filter: `info`, `crossfade=debug`.
    pub filter: String,
    /// One JSON object a line.
    pub json: bool,
    /// Statement text with its literals in logs and errors; without it, fingerprints only.
    pub literals: bool,
}

/// `[telemetry]`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Telemetry {
    /// Where metrics and spans go.
    pub endpoint: Option<Endpoint>,
    /// From one export of metrics to the next.
    pub interval: Duration,
    /// Share of transactions of which spans are made.
    pub spans: Share,
}

/// `http://authority/base` of an OTLP receiver.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// `host:port`.
    pub authority: String,
    /// Stands before `/v1/metrics` and `/v1/traces`; empty or begins with `/`.
    pub base: String,
}

impl Endpoint {
    /// Reads `http://host:port/base`; the port is 4318 without one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let Some(rest) = text.strip_prefix("http://") else {
            return Err("is not http://host:port (for TLS put a collector beside crossfade)");
        };
        let (authority, base) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let host = authority.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok());
        let name = host.map_or(authority, |(host, _)| host);
        let bracketed = name.starts_with('[') && name.ends_with(']');
        let odd = |c: char| c.is_whitespace() || c.is_control() || "@?#".contains(c);
        if name.is_empty() || (name.contains(':') && !bracketed) || text.contains(odd) {
            return Err("is not http://host:port");
        }
        let authority = if host.is_some() { authority.to_owned() } else { format!("{authority}:4318") };
        Ok(Self { authority, base: base.trim_end_matches('/').to_owned() })
    }
}
