//! Rows on the follower: what capture says, and the SQL that makes it so. Pure: texts in, texts out.
//!
//! The repairer sends these statements over a control connection, the data path as frames of its own. All
//! parameters are text; the follower's own input functions give them their types.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use crate::wire::frame::quote_ident;

/// Class of the fence's advisory locks; the second number is the repository's.
pub const FENCE: i32 = super::schema::LOCK_CLASS;

/// A mirrored table as `crossfade.tables` has it, with what the follower's catalog adds.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TableMeta {
    /// Its number in entries; given once, never used again.
    pub number: i32,
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
    /// The repository that it belongs to.
    pub repository: String,
    /// Columns of the key; none: whole rows, INSERT only.
    pub key_columns: Vec<String>,
    /// What an image holds, in this order.
    pub columns: Vec<String>,
    /// `format_type` of each of `columns`, on the source.
    pub column_types: Vec<String>,
    /// Equality of each key column's index, qualified: `pg_catalog.=`, `public.=` of citext. Missing ones are
    /// `pg_catalog.=`.
    pub key_operators: Vec<String>,
    /// Columns `GENERATED ALWAYS AS IDENTITY`: they can be inserted, but never be set.
    pub identity_always: Vec<String>,
    /// Has partitions: statements then go to all of them; else to this table alone, not to heirs.
    pub partitioned: bool,
}

impl TableMeta {
    /// `"schema"."name"`
    pub fn quoted(&self) -> String {
        format!("{}.{}", quote_ident(&self.schema), quote_ident(&self.name))
    }

    /// Are its rows known by a key, or only whole?
    pub fn has_key(&self) -> bool {
        !self.key_columns.is_empty()
    }
}

/// SQL texts of one table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Statements {
    /// One row in, or over what is there: `$1..$n` are the columns. Empty without a key.
    pub upsert: String,
    /// One row out: `$1..$k` are the key's columns. Empty without a key.
    pub delete: String,
    /// One row in: `$1..$n` are the columns. An error if its key is there.
    pub insert: String,
    /// All rows out. No parameters. `DELETE`, for `TRUNCATE` is refused where a foreign key points here; without a
    /// key `TRUNCATE`, which waits for rows in doubt.
    pub truncate: String,
    /// Image of one row as record text, or no row: `$1..$k` are the key's columns. Empty without a key.
    pub image: String,
    /// All keys, as entries write them. Empty without a key.
    pub keys: String,
}

impl Statements {
    /// The statements of a table.
    pub fn of(table: &TableMeta) -> Self {
        let columns = list(&table.columns, |c| quote_ident(c));
        let values = list(1..=table.columns.len(), |n| format!("${n}"));
        let insert =
            format!("INSERT INTO {} ({columns}) OVERRIDING SYSTEM VALUE VALUES ({values})", table.quoted());
        let only = if table.partitioned { "" } else { "ONLY " };
        let from = format!("{only}{}", table.quoted());
        if !table.has_key() {
            let empty = String::new();
            return Self {
                upsert: empty.clone(),
                delete: empty.clone(),
                insert,
                truncate: format!("TRUNCATE {from}"),
                image: empty.clone(),
                keys: empty,
            };
        }
        let matches = key_is(table, |n| n + 1);
        Self {
            upsert: upsert(table, &insert),
            delete: format!("DELETE FROM {from} WHERE {matches}"),
            truncate: format!("DELETE FROM {from}"),
            image: format!("SELECT ROW({columns})::pg_catalog.text FROM {from} WHERE {matches}"),
            keys: format!("SELECT {} FROM {from}", key_text(table)),
            insert,
        }
    }
}

/// An expression that gives the key of a row as entries write it.
pub fn key_text(table: &TableMeta) -> String {
    match table.key_columns.as_slice() {
        [one] => format!("{}::pg_catalog.text", quote_ident(one)),
        several => {
            let texts = list(several, |c| format!("{}::pg_catalog.text", quote_ident(c)));
            format!("ARRAY[{texts}]::pg_catalog.text")
        }
    }
}

