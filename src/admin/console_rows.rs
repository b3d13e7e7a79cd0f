//! What the console shows: plain rows, and the tables they are sent as.

pub use super::console_mirror::{InDoubtRow, JournalRow, TransactionRow};
pub use super::console_shadow::ShadowRow;
use super::{
    console::{Command, Show},
    console_mirror as mirror, console_shadow as shadow,
};
use crate::{Side, config::PoolMode};

/// SHOW REPOSITORIES
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RepositoryRow {
    /// Name.
    pub name: String,
    /// Patterns of its tables, as written.
    pub tables: Vec<String>,
    /// Share of reads the target answers, percent.
    pub reads_target_percent: f64,
    /// Share of write transactions the target leads, percent.
    pub writes_target_percent: f64,
    /// `mirror` as configured.
    pub mirror: String,
    /// Who leads writes now: `source`, `target`, or `nobody` while a move of the lead is not finished.
    pub lead: String,
    /// Statements each side answered, by [`Side::index`].
    pub queries: [u64; 2],
    /// Errors each side answered.
    pub errors: [u64; 2],
    /// Who is to lead, when that is another side than now.
    pub lead_wanted: Option<String>,
    /// What the move of the lead waits for, or why it failed.
    pub lead_waits_for: Option<String>,
}

/// SHOW POOLS
#[derive(Clone, Debug, PartialEq)]
pub struct PoolRow {
    /// User whose connections these are.
    pub user: String,
    /// Pooling.
    pub mode: PoolMode,
    /// Which database.
    pub backend: Side,
    /// Server connections that work for a client.
    pub active: u64,
    /// Server connections at rest.
    pub idle: u64,
    /// Clients that wait.
    pub waiting: u64,
    /// How long the first of them has waited, milliseconds.
    pub max_wait_ms: f64,
    /// Most server connections there may be.
    pub size: u64,
    /// Stopped by PAUSE.
    pub paused: bool,
}

/// SHOW CLIENTS
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClientRow {
    /// For KILL; also in log lines and errors.
    pub id: u64,
    /// User.
    pub user: String,
    /// `address:port`, or `unix`.
    pub peer: String,
    /// As the client calls itself.
    pub application_name: String,
    /// `idle`, `active`, `waiting`, ...
    pub state: String,
    /// Side of the transaction or statement under way.
    pub side: Option<Side>,
    /// Age of the open transaction, milliseconds.
    pub transaction_age_ms: Option<f64>,
    /// Why it keeps its server connection.
    pub pinned: Option<String>,
    /// Process id the client was told.
    pub process_id: i32,
    /// Comes over TLS.
    pub tls: bool,
    /// Pooling.
    pub pool_mode: Option<PoolMode>,
}

/// SHOW SERVERS
#[derive(Clone, Debug, PartialEq)]
pub struct ServerRow {
    /// Which database.
    pub backend: Side,
    /// Process id of the server's backend.
    pub process_id: i32,
    /// User it is logged in as.
    pub user: String,
    /// `active`, `idle`, `login`, `testing`.
    pub state: String,
    /// Client it works for.
    pub client: Option<u64>,
    /// Seconds since it was opened.
    pub age_seconds: f64,
    /// Seconds since it was last used.
    pub idle_seconds: f64,
    /// Transactions it has run.
    pub transactions: u64,
    /// Goes over TLS.
    pub tls: bool,
}

/// SHOW STATS, one per user and backend.
#[derive(Clone, Debug, PartialEq)]
pub struct StatsRow {
    /// User.
    pub user: String,
    /// Which database.
    pub backend: Side,
    /// Transactions ended.
    pub transactions: u64,
    /// Statements answered.
    pub queries: u64,
    /// Errors answered.
    pub errors: u64,
    /// Bytes from clients.
    pub received_bytes: u64,
    /// Bytes to clients.
    pub sent_bytes: u64,
    /// Mean duration of a transaction, milliseconds.
    pub transaction_ms_avg: f64,
    /// Mean duration of a statement, milliseconds.
    pub query_ms_avg: f64,
    /// Mean wait for a server connection, milliseconds.
    pub wait_ms_avg: f64,
}

