//! What is counted on the way, and where outcomes go: metrics, the console, a file.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::Job;
use crate::{
    Side,
    admin::{
        console_rows::ShadowRow,
        snapshot::{Coverage, Divergence, Figures, QueryRow},
    },
    config::Config,
    proxy::{
        global::Global,
        stats::{approximate, unix_now},
    },
    report::{
        divergence::{Book, Comparison, Limits, Writes},
        metrics::{self as names, Value},
    },
    shadow::{Outcome, eligible::Skip, noise::Noise},
    statement,
};

/// Shared by all threads.
pub(in crate::proxy) struct State {
    /// Of the digests.
    pub(super) seed: u64,
    began: Instant,
    jobs: mpsc::Sender<Box<Job>>,
    inbox: Mutex<Option<mpsc::Receiver<Box<Job>>>>,
    pending: AtomicUsize,
    pending_bytes: AtomicUsize,
    counts: Mutex<Counts>,
    noise: Mutex<Noise>,
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Counts {
    repositories: BTreeMap<String, Reads>,
    dropped: BTreeMap<&'static str, u64>,
}

/// Reads of one repository.
#[derive(Clone, Copy, Debug, Default)]
struct Reads {
    eligible: u64,
    sampled: u64,
    skipped: [u64; Skip::ALL.len()],
}

/// A comparison that has come to its end.
pub(super) struct Done<'a> {
    pub(super) job: &'a Job,
    /// By [`Side::index`].
    pub(super) latency: [Duration; 2],
    /// By [`Side::index`].
    pub(super) sqlstate: [Option<[u8; 5]>; 2],
    pub(super) outcome: Outcome,
}

impl Default for State {
    fn default() -> Self {
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).expect("the system has randomness");
        let (jobs, inbox) = mpsc::channel(MOST_PENDING);
        Self {
            seed: u64::from_le_bytes(seed),
            began: Instant::now(),
            jobs,
            inbox: Mutex::new(Some(inbox)),
            pending: AtomicUsize::new(0),
            pending_bytes: AtomicUsize::new(0),
            counts: Mutex::default(),
            noise: Mutex::default(),
            book: Mutex::default(),
        }
    }
}

impl State {
    pub(super) fn take_inbox(&self) -> Option<mpsc::Receiver<Box<Job>>> {
        lock(&self.inbox).take()
    }

    /// On this process's own clock.
    pub(super) fn now(&self) -> Duration {
        self.began.elapsed() + HEAD_START
    }