/// Key columns are set as well: equal keys can look different (numeric 1.0 and 1.00, citext), and the row must look
/// like the lead's. A column that is always identity cannot be set: of a key it is an integer, and cannot look
/// different; any other makes the row go out and in again.
fn upsert(table: &TableMeta, insert: &str) -> String {
    let key = list(&table.key_columns, |c| quote_ident(c));
    let is_key = |c: &String| table.key_columns.contains(c);
    if table.identity_always.iter().any(|c| table.columns.contains(c) && !is_key(c)) {
        return out_and_in(table);
    }
    let set: Vec<&String> = table.columns.iter().filter(|c| !table.identity_always.contains(c)).collect();
    if set.is_empty() {
        return format!("{insert} ON CONFLICT ({key}) DO NOTHING");
    }
    let set = list(set, |c| format!("{0} = EXCLUDED.{0}", quote_ident(c)));
    format!("{insert} ON CONFLICT ({key}) DO UPDATE SET {set}")
}

/// The aggregate makes the insertion wait for the deletion.
fn out_and_in(table: &TableMeta) -> String {
    let only = if table.partitioned { "" } else { "ONLY " };
    let place = |n: usize| {
        let column = &table.key_columns[n];
        table.columns.iter().position(|c| c == column).map_or(n, |at| at) + 1
    };
    let (name, columns) = (table.quoted(), list(&table.columns, |c| quote_ident(c)));
    let values = list(1..=table.columns.len(), |n| match table.column_types.get(n - 1) {
        Some(name) => format!("${n}::{name}"),
        None => format!("${n}"),
    });
    format!(
        "WITH gone AS (DELETE FROM {only}{name} WHERE {} RETURNING 1) \
         INSERT INTO {name} ({columns}) OVERRIDING SYSTEM VALUE \
         SELECT {values} FROM (SELECT pg_catalog.count(*) FROM gone) AS waited",
        key_is(table, place)
    )
}

/// `"a" OPERATOR(pg_catalog.=) $1 AND ...`; `place` gives the number of the parameter of the n-th key column.
fn key_is(table: &TableMeta, place: impl Fn(usize) -> usize) -> String {
    let mut text = String::new();
    for (n, column) in table.key_columns.iter().enumerate() {
        let operator = table.key_operators.get(n).map_or("pg_catalog.=", String::as_str);
        let and = if n == 0 { "" } else { " AND " };
        write!(text, "{and}{} OPERATOR({operator}) ${}", quote_ident(column), place(n))
            .expect("a String grows");
    }
    text
}

fn list<T>(items: impl IntoIterator<Item = T>, text: impl Fn(T) -> String) -> String {
    items.into_iter().map(text).collect::<Vec<_>>().join(", ")
}

/// What happened to a row, or to a table.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Operation {
    /// A row came.
    Insert,
    /// A row changed, its key did not.
    Update,
    /// A row went.
    Delete,
    /// A row came, of a table without a key: the entry holds all of it.
    Whole,
    /// All rows of the table or of one of its partitions went.
    Truncate,
}

impl Operation {
    /// From the letter of an entry, or of `ops` in a write set.
    pub fn from_letter(letter: u8) -> Option<Self> {
        match letter {
            b'I' => Some(Operation::Insert),
            b'U' => Some(Operation::Update),
            b'D' => Some(Operation::Delete),
            b'R' => Some(Operation::Whole),
            b'T' => Some(Operation::Truncate),
            _ => None,
        }
    }
}

/// One entry of the journal: `U5:42`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Entry<'a> {
    /// What happened.
    pub operation: Operation,
    /// [`TableMeta::number`].
    pub table: i32,
    /// The key, for [`Operation::Whole`] the row as record text.
    pub text: &'a str,
}

