//! Kept handles for the data path: counting a statement costs no lock, no lookup by name and no allocation.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::BTreeMap,
    sync::Arc,
    time::Duration,
};

use super::{
    metrics::{self as names, Metric, Metrics, Value},
    tally::{Count, Times},
};
use crate::Side;

/// What a statement does, as a label.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Op {
    /// Reads rows.
    Read,
    /// Writes rows.
    Write,
    /// Changes the schema.
    Ddl,
    /// Transaction control.
    Tx,
    /// Session state, utilities, what was not understood.
    Other,
}

impl Op {
    const ALL: [Op; 5] = [Op::Read, Op::Write, Op::Ddl, Op::Tx, Op::Other];

    /// The word used in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Op::Read => "read",
            Op::Write => "write",
            Op::Ddl => "ddl",
            Op::Tx => "tx",
            Op::Other => "other",
        }
    }
}

/// The handles of one data thread. Made anew ([`HotHandles::new`]) when the repositories change; the counts
/// go on, because the same labels are summed.
#[derive(Debug)]
pub struct HotHandles {
    metrics: Arc<Metrics>,
    repositories: Vec<Repository>,
    /// What handles counted that are gone.
    earlier: BTreeMap<String, Totals>,
    /// Bytes received from clients.
    pub client_received: Count,
    /// Bytes sent to clients.
    pub client_sent: Count,
    /// Bytes received from the backends, by [`Side::index`].
    pub backend_received: [Count; 2],
    /// Bytes sent to the backends, by [`Side::index`].
    pub backend_sent: [Count; 2],
    /// Plans found in the cache.
    pub plan_cache_hits: Count,
    /// Plans made.
    pub plan_cache_misses: Count,
    commits: [Count; 2],
    rollbacks: [Count; 2],
    pool_wait: [Times; 2],
    unknown: Family,
    mirrored: [Family; 2],
    follower_failures: [Family; 2],
    /// Round trips of shipping, by the lead's [`Side::index`].
    pub mirror_trips: [Count; 2],
}

#[derive(Debug)]
struct Repository {
    name: String,
    /// By side and op. Made on first use: most combinations never occur, and each would be rendered.
    queries: [[OnceCell<Queries>; Op::ALL.len()]; 2],
    routes: [Family; 2],
    errors: [Family; 2],
    failed: [Cell<u64>; 2],
}

/// Statements and errors of one repository, by [`Side::index`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Statements answered.
    pub queries: [u64; 2],
    /// Errors answered.
    pub errors: [u64; 2],
}

impl Totals {
    /// Adds what others counted.
    pub fn add(&mut self, other: &Totals) {
        for side in 0..2 {
            self.queries[side] += other.queries[side];
            self.errors[side] += other.errors[side];
        }
    }
}

#[derive(Debug)]
struct Queries {
    count: Count,
    seconds: Times,
}

