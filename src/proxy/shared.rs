//! What clients, the console and the sweeper see of one another.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Waker},
    time::Instant,
};

use crate::{
    Side, backend::server::CancelGate, config::PoolMode, session::transaction::Status, statement::Pin,
};

/// One client, as others see it.
#[derive(Debug)]
pub struct ClientShared {
    /// Shown in errors, logs and SHOW CLIENTS.
    pub id: u64,
    /// Role name.
    pub user: Rc<str>,
    /// `address:port` or `unix`.
    pub peer: String,
    /// From the start-up message.
    pub application_name: String,
    /// When it connected.
    pub since: Instant,
    /// Session or transaction pooling.
    pub mode: PoolMode,
    /// Is the connection encrypted?
    pub tls: bool,
    /// Process id it was told.
    pub process_id: i32,
    /// What it is doing.
    pub activity: Cell<Activity>,
    /// Transaction status as it was told last.
    pub status: Cell<Status>,
    /// Where its transaction runs.
    pub side: Cell<Option<Side>>,
    /// When its transaction began.
    pub transaction_since: Cell<Option<Instant>>,
    /// Why it keeps its server connection.
    pub pinned: Cell<Option<Pin>>,
    /// What a cancel request would cancel.
    pub running: RefCell<Option<Running>>,
    /// What ends unless something happens before.
    pub deadline: Cell<Option<(Instant, Signal)>>,
    signal: Cell<Option<Signal>>,
    waker: RefCell<Option<Waker>>,
}

/// What a client is doing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Activity {
    /// Nothing: its turn.
    Idle,
    /// Waits for a server connection.
    Waiting,
    /// A server works for it.
    Active,
}

/// The statement in flight.
#[derive(Clone, Debug)]
pub struct Running {
    /// Where.
    pub side: Side,
    /// The server's process id.
    pub process_id: i32,
    /// The server's cancel key.
    pub key: Rc<[u8]>,
    /// Holds the server back until the request is over.
    pub gate: Rc<CancelGate>,
}

/// What a client is told from outside.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Signal {
    /// KILL on the console.
    Kill,
    /// Shut-down: leave when outside a transaction.
    Drain,
    /// Shut-down, now.
    Stop,
    /// A cancel request came while it waited for a server connection.
    Cancel,
    /// `timeouts.client_idle`
    ClientIdle,
    /// `timeouts.idle_transaction`
    IdleTransaction,
    /// `timeouts.transaction`
    Transaction,
    /// `timeouts.query`
    Query,
    /// After `timeouts.query` the server did not even answer a cancel request.
    Unanswered,
    /// `timeouts.query_wait`
    QueryWait,
}

impl ClientShared {
    /// A client that has just logged in.
    pub fn new(
        id: u64,
        login: &crate::frontend::startup::Login,
        mode: PoolMode,
        process_id: i32,
    ) -> Rc<Self> {
        let application_name = login.parameters.iter().find(|(n, _)| n == "application_name");
        Rc::new(Self {
            id,
            user: login.user.as_str().into(),
            peer: login.peer.clone(),
            application_name: application_name.map(|(_, v)| v.clone()).unwrap_or_default(),
            since: Instant::now(),
            mode,
            tls: login.stream.is_tls(),
            process_id,
            activity: Cell::new(Activity::Idle),
            status: Cell::default(),
            side: Cell::default(),
            transaction_since: Cell::default(),
            pinned: Cell::default(),
            running: RefCell::default(),
            deadline: Cell::default(),
            signal: Cell::default(),
            waker: RefCell::default(),
        })
    }

    /// Tells the client; a stronger signal replaces a weaker one.
    pub fn tell(&self, signal: Signal) {
        let strong = |s| matches!(s, Signal::Kill | Signal::Stop);
        if !self.signal.get().is_some_and(strong) {
            self.signal.set(Some(signal));
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// What it was told, if anything. It will be woken in either case: whoever lets a signal stand (a drain inside a
    /// transaction) must hear of the next one.
    pub fn listen(&self, cx: &Context<'_>) -> Option<Signal> {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        self.signal.get()
    }

    /// What it was told, if anything, without waiting for more.
    pub fn told(&self) -> Option<Signal> {
        self.signal.get()
    }

    /// Forgets a signal that was dealt with.
    pub fn clear_signal(&self) {
        self.signal.set(None);
    }

    /// The sweeper's look: has the deadline passed?
    pub fn check_deadline(&self, now: Instant) {
        if let Some((at, signal)) = self.deadline.get()
            && now >= at
        {
            self.deadline.set(None);
            self.tell(signal);
        }
    }
}
