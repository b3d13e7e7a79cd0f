//! Server connections of one user, one backend and one set of start-up parameters, within one data thread.
//!
//! First come, first served; a connection that cannot be opened fails those who wait at once with the
//! server's own words.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    budget::{Permit, Share},
    server::{Lease, Server},
};
use crate::{Side, frontend::startup::Credentials, wire::conn::Buffers};

/// What connections of a pool have in common.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct PoolKey {
    /// Which database.
    pub side: Side,
    /// Role name, as the client gave it.
    pub user: Rc<str>,
    /// Database name that the server is asked for.
    pub database: Rc<str>,
    /// Start-up parameters, verbatim.
    pub parameters: Rc<[(String, String)]>,
    /// Minor protocol version.
    pub minor: u16,
}

/// Why there is no connection.
#[derive(Clone, Debug)]
pub enum Refused {
    /// The server refused the login: its whole ErrorResponse.
    Server(Rc<[u8]>),
    /// It could not be reached; the text names the cause.
    Unreachable(Rc<str>),
    /// `timeouts.query_wait` passed.
    Timeout,
    /// The client cancelled its request, or is being ended.
    Cancelled,
}

/// Opens one connection.
pub type Connect = Rc<dyn Fn(Rc<Pool>, Permit) -> Pin<Box<dyn Future<Output = Result<Server, Refused>>>>>;

/// Limits of a pool, read from the configuration at each use.
#[derive(Clone, Copy, Debug)]
pub struct PoolLimits {
    /// Connections of this user on this backend.
    pub user: usize,
    /// Connections on this backend.
    pub side: usize,
    /// After a failure, wait this long before the next attempt.
    pub retry: Duration,
}

/// ParameterStatus names and values.
pub type Welcome = Rc<[(String, String)]>;

/// The pool.
pub struct Pool {
    /// What its connections have in common.
    pub key: PoolKey,
    /// How they log in; the newest client's.
    pub credentials: RefCell<Credentials>,
    /// ParameterStatus values of a new session here, in the server's order and spelling.
    pub welcome: RefCell<Option<Welcome>>,
    /// What a new session here starts with.
    pub defaults: RefCell<Rc<super::server::SessionDefaults>>,
    share: Arc<Share>,
    connect: Connect,
    #[expect(clippy::vec_box, reason = "a server is large and changes hands: what moves is its address")]
    idle: RefCell<Vec<Box<Server>>>,
    waiters: RefCell<VecDeque<Waiter>>,
    opening: Cell<usize>,
    /// Connections handed out.
    active: Rc<Cell<usize>>,
    last_failure: RefCell<Option<(Instant, Refused)>>,
}

struct Waiter {
    since: Instant,
    answer: oneshot::Sender<Result<Box<Server>, Refused>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("key", &self.key).finish_non_exhaustive()
    }
}

impl Pool {
    /// An empty pool.
    pub fn new(key: PoolKey, credentials: Credentials, share: Arc<Share>, connect: Connect) -> Rc<Self> {
        Rc::new(Self {
            key,
            credentials: RefCell::new(credentials),
            welcome: RefCell::default(),
            defaults: RefCell::default(),
            share,
            connect,
            idle: RefCell::default(),
            waiters: RefCell::default(),
            opening: Cell::new(0),
            active: Rc::default(),
            last_failure: RefCell::default(),
        })
    }

    /// An idle connection, when there is one and nobody waits for it.
    pub fn try_take(&self) -> Option<Box<Server>> {
        if !self.waiters.borrow().is_empty() {
            return None;
        }
        let mut server = self.idle.borrow_mut().pop()?;
        server.lease = Some(Lease::new(&self.active));
        Some(server)
    }

    /// A connection: idle, new, or the next one that comes back. FIFO among those who wait.
    pub async fn take(self: &Rc<Self>, limits: PoolLimits) -> Result<Box<Server>, Refused> {
        if let Some(server) = self.try_take() {
            return Ok(server);
        }
        if let Some(failure) = self.recent_failure(limits.retry) {
            return Err(failure);
        }
        let (answer, mut result) = oneshot::channel();
        self.waiters.borrow_mut().push_back(Waiter { since: Instant::now(), answer });
        let began = Instant::now();
        loop {
            let room = self.grow(limits);
            // Others close a connection for whoever announces himself: only when none is likely to come back here soon.
            let none_here = self.active.get() + self.opening.get() == 0;
            let starves = !room && (none_here || began.elapsed() >= PATIENCE);
            let _wanted = starves.then(|| Wanted::new(&self.share));
            tokio::select! {
                biased;
                server = &mut result => return server.unwrap_or(Err(Refused::Cancelled)),
                () = self.share.room.notified() => {}
                // Room on the backend may have been made by another user's connection, which notifies only its own.
                () = tokio::time::sleep(if room || starves { RECHECK } else { PATIENCE }) => {}
            }
        }
    }

    fn recent_failure(&self, retry: Duration) -> Option<Refused> {
        let failure = self.last_failure.borrow();
        let (at, why) = failure.as_ref()?;
        (self.active.get() == 0 && self.opening.get() == 0 && at.elapsed() < retry).then(|| why.clone())
    }

