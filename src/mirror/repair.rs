//! Journal -> follower. What no transaction of the data path ships itself, or failed to ship, is shipped here.
//!
//! One [`Repairer`] per side whose journal it empties, in every instance; an advisory lock on that side lets one
//! work at a time, and is for peace only: several at once are correct. By state, not by operation: what a journal
//! row says is only which rows to look at ([`ship`]). Rows of tables without a key are the exception ([`whole`]).

mod conflict;
pub mod hold;
mod keys;
pub mod ship;
pub mod whole;

use std::{
    collections::BTreeSet,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use self::hold::Holds;
use super::{
    apply::{Key, Wanted},
    session::{Error, Session},
    status::Status,
    tables::{Published, Tables},
};
use crate::{Side, backend::control::Manager};

/// Where a repairer is. Tests stop or cut it there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// Journal rows are read.
    Read,
    /// First images are read.
    Looked,
    /// The follower's transaction is open and fenced.
    Began,
    /// First images are written, not committed.
    Wrote,
    /// Images are read again.
    LookedAgain,
    /// What had changed is written.
    WroteAgain,
    /// The follower has committed.
    Committed,
    /// The journal rows are gone.
    Deleted,
}

/// Called at every step; `false` ends the task as a crash would.
#[derive(Clone, Default)]
pub struct Hook(Option<Arc<dyn Fn(Step) -> bool + Send + Sync>>);

impl Hook {
    /// For tests.
    pub fn new(f: impl Fn(Step) -> bool + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(f)))
    }

    fn reached(&self, step: Step) -> Result<(), Error> {
        match &self.0 {
            Some(f) if !f(step) => Err(Error::Cut),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hook")
    }
}

/// A row of the journal, read.
#[derive(Clone, Debug)]
pub struct JournalRow {
    /// Its place.
    pub id: i64,
    /// The transaction that wrote it.
    pub xid: String,
    /// Written by the data path.
    pub sync: bool,
    /// What it asks for.
    pub wanted: Wanted,
}

impl JournalRow {
    /// Its row in `crossfade.applied`. The data path marks a transaction, we a row of the journal: there may be many
    /// of one transaction.
    pub fn marker(&self) -> String {
        if self.sync { self.xid.clone() } else { format!("{}:{}", self.xid, self.id) }
    }
}

/// What a repairer goes by.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Rows that the data path ships itself are left alone until they are this old.
    pub grace: Duration,
    /// The follower's rows are locked by somebody else.
    pub lock_timeout: Duration,
    /// A server does not answer.
    pub patience: Duration,
}

/// What a round came to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Round {
    /// Another repairer is at work on this journal.
    Elsewhere,
    /// Nothing to do.
    Idle,
    /// This many journal rows were looked at, this many are gone.
    Worked(usize, usize),
}

/// Empties the journal of one side.
pub struct Repairer {
    journal: Side,
    managers: [Manager; 2],
    settings: Settings,
    tables: Arc<Published>,
    status: Arc<Status>,
    hook: Hook,
    look: [Option<Session>; 2],
    apply: [Option<Session>; 2],
    locked: bool,
    holds: Holds,
    /// Rows up to here are not read now: more of them are held than can be remembered.
    cursor: i64,
    rewound: Instant,
    widest: usize,
    /// The follower failed last time: first let it come back, then read.
    follower_failed: bool,
    swept: Instant,
    done: Done,
}

/// What this round has done, for certain. What is not in here was not done.
#[derive(Debug, Default)]
struct Done {
    keys: BTreeSet<Key>,
    /// Truncated tables of which every key was looked at.
    tables: BTreeSet<i32>,
    /// Journal rows whose whole rows are over.
    whole: BTreeSet<i64>,
}

impl fmt::Debug for Repairer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repairer").field("journal", &self.journal).finish_non_exhaustive()
    }
}

impl Repairer {
    /// A repairer of one side's journal; connects to nothing yet.
    pub fn new(
        journal: Side,
        managers: [Manager; 2],
        settings: Settings,
        tables: Arc<Published>,
        status: Arc<Status>,
    ) -> Self {
        Self {
            journal,
            managers,
            settings,
            tables,
            status,
            hook: Hook::default(),
            look: [None, None],
            apply: [None, None],
            locked: false,
            holds: Holds::default(),
            cursor: 0,
            rewound: Instant::now(),
            widest: 1 << 16,
            follower_failed: false,
            swept: Instant::now(),
            done: Done::default(),
        }
    }