impl<'a> Entry<'a> {
    /// Reads an entry. `None` for what no capture of this version writes.
    pub fn parse(entry: &'a str) -> Option<Self> {
        let operation = Operation::from_letter(*entry.as_bytes().first()?)?;
        let (number, text) = entry.get(1..)?.split_once(':')?;
        // `parse` alone takes a sign.
        number.as_bytes().first().filter(|b| b.is_ascii_digit())?;
        Some(Self { operation, table: number.parse().ok()?, text })
    }
}

/// A row, as the journal knows it. Ordered: who takes rows takes them in this order, so nobody deadlocks.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key {
    /// [`TableMeta::number`].
    pub table: i32,
    /// Text of the key's column; of several columns, of their array.
    pub text: String,
}

impl Key {
    /// The values of the key's columns, in text. `None` when they are not as many as the table's.
    pub fn columns(&self, table: &TableMeta) -> Option<Vec<Cow<'_, [u8]>>> {
        key_columns(self.text.as_bytes(), table.key_columns.len())
    }
}

/// The values of a key of `count` columns. `None` when there are not as many, or one is NULL.
pub fn key_columns(text: &[u8], count: usize) -> Option<Vec<Cow<'_, [u8]>>> {
    if count == 1 {
        return Some(vec![Cow::Borrowed(text)]);
    }
    let columns: Option<Vec<_>> = parse_array(text)?.into_iter().collect();
    columns.filter(|c| c.len() == count)
}

/// The columns of a record's text, `(a,"b ""c",,)`: `None` is NULL. Empty when it is not a record's text; a
/// record without columns does not occur.
pub fn parse_record(text: &[u8]) -> Vec<Option<Cow<'_, [u8]>>> {
    let Some(mut rest) = text.strip_prefix(b"(").and_then(|t| t.strip_suffix(b")")) else {
        return Vec::new();
    };
    let mut columns = Vec::new();
    loop {
        let Some((column, after)) = record_column(rest) else { return Vec::new() };
        columns.push(column);
        match after.split_first() {
            None => return columns,
            Some((b',', more)) => rest = more,
            Some(_) => return Vec::new(),
        }
    }
}

type Parsed<'a> = (Option<Cow<'a, [u8]>>, &'a [u8]);

fn record_column(text: &[u8]) -> Option<Parsed<'_>> {
    match text.first() {
        None | Some(b',') => Some((None, text)),
        Some(b'"') => quoted(text).map(|(value, rest)| (Some(value), rest)),
        Some(_) => {
            let end = text.iter().position(|b| *b == b',').unwrap_or(text.len());
            Some((Some(Cow::Borrowed(&text[..end])), &text[end..]))
        }
    }
}

/// What stands in double quotes, and what follows. `\x` is x; `""` is one quote, as records write it.
fn quoted(text: &[u8]) -> Option<(Cow<'_, [u8]>, &[u8])> {
    let body = text.strip_prefix(b"\"")?;
    let special = |from: usize| Some(from + body[from..].iter().position(|b| matches!(b, b'"' | b'\\'))?);
    let mut at = special(0)?;
    if body[at] == b'"' && body.get(at + 1) != Some(&b'"') {
        return Some((Cow::Borrowed(&body[..at]), &body[at + 1..]));
    }
    let mut value = Vec::with_capacity(body.len().min(1 << 16));
    let mut begin = 0;
    loop {
        value.extend_from_slice(&body[begin..at]);
        if body[at] == b'"' && body.get(at + 1) != Some(&b'"') {
            return Some((Cow::Owned(value), &body[at + 1..]));
        }
        value.push(*body.get(at + 1)?);
        begin = at + 2;
        at = special(begin.min(body.len()))?;
    }
}

