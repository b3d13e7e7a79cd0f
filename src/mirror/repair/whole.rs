//! Tables without a key: rows are known whole, so each goes over exactly once, and TRUNCATE keeps its place.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Hook, JournalRow, Repairer, Step,
    ship::{Trouble, begin},
};
use crate::mirror::{
    apply::{Whole, parse_record},
    session::{Call, Error, Session, Text},
    tables::Tables,
};

impl Repairer {
    /// Row by row of the journal, in its order.
    pub(super) async fn ship_whole(&mut self, rows: &[JournalRow]) -> Result<(), Error> {
        let mine = || rows.iter().filter(|r| !r.wanted.whole.is_empty());
        let Some(last) = mine().map(|r| r.id).max() else { return Ok(()) };
        let mut waiting = self.waiting(rows, last).await?;
        let follower = self.journal.other();
        self.connect_apply(follower).await?;
        let tables = self.tables.get();
        for row in mine() {
            if waiting.before(row) {
                waiting.add_all(row);
                continue;
            }
            let session = self.apply[follower.index()].as_mut().expect("connected");
            match apply_whole(session, row, &tables, &self.hook).await {
                Ok(()) => {
                    self.done.whole.insert(row.id);
                    let count = row.wanted.whole.values().map(Vec::len).sum::<usize>();
                    self.status.repaired(self.journal, count as u64);
                }
                Err(Trouble::Fatal(error)) => return Err(error),
                Err(trouble) => {
                    waiting.add_all(row);
                    let error = match trouble {
                        Trouble::Key(_, error, _) | Trouble::All(error) | Trouble::Fatal(error) => {
                            Some(error)
                        }
                        Trouble::Moved | Trouble::InFlight(_) | Trouble::Restless(_) => None,
                    };
                    self.status.error(error.as_ref().map_or("moved", Error::reason));
                    let reason = error.map_or_else(|| "not installed".to_owned(), |e| e.to_string());
                    let (journal, id) = (self.journal, row.id);
                    tracing::warn!(%journal, id, reason, "whole rows could not be shipped; they are tried again");
                }
            }
        }
        Ok(())
    }

    /// Removes markers whose journal rows are gone, ours and the data path's. Not the young ones: who has read such a
    /// row before it went has only the marker to know. A marker that can be seen is of a transaction that is over on the lead: the follower commits last.
    pub async fn sweep(&mut self, age: std::time::Duration) -> Result<(), Error> {
        let (journal, follower) = (self.journal, self.journal.other());
        self.connect_look(journal).await?;
        self.connect_apply(follower).await?;
        let session = self.apply[follower.index()].as_ref().expect("connected");
        let markers = session.rows(OLD, &[&journal.name(), &age.as_secs_f64()]).await?;
        let markers: Vec<String> = markers.iter().map(|row| row.get(0)).collect();
        if markers.is_empty() {
            return Ok(());
        }
        let needed = self.lead().rows(NEEDED, &[&markers]).await?;
        let needed: BTreeSet<String> = needed.iter().map(|row| row.get(0)).collect();
        let stale: Vec<&String> = markers.iter().filter(|m| !needed.contains(*m)).collect();
        session.rows(UNMARK, &[&journal.name(), &stale]).await?;
        Ok(())
    }

    /// Rows up to `last` that are not at hand, and what they hold for tables without a key.
    async fn waiting(&self, rows: &[JournalRow], last: i64) -> Result<Waiting, Error> {
        let ids: Vec<i64> = rows.iter().map(|r| r.id).collect();
        let mut waiting = Waiting::default();
        for row in self.lead().rows(WAITING, &[&last, &ids]).await? {
            let (id, letter, table): (i64, String, i32) = (row.get(0), row.get(1), row.get(2));
            waiting.add(table, letter == "T", id);
        }
        Ok(waiting)
    }
}

/// Rows and truncations of tables without a key that wait in journal rows not at hand, by table.
#[derive(Debug, Default)]
pub struct Waiting(BTreeMap<i32, Places>);

/// Places in the journal.
#[derive(Debug, Default)]
struct Places {
    rows: BTreeSet<i64>,
    truncations: BTreeSet<i64>,
}

impl Waiting {
    /// Something of this table waits at this place.
    pub fn add(&mut self, table: i32, truncation: bool, id: i64) {
        let places = self.0.entry(table).or_default();
        if truncation { &mut places.truncations } else { &mut places.rows }.insert(id);
    }

    /// What `row` asks for waits, too.
    pub fn add_all(&mut self, row: &JournalRow) {
        for (&table, operations) in &row.wanted.whole {
            for operation in operations {
                self.add(table, *operation == Whole::Truncate, row.id);
            }
        }
    }

    /// Must `row` wait for something before it? A row must not overtake a truncation, a truncation nothing at all.
    /// (Between rows there is no order. Places are in the order in which a truncation and its neighbours committed:
    /// it holds the table's strongest lock.)
    pub fn before(&self, row: &JournalRow) -> bool {
        row.wanted.whole.iter().any(|(table, operations)| {
            let Some(places) = self.0.get(table) else { return false };
            let earlier = |set: &BTreeSet<i64>| set.first().is_some_and(|&id| id < row.id);
            earlier(&places.truncations) || (operations.contains(&Whole::Truncate) && earlier(&places.rows))
        })
    }
}

