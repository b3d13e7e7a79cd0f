//! Who leads a repository's writes, as both sides say, and the move from one side to the other (HAZARDS P9).
//!
//! A side leads when its own row says so: `crossfade.arm` and the triggers look at no other. A move takes the fence of
//! the old lead, then of the new one, and writes the old lead's row first. Whatever dies on the way leaves the old lead in
//! force or nobody; in no case both.

mod sequences;

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    schema::LOCK_CLASS,
    session::{Error, Session},
};
use crate::{Side, backend::control::Manager};

/// A row of `crossfade.repositories`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Row {
    /// Number, of the fence.
    pub number: i32,
    /// Who leads, as this side says.
    pub lead: Side,
    /// Rises with every move.
    pub epoch: i64,
}

/// Reads the rows of one side.
pub async fn rows(session: &Session) -> Result<BTreeMap<String, Row>, Error> {
    let bad = |e| Error::Query(session.side, e);
    let mut found = BTreeMap::new();
    for row in session.rows(ROWS, &[]).await? {
        let lead: String = row.try_get(2).map_err(bad)?;
        let lead = if lead == "target" { Side::Target } else { Side::Source };
        let one = Row { number: row.try_get(1).map_err(bad)?, lead, epoch: row.try_get(3).map_err(bad)? };
        found.insert(row.try_get(0).map_err(bad)?, one);
    }
    Ok(found)
}

/// The clock of a side, since 1970.
pub async fn clock(session: &Session) -> Result<Duration, Error> {
    let rows = session.rows(CLOCK, &[]).await?;
    let seconds = rows.first().map_or(Ok(0.0), |row| row.try_get::<_, f64>(0));
    let seconds = seconds.map_err(|e| Error::Query(session.side, e))?;
    Ok(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

/// Who leads a repository now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum InForce {
    /// This side.
    Side(Side),
    /// A move was not finished: nobody may write.
    Nobody,
    /// Both sides say that they lead, which no move leaves behind: somebody restored or edited one.
    Both,
    /// Neither side could be asked, or it is not installed.
    Unknown,
}

impl InForce {
    /// Judges by the rows of source and target; `None`: not known.
    pub fn of(rows: [Option<Row>; 2]) -> Self {
        let leads = Side::BOTH.map(|side| rows[side.index()].map(|row| row.lead == side));
        match leads {
            [Some(true), Some(true)] => InForce::Both,
            [Some(false), Some(false)] => InForce::Nobody,
            // A side that does not lead knows who else may.
            [Some(true), _] | [None, Some(false)] => InForce::Side(Side::Source),
            [_, Some(true)] | [Some(false), None] => InForce::Side(Side::Target),
            [None, None] => InForce::Unknown,
        }
    }
}

/// Moves the lead of a repository: one attempt at a time, each of bounded length.
pub struct Mover {
    managers: [Manager; 2],
    patience: Duration,
    hook: Hook,
}

impl fmt::Debug for Mover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mover").finish_non_exhaustive()
    }
}

/// Called behind each step of an attempt; `true` ends it there as a crash would.
pub type Hook = Option<Arc<dyn Fn(Step) -> bool + Send + Sync>>;

/// The steps of a move, in order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// No other instance is at it.
    Alone,
    /// Nobody writes on the old lead.
    Fenced,
    /// The follower has all that was written.
    Shipped,
    /// Nothing is in doubt on the new lead.
    Settled,
    /// Its sequences are ahead.
    Sequences,
    /// The old lead leads no more.
    Left,
    /// The new one does.
    Taken,
}

impl Step {
    /// All of them.
    pub const ALL: [Step; 7] =
        [Step::Alone, Step::Fenced, Step::Shipped, Step::Settled, Step::Sequences, Step::Left, Step::Taken];
}

/// What became of an attempt.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Attempt {
    /// It leads already.
    Nothing,
    /// Another instance is at it.
    Elsewhere,
    /// Not yet: somebody is in the way.
    Waits(Wait),
    /// It leads now.
    Moved {
        /// Who led before.
        from: Side,
        /// Who leads.
        to: Side,
        /// Sequences that were moved ahead.
        sequences: usize,
        /// How long writers may have waited.
        stalled: Duration,
    },
}

/// What a move waits for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Wait {
    /// Journal rows of the repository on this side.
    Journal(Side, i64),
    /// Transactions that wrote on this side: process ids, and how many are prepared.
    Writers(Side, Vec<i32>, usize),
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wait::Journal(side, rows) => write!(f, "{rows} or more rows of the {side}'s journal"),
            Wait::Writers(side, pids, prepared) => {
                let pids: Vec<_> = pids.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "transactions on the {side}: process ids [{}], {prepared} prepared",
                    pids.join(", ")
                )
            }
        }
    }
}

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// A server refused or does not answer.
    #[error(transparent)]
    Session(#[from] Error),
    /// It cannot be moved as it is.
    #[error("{0}")]
    Unfit(String),
}

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub struct Order<'a> {
    /// Repositories that move together, or not at all.
    pub names: &'a [&'a str],
    /// Who is to lead them. A move that was not finished is finished first, whatever is wanted; `None`: nothing but that.
    pub wanted: Option<Side>,
    /// A long journal is no reason to leave writers alone: they write faster than it is shipped.
    pub pressing: bool,
    /// The lead moves all the time: less is left out of the sequences.
    pub often: bool,
}

