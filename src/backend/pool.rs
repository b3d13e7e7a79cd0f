//! Server connections of one user, one backend and one set of start-up parameters, within one data thread.
//!
//! First come, first served, over all threads ([`super::line`]); a connection that cannot be opened fails those who
//! wait at once with the server's own words.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    budget::{Permit, Share},
    line::{self, Next, Place},
    server::{Lease, Server, ServerInfo, Travelling},
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
    /// Its connections apply rows, as crossfade's own role.
    pub applies: bool,
    /// Its connections execute reads a second time, to compare the answers.
    pub shadow: bool,
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

/// What a pool needs of its data thread.
pub trait Host {
    /// Opens one connection.
    fn connect(
        &self,
        pool: Rc<Pool>,
        permit: Permit,
    ) -> Pin<Box<dyn Future<Output = Result<Server, Refused>>>>;
    /// Clients wait here without room, and other pools have idle connections: they are to be offered.
    fn ask(&self, pool: &Pool);
    /// A connection came from another thread.
    fn adopted(&self, info: &Rc<ServerInfo>);
    /// Closes a connection, politely.
    fn close(&self, server: Box<Server>);
}

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
    host: Rc<dyn Host>,
    id: u64,
    /// Equal for pools of other threads whose connections are as good.
    kind: Arc<str>,
    /// Connections opened before are not used again.
    valid_since: Cell<Option<Instant>>,
    #[expect(clippy::vec_box, reason = "a server is large and changes hands: what moves is its address")]
    idle: RefCell<Vec<Box<Server>>>,
    /// In order of their numbers.
    waiters: RefCell<VecDeque<Waiter>>,
    opening: Cell<usize>,
    /// Connections handed out.
    active: Rc<Cell<usize>>,
    last_failure: RefCell<Option<(Instant, Refused)>>,
}

struct Waiter {
    number: u64,
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
    pub fn new(key: PoolKey, credentials: Credentials, share: Arc<Share>, host: Rc<dyn Host>) -> Rc<Self> {
        static LAST_ID: AtomicU64 = AtomicU64::new(0);
        Rc::new(Self {
            id: LAST_ID.fetch_add(1, Ordering::Relaxed),
            kind: format!("{key:?}").into(),
            valid_since: Cell::default(),
            key,
            credentials: RefCell::new(credentials),
            welcome: RefCell::default(),
            defaults: RefCell::default(),
            share,
            host,
            idle: RefCell::default(),
            waiters: RefCell::default(),
            opening: Cell::new(0),
            active: Rc::default(),
            last_failure: RefCell::default(),
        })
    }

    /// Notes what a new session is told.
    pub fn learn(&self, server: &Server) {
        *self.defaults.borrow_mut() = Rc::clone(&server.defaults);
        *self.welcome.borrow_mut() = Some(server.parameters.as_slice().into());
        let mut all = self.share.welcomes.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_WELCOMES {
            all.clear(); // clients choose the parameters
        }
        all.insert(Arc::clone(&self.kind), (server.parameters.clone(), (*server.defaults).clone()));
    }

    /// Is it known what a new session is told, if only from another thread?
    pub fn knows_welcome(&self) -> bool {
        if self.welcome.borrow().is_some() {
            return true;
        }
        let all = self.share.welcomes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((parameters, defaults)) = all.get(&self.kind) else { return false };
        *self.welcome.borrow_mut() = Some(parameters.as_slice().into());
        *self.defaults.borrow_mut() = Rc::new(defaults.clone());
        true
    }

    /// An idle connection, when there is one and nobody waits for it.
    pub fn try_take(&self) -> Option<Box<Server>> {
        if !self.waiters.borrow().is_empty() {
            return None;
        }
        let mut server = self.idle.borrow_mut().pop()?;
        self.share.idle.fetch_sub(1, Ordering::Relaxed);
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
        let mut seat = Seat::new(self);
        loop {
            if !self.grow(limits) {
                self.host.ask(self);
            }
            tokio::select! {
                biased;
                server = &mut seat.local => return server.unwrap_or(Err(Refused::Cancelled)),
                travelling = &mut seat.remote => {
                    return travelling.map_err(|_| Refused::Cancelled).and_then(|t| self.adopt(*t));
                }
                () = self.share.room.notified() => {}
            }
        }
    }