    /// The same with a hook, for tests.
    #[must_use]
    pub fn hooked(mut self, hook: Hook) -> Self {
        self.hook = hook;
        self
    }

    /// The same without the lock that keeps others away, for tests.
    #[must_use]
    pub fn unlocked(mut self) -> Self {
        self.locked = true;
        self
    }

    /// Reads some of the journal and ships it. After an error all connections are new.
    pub async fn round(&mut self) -> Result<Round, Error> {
        let round = Box::pin(self.try_round()).await;
        self.status.held(self.journal, &self.holds, Instant::now());
        if let Err(error) = &round {
            self.status.failed(self.journal, error);
            self.follower_failed = error.side() == Some(self.journal.other());
            self.disconnect();
        }
        round
    }

    fn disconnect(&mut self) {
        self.look = [None, None];
        self.apply = [None, None];
        self.locked = false;
        // What was refused by a server that is gone may be taken by the one that comes.
        self.holds.try_all(Instant::now());
    }

    async fn try_round(&mut self) -> Result<Round, Error> {
        self.connect_look(self.journal).await?;
        if !self.lock().await? {
            return Ok(Round::Elsewhere);
        }
        if self.follower_failed {
            self.connect_apply(self.journal.other()).await?;
            self.follower_failed = false;
        }
        let mut rows = self.read().await?;
        if rows.is_empty() {
            if self.swept.elapsed() > SWEEP {
                self.swept = Instant::now();
                self.sweep(SWEPT).await?;
            }
            self.rewind();
            return Ok(Round::Idle);
        }
        self.hook.reached(Step::Read)?;
        if rows.iter().any(|row| self.is_unknown(row)) && self.reload().await? {
            rows = self.read().await?;
        }
        self.done = Done::default();
        self.holds.trim();
        self.ship_keys(&rows).await?;
        self.ship_truncated(&rows).await?;
        self.ship_whole(&rows).await?;
        let now = Instant::now();
        let mut done = Vec::new();
        for row in &rows {
            match self.why_kept(row) {
                Some(because) => self.holds.hold_row(row.id, because, now),
                None => done.push(row),
            }
        }
        self.delete(&done).await?;
        self.hook.reached(Step::Deleted)?;
        if self.holds.is_full() {
            self.cursor = rows.last().map_or(self.cursor, |r| r.id);
        }
        self.rewind();
        Ok(Round::Worked(rows.len(), done.len()))
    }

    fn is_unknown(&self, row: &JournalRow) -> bool {
        let tables = self.tables.get();
        !row.wanted.unknown.is_empty()
            || row.wanted.keys.iter().any(|k| tables.repository_of(k.table).is_none())
    }

    /// With more held rows than can be remembered the journal is read on from the last of them, and from its
    /// beginning every few seconds.
    fn rewind(&mut self) {
        if self.cursor > 0 && self.rewound.elapsed() > REWIND {
            self.cursor = 0;
            self.rewound = Instant::now();
            self.holds.forget_rows();
        }
    }

    async fn connect_look(&mut self, side: Side) -> Result<(), Error> {
        if self.look[side.index()].is_none() {
            let manager = &self.managers[side.index()];
            self.look[side.index()] = Some(Session::look(manager, side, self.settings.patience).await?);
        }
        Ok(())
    }

    async fn connect_apply(&mut self, side: Side) -> Result<(), Error> {
        if self.apply[side.index()].is_none() {
            let Settings { lock_timeout, patience, .. } = self.settings;
            let manager = &self.managers[side.index()];
            self.apply[side.index()] =
                Some(Session::apply(manager, side, lock_timeout, patience + lock_timeout).await?);
        }
        Ok(())
    }

    fn lead(&self) -> &Session {
        self.look[self.journal.index()].as_ref().expect("connected at the start of the round")
    }

    /// One at a time per journal, so that they do not fight for rows. Gone with the connection.
    async fn lock(&mut self) -> Result<bool, Error> {
        if !self.locked {
            let place = i32::try_from(self.journal.index()).expect("0 or 1");
            let sql = "SELECT pg_catalog.pg_try_advisory_lock($1, $2)";
            let got = self.lead().rows(sql, &[&REPAIRER, &place]).await?;
            self.locked = got.first().is_some_and(|row| row.get(0));
        }
        Ok(self.locked)
    }