    pub(super) fn noise(&self) -> MutexGuard<'_, Noise> {
        lock(&self.noise)
    }

    /// A read that may be executed twice.
    pub(super) fn eligible(&self, repository: &str, sampled: bool) {
        self.count(repository, |reads| {
            reads.eligible += 1;
            reads.sampled += u64::from(sampled);
        });
    }

    /// A read that may not.
    pub(super) fn skipped(&self, repository: &str, skip: Skip) {
        let index = Skip::ALL.iter().position(|s| *s == skip).expect("all are in the list");
        self.count(repository, |reads| reads.skipped[index] += 1);
    }

    fn count(&self, repository: &str, f: impl FnOnce(&mut Reads)) {
        let mut counts = lock(&self.counts);
        match counts.repositories.get_mut(repository) {
            Some(reads) => f(reads),
            None => f(counts.repositories.entry(repository.to_owned()).or_default()),
        }
    }

    /// A sampled read that is not compared after all.
    pub(super) fn dropped(&self, reason: &'static str) {
        *lock(&self.counts).dropped.entry(reason).or_default() += 1;
    }

    /// To the other thread, unless too many wait there.
    pub(super) fn hand_over(&self, job: Box<Job>) {
        let bytes = job.bytes();
        let most = job.config.shadow.queue;
        let room = self.pending.load(Ordering::Relaxed) < most
            && self.pending_bytes.load(Ordering::Relaxed) + bytes <= MOST_BYTES;
        if !room {
            return self.dropped("queue");
        }
        self.pending.fetch_add(1, Ordering::Relaxed);
        self.pending_bytes.fetch_add(bytes, Ordering::Relaxed);
        if let Err(mpsc::error::TrySendError::Full(job) | mpsc::error::TrySendError::Closed(job)) =
            self.jobs.try_send(job)
        {
            self.taken(&job);
            self.dropped("queue");
        }
    }

    /// It waits no more.
    pub(super) fn taken(&self, job: &Job) {
        self.pending.fetch_sub(1, Ordering::Relaxed);
        self.pending_bytes.fetch_sub(job.bytes(), Ordering::Relaxed);
    }

    /// Notes the outcome.
    pub(super) fn done(&self, done: &Done<'_>) {
        let Done { job, latency, sqlstate, outcome } = done;
        if let Outcome::Divergence(differences) = outcome {
            let classes: Vec<&str> = differences.iter().map(|d| d.class.name()).take(5).collect();
            tracing::debug!(
                repository = job.name(),
                fingerprint = job.fingerprint,
                ?classes,
                "the sides differ"
            );
        }
        let limits = Limits { values: job.config.shadow.values, ..Limits::default() };
        let mut book = lock(&self.book);
        let known =
            book.repositories.get(job.name()).is_some_and(|r| r.queries.contains_key(&job.fingerprint));
        let text = || statement::without_constants(std::str::from_utf8(&job.sql).ok()?);
        let sql = if known { None } else { text() };
        let comparison = Comparison {
            repository: job.name(),
            fingerprint: job.fingerprint,
            sql: sql.as_deref().unwrap_or_default(),
            application: &job.application,
            answering: job.answering,
            latency: *latency,
            sqlstate: *sqlstate,
            outcome,
            now: unix_now(),
        };
        book.record(&comparison, &limits);
    }

    /// A mirrored transaction met the rows of a repository on the follower, or others than it should.
    pub(in crate::proxy) fn wrote(&self, repository: &str, differed: bool) {
        lock(&self.book).record_write(repository, differed);
    }

    /// Lets `f` look at the evidence; what is found meanwhile waits.
    pub(in crate::proxy) fn look<R>(&self, f: impl FnOnce(&Book) -> R) -> R {
        f(&lock(&self.book))
    }

    /// Forgets what was found about a repository.
    pub(in crate::proxy) fn forget(&self, repository: &str) {
        lock(&self.book).forget(Some(repository));
    }

    /// Reads that wait for their second execution.
    pub(in crate::proxy) fn pending(&self) -> usize {
        self.pending.load(Ordering::Relaxed)
    }

    /// Sampled reads that were not compared, by reason.
    pub(in crate::proxy) fn drops(&self) -> BTreeMap<String, u64> {
        lock(&self.counts).dropped.iter().map(|(&reason, &n)| (reason.to_owned(), n)).collect()
    }

    /// Reads of one repository.
    pub(in crate::proxy) fn coverage(&self, repository: &str) -> Coverage {
        let reads = lock(&self.counts).repositories.get(repository).copied().unwrap_or_default();
        let skipped = Skip::ALL.iter().zip(reads.skipped).filter(|(_, n)| *n > 0);
        Coverage {
            eligible: reads.eligible,
            sampled: reads.sampled,
            skipped: skipped.map(|(skip, n)| (skip.name().to_owned(), n)).collect(),
        }
    }

    /// Takes over what an earlier process had found.
    fn load(&self, path: &Path) {
        match std::fs::read(path) {
            Ok(text) => match Book::from_json(&text) {
                Ok(book) => *lock(&self.book) = book,
                Err(error) => {
                    tracing::warn!(%error, "shadow.evidence is not what an earlier run wrote: it begins anew");
                }
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, "shadow.evidence cannot be read: it begins anew"),
        }
    }

    /// Writes the evidence to its file, whole or not at all.
    pub(in crate::proxy) fn save(&self, config: &Config) {
        let Some(path) = &config.shadow.evidence else { return };
        let book = lock(&self.book).clone();
        let new = path.with_extension("new");
        let written = book.to_json().map_err(std::io::Error::other).and_then(|text| {
            std::fs::write(&new, text)?;
            std::fs::rename(&new, path)
        });
        if let Err(error) = written {
            tracing::warn!(%error, "shadow.evidence cannot be written");
        }
    }
}

/// Loads the evidence, and writes it now and then.
pub(super) async fn keep(global: Arc<Global>) {
    let Some(path) = global.live.get().shadow.evidence.clone() else { return };
    global.shadow.load(&path);
    loop {
        tokio::time::sleep(KEEP).await;
        let global = Arc::clone(&global);
        let _ = tokio::task::spawn_blocking(move || global.shadow.save(&global.live.get())).await;
    }
}

