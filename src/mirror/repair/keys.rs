//! Rows of tables with a key, a few hundred in a transaction. What cannot go is held; nobody waits for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use super::{
    JournalRow, Repairer,
    conflict::conflicting,
    ship::{Shipment, Trouble, gone, holders},
};
use crate::{
    Side,
    mirror::{
        apply::Key,
        session::{Error, Session},
    },
};

/// A part of a chunk, with what has to go out of its way.
#[derive(Debug, Default)]
struct Group {
    keys: Vec<Key>,
    aside: BTreeSet<Key>,
    all_out_first: bool,
    pulls: usize,
}

impl Repairer {
    /// Each row that the journal asks for, once.
    pub(super) async fn ship_keys(&mut self, rows: &[JournalRow]) -> Result<(), Error> {
        let now = Instant::now();
        let tables = self.tables.get();
        let mut by_lead = BTreeMap::<Side, BTreeSet<Key>>::new();
        for key in rows.iter().flat_map(|row| &row.wanted.keys) {
            if let Some(repository) = tables.repository_of(key.table)
                && self.holds.due(key, now)
            {
                by_lead.entry(repository.lead).or_default().insert(key.clone());
            }
        }
        for (lead, keys) in by_lead {
            self.ship_all(lead, keys, true).await?;
        }
        Ok(())
    }

    /// Ships all of them, some at a time; those that fail are held: how many. `journaled`: their journal rows stay
    /// until we are done, so a row that is in the way may go out for a while.
    async fn ship_all(
        &mut self,
        lead: Side,
        mut left: BTreeSet<Key>,
        journaled: bool,
    ) -> Result<usize, Error> {
        let mut failed = 0;
        while !left.is_empty() {
            let keys: Vec<Key> = left.iter().take(MOST_KEYS).cloned().collect();
            let mut later = left.split_off(&keys[keys.len() - 1]);
            later.remove(&keys[keys.len() - 1]);
            let group = Group { keys, ..Group::default() };
            failed += self.ship_group(lead, group, &mut later, journaled).await?;
            left = later;
        }
        Ok(failed)
    }

    /// Ships a group, whatever it takes. What it does not come to is put into `later`.
    async fn ship_group(
        &mut self,
        lead: Side,
        mut group: Group,
        later: &mut BTreeSet<Key>,
        journaled: bool,
    ) -> Result<usize, Error> {
        let mut failed = 0;
        while !group.keys.is_empty() {
            let mut taken = group.keys.len();
            let trouble = self.attempt(lead, &group, &mut taken).await;
            later.extend(group.keys.drain(taken..));
            let held = match trouble {
                Ok(()) => {
                    self.shipped(&group.keys, journaled);
                    return Ok(failed);
                }
                Err(Trouble::Fatal(error)) => return Err(error),
                Err(Trouble::Key(_, error, _)) if error.reason() == "unique" && !group.all_out_first => {
                    group.all_out_first = true;
                    continue;
                }
                Err(Trouble::Key(at, error, Some(image)))
                    if error.reason() == "unique" && group.pulls < MOST_PULLS =>
                {
                    let later = if journaled { &*later } else { &BTreeSet::new() };
                    if self.pull(lead, &mut group, later, (at, &image, &error)).await? {
                        continue;
                    }
                    self.hold(&[group.keys.remove(at)], &error.to_string(), error.reason())
                }
                Err(Trouble::Key(at, error, _)) => {
                    self.forget();
                    self.hold(&[group.keys.remove(at)], &error.to_string(), error.reason())
                }
                Err(Trouble::Moved) => {
                    self.reload().await?;
                    self.hold(&std::mem::take(&mut group.keys), "the lead has moved", "moved")
                }
                Err(Trouble::InFlight(which)) => {
                    let why = "transactions of the data path are in flight, or in doubt, on the follower";
                    self.hold(&take(&mut group.keys, &which), why, "in_flight")
                }
                Err(Trouble::Restless(which)) => {
                    self.hold(&take(&mut group.keys, &which), "it changes all the time", "restless")
                }
                Err(Trouble::All(error)) if group.keys.len() == 1 => {
                    self.hold(&std::mem::take(&mut group.keys), &error.to_string(), error.reason())
                }
                // Nobody to blame: halves, until there is.
                Err(Trouble::All(_)) => {
                    let half = Group { keys: group.keys.split_off(group.keys.len() / 2), ..Group::default() };
                    Box::pin(self.ship_group(lead, half, later, journaled)).await?
                }
            };
            failed += held;
        }
        Ok(failed)
    }

    async fn attempt(&mut self, lead: Side, group: &Group, taken: &mut usize) -> Result<(), Trouble> {
        self.connect_look(lead).await.map_err(Trouble::Fatal)?;
        self.connect_apply(lead.other()).await.map_err(Trouble::Fatal)?;
        let tables = self.tables.get();
        let mut shipment = Shipment {
            lead: self.look[lead.index()].as_mut().expect("connected"),
            follower: self.apply[lead.other().index()].as_mut().expect("connected"),
            tables: &tables,
            hook: &self.hook,
            lock_timeout: self.settings.lock_timeout,
            aside: &group.aside,
            grouped: group.all_out_first,
            widest: &mut self.widest,
            taken,
        };
        shipment.ship(&group.keys).await
    }

