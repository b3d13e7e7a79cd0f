//! The SQL that records what transactions change: trigger functions, triggers, and the function that reads a write
//! set. Pure: text in, text out.
//!
//! Trigger functions run as the client, with its `search_path` and its settings, so every name and operator in them is
//! qualified, nothing depends on `standard_conforming_strings`, and no operator is implied (no IN, BETWEEN, CASE x,
//! IS DISTINCT FROM). An entry is `"I5:42",`: ready to stand in an array literal.

use std::fmt::Write as _;

use super::shape::{Kind, Pins};
use crate::{
    statement::Table,
    wire::frame::{quote_ident, quote_literal},
};

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

/// `"schema"."name"`.
pub fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", quote_ident(schema), quote_ident(name))
}

/// `'text'` that means the same whatever `standard_conforming_strings` is.
pub fn literal(text: &str) -> String {
    // Nothing stands before it that the space would keep apart.
    quote_literal(text).trim_start().to_owned()
}

impl KeyColumn {
    /// The text of `row.column`, as a key of its own.
    fn text(&self, row: &str) -> String {
        let column = format!("{row}.{}", quote_ident(&self.name));
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
        let column = format!("{row}.{}", quote_ident(&self.name));
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
        let columns: Vec<_> = self.columns.iter().map(|c| format!("{row}.{}", quote_ident(c))).collect();
        format!("ROW({})::pg_catalog.text", columns.join(", "))
    }

    /// Settings that the trigger functions pin.
    fn trigger_pins(&self) -> Pins {
        if self.key.is_empty() {
            return self.pins;
        }
        self.key.iter().fold(Pins::default(), |all, column| all.with(column.kind.pins))
    }

    /// `CREATE OR REPLACE FUNCTION` for the trigger with this suffix: silent in sessions in which `control_user` applies rows.
    pub fn function(&self, suffix: char, control_user: &str) -> String {
        let body = self.body(suffix, control_user);
        let tag = tag(&body);
        let pins = pins(if "iud".contains(suffix) { self.trigger_pins() } else { Pins::default() });
        format!(
            "CREATE OR REPLACE FUNCTION crossfade.c{}_{suffix}() RETURNS pg_catalog.trigger LANGUAGE plpgsql{pins} AS {tag}\n{body}{tag}",
            self.number
        )
    }

    /// Source text of the trigger function with this suffix, as `pg_proc.prosrc` has it after its first line break.
    fn body(&self, suffix: char, control_user: &str) -> String {
        let number = self.number;
        let head = head(self.repository, control_user);
        let one = |letter: char, row: &str| {
            format!(
                "'\"{letter}{number}:' OPERATOR(pg_catalog.||) {} OPERATOR(pg_catalog.||) '\",'",
                self.entry_text(row)
            )
        };
        let entry = match suffix {
            't' => return self.truncate_body(&head),
            'i' if self.key.is_empty() => {
                let image = escaped(&format!("({} COLLATE pg_catalog.\"C\")", self.image("NEW")));
                format!("'\"R{number}:' OPERATOR(pg_catalog.||) {image} OPERATOR(pg_catalog.||) '\",'")
            }
            'u' | 'd' if self.key.is_empty() => return self.refusal(suffix, &head),
            'i' => one('I', "NEW"),
            'd' => one('D', "OLD"),
            _ => {
                let same: Vec<_> = self.key.iter().map(unchanged).collect();
                let (same, update) = (same.join(" AND "), one('U', "NEW"));
                let (gone, new) = (one('D', "OLD"), one('I', "NEW"));
                format!("CASE WHEN {same} THEN {update} ELSE {gone} OPERATOR(pg_catalog.||) {new} END")
            }
        };
        let tail = tail(self.repository);
        format!("{}{head}  entry := {entry};\n{tail}", self.short_cut(&entry))
    }

    /// How most rows go: captured in the transaction, in as few steps as can be, since each step costs.
    fn short_cut(&self, entry: &str) -> String {
        let repository = self.repository;
        format!(
            "{DECLARE}  IF pg_catalog.octet_length(held) OPERATOR(pg_catalog.>) 0 AND pg_catalog.octet_length(held) OPERATOR(pg_catalog.<) {HELD_BYTES}
    AND pg_catalog.octet_length(pg_catalog.current_setting('crossfade.fence_{repository}', true)) OPERATOR(pg_catalog.>) 0 THEN
    held := pg_catalog.set_config('crossfade.keys', held OPERATOR(pg_catalog.||) {entry}, true);
    RETURN NULL;
  END IF;
"
        )
    }

