//! What the data threads share.

use std::{
    collections::HashMap,
    rc::Rc,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use subtle::ConstantTimeEq;
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    mirror::{self, Mirrored},
    shadow,
    shard::{Current, Shard},
};
use crate::{
    Side,
    admin::http::BackendState,
    backend::{budget::Budgets, tls::BackendTlsContext},
    catalog::Catalog,
    config::{Config, reload::Live},
    frontend::{self, Peer},
    report::metrics::Metrics,
    route::policy::Policy,
    wire::stream::Detached,
};

/// Shared by all threads.
pub(super) struct Global {
    pub(super) live: Arc<Live>,
    pub(super) frontend: frontend::Shared,
    pub(super) catalog: ArcSwap<Catalog>,
    /// The configuration by which clients are routed.
    effective: Mutex<Effective>,
    /// Rises when the configuration or the catalog is another.
    pub(super) version: AtomicU64,
    pub(super) budgets: Budgets,
    /// Of connections that apply rows.
    pub(super) apply_budgets: Budgets,
    /// Of connections that execute reads a second time.
    pub(super) shadow_budgets: Budgets,
    pub(super) shadow: shadow::State,
    pub(super) metrics: Arc<Metrics>,
    pub(super) mirror: mirror::State,
    pub(super) mirrored: Mirrored,
    pub(super) draining: AtomicBool,
    backends: [AtomicU8; 2],
    pub(super) plan_sizes: PlanSizes,
    #[cfg(feature = "otlp")]
    pub(super) spans: super::telemetry::Spans,
    tls: [ArcSwap<BackendTlsContext>; 2],
    paused: [watch::Sender<bool>; 2],
    /// The same, for a look that costs nothing.
    paused_now: [AtomicBool; 2],
    cancels: Mutex<HashMap<i32, Vec<CancelEntry>>>,
    shards: OnceLock<Vec<mpsc::Sender<Message>>>,
}

/// Runs on a data thread.
pub(super) type Errand = Box<dyn FnOnce(&Rc<Shard>) + Send>;

/// What a data thread is told.
pub(super) enum Message {
    /// A new connection.
    Accept(Detached, Peer),
    /// Something to be done with its data.
    Run(Errand),
    /// All clients are gone: the end.
    End,
}

/// The configuration as the data threads see it: leads are those in force, not those that the file wants.
struct Effective {
    file: Arc<Config>,
    leads: Arc<HashMap<String, Side>>,
    config: Arc<Config>,
}

impl Effective {
    fn of(file: Arc<Config>) -> Self {
        Self { config: Arc::clone(&file), leads: Arc::default(), file }
    }

    /// Follows what both are now. Each that differs has a generation of its own.
    fn renew(&mut self, file: Arc<Config>, leads: Arc<HashMap<String, Side>>) {
        if Arc::ptr_eq(&file, &self.file) && Arc::ptr_eq(&leads, &self.leads) {
            return;
        }
        let repositories = mirror::effective(&file.policy, &leads);
        let policy = Policy {
            generation: self.config.policy.generation + 1,
            repositories: repositories.unwrap_or_else(|| file.policy.repositories.clone()),
            ..Policy::clone(&file.policy)
        };
        self.config = Arc::new(Config { policy: Arc::new(policy), ..Config::clone(&file) });
        (self.file, self.leads) = (file, leads);
    }
}

struct CancelEntry {
    key: Box<[u8]>,
    shard: usize,
    client: u64,
}

/// Entries and bytes of the plan caches, by thread.
#[derive(Debug, Default)]
pub(super) struct PlanSizes(Mutex<HashMap<usize, (usize, usize)>>);

impl PlanSizes {
    pub(super) fn store(&self, shard: usize, size: (usize, usize)) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(shard, size);
    }

    pub(super) fn total(&self) -> (usize, usize) {
        let sizes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sizes.values().fold((0, 0), |(entries, bytes), (e, b)| (entries + e, bytes + b))
    }
}

impl Global {
    pub(super) fn new(
        live: Arc<Live>,
        frontend: frontend::Shared,
        metrics: Arc<Metrics>,
        tls: [BackendTlsContext; 2],
    ) -> Self {
        Self {
            effective: Mutex::new(Effective::of(live.get())),
            live,
            frontend,
            catalog: ArcSwap::default(),
            version: AtomicU64::new(1),
            budgets: Budgets::default(),
            apply_budgets: Budgets::default(),
            shadow_budgets: Budgets::default(),
            shadow: shadow::State::default(),
            metrics,
            mirror: mirror::State::default(),
            mirrored: Mirrored::default(),
            draining: AtomicBool::new(false),
            backends: [AtomicU8::new(UNKNOWN), AtomicU8::new(UNKNOWN)],
            plan_sizes: PlanSizes::default(),
            #[cfg(feature = "otlp")]
            spans: super::telemetry::Spans::default(),
            tls: tls.map(ArcSwap::from_pointee),
            paused: [watch::Sender::new(false), watch::Sender::new(false)],
            paused_now: [AtomicBool::new(false), AtomicBool::new(false)],
            cancels: Mutex::default(),
            shards: OnceLock::new(),
        }
    }