    /// Takes in a connection from another thread.
    fn adopt(&self, travelling: Travelling) -> Result<Box<Server>, Refused> {
        let mut server = travelling.arrive().map_err(|e| Refused::Unreachable(e.to_string().into()))?;
        self.host.adopted(&server.info);
        server.lease = Some(Lease::new(&self.active));
        Ok(Box::new(server))
    }

    fn recent_failure(&self, retry: Duration) -> Option<Refused> {
        let failure = self.last_failure.borrow();
        let (at, why) = failure.as_ref()?;
        (self.active.get() == 0 && self.opening.get() == 0 && at.elapsed() < retry).then(|| why.clone())
    }

    /// Opens connections for those who wait; `false` when the budget does not allow as many as are wanted.
    fn grow(self: &Rc<Self>, limits: PoolLimits) -> bool {
        while self.opening.get() < self.waiters.borrow().len() {
            if !self.share.has_room(limits.user, limits.side) {
                return false;
            }
            if self.share.line.promised_elsewhere(self.id) {
                return false; // a connection was closed for somebody: the room is not ours
            }
            let Some(permit) = self.share.take(limits.user, limits.side) else { return false };
            self.opening.set(self.opening.get() + 1);
            // A task of its own: a client that leaves must not take the half-open connection with it.
            tokio::task::spawn_local(Rc::clone(self).open(permit));
        }
        true
    }

    async fn open(self: Rc<Self>, permit: Permit) {
        let opened = self.host.connect(Rc::clone(&self), permit).await;
        self.opening.set(self.opening.get() - 1);
        match opened {
            Ok(mut server) => {
                self.last_failure.take();
                server.lease = Some(Lease::new(&self.active));
                self.put(Box::new(server), Instant::now());
            }
            Err(why) => self.fail(&why),
        }
    }

    /// Whoever waits hears why; all of them when no connection is left that could come back.
    fn fail(&self, why: &Refused) {
        *self.last_failure.borrow_mut() = Some((Instant::now(), why.clone()));
        let hopeless = self.active.get() == 0 && self.opening.get() == 0;
        let numbers: Vec<u64> = self.waiters.borrow().iter().map(|w| w.number).collect();
        for number in numbers {
            // Who is no longer in line is being served by another thread.
            let waiter = self.share.line.claim(number).then(|| self.remove_waiter(number)).flatten();
            let heard = waiter.is_some_and(|w| w.answer.send(Err(why.clone())).is_ok());
            if heard && !hopeless {
                return;
            }
        }
    }

    fn remove_waiter(&self, number: u64) -> Option<Waiter> {
        let mut waiters = self.waiters.borrow_mut();
        let at = waiters.binary_search_by_key(&number, |w| w.number).ok()?;
        waiters.remove(at)
    }

    /// Takes a clean connection back: the next in line gets it.
    pub fn put(self: &Rc<Self>, mut server: Box<Server>, now: Instant) {
        server.info.client.set(0);
        // One that was cut while nobody used it has its last words in the buffer, which do not travel.
        if !server.is_clean() || self.valid_since.get().is_some_and(|since| server.opened < since) {
            return self.host.close(server);
        }
        while !self.share.line.is_empty() {
            match self.share.line.next(self.id, &self.kind) {
                Next::Nobody => break,
                Next::Here(number) => {
                    let Some(waiter) = self.remove_waiter(number) else { continue };
                    match waiter.answer.send(Ok(server)) {
                        Ok(()) => return,
                        Err(Ok(back)) => server = back,
                        Err(Err(_)) => unreachable!("a server was sent"),
                    }
                }
                Next::There(hand) => {
                    server.lease = None;
                    let Ok(travelling) = server.depart() else { return };
                    match hand.send(Box::new(travelling)) {
                        Ok(()) => return,
                        Err(back) => match self.adopt(*back) {
                            Ok(back) => server = back,
                            Err(_) => return,
                        },
                    }
                }
                Next::Room => return self.host.close(server),
            }
        }
        server.lease = None;
        server.info.used.set(now);
        self.share.idle.fetch_add(1, Ordering::Relaxed);
        self.idle.borrow_mut().push(server);
    }

