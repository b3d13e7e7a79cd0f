//! SQL text -> [`Plan`]: what a frontend's text does, before anything is executed. Pure.
//!
//! Postgres' own grammar reads the text once ([`analyze`]); later steps look at the plan and never at
//! the text again. What is not understood is [`Kind::Unknown`] with its reason, never a guess.

pub mod normalize;

use std::{collections::BTreeSet, ops::Range};

/// What one text does. A text may hold several statements, and several transactions.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Plan {
    /// In order; empty for an empty query.
    pub statements: Vec<Statement>,
    /// The plan would be another for other literals (`set_config('x', ...)`, `LIMIT 0`): never share it by fingerprint.
    pub literal_dependent: bool,
    /// A label for statistics (libpg_query's fingerprint of the whole text); never a routing key.
    pub fingerprint: u64,
}

/// One statement of a text.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Statement {
    /// What it is.
    pub kind: Kind,
    /// Byte range in the text, without the semicolon.
    pub span: Range<usize>,
    /// Tables read, views and partitions resolved; catalog relations left out. Written tables are not repeated here.
    pub reads: BTreeSet<Table>,
    /// Tables written.
    pub writes: BTreeSet<Table>,
    /// Calls of functions that are not built in and may do anything (volatile), qualified where the catalog knows them.
    pub functions: BTreeSet<Table>,
    /// Reads `pg_catalog` or `information_schema`, or calls something that describes this very database or session.
    pub introspects: bool,
    /// The order of the rows is total or the statement returns no rows in doubt: compare as a list.
    pub total_order: bool,
    /// Why the answer may differ by nature between two executions.
    pub hazards: Hazards,
    /// What stays behind in the session.
    pub effects: Vec<Effect>,
}

/// A qualified name. `schema` is empty when it could not be resolved (unknown relation or `search_path`).
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Table {
    /// Schema, as in `pg_namespace`.
    pub schema: String,
    /// Name, as in `pg_class` or `pg_proc`.
    pub name: String,
}

/// What kind of statement.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Nothing but white space and comments.
    Empty,
    /// SELECT, VALUES, TABLE, SHOW, EXPLAIN without ANALYZE: writes nothing and locks no row.
    Read,
    /// SELECT ... FOR UPDATE / SHARE.
    LockingRead,
    /// INSERT, UPDATE, DELETE, MERGE, TRUNCATE, data-modifying CTE, `nextval` and `setval`, REFRESH, EXPLAIN ANALYZE of one.
    Write,
    /// Calls code whose effects the text does not show: DO, CALL, SELECT of a volatile function of the user's.
    Code,
    /// BEGIN, COMMIT, SAVEPOINT, ...
    Transaction(Control),
    /// SET, RESET, DISCARD, LISTEN, LOAD, advisory locks, ...: `effects` says what.
    Session,
    /// SET LOCAL, SET TRANSACTION, SET CONSTRAINTS: gone with the transaction.
    Local,
    /// SQL-level PREPARE; the inner statement is `inner`.
    Prepare { name: String, inner: Box<Statement> },
    /// SQL-level EXECUTE; what it does is what the named statement does.
    Execute { name: String },
    /// SQL-level DEALLOCATE; `None` is ALL.
    Deallocate { name: Option<String> },
    /// COPY ... FROM STDIN or a file.
    CopyIn,
    /// COPY ... TO STDOUT or a file.
    CopyOut,
    /// DECLARE CURSOR; `hold` is WITH HOLD. Tables are those of its query.
    Declare { name: String, hold: bool },
    /// FETCH, MOVE.
    Fetch,
    /// CLOSE; `None` is ALL.
    Close { name: Option<String> },
    /// CREATE, ALTER, DROP, GRANT, COMMENT, ...
    Ddl,
    /// LOCK TABLE.
    Lock,
    /// VACUUM, ANALYZE, CHECKPOINT, CLUSTER, REINDEX, ALTER SYSTEM, NOTIFY, ...
    Utility,
    /// Not understood.
    Unknown(Unknown),
}

/// Transaction control.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Control {
    /// BEGIN, START TRANSACTION. `None`: not written, so the session's default.
    Begin { read_only: Option<bool>, isolation: Option<Isolation> },
    /// COMMIT, END. `chain` is AND CHAIN.
    Commit { chain: bool },
    /// ROLLBACK, ABORT.
    Rollback { chain: bool },
    /// SAVEPOINT name.
    Savepoint(String),
    /// RELEASE name.
    Release(String),
    /// ROLLBACK TO name.
    RollbackTo(String),
    /// PREPARE TRANSACTION gid.
    Prepare,
    /// COMMIT PREPARED, ROLLBACK PREPARED.
    FinishPrepared,
}

