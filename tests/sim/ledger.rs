//! What the clients know: what was acknowledged, what was certainly rolled back, and what may be either.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// What a statement leaves behind when it commits.
#[derive(Clone, Debug)]
pub(crate) enum Effect {
    /// A row with this token in this table.
    Row(&'static str, String),
    /// This token is gone from the queue.
    Popped(String),
    /// Some token is gone from the queue; which one was not heard.
    PoppedBlindly,
    /// A row of `t_own` has this version.
    Version(usize, u32),
}

/// How a transaction ended, as far as its client knows.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Fate {
    Committed,
    RolledBack,
    /// Its connection died at the wrong moment.
    Unknown,
}

/// One transaction.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) fate: Fate,
    pub(crate) effects: Vec<Effect>,
    /// Taken back by ROLLBACK TO: certainly not there.
    pub(crate) undone: Vec<Effect>,
}

/// All transactions of all clients, and a trace for people.
#[derive(Debug)]
pub(crate) struct Ledger {
    began: Instant,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
pub(crate) struct Inner {
    pub(crate) entries: Vec<Entry>,
    pub(crate) faults: BTreeMap<&'static str, u64>,
    pub(crate) stall: Duration,
    pub(crate) journal: u64,
    pub(crate) errors: BTreeMap<String, u64>,
    /// What no client may ever hear.
    pub(crate) broken: Vec<String>,
    trace: String,
}

impl Ledger {
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), inner: Mutex::default() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One line of the trace.
    pub(crate) fn note(&self, who: &str, what: &str) {
        let at = self.began.elapsed().as_secs_f64();
        let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let mut inner = self.lock();
        let _ = writeln!(
            inner.trace,
            "{at:9.4} {:>6}.{:03} {who:>9} {what}",
            clock.as_secs() % 86_400,
            clock.subsec_millis()
        );
    }

    /// A transaction has ended.
    pub(crate) fn add(&self, who: &str, entry: Entry) {
        self.note(who, &format!("{entry:?}"));
        self.lock().entries.push(entry);
    }

    /// A fault was injected.
    pub(crate) fn fault(&self, kind: &'static str, detail: &str) {
        self.note("FAULT", &format!("{kind} {detail}"));
        *self.lock().faults.entry(kind).or_default() += 1;
    }

    /// A client waited this long for an answer.
    pub(crate) fn waited(&self, time: Duration) {
        let mut inner = self.lock();
        inner.stall = inner.stall.max(time);
    }

    /// An error that a client heard, by its SQLSTATE.
    pub(crate) fn error(&self, sqlstate: &str) {
        *self.lock().errors.entry(sqlstate.to_owned()).or_default() += 1;
    }

    /// A promise was broken before its client's eyes.
    pub(crate) fn broken(&self, what: String) {
        self.note("BROKEN", &what);
        self.lock().broken.push(what);
    }

    pub(crate) fn trace(&self) -> String {
        self.lock().trace.clone()
    }

    /// The figures of the run.
    pub(crate) fn figures(&self) -> String {
        let inner = self.lock();
        let count = |fate| inner.entries.iter().filter(|e| e.fate == fate).count();
        format!(
            "{} transactions: {} acknowledged, {} rolled back, {} unknown; {} faults {:?}; \
             longest stall {:.1} s; journal at most {} rows; errors {:?}",
            inner.entries.len(),
            count(Fate::Committed),
            count(Fate::RolledBack),
            count(Fate::Unknown),
            inner.faults.values().sum::<u64>(),
            inner.faults,
            inner.stall.as_secs_f64(),
            inner.journal,
            inner.errors,
        )
    }
}
