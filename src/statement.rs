//! SQL text -> [`Plan`]: what a frontend's text does, before anything is executed. Pure.
//!
//! Postgres' own grammar reads the text once ([`analyze`]); later steps look at the plan and never at
//! the text again. What is not understood is [`Kind::Unknown`] with its reason, never a guess.

mod access;
mod builtin;
mod call;
mod ddl;
mod guard;
mod name;
mod node;
pub mod normalize;
mod order;
pub(crate) mod sample;
mod utility;

use std::{collections::BTreeSet, ops::Range};

use pg_query::{FingerprintOptions, ParserOptions, protobuf::RawStmt};

/// What one text does. A text may hold several statements, and several transactions.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Plan {
    /// In order; empty for an empty query.
    pub statements: Vec<Statement>,
    /// The plan would be another for other literals (`set_config('x', ...)`, `LIMIT 0`): never share it by fingerprint.
    pub literal_dependent: bool,
    /// A label for statistics (`libpg_query`'s fingerprint of the whole text); never a routing key.
    pub fingerprint: u64,
}

impl Plan {
    /// The plan of a text of `length` bytes that is not read.
    pub fn unknown(why: Unknown, length: usize) -> Self {
        let statements = vec![Statement::new(Kind::Unknown(why), 0..length)];
        Self { statements, literal_dependent: true, fingerprint: 0 }
    }

    /// The plan of the protocol's `FunctionCall`, which names a function by its OID. libpq calls large objects so, and
    /// those are the source's; what else it may call stays in the session.
    pub fn function_call() -> Self {
        let mut call = Statement::new(Kind::Utility, 0..0);
        call.hazards.insert(Hazards::SIDE_EFFECT);
        call.effects.push(Effect::Pin(Pin::SessionState));
        Self { statements: vec![call], literal_dependent: true, fingerprint: 0 }
    }
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
    /// Runs code that it does not name (triggers, defaults, constraints, policies): what that leaves in the session is not known.
    pub runs_code: bool,
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
    Prepare {
        /// Of the prepared statement.
        name: String,
        /// What it will do.
        inner: Box<Statement>,
    },
    /// SQL-level EXECUTE; what it does is what the named statement does.
    Execute {
        /// Of the prepared statement.
        name: String,
    },
    /// SQL-level DEALLOCATE; `None` is ALL.
    Deallocate {
        /// Of the prepared statement.
        name: Option<String>,
    },
    /// COPY ... FROM STDIN or a file.
    CopyIn,
    /// COPY ... TO STDOUT or a file.
    CopyOut,
    /// DECLARE CURSOR; `hold` is WITH HOLD. Tables are those of its query.
    Declare {
        /// Of the cursor.
        name: String,
        /// It outlives its transaction.
        hold: bool,
    },
    /// FETCH, MOVE.
    Fetch,
    /// CLOSE; `None` is ALL.
    Close {
        /// Of the cursor.
        name: Option<String>,
    },
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
    Begin {
        /// READ ONLY or READ WRITE.
        read_only: Option<bool>,
        /// ISOLATION LEVEL.
        isolation: Option<Isolation>,
    },
    /// COMMIT, END. `chain` is AND CHAIN.
    Commit {
        /// The next transaction begins at once.
        chain: bool,
    },
    /// ROLLBACK, ABORT.
    Rollback {
        /// The next transaction begins at once.
        chain: bool,
    },
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
    LocalSetting {
        /// Lower case.
        name: String,
        /// Its literal.
        value: Option<String>,
    },
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

impl Pin {
    /// The word used in metrics and on the console.
    pub fn name(self) -> &'static str {
        match self {
            Pin::TempTable => "temp_table",
            Pin::Listen => "listen",
            Pin::AdvisoryLock => "advisory_lock",
            Pin::HoldCursor => "hold_cursor",
            Pin::Load => "load",
            Pin::SessionState => "session_state",
            Pin::PrepareInBatch => "prepare_in_batch",
            Pin::Replication => "replication",
        }
    }
}

impl Unknown {
    /// The word used in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Unknown::Syntax => "syntax",
            Unknown::TooLong => "too_long",
            Unknown::TooDeep => "too_deep",
            Unknown::Encoding => "encoding",
            Unknown::Node => "node",
        }
    }
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

/// Reads `sql`. Never fails and never panics: what is not understood is in the plan as [`Kind::Unknown`].
///
/// Pure but for a thread of its own that reads a text whose tree may be too deep for the caller's stack.
pub fn analyze(sql: &[u8], context: &Context<'_>) -> Plan {
    let text = if sql.len() > context.max_bytes {
        Err(Unknown::TooLong)
    } else {
        std::str::from_utf8(sql).ok().filter(|text| !text.contains('\0')).ok_or(Unknown::Encoding)
    };
    let depth = text.and_then(|text| Ok((text, guard::depth(sql, context.standard_conforming_strings)?)));
    let plan = depth.and_then(|(text, depth)| {
        if depth <= SHALLOW {
            return read(text, context);
        }
        std::thread::scope(|scope| {
            let deep = std::thread::Builder::new().stack_size(DEEP_STACK_BYTES);
            let reader = deep.spawn_scoped(scope, || read(text, context)).map_err(|_| Unknown::TooDeep)?;
            reader.join().unwrap_or(Err(Unknown::Node))
        })
    });
    plan.unwrap_or_else(|why| Plan {
        statements: vec![Statement::new(Kind::Unknown(why), 0..sql.len())],
        literal_dependent: true,
        fingerprint: 0,
    })
}

