//! One follower transaction: a few hundred keys made there what they are on the lead.
//!
//! Follower first, and only then the look that counts: once a row is locked there, every transaction of the lead
//! that changes it later either waits behind us on the follower or leaves a journal row of its own. So what is read
//! after the lock, with a new snapshot, may be committed.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use super::{Hook, Step};
use crate::{
    Side,
    mirror::{
        apply::{FENCE, Key, parse_record},
        session::{Call, Error, Session, Text},
        tables::{Table, Tables},
    },
};

/// Why a transaction was rolled back.
#[derive(Debug)]
pub enum Trouble {
    /// This key is to blame; its image, if there was one.
    Key(usize, Error, Option<Vec<u8>>),
    /// These are absent on the lead, but a transaction in flight on the follower may hold them.
    InFlight(Vec<usize>),
    /// Nobody in particular: found at COMMIT, or before the first row.
    All(Error),
    /// The lead is another now.
    Moved,
    /// It changes faster than it can be read.
    Restless(Vec<usize>),
    /// A connection is of no more use.
    Fatal(Error),
}

impl Trouble {
    fn all(error: Error) -> Self {
        if error.is_fatal() { Trouble::Fatal(error) } else { Trouble::All(error) }
    }
}

/// The two connections of one direction, and what is known.
pub struct Shipment<'a> {
    /// Reads images.
    pub lead: &'a mut Session,
    /// Writes them.
    pub follower: &'a mut Session,
    /// What is mirrored.
    pub tables: &'a Tables,
    /// Called at every step; tests cut the task there.
    pub hook: &'a Hook,
    /// How long to wait for transactions in flight.
    pub lock_timeout: std::time::Duration,
    /// Keys to be deleted only: they are shipped later, and are in the way now.
    pub aside: &'a BTreeSet<Key>,
    /// All out, then all in: for rows that exchange unique values.
    pub grouped: bool,
    /// Bytes of the largest image seen, for the depth of the pipeline.
    pub widest: &'a mut usize,
    /// Set to the keys that fitted into memory: the first so many were taken.
    pub taken: &'a mut usize,
}

type Image = Option<Vec<u8>>;

