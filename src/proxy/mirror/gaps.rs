//! Mirrored transactions between the lead's COMMIT and the follower's: while there is none, both sides of a repository
//! show the same rows. Who compares answers asks before and after.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::shadow::recheck::Follower;

/// Those of this process, by repository.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Gaps(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: u64,
    repositories: HashMap<String, Repository>,
}

#[derive(Debug, Default)]
struct Repository {
    /// How many there were, ever.
    begun: u64,
    open: HashMap<u64, Open>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    since: Instant,
    /// Nobody knows when it ends: from then on the journal tells.
    until: Option<Instant>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Gap {
    gaps: Arc<Gaps>,
    number: u64,
    repositories: Vec<String>,
}

/// What there was at one moment.
#[derive(Clone, Copy, Debug)]
pub(in crate::proxy) struct Seen {
    at: Instant,
    begun: u64,
    open: usize,
    oldest: Option<Instant>,
}

impl Gaps {
    /// The lead's COMMIT of a transaction that has written these is about to be sent.
    pub(super) fn enter(self: &Arc<Self>, repositories: Vec<String>, now: Instant) -> Gap {
        let mut state = self.lock();
        state.last += 1;
        let number = state.last;
        for name in &repositories {
            let repository = state.repositories.entry(name.clone()).or_default();
            repository.begun += 1;
            repository.open.insert(number, Open { since: now, until: None });
        }
        Gap { gaps: Arc::clone(self), number, repositories }
    }

    /// What there is of these repositories.
    pub(in crate::proxy) fn see<'a>(&self, names: impl Iterator<Item = &'a str>, now: Instant) -> Seen {
        let mut state = self.lock();
        let mut seen = Seen { at: now, begun: 0, open: 0, oldest: None };
        for name in names {
            let Some(repository) = state.repositories.get_mut(name) else { continue };
            repository.open.retain(|_, open| open.until.is_none_or(|until| until > now));
            seen.begun += repository.begun;
            seen.open += repository.open.len();
            let since = repository.open.values().map(|open| open.since).min();
            seen.oldest = [seen.oldest, since].into_iter().flatten().min();
        }
        seen
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gap {
    /// Whether the follower's transaction has ended is not known: it counts until the journal tells.
    pub(super) fn linger(mut self, now: Instant, wait: Duration) {
        let names = std::mem::take(&mut self.repositories);
        let mut state = self.gaps.lock();
        for name in names {
            let open = state.repositories.get_mut(&name).and_then(|r| r.open.get_mut(&self.number));
            if let Some(open) = open {
                open.until = Some(now + wait);
            }
        }
    }
}

impl Drop for Gap {
    fn drop(&mut self) {
        let mut state = self.gaps.lock();
        for name in &self.repositories {
            if let Some(repository) = state.repositories.get_mut(name) {
                repository.open.remove(&self.number);
            }
        }
    }
}

impl Seen {
    /// What the follower was between this moment and `now`; `last`: when both sides were asked before.
    pub(in crate::proxy) fn until(&self, now: &Seen, last: Option<Instant>) -> Follower {
        if now.oldest.zip(last).is_some_and(|(oldest, last)| oldest <= last) {
            Follower::Stuck
        } else if self.open == 0 && now.begun == self.begun {
            Follower::Level
        } else {
            Follower::Moving
        }
    }

    /// When it was.
    pub(in crate::proxy) fn at(&self) -> Instant {
        self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_is_what_nothing_was_on_its_way_to() {
        let gaps = Arc::new(Gaps::default());
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let see = |ms| gaps.see(["a", "b"].into_iter(), at(ms));
        let before = see(0);
        assert_eq!(before.until(&see(1), None), Follower::Level);
        let other = gaps.enter(vec!["c".to_owned()], at(1));
        assert_eq!(before.until(&see(2), None), Follower::Level, "another repository's");
        let gap = gaps.enter(vec!["b".to_owned(), "c".to_owned()], at(2));
        assert_eq!(before.until(&see(3), None), Follower::Moving);
        let during = see(3);
        drop(gap);
        assert_eq!(before.until(&see(4), None), Follower::Moving, "it was there meanwhile");
        assert_eq!(during.until(&see(4), None), Follower::Moving);
        assert_eq!(see(5).until(&see(6), None), Follower::Level);
        drop(other);
        assert!(gaps.lock().repositories.values().all(|r| r.open.is_empty()));
    }

    #[test]
    fn one_that_hangs_proves_nothing() {
        let gaps = Arc::new(Gaps::default());
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let see = |ms| gaps.see(["a"].into_iter(), at(ms));
        let gap = gaps.enter(vec!["a".to_owned()], at(10));
        assert_eq!(see(20).until(&see(21), Some(at(5))), Follower::Moving, "it is new");
        assert_eq!(see(40).until(&see(41), Some(at(20))), Follower::Stuck);
        gap.linger(at(50), Duration::from_millis(100));
        assert_eq!(see(60).until(&see(61), Some(at(40))), Follower::Stuck);
        assert_eq!(see(151).until(&see(152), Some(at(61))), Follower::Level);
    }
}
