//! Who leads what, by the control schema: looked at all the time, and published to the data threads.

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
        lead::{InForce, Row, clock, rows},
        session::Session,
    },
    proxy::global::Global,
    report::metrics::{self as names, Value},
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
    /// The source's clock, and when it was read.
    clock: Option<(Instant, Duration)>,
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

/// Sets the metrics of leads.
pub(super) fn collect(global: &Global) {
    let (leads, metrics) = (&global.mirrored.leads, &global.metrics);
    let policy = &global.live.get().policy;
    let mirrored = policy.repositories.iter().filter(|r| r.mirror.mode != Mode::Off);
    let rows = mirrored.flat_map(|repository| {
        let leading = match leads.in_force(&repository.name) {
            InForce::Unknown => return Vec::new(),
            InForce::Side(lead) => Side::BOTH.map(|side| side == lead),
            InForce::Nobody => [false; 2],
            InForce::Both => [true; 2],
        };
        let row = |side: Side| {
            let leads = f64::from(u8::from(leading[side.index()]));
            (vec![Value::Configured(&repository.name), side.into()], leads)
        };
        Side::BOTH.map(row).to_vec()
    });
    metrics.replace(&names::MIRROR_LEAD, rows);
    for (outcome, n) in leads.moves() {
        metrics.set(&names::LEAD_MOVES, &[outcome.into()], n);
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

    /// The source's clock, since 1970: the one by which sides take turns, in every instance.
    pub(in crate::proxy) fn clock(&self) -> Option<Duration> {
        self.lock().clock.map(|(at, clock)| clock + at.elapsed())
    }

    pub(super) fn count(&self, outcome: &'static str) {
        *self.lock().moves.entry(outcome).or_default() += 1;
    }

    pub(super) fn wait(&self, name: &str, why: Option<String>) {
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
        let known = last.get(&r.name).filter(|_| r.mirror.mode.is_mirrored());
        let whole = [Share::NONE, Share::ALL].contains(&r.writes);
        let share = match known {
            None if whole => return None,
            Some(Side::Target) => Share::ALL,
            // Not known, and a fraction: one side leads, whichever. The one that does not will say so.
            Some(Side::Source) | None => Share::NONE,
        };
        (share != r.writes).then_some(share)
    };
    policy.repositories.iter().any(|r| lead(r).is_some()).then(|| {
        let all = policy.repositories.iter();
        all.map(|r| Repository { writes: lead(r).unwrap_or(r.writes), ..r.clone() }).collect()
    })
}

async fn read_clock(global: &Weak<Global>, source: &Session) {
    let began = Instant::now();
    let Ok(clock) = clock(source).await else { return };
    let middle = began + began.elapsed() / 2;
    if let Some(global) = global.upgrade() {
        global.mirrored.leads.lock().clock = Some((middle, clock));
    }
}

/// Looks at one side.
pub(super) async fn look(global: Weak<Global>, side: Side, manager: Manager, patience: Duration) {
    let mut session = None;
    let mut clock_read = None::<Instant>;
    loop {
        if session.is_none() {
            session = Session::look(&manager, side, patience).await.ok();
            clock_read = None;
        }
        if let Some(open) = session.as_ref().filter(|_| side == Side::Source)
            && clock_read.is_none_or(|at| at.elapsed() > CLOCK)
        {
            read_clock(&global, open).await;
            clock_read = Some(Instant::now());
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

/// Between looks at who leads. [`crate::mirror::lead`] waits for longer than that before a new lead takes writes.
pub(super) const LOOK: Duration = Duration::from_millis(80);
const AFTER_ERROR: Duration = Duration::from_millis(200);
/// A look at a side that does not answer is not waited for.
const SILENT: Duration = Duration::from_millis(300);
/// Between readings of the source's clock.
const CLOCK: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::policy::{Mirror, Mode, OnUnknown, TransactionReads};

    #[test]
    fn clients_are_routed_by_who_leads_never_by_a_fraction() {
        let repository = |name: &str, writes: u16, mode| Repository {
            name: name.to_owned(),
            tables: Vec::new(),
            functions: Vec::new(),
            reads: Share::NONE,
            writes: Share::new(writes).unwrap(),
            mirror: Mirror { mode, ..Mirror::default() },
        };
        let policy = Policy {
            generation: 1,
            repositories: vec![
                repository("off", 10_000, Mode::Off),
                repository("known", 1_000, Mode::Atomic),
                repository("unknown", 9_000, Mode::Journaled),
                repository("whole", 0, Mode::Async),
            ],
            on_unknown: OnUnknown::Refuse,
            transactions: TransactionReads::Weighted,
            sticky: Duration::ZERO,
        };
        let target = |names: &[&str]| names.iter().map(|n| ((*n).to_owned(), Side::Target)).collect();
        let writes = |last: HashMap<String, Side>| -> Vec<Share> {
            effective(&policy, &last).unwrap().iter().map(|r| r.writes).collect()
        };
        let (s, t) = (Share::NONE, Share::ALL);
        assert_eq!(writes(target(&[])), [t, s, s, s]);
        assert_eq!(writes(target(&["off", "known", "whole"])), [t, t, s, t]);
    }
}