/// Isolation level.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Isolation {
    /// READ UNCOMMITTED and READ COMMITTED: every statement has a snapshot of its own.
    ReadCommitted,
    /// REPEATABLE READ.
    RepeatableRead,
    /// SERIALIZABLE.
    Serializable,
}

/// What a statement leaves in its session.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Effect {
    /// A setting of this name (lower case) gets another value: SET, RESET, `set_config(.., false)`.
    Setting(String),
    /// SET LOCAL / `set_config(.., true)` of this name, with the literal value where there is one.
    LocalSetting { name: String, value: Option<String> },
    /// RESET ALL.
    ResetAll,
    /// DISCARD ALL: the session is as new.
    DiscardAll,
    /// DISCARD TEMP / PLANS / SEQUENCES.
    DiscardSome,
    /// The session cannot be shared from now on.
    Pin(Pin),
}

/// Why a session must keep its server connection.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Pin {
    /// CREATE TEMP, SELECT INTO TEMP, a name in `pg_temp`.
    TempTable,
    /// LISTEN (UNLISTEN * is not tracked: DISCARD ALL unpins).
    Listen,
    /// `pg_advisory_lock` and its relatives without `_xact_`.
    AdvisoryLock,
    /// DECLARE ... WITH HOLD.
    HoldCursor,
    /// LOAD.
    Load,
    /// `setseed`, SET SEED, `currval`/`lastval` users, `set_config` of a name known only at run time.
    SessionState,
    /// PREPARE, EXECUTE or DEALLOCATE in a text of several statements.
    PrepareInBatch,
    /// A replication connection.
    Replication,
}

/// Why two executions may answer differently: a set.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Hazards(pub u16);

impl Hazards {
    /// `now()`, `current_timestamp`, `clock_timestamp()`, ...
    pub const CLOCK: Hazards = Hazards(1);
    /// `random()`, `gen_random_uuid()`, ...
    pub const RANDOM: Hazards = Hazards(2);
    /// `nextval`, `currval`, `lastval`, `setval`.
    pub const SEQUENCE: Hazards = Hazards(4);
    /// `pg_backend_pid()`, `current_setting`, `txid_current`, `inet_client_addr`, ...
    pub const SESSION: Hazards = Hazards(8);
    /// A volatile function that is not built in.
    pub const VOLATILE: Hazards = Hazards(16);
    /// Has side effects even in a read-only transaction: advisory locks, `pg_notify`, `pg_terminate_backend`, `lo_*`, `dblink`, ...
    pub const SIDE_EFFECT: Hazards = Hazards(32);
    /// LIMIT/OFFSET/DISTINCT ON without a total order.
    pub const INDETERMINATE: Hazards = Hazards(64);
    /// TABLESAMPLE, `ctid`, `xmin`, `tableoid` and other physical values.
    pub const PHYSICAL: Hazards = Hazards(128);

    /// Are all of `other` in this set?
    pub fn contains(self, other: Hazards) -> bool {
        self.0 & other.0 == other.0
    }

    /// Adds `other`.
    pub fn insert(&mut self, other: Hazards) {
        self.0 |= other.0;
    }
}

/// Why a statement was not understood. Counted by this reason.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Unknown {
    /// The grammar refuses it; Postgres will too, and its error is the client's answer.
    Syntax,
    /// Longer than `limits.max_statement_bytes`.
    TooLong,
    /// Nested too deeply to be read in bounded time.
    TooDeep,
    /// Not valid in the grammar's encoding.
    Encoding,
    /// A node of the parse tree that this version does not know.
    Node,
}

/// What names in a text mean: the client's side of the analysis.
#[derive(Clone, Debug)]
pub struct Context<'a> {
    /// Relations, functions and types of the database.
    pub catalog: &'a crate::catalog::Catalog,
    /// Schemas searched, `$user` replaced, `pg_catalog` left out; `None` when it is not known (then an
    /// unqualified name means the relation of that name if exactly one schema has one).
    pub search_path: Option<&'a [String]>,
    /// `standard_conforming_strings`.
    pub standard_conforming_strings: bool,
    /// Longer text is [`Unknown::TooLong`].
    pub max_bytes: usize,
}

/// Reads `sql`. Never fails: what is not understood is in the plan as [`Kind::Unknown`].
pub fn analyze(sql: &[u8], context: &Context<'_>) -> Plan {
    let _ = (sql, context);
    todo!("statement analysis")
}