    /// Finds who is in the way of a row. What is shipped later anyway goes out for now; others join. False: nobody
    /// new was found.
    async fn pull(
        &mut self,
        lead: Side,
        group: &mut Group,
        later: &BTreeSet<Key>,
        (at, image, error): (usize, &[u8], &Error),
    ) -> Result<bool, Error> {
        group.pulls += 1;
        let tables = self.tables.get();
        let table = tables.table(group.keys[at].table).expect("it was shipped a moment ago");
        let follower = self.apply[lead.other().index()].as_mut().expect("connected");
        let mut new = false;
        for key in conflicting(follower, table, image, error).await? {
            if later.contains(&key) {
                new |= group.aside.insert(key);
            } else if !group.keys.contains(&key) {
                group.keys.push(key);
                new = true;
            }
        }
        group.keys.sort_unstable();
        Ok(new)
    }

    fn shipped(&mut self, keys: &[Key], journaled: bool) {
        for key in keys {
            self.holds.shipped(key);
            if journaled {
                self.done.keys.insert(key.clone());
            }
        }
        self.status.repaired(self.journal, keys.len() as u64);
    }

    fn hold(&mut self, keys: &[Key], reason: &str, word: &'static str) -> usize {
        let now = Instant::now();
        for key in keys {
            let text = format!("{}: {reason}", self.name_of(key));
            self.holds.fail(key, text, now);
        }
        self.status.error(word);
        // Not at every attempt.
        let seldom = |key: &&Key| self.holds.why(key).is_some_and(|h| h.attempts.is_power_of_two());
        if let Some(key) = keys.first().filter(seldom) {
            let (journal, table, keys) = (self.journal, self.name_of(key), keys.len());
            tracing::warn!(%journal, table, keys, reason, "rows could not be shipped; they are tried again");
        }
        keys.len()
    }

    /// The table, never the key: that may be a secret.
    fn name_of(&self, key: &Key) -> String {
        let tables = self.tables.get();
        let name =
            |t: &std::sync::Arc<crate::mirror::tables::Table>| format!("{}.{}", t.meta.schema, t.meta.name);
        tables.table(key.table).map_or_else(|| key.table.to_string(), name)
    }

    /// Statements may have been prepared for what a table was before.
    fn forget(&mut self) {
        for session in self.look.iter_mut().chain(&mut self.apply).flatten() {
            session.forget();
        }
    }

    /// Truncated tables: every key that the follower has is looked at, a part at a time.
    pub(super) async fn ship_truncated(&mut self, rows: &[JournalRow]) -> Result<(), Error> {
        let truncated: BTreeSet<i32> =
            rows.iter().flat_map(|row| row.wanted.truncated.iter().copied()).collect();
        for number in truncated {
            if self.scan(number).await? {
                self.holds.shipped(&truncation(number));
                self.done.tables.insert(number);
            }
        }
        Ok(())
    }

    async fn scan(&mut self, number: i32) -> Result<bool, Error> {
        let tables = self.tables.get();
        let (Some(table), Some(repository)) = (tables.table(number), tables.repository_of(number)) else {
            return Ok(false);
        };
        let (lead, follower) = (repository.lead, repository.lead.other());
        self.connect_apply(follower).await?;
        // Rows that are not committed yet would not be seen, and come back.
        let applying = self.apply[follower.index()].as_ref().expect("connected");
        let others = holders(applying, &[repository.number]).await?;
        if !gone(applying, &others, self.settings.lock_timeout).await? {
            self.hold(&[truncation(number)], "transactions in flight on the follower", "in_flight");
            return Ok(false);
        }
        // A connection of its own: its cursor stays open while the other commits.
        let scan = Session::look(&self.managers[follower.index()], follower, self.settings.patience).await?;
        scan.run(&format!("BEGIN; DECLARE all_keys NO SCROLL CURSOR FOR {}", table.statements.keys)).await?;
        let mut failed = 0;
        loop {
            let keys = scan.rows(&format!("FETCH {MOST_KEYS} FROM all_keys"), &[]).await?;
            if keys.is_empty() {
                break;
            }
            let bad = |e| Error::Query(follower, e);
            let key =
                |row: &tokio_postgres::Row| Ok(Key { table: number, text: row.try_get(0).map_err(bad)? });
            let keys = keys.iter().map(key).collect::<Result<_, Error>>()?;
            failed += self.ship_all(lead, keys, false).await?;
        }
        if failed > 0 {
            self.hold(&[truncation(number)], "some rows could not be looked at", "refused");
        }
        Ok(failed == 0)
    }
}

/// Stands for a truncated table among the keys that are held: no key of a row looks like it.
pub(super) fn truncation(table: i32) -> Key {
    Key { table, text: "\u{0}truncated".into() }
}

fn take(keys: &mut Vec<Key>, which: &[usize]) -> Vec<Key> {
    let taken: Vec<Key> = which.iter().map(|&i| keys[i].clone()).collect();
    keys.retain(|k| !taken.contains(k));
    taken
}

const MOST_KEYS: usize = 500;
const MOST_PULLS: usize = 200;
