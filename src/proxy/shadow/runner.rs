//! The thread that executes reads a second time, and looks again at what differed.

use std::{
    cell::Cell,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    runtime::LocalOptions,
    sync::{Notify, mpsc, watch},
    task::spawn_local,
    time::sleep,
};

use super::{
    Job,
    evidence::Done,
    execute::{Lost, execute},
    tap::by_chance,
};
use crate::{
    Side,
    compare::{
        Quick,
        digest::Digest,
        order::{Found, compare},
        quick,
        record::{Focus, Profile, Recorder},
    },
    proxy::{global::Global, mirror::Seen, shard::Shard, thread::Background},
    route::policy::Mode,
    shadow::{
        Outcome, Why,
        recheck::{Follower, Schedule, Step, Suspicion},
    },
};

/// Starts the thread.
pub(in crate::proxy) fn start(global: &Arc<Global>) -> std::io::Result<Background> {
    let global = Arc::clone(global);
    Background::start("shadow", move |stopped| {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
        runtime.expect("a runtime can be made").block_on(serve(global, stopped));
    })
}

async fn serve(global: Arc<Global>, mut stopped: watch::Receiver<bool>) {
    let index = global.shards().len(); // one that no data thread has
    let runner = Rc::new(Runner {
        shard: Shard::new(index, Arc::clone(&global)),
        busy: Cell::new(0),
        suspicions: Cell::new(0),
        freed: Notify::new(),
    });
    let sweeper = spawn_local(Rc::clone(&runner.shard).sweep());
    let keeper = spawn_local(super::evidence::keep(Arc::clone(&global)));
    if let Some(inbox) = global.shadow.take_inbox() {
        tokio::select! {
            () = Rc::clone(&runner).receive(inbox) => {}
            _ = stopped.wait_for(|stop| *stop) => {}
        }
    }
    sweeper.abort();
    keeper.abort();
    global.shadow.save(&global.live.get());
    runner.shard.drop_idle();
    let closed = async {
        while runner.shard.closing() > 0 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), closed).await;
}

struct Runner {
    shard: Rc<Shard>,
    /// First executions under way.
    busy: Cell<usize>,
    /// Reads that are looked at again.
    suspicions: Cell<usize>,
    freed: Notify,
}

/// Counts one more, until it is dropped.
struct Held<'a>(&'a Cell<usize>, &'a Notify);

impl<'a> Held<'a> {
    fn new(count: &'a Cell<usize>, freed: &'a Notify) -> Self {
        count.set(count.get() + 1);
        Self(count, freed)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
        self.1.notify_one();
    }
}

impl Runner {
    async fn receive(self: Rc<Self>, mut inbox: mpsc::Receiver<Box<Job>>) {
        let mut rate = Rate::new();
        while let Some(job) = inbox.recv().await {
            let state = &self.shard.global.shadow;
            let current = self.shard.current();
            let shadow = &current.config.shadow;
            // Suspicions hold back what is new, rather than be dropped: that would make the rates look better than they are.
            while self.busy.get() >= shadow.connections || self.suspicions.get() >= MOST_SUSPICIONS {
                self.freed.notified().await;
            }
            state.taken(&job);
            if job.queued.elapsed() > shadow.expire {
                state.dropped("expired");
            } else if !rate.allows(shadow.max_per_second, Instant::now()) {
                state.dropped("rate");
            } else {
                let runner = Rc::clone(&self);
                spawn_local(async move { runner.one(&job).await });
            }
        }
    }

    /// The second execution, and what follows from it.
    async fn one(&self, job: &Job) {
        let state = &self.shard.global.shadow;
        let other = job.answering.other();
        let held = Held::new(&self.busy, &self.freed);
        let mut digest = Digest::new(state.seed);
        let took = match execute(&self.shard, job, other, &mut digest).await {
            Ok(took) => took,
            Err(lost) => return state.dropped(lost.name()),
        };
        drop(held);
        let summary = digest.finish();
        if summary.sqlstate.is_some_and(by_chance) {
            return state.dropped("failed");
        }
        let mut sqlstate = [None; 2];
        sqlstate[job.answering.index()] = job.summary.sqlstate;
        sqlstate[other.index()] = summary.sqlstate;
        let outcome = match quick(&job.summary, &summary, job.total_order) {
            Quick::Match => Outcome::Match,
            Quick::OrderOnly => Outcome::OrderOnly,
            Quick::Unfit(unfit) => Outcome::Indeterminate(Why::Unfit(unfit)),
            Quick::Suspicion => self.suspect(job).await,
        };
        let mut latency = [took; 2];
        latency[job.answering.index()] = job.took;
        state.done(&Done { job, latency, sqlstate, outcome });
    }

