//! The clients of all data threads that wait for a server connection of one user on one backend, in order of arrival.
//!
//! Pools belong to threads; without this a thread whose clients hold all connections would serve its own for ever.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::server::Travelling;

/// Those who wait.
#[derive(Debug, Default)]
pub struct Line {
    waiting: Mutex<Waiting>,
    length: AtomicUsize,
}

#[derive(Debug, Default)]
struct Waiting {
    last_number: u64,
    entries: VecDeque<Entry>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    since: Instant,
    pool: u64,
    kind: Arc<str>,
    hand: oneshot::Sender<Box<Travelling>>,
    /// A connection of another kind was closed for it then: it may open one.
    promised: Option<Instant>,
}

/// A place in the line, until dropped.
#[derive(Debug)]
pub struct Place {
    /// Tells it from all others.
    pub number: u64,
    /// When it joined.
    pub since: Instant,
    line: Arc<super::budget::Share>,
}

/// Who gets a connection.
#[derive(Debug)]
pub enum Next {
    /// Nobody waits.
    Nobody,
    /// The client with this number, of the pool that asks. It has left the line.
    Here(u64),
    /// A client of another thread. It has left the line.
    There(oneshot::Sender<Box<Travelling>>),
    /// A client that needs a connection with other start-up parameters: it wants the room.
    Room,
}

impl Line {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.length.load(Ordering::Relaxed)
    }

    /// Does nobody wait?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Chooses who gets a connection of `pool`, whose connections are of this `kind`.
    pub fn next(&self, pool: u64, kind: &str) -> Next {
        let mut waiting = self.lock();
        let entries = &mut waiting.entries;
        let promised = |e: &Entry| e.promised.is_some_and(|at| at.elapsed() < PROMISE);
        let mine = entries.iter().position(|e| e.pool == pool && !e.hand.is_closed());
        let Some(first) = entries.iter().position(|e| !e.hand.is_closed() && !promised(e)) else {
            // Room is being made for all who wait. A connection that suits one of them serves him sooner; left idle it
            // would keep that very room occupied.
            let alike = || entries.iter().position(|e| *e.kind == *kind && !e.hand.is_closed());
            return match (mine, alike()) {
                (Some(at), _) => self.take(entries, at).map_or(Next::Nobody, |e| Next::Here(e.number)),
                (None, Some(at)) => self.take(entries, at).map_or(Next::Nobody, |e| Next::There(e.hand)),
                (None, None) => Next::Nobody,
            };
        };
        let limit = entries[first].since + TOLERANCE;
        if let Some(mine) = mine.filter(|&mine| entries[mine].since <= limit) {
            return self.take(entries, mine).map_or(Next::Nobody, |e| Next::Here(e.number));
        }
        if &*entries[first].kind == kind {
            return self.take(entries, first).map_or(Next::Nobody, |e| Next::There(e.hand));
        }
        entries[first].promised = Some(Instant::now());
        Next::Room
    }

    /// Is room kept for clients of other pools, and none for one of `pool`?
    pub fn promised_elsewhere(&self, pool: u64) -> bool {
        if self.is_empty() {
            return false;
        }
        let waiting = self.lock();
        let promised =
            |e: &&Entry| e.promised.is_some_and(|at| at.elapsed() < PROMISE) && !e.hand.is_closed();
        let mut holders = waiting.entries.iter().filter(promised).map(|e| e.pool).peekable();
        holders.peek().is_some() && holders.all(|holder| holder != pool)
    }

    /// Takes a client out of the line; `false` when it has left, or was served.
    pub fn claim(&self, number: u64) -> bool {
        let mut waiting = self.lock();
        let found = waiting.entries.binary_search_by_key(&number, |e| e.number);
        found.is_ok_and(|at| self.take(&mut waiting.entries, at).is_some())
    }

    fn take(&self, entries: &mut VecDeque<Entry>, at: usize) -> Option<Entry> {
        self.length.fetch_sub(1, Ordering::Relaxed);
        entries.remove(at)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Joins the line of `share`.
pub fn join(
    share: &Arc<super::budget::Share>,
    pool: u64,
    kind: &Arc<str>,
    hand: oneshot::Sender<Box<Travelling>>,
) -> Place {
    let line = &share.line;
    let mut waiting = line.lock();
    waiting.last_number += 1;
    let (number, since) = (waiting.last_number, Instant::now());
    waiting.entries.push_back(Entry { number, since, pool, kind: Arc::clone(kind), hand, promised: None });
    line.length.fetch_add(1, Ordering::Relaxed);
    Place { number, since, line: Arc::clone(share) }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.line.line.claim(self.number);
    }
}

/// A client of the own thread goes first when it came at most so much later than the first in line: a connection that
/// changes threads costs two wake-ups and two system calls, more than the whole of a quick statement.
const TOLERANCE: Duration = Duration::from_millis(2);
/// How long a client may take to use the room that was made for it.
const PROMISE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Side, backend::budget::Budgets};

    fn check(joins: &[(u64, &str)], pool: u64, kind: &str, expected: &str) {
        let share = Budgets::default().share(Side::Source, "u");
        let mut places = Vec::new();
        let mut hands = Vec::new();
        for &(pool, kind) in joins {
            let (hand, handed) = oneshot::channel();
            places.push(join(&share, pool, &kind.into(), hand));
            hands.push(handed);
            std::thread::sleep(TOLERANCE * 2);
        }
        let next = match share.line.next(pool, kind) {
            Next::Nobody => "nobody".to_owned(),
            Next::Here(number) => format!("here {number}"),
            Next::There(_) => "there".to_owned(),
            Next::Room => "room".to_owned(),
        };
        assert_eq!(next, expected, "{joins:?} {pool} {kind}");
        drop(places);
        assert!(share.line.is_empty());
    }

    #[test]
    fn the_first_in_line_is_served() {
        check(&[], 1, "k", "nobody");
        check(&[(1, "k")], 1, "k", "here 1");
        check(&[(1, "k"), (2, "k")], 1, "k", "here 1");
        check(&[(1, "k"), (2, "k")], 2, "k", "there");
        check(&[(1, "other"), (2, "k")], 2, "k", "room");
    }

    #[test]
    fn room_is_promised_once() {
        let share = Budgets::default().share(Side::Source, "u");
        let (hand, _handed) = oneshot::channel();
        let _place = join(&share, 1, &"other".into(), hand);
        assert!(matches!(share.line.next(2, "k"), Next::Room));
        assert!(matches!(share.line.next(2, "k"), Next::Nobody));
        assert!(share.line.promised_elsewhere(2) && !share.line.promised_elsewhere(1));
        // A connection that suits who was promised room serves him at once.
        assert!(matches!(share.line.next(1, "other"), Next::Here(_)));
    }
}