    /// The first rows that are ours: as many as fit into memory.
    async fn read(&mut self) -> Result<Vec<JournalRow>, Error> {
        let held = self.holds.rows_not_due(Instant::now());
        let grace = self.settings.grace.as_secs_f64();
        let bad = |e| Error::Query(self.journal, e);
        let read = self.lead().rows(READ, &[&self.cursor, &held, &grace, &MOST_ROWS, &MOST_BYTES]).await?;
        let tables = self.tables.get();
        let mut rows = Vec::with_capacity(read.len());
        for row in &read {
            let entries: Vec<&str> = row.try_get(3).map_err(bad)?;
            let wanted = Wanted::of(entries, |n| tables.table(n).map(|t| &t.meta));
            rows.push(JournalRow { id: row.get(0), xid: row.get(1), sync: row.get(2), wanted });
        }
        Ok(rows)
    }

    /// Reads what is mirrored again. True when it is something else now.
    async fn reload(&mut self) -> Result<bool, Error> {
        let mut now = Tables::load(self.lead()).await?;
        if let Some(there) = self.apply[self.journal.other().index()].as_ref() {
            now = now.joined(Tables::load(there).await?);
        }
        let known = self.tables.get();
        Ok(self.tables.set(now.knowing(&known)))
    }

    /// Why a journal row stays, if it does: it goes only when all it asks for was done.
    fn why_kept(&self, row: &JournalRow) -> Option<Result<hold::Hold, String>> {
        let Wanted { keys, truncated, whole, unknown } = &row.wanted;
        if !whole.is_empty() && !self.done.whole.contains(&row.id) {
            return Some(Err(WHOLE.to_owned()));
        }
        let because = |key: &Key| match self.holds.why(key) {
            Some(hold) => Ok(hold.clone()),
            None => Err(format!("table number {} is in no repository", key.table)),
        };
        if let Some(key) = keys.iter().find(|&k| !self.done.keys.contains(k)) {
            return Some(because(key));
        }
        if let Some(&table) = truncated.iter().find(|&t| !self.done.tables.contains(t)) {
            return Some(because(&keys::truncation(table)));
        }
        unknown.first().map(|unknown| Err(unknown.to_string()))
    }

    /// By exact id: what committed late may stand before what was shipped. Markers of whole rows stay for an hour:
    /// another repairer may have read the same journal rows, and has only them to tell that all is done.
    async fn delete(&mut self, done: &[&JournalRow]) -> Result<(), Error> {
        if done.is_empty() {
            return Ok(());
        }
        let ids: Vec<i64> = done.iter().map(|r| r.id).collect();
        self.lead().rows("DELETE FROM crossfade.journal WHERE id = ANY ($1)", &[&ids]).await?;
        for id in &ids {
            self.holds.row_done(*id);
        }
        self.status.emptied(self.journal, ids.len() as u64);
        Ok(())
    }
}

/// Why is in the log.
const WHOLE: &str = "whole rows could not be inserted, or wait for a truncation";
/// Class of the repairers' advisory lock; the fence's is [`super::apply::FENCE`].
const REPAIRER: i32 = 407_138;
const MOST_ROWS: i64 = 2_000;
const MOST_BYTES: i64 = 8 << 20;
const SWEEP: Duration = Duration::from_secs(60);
/// Markers this old are looked at.
const SWEPT: Duration = Duration::from_secs(3_600);
const REWIND: Duration = Duration::from_secs(5);

const READ: &str = "SELECT id, xid, sync, entries FROM (
    SELECT id, xid::text, sync, entries, pg_catalog.pg_column_size(entries)::int8 AS size,
      pg_catalog.sum(pg_catalog.pg_column_size(entries)) OVER (ORDER BY id) AS total
    FROM (SELECT * FROM crossfade.journal
      WHERE id > $1 AND id <> ALL ($2::int8[])
        AND (NOT sync OR at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $3))
      ORDER BY id LIMIT $4) AS first) AS sized
  WHERE total - size < $5::int8 ORDER BY id";
