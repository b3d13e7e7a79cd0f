//! Who leads what, by the control schema: looked at all the time, published to the data threads, and moved when the
//! operator's file wants another side.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};

use super::journal::jitter;
use crate::{
    Side,
    backend::control::Manager,
    mirror::{
        lead::{Attempt, Failed, InForce, Mover, Row, rows},
        session::Session,
    },
    proxy::global::Global,
    route::policy::{Mode, Policy, Repository, Share},
};

/// What is known of leads. Cheap to read, on any thread.
#[derive(Debug)]
pub(in crate::proxy) struct Leads {
    state: Mutex<State>,
    /// Looks at each side that have ended.
    looks: [watch::Sender<u64>; 2],
    /// Somebody wants to know now.
    wanted: [Notify; 2],
}

#[derive(Debug, Default)]
struct State {
    /// By repository and side; `None`: the side does not answer.
    rows: [Option<BTreeMap<String, Row>>; 2],
    /// Who led when it was known last.
    last: Arc<HashMap<String, Side>>,
    /// Attempts to move a lead, by outcome.
    moves: BTreeMap<&'static str, u64>,
    /// Moves that wait, and for what.
    waits: BTreeMap<String, String>,
}

impl Default for Leads {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            looks: [watch::Sender::new(0), watch::Sender::new(0)],
            wanted: Default::default(),
        }
    }
}

impl Leads {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// By name, who led when it was known last. The same `Arc` while nothing changes.
    pub(in crate::proxy) fn last(&self) -> Arc<HashMap<String, Side>> {
        Arc::clone(&self.lock().last)
    }

    /// Who leads this repository now.
    pub(in crate::proxy) fn in_force(&self, name: &str) -> InForce {
        let state = self.lock();
        InForce::of([0, 1].map(|i| state.rows[i].as_ref().and_then(|rows| rows.get(name)).copied()))
    }

    /// What the move of this repository waits for.
    pub(in crate::proxy) fn waits(&self, name: &str) -> Option<String> {
        self.lock().waits.get(name).cloned()
    }

    /// Attempts to move a lead, by outcome.
    pub(in crate::proxy) fn moves(&self) -> BTreeMap<&'static str, u64> {
        self.lock().moves.clone()
    }

    fn count(&self, outcome: &'static str) {
        *self.lock().moves.entry(outcome).or_default() += 1;
    }

    fn wait(&self, name: &str, why: Option<String>) {
        let waits = &mut self.lock().waits;
        match why {
            Some(why) => drop(waits.insert(name.to_owned(), why)),
            None => drop(waits.remove(name)),
        }
    }

    /// What a side has said. True when somebody else leads something than before.
    fn looked(&self, side: Side, rows: Option<BTreeMap<String, Row>>) -> bool {
        let mut state = self.lock();
        state.rows[side.index()] = rows;
        let names: HashSet<&String> = state.rows.iter().flatten().flat_map(BTreeMap::keys).collect();
        let mut last = HashMap::clone(&state.last);
        for name in names {
            let of = |i: usize| state.rows[i].as_ref().and_then(|rows| rows.get(name)).copied();
            if let InForce::Side(side) = InForce::of([of(0), of(1)]) {
                last.insert(name.clone(), side);
            }
        }
        if state.rows.iter().all(Option::is_some) {
            last.retain(|name, _| state.rows.iter().flatten().any(|rows| rows.contains_key(name)));
        }
        if *state.last == last {
            return false;
        }
        state.last = Arc::new(last);
        true
    }

    /// Waits for a look at both sides that begins from now on, or for as long as a side may be silent.
    pub(in crate::proxy) async fn look(&self) {
        let one = async |side: Side| {
            let mut looks = self.looks[side.index()].subscribe();
            // One may be on its way.
            let enough = *looks.borrow() + 2;
            while *looks.borrow_and_update() < enough {
                self.wanted[side.index()].notify_one();
                let _ = looks.changed().await; // fails only when the sender is gone, and it lives as long as we do
            }
        };
        let ended = futures_util::future::join(one(Side::Source), one(Side::Target));
        let _ = timeout(SILENT, ended).await;
    }
}