    /// A partition's trigger has an argument. Emptied together with its root, it has nothing to add; alone, the repairer
    /// looks at every key: the partitions of the other side need not be the same.
    fn truncate_body(&self, head: &str) -> String {
        let (number, repository) = (self.number, self.repository);
        format!(
            "{DECLARE}{head}  entry := '\"T{number}:\",';\n  IF TG_NARGS OPERATOR(pg_catalog.>) 0 AND size OPERATOR(pg_catalog.>) 0 THEN\n    \
             IF pg_catalog.strpos(held, entry) OPERATOR(pg_catalog.=) 0 THEN\n      \
             PERFORM crossfade.spill(held OPERATOR(pg_catalog.||) entry, '', {repository});\n    END IF;\n    RETURN NULL;\n  END IF;\n{}",
            tail(repository)
        )
    }

    fn refusal(&self, suffix: char, head: &str) -> String {
        let word = if suffix == 'u' { "UPDATE" } else { "DELETE" };
        let message =
            format!("crossfade: {word} on {}.{}, which is mirrored and has no key", self.schema, self.name);
        format!(
            "{DECLARE}{head}  RAISE EXCEPTION USING ERRCODE = '55000', MESSAGE = {},\n    HINT = 'Add a primary key, or a unique index over columns that are NOT NULL, on both sides; then run crossfade mirror install.';\nEND;\n",
            literal(&message)
        )
    }

    /// `CREATE TRIGGER` on `on`, which is the table itself or, for TRUNCATE, one of its partitions.
    pub fn trigger(&self, suffix: char, on: &Table) -> String {
        let event = TRIGGERS.iter().find(|(s, _)| *s == suffix).map_or("", |(_, event)| event);
        let each = if suffix == 't' { "STATEMENT" } else { "ROW" };
        let argument = if *on == self.table() { "" } else { "'partition'" };
        // No WHEN: Postgres reads such a condition from its stored form in each statement anew, for 25 us.
        format!(
            "CREATE TRIGGER crossfade_{suffix} AFTER {event} ON {} FOR EACH {each} EXECUTE FUNCTION crossfade.c{}_{suffix}({argument})",
            qualified(&on.schema, &on.name),
            self.number
        )
    }

    /// The branch of `collect` that reads the final row of `key` into `image`.
    fn lookup(&self) -> String {
        if self.key.is_empty() {
            return "image := NULL;\n".to_owned();
        }
        let condition: Vec<String> = match self.key.as_slice() {
            [only] => vec![only.lookup("t", "k")],
            several => several.iter().zip(1..).map(|(c, n)| c.lookup("t", &format!("parts[{n}]"))).collect(),
        };
        let split = if self.key.len() > 1 { "parts := k::text[];\n" } else { "" };
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
        let name = quote_ident(&column.name);
        return format!("OLD.{name} OPERATOR(pg_catalog.=) NEW.{name}");
    }
    format!("{} OPERATOR(pg_catalog.=) {}", column.text("OLD"), column.text("NEW"))
}

/// Between the quotes of an array literal, quotes and backslashes have a backslash before them.
fn escaped(text: &str) -> String {
    format!("pg_catalog.replace(pg_catalog.replace({text}, E'\\\\', E'\\\\\\\\'), '\"', E'\\\\\"')")
}

/// Whoever applies rows is not captured. A transaction that was armed for other repositories (a cascade, a trigger) takes the
/// fence of this one first.
fn head(repository: i32, control_user: &str) -> String {
    let user = literal(control_user);
    format!(
        "  IF pg_catalog.current_setting('crossfade.role', true) OPERATOR(pg_catalog.=) 'apply'
    AND session_user OPERATOR(pg_catalog.=) {user}::pg_catalog.name THEN
    RETURN NULL;
  END IF;
  size := pg_catalog.octet_length(held);
  IF size OPERATOR(pg_catalog.>) 0 AND (pg_catalog.octet_length(pg_catalog.current_setting('crossfade.fence_{repository}', true))
    OPERATOR(pg_catalog.>) 0) IS NOT TRUE THEN
    PERFORM crossfade.fence({repository});
  END IF;
"
    )
}

