//! `proxy.toml` -> [`Config`], or every mistake in it at once. Pure but for the reader it is given.

mod files;
mod part;
mod repositories;
mod telemetry;
mod users;

pub use self::repositories::may_match;

use std::{
    fmt::Write as _,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sha2::{Digest, Sha256};

use self::part::Checker;
use super::{
    Admin, Auth, AuthMethod, Backend, BackendTls, ClientTls, Config, Limits, Listen, Log, Mirror, Pool,
    PoolMode, Secret, Shadow, Timeouts, TlsMode, Token,
    file::{self, Mistake, Place},
    schema::SECTIONS,
};
use crate::{
    Side,
    route::policy::{OnUnknown, Policy, Share, TransactionReads},
};

/// All that a configuration depends on.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// Where the text comes from: shown in messages, and relative paths in it start in its directory.
    pub path: &'a Path,
    /// `proxy.toml`.
    pub text: &'a str,
    /// Environment variables; those that do not begin with `CROSSFADE_` are ignored.
    pub environment: &'a [(String, String)],
    /// Reads the files that the configuration names.
    pub read: &'a dyn Fn(&Path) -> io::Result<Contents>,
    /// `listen.threads = 0` means half of them.
    pub cores: usize,
    /// Generation of the policy to make.
    pub generation: u64,
}

/// A file that the configuration names.
#[derive(Clone, Default)]
pub struct Contents {
    /// All of it.
    pub bytes: Vec<u8>,
    /// May everybody on this machine read it?
    pub world_readable: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Checked {
    /// The configuration, or every mistake, by place.
    pub config: Result<Config, Vec<Mistake>>,
    /// Allowed, and probably not meant; by place.
    pub warnings: Vec<Mistake>,
    /// Files read beside `proxy.toml`: the configuration changes when they do.
    pub files: Vec<PathBuf>,
}

/// Reads and checks everything.
pub fn check(inputs: &Inputs<'_>) -> Checked {
    let name = inputs.path.to_string_lossy();
    let mut found = Vec::new();
    let mut root = file::parse(inputs.text, &name, &mut found);
    if found.is_empty() {
        file::apply_environment(&mut root, SECTIONS, inputs.environment.iter().cloned(), &mut found);
        file::conform(&mut root, SECTIONS, &mut found);
    } else {
        // What follows a syntax mistake may be misread: keys that "are missing" would only confuse.
        found.sort_by(file::by_place);
        return Checked { config: Err(found), warnings: Vec::new(), files: Vec::new() };
    }
    let checker = Checker::new(inputs, root, found);
    let config = checker.config();
    let (mut mistakes, mut warnings, files) = checker.finish();
    mistakes.sort_by(file::by_place);
    warnings.sort_by(file::by_place);
    Checked { config: if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }, warnings, files }
}

/// SHA-256, hexadecimal, of everything but the policy's generation and the secrets: it is published as
/// a metric's label, where a hash over a weak password would be a way to guess it.
pub fn hash(config: &Config) -> String {
    let Config {
        listen,
        client_tls,
        auth,
        backends,
        pool,
        limits,
        timeouts,
        admin,
        log,
        telemetry,
        mirror,
        shadow,
        policy,
        hash: _,
    } = config;
    let users: std::collections::BTreeMap<_, _> = auth.users.iter().collect();
    let Policy { generation: _, repositories, on_unknown, transactions, sticky } = &**policy;
    // `Debug` of `Secret` shows no secret.
    let text = format!(
        "{listen:?}{client_tls:?}{:?}{:?}{users:?}{backends:?}{pool:?}{limits:?}{timeouts:?}{admin:?}{log:?}{telemetry:?}\
         {mirror:?}{shadow:?}{repositories:?}{on_unknown:?}{transactions:?}{sticky:?}",
        auth.method, auth.query
    );
    Sha256::digest(text).iter().fold(String::with_capacity(64), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("a String takes everything");
        hex
    })
}

