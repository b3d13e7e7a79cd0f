//! Looks at one side's journal, in every instance: what is dirty, how deep it is, what is mirrored.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    session::{Error, Session},
    status::{Dirty, Status},
    tables::{Published, Tables},
};
use crate::{Side, backend::control::Manager};

/// Looks at the journal of one side.
#[derive(Debug)]
pub struct Watcher {
    side: Side,
    manager: Manager,
    patience: Duration,
    grace: Duration,
    tables: Arc<Published>,
    status: Arc<Status>,
    session: Option<Session>,
    measured: Option<Instant>,
    /// What this side said is mirrored.
    here: Option<Tables>,
}

impl Watcher {
    /// Connects to nothing yet.
    pub fn new(
        side: Side,
        manager: Manager,
        (patience, grace): (Duration, Duration),
        tables: Arc<Published>,
        status: Arc<Status>,
    ) -> Self {
        Self { side, manager, patience, grace, tables, status, session: None, measured: None, here: None }
    }

    /// One look. After an error the connection is new.
    pub async fn round(&mut self) -> Result<(), Error> {
        let round = self.try_round().await;
        if round.is_err() {
            self.session = None;
            self.measured = None;
            self.status.depth(self.side, None);
        }
        round
    }

    async fn try_round(&mut self) -> Result<(), Error> {
        if self.session.is_none() {
            self.session = Some(Session::look(&self.manager, self.side, self.patience).await?);
        }
        if self.measured.is_none_or(|at| at.elapsed() >= SELDOM) {
            self.load().await?;
            self.measure().await?;
            self.measured = Some(Instant::now());
        }
        let began = Instant::now();
        let mut dirty = self.look().await?;
        if dirty.is_none() {
            self.load().await?;
            dirty = self.look().await?;
        }
        // What is installed nowhere is nobody's dirt.
        self.status.looked(self.side, &dirty.unwrap_or_default(), began);
        Ok(())
    }

    fn session(&self) -> &Session {
        self.session.as_ref().expect("connected at the start of the round")
    }

    /// What is mirrored, as this side says. What only the other says is kept.
    async fn load(&mut self) -> Result<(), Error> {
        let here = Tables::load(self.session()).await?;
        if self.here.as_ref() != Some(&here) {
            self.tables.set(here.clone().knowing(&self.tables.get()));
            self.here = Some(here);
        }
        Ok(())
    }

    async fn measure(&self) -> Result<(), Error> {
        let grace = self.grace.as_secs_f64();
        let rows = self.session().rows(MEASURE, &[&grace, &MOST_COUNTED]).await?;
        if let Some(row) = rows.first() {
            let (count, dirty, oldest): (i64, i64, f64) = (row.get(0), row.get(1), row.get(2));
            let oldest = Duration::try_from_secs_f64(oldest.max(0.0)).unwrap_or_default();
            let depth = (count.unsigned_abs(), dirty.unsigned_abs(), oldest);
            self.status.depth(self.side, Some(depth));
        }
        Ok(())
    }

    /// Which repositories are dirty. `None`: one of a table that is not known.
    async fn look(&self) -> Result<Option<Dirty>, Error> {
        let grace = self.grace.as_secs_f64();
        let rows = self.session().rows(LOOK, &[&grace, &(MOST_LOOKED_AT + 1)]).await?;
        let Some(row) = rows.first() else { return Ok(Some(Dirty::Nothing)) };
        let (count, large, numbers): (i64, bool, Vec<Option<i32>>) = (row.get(0), row.get(1), row.get(2));
        if large || count > MOST_LOOKED_AT {
            return Ok(Some(Dirty::Everything));
        }
        let tables = self.tables.get();
        let mut names = BTreeSet::new();
        let mut unknown = false;
        for number in numbers {
            match number.and_then(|n| tables.table(n)) {
                Some(table) => drop(names.insert(table.meta.repository.clone())),
                None => unknown = true,
            }
        }
        if unknown && names.is_empty() {
            return Ok(None);
        }
        Ok(Some(if names.is_empty() { Dirty::Nothing } else { Dirty::These(names) }))
    }
}

/// Between looks at what changes seldom, or costs more.
const SELDOM: Duration = Duration::from_secs(1);
/// Rows that are counted; a journal with more of them is deep, whatever the number.
const MOST_COUNTED: i64 = 100_000;
/// Rows whose entries are looked at, every time; with more of them everything is dirty.
const MOST_LOOKED_AT: i64 = 500;

const MEASURE: &str = "SELECT pg_catalog.count(*),
    pg_catalog.count(*) FILTER (WHERE NOT sync OR at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1)),
    coalesce(extract(epoch FROM pg_catalog.clock_timestamp() - pg_catalog.min(at)), 0)::float8
  FROM (SELECT sync, at FROM crossfade.journal ORDER BY id LIMIT $2) AS first";
const LOOK: &str = "WITH first AS MATERIALIZED (
    SELECT CASE WHEN pg_catalog.pg_column_size(entries) <= 4096 THEN entries END AS entries
    FROM crossfade.journal
    WHERE NOT sync OR at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1)
    LIMIT $2)
  SELECT pg_catalog.count(*), coalesce(pg_catalog.bool_or(entries IS NULL), false),
    ARRAY(SELECT DISTINCT pg_catalog.substring(e, '^[A-Z]([0-9]+):')::int4
      FROM first, pg_catalog.unnest(first.entries) AS e)
  FROM first";