/// The policy by which clients are routed: leads are those in force. `None`: as it is.
pub(in crate::proxy) fn effective(policy: &Policy, last: &HashMap<String, Side>) -> Option<Vec<Repository>> {
    let lead = |r: &Repository| {
        let share = match last.get(&r.name).filter(|_| moves(r))? {
            Side::Source => Share::NONE,
            Side::Target => Share::ALL,
        };
        (share != r.writes).then_some(share)
    };
    policy.repositories.iter().any(|r| lead(r).is_some()).then(|| {
        let all = policy.repositories.iter();
        all.map(|r| Repository { writes: lead(r).unwrap_or(r.writes), ..r.clone() }).collect()
    })
}

/// Has it one lead, which may move?
fn moves(repository: &Repository) -> bool {
    repository.mirror.mode != Mode::Off && [Share::NONE, Share::ALL].contains(&repository.writes)
}

/// Looks at one side.
pub(super) async fn look(global: Weak<Global>, side: Side, manager: Manager, patience: Duration) {
    let mut session = None;
    loop {
        if session.is_none() {
            session = Session::look(&manager, side, patience).await.ok();
        }
        let found = match &session {
            Some(open) => rows(open).await,
            None => Err(crate::mirror::session::Error::Silent(side)),
        };
        let found = match found {
            Ok(found) => Some(found),
            // Nothing is installed.
            Err(error) if matches!(error.sqlstate(), Some("3F000" | "42P01")) => Some(BTreeMap::new()),
            Err(error) => {
                tracing::debug!(%side, %error, "who leads could not be looked up");
                session = None;
                None
            }
        };
        let failed = found.is_none();
        let Some(strong) = global.upgrade() else { return };
        let leads = Arc::clone(&strong.mirrored.leads);
        if leads.looked(side, found) {
            strong.changed();
        }
        drop(strong);
        leads.looks[side.index()].send_modify(|looks| *looks += 1);
        let wait = jitter(if failed { AFTER_ERROR } else { LOOK });
        tokio::select! {
            () = sleep(wait) => {}
            () = leads.wanted[side.index()].notified(), if !failed => {}
        }
    }
}

/// Moves leads to where the file wants them.
pub(super) async fn move_leads(global: Weak<Global>, managers: [Manager; 2], patience: Duration) {
    let mover = Mover::new(managers, patience);
    let mut wishes: HashMap<String, Wish> = HashMap::new();
    loop {
        sleep(jitter(LOOK)).await;
        let Some(strong) = global.upgrade() else { return };
        let (config, leads) = (strong.live.get(), Arc::clone(&strong.mirrored.leads));
        drop(strong);
        let policy = &config.policy;
        wishes.retain(|name, _| policy.repositories.iter().any(|r| r.name == *name && moves(r)));
        for repository in policy.repositories.iter().filter(|r| moves(r)) {
            let wanted = repository.writes.draw(0);
            let wish = wishes.entry(repository.name.clone()).or_insert_with(|| Wish::new(wanted));
            if wish.wanted != wanted {
                *wish = Wish::new(wanted);
            }
            if let Some(due) = wish.due(&repository.name, &leads) {
                wish.grant(&mover, &leads, &repository.name, due).await;
            }
        }
    }
}

/// What the operator's file wants of one repository, and what has come of it.
#[derive(Debug)]
struct Wish {
    wanted: Side,
    /// It led once since the file wants it. When somebody else moves it then, that is what counts: two instances whose
    /// files differ must not pull at it for ever.
    granted: bool,
    /// Since when it is tried.
    since: Option<Instant>,
    /// The next attempt.
    again: Instant,
    /// What was logged last.
    said: Option<(Instant, String)>,
}

