//! Mirrored transactions in flight, as others see them: the console, and who looks for deadlocks.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Instant,
};

use crate::{
    Side,
    admin::console_rows::TransactionRow,
    backend::server::Server,
    mirror::deadlock::Process,
    proxy::{
        client::Client,
        global::Global,
        shard::{Current, Shard},
        shared::{Activity, ClientShared, Signal},
    },
    session::transaction::Status,
};

/// One of them.
#[derive(Debug)]
pub(in crate::proxy) struct InFlight {
    /// Its first statement that may write.
    pub(super) since: Instant,
    /// What it does now began then.
    pub(super) unit: Cell<Instant>,
    pub(super) lead: Side,
    /// The lead's process id.
    pub(super) lead_pid: i32,
    /// The follower's, while it is at work.
    pub(super) follower_pid: Cell<Option<i32>>,
    pub(super) state: Cell<State>,
    /// Repositories it may have written, by their number in this configuration.
    repositories: Cell<u64>,
    current: Rc<Current>,
    /// It is to give way: who waits for whom.
    deadlock: RefCell<Option<Box<str>>>,
    /// It was told to.
    told: Cell<bool>,
}

/// What a mirrored transaction does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum State {
    /// Its statements run on the lead, which notes what they change.
    Armed,
    /// Its rows are on their way to the follower, and not committed there.
    Applying,
    /// Prepared on the follower; the lead commits.
    Prepared,
    /// The lead commits, or has, and then the follower.
    Committing,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::Armed => "armed",
            State::Applying => "applying",
            State::Prepared => "prepared",
            State::Committing => "committing",
        }
    }
}

impl InFlight {
    /// Was it told to give way?
    pub(in crate::proxy) fn gives_way(&self) -> bool {
        self.deadlock.borrow().is_some()
    }

    /// Takes who waits for whom, when it was told to give way.
    pub(super) fn take_deadlock(&self) -> Option<Box<str>> {
        self.deadlock.borrow_mut().take()
    }
}

impl ClientShared {
    /// Its mirrored transaction, if there is one.
    pub(in crate::proxy) fn in_flight(&self) -> Option<Rc<InFlight>> {
        self.mirrored.borrow().clone()
    }

    /// It has ended.
    pub(in crate::proxy) fn landed(&self) {
        self.mirrored.take();
    }

    /// Does it wait for the follower, so that no server can be told to cancel?
    pub(in crate::proxy) fn applies(&self) -> bool {
        self.in_flight().is_some_and(|f| f.state.get() == State::Applying)
    }

    /// Is it at work, and not the client's turn?
    fn is_busy(&self) -> bool {
        self.activity.get() != Activity::Idle
    }

    fn state(&self, state: State) {
        if let Some(flight) = &*self.mirrored.borrow() {
            flight.state.set(state);
        }
    }
}

impl Client {
    /// Capture into the transaction on `lead` is switched on for these repositories.
    pub(super) fn take_off(&self, lead: &Server, repositories: u64) {
        let now = Instant::now();
        let mut mirrored = self.shared.mirrored.borrow_mut();
        let same = |f: &&mut Rc<InFlight>| {
            self.txn.status != Status::Idle && f.lead == lead.side && f.lead_pid == lead.process_id
        };
        if let Some(flight) = mirrored.as_mut().filter(same) {
            flight.unit.set(now);
            flight.repositories.set(flight.repositories.get() | repositories);
            return;
        }
        *mirrored = Some(Rc::new(InFlight {
            since: now,
            unit: Cell::new(now),
            lead: lead.side,
            lead_pid: lead.process_id,
            follower_pid: Cell::new(None),
            state: Cell::new(State::Armed),
            repositories: Cell::new(repositories),
            current: Rc::clone(&self.current),
            deadlock: RefCell::default(),
            told: Cell::new(false),
        }));
    }

