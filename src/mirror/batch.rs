//! A write set as statements for the follower, with what each must hit. Pure.

use std::{borrow::Cow, collections::BTreeSet};

use super::{
    apply::{Statements, TableMeta, key_columns, parse_record},
    write_set::{Change, WriteSet},
};

/// A table as the data path sends rows to it.
#[derive(Clone, Debug)]
pub struct Destination {
    /// From the control schema.
    pub meta: TableMeta,
    /// SQL of [`Destination::names`].
    pub statements: Statements,
    /// Names that the statements are prepared under: others once the table has changed.
    pub names: Names,
    /// An upsert answers whether the row is new.
    tells: bool,
}

/// Names of prepared statements on the follower.
#[derive(Clone, Debug)]
pub struct Names {
    upsert: String,
    delete: String,
    insert: String,
    truncate: String,
}

impl Destination {
    /// `version`: another one whenever something of the control schema changes.
    pub fn new(meta: TableMeta, version: u64) -> Self {
        let name = |what: &str| format!("crossfade_{what}_{}_{version}", meta.number);
        let names = Names {
            upsert: name("upsert"),
            delete: name("delete"),
            insert: name("insert"),
            truncate: name("truncate"),
        };
        let mut statements = Statements::of(&meta);
        // A row that was put over another one has the deleter's mark. Rows that are routed to a partition do not say.
        let tells = statements.upsert.contains(" DO UPDATE SET ") && !meta.partitioned;
        if tells {
            statements.upsert += RETURNING_NEW;
        }
        Self { meta, statements, names, tells }
    }
}

/// One statement for the follower.
#[derive(Debug, PartialEq, Eq)]
pub struct Call<'a> {
    /// Name it is prepared under.
    pub name: &'a str,
    /// Its text.
    pub sql: &'a str,
    /// All as text.
    pub parameters: Vec<Option<Cow<'a, [u8]>>>,
    /// A row that was there must be hit: one that is not is either in doubt there or was never copied.
    pub must_hit: bool,
    /// [`TableMeta::number`]
    pub table: i32,
    /// Whether the row was there on the lead: so it must have been here. `None`: the answer does not say.
    pub was_there: Option<bool>,
}

/// What answers say of the rows that were there before, by [`TableMeta::number`].
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Tables of which something was said.
    pub compared: BTreeSet<i32>,
    /// Those of which the follower did not have the rows that the lead had, or had others.
    pub differed: BTreeSet<i32>,
}

impl Counts {
    /// The answer to `call`; `fresh`: whether the row is new there, as a DataRow's body says it.
    pub fn add(&mut self, call: &Call<'_>, fresh: Option<&[u8]>) {
        let found = match fresh {
            Some(b"\0\x01\0\0\0\x01t") => false,
            Some(b"\0\x01\0\0\0\x01f") => true,
            _ => return,
        };
        let Some(was_there) = call.was_there else { return };
        self.compared.insert(call.table);
        if found != was_there {
            self.differed.insert(call.table);
        }
    }

    /// A row of this table had to be hit, and was or was not.
    pub fn hit(&mut self, table: i32, hit: bool) {
        self.compared.insert(table);
        if !hit {
            self.differed.insert(table);
        }
    }
}

/// How rows are put in place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Order {
    /// Rows that are gone first, then the others as they came.
    Plain,
    /// All keys out, then all rows in: values of unique columns that changed places do not meet.
    OutThenIn,
}

/// The write set cannot be sent to the follower.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unfit {
    /// Installed since this process looked, or removed.
    #[error("table number {0} is not known")]
    Table(i32),
    /// A row of other columns: the table was changed since it was installed.
    #[error("a row of table number {0} does not fit what is installed; run crossfade mirror install")]
    Row(i32),
}