    pub(super) fn start(&self, shards: Vec<mpsc::Sender<Message>>) {
        assert!(self.shards.set(shards).is_ok(), "threads are started once");
    }

    pub(super) fn shards(&self) -> &[mpsc::Sender<Message>] {
        self.shards.get().map_or(&[], Vec::as_slice)
    }

    pub(super) fn current(&self) -> Current {
        // The version first: what is read after it is at least as new.
        let version = self.version.load(Ordering::Acquire);
        Current::new(self.effective(), self.catalog.load_full(), version)
    }

    /// The configuration by which clients are routed: of mirrored repositories the side that leads now.
    pub(super) fn effective(&self) -> Arc<Config> {
        Arc::clone(&self.effective.lock().unwrap_or_else(PoisonError::into_inner).config)
    }

    /// Tells the threads that the configuration, a lead or the catalog is another.
    pub(super) fn changed(&self) {
        {
            let mut effective = self.effective.lock().unwrap_or_else(PoisonError::into_inner);
            effective.renew(self.live.get(), self.mirrored.leads.last());
        }
        self.version.fetch_add(1, Ordering::Release);
    }

    pub(super) fn backend_tls(&self, side: Side) -> Arc<BackendTlsContext> {
        self.tls[side.index()].load_full()
    }

    pub(super) fn set_backend_tls(&self, side: Side, tls: BackendTlsContext) {
        self.tls[side.index()].store(Arc::new(tls));
    }

    pub(super) fn is_paused(&self, side: Side) -> bool {
        self.paused_now[side.index()].load(Ordering::Relaxed)
    }

    pub(super) fn pause(&self, side: Side, paused: bool) {
        self.paused_now[side.index()].store(paused, Ordering::Relaxed);
        self.paused[side.index()].send_replace(paused);
    }

    /// Waits until the side is not paused.
    pub(super) async fn resumed(&self, side: Side) {
        if !self.is_paused(side) {
            return;
        }
        let mut paused = self.paused[side.index()].subscribe();
        // Fails only when the sender is gone, and it lives as long as we do.
        let _ = paused.wait_for(|&paused| !paused).await;
    }

    /// Registers the key that a client was told.
    pub(super) fn register_cancel(&self, process_id: i32, key: &[u8], shard: usize, client: u64) {
        let mut cancels = self.cancels.lock().unwrap_or_else(PoisonError::into_inner);
        cancels.entry(process_id).or_default().push(CancelEntry { key: key.into(), shard, client });
    }

    /// Forgets it.
    pub(super) fn forget_cancel(&self, process_id: i32, client: u64) {
        let mut cancels = self.cancels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entries) = cancels.get_mut(&process_id) {
            entries.retain(|e| e.client != client);
            if entries.is_empty() {
                cancels.remove(&process_id);
            }
        }
    }

    /// Passes a cancel request on; ends when the backend has dealt with it. `false`: there is no such client.
    pub(super) async fn cancel(&self, process_id: i32, key: &[u8]) -> bool {
        let found = {
            let cancels = self.cancels.lock().unwrap_or_else(PoisonError::into_inner);
            let entries = cancels.get(&process_id).map(Vec::as_slice).unwrap_or_default();
            let mine = entries.iter().find(|e| bool::from(e.key.ct_eq(key)));
            mine.map(|e| (e.shard, e.client))
        };
        let Some((shard, client)) = found else { return false };
        let (done, over) = oneshot::channel::<()>();
        let message = Message::Run(Box::new(move |shard| shard.cancel(client, done)));
        if self.shards()[shard].send(message).await.is_ok() {
            let _ = over.await; // ends when the other half is dropped
        }
        true
    }

    /// Runs `f` on every data thread and collects what it returns.
    pub(super) async fn on_every_shard<T: Send + 'static>(
        &self,
        f: impl Fn(&Rc<Shard>) -> T + Clone + Send + 'static,
    ) -> Vec<T> {
        let mut all = Vec::new();
        for shard in self.shards() {
            let (answer, result) = oneshot::channel();
            let f = f.clone();
            let message = Message::Run(Box::new(move |shard| {
                let _ = answer.send(f(shard));
            }));
            if shard.send(message).await.is_ok()
                && let Ok(value) = result.await
            {
                all.push(value);
            }
        }
        all
    }

    pub(super) fn set_backend(&self, side: Side, state: BackendState) {
        let state = match state {
            BackendState::Up => UP,
            BackendState::Down => DOWN,
            BackendState::Unknown => UNKNOWN,
        };
        self.backends[side.index()].store(state, Ordering::Relaxed);
    }

    pub(super) fn backend(&self, side: Side) -> BackendState {
        match self.backends[side.index()].load(Ordering::Relaxed) {
            UP => BackendState::Up,
            DOWN => BackendState::Down,
            _ => BackendState::Unknown,
        }
    }
}

const UNKNOWN: u8 = 0;
const UP: u8 = 1;
const DOWN: u8 = 2;