impl<'a> Order<'a> {
    /// One that is not pressing.
    pub fn new(names: &'a [&'a str], wanted: Option<Side>) -> Self {
        Self { names, wanted, pressing: false, often: false }
    }
}

/// Where they go, judged by both sides' rows.
struct Move {
    names: Vec<String>,
    numbers: Vec<i32>,
    epochs: Vec<i64>,
    from: Side,
    to: Side,
    /// An earlier attempt got as far as [`Step::Left`].
    left: bool,
}

impl Mover {
    /// Connects to nothing yet. No statement takes longer than `patience`.
    pub fn new(managers: [Manager; 2], patience: Duration) -> Self {
        Self { managers, patience, hook: None }
    }

    /// With a hook, for tests.
    #[must_use]
    pub fn hooked(mut self, hook: Hook) -> Self {
        self.hook = hook;
        self
    }

    fn cut(&self, step: Step) -> Result<(), Failed> {
        match &self.hook {
            Some(hook) if hook(step) => Err(Error::Cut.into()),
            _ => Ok(()),
        }
    }

    /// Tries once.
    pub async fn attempt(&self, order: &Order<'_>) -> Result<Attempt, Failed> {
        let [source, target] = &self.managers;
        let (source, target) = futures_util::try_join!(
            open(source, Side::Source, self.patience),
            open(target, Side::Target, self.patience)
        )?;
        let sides = [source, target];
        let attempt = self.run(&sides, order).await;
        if !matches!(attempt, Err(Failed::Session(Error::Cut))) {
            for session in &sides {
                // A connection that is lost has no locks.
                let _ = session.run("SELECT pg_catalog.pg_advisory_unlock_all()").await;
            }
        }
        attempt
    }

    async fn run(&self, sides: &[Session; 2], order: &Order<'_>) -> Result<Attempt, Failed> {
        let Some(work) = judge(sides, order).await? else { return Ok(Attempt::Nothing) };
        for number in &work.numbers {
            let alone = sides[0].rows(ALONE, &[number]).await?;
            if !alone.first().is_some_and(|row| row.get(0)) {
                return Ok(Attempt::Elsewhere);
            }
        }
        // Another instance may have done it meanwhile.
        let Some(work) = judge(sides, order).await? else { return Ok(Attempt::Nothing) };
        self.cut(Step::Alone)?;
        for session in sides {
            let rows = concerned(session, &work.names, MOST_ROWS).await?;
            if rows >= MOST_ROWS && !order.pressing {
                return Ok(Attempt::Waits(Wait::Journal(session.side, rows)));
            }
        }
        let (old, new) = (&sides[work.from.index()], &sides[work.to.index()]);
        let began = Instant::now();
        if let Some(wait) = fence(old, &work.numbers).await? {
            return Ok(Attempt::Waits(wait));
        }
        self.cut(Step::Fenced)?;
        let longest = match order {
            Order { pressing: true, .. } => PRESSING,
            Order { often: true, .. } => SHIPPING / 2,
            Order { .. } => SHIPPING,
        };
        if let Some(wait) = shipped(sides, &work.names, longest).await? {
            return Ok(Attempt::Waits(wait));
        }
        self.cut(Step::Shipped)?;
        if let Some(wait) = fence(new, &work.numbers).await? {
            return Ok(Attempt::Waits(wait));
        }
        // What was in doubt may have gone to the journal.
        for session in sides {
            let rows = concerned(session, &work.names, 1).await?;
            if rows > 0 {
                return Ok(Attempt::Waits(Wait::Journal(session.side, rows)));
            }
        }
        self.cut(Step::Settled)?;
        let sequences = sequences::advance(old, new, &work.names, order.often).await?;
        self.cut(Step::Sequences)?;
        if !work.left {
            write(old, &work).await?;
        }
        self.cut(Step::Left)?;
        write(new, &work).await?;
        self.cut(Step::Taken)?;
        // Every instance has looked before the first write: none of them reads old rows where the lead was.
        tokio::time::sleep(ALL_HAVE_LOOKED).await;
        Ok(Attempt::Moved { from: work.from, to: work.to, sequences, stalled: began.elapsed() })
    }
}

