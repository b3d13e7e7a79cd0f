//! Sequences of a repository are moved ahead on the side that is about to lead: no value is given twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use super::Failed;
use crate::mirror::{
    capture::{literal, qualified},
    session::{Error, Session},
};

/// Moves them ahead on `new` of what `old` has given. Gives the number of those that were moved.
pub(super) async fn advance(
    old: &Session,
    new: &Session,
    repositories: &[String],
    often: bool,
) -> Result<usize, Failed> {
    let (theirs, ours) = futures_util::try_join!(load(old, repositories), load(new, repositories))?;
    let margin = if often { OFTEN } else { SELDOM };
    let mut set = Vec::new();
    for (name, here) in &ours {
        let mut to = None;
        for (_, there) in theirs.iter().filter(|(other, there)| {
            *other == name || there.columns.intersection(&here.columns).next().is_some()
        }) {
            let counter = to.map_or(here.counter, |(last, called)| Counter { last, called, ..here.counter });
            to = ahead(&there.counter, &counter, margin)
                .map_err(|why| Failed::Unfit(format!("sequence {}: {why}", qualified(&name.0, &name.1))))?
                .or(to);
        }
        if let Some(to) = to {
            set.push((name, to));
        }
    }
    for some in set.chunks(AT_ONCE) {
        let mut sql = "SELECT".to_owned();
        for (index, ((schema, name), (value, called))) in some.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let name = literal(&qualified(schema, name));
            let _ = write!(sql, "{comma} pg_catalog.setval({name}::pg_catalog.regclass, {value}, {called})");
        }
        new.run(&sql).await?;
    }
    Ok(set.len())
}

/// Schema and name.
type Name = (String, String);

/// A sequence and the columns (schema, table, column) that draw from it.
#[derive(Clone, Debug)]
struct Sequence {
    counter: Counter,
    columns: BTreeSet<(String, String, String)>,
}

/// Where a sequence stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Counter {
    last: i64,
    /// `last` was given.
    called: bool,
    increment: i64,
    least: i64,
    most: i64,
    cache: i64,
}

impl Counter {
    /// What is given next, without regard to bounds.
    fn next(&self) -> i128 {
        i128::from(self.last) + if self.called { i128::from(self.increment) } else { 0 }
    }
}

/// How far ahead: caches, and values.
type Margin = (i128, i128);

/// Of a move now and then.
const SELDOM: Margin = (100, 1_000);
/// Of sides that take turns: ten times a minute for years.
const OFTEN: Margin = (1, 10);

/// Where `new` must be set, value and whether that counts as given, to give nothing that `old` gave or may still be asked
/// for by whoever has not heard of the move: so far ahead, or a hundredth of what is left.
fn ahead(old: &Counter, new: &Counter, margin: Margin) -> Result<Option<(i64, bool)>, &'static str> {
    if (old.increment > 0) != (new.increment > 0) {
        return Err("one side counts up and the other counts down");
    }
    let up = old.increment > 0;
    let bound = i128::from(if up { new.most } else { new.least });
    let step = i128::from(old.increment);
    let left = ((bound - old.next()) / step).max(0);
    let cache = i128::from(old.cache);
    let margin = (cache * margin.0 + margin.1).min(left / 100).max(cache);
    let wanted = old.next() + margin * step;
    let target = if up { wanted.max(new.next()) } else { wanted.min(new.next()) };
    if target == new.next() {
        return Ok(None);
    }
    // Exhausted there, exhausted here.
    let beyond = if up { target > bound } else { target < bound };
    let value = if beyond { bound } else { target };
    let value = i64::try_from(value).map_err(|_| "it has come to the end of its type")?;
    Ok(Some((value, beyond)))
}