/// What an attempt is to do.
#[derive(Clone, Copy, Debug)]
enum Due {
    /// That side is to lead.
    Move(Side),
    /// A move that broke off, wherever it went, is to be finished.
    Finish,
}

impl Wish {
    fn new(wanted: Side) -> Self {
        Self { wanted, granted: false, since: None, again: Instant::now(), said: None }
    }

    /// Is it time to try, and what for?
    fn due(&mut self, name: &str, leads: &Leads) -> Option<Due> {
        let lead = leads.in_force(name);
        match lead {
            InForce::Unknown => return None,
            InForce::Side(lead) if lead == self.wanted => {
                if !self.granted || self.said.is_some() {
                    (self.granted, self.said, self.since) = (true, None, None);
                    leads.wait(name, None);
                }
                return None;
            }
            InForce::Side(lead) if self.granted => {
                if self.is_news("another") {
                    let wanted = self.wanted;
                    tracing::warn!(repository = name, %lead, %wanted, "another instance has moved the lead: it stays there, and the file says otherwise");
                }
                return None;
            }
            InForce::Side(_) | InForce::Nobody | InForce::Both => {}
        }
        let due = if self.granted { Due::Finish } else { Due::Move(self.wanted) };
        (Instant::now() >= self.again).then_some(due)
    }

    /// One attempt.
    async fn grant(&mut self, mover: &Mover, leads: &Leads, name: &str, due: Due) {
        if self.since.is_none() {
            self.since = Some(Instant::now());
            let lead = leads.in_force(name);
            tracing::info!(repository = name, lead = ?lead, wanted = %self.wanted, "the lead of writes is to move");
        }
        let wanted = match due {
            Due::Move(side) => Some(side),
            Due::Finish => None,
        };
        let attempt = mover.attempt(name, wanted).await;
        self.again = Instant::now() + jitter(PAUSE);
        match attempt {
            Ok(Attempt::Nothing) => self.again = Instant::now(),
            Ok(Attempt::Elsewhere) => {}
            Ok(Attempt::Waits(wait)) => {
                leads.count("waited");
                let why = wait.to_string();
                if self.is_news("waits") {
                    tracing::info!(repository = name, wanted = %self.wanted, "the lead of writes waits for {why}");
                }
                leads.wait(name, Some(why));
            }
            Ok(Attempt::Moved { from, to, sequences, stalled }) => {
                leads.count("moved");
                leads.wait(name, None);
                let took = self.since.take().map_or(stalled, |since| since.elapsed());
                (self.said, self.again) = (None, Instant::now());
                tracing::info!(
                    repository = name, %from, %to, sequences,
                    took_ms = took.as_millis(), stalled_ms = stalled.as_millis(),
                    "the lead of writes has moved"
                );
                leads.look().await;
            }
            Err(error) => {
                leads.count("failed");
                let why = error.to_string();
                if self.is_news(&why) {
                    if matches!(error, Failed::Unfit(_)) {
                        tracing::error!(repository = name, wanted = %self.wanted, error = why, "the lead of writes cannot move");
                    } else {
                        tracing::warn!(repository = name, wanted = %self.wanted, error = why, "the lead of writes could not be moved yet");
                    }
                }
                leads.wait(name, Some(why));
            }
        }
    }

    /// Was it not said within the last minute?
    fn is_news(&mut self, what: &str) -> bool {
        let known = self.said.as_ref().is_some_and(|(at, text)| text == what && at.elapsed() < AGAIN);
        if !known {
            self.said = Some((Instant::now(), what.to_owned()));
        }
        !known
    }
}

/// Between attempts: writers run on meanwhile.
const PAUSE: Duration = Duration::from_millis(1200);
/// Between looks at who leads. [`crate::mirror::lead`] waits for longer than that before a new lead takes writes.
const LOOK: Duration = Duration::from_millis(80);
const AFTER_ERROR: Duration = Duration::from_millis(200);
/// A look at a side that does not answer is not waited for.
const SILENT: Duration = Duration::from_millis(300);
const AGAIN: Duration = Duration::from_secs(60);