/// Statements that bring the follower to what the lead has.
pub fn batch<'a>(
    set: &'a WriteSet,
    tables: impl Fn(i32) -> Option<&'a Destination>,
    order: Order,
) -> Result<Vec<Call<'a>>, Unfit> {
    let (mut first, mut out, mut into) = (Vec::new(), Vec::new(), Vec::new());
    for change in &set.changes {
        // After a TRUNCATE of the same transaction nothing is left to hit.
        let truncated = || set.changes.iter().any(|c| c.table == change.table && c.key.is_none());
        let table = tables(change.table).ok_or(Unfit::Table(change.table))?;
        match (&change.key, &change.image) {
            (None, None) => first.push(Call {
                name: &table.names.truncate,
                sql: &table.statements.truncate,
                parameters: Vec::new(),
                must_hit: false,
                table: change.table,
                was_there: None,
            }),
            (None, Some(image)) => into.push(Call {
                name: &table.names.insert,
                sql: &table.statements.insert,
                parameters: record(table, image)?,
                must_hit: false,
                table: change.table,
                was_there: None,
            }),
            (Some(key), None) => {
                out.push(delete(table, key, change.existed() && !truncated())?);
            }
            (Some(key), Some(image)) => {
                if order == Order::OutThenIn {
                    out.push(delete(table, key, false)?);
                }
                into.push(Call {
                    name: &table.names.upsert,
                    sql: &table.statements.upsert,
                    parameters: record(table, image)?,
                    must_hit: false,
                    table: change.table,
                    was_there: (table.tells && order == Order::Plain && !truncated())
                        .then(|| change.existed()),
                });
            }
        }
    }
    first.append(&mut out);
    first.append(&mut into);
    Ok(first)
}

/// Does it hold rows without a key, which must not be put in twice?
pub fn has_whole_rows(set: &WriteSet) -> bool {
    set.changes.iter().any(|c: &Change| c.key.is_none() && c.image.is_some())
}

fn delete<'a>(table: &'a Destination, key: &'a [u8], must_hit: bool) -> Result<Call<'a>, Unfit> {
    let columns = key_columns(key, table.meta.key_columns.len()).ok_or(Unfit::Row(table.meta.number))?;
    let parameters = columns.into_iter().map(Some).collect();
    let (name, sql) = (&table.names.delete, &table.statements.delete);
    Ok(Call { name, sql, parameters, must_hit, table: table.meta.number, was_there: None })
}

fn record<'a>(table: &'a Destination, image: &'a [u8]) -> Result<Vec<Option<Cow<'a, [u8]>>>, Unfit> {
    let columns = parse_record(image);
    if columns.len() == table.meta.columns.len() { Ok(columns) } else { Err(Unfit::Row(table.meta.number)) }
}