/// Sets the counters and gauges of shadow reads.
pub(in crate::proxy) fn collect(global: &Global) {
    let (state, metrics) = (&global.shadow, &global.metrics);
    metrics.gauge(&names::SHADOW_QUEUE, &[], approximate(state.pending.load(Ordering::Relaxed) as u64));
    {
        let counts = lock(&state.counts);
        for (name, reads) in &counts.repositories {
            let name = Value::Configured(name);
            metrics.set(&names::SHADOW_READS, &[name, "eligible".into()], reads.eligible);
            metrics.set(&names::SHADOW_READS, &[name, "sampled".into()], reads.sampled);
            for (skip, &n) in Skip::ALL.iter().zip(&reads.skipped).filter(|(_, n)| **n > 0) {
                metrics.set(&names::SHADOW_SKIPPED, &[name, skip.name().into()], n);
            }
        }
        for (&reason, &n) in &counts.dropped {
            metrics.set(&names::SHADOW_DROPPED, &[reason.into()], n);
        }
    }
    let (mut rates, mut latencies, mut deltas) = (Vec::new(), Vec::new(), Vec::new());
    let (mut outcomes, mut classes) = (Vec::new(), Vec::new());
    let book = lock(&state.book);
    for (name, repository) in &book.repositories {
        let Writes { compared, differed } = repository.writes;
        for (outcome, n) in [("equal", compared - differed), ("different", differed)] {
            if compared > 0 {
                metrics.set(&names::MIRROR_WRITES_COMPARED, &[Value::Configured(name), outcome.into()], n);
            }
        }
        let all = &repository.all;
        if all.comparisons() == 0 {
            continue;
        }
        for (outcome, &n) in Outcome::NAMES.iter().zip(&all.outcomes) {
            outcomes.push((vec![Value::Configured(name), (*outcome).into()], n));
        }
        for (class, &n) in &all.classes {
            classes.push((vec![Value::Configured(name), class.name().into()], n));
        }
        if let Some((_, upper)) = all.rate() {
            rates.push((vec![Value::Configured(name)], upper));
        }
        for side in Side::BOTH {
            let labels = vec![Value::Configured(name), side.into()];
            latencies.push((labels, all.latency[side.index()].distribution()));
        }
        deltas.push((vec![Value::Configured(name)], all.delta.distribution()));
    }
    // What is forgotten is gone here too.
    metrics.renew(&names::SHADOW_OUTCOMES, outcomes);
    metrics.renew(&names::SHADOW_DIVERGENCES, classes);
    metrics.replace(&names::SHADOW_RATE_BOUND, rates);
    metrics.renew_histogram(&names::SHADOW_LATENCY, latencies);
    metrics.renew_histogram(&names::SHADOW_DELTA, deltas);
}

/// SHOW SHADOW
pub(in crate::proxy) fn shadow_rows(global: &Global) -> Vec<ShadowRow> {
    let config = global.live.get();
    let (counts, book) = (lock(&global.shadow.counts), lock(&global.shadow.book));
    let row = |(repository, shadowed): (&crate::route::policy::Repository, &crate::config::Shadowed)| {
        let reads = counts.repositories.get(&repository.name).copied().unwrap_or_default();
        let found = book.repositories.get(&repository.name);
        let skipped = Skip::ALL.iter().zip(reads.skipped).filter(|(_, n)| *n > 0);
        let applications = found.map(|r| r.applications.iter().collect::<Vec<_>>()).unwrap_or_default();
        let all = ShadowRow {
            repository: repository.name.clone(),
            share: Some(shadowed.share.fraction()),
            eligible: Some(reads.eligible),
            sampled: Some(reads.sampled),
            skipped: skipped.map(|(skip, n)| format!("{} {n}", skip.name())).collect::<Vec<_>>().join(", "),
            stats: found.map(|r| Figures::of(&r.all, false)).unwrap_or_default(),
            writes: found.map(|r| r.writes),
            ..ShadowRow::default()
        };
        let by_application = applications.into_iter().map(|(application, stats)| ShadowRow {
            repository: repository.name.clone(),
            application: Some(application.clone()),
            stats: Figures::of(stats, false),
            ..ShadowRow::default()
        });
        std::iter::once(all).chain(by_application).collect::<Vec<_>>()
    };
    let repositories = config.policy.repositories.iter().zip(&config.shadow.repositories);
    let mut rows: Vec<ShadowRow> = repositories.skip(1).flat_map(row).collect();
    let dropped = counts.dropped.iter().map(|(reason, n)| ShadowRow {
        repository: "dropped".to_owned(),
        skipped: format!("{reason} {n}"),
        ..ShadowRow::default()
    });
    rows.extend(dropped);
    rows
}

/// SHOW QUERIES: most divergences first, then the slowest of the target.
pub(in crate::proxy) fn query_rows(global: &Global) -> Vec<QueryRow> {
    let book = lock(&global.shadow.book);
    let row = |(name, fingerprint, query)| QueryRow::of(name, fingerprint, query);
    let mut rows: Vec<QueryRow> = book.queries().map(row).collect();
    rows.sort_by(|a, b| {
        let divergent = |row: &QueryRow| row.stats.count("divergence");
        let slower = |row: &QueryRow| row.stats.delta_ms.p50.unwrap_or_default();
        divergent(b).cmp(&divergent(a)).then(slower(b).total_cmp(&slower(a)))
    });
    rows
}

/// SHOW DIVERGENCES: the newest first.
pub(in crate::proxy) fn divergence_rows(global: &Global) -> Vec<Divergence> {
    let book = lock(&global.shadow.book);
    let newest = book.newest(usize::MAX).into_iter();
    newest.map(|(name, fingerprint, query, s)| Divergence::of(name, fingerprint, query, s)).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `shadow.queue` is below this.
const MOST_PENDING: usize = 1_000_000;
/// Bytes of reads that wait.
const MOST_BYTES: usize = 64 << 20;
/// How often the evidence is written.
const KEEP: Duration = Duration::from_secs(10);
/// Learned noise has times; none of them is zero.
const HEAD_START: Duration = Duration::from_secs(1 << 20);
