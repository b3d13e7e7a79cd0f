//! Every key of `proxy.toml`: its kind and its default, in one table. The reader, the environment
//! overrides, the suggestions and a test of the documentation all look here.

/// What a key may hold.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Any text.
    Text,
    /// A text that is never repeated in a message.
    Secret,
    /// A file; relative to the directory of the configuration file.
    Path,
    /// `true` or `false`.
    Bool,
    /// A whole number within these bounds.
    Int(u64, u64),
    /// `"250ms"`, `"30s"`, `"5m"`, `"1h"`, `"0"`.
    Duration,
    /// The same, but more than zero.
    Positive,
    /// One of these texts.
    Choice(&'static [&'static str]),
    /// A list of texts.
    Texts,
    /// `{ source = 90, target = 10 }`.
    Weights,
    /// A number from 0 to 1.
    Fraction,
    /// An inline table.
    Inner(&'static [Key]),
}

/// What holds when a key is not written.
#[derive(Clone, Copy, Debug)]
pub enum Unset {
    /// A mistake.
    Required,
    /// Nothing.
    Nothing,
    /// This value, as TOML.
    Is(&'static str),
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// As written.
    pub name: &'static str,
    /// What it may hold.
    pub kind: Kind,
    /// What holds without it.
    pub unset: Unset,
}

/// One table of the file.
#[derive(Clone, Copy, Debug)]
pub struct Section {
    /// As written.
    pub name: &'static str,
    /// `[[name]]` rather than `[name]`.
    pub many: bool,
    /// Its keys.
    pub keys: &'static [Key],
}

/// All tables of `proxy.toml`.
pub const SECTIONS: &[Section] = &[
    one("listen", LISTEN),
    one("client_tls", CLIENT_TLS),
    one("auth", AUTH),
    USER_SECTION,
    one("source", BACKEND),
    one("target", BACKEND),
    one("pool", POOL),
    one("limits", LIMITS),
    one("timeouts", TIMEOUTS),
    one("routing", ROUTING),
    one("mirror", MIRROR),
    one("shadow", SHADOW),
    Section { name: "repository", many: true, keys: REPOSITORY },
    one("admin", ADMIN),
    one("log", LOG),
    one("telemetry", TELEMETRY),
];

/// The tables of a users file.
pub const USERS_FILE: &[Section] = &[USER_SECTION];

const USER_SECTION: Section = Section { name: "user", many: true, keys: USER };

const fn one(name: &'static str, keys: &'static [Key]) -> Section {
    Section { name, many: false, keys }
}

const fn key(name: &'static str, kind: Kind, default: &'static str) -> Key {
    Key { name, kind, unset: Unset::Is(default) }
}

const fn optional(name: &'static str, kind: Kind) -> Key {
    Key { name, kind, unset: Unset::Nothing }
}

const fn required(name: &'static str, kind: Kind) -> Key {
    Key { name, kind, unset: Unset::Required }
}

const LISTEN: &[Key] = &[
    key("addresses", Kind::Texts, r#"["127.0.0.1:6432"]"#),
    optional("unix_socket_dir", Kind::Path),
    key("threads", Kind::Int(0, 1024), "0"),
    key("backlog", Kind::Int(1, 65_535), "1024"),
];

const CLIENT_TLS: &[Key] = &[
    key("mode", Kind::Choice(&["prefer", "require"]), r#""prefer""#),
    required("certificate", Kind::Path),
    required("key", Kind::Path),
    optional("client_ca", Kind::Path),
];

const AUTH: &[Key] = &[
    key("method", Kind::Choice(&["scram-sha-256", "md5", "cert", "trust"]), r#""scram-sha-256""#),
    optional("users_file", Kind::Path),
    optional("query", Kind::Text),
];

const POOL_MODES: Kind = Kind::Choice(&["session", "transaction"]);

const CREDENTIALS: &[Key] = &[
    optional("user", Kind::Text),
    optional("password", Kind::Secret),
    optional("password_file", Kind::Path),
];

const USER: &[Key] = &[
    required("name", Kind::Text),
    optional("password", Kind::Secret),
    optional("password_file", Kind::Path),
    optional("source", Kind::Inner(CREDENTIALS)),
    optional("target", Kind::Inner(CREDENTIALS)),
    optional("pool_mode", POOL_MODES),
    optional("pool_size", Kind::Int(1, 100_000)),
    optional("max_clients", Kind::Int(1, 10_000_000)),
];

const BACKEND: &[Key] = &[
    required("host", Kind::Text),
    key("port", Kind::Int(1, 65_535), "5432"),
    required("database", Kind::Text),
    key("user", Kind::Text, r#""postgres""#),
    optional("password", Kind::Secret),
    optional("password_file", Kind::Path),
    key("tls", Kind::Choice(&["disable", "prefer", "require", "verify-ca", "verify-full"]), r#""prefer""#),
    optional("tls_ca", Kind::Path),
    optional("tls_certificate", Kind::Path),
    optional("tls_key", Kind::Path),
];

const POOL: &[Key] = &[
    key("mode", POOL_MODES, r#""session""#),
    key("size", Kind::Int(1, 100_000), "20"),
    key("min_size", Kind::Int(0, 100_000), "0"),
    key("max_server_connections", Kind::Int(1, 100_000), "100"),
    key("max_prepared_statements", Kind::Int(1, 1_000_000), "500"),
];

const LIMITS: &[Key] = &[
    key("max_clients", Kind::Int(1, 10_000_000), "10000"),
    key("max_logins", Kind::Int(1, 10_000_000), "500"),
    // Postgres itself takes no message of 1 GiB or more (PQ_LARGE_MESSAGE_LIMIT is MaxAllocSize - 1).
    key("max_message_bytes", Kind::Int(8_192, 1_073_741_823), "1073741823"),
    key("max_statement_bytes", Kind::Int(1_024, 67_108_864), "1048576"),
    key("max_client_statements", Kind::Int(1, 1_000_000), "10000"),
    key("max_batch_statements", Kind::Int(1, 1_000_000), "10000"),
    key("plan_cache_bytes", Kind::Int(65_536, 68_719_476_736), "33554432"),
];

const TIMEOUTS: &[Key] = &[
    key("client_login", Kind::Positive, r#""60s""#),
    key("client_idle", Kind::Duration, r#""0""#),
    key("idle_transaction", Kind::Duration, r#""0""#),
    key("transaction", Kind::Duration, r#""0""#),
    key("query", Kind::Duration, r#""0""#),
    key("query_wait", Kind::Duration, r#""120s""#),
    key("server_connect", Kind::Positive, r#""15s""#),
    key("server_login_retry", Kind::Positive, r#""1s""#),
    key("server_idle", Kind::Duration, r#""10m""#),
    key("server_lifetime", Kind::Duration, r#""1h""#),
    key("cancel_wait", Kind::Positive, r#""10s""#),
    key("drain", Kind::Duration, r#""30s""#),
    key("tcp_keepalive", Kind::Duration, r#""60s""#),
    key("tcp_user", Kind::Duration, r#""0""#),
];

const ROUTING: &[Key] = &[
    key("on_unknown", Kind::Choice(&["refuse", "source", "target"]), r#""refuse""#),
    key("transactions", Kind::Choice(&["weighted", "lead"]), r#""weighted""#),
    key("sticky", Kind::Duration, r#""0""#),
];

const MIRROR: &[Key] = &[
    key("install", Kind::Bool, "false"),
    key("connections", Kind::Int(1, 10_000), "20"),
    key("lock_timeout", Kind::Positive, r#""1s""#),
    key("deadlock_after", Kind::Positive, r#""300ms""#),
    key("apply_timeout", Kind::Positive, r#""5s""#),
    key("retry_after", Kind::Positive, r#""1s""#),
    key("journal_grace", Kind::Positive, r#""2s""#),
    key("slice", Kind::Positive, r#""10s""#),
];

const SHADOW: &[Key] = &[
    key("connections", Kind::Int(1, 10_000), "4"),
    key("queue", Kind::Int(1, 1_000_000), "1000"),
    key("max_per_second", Kind::Int(1, 10_000_000), "10000"),
    key("max_result_bytes", Kind::Int(1_000, 1 << 40), "16777216"),
    key("expire", Kind::Positive, r#""250ms""#),
    key("statement_timeout", Kind::Positive, r#""5s""#),
    key("values", Kind::Bool, "false"),
    optional("evidence", Kind::Path),
];

const COMPARE: &[Key] = &[
    key("ignore", Kind::Texts, "[]"),
    key("float_tolerance", Kind::Fraction, "0.0"),
    key("timestamp_tolerance", Kind::Duration, r#""0""#),
    key("numeric", Kind::Choice(&["scale", "value"]), r#""scale""#),
    key("json", Kind::Choice(&["text", "semantic"]), r#""text""#),
];

const REPOSITORY: &[Key] = &[
    required("name", Kind::Text),
    required("tables", Kind::Texts),
    optional("functions", Kind::Texts),
    key("reads", Kind::Weights, "{ source = 100, target = 0 }"),
    key("writes", Kind::Weights, "{ source = 100, target = 0 }"),
    key("mirror", Kind::Choice(&["off", "async", "journaled", "atomic"]), r#""off""#),
    key("ack", Kind::Choice(&["auto", "both", "lead"]), r#""auto""#),
    key("on_follower_failure", Kind::Choice(&["journal", "fail"]), r#""journal""#),
    key("ddl", Kind::Choice(&["refuse", "lead"]), r#""refuse""#),
    key("shadow", Kind::Fraction, "0.0"),
    optional("compare", Kind::Inner(COMPARE)),
];

const ADMIN: &[Key] = &[
    key("http", Kind::Text, r#""127.0.0.1:9432""#),
    key("admin_users", Kind::Texts, "[]"),
    key("stats_users", Kind::Texts, "[]"),
    optional("token", Kind::Secret),
    optional("token_file", Kind::Path),
];

const TELEMETRY: &[Key] = &[
    optional("otlp_endpoint", Kind::Text),
    key("otlp_interval", Kind::Positive, r#""10s""#),
    key("otlp_spans", Kind::Fraction, "1.0"),
];

const LOG: &[Key] = &[
    key("filter", Kind::Text, r#""info""#),
    key("format", Kind::Choice(&["text", "json"]), r#""text""#),
    key("literals", Kind::Bool, "false"),
];
