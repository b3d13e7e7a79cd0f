//! What a plan means under a policy: repositories instead of tables. Computed once per plan and policy.

use std::collections::BTreeSet;

use super::policy::{Pattern, Policy};
use crate::{
    catalog::Catalog,
    statement::{Control, Effect, Hazards, Kind, Pin, Statement, Table, Unknown},
};

/// A set of repositories: bit `i` is `policy.repositories[i]`; bit 0 is `default`.
pub type Repositories = u64;

/// A whole text, as routing sees it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Footprint {
    /// [`Policy::generation`] of the policy it was made under; with another it must be made anew.
    pub generation: u64,
    /// The strongest class of the statements.
    pub class: Class,
    /// Repositories read. Those written are not repeated here.
    pub reads: Repositories,
    /// Repositories written, locked or changed by DDL: their lead must run it.
    pub writes: Repositories,
    /// May write anything: undeclared volatile functions, DO, DDL without a name, text not understood.
    pub writes_unknown: bool,
    /// May read anything: undeclared functions that are not volatile.
    pub reads_unknown: bool,
    /// Has effects that everybody must meet in one place: advisory locks, NOTIFY, large objects.
    pub side_effects: bool,
    /// Reads the catalogs of the database.
    pub introspects: bool,
    /// Names tables that the catalog does not know; they may be temporary ones.
    pub unresolved: bool,
    /// Asks for what this session drew from a sequence, without naming it (`lastval()`).
    pub sequence_state: bool,
    /// Opens a cursor: the block cannot change sides while it is open.
    pub opens_cursor: bool,
    /// Holds transaction control beside other statements: it is routed as one unit.
    pub mixed_control: bool,
}

/// What kind of text it is; the order is that of strength.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Class {
    /// Nothing to do.
    #[default]
    Empty,
    /// Exactly one statement of transaction control.
    Control(Control),
    /// SET LOCAL and its relatives.
    Local,
    /// Changes the session, or runs there by name: SET, PREPARE, EXECUTE, LISTEN.
    Session,
    /// FETCH, MOVE, CLOSE.
    Cursor,
    /// Reads no table of a repository: catalogs, SHOW, `SELECT 1`.
    Introspection,
    /// Reads tables.
    Read,
    /// Locks rows or tables.
    Locking,
    /// VACUUM, ANALYZE, ...
    Utility,
    /// Writes rows.
    Write,
    /// Runs code.
    Code,
    /// Changes definitions.
    Ddl,
    /// Not understood.
    Unknown(Unknown),
}

impl Class {
    /// The word used in metrics, logs and reports.
    pub fn name(&self) -> &'static str {
        match self {
            Class::Empty => "empty",
            Class::Control(_) => "transaction",
            Class::Local => "local",
            Class::Session => "session",
            Class::Cursor => "cursor",
            Class::Introspection => "introspection",
            Class::Read => "read",
            Class::Locking => "locking",
            Class::Utility => "utility",
            Class::Write => "write",
            Class::Code => "code",
            Class::Ddl => "ddl",
            Class::Unknown(_) => "unknown",
        }
    }

    pub(super) fn strength(&self) -> u8 {
        match self {
            Class::Empty => 0,
            Class::Control(_) => 1,
            Class::Local => 2,
            Class::Session => 3,
            Class::Cursor => 4,
            Class::Introspection => 5,
            Class::Read => 6,
            Class::Locking => 7,
            Class::Utility => 8,
            Class::Write => 9,
            Class::Code => 10,
            Class::Ddl => 11,
            Class::Unknown(_) => 12,
        }
    }
}

impl Footprint {
    /// Maps the statements of a text to repositories.
    pub fn new(statements: &[Statement], policy: &Policy, catalog: &Catalog) -> Self {
        let mut footprint = Self { generation: policy.generation, ..Self::default() };
        let map = Map { policy, catalog };
        for statement in statements {
            footprint.add(statement, &map);
            let control = matches!(statement.kind, Kind::Transaction(_));
            footprint.mixed_control |= control && statements.len() > 1;
        }
        footprint.reads &= !footprint.writes;
        footprint
    }

    /// Concerns no table and nothing unknown: it runs wherever its session or its block is.
    pub fn is_free(&self) -> bool {
        let concerns = self.reads | self.writes;
        concerns == 0 && !self.writes_unknown && !self.reads_unknown && !self.side_effects
    }

    /// Must the lead run it?
    pub fn is_write(&self) -> bool {
        self.writes != 0 || self.writes_unknown
    }

    fn add(&mut self, statement: &Statement, map: &Map<'_>) {
        let class = class(statement);
        if class.strength() >= self.class.strength() {
            self.class = class;
        }
        self.introspects |= statement.introspects;
        self.side_effects |= statement.hazards.contains(Hazards::SIDE_EFFECT);
        // What the session keeps from then on belongs where the session lives.
        let keeps = |e: &Effect| {
            matches!(e, Effect::Pin(Pin::Listen | Pin::AdvisoryLock | Pin::Load | Pin::TempTable))
        };
        self.side_effects |= statement.effects.iter().any(keeps);
        self.opens_cursor |= matches!(statement.kind, Kind::Declare { .. });
        let session = matches!(statement.kind, Kind::Session);
        let drew = statement.effects.contains(&Effect::Pin(Pin::SessionState));
        self.sequence_state |= session && drew && statement.hazards.contains(Hazards::SEQUENCE);
        self.tables(statement, map);
        for function in &statement.functions {
            self.function(function, map);
        }
        self.writes_unknown |= match &statement.kind {
            // Of a syntax error Postgres' own error is the answer, and the home side gives it.
            Kind::Unknown(why) => *why != Unknown::Syntax,
            Kind::Code => statement.functions.is_empty(),
            Kind::Ddl => statement.writes.is_empty(),
            Kind::Empty
            | Kind::Read
            | Kind::LockingRead
            | Kind::Write
            | Kind::Transaction(_)
            | Kind::Session
            | Kind::Local
            | Kind::Prepare { .. }
            | Kind::Execute { .. }
            | Kind::Deallocate { .. }
            | Kind::CopyIn
            | Kind::CopyOut
            | Kind::Declare { .. }
            | Kind::Fetch
            | Kind::Close { .. }
            | Kind::Lock
            | Kind::Utility => false,
        };
    }

