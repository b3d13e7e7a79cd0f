//! What the clients saw.

use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use crossfade::Side;

/// Shared by the clients and the conductor. One thread runs all of them.
pub(crate) struct Shared {
    /// Rises when units of work begun earlier must be told from later ones.
    pub(crate) generation: AtomicU64,
    /// By client: generation in which its present unit of work began.
    pub(crate) seen: Vec<AtomicU64>,
    /// Step that units beginning now are counted in; [`NO_STEP`] between steps.
    pub(crate) step: AtomicUsize,
    /// Clients begin no unit of work.
    pub(crate) hold: AtomicBool,
    /// So many clients have noticed.
    pub(crate) resting: AtomicUsize,
    /// Clients leave after their present unit of work.
    pub(crate) stop: AtomicBool,
    tally: Mutex<Tally>,
}

/// Units that begin between two steps count for the totals alone.
pub(crate) const NO_STEP: usize = usize::MAX;

/// The clients' counters.
#[derive(Default)]
pub(crate) struct Tally {
    /// By step.
    pub(crate) steps: Vec<Step>,
    /// Reads of documents over the whole run, by side.
    pub(crate) reads: [u64; 2],
    /// Transactions of any kind, committed.
    pub(crate) transactions: u64,
    /// Increments of `users.logins` that were acknowledged.
    pub(crate) logins: u64,
    /// Increments of `organization_members.seen` that were acknowledged.
    pub(crate) seen: u64,
    /// Rows of `user_notes` that were acknowledged.
    pub(crate) notes: u64,
    /// Errors that a client was given.
    pub(crate) errors: u64,
    /// The first few of them.
    pub(crate) samples: Vec<String>,
    /// Connections that ended without the client's wish.
    pub(crate) dropped: u64,
    /// Logins after the first, one of every client.
    pub(crate) reconnects: u64,
    /// Rows that are not what was written, transactions answered by two servers.
    pub(crate) wrong: u64,
}

/// Document reads of one step.
#[derive(Default)]
pub(crate) struct Step {
    /// Transactions: each throws the dice once.
    pub(crate) draws: u64,
    /// Statements, by the side that answered.
    pub(crate) reads: [u64; 2],
    /// Microseconds per statement, by side.
    pub(crate) latency_us: [Vec<u32>; 2],
}

/// What one unit of work saw; merged when it is over.
#[derive(Default)]
pub(crate) struct Unit {
    /// Side and microseconds of every read of documents.
    pub(crate) reads: Vec<(Side, u32)>,
    pub(crate) wrong: Vec<String>,
    pub(crate) logins: u64,
    pub(crate) seen: u64,
    pub(crate) notes: u64,
}

impl Shared {
    pub(crate) fn new(clients: usize, steps: usize) -> Self {
        let tally = Tally { steps: (0..steps).map(|_| Step::default()).collect(), ..Tally::default() };
        Self {
            generation: AtomicU64::new(0),
            seen: (0..clients).map(|_| AtomicU64::new(0)).collect(),
            step: AtomicUsize::new(NO_STEP),
            hold: AtomicBool::new(false),
            resting: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            tally: Mutex::new(tally),
        }
    }

    pub(crate) fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().expect("no holder panics")
    }

    /// Returns when work may go on.
    pub(crate) async fn rest_if_told(&self) {
        if !self.hold.load(Relaxed) {
            return;
        }
        self.resting.fetch_add(1, Relaxed);
        while self.hold.load(Relaxed) && !self.stop.load(Relaxed) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        self.resting.fetch_sub(1, Relaxed);
    }

    /// Has every client begun a new unit of work since the generation rose?
    pub(crate) fn all_moved_on(&self) -> bool {
        let generation = self.generation.load(Relaxed);
        self.seen.iter().all(|seen| seen.load(Relaxed) >= generation)
    }
}

impl Tally {
    pub(crate) fn merge(&mut self, step: usize, unit: Unit) {
        self.transactions += 1;
        self.acknowledged(&unit);
        self.wrong += unit.wrong.len() as u64;
        for text in unit.wrong {
            self.sample(text);
        }
        for &(side, _) in &unit.reads {
            self.reads[side.index()] += 1;
        }
        let Some(step) = self.steps.get_mut(step).filter(|_| !unit.reads.is_empty()) else { return };
        step.draws += 1;
        for (side, us) in unit.reads {
            step.reads[side.index()] += 1;
            step.latency_us[side.index()].push(us);
        }
    }

    /// What was committed counts, also when the unit failed afterwards.
    pub(crate) fn acknowledged(&mut self, unit: &Unit) {
        self.logins += unit.logins;
        self.seen += unit.seen;
        self.notes += unit.notes;
    }

    pub(crate) fn error(&mut self, text: String) {
        self.errors += 1;
        self.sample(text);
    }

    fn sample(&mut self, text: String) {
        if self.samples.len() < 10 && !self.samples.contains(&text) {
            self.samples.push(text);
        }
    }
}

impl Step {
    /// Share of the target in percent; `None` before the first read.
    pub(crate) fn target_percent(&self) -> Option<f64> {
        percent(self.reads)
    }

    /// Microseconds at this quantile of one side; `None` when it answered nothing.
    pub(crate) fn latency_us(&self, side: Side, quantile: f64) -> Option<u32> {
        let mut sorted = self.latency_us[side.index()].clone();
        sorted.sort_unstable();
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an index into samples of one minute"
        )]
        let at = (sorted.len() as f64 * quantile) as usize;
        sorted.get(at.min(sorted.len().saturating_sub(1))).copied()
    }
}

/// Share of the target in percent.
pub(crate) fn percent(reads: [u64; 2]) -> Option<f64> {
    let all = reads[0] + reads[1];
    #[expect(clippy::cast_precision_loss, reason = "counts of one minute")]
    (all > 0).then(|| 100.0 * reads[1] as f64 / all as f64)
}