/// A text with an estimated tree depth of at most this is read on the caller's stack: under 2 MiB.
const SHALLOW: usize = 40;
/// Enough for the deepest tree that `libpg_query` hands out (10,000 messages); untouched pages cost nothing.
const DEEP_STACK_BYTES: usize = 512 << 20;

/// Does a call of this function mean more than its result? Known of built-in functions, which are in `pg_catalog`, and of
/// those of extensions that run SQL; not of the user's own.
pub fn means_more(function: &Table) -> bool {
    let class = builtin::classify(&function.name);
    class == Some(builtin::Builtin::Code) || class.is_some() && function.schema == "pg_catalog"
}

/// Cuts a text behind its semicolons, for reports on text that the grammar refuses; never for routing.
pub fn cut(sql: &str) -> Vec<&str> {
    guard::cut(sql)
}

/// The text with its constants replaced by `$1`, `$2`, ...: for reports. `None` when it cannot be read.
pub fn without_constants(sql: &str) -> Option<String> {
    std::panic::catch_unwind(|| pg_query::normalize(sql)).ok()?.ok()
}

fn read(sql: &str, context: &Context<'_>) -> Result<Plan, Unknown> {
    let options = if context.standard_conforming_strings {
        ParserOptions::DEFAULT
    } else {
        ParserOptions::DISABLE_STANDARD_CONFORMING_STRINGS
    };
    // The binding indexes into lists and casts nodes without looking: a panic of its is not ours.
    let parsed = std::panic::catch_unwind(|| pg_query::parse(sql, options)).map_err(|_| Unknown::Node)?;
    let tree = parsed.map_err(|error| why(&error))?.protobuf;
    let fingerprint = pg_query::fingerprint(sql, options, FingerprintOptions::DEFAULT).map_or(0, |f| f.value);
    let mut plan = Plan { fingerprint, ..Plan::default() };
    let unsure = Context { search_path: None, ..context.clone() };
    let mut moved = false;
    for raw in &tree.stmts {
        let Some(node) = raw.stmt.as_deref() else { continue };
        let context = if moved { &unsure } else { context };
        let (statement, literal_dependent) = utility::statement(node, span(sql, raw), context);
        moved |= statement.moves_search_path();
        plan.literal_dependent |= literal_dependent;
        plan.statements.push(statement);
    }
    if let [_, _, ..] = plan.statements.as_slice() {
        for statement in &mut plan.statements {
            let prepared = matches!(
                statement.kind,
                Kind::Prepare { .. } | Kind::Execute { .. } | Kind::Deallocate { .. }
            );
            if prepared {
                statement.effects.push(Effect::Pin(Pin::PrepareInBatch));
            }
        }
    }
    Ok(plan)
}

/// `libpg_query` gives byte offsets; a length of 0 is "to the end".
fn span(sql: &str, raw: &RawStmt) -> Range<usize> {
    let start = usize::try_from(raw.stmt_location).unwrap_or(0).min(sql.len());
    let len = usize::try_from(raw.stmt_len).unwrap_or(0);
    let end = if len == 0 { sql.len() } else { (start + len).min(sql.len()) };
    let text = sql.get(start..end).unwrap_or_default();
    let start = start + (text.len() - text.trim_ascii_start().len());
    start..start + text.trim_ascii().len()
}

/// Its own limits are not the grammar's: Postgres might accept what they refuse.
fn why(error: &pg_query::Error) -> Unknown {
    let text = error.to_string();
    let own =
        ["stack depth limit", "nested too deeply", "memory exhausted", "out of memory", "Error decoding"];
    if own.iter().any(|limit| text.contains(limit)) { Unknown::TooDeep } else { Unknown::Syntax }
}

impl Statement {
    /// A statement that concerns nothing.
    pub fn new(kind: Kind, span: Range<usize>) -> Self {
        Self {
            kind,
            span,
            reads: BTreeSet::new(),
            writes: BTreeSet::new(),
            functions: BTreeSet::new(),
            introspects: false,
            total_order: false,
            hazards: Hazards::default(),
            effects: Vec::new(),
            runs_code: false,
        }
    }

    /// May unqualified names mean something else behind it? The end of a block takes back what was local to it, which
    /// may have been set by an earlier text.
    pub fn moves_search_path(&self) -> bool {
        let ends = matches!(
            self.kind,
            Kind::Transaction(
                Control::Commit { .. } | Control::Rollback { .. } | Control::RollbackTo(_) | Control::Prepare
            )
        );
        ends || self.effects.iter().any(|effect| match effect {
            Effect::Setting(name) | Effect::LocalSetting { name, .. } => {
                matches!(name.as_str(), "search_path" | "role" | "session_authorization")
            }
            Effect::ResetAll | Effect::DiscardAll => true,
            Effect::DiscardSome | Effect::Pin(_) => false,
        })
    }
}

/// Entry of the fuzzer: any bytes end in a plan whose spans lie inside the text.
pub fn fuzz_statement(data: &[u8]) {
    let catalog = sample::catalog();
    let path = ["public".to_owned()];
    for (search_path, standard_conforming_strings) in [(Some(&path[..]), true), (None, false)] {
        let context =
            Context { catalog: &catalog, search_path, standard_conforming_strings, max_bytes: 1 << 16 };
        for statement in analyze(data, &context).statements {
            assert!(statement.span.start <= statement.span.end && statement.span.end <= data.len());
        }
    }
}

#[cfg(test)]
mod tests;