    fn tables(&mut self, statement: &Statement, map: &Map<'_>) {
        let reads = map.repositories(&statement.reads);
        let writes = map.repositories(&statement.writes);
        self.writes_unknown |= reads.is_none() || writes.is_none();
        let locks = matches!(statement.kind, Kind::LockingRead);
        self.writes |= writes.unwrap_or(0) | reads.filter(|_| locks).unwrap_or(0);
        self.reads |= reads.filter(|_| !locks).unwrap_or(0);
        self.unresolved |=
            statement.reads.iter().chain(&statement.writes).any(|table| table.schema.is_empty());
    }

    fn function(&mut self, function: &Table, map: &Map<'_>) {
        let volatile = map.catalog.functions.get(function).is_none_or(|f| f.volatile);
        let declared = map.declaring(function);
        match (declared, volatile) {
            (0, true) => self.writes_unknown = true,
            (0, false) => self.reads_unknown = true,
            (repositories, true) => self.writes |= repositories,
            (repositories, false) => self.reads |= repositories,
        }
    }
}

fn class(statement: &Statement) -> Class {
    let no_tables = statement.reads.is_empty() && statement.functions.is_empty();
    match &statement.kind {
        Kind::Empty => Class::Empty,
        Kind::Read if no_tables => Class::Introspection,
        Kind::CopyOut | Kind::Declare { .. } if !statement.writes.is_empty() => Class::Write,
        Kind::Read | Kind::CopyOut | Kind::Declare { .. } => Class::Read,
        Kind::LockingRead | Kind::Lock => Class::Locking,
        Kind::Write | Kind::CopyIn => Class::Write,
        Kind::Code => Class::Code,
        Kind::Transaction(control) => Class::Control(control.clone()),
        Kind::Session | Kind::Prepare { .. } | Kind::Execute { .. } | Kind::Deallocate { .. } => {
            Class::Session
        }
        Kind::Local => Class::Local,
        Kind::Fetch | Kind::Close { .. } => Class::Cursor,
        Kind::Ddl => Class::Ddl,
        Kind::Utility => Class::Utility,
        Kind::Unknown(why) => Class::Unknown(*why),
    }
}

/// Names -> repositories.
struct Map<'a> {
    policy: &'a Policy,
    catalog: &'a Catalog,
}

impl Map<'_> {
    /// `None`: a table may belong to more than one repository.
    fn repositories(&self, tables: &BTreeSet<Table>) -> Option<Repositories> {
        let mut all = 0;
        for table in tables {
            match self.repository(table)? {
                // An ancestor came along with its partition, whose own repository counts.
                0 if tables.iter().any(|other| self.owns(table, other)) => {}
                index => all |= 1 << index,
            }
        }
        Some(all)
    }

    /// Index of the repository of a table: by pattern, else by its ancestors, else `default`.
    fn repository(&self, table: &Table) -> Option<usize> {
        for name in std::iter::once(table).chain(self.ancestors(table)) {
            match *self.matching(name).as_slice() {
                [] => {}
                [index] => return Some(index),
                [..] if name.schema.is_empty() => return None,
                [first, ..] => {
                    let exact = |&index: &usize| self.tables(index).any(|p| p.is_exact() && p.matches(name));
                    return Some(self.matching(name).into_iter().find(exact).unwrap_or(first));
                }
            }
        }
        Some(0)
    }

    fn matching(&self, table: &Table) -> Vec<usize> {
        let repositories = 1..self.policy.repositories.len();
        repositories.filter(|&index| self.tables(index).any(|pattern| pattern.matches(table))).collect()
    }

    fn tables(&self, index: usize) -> impl Iterator<Item = &Pattern> {
        self.policy.repositories[index].tables.iter()
    }

    /// Is `ancestor` one of `table`'s, and does `table` belong to a repository by its own name?
    fn owns(&self, ancestor: &Table, table: &Table) -> bool {
        self.ancestors(table).any(|found| found == ancestor) && self.repository(table) != Some(0)
    }

    fn ancestors<'b>(&'b self, table: &Table) -> impl Iterator<Item = &'b Table> {
        let parent = |table: &Table| self.catalog.relations.get(table)?.parent.as_ref();
        // Postgres has no cycles here; a catalog read half-way through a change might.
        std::iter::successors(parent(table), move |table| parent(table)).take(32)
    }

    fn declaring(&self, function: &Table) -> Repositories {
        let repositories = self.policy.repositories.iter().enumerate();
        let declares = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(function));
        repositories.filter(|(_, r)| declares(&r.functions)).fold(0, |all, (index, _)| all | 1 << index)
    }
}
