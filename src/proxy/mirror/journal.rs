//! What mirroring does beside the clients: journal to follower, transactions in doubt, looks. In every instance, on a
//! thread of its own, also without any client.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::JoinSet, time::sleep};

use super::{
    background::managers,
    lead::{self, Leads},
    mover,
    waits::{self, Waits},
};
use crate::{
    Side,
    admin::console_rows::{InDoubtRow, JournalRow},
    config::{Backend, Config, Mirror},
    mirror::{
        recovery::Recoverer,
        repair::{Repairer, Round, Settings},
        session::Error,
        status::Status,
        tables::Published,
        watch::Watcher,
    },
    proxy::{global::Global, thread::Background},
    report::metrics as names,
};

/// What is known of mirrored repositories: for the data threads, metrics and people.
#[derive(Clone, Debug, Default)]
pub(in crate::proxy) struct Mirrored {
    pub(in crate::proxy) tables: Arc<Published>,
    pub(in crate::proxy) status: Arc<Status>,
    pub(in crate::proxy) leads: Arc<Leads>,
    pub(super) waits: Arc<Waits>,
}

/// Starts the thread. When it is stopped its tasks end where they wait; the servers roll back what was open.
pub(in crate::proxy) fn start(global: &Arc<Global>) -> std::io::Result<Background> {
    let global = Arc::downgrade(global);
    Background::start("mirror", move |stopped| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime can be made").block_on(supervise(global, stopped));
    })
}