async fn load(session: &Session, repositories: &[String]) -> Result<BTreeMap<Name, Sequence>, Error> {
    let mut found: BTreeMap<Name, Sequence> = BTreeMap::new();
    for row in session.rows(SEQUENCES, &[&repositories]).await? {
        let counter = Counter {
            last: 0,
            called: false,
            increment: row.get(5),
            least: row.get(6),
            most: row.get(7),
            cache: row.get(8),
        };
        let entry = found.entry((row.get(0), row.get(1)));
        let sequence = entry.or_insert(Sequence { counter, columns: BTreeSet::new() });
        sequence.columns.insert((row.get(2), row.get(3), row.get(4)));
    }
    let names: Vec<Name> = found.keys().cloned().collect();
    for some in names.chunks(AT_ONCE) {
        let one = |(index, (schema, name)): (usize, &Name)| {
            format!("SELECT {index}, last_value, is_called FROM {}", qualified(schema, name))
        };
        let sql: Vec<_> = some.iter().enumerate().map(one).collect();
        for row in session.rows(&sql.join(" UNION ALL "), &[]).await? {
            let index = usize::try_from(row.get::<_, i32>(0)).unwrap_or_default();
            let counter = &mut found.get_mut(&some[index]).expect("asked for by its name").counter;
            (counter.last, counter.called) = (row.get(1), row.get(2));
        }
    }
    Ok(found)
}

/// Sequences read or set by one statement.
const AT_ONCE: usize = 200;

/// Owned ones (serial, identity) and those that a default names, of tables and partitions.
const SEQUENCES: &str = "WITH RECURSIVE members AS (
    SELECT pg_catalog.to_regclass(pg_catalog.format('%I.%I', t.schema_name, t.table_name))::oid AS id
    FROM crossfade.tables t WHERE t.repository = ANY ($1)
    UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN members m ON i.inhparent = m.id
  ), used AS (
    SELECT d.refobjid AS tab, d.refobjsubid AS col, d.objid AS seq FROM pg_catalog.pg_depend d
    WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass
      AND d.refobjid IN (SELECT id FROM members) AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
    UNION
    SELECT f.adrelid, f.adnum, d.refobjid FROM pg_catalog.pg_attrdef f JOIN pg_catalog.pg_depend d
      ON d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.objid = f.oid AND d.refclassid = 'pg_catalog.pg_class'::regclass
    WHERE f.adrelid IN (SELECT id FROM members)
  )
  SELECT sn.nspname::text, s.relname::text, tn.nspname::text, t.relname::text, a.attname::text,
    q.seqincrement, q.seqmin, q.seqmax, q.seqcache
  FROM used u
  JOIN pg_catalog.pg_class s ON s.oid = u.seq AND s.relkind = 'S' JOIN pg_catalog.pg_namespace sn ON sn.oid = s.relnamespace
  JOIN pg_catalog.pg_sequence q ON q.seqrelid = s.oid
  JOIN pg_catalog.pg_class t ON t.oid = u.tab JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace
  JOIN pg_catalog.pg_attribute a ON a.attrelid = u.tab AND a.attnum = u.col";

#[cfg(test)]
mod tests {
    use super::*;

    fn counter(last: i64, called: bool, increment: i64) -> Counter {
        let up = increment > 0;
        let (from, to) = if up { (1, i64::MAX) } else { (i64::MIN, -1) };
        Counter { last, called, increment, least: from, most: to, cache: 1 }
    }

    #[test]
    fn ahead_of_all_that_was_given() {
        let up = |last, called| counter(last, called, 1);
        let small = Counter { most: 32_767, ..up(32_000, true) };
        for (old, new, expected) in [
            (up(1, false), up(1, false), Some((1101, false))),
            (up(1, true), up(1, false), Some((1102, false))),
            (up(500, true), up(1601, false), None),
            (up(500, true), up(1600, true), None),
            (up(500, true), up(9_000, true), None),
            (counter(500, true, 10), counter(3, true, 10), Some((510 + 11_000, false))),
            (Counter { cache: 50, ..up(500, true) }, up(1, true), Some((501 + 6_000, false))),
            (counter(-5, true, -1), counter(-1, false, -1), Some((-1106, false))),
            (counter(-5, true, -1), counter(-2_000, true, -1), None),
            (small, Counter { last: 1, ..small }, Some((32_008, false))),
            (Counter { last: 32_767, ..small }, Counter { last: 1, ..small }, Some((32_767, true))),
        ] {
            assert_eq!(ahead(&old, &new, SELDOM), Ok(expected), "{old:?} {new:?}");
        }
        assert!(ahead(&up(1, true), &counter(-1, true, -1), SELDOM).is_err());
        let (forth, back) = (up(500, true), up(12, true));
        assert_eq!(ahead(&forth, &back, OFTEN), Ok(Some((512, false))), "one cache and ten values");
    }
}