/// The elements of a text array's text, `{a,"b \"c",NULL}`, of one dimension. `None` when it is not one.
pub fn parse_array(text: &[u8]) -> Option<Vec<Option<Cow<'_, [u8]>>>> {
    let mut rest = text.strip_prefix(b"{")?.strip_suffix(b"}")?;
    let mut elements = Vec::new();
    if rest.is_empty() {
        return Some(elements);
    }
    loop {
        let after = match rest.first()? {
            b'"' => {
                let (value, after) = quoted(rest)?;
                elements.push(Some(value));
                after
            }
            b'{' | b',' => return None,
            _ => {
                let end = rest.iter().position(|b| *b == b',').unwrap_or(rest.len());
                let word = &rest[..end];
                elements.push((word != b"NULL").then_some(Cow::Borrowed(word)));
                &rest[end..]
            }
        };
        match after.split_first() {
            None => return Some(elements),
            Some((b',', more)) => rest = more,
            Some(_) => return None,
        }
    }
}

/// What a row of the journal asks for, put together from its entries.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Wanted {
    /// Rows to look at, each once, in the order in which they are taken.
    pub keys: BTreeSet<Key>,
    /// Tables of which every row is to be looked at.
    pub truncated: BTreeSet<i32>,
    /// For each table without a key, what happened there, in this order.
    pub whole: BTreeMap<i32, Vec<Whole>>,
    /// Entries that nobody understands, or of tables that are not installed: they stay where they are.
    pub unknown: Vec<Unknown>,
}

/// What happened to a table without a key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Whole {
    /// A row came: its record text.
    Row(String),
    /// All rows went.
    Truncate,
}

/// Why an entry cannot be followed.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, thiserror::Error)]
pub enum Unknown {
    /// Its table is not, or no longer, installed.
    #[error("table number {0} is not installed")]
    Table(i32),
    /// It is not an entry as this version writes them.
    #[error("an entry that this version does not know")]
    Entry,
    /// A truncation of a partitioned table without a key.
    #[error(
        "table number {0}, or a partition of it, was truncated: without a key only an operator knows what to delete"
    )]
    Partition(i32),
    /// A key of other columns than the table's.
    #[error("a key that does not fit table number {0}")]
    Key(i32),
}

impl Wanted {
    /// Reads the entries of one row of the journal; `tables` says what is installed.
    pub fn of<'a, 't>(
        entries: impl IntoIterator<Item = &'a str>,
        tables: impl Fn(i32) -> Option<&'t TableMeta>,
    ) -> Self {
        let mut wanted = Self::default();
        for text in entries {
            if let Err(unknown) = wanted.add(text, &tables) {
                wanted.unknown.push(unknown);
            }
        }
        wanted.unknown.sort_unstable();
        wanted.unknown.dedup();
        wanted
    }