/// How each trigger function begins.
const DECLARE: &str = "#variable_conflict use_variable
DECLARE
  held pg_catalog.text := pg_catalog.current_setting('crossfade.keys', true);
  size pg_catalog.int4;
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
    // `search_path` is pinned once, by its own clause. Rows are looked up by key: a plan made while a table was small must
    // not read all of it once it has grown.
    let all = tables.iter().fold(Pins::default(), |all, table| all.with(table.pins));
    let settings = pins(all).replace(" SET search_path = pg_catalog, pg_temp", "");
    let mut sorted: Vec<&Captured> = tables.iter().collect();
    sorted.sort_by_key(|table| table.number);
    let mut lookups = String::new();
    branch(&sorted, &mut lookups);
    let body = COLLECT.replace("@group", GROUP).replace("@sha256", token_sha256);
    let body = body.replace("@lookups", &lookups);
    let tag = tag(&body);
    format!(
        "CREATE OR REPLACE FUNCTION crossfade.collect(token text)\n\
         RETURNS text[] LANGUAGE plpgsql VOLATILE SECURITY DEFINER\n\
         SET search_path = pg_catalog, pg_temp SET row_security = off SET enable_seqscan = off{settings} AS {tag}\n{body}{tag};\n\
         REVOKE ALL ON FUNCTION crossfade.collect(text) FROM PUBLIC;\n\
         GRANT EXECUTE ON FUNCTION crossfade.collect(text) TO PUBLIC"
    )
}

/// A binary tree of IFs over the numbers.
fn branch(tables: &[&Captured], text: &mut String) {
    match tables {
        [] => text.push_str("NULL;\n"),
        [one] => text.push_str(&one.lookup()),
        several => {
            let (low, high) = several.split_at(several.len() / 2);
            let _ = writeln!(text, "IF number < {} THEN", high[0].number);
            branch(low, text);
            text.push_str("ELSE\n");
            branch(high, text);
            text.push_str("END IF;\n");
        }
    }
}

/// What it gives: `!` when all is in the journal, the transaction, its row in the journal, then in pairs an entry and its
/// final row. One array, since a set of rows costs four times as much; few expressions, since each is made ready anew in every
/// transaction. Entries are gathered by key where there are many, else by who reads them; what stands before the last
/// TRUNCATE of its table is void, and T comes first.
const COLLECT: &str = "#variable_conflict use_variable
DECLARE
  held text := current_setting('crossfade.keys', true);
  collected text[];
  result text[];
  parts text[];
  entry text;
  number int;
  k text;
  image text;
BEGIN
  IF (sha256(token::bytea) = decode('@sha256', 'hex')) IS NOT TRUE THEN
    RAISE EXCEPTION USING ERRCODE = '42501', MESSAGE = 'crossfade: only the proxy may read write sets';
  END IF;
  IF (length(held) > 1) IS NOT TRUE THEN
    RETURN ARRAY[CASE held WHEN '!' THEN '!' ELSE '' END, pg_current_xact_id_if_assigned()::text, NULL];
  END IF;
  collected := ('{' || rtrim(substr(held, 2), ',') || '}')::text[];
  INSERT INTO crossfade.journal (xid, sync, entries) VALUES (pg_current_xact_id(), left(held, 1) = '{', collected)
  RETURNING ARRAY[CASE WHEN sync THEN '' ELSE '!' END, xid::text, id::text] INTO result;
  IF result[1] = '!' THEN
    RETURN result;
  END IF;
  IF cardinality(collected) > 64 OR strpos(held, '\"T') > 0 THEN
@group
  END IF;
  FOREACH entry IN ARRAY collected LOOP
    IF strpos('RT', left(entry, 1)) > 0 THEN
      image := NULL;
    ELSE
      number := ltrim(split_part(entry, ':', 1), 'IUD')::int;
      k := substr(entry, strpos(entry, ':') + 1);
@lookups
    END IF;
    result := result || ARRAY[entry, image];
  END LOOP;
  RETURN result;
END;
";