    /// Opens connections for those who wait; `false` when the budget has no room for all of them.
    fn grow(self: &Rc<Self>, limits: PoolLimits) -> bool {
        self.waiters.borrow_mut().retain(|w| !w.answer.is_closed());
        while self.opening.get() < self.waiters.borrow().len() {
            let Some(permit) = self.share.take(limits.user, limits.side) else { return false };
            self.opening.set(self.opening.get() + 1);
            let pool = Rc::clone(self);
            // A task of its own: a client that leaves must not take the half-open connection with it.
            tokio::task::spawn_local(pool.open(permit));
        }
        true
    }

    async fn open(self: Rc<Self>, permit: Permit) {
        let opened = (self.connect)(Rc::clone(&self), permit).await;
        self.opening.set(self.opening.get() - 1);
        match opened {
            Ok(mut server) => {
                self.last_failure.take();
                server.lease = Some(Lease::new(&self.active));
                if let Some(surplus) = self.put(Box::new(server), Instant::now()) {
                    surplus.close().await;
                }
            }
            Err(why) => self.fail(&why),
        }
    }

    /// Whoever waits hears why; all of them when no connection is left that could come back.
    fn fail(&self, why: &Refused) {
        *self.last_failure.borrow_mut() = Some((Instant::now(), why.clone()));
        let hopeless = self.active.get() == 0 && self.opening.get() == 0;
        while let Some(waiter) = self.next_waiter() {
            let heard = waiter.answer.send(Err(why.clone())).is_ok();
            if heard && !hopeless {
                return;
            }
        }
    }

    fn next_waiter(&self) -> Option<Waiter> {
        self.waiters.borrow_mut().pop_front()
    }

    /// Takes a clean connection back: the next in line gets it. Returned when its room is wanted elsewhere: to be closed.
    #[must_use]
    pub fn put(&self, mut server: Box<Server>, now: Instant) -> Option<Box<Server>> {
        server.info.client.set(0);
        while let Some(waiter) = self.next_waiter() {
            match waiter.answer.send(Ok(server)) {
                Ok(()) => return None,
                Err(back) => match back {
                    Ok(mine) => server = mine,
                    Err(_) => unreachable!("a server was sent"),
                },
            }
        }
        server.lease = None;
        if self.share.wanted.load(Ordering::Relaxed) > 0 {
            return Some(server); // another thread, or another set of parameters, waits for the room
        }
        server.info.used.set(now);
        self.idle.borrow_mut().push(server);
        None
    }

    /// Closes idle connections that are dead, too old, unused for too long, or wanted elsewhere. Returns those to close,
    /// so that the caller may say good-bye.
    pub fn sweep(
        &self,
        cx: &mut std::task::Context<'_>,
        buffers: &Buffers,
        idle: Option<Duration>,
        lifetime: Option<Duration>,
        keep: usize,
    ) -> Vec<Box<Server>> {
        let mut servers = self.idle.borrow_mut();
        let wanted = self.share.wanted.load(Ordering::Relaxed) > 0 && self.waiters.borrow().is_empty();
        let mut closing = Vec::new();
        let mut at = 0;
        while at < servers.len() {
            let server = &mut servers[at];
            let unused = idle.is_some_and(|d| server.info.used.get().elapsed() >= d);
            let old = lifetime.is_some_and(|d| server.opened.elapsed() >= d);
            let spare = self.share.used() > keep;
            if wanted || old || (unused && spare) || !server.is_alive(cx, buffers) {
                closing.push(servers.remove(at));
            } else {
                at += 1;
            }
        }
        closing
    }

    /// Closes every idle connection (the backend's address or credentials changed).
    pub fn clear(&self) -> Vec<Box<Server>> {
        self.idle.take()
    }

    /// Those who wait, idle and handed-out connections, and the longest wait.
    pub fn counts(&self) -> Counts {
        let waiters = self.waiters.borrow();
        Counts {
            waiting: waiters.iter().filter(|w| !w.answer.is_closed()).count(),
            idle: self.idle.borrow().len(),
            active: self.active.get(),
            opening: self.opening.get(),
            longest_wait: waiters.front().map_or(Duration::ZERO, |w| w.since.elapsed()),
        }
    }

    /// Idle connections, for the console.
    pub fn idle_infos(&self) -> Vec<Rc<super::server::ServerInfo>> {
        self.idle.borrow().iter().map(|s| Rc::clone(&s.info)).collect()
    }
}

/// What a pool looks like now.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Clients that wait.
    pub waiting: usize,
    /// Idle connections.
    pub idle: usize,
    /// Connections that serve a client.
    pub active: usize,
    /// Connections being opened.
    pub opening: usize,
    /// How long the first in line has waited.
    pub longest_wait: Duration,
}

/// Counts a waiting client for as long as it waits.
struct Wanted<'a>(&'a Share);

impl<'a> Wanted<'a> {
    fn new(share: &'a Share) -> Self {
        share.wanted.fetch_add(1, Ordering::Relaxed);
        Self(share)
    }
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        self.0.wanted.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How often a waiting client looks again for room that nobody told it of.
const RECHECK: Duration = Duration::from_millis(50);
/// How long a client waits for a connection of its own thread before one of another thread is closed for it. Without it
/// threads that are busy by turns close and open connections all the time.
const PATIENCE: Duration = Duration::from_millis(10);