/// Runs the tasks while any repository is mirrored, and starts them again when what they go by is another.
async fn supervise(global: Weak<Global>, mut stopped: watch::Receiver<bool>) {
    let mut running: Option<(Key, JoinSet<()>)> = None;
    loop {
        let Some(strong) = global.upgrade() else { return };
        let config = strong.live.get();
        let wanted = config.policy.mirrors().then(|| Key::of(&config));
        if running.as_ref().map(|(key, _)| key) != wanted.as_ref() {
            running = None;
            if let Some(key) = wanted {
                match tasks(&strong, &config) {
                    Ok(tasks) => running = Some((key, tasks)),
                    Err(error) => tracing::error!(%error, "journals are not looked at"),
                }
            } else {
                for side in Side::BOTH {
                    strong.mirrored.status.repairer(side, "off");
                    strong.mirrored.status.depth(side, None);
                }
            }
        }
        drop(strong);
        tokio::select! {
            () = sleep(SUPERVISE) => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
    }
}

/// What the tasks go by.
#[derive(Eq, PartialEq)]
struct Key {
    backends: [Backend; 2],
    mirror: Mirror,
}

impl Key {
    fn of(config: &Config) -> Self {
        Self { backends: config.backends.clone(), mirror: config.mirror }
    }
}

fn tasks(global: &Arc<Global>, config: &Config) -> Result<JoinSet<()>, crate::backend::control::Error> {
    let managers = managers(config)?;
    let Mirror { journal_grace: grace, lock_timeout, apply_timeout: patience, .. } = config.mirror;
    let settings = Settings { grace, lock_timeout, patience };
    let (mirrored, global) = (&global.mirrored, Arc::downgrade(global));
    let mut tasks = JoinSet::new();
    tasks.spawn(mover::move_leads(Weak::clone(&global), managers.clone(), patience));
    let limits = (config.mirror.deadlock_after, patience);
    tasks.spawn(waits::watch(Weak::clone(&global), managers.clone(), limits));
    for side in Side::BOTH {
        let (tables, status) = (Arc::clone(&mirrored.tables), Arc::clone(&mirrored.status));
        let manager = managers[side.index()].clone();
        tasks.spawn(lead::look(Weak::clone(&global), side, manager.clone(), patience));
        let watcher =
            Watcher::new(side, manager, (patience, grace), Arc::clone(&tables), Arc::clone(&status));
        tasks.spawn(watch_journal(side, watcher));
        let recoverer = Recoverer::new(side, managers.clone(), patience, Arc::clone(&status));
        tasks.spawn(recover(side, recoverer, Arc::clone(&mirrored.waits)));
        let repairer = Repairer::new(side, managers.clone(), settings, tables, Arc::clone(&status));
        tasks.spawn(repair(side, repairer, status));
    }
    Ok(tasks)
}

/// Often while there is work, seldom while there is none.
async fn repair(side: Side, mut repairer: Repairer, status: Arc<Status>) {
    let mut wait = BUSY;
    let mut log = Quiet::default();
    loop {
        match repairer.round().await {
            Ok(Round::Worked(_, done)) => {
                status.repairer(side, "shipping");
                // Rows that stay are not in the way of the next ones, but there is no hurry either.
                wait = if done > 0 { Duration::ZERO } else { BUSY };
            }
            Ok(Round::Idle) => {
                status.repairer(side, "idle");
                wait = (wait * 2).clamp(BUSY, IDLE);
            }
            Ok(Round::Elsewhere) => {
                status.repairer(side, "elsewhere");
                wait = IDLE;
            }
            Err(error) => {
                log.say(&error, || tracing::warn!(journal = %side, %error, "the journal cannot be shipped"));
                wait = (wait * 2).clamp(IDLE / 2, FAILED);
                sleep(jitter(wait)).await;
                continue;
            }
        }
        if log.over() {
            tracing::info!(journal = %side, "the journal is shipped again");
        }
        // A task that is always ready would starve the others.
        if wait.is_zero() {
            tokio::task::yield_now().await;
        } else {
            sleep(jitter(wait)).await;
        }
    }
}

async fn recover(side: Side, mut recoverer: Recoverer, waits: Arc<Waits>) {
    let mut log = Quiet::default();
    loop {
        match recoverer.round().await {
            Ok(_) => drop(log.over()),
            Err(error) => {
                log.say(
                    &error,
                    || tracing::warn!(%side, %error, "transactions in doubt cannot be looked at"),
                );
                sleep(jitter(IDLE)).await;
            }
        }
        tokio::select! {
            () = sleep(jitter(RECOVERY)) => {}
            () = waits.kicked(side) => {}
        }
    }
}

async fn watch_journal(side: Side, mut watcher: Watcher) {
    let mut log = Quiet::default();
    loop {
        match watcher.round().await {
            Ok(()) => drop(log.over()),
            Err(error) => {
                log.say(
                    &error,
                    || tracing::warn!(journal = %side, %error, "the journal cannot be looked at"),
                );
                sleep(jitter(IDLE)).await;
            }
        }
        sleep(jitter(LOOK)).await;
    }
}

/// Says the same thing once a minute.
#[derive(Default)]
struct Quiet(Option<(&'static str, Instant)>);

impl Quiet {
    fn say(&mut self, error: &Error, log: impl FnOnce()) {
        let reason = error.reason();
        if self.0.is_none_or(|(last, at)| last != reason || at.elapsed() > AGAIN) {
            log();
            self.0 = Some((reason, Instant::now()));
        }
    }

    /// It works. True when it had not.
    fn over(&mut self) -> bool {
        self.0.take().is_some()
    }
}

/// A quarter more or less: instances must not march in step.
pub(super) fn jitter(wait: Duration) -> Duration {
    let mut byte = [128];
    let _ = getrandom::fill(&mut byte);
    wait.mul_f64(0.75 + f64::from(byte[0]) / 512.0)
}

/// Sets the gauges and counters of mirroring.
pub(in crate::proxy) fn collect(global: &Global) {
    let metrics = &global.metrics;
    let state = global.mirrored.status.state();
    let (mut rows, mut oldest, mut dirty, mut held) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut doubts, mut doubt_age, mut stuck) = (Vec::new(), Vec::new(), Vec::new());
    for side in Side::BOTH {
        let (journal, in_doubt) = (&state.journals[side.index()], &state.in_doubt[side.index()]);
        let label = || vec![side.into()];
        if let Some(count) = journal.rows {
            rows.push((label(), crate::proxy::stats::approximate(count)));
            dirty.push((label(), crate::proxy::stats::approximate(journal.dirty)));
            oldest.push((label(), journal.oldest.as_secs_f64()));
            held.push((label(), crate::proxy::stats::approximate(journal.held.len() as u64)));
            doubts.push((label(), crate::proxy::stats::approximate(in_doubt.len() as u64)));
            let age = in_doubt.iter().map(|d| d.age).max().unwrap_or_default();
            doubt_age.push((label(), age.as_secs_f64()));
            let n = in_doubt.iter().filter(|d| d.stuck).count();
            stuck.push((label(), crate::proxy::stats::approximate(n as u64)));
        }
        metrics.set(&names::REPAIRED_KEYS, &[side.into()], journal.repaired);
        metrics.set(&names::JOURNAL_EMPTIED, &[side.into()], journal.emptied);
    }
    metrics.replace(&names::JOURNAL_ROWS, rows);
    metrics.replace(&names::JOURNAL_DIRTY, dirty);
    metrics.replace(&names::JOURNAL_OLDEST, oldest);
    metrics.replace(&names::JOURNAL_HELD, held);
    metrics.replace(&names::IN_DOUBT, doubts);
    metrics.replace(&names::IN_DOUBT_OLDEST, doubt_age);
    metrics.replace(&names::IN_DOUBT_STUCK, stuck);
    for (reason, n) in state.errors {
        metrics.set(&names::REPAIR_ERRORS, &[reason.into()], n);
    }
    for (outcome, n) in state.recovered {
        metrics.set(&names::RECOVERED, &[outcome.into()], n);
    }
    lead::collect(global);
    let waits = &global.mirrored.waits;
    for (outcome, n) in waits.deadlocks().into_iter().filter(|(_, n)| *n > 0) {
        metrics.set(&names::DEADLOCKS, &[outcome.into()], n);
    }
    for side in Side::BOTH.into_iter().filter(|side| waits.in_doubt(*side) > 0) {
        metrics.set(&names::IN_DOUBT_WAITS, &[side.into()], waits.in_doubt(side));
    }
}

/// SHOW JOURNAL
pub(in crate::proxy) fn journal_rows(mirrored: &Mirrored) -> Vec<JournalRow> {
    let (state, now) = (mirrored.status.state(), Instant::now());
    let mut rows = Vec::new();
    for side in Side::BOTH {
        let journal = &state.journals[side.index()];
        rows.push(JournalRow {
            backend: Some(side),
            rows: journal.rows,
            dirty: journal.rows.map(|_| journal.dirty),
            oldest_seconds: journal.rows.map(|_| journal.oldest.as_secs_f64()),
            repairer: Some(journal.repairer.to_owned()),
            repaired: Some(journal.repaired),
            per_second: Some(journal.per_second(now)),
            reason: journal.error.clone(),
            ..JournalRow::default()
        });
        rows.extend(journal.held.iter().map(|held| JournalRow {
            backend: Some(side),
            id: u64::try_from(held.id).ok(),
            attempts: Some(u64::from(held.attempts)),
            retry_seconds: Some(held.until.saturating_duration_since(now).as_secs_f64()),
            reason: Some(held.reason.clone()),
            ..JournalRow::default()
        }));
    }
    rows
}

/// `SHOW IN_DOUBT`
pub(in crate::proxy) fn in_doubt_rows(mirrored: &Mirrored) -> Vec<InDoubtRow> {
    let state = mirrored.status.state();
    let of = |side: Side| {
        state.in_doubt[side.index()].iter().map(move |d| InDoubtRow {
            backend: side,
            gid: d.gid.clone(),
            age_seconds: d.age.as_secs_f64(),
            stuck: d.stuck,
            verdict: d.verdict.clone(),
        })
    };
    Side::BOTH.into_iter().flat_map(of).collect()
}

const SUPERVISE: Duration = Duration::from_millis(100);
const BUSY: Duration = Duration::from_millis(20);
const IDLE: Duration = Duration::from_millis(250);
const FAILED: Duration = Duration::from_secs(2);
const RECOVERY: Duration = Duration::from_millis(100);
const LOOK: Duration = Duration::from_millis(100);
const AGAIN: Duration = Duration::from_secs(60);