/// Rows of the follower are new or were there before.
const RETURNING_NEW: &str = " RETURNING xmax OPERATOR(pg_catalog.=) 0";

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn table(number: i32, key: &[&str]) -> Destination {
        let owned = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect();
        let meta = TableMeta {
            number,
            schema: "s".into(),
            name: format!("t{number}"),
            key_columns: owned(key),
            columns: owned(&["a", "b"]),
            ..TableMeta::default()
        };
        Destination::new(meta, 3)
    }

    fn set(changes: &[(i32, &'static str, Option<&'static str>, Option<&'static str>)]) -> WriteSet {
        let bytes = |text: &'static str| Bytes::from_static(text.as_bytes());
        let change = |&(table, operations, key, image): &(i32, &'static str, Option<_>, Option<_>)| Change {
            table,
            operations: bytes(operations),
            key: key.map(bytes),
            image: image.map(bytes),
        };
        WriteSet { changes: changes.iter().map(change).collect(), ..WriteSet::default() }
    }

    /// `name(parameters)` of each call, with `!` where a row must be hit.
    #[track_caller]
    fn check(set: &WriteSet, order: Order, expected: &[&str]) {
        let tables = [table(5, &["a"]), table(6, &["a", "b"]), table(7, &[])];
        let calls = batch(set, |n| tables.iter().find(|t| t.meta.number == n), order).unwrap();
        let show = |c: &Call<'_>| {
            let text = |p: &Option<Cow<'_, [u8]>>| {
                p.as_deref().map_or("NULL".into(), |b| String::from_utf8_lossy(b).into_owned())
            };
            let parameters: Vec<_> = c.parameters.iter().map(text).collect();
            let name = c.name.trim_start_matches("crossfade_").trim_end_matches("_3");
            format!("{name}({}){}", parameters.join(","), if c.must_hit { "!" } else { "" })
        };
        assert_eq!(calls.iter().map(show).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn rows_become_statements() {
        use Order::{OutThenIn, Plain};
        check(&set(&[]), Plain, &[]);
        check(&set(&[(5, "I", Some("1"), Some("(1,x)"))]), Plain, &["upsert_5(1,x)"]);
        check(&set(&[(5, "U", Some("1"), Some("(1,)"))]), Plain, &["upsert_5(1,NULL)"]);
        check(&set(&[(5, "D", Some("1"), None)]), Plain, &["delete_5(1)!"]);
        check(&set(&[(5, "UD", Some("1"), None)]), Plain, &["delete_5(1)!"]);
        check(&set(&[(5, "ID", Some("1"), None)]), Plain, &["delete_5(1)"]);
        check(&set(&[(7, "R", None, Some("(1,2)"))]), Plain, &["insert_7(1,2)"]);
        check(&set(&[(6, "D", Some(r#"{1,"a,b"}"#), None)]), Plain, &["delete_6(1,a,b)!"]);
        let swap = set(&[(5, "U", Some("1"), Some("(1,b)")), (5, "D", Some("3"), None)]);
        check(&swap, Plain, &["delete_5(3)!", "upsert_5(1,b)"]);
        check(&swap, OutThenIn, &["delete_5(1)", "delete_5(3)!", "upsert_5(1,b)"]);
        let emptied =
            set(&[(5, "T", None, None), (5, "D", Some("3"), None), (5, "I", Some("4"), Some("(4,)"))]);
        check(&emptied, Plain, &["truncate_5()", "delete_5(3)", "upsert_5(4,NULL)"]);
    }

    #[test]
    fn counts_are_of_what_was_there() {
        let tables = [table(5, &["a"]), table(7, &[])];
        let (new, old): (&[u8], &[u8]) = (b"\0\x01\0\0\0\x01t", b"\0\x01\0\0\0\x01f");
        let said = |operations, fresh: Option<&[u8]>, order| {
            let set = set(&[(5, operations, Some("1"), Some("(1,x)"))]);
            let calls = batch(&set, |n| tables.iter().find(|t| t.meta.number == n), order).unwrap();
            let mut counts = Counts::default();
            counts.add(calls.last().unwrap(), fresh);
            counts.compared.contains(&5).then(|| !counts.differed.contains(&5))
        };
        for (operations, fresh, order, expected) in [
            ("I", Some(new), Order::Plain, Some(true)),
            ("I", Some(old), Order::Plain, Some(false)), // a row too many
            ("U", Some(old), Order::Plain, Some(true)),
            ("U", Some(new), Order::Plain, Some(false)), // a row too few
            ("DI", Some(old), Order::Plain, Some(true)),
            ("U", None, Order::Plain, None),
            ("U", Some(new), Order::OutThenIn, None),
        ] {
            assert_eq!(said(operations, fresh, order), expected, "{operations}");
        }
        let silent = |set: &WriteSet| {
            let calls = batch(set, |n| tables.iter().find(|t| t.meta.number == n), Order::Plain);
            calls.unwrap().iter().all(|call| call.was_there.is_none())
        };
        assert!(silent(&set(&[(5, "T", None, None), (5, "U", Some("1"), Some("(1,x)"))])));
        assert!(silent(&set(&[(7, "R", None, Some("(1,2)"))])));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let tables = [table(5, &["a"])];
        for (change, expected) in [
            ((8, "I", Some("1"), Some("(1,2)")), Unfit::Table(8)),
            ((5, "I", Some("1"), Some("(1,2,3)")), Unfit::Row(5)),
            ((5, "I", Some("1"), Some("1")), Unfit::Row(5)),
        ] {
            let set = set(&[change]);
            let find = |n| tables.iter().find(|t| t.meta.number == n);
            assert_eq!(batch(&set, find, Order::Plain).map(|_| ()), Err(expected));
        }
    }
}