    fn add<'t>(&mut self, text: &str, tables: &impl Fn(i32) -> Option<&'t TableMeta>) -> Result<(), Unknown> {
        let Entry { operation, table: number, text } = Entry::parse(text).ok_or(Unknown::Entry)?;
        let table = tables(number).ok_or(Unknown::Table(number))?;
        match operation {
            Operation::Truncate if table.has_key() => {
                self.truncated.insert(number);
            }
            // Of all of it, or of one partition? Only keys would tell.
            Operation::Truncate if table.partitioned => return Err(Unknown::Partition(number)),
            Operation::Truncate => self.whole.entry(number).or_default().push(Whole::Truncate),
            Operation::Whole if !table.has_key() => {
                self.whole.entry(number).or_default().push(Whole::Row(text.to_owned()));
            }
            Operation::Insert | Operation::Update | Operation::Delete if table.has_key() => {
                key_columns(text.as_bytes(), table.key_columns.len()).ok_or(Unknown::Key(number))?;
                self.keys.insert(Key { table: number, text: text.to_owned() });
            }
            // A table that had no key when this was written, or has none any more.
            Operation::Insert | Operation::Update | Operation::Delete | Operation::Whole => {
                return Err(Unknown::Key(number));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(key: &[&str], columns: &[&str]) -> TableMeta {
        let owned = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect();
        TableMeta {
            number: 5,
            schema: "s".into(),
            name: "t\"x".into(),
            repository: "r".into(),
            key_columns: owned(key),
            columns: owned(columns),
            column_types: columns.iter().map(|_| "bigint".to_owned()).collect(),
            ..TableMeta::default()
        }
    }

    #[test]
    fn statements_of_a_table() {
        let s = Statements::of(&table(&["b", "a"], &["a", "b", "c"]));
        assert_eq!(
            s.upsert,
            r#"INSERT INTO "s"."t""x" ("a", "b", "c") OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3) ON CONFLICT ("b", "a") DO UPDATE SET "a" = EXCLUDED."a", "b" = EXCLUDED."b", "c" = EXCLUDED."c""#
        );
        assert_eq!(
            s.delete,
            r#"DELETE FROM ONLY "s"."t""x" WHERE "b" OPERATOR(pg_catalog.=) $1 AND "a" OPERATOR(pg_catalog.=) $2"#
        );
        assert_eq!(
            s.image,
            r#"SELECT ROW("a", "b", "c")::pg_catalog.text FROM ONLY "s"."t""x" WHERE "b" OPERATOR(pg_catalog.=) $1 AND "a" OPERATOR(pg_catalog.=) $2"#
        );
        assert_eq!(
            s.keys,
            r#"SELECT ARRAY["b"::pg_catalog.text, "a"::pg_catalog.text]::pg_catalog.text FROM ONLY "s"."t""x""#
        );
        assert_eq!(s.truncate, r#"DELETE FROM ONLY "s"."t""x""#);
    }

    #[test]
    fn a_table_without_a_key_is_only_inserted_into() {
        let s = Statements::of(&table(&[], &["a"]));
        assert_eq!(s.insert, r#"INSERT INTO "s"."t""x" ("a") OVERRIDING SYSTEM VALUE VALUES ($1)"#);
        assert_eq!((s.upsert.as_str(), s.delete.as_str(), s.image.as_str()), ("", "", ""));
        assert_eq!(s.truncate, r#"TRUNCATE ONLY "s"."t""x""#);
    }

    #[test]
    fn identity_is_never_set() {
        let mut of_key = table(&["id"], &["id", "a"]);
        of_key.identity_always = vec!["id".into()];
        assert!(Statements::of(&of_key).upsert.ends_with(r#"DO UPDATE SET "a" = EXCLUDED."a""#));
        let mut alone = table(&["id"], &["id"]);
        alone.identity_always = vec!["id".into()];
        assert!(Statements::of(&alone).upsert.ends_with("DO NOTHING"));
        let mut beside = table(&["code"], &["id", "code"]);
        beside.identity_always = vec!["id".into()];
        let upsert = Statements::of(&beside).upsert;
        assert!(upsert.contains(r#"WHERE "code" OPERATOR(pg_catalog.=) $2 RETURNING"#), "{upsert}");
        assert!(upsert.contains("SELECT $1::bigint, $2::bigint FROM"), "{upsert}");
    }

    #[track_caller]
    fn record(text: &str, expected: &[Option<&str>]) {
        let columns = parse_record(text.as_bytes());
        let texts: Vec<_> =
            columns.iter().map(|c| c.as_ref().map(|c| String::from_utf8_lossy(c).into_owned())).collect();
        assert_eq!(texts, expected.iter().map(|c| c.map(str::to_owned)).collect::<Vec<_>>(), "{text}");
    }

    #[test]
    fn records() {
        record("(1)", &[Some("1")]);
        record("()", &[None]);
        record("(,)", &[None, None]);
        record("(a,\"b \"\"c\",,)", &[Some("a"), Some("b \"c"), None, None]);
        record(r#"("",",",")")"#, &[Some(""), Some(","), Some(")")]);
        record(r#"("a\\b","\\","""")"#, &[Some(r"a\b"), Some(r"\"), Some("\"")]);
        record(r#"("""""","\\""")"#, &[Some("\"\""), Some("\\\"")]);
        record("(ä,\"ö ü\")", &[Some("ä"), Some("ö ü")]);
        record("({\"x\":1},\"(1,2)\")", &[Some("{\"x\":1}"), Some("(1,2)")]);
        for broken in ["", "(", ")", "1", "(\"a)", "(\"a\"b)", "(\"a\\\")", "(\"a\"\")"] {
            record(broken, &[]);
        }
    }

    #[track_caller]
    fn array(text: &str, expected: Option<&[Option<&str>]>) {
        let elements = parse_array(text.as_bytes());
        let texts: Option<Vec<_>> = elements
            .map(|e| e.iter().map(|c| c.as_ref().map(|c| String::from_utf8_lossy(c).into_owned())).collect());
        let expected = expected.map(|e| e.iter().map(|c| c.map(str::to_owned)).collect::<Vec<_>>());
        assert_eq!(texts, expected, "{text}");
    }

    #[test]
    fn arrays() {
        array("{}", Some(&[]));
        array("{1,2}", Some(&[Some("1"), Some("2")]));
        array(r#"{"a b","",NULL,"NULL"}"#, Some(&[Some("a b"), Some(""), None, Some("NULL")]));
        array(r#"{"a\"b","\\",","}"#, Some(&[Some("a\"b"), Some("\\"), Some(",")]));
        for broken in ["", "{", "1", "{1,}", "{,1}", "{{1}}", "{\"a}", "{\"a\"b}"] {
            array(broken, None);
        }
    }

    #[test]
    fn entries() {
        let entry = |text: &'static str| Entry::parse(text).map(|e| (e.operation, e.table, e.text));
        assert_eq!(entry("I5:42"), Some((Operation::Insert, 5, "42")));
        assert_eq!(entry("D12:a:b"), Some((Operation::Delete, 12, "a:b")));
        assert_eq!(entry("R7:(1,,x)"), Some((Operation::Whole, 7, "(1,,x)")));
        assert_eq!(entry("T5:"), Some((Operation::Truncate, 5, "")));
        assert_eq!(entry("U5:"), Some((Operation::Update, 5, "")));
        for broken in ["", "I", "I5", "X5:1", "I:1", "Ix:1", "I-5:1", "I+5:1", "ä5:1", "I99999999999:1"] {
            assert_eq!(entry(broken), None, "{broken}");
        }
    }

    #[test]
    fn wanted_is_each_row_once_in_order() {
        let (keyed, bare) = (table(&["a"], &["a"]), TableMeta { number: 7, ..table(&[], &["a"]) });
        let tables = |n| match n {
            5 => Some(&keyed),
            7 => Some(&bare),
            _ => None,
        };
        let entries = ["U5:2", "I5:1", "D5:2", "R7:(1)", "T7:", "R7:(2)", "T5:", "I9:1", "?", "R5:(1)"];
        let wanted = Wanted::of(entries, tables);
        let keys: Vec<_> = wanted.keys.iter().map(|k| k.text.as_str()).collect();
        assert_eq!(keys, ["1", "2"]);
        assert_eq!(wanted.truncated, BTreeSet::from([5]));
        let row = |t: &str| Whole::Row(t.to_owned());
        assert_eq!(wanted.whole[&7], [row("(1)"), Whole::Truncate, row("(2)")]);
        assert_eq!(wanted.unknown, [Unknown::Table(9), Unknown::Entry, Unknown::Key(5)]);
    }

    #[test]
    fn keys_of_several_columns() {
        let key = Key { table: 5, text: "{1,\"a b\"}".into() };
        let columns = key.columns(&table(&["a", "b"], &["a", "b"])).expect("two columns");
        assert_eq!(columns, [&b"1"[..], b"a b"]);
        assert_eq!(key.columns(&table(&["a", "b", "c"], &[])), None);
        assert_eq!(key_columns(b"{1,NULL}", 2), None);
        assert_eq!(key_columns(b"{1", 1), Some(vec![Cow::Borrowed(&b"{1"[..])]));
    }
}