/// SHOW CONFIG
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConfigRow {
    /// `table.key`.
    pub key: String,
    /// Value in force; secrets masked by whoever makes the row.
    pub value: String,
    /// A reload is enough to change it.
    pub hot: bool,
}

/// Type of a column, with its OID and size as in `pg_type`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Type {
    /// `text`
    Text,
    /// `int4`
    Int4,
    /// `int8`
    Int8,
    /// `float8`
    Float8,
    /// `bool`
    Bool,
    /// `void`, of a function called for its effect
    Void,
}

impl Type {
    /// `pg_type.oid` and `pg_type.typlen`.
    pub fn oid_and_size(self) -> (u32, i16) {
        match self {
            Type::Text => (25, -1),
            Type::Int4 => (23, 4),
            Type::Int8 => (20, 8),
            Type::Float8 => (701, 8),
            Type::Bool => (16, 1),
            Type::Void => (2278, 4),
        }
    }
}

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// NULL of any type.
    Null,
    /// Of [`Type::Text`].
    Text(String),
    /// Of [`Type::Int4`].
    Int4(i32),
    /// Of [`Type::Int8`].
    Int8(i64),
    /// Of [`Type::Float8`].
    Float8(f64),
    /// Of [`Type::Bool`].
    Bool(bool),
    /// Of [`Type::Void`].
    Void,
}

macro_rules! cell_from {
    ($($from:ty => $to:expr;)*) => {
        $(impl From<$from> for Cell {
            fn from(value: $from) -> Self {
                $to(value)
            }
        })*
    };
}

cell_from! {
    String => Cell::Text;
    &str => |v: &str| Cell::Text(v.to_owned());
    i32 => Cell::Int4;
    u64 => |v| Cell::Int8(i64::try_from(v).unwrap_or(i64::MAX));
    f64 => Cell::Float8;
    bool => Cell::Bool;
    Side => |v: Side| Cell::Text(v.name().to_owned());
    PoolMode => |v| Cell::Text(match v { PoolMode::Session => "session", PoolMode::Transaction => "transaction" }.to_owned());
}

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Cell::Null, Into::into)
    }
}

/// Name and type of a column.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Column {
    /// Name.
    pub name: String,
    /// Type.
    pub kind: Type,
}

/// Columns of the rows that `command` answers with; empty when it answers with none.
pub fn columns(command: &Command) -> Vec<Column> {
    use Type::{Bool, Float8, Int4, Int8, Text};
    let fixed: &[(&str, Type)] = match command {
        Command::Show(Show::Repositories) => &[
            ("name", Text),
            ("tables", Text),
            ("reads_source", Float8),
            ("reads_target", Float8),
            ("writes_source", Float8),
            ("writes_target", Float8),
            ("mirror", Text),
            ("lead", Text),
            ("source_queries", Int8),
            ("target_queries", Int8),
            ("source_errors", Int8),
            ("target_errors", Int8),
            ("lead_wanted", Text),
            ("lead_waits_for", Text),
        ],
        Command::Show(Show::Pools) => &[
            ("user", Text),
            ("backend", Text),
            ("mode", Text),
            ("active", Int8),
            ("idle", Int8),
            ("waiting", Int8),
            ("max_wait_ms", Float8),
            ("size", Int8),
            ("paused", Bool),
        ],
        Command::Show(Show::Clients) => &[
            ("id", Int8),
            ("user", Text),
            ("peer", Text),
            ("application_name", Text),
            ("state", Text),
            ("backend", Text),
            ("transaction_age_ms", Float8),
            ("pinned", Text),
            ("process_id", Int4),
            ("tls", Bool),
            ("mode", Text),
        ],
        Command::Show(Show::Servers) => &[
            ("backend", Text),
            ("process_id", Int4),
            ("user", Text),
            ("state", Text),
            ("client_id", Int8),
            ("age_s", Float8),
            ("idle_s", Float8),
            ("transactions", Int8),
            ("tls", Bool),
        ],
        Command::Show(Show::Stats) => &[
            ("user", Text),
            ("backend", Text),
            ("transactions", Int8),
            ("queries", Int8),
            ("errors", Int8),
            ("received_bytes", Int8),
            ("sent_bytes", Int8),
            ("transaction_ms_avg", Float8),
            ("query_ms_avg", Float8),
            ("wait_ms_avg", Float8),
        ],
        Command::Show(Show::Config) => &[("key", Text), ("value", Text), ("hot", Bool)],
        Command::Show(Show::Journal) => mirror::JOURNAL,
        Command::Show(Show::InDoubt) => mirror::IN_DOUBT,
        Command::Show(Show::Transactions) => mirror::TRANSACTIONS,
        Command::Show(Show::Shadow) => shadow::SHADOW,
        Command::Show(Show::Queries) => shadow::QUERIES,
        Command::Show(Show::Divergences) => shadow::DIVERGENCES,
        Command::Show(Show::Version) => &[("version", Text)],
        Command::Show(Show::Help) => &[("command", Text), ("role", Text), ("what", Text)],
        Command::Show(Show::Setting(name)) => return vec![Column { name: (*name).to_owned(), kind: Text }],
        Command::Select(items) => return items.iter().map(|item| item.column.clone()).collect(),
        Command::Empty
        | Command::Reload
        | Command::Pause(_)
        | Command::Resume(_)
        | Command::Kill(_)
        | Command::Begin(_)
        | Command::Commit
        | Command::Rollback
        | Command::RollbackTo
        | Command::Deallocate(_)
        | Command::Ignored(_) => &[],
    };
    fixed.iter().map(|&(name, kind)| Column { name: name.to_owned(), kind }).collect()
}