impl Shipment<'_> {
    /// Ships `keys`, or as many of them from the front as fit into memory: all or none of these.
    pub async fn ship(&mut self, keys: &[Key]) -> Result<(), Trouble> {
        let shipped = self.attempt(keys).await;
        if shipped.as_ref().is_err_and(|t| !matches!(t, Trouble::Fatal(_))) {
            self.follower.run("ROLLBACK").await.map_err(Trouble::Fatal)?;
        }
        shipped
    }

    async fn attempt(&mut self, keys: &[Key]) -> Result<(), Trouble> {
        let tables: Vec<Arc<Table>> = keys
            .iter()
            .map(|k| {
                Arc::clone(self.tables.table(k.table).expect("only keys of installed tables are shipped"))
            })
            .collect();
        let everything: Vec<usize> = (0..keys.len()).collect();
        let mut images = self.look(keys, &tables, &everything, MOST_BYTES).await?;
        let taken = images.len();
        *self.taken = taken;
        let (keys, tables) = (&keys[..taken], &tables[..taken]);
        self.reached(Step::Looked)?;
        let holders = self.begin(keys, tables).await?;
        self.reached(Step::Began)?;
        let all: Vec<usize> = (0..taken).collect();
        let counts = self.write(keys, tables, &images, &all).await?;
        self.reached(Step::Wrote)?;
        let missed: Vec<usize> =
            all.iter().copied().filter(|&i| images[i].is_none() && counts[i] == 0).collect();
        self.gap(keys, tables, &missed, &holders).await?;
        let mut changed = all;
        for _ in 0..MOST_LOOKS {
            let now = self.look(keys, tables, &changed, usize::MAX).await?;
            let looked = std::mem::take(&mut changed);
            for (i, image) in looked.into_iter().zip(now) {
                if images[i] != image {
                    images[i] = image;
                    changed.push(i);
                }
            }
            self.reached(Step::LookedAgain)?;
            if changed.is_empty() {
                self.follower.run("COMMIT").await.map_err(Trouble::all)?;
                self.reached(Step::Committed)?;
                return Ok(());
            }
            self.write(keys, tables, &images, &changed).await?;
            self.reached(Step::WroteAgain)?;
        }
        Err(Trouble::Restless(changed))
    }

    fn reached(&self, step: Step) -> Result<(), Trouble> {
        self.hook.reached(step).map_err(Trouble::Fatal)
    }

    /// What the rows are on the lead now, each statement with a new snapshot.
    async fn look(
        &mut self,
        keys: &[Key],
        tables: &[Arc<Table>],
        which: &[usize],
        most_bytes: usize,
    ) -> Result<Vec<Image>, Trouble> {
        let calls: Vec<Call<'_>> =
            which.iter().map(|&i| (tables[i].statements.image.as_str(), Vec::new())).collect();
        let columns: Vec<_> = which.iter().map(|&i| key_of(&keys[i], &tables[i])).collect();
        let calls: Vec<Call<'_>> = calls
            .into_iter()
            .zip(&columns)
            .map(|((sql, _), columns)| (sql, columns.iter().map(|c| Text(Some(c))).collect()))
            .collect();
        let depth = (PIPELINE_BYTES / (*self.widest).max(1)).clamp(1, DEPTH);
        let images = self.lead.images(&calls, depth, most_bytes).await;
        let images = images.map_err(|(at, error)| {
            if error.is_fatal() { Trouble::Fatal(error) } else { Trouble::Key(which[at], error, None) }
        })?;
        let widest = images.iter().flatten().map(Vec::len).max().unwrap_or(0);
        *self.widest = widest.max(*self.widest / 2);
        Ok(images)
    }

    /// Begins, fences, and tells who else applies rows of these repositories at this moment.
    async fn begin(&mut self, keys: &[Key], tables: &[Arc<Table>]) -> Result<Vec<String>, Trouble> {
        let lead = self.lead.side;
        let mut numbers = BTreeSet::new();
        for key in keys {
            let repository = self.tables.repository_of(key.table).ok_or(Trouble::Moved)?;
            numbers.insert(repository.number);
        }
        debug_assert_eq!(keys.len(), tables.len());
        let numbers: Vec<i32> = numbers.into_iter().collect();
        begin(self.follower, &numbers, Some(lead)).await?;
        holders(self.follower, &numbers).await.map_err(Trouble::all)
    }

    /// Makes the rows what `images` says: the rows that each of `which` hit.
    async fn write(
        &mut self,
        keys: &[Key],
        tables: &[Arc<Table>],
        images: &[Image],
        which: &[usize],
    ) -> Result<Vec<u64>, Trouble> {
        let columns: Vec<_> = which.iter().map(|&i| key_of(&keys[i], &tables[i])).collect();
        let records: Vec<_> =
            which.iter().map(|&i| images[i].as_deref().map(parse_record).unwrap_or_default()).collect();
        for (record, &i) in records.iter().zip(which) {
            if images[i].is_some() && record.len() != tables[i].meta.columns.len() {
                return Err(Trouble::Key(i, Error::Shape(self.lead.side), None));
            }
        }
        // Index into `which` beside each call: errors are somebody's.
        let (mut calls, mut owners): (Vec<Call<'_>>, Vec<usize>) = (Vec::new(), Vec::new());
        let aside: Vec<_> =
            self.aside.iter().filter_map(|k| Some((k, self.tables.table(k.table)?))).collect();
        let aside_columns: Vec<_> = aside.iter().map(|(k, t)| key_of(k, t)).collect();
        for ((_, table), columns) in aside.iter().zip(&aside_columns) {
            calls.push((&table.statements.delete, columns.iter().map(|c| Text(Some(c))).collect()));
            owners.push(0);
        }
        for (n, &i) in which.iter().enumerate() {
            if self.grouped || images[i].is_none() {
                let parameters = columns[n].iter().map(|c| Text(Some(c))).collect();
                calls.push((&tables[i].statements.delete, parameters));
                owners.push(n);
            }
        }
        // Keys of different text may be one key (numeric 1.0 and 1.00): its row goes in once.
        let mut inserted = BTreeSet::new();
        for (n, &i) in which.iter().enumerate() {
            if images[i].is_some() && (!self.grouped || inserted.insert((keys[i].table, &images[i]))) {
                let parameters = records[n].iter().map(|c| Text(c.as_deref())).collect();
                let statements = &tables[i].statements;
                let sql = if self.grouped { &statements.insert } else { &statements.upsert };
                calls.push((sql, parameters));
                owners.push(n);
            }
        }
        let hits = self.follower.all(&calls).await.map_err(|(at, error)| {
            let blamed = which[owners[at]];
            if error.is_fatal() {
                Trouble::Fatal(error)
            } else {
                Trouble::Key(blamed, error, images[blamed].clone())
            }
        })?;
        let mut counts = vec![0; which.len()];
        for (owner, hit) in owners.into_iter().zip(hits).skip(aside.len()) {
            counts[owner] += hit;
        }
        Ok(counts)
    }

    /// A DELETE that found nothing proves little while somebody else applies rows: theirs are not visible, and
    /// would come back. Waits until all of them are gone and deletes again.
    async fn gap(
        &mut self,
        keys: &[Key],
        tables: &[Arc<Table>],
        missed: &[usize],
        holders: &[String],
    ) -> Result<(), Trouble> {
        if missed.is_empty() || holders.is_empty() {
            return Ok(());
        }
        if !gone(self.follower, holders, self.lock_timeout).await.map_err(Trouble::all)? {
            return Err(Trouble::InFlight(missed.to_vec()));
        }
        let nothing = vec![None; keys.len()];
        self.write(keys, tables, &nothing, missed).await?;
        Ok(())
    }
}