    /// Both sides are asked again until it is known what the difference was.
    async fn suspect(&self, job: &Job) -> Outcome {
        let _held = Held::new(&self.suspicions, &self.freed);
        let state = &self.shard.global.shadow;
        let rules = &job.config.shadow.repositories[job.repository].rules;
        let answered = state.now().saturating_sub(job.queued.elapsed());
        let mut last = None;
        let (mut suspicion, mut step) = Suspicion::new(Schedule::default(), job.determinate, answered);
        loop {
            step = match step {
                Step::Done(outcome) => return outcome,
                Step::Look(wait, focus) => {
                    sleep(wait).await;
                    let (behind, before) = (self.behind(job), self.gaps(job));
                    let (answering, shadow) = tokio::join!(
                        self.record(job, job.answering, focus.clone()),
                        self.record(job, job.answering.other(), focus)
                    );
                    match (answering, shadow) {
                        (Ok(answering), Ok(shadow)) => {
                            let found = compare(&answering, &shadow, job.total_order, rules);
                            let follower = self.follower(job, behind, &before, last.replace(before.at()));
                            suspicion.look(found, follower, state.now())
                        }
                        (Err(Lost::Large), _) | (_, Err(Lost::Large)) => {
                            return Outcome::Indeterminate(Why::Unfit(crate::compare::Unfit::Large));
                        }
                        (Err(_), _) | (_, Err(_)) => suspicion.unanswered(),
                    }
                }
                Step::Twice(focus) => {
                    let first = self.record(job, job.answering, focus.clone()).await;
                    let second = self.record(job, job.answering, focus).await;
                    let within = match (&first, &second) {
                        (Ok(first), Ok(second)) => compare(first, second, job.total_order, rules),
                        (Err(_), _) | (_, Err(_)) => Found::Same,
                    };
                    let now = state.now();
                    let mut noise = state.noise();
                    return suspicion.noise(&within, job.fingerprint, &job.key, &mut noise, now);
                }
            };
        }
    }

    async fn record(&self, job: &Job, side: Side, focus: Option<Focus>) -> Result<Profile, Lost> {
        let rules = &job.config.shadow.repositories[job.repository].rules;
        let mut recorder = Recorder::new(rules, &job.key, focus, KEPT, self.shard.global.shadow.seed);
        execute(&self.shard, job, side, &mut recorder).await?;
        let profile = recorder.finish();
        if profile.sqlstate().is_some_and(by_chance) { Err(Lost::Refused) } else { Ok(profile) }
    }

    /// What the follower was since then; `last`: when both sides were asked before.
    fn follower(&self, job: &Job, behind: bool, since: &Seen, last: Option<Instant>) -> Follower {
        if behind || self.behind(job) { Follower::Behind } else { since.until(&self.gaps(job), last) }
    }

    /// Mirrored transactions of what it reads, between their two COMMITs.
    fn gaps(&self, job: &Job) -> Seen {
        let names = job.config.policy.of(job.reads).map(|(_, r)| r.name.as_str());
        self.shard.global.mirror.gaps.see(names, Instant::now())
    }

    /// Is the follower of what it reads known to lack writes, or not known to have them?
    fn behind(&self, job: &Job) -> bool {
        let status = &self.shard.global.mirrored.status;
        job.config.policy.of(job.reads).any(|(_, r)| {
            let unclean =
                |lead: Side| r.writes.allows(lead) && !status.is_clean(&r.name, lead, Instant::now());
            r.mirror.mode != Mode::Off && Side::BOTH.into_iter().any(unclean)
        })
    }
}

/// So many a second, and no more saved up than a tenth of that.
struct Rate {
    tokens: f64,
    at: Instant,
}

impl Rate {
    fn new() -> Self {
        Self { tokens: 0.0, at: Instant::now() }
    }

    fn allows(&mut self, per_second: usize, now: Instant) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "at most ten million")]
        let per_second = per_second as f64;
        let most = (per_second / 10.0).max(1.0);
        self.tokens = (self.tokens + per_second * (now - self.at).as_secs_f64()).min(most);
        self.at = now;
        let allowed = self.tokens >= 1.0;
        self.tokens -= f64::from(u8::from(allowed));
        allowed
    }
}

/// Reads that are looked at again at the same time.
const MOST_SUSPICIONS: usize = 200;
/// Bytes of rows that are kept of one answer.
const KEPT: usize = 2 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept() {
        let mut rate = Rate::new();
        let begin = rate.at;
        let allowed = (0..10_000).filter(|ms| rate.allows(100, begin + Duration::from_millis(*ms))).count();
        assert!((990..=1_010).contains(&allowed), "{allowed}");
        let burst = (0..1_000).filter(|_| rate.allows(100, begin + Duration::from_secs(60))).count();
        assert!(burst <= 11, "{burst}");
    }
}
