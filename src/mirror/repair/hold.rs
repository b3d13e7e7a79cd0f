//! What the repairer could not ship, and when it tries again. Pure: the caller brings the time.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use crate::mirror::apply::Key;

/// Keys and journal rows that are left alone for a while. Bounded: what is forgotten is tried again.
#[derive(Debug, Default)]
pub struct Holds {
    keys: HashMap<Key, Hold>,
    rows: BTreeMap<i64, Hold>,
}

/// Why, and until when.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Hold {
    /// In words, for the operator.
    pub reason: String,
    /// How often it failed.
    pub attempts: u32,
    /// The next attempt.
    pub until: Instant,
}

impl Hold {
    fn next(old: Option<&Hold>, reason: String, now: Instant) -> Self {
        let attempts = old.map_or(0, |h| h.attempts) + 1;
        Hold { reason, attempts, until: now + wait(attempts) }
    }
}

/// From 50 ms, doubled with each attempt, to 5 s.
fn wait(attempts: u32) -> Duration {
    FIRST.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(LONGEST)
}

impl Holds {
    /// May this key be tried now?
    pub fn due(&self, key: &Key, now: Instant) -> bool {
        self.keys.get(key).is_none_or(|h| h.until <= now)
    }

    /// Why it was not shipped last time.
    pub fn why(&self, key: &Key) -> Option<&Hold> {
        self.keys.get(key)
    }

    /// It failed (again).
    pub fn fail(&mut self, key: &Key, reason: String, now: Instant) {
        let hold = Hold::next(self.keys.get(key), reason, now);
        self.keys.insert(key.clone(), hold);
    }

    /// It was shipped.
    pub fn shipped(&mut self, key: &Key) {
        if !self.keys.is_empty() {
            self.keys.remove(key);
        }
    }

    /// A journal row stays, because of one of its keys (`until` and attempts are the key's) or for itself.
    pub fn hold_row(&mut self, id: i64, because: Result<Hold, String>, now: Instant) {
        let hold = because.unwrap_or_else(|reason| Hold::next(self.rows.get(&id), reason, now));
        self.rows.insert(id, hold);
    }

    /// The row is gone.
    pub fn row_done(&mut self, id: i64) {
        self.rows.remove(&id);
    }

    /// The next attempt at everything is now: something changed.
    pub fn try_all(&mut self, now: Instant) {
        self.keys.values_mut().chain(self.rows.values_mut()).for_each(|h| h.until = now);
    }

    /// Rows that are not to be read now.
    pub fn rows_not_due(&self, now: Instant) -> Vec<i64> {
        self.rows.iter().filter(|(_, h)| h.until > now).map(|(id, _)| *id).collect()
    }

    /// Are there more rows than are worth remembering?
    pub fn is_full(&self) -> bool {
        self.rows.len() >= MOST
    }

    /// Forgets keys when there are too many of them: they are tried again. At the start of a round.
    pub fn trim(&mut self) {
        if self.keys.len() >= MOST {
            self.keys.clear();
        }
    }

    /// Forgets the rows, not the keys: the journal is read from its beginning again.
    pub fn forget_rows(&mut self) {
        self.rows.clear();
    }

    /// The first `most` rows, for people.
    pub fn rows(&self, most: usize) -> impl Iterator<Item = (i64, &Hold)> {
        self.rows.iter().take(most).map(|(id, h)| (*id, h))
    }

    /// How many rows are left alone.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// None?
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(5);
const MOST: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        Key { table: 1, text: text.into() }
    }

    #[test]
    fn waits_grow_and_end() {
        assert_eq!(wait(1), Duration::from_millis(50));
        assert_eq!(wait(2), Duration::from_millis(100));
        assert_eq!(wait(6), Duration::from_millis(1600));
        assert_eq!(wait(8), LONGEST);
        assert_eq!(wait(u32::MAX), LONGEST);
    }

    #[test]
    fn a_key_is_left_alone_and_tried_again() {
        let (mut holds, now) = (Holds::default(), Instant::now());
        holds.fail(&key("a"), "why".into(), now);
        assert!(!holds.due(&key("a"), now) && holds.due(&key("b"), now));
        let later = now + FIRST;
        assert!(holds.due(&key("a"), later));
        holds.fail(&key("a"), "why".into(), later);
        assert!(!holds.due(&key("a"), later + FIRST));
        assert_eq!(holds.why(&key("a")).map(|h| (h.attempts, h.reason.as_str())), Some((2, "why")));
        holds.shipped(&key("a"));
        assert_eq!(holds.why(&key("a")), None);
    }

    #[test]
    fn rows_wait_for_their_keys() {
        let (mut holds, now) = (Holds::default(), Instant::now());
        holds.fail(&key("a"), "why".into(), now);
        let hold = holds.why(&key("a")).cloned().unwrap();
        holds.hold_row(7, Ok(hold), now);
        holds.hold_row(3, Err("no table".into()), now);
        assert_eq!(holds.rows_not_due(now), [3, 7]);
        assert_eq!(holds.rows_not_due(now + FIRST), [] as [i64; 0]);
        holds.hold_row(3, Err("no table".into()), now + FIRST);
        assert_eq!(holds.rows_not_due(now + FIRST), [3]);
        holds.row_done(3);
        assert_eq!(holds.len(), 1);
    }
}