/// Counters of one family that differ in one label. Its values are few, so a scan beats a hash.
#[derive(Debug, Default)]
struct Family(RefCell<Vec<(&'static str, Count)>>);

impl Family {
    fn increment(&self, word: &'static str, make: impl FnOnce() -> Count) {
        let mut family = self.0.borrow_mut();
        if let Some((_, counter)) = family.iter().find(|(w, _)| *w == word) {
            return counter.increment(1);
        }
        let counter = make();
        counter.increment(1);
        family.push((word, counter));
    }
}

impl HotHandles {
    /// `repositories` in the order of the policy: the index is the one given to the methods.
    pub fn new<'a>(metrics: &Arc<Metrics>, repositories: impl IntoIterator<Item = &'a str>) -> Self {
        let by_side =
            |metric: &'static Metric| Side::BOTH.map(|side| metrics.counter(metric, &[side.into()]));
        let ended = |outcome: &'static str| {
            Side::BOTH.map(|side| metrics.counter(&names::TRANSACTIONS, &[side.into(), outcome.into()]))
        };
        let repository = |name: &str| Repository {
            name: name.to_owned(),
            queries: Default::default(),
            routes: Default::default(),
            errors: Default::default(),
            failed: Default::default(),
        };
        Self {
            metrics: Arc::clone(metrics),
            earlier: BTreeMap::new(),
            repositories: repositories.into_iter().map(repository).collect(),
            client_received: metrics.counter(&names::CLIENT_RECEIVED_BYTES, &[]),
            client_sent: metrics.counter(&names::CLIENT_SENT_BYTES, &[]),
            backend_received: by_side(&names::BACKEND_RECEIVED_BYTES),
            backend_sent: by_side(&names::BACKEND_SENT_BYTES),
            plan_cache_hits: metrics.counter(&names::PLAN_CACHE_HITS, &[]),
            plan_cache_misses: metrics.counter(&names::PLAN_CACHE_MISSES, &[]),
            commits: ended("commit"),
            rollbacks: ended("rollback"),
            pool_wait: Side::BOTH.map(|side| metrics.histogram(&names::POOL_WAIT, &[side.into()])),
            unknown: Family::default(),
            mirrored: Default::default(),
            follower_failures: Default::default(),
            mirror_trips: by_side(&names::MIRROR_ROUND_TRIPS),
        }
    }

    /// A statement of this repository was answered by this side. An index that is out of range (of a policy
    /// that is no longer in force) counts as `default`.
    pub fn query(&self, repository: usize, side: Side, op: Op, took: Duration) {
        let Some(repository) = self.repository(repository) else { return };
        let handles = repository.queries[side.index()][op as usize].get_or_init(|| {
            let labels = [Value::Configured(&repository.name), side.into(), op.name().into()];
            Queries {
                count: self.metrics.counter(&names::QUERIES, &labels),
                seconds: self.metrics.histogram(&names::QUERY_DURATION, &labels),
            }
        });
        handles.count.increment(1);
        handles.seconds.record(took);
    }

    /// A statement was routed, for this reason.
    pub fn route(&self, repository: usize, side: Side, reason: &'static str) {
        let Some(repository) = self.repository(repository) else { return };
        repository.routes[side.index()].increment(reason, || {
            let labels = [Value::Configured(&repository.name), side.into(), reason.into()];
            self.metrics.counter(&names::ROUTES, &labels)
        });
    }

    /// This side answered with an error.
    pub fn error(&self, repository: usize, side: Side, sqlstate: &str) {
        let Some(repository) = self.repository(repository) else { return };
        let class = names::sqlstate_class(sqlstate);
        let failed = &repository.failed[side.index()];
        failed.set(failed.get() + 1);
        repository.errors[side.index()].increment(class, || {
            let labels = [side.into(), class.into(), Value::Configured(&repository.name)];
            self.metrics.counter(&names::ERRORS, &labels)
        });
    }

    /// A statement was not understood, for this reason.
    pub fn unknown(&self, reason: &'static str) {
        self.unknown.increment(reason, || self.metrics.counter(&names::UNKNOWN_STATEMENTS, &[reason.into()]));
    }

    /// A transaction that this side led was shipped, or not.
    pub fn mirrored(&self, lead: Side, outcome: &'static str) {
        self.mirrored[lead.index()].increment(outcome, || {
            self.metrics.counter(&names::MIRROR_TRANSACTIONS, &[lead.into(), outcome.into()])
        });
    }

    /// This side did not take a transaction.
    pub fn follower_failure(&self, side: Side, reason: &'static str) {
        self.follower_failures[side.index()].increment(reason, || {
            self.metrics.counter(&names::MIRROR_FOLLOWER_FAILURES, &[side.into(), reason.into()])
        });
    }

    /// A transaction ended on this side.
    pub fn transaction(&self, side: Side, committed: bool) {
        let outcomes = if committed { &self.commits } else { &self.rollbacks };
        outcomes[side.index()].increment(1);
    }

    /// A client waited this long for a server connection.
    pub fn pool_wait(&self, side: Side, waited: Duration) {
        self.pool_wait[side.index()].record(waited);
    }

    /// Handles for other repositories, or the same ones in another order: what was counted stays.
    #[must_use]
    pub fn renewed<'a>(&self, repositories: impl IntoIterator<Item = &'a str>) -> Self {
        Self { earlier: self.totals(), ..Self::new(&self.metrics, repositories) }
    }

    /// What was counted, by repository; of those that are gone as well.
    pub fn totals(&self) -> BTreeMap<String, Totals> {
        let count = |r: &Repository, side: usize| {
            let ops = r.queries[side].iter().filter_map(OnceCell::get);
            ops.map(|q| q.count.get()).sum()
        };
        let totals = |r: &Repository| Totals {
            queries: [count(r, 0), count(r, 1)],
            errors: [r.failed[0].get(), r.failed[1].get()],
        };
        let mut all = self.earlier.clone();
        for repository in &self.repositories {
            all.entry(repository.name.clone()).or_default().add(&totals(repository));
        }
        all
    }

    fn repository(&self, index: usize) -> Option<&Repository> {
        self.repositories.get(index).or_else(|| self.repositories.first())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_go_on_over_policies() {
        let metrics = Arc::new(Metrics::new());
        let mut hot = HotHandles::new(&metrics, ["default", "document"]);
        for (repositories, index) in
            [(vec!["default", "new", "document"], 1), (vec!["default"], 2), (vec!["document"], 0)]
        {
            hot.query(index, Side::Target, Op::Read, Duration::from_millis(2));
            hot.error(index, Side::Source, "23505");
            hot = hot.renewed(repositories);
        }
        let document = hot.totals()["document"];
        assert_eq!((document.queries, document.errors), ([0, 2], [2, 0]));
    }

    #[test]
    fn counts_go_on_over_threads_and_policies() {
        let metrics = Arc::new(Metrics::new());
        for names in
            [vec!["default", "document"], vec!["default", "document"], vec!["default", "new", "document"]]
        {
            let hot = HotHandles::new(&metrics, names.iter().copied());
            let document = names.len() - 1;
            hot.query(document, Side::Target, Op::Read, Duration::from_millis(2));
            hot.query(99, Side::Source, Op::Other, Duration::from_millis(2));
            hot.route(document, Side::Target, "weight");
            hot.route(document, Side::Target, "weight");
            hot.error(document, Side::Source, "23505");
            hot.unknown("syntax");
            hot.transaction(Side::Source, true);
            hot.pool_wait(Side::Source, Duration::from_micros(50));
            hot.client_sent.increment(100);
        }
        // The counts of handles that are gone are still there.
        let text = metrics.render();
        for line in [
            "crossfade_queries_total{repository=\"document\",backend=\"target\",op=\"read\"} 3",
            "crossfade_queries_total{repository=\"default\",backend=\"source\",op=\"other\"} 3",
            "crossfade_query_duration_seconds_count{repository=\"document\",backend=\"target\",op=\"read\"} 3",
            "crossfade_routes_total{repository=\"document\",backend=\"target\",reason=\"weight\"} 6",
            "crossfade_errors_total{backend=\"source\",sqlstate_class=\"23\",repository=\"document\"} 3",
            "crossfade_unknown_statements_total{reason=\"syntax\"} 3",
            "crossfade_transactions_total{backend=\"source\",outcome=\"commit\"} 3",
            "crossfade_pool_wait_seconds_bucket{backend=\"source\",le=\"0.0001\"} 3",
            "crossfade_client_sent_bytes_total 300",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