/// A connection for a move. A mover that is frozen loses it, and with it the fence.
async fn open(manager: &Manager, side: Side, patience: Duration) -> Result<Session, Error> {
    let session = Session::look(manager, side, patience).await?;
    session
        .run(&format!(
            "SET lock_timeout TO '{FENCE}'; SET idle_session_timeout TO '10s'; SET synchronous_commit TO on"
        ))
        .await?;
    Ok(session)
}

/// What is to be done first: all that go the same way. `None`: nothing.
async fn judge(sides: &[Session; 2], order: &Order<'_>) -> Result<Option<Move>, Failed> {
    let (source, target) = futures_util::try_join!(rows(&sides[0]), rows(&sides[1]))?;
    let mut all = Vec::new();
    for &name in order.names {
        let rows = [source.get(name), target.get(name)].map(Option::<&Row>::copied);
        let judged = judge_one(rows, order.wanted);
        all.extend(judged.map_err(|why| Failed::Unfit(format!("{name}: {why}")))?.map(|one| (name, one)));
    }
    // What was left half-way is finished first.
    let Some(&(_, Way { from, left, .. })) = all.iter().find(|(_, way)| way.left).or_else(|| all.first())
    else {
        return Ok(None);
    };
    let mut work = Move { names: vec![], numbers: vec![], epochs: vec![], from, to: from.other(), left };
    all.retain(|(_, way)| (way.from, way.left) == (from, left));
    // Whoever takes several fences takes them in this order.
    all.sort_unstable_by_key(|(_, way)| way.number);
    for (name, way) in all {
        work.names.push(name.to_owned());
        work.numbers.push(way.number);
        work.epochs.push(way.epoch);
    }
    Ok(Some(work))
}

/// Where one repository goes.
#[derive(Clone, Copy)]
struct Way {
    number: i32,
    epoch: i64,
    from: Side,
    left: bool,
}

fn judge_one(rows: [Option<Row>; 2], wanted: Option<Side>) -> Result<Option<Way>, &'static str> {
    let [Some(source), Some(target)] = rows else {
        return Err("it is not installed on both sides: run crossfade mirror install");
    };
    if source.number != target.number {
        return Err("its number differs on both sides: run crossfade mirror install");
    }
    let epoch = source.epoch.max(target.epoch);
    let number = source.number;
    match InForce::of(rows) {
        InForce::Side(lead) if wanted.is_none_or(|wanted| wanted == lead) => Ok(None),
        InForce::Side(from) => Ok(Some(Way { number, epoch: epoch + 1, from, left: false })),
        // Each names the other: the younger row is the one that was written. It has counted already.
        InForce::Nobody => {
            let from = if source.epoch > target.epoch { Side::Source } else { Side::Target };
            Ok(Some(Way { number, epoch, from, left: true }))
        }
        InForce::Both | InForce::Unknown => Err(
            "both sides say that they lead it: compare the tables, then set one row of crossfade.repositories right",
        ),
    }
}