    /// The client's COMMIT has come.
    pub(super) fn lands(&self) {
        if let Some(flight) = &*self.shared.mirrored.borrow() {
            flight.unit.set(Instant::now());
        }
        self.in_state(State::Applying);
    }

    pub(super) fn in_state(&self, state: State) {
        self.shared.state(state);
    }

    /// The connection that applies the rows.
    pub(super) fn applied_by(&self, follower: &Server) {
        follower.info.client.set(self.id());
        if let Some(flight) = &*self.shared.mirrored.borrow() {
            flight.follower_pid.set(Some(follower.process_id));
        }
    }
}

/// A mirrored transaction, for other threads.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) client: u64,
    pub(super) since: Instant,
    pub(super) unit: Instant,
    /// Every server connection that its client has: lead and follower first.
    pub(super) processes: Vec<Process>,
}

impl Seen {
    /// Its process on the lead.
    pub(super) fn lead(&self) -> Process {
        self.processes[0]
    }
}

impl Shard {
    /// Mirrored transactions that something is done for at this moment.
    pub(super) fn busy_in_flight(&self) -> Vec<Seen> {
        let clients = self.clients.borrow();
        let seen = clients.values().filter(|c| c.is_busy()).filter_map(|c| {
            let flight = c.in_flight()?;
            let mut processes = vec![Process { side: flight.lead, pid: flight.lead_pid }];
            let follower = |pid| Process { side: flight.lead.other(), pid };
            processes.extend(flight.follower_pid.get().map(follower));
            Some(Seen { client: c.id, since: flight.since, unit: flight.unit.get(), processes })
        });
        let mut seen: Vec<_> = seen.collect();
        if !seen.is_empty() {
            for server in self.servers.borrow().iter().filter_map(std::rc::Weak::upgrade) {
                let owner = seen.iter_mut().find(|s| s.client == server.client.get());
                let process = Process { side: server.side, pid: server.process_id };
                if let Some(owner) = owner.filter(|o| !o.processes.contains(&process)) {
                    owner.processes.push(process);
                }
            }
        }
        seen
    }

    /// Tells a transaction to give way; false when it is over, or past the point where it can.
    pub(super) fn break_deadlock(&self, victim: &Seen, why: &str) -> bool {
        let Some(client) = self.clients.borrow().get(&victim.client).cloned() else { return false };
        let Some(flight) = client.in_flight().filter(|f| f.since == victim.since) else { return false };
        let past = matches!(flight.state.get(), State::Prepared | State::Committing);
        if past || !client.is_busy() || flight.told.replace(true) {
            return false;
        }
        *flight.deadlock.borrow_mut() = Some(why.into());
        client.tell(Signal::Deadlock);
        true
    }

    fn transaction_rows(&self) -> Vec<TransactionRow> {
        let clients = self.clients.borrow();
        let rows = clients.values().filter(|c| c.is_busy() || c.status.get() != Status::Idle);
        let row = |c: &Rc<ClientShared>| {
            let flight = c.in_flight()?;
            let named = flight.current.config.policy.of(flight.repositories.get());
            Some(TransactionRow {
                client: c.id,
                user: c.user.to_string(),
                repositories: named.map(|(_, r)| r.name.clone()).collect(),
                lead: flight.lead,
                state: flight.state.get().name().to_owned(),
                age_seconds: flight.since.elapsed().as_secs_f64(),
                lead_pid: flight.lead_pid,
                follower_pid: flight.follower_pid.get(),
            })
        };
        rows.filter_map(row).collect()
    }
}

/// SHOW TRANSACTIONS, the oldest first.
pub(in crate::proxy) async fn transaction_rows(global: &Global) -> Vec<TransactionRow> {
    let rows = global.on_every_shard(|shard| shard.transaction_rows()).await;
    let mut rows: Vec<_> = rows.into_iter().flatten().collect();
    rows.sort_by(|a, b| b.age_seconds.total_cmp(&a.age_seconds));
    rows
}
