//! Metrics and a span per transaction for an OpenTelemetry collector. Data threads hand over what has ended through a
//! bounded queue, and only while there is an endpoint; the rest is done beside them.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    sync::{mpsc, watch},
    time::{sleep, timeout},
};

use super::{client::Client, flight::Flight, global::Global, operator};
use crate::{
    Side,
    config::{Config, Endpoint},
    report::{
        metrics as names,
        otlp::{self, Origin, Transaction},
    },
    route::Footprint,
};

/// Shared by all threads.
pub(super) struct Spans {
    /// Is there an endpoint?
    wanted: AtomicBool,
    queue: mpsc::Sender<Ended>,
    inbox: Mutex<Option<mpsc::Receiver<Ended>>>,
    overflow: AtomicU64,
}

/// What a client remembers of its transaction.
#[derive(Debug, Default)]
pub(super) struct Trace {
    began: Option<Instant>,
    repositories: u64,
    units: u64,
    wrote: bool,
}

/// A transaction as the data thread hands it over.
struct Ended {
    trace: Trace,
    config: Arc<Config>,
    at: Instant,
    client: u64,
    user: String,
    side: Side,
    committed: bool,
    sqlstate: Option<[u8; 5]>,
}

impl Default for Spans {
    fn default() -> Self {
        let (queue, inbox) = mpsc::channel(MOST_QUEUED);
        Self {
            wanted: AtomicBool::new(false),
            queue,
            inbox: Mutex::new(Some(inbox)),
            overflow: AtomicU64::new(0),
        }
    }
}

impl Client {
    /// A unit has been answered.
    pub(super) fn trace_unit(&mut self, footprint: Option<&Footprint>, began: Instant) {
        if !self.shard.global.spans.wanted.load(Ordering::Relaxed) {
            return;
        }
        self.trace.began.get_or_insert(began);
        self.trace.units += 1;
        if let Some(footprint) = footprint {
            self.trace.repositories |= footprint.reads | footprint.writes;
            self.trace.wrote |= footprint.is_write();
        }
    }

