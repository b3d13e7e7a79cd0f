//! Looks for transactions that wait for one another over both databases, and lets one of each circle give way.
//!
//! Nobody is asked anything while no mirrored transaction of this process has been at the same thing for
//! `mirror.deadlock_after`; then only for whom those wait, and for whom those do.

use std::{
    collections::BTreeSet,
    sync::{
        Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{sync::Notify, time::sleep};

use super::inflight::Seen;
use crate::{
    Side,
    backend::control::Manager,
    mirror::{
        deadlock::{Candidate, Graph, JOIN_CLASS, Process, Wait, victim},
        session::{Error, Session},
    },
    proxy::global::Global,
};

/// What was found so far, and who is to hear of it.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Waits {
    /// Circles broken by this process.
    broken: AtomicU64,
    /// Circles that another instance was left to break.
    elsewhere: AtomicU64,
    /// Looks that found somebody waiting for what is prepared, by side.
    in_doubt: [AtomicU64; 2],
    kicks: [Notify; 2],
}

impl Waits {
    /// Ends when somebody was found waiting for a transaction in doubt on `side`.
    pub(super) async fn kicked(&self, side: Side) {
        self.kicks[side.index()].notified().await;
    }

    fn kick(&self, side: Side) {
        self.in_doubt[side.index()].fetch_add(1, Ordering::Relaxed);
        self.kicks[side.index()].notify_one();
    }

    /// Circles by what became of them.
    pub(super) fn deadlocks(&self) -> [(&'static str, u64); 2] {
        [("broken", &self.broken), ("elsewhere", &self.elsewhere)]
            .map(|(o, n)| (o, n.load(Ordering::Relaxed)))
    }

    /// How often recovery was told to look on `side`.
    pub(super) fn in_doubt(&self, side: Side) -> u64 {
        self.in_doubt[side.index()].load(Ordering::Relaxed)
    }
}

/// Looks until it is dropped.
pub(super) async fn watch(
    global: Weak<Global>,
    managers: [Manager; 2],
    (limit, patience): (Duration, Duration),
) {
    let mut asker = Asker { managers, patience, sessions: [None, None] };
    let mut left: Option<(Instant, Vec<Wait>)> = None;
    loop {
        sleep((limit / 4).clamp(SHORTEST, LONGEST)).await;
        let Some(strong) = global.upgrade() else { return };
        let busy: Vec<Seen> =
            strong.on_every_shard(|shard| shard.busy_in_flight()).await.into_iter().flatten().collect();
        if !busy.iter().any(|seen| seen.unit.elapsed() >= limit) {
            continue;
        }
        let found = match asker.look(&busy, limit).await {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%error, "who waits for whom could not be looked up");
                asker.sessions = [None, None];
                continue;
            }
        };
        for side in Side::BOTH.into_iter().filter(|side| found.in_doubt[side.index()]) {
            strong.mirrored.waits.kick(side);
            tracing::debug!(%side, "somebody waits for a transaction in doubt");
        }
        let Some(circle) = found.circle else {
            left = None;
            continue;
        };
        let since = match left.take() {
            Some((since, waits)) if waits == circle.waits => Some(since),
            _ => None,
        };
        // When another instance does not break it, whoever of ours is the youngest gives way.
        let patient = since.is_none_or(|since| since.elapsed() < limit * OTHERS);
        if let Some(seen) = circle.own_victim(&busy, patient) {
            break_it(&strong, &circle, seen).await;
            continue;
        }
        if since.is_none() {
            strong.mirrored.waits.elsewhere.fetch_add(1, Ordering::Relaxed);
        }
        left = Some((since.unwrap_or_else(Instant::now), circle.waits));
    }
}

async fn break_it(global: &Global, circle: &Circle, victim: &Seen) {
    let (seen, why) = (victim.clone(), circle.why.clone());
    let told = global.on_every_shard(move |shard| shard.break_deadlock(&seen, &why)).await;
    if told.contains(&true) {
        global.mirrored.waits.broken.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(
            client = victim.client,
            waits = circle.why,
            "a deadlock over both databases: the youngest transaction gives way"
        );
    }
}

/// What a look has found.
struct Found {
    circle: Option<Circle>,
    /// Somebody waits for what is prepared there.
    in_doubt: [bool; 2],
}

/// A circle that was seen twice.
struct Circle {
    waits: Vec<Wait>,
    candidates: Vec<Candidate>,
    why: String,
}

impl Circle {
    /// The transaction of this process that is to give way. `patient`: not in the place of another instance's.
    fn own_victim<'a>(&self, busy: &'a [Seen], patient: bool) -> Option<&'a Seen> {
        let of = |candidate: &Candidate| busy.iter().find(|seen| seen.lead() == candidate.lead);
        if patient {
            return of(&victim(&self.candidates)?);
        }
        let own: Vec<_> = self.candidates.iter().filter(|c| of(c).is_some()).copied().collect();
        of(&victim(&own)?)
    }
}

/// The two servers.
struct Asker {
    managers: [Manager; 2],
    patience: Duration,
    /// Opened when first needed.
    sessions: [Option<Session>; 2],
}

