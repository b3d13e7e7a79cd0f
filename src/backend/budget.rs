//! How many server connections there may be, over all data threads.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::Notify;

use crate::Side;

/// Counts per backend, and per backend and user.
#[derive(Debug, Default)]
pub struct Budgets {
    sides: [Arc<AtomicUsize>; 2],
    users: Mutex<HashMap<(Side, String), Arc<Share>>>,
}

/// ParameterStatus values of a new session, in the server's order and spelling, and what it starts with.
pub type Welcome = (Vec<(String, String)>, super::server::SessionDefaults);

/// The connections of one user on one backend.
#[derive(Debug, Default)]
pub struct Share {
    used: AtomicUsize,
    side: Arc<AtomicUsize>,
    /// Clients of any thread that wait for a connection.
    pub line: super::line::Line,
    /// Idle connections of all threads.
    pub idle: AtomicUsize,
    /// What the last connection with given start-up parameters was told at login, for clients of threads that have none.
    pub welcomes: Mutex<HashMap<Arc<str>, Welcome>>,
    /// Told when room was made.
    pub room: Notify,
}

impl Budgets {
    /// The share of one user on one backend.
    pub fn share(&self, side: Side, user: &str) -> Arc<Share> {
        let mut users = self.users.lock().expect("no panic while the lock is held");
        let new = || Share { side: Arc::clone(&self.sides[side.index()]), ..Share::default() };
        Arc::clone(users.entry((side, user.to_owned())).or_insert_with(|| Arc::new(new())))
    }

    /// Server connections of one backend.
    pub fn used(&self, side: Side) -> usize {
        self.sides[side.index()].load(Ordering::Relaxed)
    }
}

impl Share {
    /// Room for one more connection below both limits, if there is any.
    pub fn take(self: &Arc<Self>, user_limit: usize, side_limit: usize) -> Option<Permit> {
        if !raise(&self.used, user_limit) {
            return None;
        }
        if !raise(&self.side, side_limit) {
            self.used.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Permit(Arc::clone(self)))
    }

    /// Would [`Share::take`] find room now?
    pub fn has_room(&self, user_limit: usize, side_limit: usize) -> bool {
        self.used() < user_limit && self.side.load(Ordering::Relaxed) < side_limit
    }

    /// Connections in use or idle.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

fn raise(count: &AtomicUsize, limit: usize) -> bool {
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < limit).then_some(n + 1)).is_ok()
}

/// The right to one connection; given back when dropped.
#[derive(Debug)]
pub struct Permit(Arc<Share>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Ordering::Relaxed);
        self.0.side.fetch_sub(1, Ordering::Relaxed);
        // All of them, where the room may be promised to one.
        self.0.room.notify_waiters();
        self.0.room.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_hold_and_room_comes_back() {
        let budgets = Budgets::default();
        let a = budgets.share(Side::Source, "a");
        let b = budgets.share(Side::Source, "b");
        let first = a.take(1, 2).expect("room");
        assert!(a.take(1, 2).is_none());
        let second = b.take(5, 2).expect("room");
        assert!(b.take(5, 2).is_none());
        assert_eq!(budgets.used(Side::Source), 2);
        drop(first);
        assert!(a.take(1, 2).is_some());
        drop(second);
        assert_eq!(budgets.used(Side::Source), 0);
        assert_eq!(budgets.used(Side::Target), 0);
    }
}
