//! The SQL that records what transactions change: trigger functions, triggers, and the function that reads a write
//! set. Pure: text in, text out.
//!
//! Trigger functions run as the client, with its `search_path` and its settings, so every name and operator in them is
//! qualified, nothing depends on `standard_conforming_strings`, and no operator is implied (no IN, BETWEEN, CASE x,
//! IS DISTINCT FROM). An entry is `"I5:42",`: ready to stand in an array literal.

use std::fmt::Write as _;

use super::shape::{Kind, Pins};
use crate::statement::Table;

/// Bytes of entries that a transaction holds before they go to the journal.
pub const HELD_BYTES: usize = 32 * 1024;

/// A table as it is captured.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Captured {
    /// Its number, for good.
    pub number: i32,
    /// That of its repository.
    pub repository: i32,
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
    /// What names its rows; empty: rows are captured whole, and only INSERT is possible.
    pub key: Vec<KeyColumn>,
    /// Columns of an image, in this order.
    pub columns: Vec<String>,
    /// `format_type` of them.
    pub column_types: Vec<String>,
    /// Settings that the text of an image depends on.
    pub pins: Pins,
}

/// A column of a key.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct KeyColumn {
    /// Name, not quoted.
    pub name: String,
    /// Its type.
    pub kind: Kind,
    /// `OPERATOR(schema.=)` of the unique index.
    pub operator: String,
}

/// The four triggers: suffix of name and function, and what fires them.
pub const TRIGGERS: [(char, &str); 4] =
    [('i', "INSERT"), ('u', "UPDATE"), ('d', "DELETE"), ('t', "TRUNCATE")];

/// `"name"`, quotes doubled.
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `"schema"."name"`.
pub fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", identifier(schema), identifier(name))
}

/// `'text'` that means the same whatever `standard_conforming_strings` is.
pub fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if text.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

impl KeyColumn {
    /// The text of `row.column`, as a key of its own.
    fn text(&self, row: &str) -> String {
        let column = format!("{row}.{}", identifier(&self.name));
        if self.kind.is_enum {
            // A cast of the user's would win over the type's own text.
            format!("pg_catalog.concat({column})")
        } else if self.is_plain() {
            format!("{column}::pg_catalog.text")
        } else {
            format!("({column}::pg_catalog.text COLLATE pg_catalog.\"C\")")
        }
    }

    /// Has its text neither quotes nor backslashes?
    fn is_plain(&self) -> bool {
        self.is_exact()
            || ["numeric", "float4", "float8", "interval", "inet", "cidr"].contains(&self.type_name())
    }

    /// Are two values equal just when their texts are, and can they be compared without them?
    fn is_exact(&self) -> bool {
        let exact = ["int2", "int4", "int8", "uuid", "oid", "bool", "date", "timestamp", "timestamptz"];
        exact.contains(&self.type_name())
    }

    fn type_name(&self) -> &str {
        &self.kind.built_in
    }

    /// `column = text` for an index scan; `text` is an expression of type text.
    fn lookup(&self, row: &str, text: &str) -> String {
        let column = format!("{row}.{}", identifier(&self.name));
        let base = &self.kind.base;
        if self.kind.is_enum {
            // No cast from text: the owner of the type may define one, and this runs as the control user.
            return format!(
                "{column} {} (SELECT v.v FROM pg_catalog.unnest(pg_catalog.enum_range(NULL::{base})) v(v) \
                 WHERE pg_catalog.concat(v.v) OPERATOR(pg_catalog.=) {text})",
                self.operator
            );
        }
        format!("{column} {} {text}::{base}", self.operator)
    }
}

impl Captured {
    /// Its name.
    pub fn table(&self) -> Table {
        Table { schema: self.schema.clone(), name: self.name.clone() }
    }

    /// The text of the key of `row`, an expression.
    fn key_text(&self, row: &str) -> String {
        match self.key.as_slice() {
            [only] => only.text(row),
            several => {
                let texts: Vec<_> = several.iter().map(|column| column.text(row)).collect();
                format!("ARRAY[{}]::pg_catalog.text", texts.join(", "))
            }
        }
    }

    /// The text of the key of `row` as it stands between the quotes of an array literal.
    fn entry_text(&self, row: &str) -> String {
        match self.key.as_slice() {
            [only] if only.is_plain() => only.text(row),
            _ => escaped(&self.key_text(row)),
        }
    }