/// A row in the order of [`columns`].
pub(super) trait ToCells {
    /// The values.
    fn cells(self) -> Vec<Cell>;
}

impl ToCells for RepositoryRow {
    fn cells(self) -> Vec<Cell> {
        // Weights are basis points: two decimals, without the noise of the subtraction.
        let percent = |target: f64| [((100.0 - target) * 100.0).round() / 100.0, target].map(Cell::Float8);
        let mut cells = vec![self.name.into(), self.tables.join(", ").into()];
        cells.extend([self.reads_target_percent, self.writes_target_percent].into_iter().flat_map(percent));
        cells.extend([
            self.mirror.into(),
            self.lead.into(),
            self.queries[0].into(),
            self.queries[1].into(),
            self.errors[0].into(),
            self.errors[1].into(),
            self.lead_wanted.into(),
            self.lead_waits_for.into(),
        ]);
        cells
    }
}

impl ToCells for PoolRow {
    fn cells(self) -> Vec<Cell> {
        vec![
            self.user.into(),
            self.backend.into(),
            self.mode.into(),
            self.active.into(),
            self.idle.into(),
            self.waiting.into(),
            self.max_wait_ms.into(),
            self.size.into(),
            self.paused.into(),
        ]
    }
}

impl ToCells for ClientRow {
    fn cells(self) -> Vec<Cell> {
        vec![
            self.id.into(),
            self.user.into(),
            self.peer.into(),
            self.application_name.into(),
            self.state.into(),
            self.side.into(),
            self.transaction_age_ms.into(),
            self.pinned.into(),
            self.process_id.into(),
            self.tls.into(),
            self.pool_mode.into(),
        ]
    }
}

impl ToCells for ServerRow {
    fn cells(self) -> Vec<Cell> {
        vec![
            self.backend.into(),
            self.process_id.into(),
            self.user.into(),
            self.state.into(),
            self.client.into(),
            self.age_seconds.into(),
            self.idle_seconds.into(),
            self.transactions.into(),
            self.tls.into(),
        ]
    }
}

impl ToCells for StatsRow {
    fn cells(self) -> Vec<Cell> {
        vec![
            self.user.into(),
            self.backend.into(),
            self.transactions.into(),
            self.queries.into(),
            self.errors.into(),
            self.received_bytes.into(),
            self.sent_bytes.into(),
            self.transaction_ms_avg.into(),
            self.query_ms_avg.into(),
            self.wait_ms_avg.into(),
        ]
    }
}

impl ToCells for ConfigRow {
    fn cells(self) -> Vec<Cell> {
        vec![self.key.into(), self.value.into(), self.hot.into()]
    }
}