impl Asker {
    async fn look(&mut self, busy: &[Seen], limit: Duration) -> Result<Found, Error> {
        for side in Side::BOTH {
            let session = &mut self.sessions[side.index()];
            if session.is_none() {
                *session = Some(Session::look(&self.managers[side.index()], side, self.patience).await?);
            }
        }
        let mut graph = Graph::default();
        let mut leads: BTreeSet<Process> = busy.iter().map(Seen::lead).collect();
        for seen in busy {
            graph.join(&seen.processes);
        }
        let mut late: Vec<&Seen> = busy.iter().filter(|seen| seen.unit.elapsed() >= limit).collect();
        late.sort_by_key(|seen| seen.unit);
        let mut asked = BTreeSet::new();
        let mut ask: BTreeSet<Process> = late.into_iter().flat_map(|s| s.processes.iter().copied()).collect();
        while !ask.is_empty() && asked.len() < MOST {
            let first = asked.is_empty();
            self.waits(&mut graph, &ask).await?;
            if first && !graph.is_empty() {
                self.joins(&mut graph, &mut leads).await?;
            }
            asked.append(&mut ask);
            ask = graph.concerned().difference(&asked).copied().collect();
        }
        let in_doubt = Side::BOTH.map(|side| graph.waits_in_doubt(side));
        let circle = match graph.circle() {
            Some(waits) => self.confirmed(&graph, waits, &leads).await?,
            None => None,
        };
        Ok(Found { circle, in_doubt })
    }

    fn session(&self, side: Side) -> &Session {
        self.sessions[side.index()].as_ref().expect("opened at the start of the look")
    }

    /// For whom these wait, at one moment after this call.
    async fn waits(&self, graph: &mut Graph, processes: &BTreeSet<Process>) -> Result<(), Error> {
        let one = async |side: Side| {
            let pids: Vec<i32> = processes.iter().filter(|p| p.side == side).map(|p| p.pid).collect();
            if pids.is_empty() { Ok(Vec::new()) } else { self.session(side).rows(BLOCKERS, &[&pids]).await }
        };
        let (source, target) = tokio::try_join!(one(Side::Source), one(Side::Target))?;
        for (side, rows) in Side::BOTH.into_iter().zip([source, target]) {
            for row in rows {
                graph.wait(Process { side, pid: row.get(0) }, row.get(1));
            }
        }
        Ok(())
    }

    /// Who works for whom, of every instance.
    async fn joins(&self, graph: &mut Graph, leads: &mut BTreeSet<Process>) -> Result<(), Error> {
        let one = async |side: Side| self.session(side).rows(JOINS, &[&i64::from(JOIN_CLASS)]).await;
        let (source, target) = tokio::try_join!(one(Side::Source), one(Side::Target))?;
        for (side, rows) in Side::BOTH.into_iter().zip([source, target]) {
            for row in rows {
                let lead = Process { side: side.other(), pid: row.get(1) };
                leads.insert(lead);
                graph.join(&[lead, Process { side, pid: row.get(0) }]);
            }
        }
        Ok(())
    }

    /// The two servers were not asked at the same moment. A circle that is seen twice, with the same transactions before and
    /// after, was there between the two times.
    async fn confirmed(
        &self,
        graph: &Graph,
        waits: Vec<Wait>,
        leads: &BTreeSet<Process>,
    ) -> Result<Option<Circle>, Error> {
        let waiters: BTreeSet<_> = waits.iter().map(|w| w.waiter).collect();
        let members: BTreeSet<_> = waits.iter().flat_map(|w| graph.transaction(w.blocker)).collect();
        let began = self.began(&members).await?;
        for _ in 0..2 {
            let mut again = Graph::default();
            self.waits(&mut again, &waiters).await?;
            if !again.has(&waits) {
                return Ok(None);
            }
        }
        if self.began(&members).await? != began {
            return Ok(None);
        }
        let age = |p: Process| began.iter().find(|(q, _)| *q == p).and_then(|(_, began)| *began);
        let candidates = leads.iter().filter(|lead| members.contains(lead)).map(|&lead| {
            let others = graph.transaction(lead);
            let applies = others.iter().any(|p| waiters.contains(p) && p.side != lead.side);
            Candidate { lead, began: age(lead), applies }
        });
        let why = graph.describe(&waits);
        Ok(Some(Circle { candidates: candidates.collect(), why, waits }))
    }

    /// When their transactions began.
    async fn began(&self, members: &BTreeSet<Process>) -> Result<Vec<(Process, Option<f64>)>, Error> {
        let one = async |side: Side| {
            let pids: Vec<i32> = members.iter().filter(|p| p.side == side).map(|p| p.pid).collect();
            let rows = self.session(side).rows(BEGAN, &[&pids]).await?;
            Ok::<_, Error>(rows.into_iter().map(move |row| (Process { side, pid: row.get(0) }, row.get(1))))
        };
        let (source, target) = tokio::try_join!(one(Side::Source), one(Side::Target))?;
        Ok(source.chain(target).collect())
    }
}

const BLOCKERS: &str = "SELECT p.pid, b.pid FROM pg_catalog.unnest($1::int4[]) p(pid),
  pg_catalog.unnest(pg_catalog.pg_blocking_pids(p.pid)) b(pid)";
/// Who is in its COMMIT waits for no lock, and its lead's connection may do something else already.
const JOINS: &str = "SELECT l.pid, l.objid::int8::int4 FROM pg_catalog.pg_locks l
  WHERE l.locktype = 'advisory' AND l.classid = $1::int8::oid AND l.objsubid = 2 AND l.granted AND l.pid IS NOT NULL
  AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
  AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_stat_activity a WHERE a.pid = l.pid AND a.state = 'active' AND a.query = 'COMMIT')";
const BEGAN: &str =
    "SELECT a.pid, pg_catalog.date_part('epoch', a.xact_start) FROM pg_catalog.pg_stat_activity a
  WHERE a.pid = ANY ($1::int4[]) ORDER BY 1";
/// Processes of which a look asks for whom they wait.
const MOST: usize = 64;
/// So many times the limit another instance may take to break a circle.
const OTHERS: u32 = 2;
const SHORTEST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_millis(250);