    /// Those who wait look again for room: on the backend it may have been made by another user's connection, which
    /// notifies only its own. To be called now and then.
    pub fn look_again(&self) {
        if !self.waiters.borrow().is_empty() {
            self.share.room.notify_waiters();
        }
    }

    /// Offers idle connections to those who wait elsewhere.
    pub fn offer(self: &Rc<Self>) {
        let count = self.idle.borrow().len();
        for _ in 0..count.min(self.share.line.len()) {
            if let Some(server) = self.longest_idle() {
                self.put(server, Instant::now());
            }
        }
    }

    /// Takes out the connection that was unused for longest.
    pub fn longest_idle(&self) -> Option<Box<Server>> {
        let mut idle = self.idle.borrow_mut();
        let server = (!idle.is_empty()).then(|| idle.remove(0))?;
        self.share.idle.fetch_sub(1, Ordering::Relaxed);
        Some(server)
    }

    /// Are there idle connections of this user and backend, on whatever thread?
    pub fn has_idle_siblings(&self) -> bool {
        self.share.idle.load(Ordering::Relaxed) > 0
    }

    /// Takes out idle connections that are dead, too old or unused for too long, so that the caller may say good-bye.
    pub fn sweep(
        &self,
        cx: &mut std::task::Context<'_>,
        buffers: &Buffers,
        idle: Option<Duration>,
        lifetime: Option<Duration>,
        keep: usize,
    ) -> Vec<Box<Server>> {
        let mut servers = self.idle.borrow_mut();
        let mut closing = Vec::new();
        let mut at = 0;
        while at < servers.len() {
            let server = &mut servers[at];
            let unused = idle.is_some_and(|d| server.info.used.get().elapsed() >= d);
            let old = lifetime.is_some_and(|d| server.opened.elapsed() >= d);
            let spare = self.share.used() > keep;
            if old || (unused && spare) || !server.is_alive(cx, buffers) {
                closing.push(servers.remove(at));
            } else {
                at += 1;
            }
        }
        self.share.idle.fetch_sub(closing.len(), Ordering::Relaxed);
        closing
    }

    /// Takes out every idle connection, and lets those that are in use not come back: the backend's address or
    /// credentials changed.
    pub fn clear(&self) -> Vec<Box<Server>> {
        self.valid_since.set(Some(Instant::now()));
        let idle = self.idle.take();
        self.share.idle.fetch_sub(idle.len(), Ordering::Relaxed);
        idle
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

/// A client's seat while it waits; left early, it passes on what it was given meanwhile.
struct Seat {
    pool: Rc<Pool>,
    place: Place,
    local: oneshot::Receiver<Result<Box<Server>, Refused>>,
    remote: oneshot::Receiver<Box<Travelling>>,
}

impl Seat {
    fn new(pool: &Rc<Pool>) -> Self {
        let (answer, local) = oneshot::channel();
        let (hand, remote) = oneshot::channel();
        let place = line::join(&pool.share, pool.id, &pool.kind, hand);
        let waiter = Waiter { number: place.number, since: place.since, answer };
        pool.waiters.borrow_mut().push_back(waiter);
        Self { pool: Rc::clone(pool), place, local, remote }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.local.close();
        self.remote.close();
        self.pool.remove_waiter(self.place.number);
        if tokio::runtime::Handle::try_current().is_err() {
            return; // the thread ends
        }
        if let Ok(Ok(server)) = self.local.try_recv() {
            self.pool.put(server, Instant::now());
        }
        if let Ok(travelling) = self.remote.try_recv()
            && let Ok(server) = self.pool.adopt(*travelling)
        {
            self.pool.put(server, Instant::now());
        }
    }
}

const MAX_WELCOMES: usize = 256;
