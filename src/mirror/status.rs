//! What repairers and recoverers have found, for routing, metrics and people.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use super::{repair::hold::Holds, session::Error};
use crate::Side;

/// The state of mirroring in this process. Cheap to read, on any thread.
#[derive(Debug, Default)]
pub struct Status {
    state: Mutex<State>,
    dirt: ArcSwap<Dirt>,
}

/// Everything but the dirt.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Journals, by the side they are on.
    pub journals: [Journal; 2],
    /// Prepared transactions of ours, by the side they are on.
    pub in_doubt: [Vec<InDoubt>; 2],
    /// Failures of repairers, by reason.
    pub errors: BTreeMap<&'static str, u64>,
    /// Transactions resolved, by outcome.
    pub recovered: BTreeMap<&'static str, u64>,
}

/// The journal of one side.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    /// What this process's repairer does: `off`, `shipping`, `idle`, `elsewhere`, `failing`.
    pub repairer: &'static str,
    /// Rows; counted up to a bound. `None`: not known, the side does not answer.
    pub rows: Option<u64>,
    /// Rows of them that are nobody's but the repairer's.
    pub dirty: u64,
    /// Age of the oldest row.
    pub oldest: Duration,
    /// Keys and whole rows shipped by this process.
    pub repaired: u64,
    /// Journal rows removed by this process.
    pub emptied: u64,
    /// Why the last round failed.
    pub error: Option<String>,
    /// Rows that stay, the first of them.
    pub held: Vec<Held>,
    recent: VecDeque<(Instant, u64)>,
}

impl Journal {
    /// Keys shipped per second, lately.
    pub fn per_second(&self, now: Instant) -> f64 {
        let window = self.recent.iter().filter(|(at, _)| now.duration_since(*at) <= WINDOW);
        let count: u64 = window.map(|(_, n)| n).sum();
        f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / WINDOW.as_secs_f64()
    }
}

/// A journal row that could not be shipped.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Held {
    /// Its place in the journal.
    pub id: i64,
    /// Why.
    pub reason: String,
    /// How often it was tried.
    pub attempts: u32,
    /// The next attempt.
    pub until: Instant,
}

/// A prepared transaction of ours.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InDoubt {
    /// Its name.
    pub gid: String,
    /// Age when it was seen.
    pub age: Duration,
    /// What is to become of it, in words.
    pub verdict: String,
    /// Only an operator can resolve it.
    pub stuck: bool,
}

/// Repositories whose follower may be behind.
#[derive(Clone, Debug, Default)]
pub struct Dirt {
    /// When each side's journal was last looked at. `None`: never.
    seen: [Option<Instant>; 2],
    /// By the side of the journal: names, or everything.
    dirty: [Dirty; 2],
    /// What our own transactions left to the journals, and when: until a look that began later.
    soiled: [BTreeMap<String, Instant>; 2],
}

/// What is dirty by one journal.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Dirty {
    /// Nothing.
    #[default]
    Nothing,
    /// These repositories.
    These(BTreeSet<String>),
    /// More than could be looked at: all of them.
    Everything,
}

impl Status {
    /// Nothing known yet: everything counts as dirty.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// May reads of `repository`, whose writes `lead` leads, go to the follower? Not while the journal holds rows
    /// that no transaction in flight ships itself, nor when nobody has been able to look for a while.
    pub fn is_clean(&self, repository: &str, lead: Side, now: Instant) -> bool {
        let dirt = self.dirt.load();
        let fresh = dirt.seen[lead.index()].is_some_and(|at| now.saturating_duration_since(at) <= FRESH);
        fresh
            && !dirt.soiled[lead.index()].contains_key(repository)
            && match &dirt.dirty[lead.index()] {
                Dirty::Nothing => true,
                Dirty::These(names) => !names.contains(repository),
                Dirty::Everything => false,
            }
    }

    /// A write of `repository` is left to the journal of `lead`: dirty until a look that begins after `now`. To be
    /// said when that is decided, and once more when the lead has committed: a look in between would see nothing.
    pub fn soil(&self, repository: &str, lead: Side, now: Instant) {
        self.dirt.rcu(|old| {
            let mut dirt = Dirt::clone(old);
            dirt.soiled[lead.index()].insert(repository.to_owned(), now);
            dirt
        });
    }