/// Begins a transaction that applies rows of these repositories; no lead can move until it ends. All must be led by
/// `lead`, if it is given.
pub(super) async fn begin(follower: &Session, numbers: &[i32], lead: Option<Side>) -> Result<(), Trouble> {
    follower.run("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE").await.map_err(Trouble::all)?;
    let fence =
        "SELECT pg_catalog.pg_advisory_xact_lock_shared($1, n) FROM pg_catalog.unnest($2::int4[]) AS n";
    follower.rows(fence, &[&FENCE, &numbers]).await.map_err(Trouble::all)?;
    let Some(lead) = lead else { return Ok(()) };
    let moved = "SELECT FROM crossfade.repositories WHERE number = ANY ($1) AND lead <> $2";
    let moved = follower.rows(moved, &[&numbers, &lead.name()]).await.map_err(Trouble::all)?;
    if moved.is_empty() { Ok(()) } else { Err(Trouble::Moved) }
}

/// Transactions, prepared ones too, that apply rows of these repositories, ours left out.
pub(super) async fn holders(follower: &Session, numbers: &[i32]) -> Result<Vec<String>, Error> {
    let numbers: Vec<i64> = numbers.iter().map(|&n| i64::from(n)).collect();
    let class = i64::from(FENCE);
    let rows = follower.rows(HOLDERS, &[&class, &numbers]).await?;
    rows.iter().map(|r| r.try_get(0).map_err(|e| Error::Query(follower.side, e))).collect()
}

/// Waits until none of these transactions is there any more. False: they are, after `patience`.
pub(super) async fn gone(
    follower: &Session,
    holders: &[String],
    patience: std::time::Duration,
) -> Result<bool, Error> {
    let end = Instant::now() + patience;
    loop {
        let left = follower.rows(STILL_THERE, &[&holders]).await?;
        if left.is_empty() {
            return Ok(true);
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

fn key_of<'a>(key: &'a Key, table: &Table) -> Vec<std::borrow::Cow<'a, [u8]>> {
    key.columns(&table.meta).expect("keys that do not fit are sorted out when they are read")
}

const HOLDERS: &str = "SELECT DISTINCT l.virtualtransaction FROM pg_catalog.pg_locks l
  WHERE l.locktype = 'advisory' AND l.classid::int8 = $1 AND l.objid::int8 = ANY ($2) AND l.objsubid = 2 AND l.granted
    AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
    AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid()";
const STILL_THERE: &str = "SELECT FROM pg_catalog.pg_locks l WHERE l.virtualtransaction = ANY ($1) AND l.locktype = 'advisory' LIMIT 1";
/// Images of one transaction.
const MOST_BYTES: usize = 16 << 20;
/// Bytes of images on their way at once.
const PIPELINE_BYTES: usize = 8 << 20;
const DEPTH: usize = 64;
/// Looks at rows that change all the time.
const MOST_LOOKS: usize = 8;