    fn image(&self, row: &str) -> String {
        let columns: Vec<_> = self.columns.iter().map(|c| format!("{row}.{}", identifier(c))).collect();
        format!("ROW({})::pg_catalog.text", columns.join(", "))
    }

    /// Settings that the trigger functions pin.
    fn trigger_pins(&self) -> Pins {
        if self.key.is_empty() {
            return self.pins;
        }
        self.key.iter().fold(Pins::default(), |all, column| all.with(column.kind.pins))
    }

    /// `CREATE OR REPLACE FUNCTION` for the trigger with this suffix.
    pub fn function(&self, suffix: char) -> String {
        let body = self.body(suffix);
        let tag = tag(&body);
        let pins = pins(if "iud".contains(suffix) { self.trigger_pins() } else { Pins::default() });
        format!(
            "CREATE OR REPLACE FUNCTION crossfade.c{}_{suffix}() RETURNS pg_catalog.trigger LANGUAGE plpgsql{pins} AS {tag}\n{body}{tag}",
            self.number
        )
    }

    /// Source text of the trigger function with this suffix, as `pg_proc.prosrc` has it after its first line break.
    fn body(&self, suffix: char) -> String {
        let number = self.number;
        let one = |letter: char, row: &str| {
            format!(
                "'\"{letter}{number}:' OPERATOR(pg_catalog.||) {} OPERATOR(pg_catalog.||) '\",'",
                self.entry_text(row)
            )
        };
        let entry = match suffix {
            't' => return self.truncate_body(),
            'i' if self.key.is_empty() => {
                let image = escaped(&format!("({} COLLATE pg_catalog.\"C\")", self.image("NEW")));
                format!(
                    "  entry := '\"R{number}:' OPERATOR(pg_catalog.||) {image} OPERATOR(pg_catalog.||) '\",';\n"
                )
            }
            'u' | 'd' if self.key.is_empty() => return self.refusal(suffix),
            'i' => format!("  entry := {};\n", one('I', "NEW")),
            'd' => format!("  entry := {};\n", one('D', "OLD")),
            _ => {
                let same: Vec<_> = self.key.iter().map(unchanged).collect();
                format!(
                    "  IF {} THEN\n    entry := {};\n  ELSE\n    entry := {} OPERATOR(pg_catalog.||) {};\n  END IF;\n",
                    same.join(" AND "),
                    one('U', "NEW"),
                    one('D', "OLD"),
                    one('I', "NEW")
                )
            }
        };
        format!("{HEAD}{entry}{}", tail(self.repository))
    }

    /// A partition's trigger has an argument. Emptied together with its root, it has nothing to add; alone, the repairer
    /// looks at every key: the partitions of the other side need not be the same.
    fn truncate_body(&self) -> String {
        let (number, repository) = (self.number, self.repository);
        format!(
            "{HEAD}  entry := '\"T{number}:\",';\n  IF TG_NARGS OPERATOR(pg_catalog.>) 0 AND size OPERATOR(pg_catalog.>) 0 THEN\n    \
             IF pg_catalog.strpos(held, entry) OPERATOR(pg_catalog.=) 0 THEN\n      \
             PERFORM crossfade.spill(held OPERATOR(pg_catalog.||) entry, '', {repository});\n    END IF;\n    RETURN NULL;\n  END IF;\n{}",
            tail(repository)
        )
    }

    fn refusal(&self, suffix: char) -> String {
        let word = if suffix == 'u' { "UPDATE" } else { "DELETE" };
        let message =
            format!("crossfade: {word} on {}.{}, which is mirrored and has no key", self.schema, self.name);
        format!(
            "BEGIN\n  RAISE EXCEPTION USING ERRCODE = '55000', MESSAGE = {},\n    HINT = 'Add a primary key, or a unique index over columns that are NOT NULL, on both sides; then run crossfade mirror install.';\nEND;\n",
            literal(&message)
        )
    }