    /// What a look at the journal of `side`, begun at `at`, has shown.
    pub fn looked(&self, side: Side, dirty: &Dirty, at: Instant) {
        self.dirt.rcu(|old| {
            let mut dirt = Dirt::clone(old);
            dirt.seen[side.index()] = Some(at);
            dirt.dirty[side.index()] = dirty.clone();
            dirt.soiled[side.index()].retain(|_, since| *since >= at);
            dirt
        });
    }

    /// A copy, for metrics and people.
    pub fn state(&self) -> State {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn journal(&self, side: Side, change: impl FnOnce(&mut Journal)) {
        change(&mut self.lock().journals[side.index()]);
    }

    /// What the repairer of this journal does now.
    pub fn repairer(&self, side: Side, does: &'static str) {
        self.journal(side, |j| {
            j.repairer = does;
            if does != "failing" {
                j.error = None;
            }
        });
    }

    /// A round failed.
    pub fn failed(&self, side: Side, error: &Error) {
        self.error(error.reason());
        self.journal(side, |j| {
            j.repairer = "failing";
            j.error = Some(error.to_string());
        });
    }

    /// Counts a failure.
    pub fn error(&self, reason: &'static str) {
        *self.lock().errors.entry(reason).or_default() += 1;
    }

    /// Keys, or whole rows, were shipped.
    pub fn repaired(&self, side: Side, count: u64) {
        let now = Instant::now();
        self.journal(side, |j| {
            j.repaired += count;
            while j.recent.front().is_some_and(|(at, _)| now.duration_since(*at) > WINDOW) {
                j.recent.pop_front();
            }
            match j.recent.back_mut() {
                Some((at, n)) if now.duration_since(*at) < TICK => *n += count,
                _ => j.recent.push_back((now, count)),
            }
        });
    }

    /// Journal rows were removed.
    pub fn emptied(&self, side: Side, count: u64) {
        self.journal(side, |j| j.emptied += count);
    }

    /// What is held.
    pub fn held(&self, side: Side, holds: &Holds, now: Instant) {
        let rows = holds.rows(MOST_HELD).map(|(id, h)| Held {
            id,
            reason: h.reason.clone(),
            attempts: h.attempts,
            until: h.until.max(now),
        });
        let rows = rows.collect();
        self.journal(side, |j| j.held = rows);
    }

    /// How deep a journal is; `None` when it cannot be looked at.
    pub fn depth(&self, side: Side, depth: Option<(u64, u64, Duration)>) {
        self.journal(side, |j| match depth {
            Some((rows, dirty, oldest)) => (j.rows, j.dirty, j.oldest) = (Some(rows), dirty, oldest),
            None => j.rows = None,
        });
    }

    /// What is in doubt on a side.
    pub fn in_doubt(&self, side: Side, list: Vec<InDoubt>) {
        self.lock().in_doubt[side.index()] = list;
    }

    /// Counts what became of a transaction in doubt.
    pub fn recovered(&self, outcome: &'static str) {
        *self.lock().recovered.entry(outcome).or_default() += 1;
    }
}

/// A look at the journal is good for this long.
const FRESH: Duration = Duration::from_secs(2);
const WINDOW: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(100);
/// Held rows that are shown.
const MOST_HELD: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clean_is_what_was_looked_at_just_now() {
        let (status, now) = (Status::new(), Instant::now());
        let clean = |at| status.is_clean("a", Side::Source, at);
        assert!(!clean(now), "nobody has looked");
        status.looked(Side::Target, &Dirty::Nothing, now);
        assert!(!clean(now), "that was the other journal");
        status.looked(Side::Source, &Dirty::Nothing, now);
        assert!(clean(now) && clean(now + FRESH) && !clean(now + FRESH + TICK));
        status.looked(Side::Source, &Dirty::These(BTreeSet::from(["b".into()])), now);
        assert!(clean(now));
        status.looked(Side::Source, &Dirty::Everything, now);
        assert!(!clean(now));
    }

    #[test]
    fn soiled_until_the_next_look() {
        let (status, now) = (Status::new(), Instant::now());
        status.looked(Side::Source, &Dirty::Nothing, now);
        status.soil("a", Side::Source, now);
        assert!(!status.is_clean("a", Side::Source, now) && status.is_clean("b", Side::Source, now));
        status.looked(Side::Source, &Dirty::Nothing, now);
        assert!(!status.is_clean("a", Side::Source, now), "that look may have begun before");
        status.looked(Side::Source, &Dirty::Nothing, now + TICK);
        assert!(status.is_clean("a", Side::Source, now));
    }
}
