//! How many clients there are, and guards that count them.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Clients and logins at this moment, over all threads.
#[derive(Debug, Default)]
pub struct Limits {
    clients: AtomicUsize,
    logins: AtomicUsize,
    users: Mutex<HashMap<String, usize>>,
}

impl Limits {
    /// Clients, logged in or not.
    pub fn clients(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }

    /// Clients that have not logged in yet.
    pub fn logins(&self) -> usize {
        self.logins.load(Ordering::Relaxed)
    }

    /// Counts a connection whose login begins; `None` when `max` are at it already.
    pub fn login(self: &Arc<Self>, max: usize) -> Option<LoginSlot> {
        take(&self.logins, max).then(|| LoginSlot(Arc::clone(self)))
    }

    /// Counts a client; `None` when there are `max` already.
    pub fn client(self: &Arc<Self>, max: usize) -> Option<ClientSlot> {
        take(&self.clients, max).then(|| ClientSlot { limits: Arc::clone(self), user: None })
    }
}

fn take(counter: &AtomicUsize, max: usize) -> bool {
    counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < max).then_some(n + 1)).is_ok()
}

/// One login under way; dropped when it ends.
#[derive(Debug)]
pub struct LoginSlot(Arc<Limits>);

impl Drop for LoginSlot {
    fn drop(&mut self) {
        self.0.logins.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One client; dropped when it leaves.
#[derive(Debug)]
pub struct ClientSlot {
    limits: Arc<Limits>,
    user: Option<Box<str>>,
}

impl ClientSlot {
    /// Counts it as one of `user`'s; false when that user has `max` already.
    #[must_use]
    pub fn belongs_to(&mut self, user: &str, max: Option<usize>) -> bool {
        let mut users = self.limits.users.lock().unwrap_or_else(PoisonError::into_inner);
        let count = users.entry(user.to_owned()).or_default();
        if max.is_some_and(|max| *count >= max) {
            return false;
        }
        *count += 1;
        self.user = Some(user.into());
        true
    }
}

impl Drop for ClientSlot {
    fn drop(&mut self) {
        self.limits.clients.fetch_sub(1, Ordering::Relaxed);
        let Some(user) = &self.user else { return };
        let mut users = self.limits.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = users.get_mut(&**user) {
            *count -= 1;
            if *count == 0 {
                users.remove(&**user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_count_back() {
        let limits = Arc::new(Limits::default());
        let login = limits.login(1).unwrap();
        assert!(limits.login(1).is_none());
        drop(login);
        assert!(limits.login(1).is_some());

        let mut first = limits.client(2).unwrap();
        assert!(first.belongs_to("app", Some(1)));
        let mut second = limits.client(2).unwrap();
        assert!(!second.belongs_to("app", Some(1)));
        assert!(limits.client(2).is_none());
        drop(first);
        assert!(second.belongs_to("app", Some(1)));
        drop(second);
        assert_eq!((limits.clients(), limits.logins()), (0, 0));
        assert!(limits.users.lock().unwrap().is_empty());
    }
}
