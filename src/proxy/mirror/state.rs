//! What the data threads share about mirroring.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, ArcSwapOption};

use super::gaps::Gaps;
use crate::{
    Side,
    mirror::{
        batch::Destination,
        recovery::Identity,
        tables::{Published, Table, Tables},
        write_set::{Change, WriteSet},
    },
    statement::Table as Name,
};

/// What is installed in the control schema, ready to be sent to.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Installed {
    /// Tables by number.
    pub(in crate::proxy) tables: HashMap<i32, Destination>,
    /// Their names.
    pub(in crate::proxy) names: HashSet<Name>,
    /// Numbers of repositories by name.
    pub(in crate::proxy) repositories: HashMap<String, i32>,
}

impl Installed {
    /// Names of the repositories that a transaction has written.
    pub(super) fn written(&self, set: &WriteSet) -> BTreeSet<&str> {
        let of = |change: &Change| Some(self.tables.get(&change.table)?.meta.repository.as_str());
        set.changes.iter().filter_map(of).collect()
    }

    /// `version`: another one for each.
    fn new(tables: &Tables, version: u64) -> Self {
        let destination = |(&n, t): (&i32, &Arc<Table>)| (n, Destination::new(t.meta.clone(), version));
        Self {
            tables: tables.tables.iter().map(destination).collect(),
            names: tables
                .tables
                .values()
                .map(|t| Name { schema: t.meta.schema.clone(), name: t.meta.name.clone() })
                .collect(),
            repositories: tables.repositories.values().map(|r| (r.name.clone(), r.number)).collect(),
        }
    }
}

/// Asks a side what became of a transaction (xid8, [`crate::mirror::recovery::Gid::epoch`]): committed or not; `None` when it cannot be known.
pub(in crate::proxy) type Outcomes =
    Box<dyn Fn(Side, String, u64) -> Pin<Box<dyn Future<Output = Option<bool>> + Send>> + Send + Sync>;

/// Shared by all threads.
pub(in crate::proxy) struct State {
    pub(in crate::proxy) installed: ArcSwap<Installed>,
    /// What `installed` was made of, and its version.
    seen: Mutex<Option<(Arc<Tables>, u64)>>,
    /// Of each side, when it is known.
    pub(in crate::proxy) identity: [ArcSwapOption<Identity>; 2],
    /// Log position of its last checkpoint, in bytes, as of the last look; 0: not known, which is never believed.
    checkpoints: [AtomicU64; 2],
    /// What `crossfade.write_set` of each side wants to hear.
    pub(in crate::proxy) tokens: [ArcSwapOption<String>; 2],
    /// Unique among instances.
    pub(in crate::proxy) instance: u32,
    began: Instant,
    /// Until then (milliseconds since `began`) a side that failed as a follower is left alone.
    avoided: [AtomicU64; 2],
    /// Asks a side what became of a transaction.
    outcomes: OnceLock<Outcomes>,
    /// Transactions that one side has, and the other not yet.
    pub(in crate::proxy) gaps: Arc<Gaps>,
    /// Journal rows, by the side that holds them, whose transactions are on both sides.
    done: [Mutex<Vec<i64>>; 2],
    /// Journal rows, by the side that holds them, whose follower's end is not known.
    late: [Mutex<Vec<i64>>; 2],
}

impl Default for State {
    fn default() -> Self {
        let mut instance = [0; 4];
        getrandom::fill(&mut instance).expect("the system has randomness");
        Self {
            installed: ArcSwap::default(),
            seen: Mutex::default(),
            identity: Default::default(),
            checkpoints: Default::default(),
            tokens: Default::default(),
            instance: u32::from_le_bytes(instance),
            began: Instant::now(),
            avoided: Default::default(),
            outcomes: OnceLock::new(),
            gaps: Arc::default(),
            done: Default::default(),
            late: Default::default(),
        }
    }
}

impl State {
    /// Seconds on this process's own clock.
    pub(in crate::proxy) fn clock(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// [`crate::mirror::recovery::Gid::epoch`] of a transaction that is about to be asked for its write set.
    pub(in crate::proxy) fn checkpoint(&self, side: Side) -> u64 {
        self.checkpoints[side.index()].load(Ordering::Acquire)
    }

    /// What a side has just said.
    pub(in crate::proxy) fn set_checkpoint(&self, side: Side, position: u64) {
        self.checkpoints[side.index()].store(position, Ordering::Release);
    }

    /// A side failed as a follower: it is left alone for a while, so that clients do not wait for it one after another.
    pub(in crate::proxy) fn avoid(&self, side: Side, wait: Duration) {
        let until = self.began.elapsed() + wait;
        let until = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
        self.avoided[side.index()].fetch_max(until, Ordering::Relaxed);
    }

    /// Is it left alone now?
    pub(in crate::proxy) fn is_avoided(&self, side: Side) -> bool {
        let until = self.avoided[side.index()].load(Ordering::Relaxed);
        until > 0 && self.began.elapsed().as_millis() < u128::from(until)
    }

    /// The follower has what this row of the journal of `lead` says.
    pub(in crate::proxy) fn done(&self, lead: Side, id: i64) {
        self.done[lead.index()].lock().unwrap_or_else(PoisonError::into_inner).push(id);
    }

    /// The follower may not have what this row of the journal of `lead` says: the repairer is to look at once.
    pub(in crate::proxy) fn late(&self, lead: Side, id: i64) {
        self.late[lead.index()].lock().unwrap_or_else(PoisonError::into_inner).push(id);
    }

    /// Those rows.
    pub(in crate::proxy) fn take_late(&self, lead: Side) -> Vec<i64> {
        std::mem::take(&mut *self.late[lead.index()].lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Rows to be deleted from the journal of `lead`.
    pub(in crate::proxy) fn take_done(&self, lead: Side) -> Vec<i64> {
        std::mem::take(&mut *self.done[lead.index()].lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// They could not be deleted: again later.
    pub(in crate::proxy) fn put_back(&self, lead: Side, mut ids: Vec<i64>) {
        self.done[lead.index()].lock().unwrap_or_else(PoisonError::into_inner).append(&mut ids);
    }

    /// How outcomes are asked for.
    pub(in crate::proxy) fn ask_with(&self, outcomes: Outcomes) {
        let _ = self.outcomes.set(outcomes);
    }

    /// What became of a transaction; `None` when it cannot be known.
    pub(in crate::proxy) async fn outcome(&self, side: Side, xid: String, epoch: u64) -> Option<bool> {
        self.outcomes.get()?(side, xid, epoch).await
    }

    /// Takes over what was published since the last time.
    pub(in crate::proxy) fn refresh(&self, published: &Published) {
        let tables = published.get();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if !seen.as_ref().is_some_and(|(known, _)| Arc::ptr_eq(known, &tables)) {
            let version = seen.as_ref().map_or(0, |(_, version)| *version) + 1;
            self.installed.store(Arc::new(Installed::new(&tables, version)));
            *seen = Some((tables, version));
        }
    }
}