impl Checker<'_> {
    /// Whatever could be made of it; worthless when mistakes were found.
    fn config(&self) -> Config {
        let listen = self.listen();
        let client_tls = self.client_tls();
        let auth = self.auth(&listen, client_tls.as_ref());
        let backends = [self.backend(Side::Source), self.backend(Side::Target)];
        if (&backends[0].host, backends[0].port, &backends[0].database)
            == (&backends[1].host, backends[1].port, &backends[1].database)
        {
            self.section("target").warn("database", "source and target are the same database", None);
            for part in self.tables("repository").iter().filter(|p| p.choice("mirror") != "off") {
                part.mistake("mirror", "source and target are the same database: nothing to mirror to", None);
            }
        }
        let admin = self.admin(&auth, &listen);
        let mut config = Config {
            client_tls,
            backends,
            pool: self.pool(),
            limits: self.limits(),
            timeouts: self.timeouts(),
            admin,
            log: self.log(),
            telemetry: self.telemetry(),
            mirror: self.mirror(),
            shadow: self.shadow(),
            policy: Arc::new(self.policy()),
            auth,
            listen,
            hash: String::new(),
        };
        config.hash = hash(&config);
        config
    }

    fn listen(&self) -> Listen {
        let part = self.section("listen");
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for (text, place) in part.texts("addresses") {
            match address(&text) {
                Ok(a) if a.port() != 0 && addresses.contains(&a) => {
                    part.mistake_at(place, "addresses", format!("{text} is there twice"), None);
                }
                Ok(a) => addresses.push(a),
                Err((message, hint)) => part.mistake_at(place, "addresses", message, hint),
            }
        }
        if part.texts("addresses").is_empty() {
            part.mistake("addresses", "at least one address is needed", None);
        }
        let unix_socket_dir = part.path("unix_socket_dir");
        if let Some(dir) = &unix_socket_dir {
            // sun_path holds 108 bytes with the NUL; the socket's own name takes up to 15 of them.
            if dir.as_os_str().len() > 92 {
                part.mistake("unix_socket_dir", "too long for a Unix socket (92 bytes)", None);
            }
        }
        let threads = match part.number("threads") {
            // The kernel's share of a relayed statement is several times ours, and part of it runs on other cores.
            0 => (self.inputs.cores / 2).max(1),
            n => n,
        };
        let backlog = u32::try_from(part.number("backlog")).expect("the schema bounds it");
        Listen { addresses, unix_socket_dir, threads, backlog }
    }

    fn client_tls(&self) -> Option<ClientTls> {
        let part = self.written_section("client_tls")?;
        let tls = ClientTls {
            require: part.choice("mode") == "require",
            certificate: part.path("certificate").unwrap_or_default(),
            key: part.path("key").unwrap_or_default(),
            client_ca: part.path("client_ca"),
        };
        files::certificate_with_key(&part, "certificate", "key");
        files::authorities(&part, "client_ca");
        Some(tls)
    }

    fn auth(&self, listen: &Listen, tls: Option<&ClientTls>) -> Auth {
        let part = self.section("auth");
        let method = match part.choice("method").as_str() {
            "md5" => AuthMethod::Md5,
            "cert" => AuthMethod::Certificate,
            "trust" => AuthMethod::Trust,
            _ => AuthMethod::Scram,
        };
        let query = part.text("query");
        if query.as_ref().is_some_and(|q| !q.contains("$1")) {
            part.mistake("query", "does not mention $1, the name of the user", None);
        }
        let users = self.users(&part, method);
        let passwords = matches!(method, AuthMethod::Scram | AuthMethod::Md5);
        if passwords && users.is_empty() && query.is_none() {
            let hint = "add a [[user]], auth.users_file or auth.query".to_owned();
            part.mistake("method", "nobody can log in: there is no user", Some(hint));
        }
        if method == AuthMethod::Certificate && tls.is_none_or(|t| t.client_ca.is_none()) {
            part.mistake("method", "\"cert\" needs [client_tls] with client_ca", None);
        }
        if method == AuthMethod::Trust && !listen.addresses.iter().all(|a| a.ip().is_loopback()) {
            let message = "\"trust\" lets everybody in who can reach listen.addresses, as any user";
            part.warn("method", message, Some("use \"scram-sha-256\"".to_owned()));
        }
        Auth { method, users, query }
    }

    fn backend(&self, side: Side) -> Backend {
        let part = self.section(side.name());
        let text = |key| part.text(key).unwrap_or_default();
        let host = text("host");
        let database = text("database");
        for (key, value) in [("host", &host), ("database", &database)] {
            // An absent one was reported as missing.
            if value.is_empty() && part.is_written(key) {
                part.mistake(key, "is empty", None);
            }
        }
        if host.contains([' ', ',']) || (host.contains("://")) {
            part.mistake("host", "is not one host name, address or directory", None);
        }
        if side == Side::Source && database == "crossfade" {
            part.mistake("database", "clients reach the admin console by this name", None);
        }
        let mode = match part.choice("tls").as_str() {
            "disable" => TlsMode::Disable,
            "require" => TlsMode::Require,
            "verify-ca" => TlsMode::VerifyCa,
            "verify-full" => TlsMode::VerifyFull,
            _ => TlsMode::Prefer,
        };
        let verifies = matches!(mode, TlsMode::VerifyCa | TlsMode::VerifyFull);
        if host.starts_with('/') && (verifies || mode == TlsMode::Require) {
            part.mistake("tls", "there is no TLS on a Unix socket", None);
        }
        if part.is_written("tls_ca") && !verifies {
            let message = "is not used: tls does not verify";
            part.warn("tls_ca", message, Some("set tls = \"verify-full\"".to_owned()));
        }
        files::authorities(&part, "tls_ca");
        let identity = match (part.path("tls_certificate"), part.path("tls_key")) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (Some(_), None) => {
                part.mistake("tls_certificate", "needs tls_key", None);
                None
            }
            (None, Some(_)) => {
                part.mistake("tls_key", "needs tls_certificate", None);
                None
            }
            (None, None) => None,
        };
        if identity.is_some() {
            files::certificate_with_key(&part, "tls_certificate", "tls_key");
        }
        let control_secret = match files::password(&part) {
            // Postgres wants the password itself from a client; one that looks like a verifier is still one.
            Secret::ScramVerifier(_) => {
                part.mistake("password", "is a verifier; the password itself is needed here", None);
                Secret::None
            }
            other @ (Secret::Password(_) | Secret::Md5(_) | Secret::None) => other,
        };
        Backend {
            host,
            port: u16::try_from(part.number("port")).expect("the schema bounds it"),
            database,
            tls: BackendTls { mode, ca: part.path("tls_ca"), identity },
            control_user: text("user"),
            control_secret,
        }
    }

    fn pool(&self) -> Pool {
        let part = self.section("pool");
        let pool = Pool {
            mode: pool_mode(&part.choice("mode")),
            size: part.number("size"),
            min_size: part.number("min_size"),
            max_server_connections: part.number("max_server_connections"),
            max_prepared_statements: part.number("max_prepared_statements"),
        };
        if pool.min_size > pool.size {
            part.mistake("min_size", format!("is more than pool.size ({})", pool.size), None);
        }
        if pool.size > pool.max_server_connections {
            let max = pool.max_server_connections;
            part.warn("size", format!("never reached: pool.max_server_connections is {max}"), None);
        }
        pool
    }

    fn limits(&self) -> Limits {
        let part = self.section("limits");
        let limits = Limits {
            max_clients: part.number("max_clients"),
            max_logins: part.number("max_logins"),
            max_message_bytes: part.number("max_message_bytes"),
            max_statement_bytes: part.number("max_statement_bytes"),
            max_client_statements: part.number("max_client_statements"),
            max_batch_statements: part.number("max_batch_statements"),
            plan_cache_bytes: part.number("plan_cache_bytes"),
        };
        if limits.max_statement_bytes > limits.max_message_bytes {
            part.warn("max_statement_bytes", "never reached: limits.max_message_bytes is less", None);
        }
        limits
    }

    fn timeouts(&self) -> Timeouts {
        let part = self.section("timeouts");
        let always = |key| part.duration(key);
        let never_is_zero = |key| Some(part.duration(key)).filter(|d: &Duration| !d.is_zero());
        Timeouts {
            client_login: always("client_login"),
            client_idle: never_is_zero("client_idle"),
            idle_transaction: never_is_zero("idle_transaction"),
            transaction: never_is_zero("transaction"),
            query: never_is_zero("query"),
            query_wait: never_is_zero("query_wait"),
            server_connect: always("server_connect"),
            server_login_retry: always("server_login_retry"),
            server_idle: never_is_zero("server_idle"),
            server_lifetime: never_is_zero("server_lifetime"),
            cancel_wait: always("cancel_wait"),
            drain: always("drain"),
            tcp_keepalive: never_is_zero("tcp_keepalive"),
            tcp_user: never_is_zero("tcp_user"),
        }
    }

    fn mirror(&self) -> Mirror {
        let part = self.section("mirror");
        Mirror {
            install: part.switch("install"),
            connections: part.number("connections"),
            lock_timeout: part.duration("lock_timeout"),
            deadlock_after: part.duration("deadlock_after"),
            apply_timeout: part.duration("apply_timeout"),
            retry_after: part.duration("retry_after"),
            journal_grace: part.duration("journal_grace"),
            slice: part.duration("slice"),
        }
    }

    fn shadow(&self) -> Shadow {
        let part = self.section("shadow");
        let repositories = self.shadowed();
        Shadow {
            any: repositories.iter().any(|r| r.share != Share::NONE),
            repositories,
            connections: part.number("connections"),
            queue: part.number("queue"),
            max_per_second: part.number("max_per_second"),
            max_result_bytes: part.number("max_result_bytes"),
            expire: part.duration("expire"),
            statement_timeout: part.duration("statement_timeout"),
            values: part.switch("values"),
            evidence: part.path("evidence"),
        }
    }

    fn policy(&self) -> Policy {
        let part = self.section("routing");
        Policy {
            generation: self.inputs.generation,
            repositories: self.repositories(),
            on_unknown: match part.choice("on_unknown").as_str() {
                "source" => OnUnknown::Source,
                "target" => OnUnknown::Target,
                _ => OnUnknown::Refuse,
            },
            transactions: match part.choice("transactions").as_str() {
                "lead" => TransactionReads::Lead,
                _ => TransactionReads::Weighted,
            },
            sticky: part.duration("sticky"),
        }
    }

    fn admin(&self, auth: &Auth, listen: &Listen) -> Admin {
        let part = self.section("admin");
        let http = match part.text("http").unwrap_or_default().as_str() {
            "" => None,
            text => match address(text) {
                Ok(a) if a.port() != 0 && listen.addresses.contains(&a) => {
                    part.mistake("http", format!("{text} is one of listen.addresses"), None);
                    None
                }
                Ok(a) => Some(a),
                Err((message, hint)) => {
                    part.mistake("http", message, hint);
                    None
                }
            },
        };
        let names = |key: &str| {
            let known = |name: &str| auth.users.contains_key(name);
            for (name, place) in part.texts(key).into_iter().filter(|(name, _)| !known(name)) {
                let hint = file::suggest(&name, auth.users.keys().map(String::as_str));
                let message = format!("there is no user {name:?}");
                // The query may know the name; the file does not.
                if auth.query.is_some() {
                    part.warn_at(place, key, message + " in the file", hint);
                } else {
                    part.mistake_at(place, key, message, hint);
                }
            }
            part.texts(key).into_iter().map(|(name, _)| name).collect()
        };
        let token = files::secret(&part, ["token", "token_file"]).and_then(|(key, text)| {
            // It is said in a header, and somebody may try all that are short.
            let fit = text.len() >= SHORTEST_TOKEN && text.bytes().all(|b| b.is_ascii_graphic());
            if !fit {
                let message = format!("needs {SHORTEST_TOKEN} characters or more, all of them visible ASCII");
                part.mistake(key, message, Some("make one: openssl rand -hex 20".to_owned()));
            }
            fit.then(|| Token::new(&text))
        });
        let loopback = http.is_none_or(|address| address.ip().is_loopback());
        if token.is_some() && !loopback {
            let message = "goes over the network in the clear: admin.http is not on the loopback";
            part.warn("token", message, Some("put something that speaks TLS before it".to_owned()));
        }
        Admin { http, admin_users: names("admin_users"), stats_users: names("stats_users"), token }
    }

    fn log(&self) -> Log {
        let part = self.section("log");
        let filter = part.text("filter").unwrap_or_default();
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&filter) {
            part.mistake("filter", format!("is not a filter: {error}"), None);
        }
        Log { filter, json: part.choice("format") == "json", literals: part.switch("literals") }
    }
}

/// Characters of `admin.token`.
const SHORTEST_TOKEN: usize = 20;

fn pool_mode(word: &str) -> PoolMode {
    if word == "transaction" { PoolMode::Transaction } else { PoolMode::Session }
}

/// `127.0.0.1:6432`, `[::1]:6432`.
fn address(text: &str) -> Result<SocketAddr, (String, Option<String>)> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let hint = match text.rsplit_once(':') {
        Some(("localhost" | "", port)) if port.parse::<u16>().is_ok() => format!("127.0.0.1:{port}"),
        Some((host, port)) if host.contains(':') && port.parse::<u16>().is_ok() => format!("[{host}]:{port}"),
        Some(("*", port)) => format!("0.0.0.0:{port}"),
        _ => "127.0.0.1:6432".to_owned(),
    };
    Err((format!("{text:?} is not an address with a port"), Some(format!("did you mean \"{hint}\"?"))))
}

#[cfg(test)]
mod tests;