    /// `CREATE TRIGGER` on `on`, which is the table itself or, for TRUNCATE, one of its partitions.
    pub fn trigger(&self, suffix: char, on: &Table, control_user: &str) -> String {
        let event = TRIGGERS.iter().find(|(s, _)| *s == suffix).map_or("", |(_, event)| event);
        let each = if suffix == 't' { "STATEMENT" } else { "ROW" };
        let argument = if *on == self.table() { "" } else { "'partition'" };
        format!(
            "CREATE TRIGGER crossfade_{suffix} AFTER {event} ON {} FOR EACH {each} \
             WHEN (pg_catalog.current_setting('crossfade.role', true) IS DISTINCT FROM 'apply' \
             OR session_user <> {}) EXECUTE FUNCTION crossfade.c{}_{suffix}({argument})",
            qualified(&on.schema, &on.name),
            literal(control_user),
            self.number
        )
    }

    /// The branch of `collect` that reads the final row of `key` into `image`.
    fn lookup(&self) -> String {
        if self.key.is_empty() {
            return "image := NULL;\n".to_owned();
        }
        let condition: Vec<String> = match self.key.as_slice() {
            [only] => vec![only.lookup("t", "one.k")],
            several => several.iter().zip(1..).map(|(c, n)| c.lookup("t", &format!("parts[{n}]"))).collect(),
        };
        let split = if self.key.len() > 1 { "parts := one.k::text[];\n" } else { "" };
        format!(
            "{split}SELECT {} INTO image FROM {} t WHERE {};\n",
            self.image("t"),
            qualified(&self.schema, &self.name),
            condition.join(" AND ")
        )
    }
}

/// The expression that says that a key column has not changed.
fn unchanged(column: &KeyColumn) -> String {
    if column.is_exact() {
        let name = identifier(&column.name);
        return format!("OLD.{name} OPERATOR(pg_catalog.=) NEW.{name}");
    }
    format!("{} OPERATOR(pg_catalog.=) {}", column.text("OLD"), column.text("NEW"))
}

/// Between the quotes of an array literal, quotes and backslashes have a backslash before them.
fn escaped(text: &str) -> String {
    format!("pg_catalog.replace(pg_catalog.replace({text}, E'\\\\', E'\\\\\\\\'), '\"', E'\\\\\"')")
}

const HEAD: &str = "#variable_conflict use_variable
DECLARE
  held pg_catalog.text := pg_catalog.current_setting('crossfade.keys', true);
  size pg_catalog.int4 := pg_catalog.octet_length(held);
  entry pg_catalog.text;
BEGIN
";

/// An assignment of one expression runs without a query of its own.
fn tail(repository: i32) -> String {
    format!(
        "  IF size OPERATOR(pg_catalog.>) 0 AND size OPERATOR(pg_catalog.<) {HELD_BYTES} THEN\n    \
         held := pg_catalog.set_config('crossfade.keys', held OPERATOR(pg_catalog.||) entry, true);\n  \
         ELSE\n    PERFORM crossfade.spill(held, entry, {repository});\n  END IF;\n  RETURN NULL;\nEND;\n"
    )
}

/// A dollar quote that does not occur in `body`.
fn tag(body: &str) -> String {
    let tags = (0..=body.len()).map(|n| format!("$crossfade{n}$"));
    tags.into_iter().find(|tag| !body.contains(tag)).expect("more tags than the body has room for")
}

/// SET clauses of a function.
fn pins(pins: Pins) -> String {
    let all = [
        (Pins::DATE, "DateStyle = 'ISO, YMD'"),
        (Pins::ZONE, "TimeZone = 'UTC'"),
        (Pins::INTERVAL, "IntervalStyle = 'postgres'"),
        (Pins::FLOAT, "extra_float_digits = 1"),
        (Pins::BYTES, "bytea_output = 'hex'"),
        (Pins::MONEY, "lc_monetary = 'C'"),
        (Pins::NAMES, "search_path = pg_catalog, pg_temp SET quote_all_identifiers = off"),
    ];
    all.iter().filter(|(pin, _)| pins.has(*pin)).fold(String::new(), |text, (_, set)| text + " SET " + set)
}