/// Takes these fences of `held` for this session alone, or says who is in the way.
async fn fence(held: &Session, numbers: &[i32]) -> Result<Option<Wait>, Failed> {
    for number in numbers {
        let sql = format!("SELECT pg_catalog.pg_advisory_lock({LOCK_CLASS}, {number})");
        match held.run(&sql).await {
            Ok(()) => {}
            Err(error) if error.is_busy() => {
                let rows = held.rows(HOLDERS, &[&LOCK_CLASS, number]).await?;
                let pids: Vec<Option<i32>> = rows.iter().map(|row| row.get(0)).collect();
                let prepared = pids.iter().filter(|pid| pid.is_none()).count();
                let pids = pids.into_iter().flatten().collect();
                return Ok(Some(Wait::Writers(held.side, pids, prepared)));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// Waits until no journal row concerns the repositories: for so long at most, and not while none is shipped.
async fn shipped(sides: &[Session; 2], names: &[String], longest: Duration) -> Result<Option<Wait>, Failed> {
    let end = Instant::now() + longest;
    for session in sides {
        let (mut least, mut since) = (i64::MAX, Instant::now());
        loop {
            let rows = concerned(session, names, MOST_LOOKED_AT).await?;
            if rows == 0 {
                break;
            }
            if rows < least {
                (least, since) = (rows, Instant::now());
            }
            if Instant::now() >= end || since.elapsed() >= longest.min(SHIPPING) {
                return Ok(Some(Wait::Journal(session.side, rows)));
            }
            tokio::time::sleep(if rows < MOST_ROWS { AGAIN } else { 10 * AGAIN }).await;
        }
    }
    Ok(None)
}

/// Journal rows of the repositories on this side, counted up to `most`; of a long journal all rows, whosever they are.
async fn concerned(session: &Session, names: &[String], most: i64) -> Result<i64, Error> {
    let rows = session.rows(CONCERNED, &[&names, &most, &MOST_LOOKED_AT, &MOST_COUNTED]).await?;
    let Some(row) = rows.first() else { return Ok(0) };
    let (all, ours): (i64, i64) = (row.get(0), row.get(1));
    Ok(if all >= MOST_LOOKED_AT { all } else { ours })
}

/// Says on this side who leads. The fences of this side are held by this very session.
async fn write(session: &Session, work: &Move) -> Result<(), Failed> {
    let (lead, old, count) = (work.to.name(), work.from.name(), work.names.len());
    let all = i64::try_from(count).expect("few");
    let rows = session.rows(WRITE, &[&work.names, &lead, &work.epochs, &old, &work.numbers, &all]).await?;
    if rows.len() == count {
        return Ok(());
    }
    Err(Failed::Unfit(format!("its row on the {} was changed by somebody else", session.side)))
}

/// Statements look at journals of fewer rows than this.
const MOST_LOOKED_AT: i64 = 5_000;
/// With so many rows of the repository the repairer is let run first.
const MOST_ROWS: i64 = 500;
/// Of a longer journal not even the rows are counted.
const MOST_COUNTED: i64 = 1_000_000;
/// How long writers wait for the journal, and for a row of it to go.
const SHIPPING: Duration = Duration::from_secs(1);
/// The same when it is pressing and rows go.
const PRESSING: Duration = Duration::from_secs(3);
/// How long writers wait for those that have begun. Less than the usual `deadlock_timeout`: nobody who holds one of several
/// fences and waits for another is taken for a deadlock.
const FENCE: &str = "700ms";
const AGAIN: Duration = Duration::from_millis(10);
/// Between two looks of an instance, and some more.
const ALL_HAVE_LOOKED: Duration = Duration::from_millis(150);

const CLOCK: &str = "SELECT EXTRACT(epoch FROM pg_catalog.clock_timestamp())::float8";
const ROWS: &str = "SELECT name, number, lead, epoch FROM crossfade.repositories";
/// Class of the lock that the mover of a repository holds on the source.
const ALONE: &str = "SELECT pg_catalog.pg_try_advisory_lock(407139, $1)";
const HOLDERS: &str = "SELECT DISTINCT l.pid FROM pg_catalog.pg_locks l
  WHERE l.locktype = 'advisory' AND l.classid::bigint = $1::int4 AND l.objid::bigint = $2::int4 AND l.objsubid = 2 AND l.granted
    AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
    AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid()";
const CONCERNED: &str = "WITH first AS MATERIALIZED (SELECT entries FROM crossfade.journal LIMIT $3)
  SELECT (SELECT pg_catalog.count(*) FROM (SELECT FROM crossfade.journal LIMIT $4) AS j),
    (SELECT pg_catalog.count(*) FROM (SELECT FROM first WHERE EXISTS (
      SELECT FROM pg_catalog.unnest(first.entries) AS e
      JOIN crossfade.tables t ON t.number = pg_catalog.substring(e, '^[A-Z]([0-9]+):')::int4
      WHERE t.repository = ANY ($1)) LIMIT $2) AS ours)";
/// All of them or none.
const WRITE: &str = "WITH fit AS MATERIALIZED (
    SELECT r.name, w.epoch FROM crossfade.repositories r
    JOIN ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($3::int8[]), pg_catalog.unnest($5::int4[]))
      AS w(name, epoch, number) ON w.name = r.name AND w.number = r.number
    WHERE r.lead = $4 AND EXISTS (
      SELECT FROM pg_catalog.pg_locks l WHERE l.pid = pg_catalog.pg_backend_pid() AND l.locktype = 'advisory'
        AND l.classid::bigint = 407137 AND l.objid::bigint = w.number AND l.mode = 'ExclusiveLock' AND l.granted)
    FOR UPDATE OF r)
  UPDATE crossfade.repositories r SET lead = $2, epoch = fit.epoch FROM fit
  WHERE r.name = fit.name AND (SELECT pg_catalog.count(*) FROM fit) = $6
  RETURNING r.number";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_leads_when_its_own_row_says_so() {
        let (s, t) = (Some(Side::Source), Some(Side::Target));
        for (source, target, expected) in [
            (s, s, InForce::Side(Side::Source)),
            (t, t, InForce::Side(Side::Target)),
            (t, s, InForce::Nobody),
            (s, t, InForce::Both),
            (s, None, InForce::Side(Side::Source)),
            (None, s, InForce::Side(Side::Source)),
            (t, None, InForce::Side(Side::Target)),
            (None, t, InForce::Side(Side::Target)),
            (None, None, InForce::Unknown),
        ] {
            let rows = [source, target].map(|lead| lead.map(|lead| Row { number: 1, lead, epoch: 1 }));
            assert_eq!(InForce::of(rows), expected, "{source:?} {target:?}");
        }
    }
}