/// Many entries, or a TRUNCATE among them.
const GROUP: &str = "    WITH entries AS (
      SELECT u.place, left(u.entry, 1) AS op, split_part(substr(u.entry, 2), ':', 1) AS n, substr(u.entry, 2) AS name
      FROM unnest(collected) WITH ORDINALITY u(entry, place)
    ), valid AS (
      SELECT e.*, max(e.place) FILTER (WHERE e.op = 'T') OVER (PARTITION BY e.n) AS emptied FROM entries e
    ), grouped AS (
      SELECT v.name COLLATE \"C\" AS name, string_agg(CASE WHEN v.op = 'T' THEN NULL ELSE v.op END, '' ORDER BY v.place) AS ops,
             min(v.place) AS place
      FROM valid v WHERE v.emptied IS NULL OR v.place >= v.emptied
      GROUP BY v.name COLLATE \"C\", CASE v.op WHEN 'R' THEN v.place WHEN 'T' THEN -1 ELSE 0 END
    )
    SELECT array_agg(coalesce(g.ops, 'T') || g.name ORDER BY g.ops IS NOT NULL, g.place) INTO collected FROM grouped g;";

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, built_in: &str) -> KeyColumn {
        let kind = Kind { base: built_in.to_owned(), built_in: built_in.to_owned(), ..Kind::default() };
        KeyColumn { name: name.to_owned(), kind, operator: "OPERATOR(pg_catalog.=)".to_owned() }
    }

    fn table(key: Vec<KeyColumn>) -> Captured {
        let columns = vec!["id".to_owned(), "$crossfade0$".to_owned()];
        let (schema, name) = ("public".to_owned(), "a \"b".to_owned());
        Captured { number: 7, repository: 2, schema, name, key, columns, ..Captured::default() }
    }

    /// Operators and functions, outside of literals and quoted names, that `search_path` would choose.
    fn unqualified(sql: &str) -> Vec<String> {
        let (mut text, mut quote) = (String::new(), None);
        for c in sql.chars() {
            match quote {
                Some(q) if c == q => quote = None,
                Some(_) => {}
                None if "'\"".contains(c) => quote = Some(c),
                None => text.push(c),
            }
        }
        for operator in ["=", "<", ">", "||"] {
            text = text.replace(&format!("OPERATOR(pg_catalog.{operator})"), "");
        }
        let text = text.replace(":=", "");
        let operators = text.split_whitespace().filter(|w| w.contains(['|', '<', '>', '+', '=', '~']));
        let calls = text.match_indices('(').filter_map(|(at, _)| {
            let name = text[..at].rsplit(|c: char| !(c.is_alphanumeric() || "_.".contains(c))).next()?;
            let free = name.is_empty() || name.contains('.') || name == "ROW";
            (!free).then(|| name.to_owned())
        });
        operators.map(str::to_owned).chain(calls).collect()
    }

    #[test]
    fn nothing_is_left_to_search_path() {
        let mood = KeyColumn { kind: Kind { is_enum: true, ..Kind::default() }, ..column("m", "") };
        let pair = vec![column("id", "text"), column("n", "numeric")];
        for key in [vec![], vec![column("id", "int4")], pair, vec![mood]] {
            let table = table(key);
            for (suffix, _) in TRIGGERS {
                // RAISE ... USING takes `=` for what is no operator.
                let body = table
                    .body(suffix, "it's")
                    .replace("ERRCODE =", "")
                    .replace("MESSAGE =", "")
                    .replace("HINT =", "");
                assert_eq!(unqualified(&body), Vec::<String>::new(), "{body}");
            }
        }
        assert_eq!(unqualified("a || b"), ["||"]);
        assert_eq!(unqualified("concat(a)"), ["concat"]);
    }

    #[test]
    fn only_what_may_hold_quotes_is_escaped() {
        let entry = |key| table(key).entry_text("NEW");
        assert_eq!(entry(vec![column("id", "int8")]), "NEW.\"id\"::pg_catalog.text");
        assert!(entry(vec![column("id", "text")]).starts_with("pg_catalog.replace("));
        assert!(entry(vec![column("a", "int8"), column("b", "int8")]).starts_with("pg_catalog.replace("));
    }

    #[test]
    fn settings_are_pinned_only_where_they_matter() {
        let mut stamp = column("id", "timestamptz");
        stamp.kind.pins = Pins::DATE.with(Pins::ZONE);
        let function = table(vec![stamp]).function('i', "u");
        assert!(
            function.contains("plpgsql SET DateStyle = 'ISO, YMD' SET TimeZone = 'UTC' AS"),
            "{function}"
        );
        let mut table = table(vec![column("id", "int4")]);
        table.pins = Pins::ALL;
        assert!(!table.function('u', "u").contains(" SET "));
        assert!(collect(&[table], "00").contains("SET enable_seqscan = off SET DateStyle"));
    }

    #[test]
    fn text_does_not_end_its_quotes() {
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"a\b'"), r"E'a\\b'''");
        assert_eq!(qualified("a", "b\"c"), r#""a"."b""c""#);
        let function = table(vec![]).function('i', "u");
        assert!(function.contains("AS $crossfade1$"), "{function}");
    }

    #[test]
    fn lookups_are_a_tree() {
        let one = |number| Captured { number, ..table(vec![column("id", "int4")]) };
        let tables: Vec<Captured> = (1..=9).map(one).collect();
        let mut text = String::new();
        branch(&tables.iter().collect::<Vec<_>>(), &mut text);
        assert_eq!(text.matches("SELECT").count(), 9);
        let (mut depth, mut deepest) = (0_i32, 0_i32);
        for line in text.lines() {
            depth += i32::from(line.starts_with("IF")) - i32::from(line.starts_with("END IF"));
            deepest = deepest.max(depth);
        }
        assert_eq!((depth, deepest), (0, 4));
    }
}