/// Applies what one journal row says of tables without a key, unless that was done before. In one transaction with
/// its marker: exactly once.
pub async fn apply_whole(
    follower: &mut Session,
    row: &JournalRow,
    tables: &Tables,
    hook: &Hook,
) -> Result<(), Trouble> {
    let done = attempt(follower, row, tables, hook).await;
    if done.as_ref().is_err_and(|t| !matches!(t, Trouble::Fatal(_))) {
        follower.run("ROLLBACK").await.map_err(Trouble::Fatal)?;
    }
    done
}

async fn attempt(
    follower: &mut Session,
    row: &JournalRow,
    tables: &Tables,
    hook: &Hook,
) -> Result<(), Trouble> {
    let trouble = |error: Error| if error.is_fatal() { Trouble::Fatal(error) } else { Trouble::All(error) };
    let lead = follower.side.other();
    let numbers: BTreeSet<i32> =
        row.wanted.whole.keys().filter_map(|&t| Some(tables.repository_of(t)?.number)).collect();
    let numbers: Vec<i32> = numbers.into_iter().collect();
    // Whoever leads now: these rows were written there, and nobody else knows them.
    begin(follower, &numbers, None).await?;
    hook.reached(Step::Began).map_err(Trouble::Fatal)?;
    let marked = follower.rows(MARK, &[&lead.name(), &row.marker()]).await.map_err(trouble)?;
    if !marked.is_empty() {
        let operations: Vec<(i32, &Whole)> =
            row.wanted.whole.iter().flat_map(|(&t, all)| all.iter().map(move |w| (t, w))).collect();
        for part in operations.chunks(PART) {
            apply_part(follower, part, tables).await?;
        }
    }
    hook.reached(Step::Wrote).map_err(Trouble::Fatal)?;
    follower.run("COMMIT").await.map_err(trouble)?;
    hook.reached(Step::Committed).map_err(Trouble::Fatal)
}

async fn apply_part(follower: &mut Session, part: &[(i32, &Whole)], tables: &Tables) -> Result<(), Trouble> {
    let mut records = Vec::with_capacity(part.len());
    for (table, operation) in part {
        let table = tables.table(*table).ok_or(Trouble::Moved)?;
        let record = match operation {
            Whole::Row(text) => parse_record(text.as_bytes()),
            Whole::Truncate => Vec::new(),
        };
        if matches!(operation, Whole::Row(_)) && record.len() != table.meta.columns.len() {
            return Err(Trouble::All(Error::Shape(follower.side.other())));
        }
        records.push((table, record));
    }
    let calls: Vec<Call<'_>> = part
        .iter()
        .zip(&records)
        .map(|((_, operation), (table, record))| match operation {
            Whole::Row(_) => {
                (table.statements.insert.as_str(), record.iter().map(|c| Text(c.as_deref())).collect())
            }
            Whole::Truncate => (table.statements.truncate.as_str(), Vec::new()),
        })
        .collect();
    let applied = follower.all(&calls).await;
    applied.map(drop).map_err(|(_, e)| if e.is_fatal() { Trouble::Fatal(e) } else { Trouble::All(e) })
}

const MARK: &str =
    "INSERT INTO crossfade.applied (lead, xid) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING 1";
const WAITING: &str = "SELECT j.id, pg_catalog.left(e, 1), pg_catalog.substring(e, '^[RT]([0-9]+):')::int4
  FROM crossfade.journal j CROSS JOIN LATERAL pg_catalog.unnest(j.entries) AS e
  WHERE j.id < $1 AND j.id <> ALL ($2::int8[]) AND e ~ '^[RT][0-9]+:'";
/// Removes markers of a lead.
const UNMARK: &str = "DELETE FROM crossfade.applied WHERE lead = $1 AND xid = ANY ($2)";
const OLD: &str = "SELECT xid FROM crossfade.applied
  WHERE lead = $1 AND at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $2) LIMIT 100000";
const NEEDED: &str = "SELECT m FROM pg_catalog.unnest($1::text[]) AS m
  WHERE EXISTS (SELECT FROM crossfade.journal j WHERE j.xid = pg_catalog.split_part(m, ':', 1)::xid8)";
const PART: usize = 500;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::apply::Wanted;

    fn row(id: i64, operations: &str) -> JournalRow {
        let whole = |c| if c == 'T' { Whole::Truncate } else { Whole::Row("(1)".into()) };
        let mut wanted = Wanted::default();
        wanted.whole.insert(7, operations.chars().map(whole).collect());
        JournalRow { id, xid: "1".into(), sync: false, wanted }
    }

    #[track_caller]
    fn check(waiting: &[(i64, &str)], row_: (i64, &str), waits: bool) {
        let mut all = Waiting::default();
        for (id, operations) in waiting {
            all.add_all(&row(*id, operations));
        }
        assert_eq!(all.before(&row(row_.0, row_.1)), waits, "{waiting:?} {row_:?}");
    }

    #[test]
    fn nothing_overtakes_a_truncation() {
        check(&[], (5, "RT"), false);
        check(&[(1, "R")], (5, "R"), false);
        check(&[(1, "R")], (5, "T"), true);
        check(&[(1, "T")], (5, "R"), true);
        check(&[(1, "T")], (5, "T"), true);
        check(&[(9, "RT")], (5, "RT"), false);
        check(&[(1, "R"), (9, "T")], (5, "R"), false);
    }
}