    /// Its transaction has ended.
    pub(super) fn trace_end(&mut self, side: Side, flight: &Flight, at: Instant) {
        let spans = &self.shard.global.spans;
        let trace = std::mem::take(&mut self.trace);
        if !spans.wanted.load(Ordering::Relaxed) {
            return;
        }
        let config = &self.current.config;
        if self.shard.ticket() >= config.telemetry.spans.basis_points() {
            return;
        }
        let ended = Ended {
            trace,
            config: Arc::clone(config),
            at,
            client: self.shared.id,
            user: self.shared.user.to_string(),
            side,
            committed: flight.sqlstate.is_none() && !flight.rolled_back,
            sqlstate: flight.sqlstate,
        };
        if spans.queue.try_send(ended).is_err() {
            spans.overflow.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Ended {
    fn transaction(self, clock: &Clock) -> Transaction {
        let Self { trace, config, at, client, user, side, committed, sqlstate } = self;
        let began = trace.began.unwrap_or(at);
        let repositories = config.policy.repositories.iter().enumerate();
        let touched = repositories.filter(|(index, _)| trace.repositories >> index & 1 == 1);
        let mut id = [0; 24];
        getrandom::fill(&mut id).expect("the system has randomness");
        Transaction {
            client,
            user,
            side,
            repositories: touched.map(|(_, repository)| repository.name.clone()).collect(),
            units: trace.units,
            wrote: trace.wrote,
            committed,
            sqlstate,
            began: clock.at(began),
            took: at.saturating_duration_since(began),
            id,
        }
    }
}

/// Turns moments of this process into those of the calendar.
struct Clock(Instant, SystemTime);

impl Clock {
    fn at(&self, moment: Instant) -> SystemTime {
        let Self(instant, calendar) = self;
        match instant.checked_duration_since(moment) {
            Some(before) => *calendar - before,
            None => *calendar + moment.duration_since(*instant),
        }
    }
}

/// The task that exports.
pub(super) struct Export {
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Export {
    pub(super) fn start(global: &Arc<Global>) -> Self {
        let (stop, stopping) = watch::channel(false);
        Self { stop, task: tokio::spawn(export(Arc::clone(global), stopping)) }
    }

    /// What has ended since the last time goes out, unless that takes long.
    pub(super) async fn end(self) {
        self.stop.send_replace(true);
        let _ = timeout(LAST_WORDS, self.task).await;
    }
}

/// Exports until `stopping`, and once more then.
async fn export(global: Arc<Global>, mut stopping: watch::Receiver<bool>) {
    let spans = &global.spans;
    let Some(mut inbox) = spans.inbox.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
    let mut instance = [0_u8; 8];
    getrandom::fill(&mut instance).expect("the system has randomness");
    let instance = format!("{:016x}", u64::from_be_bytes(instance));
    let origin = Origin { instance, began: SystemTime::now() };
    let mut exporter = Exporter { global: Arc::clone(&global), origin, failed: false };
    let mut last: Option<Instant> = None;
    loop {
        let ending = tokio::select! {
            () = sleep(TICK) => false,
            _ = stopping.wait_for(|stop| *stop) => true,
        };
        let config = global.live.get();
        let telemetry = &config.telemetry;
        spans.wanted.store(telemetry.endpoint.is_some(), Ordering::Relaxed);
        let overflow = spans.overflow.swap(0, Ordering::Relaxed);
        if overflow > 0 {
            global.metrics.add(&names::OTLP_DROPPED, &["queue".into()], overflow);
        }
        if let Some(endpoint) = &telemetry.endpoint {
            exporter.spans(endpoint, &mut inbox).await;
            if ending || last.is_none_or(|last| last.elapsed() >= telemetry.interval) {
                last = Some(Instant::now());
                exporter.metrics(endpoint).await;
            }
        }
        if ending {
            return;
        }
    }
}

struct Exporter {
    global: Arc<Global>,
    origin: Origin,
    /// The last attempt did; said once.
    failed: bool,
}

impl Exporter {
    async fn spans(&mut self, endpoint: &Endpoint, inbox: &mut mpsc::Receiver<Ended>) {
        let clock = Clock(Instant::now(), SystemTime::now());
        loop {
            let mut batch = Vec::new();
            while batch.len() < MOST_IN_BATCH
                && let Ok(ended) = inbox.try_recv()
            {
                batch.push(ended.transaction(&clock));
            }
            if batch.is_empty() {
                return;
            }
            let body = otlp::spans(&batch, &self.origin);
            let full = batch.len() == MOST_IN_BATCH;
            if !self.send(endpoint, "/v1/traces", body).await {
                let lost = batch.len() as u64;
                self.global.metrics.add(&names::OTLP_DROPPED, &["export".into()], lost);
                return;
            }
            if !full {
                return;
            }
        }
    }

    async fn metrics(&mut self, endpoint: &Endpoint) {
        operator::collect(Arc::clone(&self.global)).await;
        let body = otlp::metrics(&self.global.metrics.families(), &self.origin, SystemTime::now());
        self.send(endpoint, "/v1/metrics", body).await;
    }

    /// `false`: it did not arrive.
    async fn send(&mut self, endpoint: &Endpoint, path: &str, body: Vec<u8>) -> bool {
        let sent = timeout(PATIENCE, post(endpoint, path, body)).await;
        let sent = sent.unwrap_or_else(|_| Err("it does not answer".to_owned()));
        match (&sent, self.failed) {
            (Err(why), false) => tracing::warn!(path, why, "telemetry.otlp_endpoint takes nothing"),
            (Ok(()), true) => tracing::info!(path, "telemetry.otlp_endpoint takes again"),
            (Err(_), true) | (Ok(()), false) => {}
        }
        self.failed = sent.is_err();
        sent.is_ok()
    }
}

async fn post(endpoint: &Endpoint, path: &str, body: Vec<u8>) -> Result<(), String> {
    let Endpoint { authority, base } = endpoint;
    let said = |e: hyper::Error| e.to_string();
    let stream = TcpStream::connect(authority.as_str()).await.map_err(|e| e.to_string())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(said)?;
    let request = Request::post(format!("{base}{path}"))
        .header(header::HOST, authority)
        .header(header::CONTENT_TYPE, "application/x-protobuf")
        .header(header::USER_AGENT, concat!("crossfade/", env!("CARGO_PKG_VERSION")))
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| e.to_string())?;
    let answer = async {
        let answer = sender.send_request(request).await.map_err(said)?;
        let status = answer.status();
        if status.is_success() { Ok(()) } else { Err(format!("HTTP {status}")) }
    };
    tokio::select! {
        // The connection is driven here: it ends with this.
        biased;
        answer = answer => answer,
        ended = connection => Err(ended.err().map_or_else(|| "it hung up".to_owned(), |e| e.to_string())),
    }
}

/// Spans that wait for their export; more are dropped and counted.
const MOST_QUEUED: usize = 32_768;
const MOST_IN_BATCH: usize = 2_048;
const TICK: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(5);
const LAST_WORDS: Duration = Duration::from_secs(2);
