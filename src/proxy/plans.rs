//! Plans by text, per data thread: exact text first, then the text with its literals stripped.

use std::{cell::RefCell, hash::BuildHasher, rc::Rc};

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::{
    catalog::Catalog,
    route::{Footprint, policy::Policy},
    statement::{self, Kind, Plan, Unknown, normalize::normalize},
};

/// A plan, and what it means under the policy that was asked about last.
#[derive(Debug)]
pub struct Entry {
    /// What the text does.
    pub plan: Plan,
    /// Generation of the catalog it was made with.
    pub catalog: u64,
    /// Number of the [`SearchContext`] it was made for.
    pub context: u32,
    memo: RefCell<Option<(u64, Rc<Footprint>)>>,
}

impl Entry {
    /// A plan that was made with this generation of the catalog for this context.
    pub fn new(plan: Plan, catalog: u64, context: u32) -> Rc<Self> {
        Rc::new(Self { plan, catalog, context, memo: RefCell::default() })
    }

    /// The plan of the statement in an SQL-level PREPARE.
    pub fn prepared(self: Rc<Self>) -> Rc<Self> {
        match &self.plan.statements[..] {
            [statement::Statement { kind: Kind::Prepare { inner, .. }, .. }] => {
                let plan =
                    Plan { statements: vec![(**inner).clone()], literal_dependent: true, fingerprint: 0 };
                Self::new(plan, self.catalog, self.context)
            }
            _ => self, // not read, and treated so
        }
    }

    /// What the plan means under `policy`.
    pub fn footprint(&self, policy: &Policy, catalog: &Catalog) -> Rc<Footprint> {
        if let Some((generation, footprint)) = &*self.memo.borrow()
            && *generation == policy.generation
        {
            return Rc::clone(footprint);
        }
        let footprint = Rc::new(Footprint::new(&self.plan.statements, policy, catalog));
        *self.memo.borrow_mut() = Some((policy.generation, Rc::clone(&footprint)));
        footprint
    }
}

/// What unqualified names mean to a session. Interned: equal contexts have equal numbers.
#[derive(Debug, Eq, PartialEq)]
pub struct SearchContext {
    /// Part of the key of a plan.
    pub number: u32,
    /// See [`statement::Context`].
    pub search_path: Option<Vec<String>>,
    /// See [`statement::Context`].
    pub standard_conforming_strings: bool,
    /// A byte below 128 is ASCII wherever it stands. Not so in SJIS, BIG5, GBK, UHC, GB18030 and JOHAB: a quote may be
    /// half of a letter there, and what is not all ASCII is not read.
    pub ascii_safe: bool,
}

/// What executing a prepared statement does in a session with this context. Sessions with several contexts may share
/// it: `cell` remembers the plan for the one that asked last.
pub fn refreshed(
    cell: &RefCell<Rc<Entry>>,
    (catalog, context): (u64, u32),
    plan: impl FnOnce() -> Rc<Entry>,
) -> Rc<Entry> {
    let mut entry = cell.borrow_mut();
    if (entry.catalog, entry.context) != (catalog, context) {
        *entry = plan();
    }
    Rc::clone(&entry)
}

/// The cache of one data thread, bounded in bytes.
#[derive(Default)]
pub struct Plans {
    exact: Layer,
    shapes: Layer,
    scratch: Vec<u8>,
    hasher: DefaultHashBuilder,
    contexts: Vec<Rc<SearchContext>>,
    next_context: u32,
    generation: u64,
    /// Lookups that found a plan, and those that had to read the text, since they were counted last.
    hits: u64,
    misses: u64,
}

/// Limits of the cache and of the analysis.
#[derive(Clone, Copy, Debug)]
pub struct PlanLimits {
    /// Bytes of both layers together.
    pub cache_bytes: usize,
    /// Longer text is not analysed.
    pub statement_bytes: usize,
}

impl Plans {
    /// The context with these properties.
    pub fn context(
        &mut self,
        search_path: Option<Vec<String>>,
        standard_conforming_strings: bool,
        ascii_safe: bool,
    ) -> Rc<SearchContext> {
        let same = |c: &&Rc<SearchContext>| {
            c.search_path == search_path
                && c.standard_conforming_strings == standard_conforming_strings
                && c.ascii_safe == ascii_safe
        };
        if let Some(found) = self.contexts.iter().find(same) {
            return Rc::clone(found);
        }
        if self.contexts.len() >= MAX_CONTEXTS {
            self.contexts.clear();
        }
        self.next_context += 1;
        let number = self.next_context;
        let new = Rc::new(SearchContext { number, search_path, standard_conforming_strings, ascii_safe });
        self.contexts.push(Rc::clone(&new));
        new
    }