/// `crossfade.collect`: the write set of the transaction, for whoever knows the token with this SHA-256 (hexadecimal).
///
/// It runs as the control user, since a client need not be allowed to read what it writes; hence the token.
pub fn collect(tables: &[Captured], token_sha256: &str) -> String {
    // `search_path` is pinned once, by its own clause.
    let all = tables.iter().fold(Pins::default(), |all, table| all.with(table.pins));
    let settings = pins(all).replace(" SET search_path = pg_catalog, pg_temp", "");
    let mut sorted: Vec<&Captured> = tables.iter().collect();
    sorted.sort_by_key(|table| table.number);
    let mut lookups = String::new();
    branch(&sorted, &mut lookups);
    let body = COLLECT.replace("@sha256", token_sha256).replace("@lookups", &lookups);
    let tag = tag(&body);
    format!(
        "CREATE OR REPLACE FUNCTION crossfade.collect(journal boolean, token text)\n\
         RETURNS TABLE (relation int, ops text, key text, image text) LANGUAGE plpgsql VOLATILE SECURITY DEFINER\n\
         SET search_path = pg_catalog, pg_temp SET row_security = off{settings} AS {tag}\n{body}{tag};\n\
         REVOKE ALL ON FUNCTION crossfade.collect(boolean, text) FROM PUBLIC;\n\
         GRANT EXECUTE ON FUNCTION crossfade.collect(boolean, text) TO PUBLIC"
    )
}

/// A binary tree of IFs over the numbers.
fn branch(tables: &[&Captured], text: &mut String) {
    match tables {
        [] => text.push_str("NULL;\n"),
        [one] => text.push_str(&one.lookup()),
        several => {
            let (low, high) = several.split_at(several.len() / 2);
            let _ = writeln!(text, "IF one.number < {} THEN", high[0].number);
            branch(low, text);
            text.push_str("ELSE\n");
            branch(high, text);
            text.push_str("END IF;\n");
        }
    }
}

/// What stands before the last TRUNCATE of its table is void. T comes first, then keys and rows as they came.
const COLLECT: &str = "#variable_conflict use_variable
DECLARE
  held text := current_setting('crossfade.keys', true);
  collected text[];
  parts text[];
  one record;
BEGIN
  IF sha256(convert_to(token, 'UTF8')) IS DISTINCT FROM decode('@sha256', 'hex') THEN
    RAISE EXCEPTION USING ERRCODE = '42501', MESSAGE = 'crossfade: only the proxy may read write sets';
  END IF;
  relation := 0;
  ops := '';
  IF held <> '' THEN
    IF left(held, 1) = '!' THEN
      ops := '!';
    END IF;
    IF length(held) > 1 THEN
      collected := ('{' || rtrim(substr(held, 2), ',') || '}')::text[];
    END IF;
  END IF;
  IF collected IS NOT NULL AND (journal OR ops = '!') THEN
    INSERT INTO crossfade.journal (xid, sync, entries) VALUES (pg_current_xact_id(), ops = '', collected)
    RETURNING id::text INTO image;
  END IF;
  key := pg_current_xact_id_if_assigned()::text;
  RETURN NEXT;
  IF collected IS NULL OR ops = '!' THEN
    RETURN;
  END IF;
  FOR one IN
    WITH entries AS (
      SELECT u.place, left(u.entry, 1) AS op, substr(u.entry, 2, strpos(u.entry, ':') - 2)::int AS number,
             substr(u.entry, strpos(u.entry, ':') + 1) AS rest
      FROM unnest(collected) WITH ORDINALITY u(entry, place)
    ), valid AS (
      SELECT e.*, max(e.place) FILTER (WHERE e.op = 'T') OVER (PARTITION BY e.number) AS emptied FROM entries e
    )
    SELECT v.number, min(v.op) AS first, string_agg(v.op, '' ORDER BY v.place) AS ops,
           v.rest COLLATE \"C\" AS k, min(v.place) AS place
    FROM valid v WHERE v.emptied IS NULL OR v.place >= v.emptied
    GROUP BY v.number, v.rest COLLATE \"C\", CASE v.op WHEN 'R' THEN v.place WHEN 'T' THEN -1 ELSE 0 END
    ORDER BY min(v.op) <> 'T', min(v.place)
  LOOP
    relation := one.number;
    ops := one.ops;
    IF one.first = 'T' THEN
      key := NULL; image := NULL;
    ELSIF one.first = 'R' THEN
      key := NULL; image := one.k;
    ELSE
      key := one.k; image := NULL;
@lookups
    END IF;
    RETURN NEXT;
  END LOOP;
END;
";
