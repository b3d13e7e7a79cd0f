//! What clients, the console and the sweeper see of one another.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Waker},
    time::Instant,
};

use crate::{
    Side, backend::server::CancelGate, config::PoolMode, frontend::Peer, session::transaction::Status,
    statement::Pin,
};

/// One client, as others see it.
#[derive(Debug)]
pub(super) struct ClientShared {
    /// Shown in errors, logs and SHOW CLIENTS.
    pub(super) id: u64,
    /// Role name.
    pub(super) user: Rc<str>,
    /// Where it is.
    pub(super) peer: Peer,
    /// From the start-up message.
    pub(super) application_name: String,
    /// Session or transaction pooling.
    pub(super) mode: PoolMode,
    /// Is the connection encrypted?
    pub(super) tls: bool,
    /// Process id it was told.
    pub(super) process_id: Cell<i32>,
    /// What it is doing.
    pub(super) activity: Cell<Activity>,
    /// Transaction status as it was told last.
    pub(super) status: Cell<Status>,
    /// Where its transaction runs.
    pub(super) side: Cell<Option<Side>>,
    /// When its transaction began.
    pub(super) transaction_since: Cell<Option<Instant>>,
    /// Why it keeps its server connection.
    pub(super) pinned: Cell<Option<Pin>>,
    /// What a cancel request would cancel.
    pub(super) running: RefCell<Option<Running>>,
    /// Its mirrored transaction.
    pub(super) mirrored: RefCell<Option<Rc<super::mirror::InFlight>>>,
    /// What ends unless something happens before.
    pub(super) deadline: Cell<Option<(Instant, Signal)>>,
    signal: Cell<Option<Signal>>,
    waker: RefCell<Option<Waker>>,
}

/// What a client is doing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Activity {
    /// Nothing: its turn.
    Idle,
    /// Waits for a server connection.
    Waiting,
    /// A server works for it.
    Active,
}

/// The statement in flight.
#[derive(Clone, Debug)]
pub(super) struct Running {
    /// Where.
    pub(super) side: Side,
    /// The server's process id.
    pub(super) process_id: i32,
    /// The server's cancel key.
    pub(super) key: Rc<[u8]>,
    /// Holds the server back until the request is over.
    pub(super) gate: Rc<CancelGate>,
}

/// What a client is told from outside.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Signal {
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
    /// Its mirrored transaction waits in a circle that no server sees, and is to give way.
    Deadlock,
}

impl ClientShared {
    /// A client that has just logged in.
    pub(super) fn new(
        id: u64,
        login: &crate::frontend::startup::Login,
        mode: PoolMode,
        process_id: i32,
    ) -> Rc<Self> {
        let application_name = login.parameters.iter().find(|(n, _)| n == "application_name");
        Rc::new(Self {
            id,
            user: login.user.as_str().into(),
            peer: login.peer,
            application_name: application_name.map(|(_, v)| v.clone()).unwrap_or_default(),
            mode,
            tls: login.stream.is_tls(),
            process_id: Cell::new(process_id),
            activity: Cell::new(Activity::Idle),
            status: Cell::default(),
            side: Cell::default(),
            transaction_since: Cell::default(),
            pinned: Cell::default(),
            running: RefCell::default(),
            mirrored: RefCell::default(),
            deadline: Cell::default(),
            signal: Cell::default(),
            waker: RefCell::default(),
        })
    }

    /// Tells the client; a stronger signal replaces a weaker one.
    pub(super) fn tell(&self, signal: Signal) {
        let strong = |s| matches!(s, Signal::Kill | Signal::Stop);
        if !self.signal.get().is_some_and(strong) {
            self.signal.set(Some(signal));
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Does it run a transaction on `side`, or may it be about to?
    pub(super) fn occupies(&self, side: Side) -> bool {
        let at_work = match &*self.running.borrow() {
            Some(running) => running.side == side,
            None => self.activity.get() == Activity::Active, // on its way to a server, or from one
        };
        at_work || self.side.get() == Some(side)
    }

    /// What it was told, if anything. It will be woken in either case: whoever lets a signal stand (a drain inside a
    /// transaction) must hear of the next one.
    pub(super) fn listen(&self, cx: &Context<'_>) -> Option<Signal> {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        self.signal.get()
    }

    /// What it was told, if anything, without waiting for more.
    pub(super) fn told(&self) -> Option<Signal> {
        self.signal.get()
    }

    /// Forgets a signal that was dealt with.
    pub(super) fn clear_signal(&self) {
        self.signal.set(None);
    }

    /// The sweeper's look: has the deadline passed?
    pub(super) fn check_deadline(&self, now: Instant) {
        if let Some((at, signal)) = self.deadline.get()
            && now >= at
        {
            self.deadline.set(None);
            self.tell(signal);
        }
    }
}