    /// The plan of `sql` for a session with this context.
    pub fn get(
        &mut self,
        sql: &[u8],
        context: &SearchContext,
        catalog: &Catalog,
        limits: PlanLimits,
    ) -> Rc<Entry> {
        if self.generation != catalog.generation {
            self.exact = Layer::default();
            self.shapes = Layer::default();
            self.generation = catalog.generation;
        }
        let hash = self.hasher.hash_one((context.number, sql));
        if let Some(found) = self.exact.get(hash, context.number, sql) {
            self.hits += 1;
            return found;
        }
        if !context.ascii_safe && !sql.is_ascii() {
            let plan = Plan::unknown(Unknown::Encoding, sql.len());
            return Entry::new(plan, catalog.generation, context.number);
        }
        let short = sql.len() <= limits.statement_bytes;
        let shaped = short && normalize(sql, context.standard_conforming_strings, &mut self.scratch);
        let shape_hash = self.hasher.hash_one((context.number, &self.scratch[..]));
        if shaped && let Some(found) = self.shapes.get(shape_hash, context.number, &self.scratch) {
            self.hits += 1;
            return found;
        }
        self.misses += 1;
        let entry = Entry::new(
            statement::analyze(
                sql,
                &statement::Context {
                    catalog,
                    search_path: context.search_path.as_deref(),
                    standard_conforming_strings: context.standard_conforming_strings,
                    max_bytes: limits.statement_bytes,
                },
            ),
            catalog.generation,
            context.number,
        );
        // Two layers of two generations.
        let quarter = limits.cache_bytes / 4;
        let understood = !entry.plan.statements.iter().any(|s| matches!(s.kind, Kind::Unknown(_)));
        if shaped && !entry.plan.literal_dependent && understood && self.scratch != sql {
            self.shapes.insert((context.number, &self.scratch), &entry, quarter, &self.hasher);
        } else if short {
            self.exact.insert((context.number, sql), &entry, quarter, &self.hasher);
        }
        entry
    }

    /// Lookups that found a plan, and those that did not, since the last call.
    pub fn take_lookups(&mut self) -> [u64; 2] {
        [std::mem::take(&mut self.hits), std::mem::take(&mut self.misses)]
    }

    /// Entries and bytes, for metrics.
    pub fn size(&self) -> (usize, usize) {
        let layers = [&self.exact, &self.shapes];
        (
            layers.iter().map(|l| l.young.len() + l.old.len()).sum(),
            layers.iter().map(|l| l.young_bytes + l.old_bytes).sum(),
        )
    }
}

type Table = HashTable<(u32, Box<[u8]>, Rc<Entry>)>;

/// Two generations: when the young one is full it becomes the old one, and the old one is forgotten.
#[derive(Default)]
struct Layer {
    young: Table,
    old: Table,
    young_bytes: usize,
    old_bytes: usize,
}

impl Layer {
    fn get(&mut self, hash: u64, context: u32, key: &[u8]) -> Option<Rc<Entry>> {
        let same = |(c, k, _): &(u32, Box<[u8]>, Rc<Entry>)| *c == context && **k == *key;
        self.young.find(hash, same).or_else(|| self.old.find(hash, same)).map(|(_, _, e)| Rc::clone(e))
    }

    fn insert(
        &mut self,
        (context, key): (u32, &[u8]),
        entry: &Rc<Entry>,
        limit: usize,
        hasher: &DefaultHashBuilder,
    ) {
        if self.young_bytes + key.len() + ENTRY > limit {
            self.old = std::mem::take(&mut self.young);
            self.old_bytes = std::mem::take(&mut self.young_bytes);
        }
        self.young_bytes += key.len() + ENTRY;
        self.young.insert_unique(
            hasher.hash_one((context, key)),
            (context, key.into(), Rc::clone(entry)),
            |(c, k, _)| hasher.hash_one((*c, &**k)),
        );
    }
}

const MAX_CONTEXTS: usize = 1024;
/// What an entry weighs beside its text: the plan's sets of names.
const ENTRY: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statement::sample;

    #[test]
    fn prepared_statements_follow_the_search_path() {
        let mut catalog = sample::catalog();
        let limits = PlanLimits { cache_bytes: 1 << 20, statement_bytes: 1 << 20 };
        let mut plans = Plans::default();
        let [public, other] =
            ["public", "other"].map(|schema| plans.context(Some(vec![schema.to_owned()]), true, true));
        for sql in ["insert into things values ($1)", "prepare p as insert into things values ($1)"] {
            let cell = RefCell::new(Entry::new(Plan::default(), u64::MAX, 0));
            let mut written = |context: &SearchContext, catalog: &Catalog| {
                let plan = || plans.get(sql.as_bytes(), context, catalog, limits).prepared();
                let entry = refreshed(&cell, (catalog.generation, context.number), plan);
                assert_eq!((entry.catalog, entry.context), (catalog.generation, context.number), "{sql}");
                let [only] = &entry.plan.statements[..] else { panic!("{:?}", entry.plan) };
                assert_eq!(only.kind, Kind::Write, "{sql}");
                only.writes.iter().map(|t| t.schema.clone()).collect::<Vec<_>>()
            };
            for _ in 0..2 {
                assert_eq!(written(&public, &catalog), ["public"], "{sql}");
                assert_eq!(written(&other, &catalog), ["other"], "{sql}");
            }
            catalog.generation += 1;
            assert_eq!(written(&other, &catalog), ["other"], "{sql}");
        }
    }
}
