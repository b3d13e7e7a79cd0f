//! `proxy.toml` as written: a tree with a place for every key and value, environment overrides laid
//! over it, and everything removed that the schema does not know. Pure.

use std::{cmp::Ordering, fmt, ops::Range, sync::Arc, time::Duration};

use toml::de::{DeTable, DeValue};

use super::schema::{Key, Kind, Section, Unset};

/// Something that is wrong, or merely worth a warning. Never holds a secret.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mistake {
    /// Where it was written.
    pub place: Place,
    /// Dotted path of the key, `source.port`; empty for the file as a whole.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What may have been meant.
    pub suggestion: Option<String>,
}

/// Where something was written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Place {
    /// File, or name of the environment variable.
    pub file: Arc<str>,
    /// From 1; 0 when there are no lines (an environment variable, a file that cannot be read).
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
}

impl Place {
    /// The file as a whole.
    pub fn whole(file: &str) -> Self {
        Self { file: file.into(), line: 0, column: 0 }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { file, line, column } = &self.place;
        f.write_str(file)?;
        if *line > 0 {
            write!(f, ":{line}:{column}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)?;
        self.suggestion.as_ref().map_or(Ok(()), |s| write!(f, "; {s}"))
    }
}

/// Sorts by place, mistakes of the environment last.
pub fn by_place(a: &Mistake, b: &Mistake) -> Ordering {
    let key = |m: &Mistake| (m.place.line == 0, m.place.file.clone(), m.place.line, m.place.column);
    key(a).cmp(&key(b)).then_with(|| a.key.cmp(&b.key))
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// Its first character.
    pub place: Place,
}

/// A TOML value.
#[derive(Clone, Debug)]
pub enum Value {
    /// String.
    Text(String),
    /// Integer.
    Int(i64),
    /// Float.
    Float(f64),
    /// Boolean.
    Bool(bool),
    /// Array.
    List(Vec<Node>),
    /// Table.
    Table(Table),
    /// Date, or a number out of range: nothing here is one.
    Other,
}

/// A table's entries.
#[derive(Clone, Debug, Default)]
pub struct Table(pub Vec<Entry>);

/// One entry of a table.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Key.
    pub key: String,
    /// Where the key stands.
    pub place: Place,
    /// Value.
    pub node: Node,
}

impl Table {
    /// Looks a key up.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.0.iter().find(|e| e.key == key).map(|e| &e.node)
    }

    fn remove(&mut self, key: &str) {
        self.0.retain(|e| e.key != key);
    }
}

impl Value {
    fn describe(&self) -> &'static str {
        match self {
            Value::Text(_) => "a text",
            Value::Int(_) => "a whole number",
            Value::Float(_) => "a fraction",
            Value::Bool(_) => "true or false",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
            Value::Other => "a date or an impossible number",
        }
    }
}

/// Reads TOML; syntax mistakes are reported and what could be understood is returned.
pub fn parse(text: &str, file: &str, found: &mut Vec<Mistake>) -> Table {
    let source = Source::new(text, file);
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let place = source.place(&error.span().unwrap_or(0..0));
        // The message names the grammar's expectation; the line itself may hold a secret and is not repeated.
        let message = error.message().replace('\n', ", ");
        found.push(Mistake { place, key: String::new(), message, suggestion: None });
    }
    source.table(root.get_ref())
}

/// One text, with what turns byte offsets into lines.
struct Source<'a> {
    text: &'a str,
    file: Arc<str>,
    starts: Vec<usize>,
}

impl<'a> Source<'a> {
    fn new(text: &'a str, file: &str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(i, _)| i + 1)).collect();
        Self { text, file: file.into(), starts }
    }

    fn place(&self, span: &Range<usize>) -> Place {
        let offset = span.start.min(self.text.len());
        let line = self.starts.partition_point(|&s| s <= offset);
        let start = self.starts[line - 1];
        let column = self.text.get(start..offset).map_or(1, |before| before.chars().count() + 1);
        Place { file: self.file.clone(), line, column }
    }

    fn table(&self, table: &DeTable<'_>) -> Table {
        let entry = |(key, value): (&toml::Spanned<toml::de::DeString<'_>>, _)| Entry {
            key: key.get_ref().to_string(),
            place: self.place(&key.span()),
            node: self.node(value),
        };
        Table(table.iter().map(entry).collect())
    }

    fn node(&self, value: &toml::Spanned<DeValue<'_>>) -> Node {
        let place = self.place(&value.span());
        let value = match value.get_ref() {
            DeValue::String(s) => Value::Text(s.to_string()),
            DeValue::Integer(i) => {
                i64::from_str_radix(&i.as_str().replace('_', ""), i.radix()).map_or(Value::Other, Value::Int)
            }
            DeValue::Float(f) => match f.as_str().replace('_', "").parse::<f64>() {
                Ok(v) if v.is_finite() => Value::Float(v),
                Ok(_) | Err(_) => Value::Other,
            },
            DeValue::Boolean(b) => Value::Bool(*b),
            DeValue::Datetime(_) => Value::Other,
            DeValue::Array(a) => Value::List(a.iter().map(|v| self.node(v)).collect()),
            DeValue::Table(t) => Value::Table(self.table(t)),
        };
        Node { value, place }
    }
}

/// Lays `CROSSFADE_<SECTION>__<KEY>` over the file.
///
/// Variables without a double underscore are left alone, unless they spell a key: Kubernetes sets
/// `CROSSFADE_PORT` and the like for a service of this name.
pub fn apply_environment(
    root: &mut Table,
    sections: &[Section],
    environment: impl IntoIterator<Item = (String, String)>,
    found: &mut Vec<Mistake>,
) {
    for (variable, text) in environment {
        let Some(rest) = variable.strip_prefix("CROSSFADE_") else { continue };
        let place = Place::whole(&variable);
        let mut refuse = |message: &str, suggestion| {
            found.push(Mistake {
                place: place.clone(),
                key: String::new(),
                message: message.to_owned(),
                suggestion,
            });
        };
        let lower = rest.to_ascii_lowercase();
        let scalar = |(s, k): &(&Section, &Key)| {
            !s.many && !matches!(k.kind, Kind::Texts | Kind::Weights | Kind::Inner(_))
        };
        let keys = || sections.iter().flat_map(|s| s.keys.iter().map(move |k| (s, k))).filter(scalar);
        let spelled = |s: &Section, k: &Key, sep: &str| format!("{}{sep}{}", s.name, k.name);
        let name = |s: &Section, k: &Key| format!("CROSSFADE_{}", spelled(s, k, "__").to_ascii_uppercase());
        if !lower.contains("__") {
            if let Some((s, k)) = keys().find(|(s, k)| spelled(s, k, "_") == lower) {
                let hint = format!("did you mean {}?", name(s, k));
                refuse("two underscores separate the table from the key", Some(hint));
            }
            continue;
        }
        let Some((section, key)) = keys().find(|(s, k)| spelled(s, k, "__") == lower) else {
            let known: Vec<String> = keys().map(|(s, k)| name(s, k)).collect();
            let hint = suggest(&variable, known.iter().map(String::as_str));
            refuse("not a key that can be set from the environment (lists and [[tables]] cannot)", hint);
            continue;
        };
        match scalar_of(&text, key.kind) {
            Ok(value) => set(root, section.name, key.name, &place, value),
            Err(message) => refuse(&message, None),
        }
    }
}

fn scalar_of(text: &str, kind: Kind) -> Result<Value, String> {
    match kind {
        Kind::Bool => text.parse().map(Value::Bool).map_err(|_| "expected true or false".to_owned()),
        Kind::Int(..) => text.parse().map(Value::Int).map_err(|_| "expected a whole number".to_owned()),
        Kind::Fraction => text.parse().map(Value::Float).map_err(|_| "expected a number".to_owned()),
        Kind::Text
        | Kind::Secret
        | Kind::Path
        | Kind::Duration
        | Kind::Positive
        | Kind::Choice(_)
        | Kind::Texts
        | Kind::Weights
        | Kind::Inner(_) => Ok(Value::Text(text.to_owned())),
    }
}

fn set(root: &mut Table, section: &str, key: &str, place: &Place, value: Value) {
    if root.get(section).is_none() {
        let node = Node { value: Value::Table(Table::default()), place: place.clone() };
        root.0.push(Entry { key: section.to_owned(), place: place.clone(), node });
    }
    let found = root.0.iter_mut().find(|e| e.key == section).map(|e| &mut e.node.value);
    // Anything but a table is a mistake that the schema reports.
    let Some(Value::Table(table)) = found else { return };
    table.remove(key);
    // A password from the environment replaces the file's, however the file gives it.
    match key {
        "password" => table.remove("password_file"),
        "password_file" => table.remove("password"),
        "token" => table.remove("token_file"),
        "token_file" => table.remove("token"),
        _ => {}
    }
    let node = Node { value, place: place.clone() };
    table.0.push(Entry { key: key.to_owned(), place: place.clone(), node });
}

/// Removes all that does not fit the schema, a mistake for each.
pub fn conform(root: &mut Table, sections: &[Section], found: &mut Vec<Mistake>) {
    root.0.retain_mut(|entry| {
        let Some(section) = sections.iter().find(|s| s.name == entry.key) else {
            let names = sections.iter().map(|s| s.name);
            found.push(unknown(entry, String::new(), names, "no such table"));
            return false;
        };
        let shape = if section.many { "[[_]], any number of them" } else { "[_], once" };
        let shape = shape.replace('_', section.name);
        match &mut entry.node.value {
            Value::Table(table) if !section.many => {
                conform_table(table, section.keys, section.name, &entry.place, found);
                true
            }
            Value::List(list) if section.many && list.iter().all(|n| matches!(n.value, Value::Table(_))) => {
                for node in list {
                    let Value::Table(table) = &mut node.value else { continue };
                    conform_table(table, section.keys, section.name, &node.place, found);
                }
                true
            }
            Value::Text(_)
            | Value::Int(_)
            | Value::Float(_)
            | Value::Bool(_)
            | Value::List(_)
            | Value::Table(_)
            | Value::Other => {
                let message = format!("expected the table {shape}");
                found.push(Mistake {
                    place: entry.place.clone(),
                    key: entry.key.clone(),
                    message,
                    suggestion: None,
                });
                false
            }
        }
    });
    for section in sections.iter().filter(|s| !s.many && root.get(s.name).is_none()) {
        let must = section.keys.iter().filter(|k| matches!(k.unset, Unset::Required));
        // Only the two backends are needed; an optional table's keys are needed once the table is there.
        if matches!(section.name, "source" | "target") {
            let names: Vec<&str> = must.map(|k| k.name).collect();
            let message = format!("missing, with at least {}", names.join(" and "));
            let file = root.0.first().map_or_else(|| "proxy.toml".into(), |e| e.place.file.clone());
            let place = Place { file, line: 1, column: 1 };
            found.push(Mistake { place, key: section.name.to_owned(), message, suggestion: None });
        }
    }
}

fn conform_table(table: &mut Table, keys: &[Key], path: &str, place: &Place, found: &mut Vec<Mistake>) {
    table.0.retain_mut(|entry| {
        let Some(key) = keys.iter().find(|k| k.name == entry.key) else {
            found.push(unknown(entry, format!("{path}."), keys.iter().map(|k| k.name), "no such key"));
            return false;
        };
        let path = format!("{path}.{}", key.name);
        if let (Kind::Inner(inner), Value::Table(table)) = (key.kind, &mut entry.node.value) {
            conform_table(table, inner, &path, &entry.place, found);
            return true;
        }
        let Err((message, suggestion)) = conform_value(&entry.node.value, key.kind) else { return true };
        found.push(Mistake { place: entry.node.place.clone(), key: path, message, suggestion });
        false
    });
    for key in keys.iter().filter(|k| matches!(k.unset, Unset::Required)) {
        let refused = |m: &Mistake| m.key == format!("{path}.{}", key.name) && m.place.line >= place.line;
        if table.get(key.name).is_none() && !found.iter().any(refused) {
            found.push(Mistake {
                place: place.clone(),
                key: format!("{path}.{}", key.name),
                message: "missing".to_owned(),
                suggestion: None,
            });
        }
    }
}

fn unknown<'a>(entry: &Entry, path: String, known: impl Iterator<Item = &'a str>, message: &str) -> Mistake {
    Mistake {
        place: entry.place.clone(),
        key: path + &entry.key.escape_debug().to_string(),
        message: message.to_owned(),
        suggestion: suggest(&entry.key, known),
    }
}

/// `did you mean "port"?` for the known word nearest to `word`, if one is near.
pub fn suggest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    // Long words are nobody's typing error, and distances cost their product.
    let short = word.len() <= 128;
    let scored = known.filter(|_| short).map(|k| (strsim::damerau_levenshtein(word, k), k));
    let (distance, nearest) = scored.min_by_key(|&(d, _)| d)?;
    (distance <= nearest.len().max(3) / 3).then(|| format!("did you mean \"{nearest}\"?"))
}

type Refusal = (String, Option<String>);

fn conform_value(value: &Value, kind: Kind) -> Result<(), Refusal> {
    let wrong = |wanted: &str| Err((format!("expected {wanted}, found {}", value.describe()), None));
    match (kind, value) {
        (Kind::Text | Kind::Secret | Kind::Path, Value::Text(t)) => {
            if t.contains('\0') {
                Err(("a NUL character".to_owned(), None))
            } else {
                Ok(())
            }
        }
        (Kind::Bool, Value::Bool(_)) | (Kind::Fraction, Value::Float(0.0..=1.0) | Value::Int(0..=1)) => {
            Ok(())
        }
        (Kind::Int(min, max), &Value::Int(i)) => match u64::try_from(i) {
            Ok(n) if (min..=max).contains(&n) => Ok(()),
            Ok(_) | Err(_) => Err((format!("{i} is not between {min} and {max}"), None)),
        },
        (Kind::Fraction, Value::Float(_) | Value::Int(_)) => Err(("is not between 0 and 1".to_owned(), None)),
        (Kind::Duration | Kind::Positive, Value::Text(t)) => {
            let zero_is_fine = matches!(kind, Kind::Duration);
            match duration(t) {
                Some(d) if zero_is_fine || !d.is_zero() => Ok(()),
                Some(_) => Err(("must be more than zero".to_owned(), None)),
                None => Err((
                    format!("{t:?} is not a duration (at most 366 days)"),
                    Some("write \"250ms\", \"30s\", \"5m\", \"1h\" or \"0\"".to_owned()),
                )),
            }
        }
        (Kind::Duration | Kind::Positive, Value::Int(i)) => {
            Err(("a duration needs its unit".to_owned(), Some(format!("did you mean \"{i}s\"?"))))
        }
        (Kind::Choice(words), Value::Text(t)) => {
            if words.contains(&t.as_str()) {
                return Ok(());
            }
            Err((format!("{t:?} is none of \"{}\"", words.join("\", \"")), suggest(t, words.iter().copied())))
        }
        (Kind::Texts, Value::List(list)) => {
            if list.iter().all(|n| matches!(&n.value, Value::Text(t) if !t.contains('\0'))) {
                Ok(())
            } else {
                Err(("expected a list of texts".to_owned(), None))
            }
        }
        (Kind::Weights, Value::Table(t)) => weights(t).map(|_| ()),
        (Kind::Text | Kind::Secret | Kind::Path, _) => wrong("a text"),
        (Kind::Bool, _) => wrong("true or false"),
        (Kind::Int(..), _) => wrong("a whole number"),
        (Kind::Duration | Kind::Positive, _) => wrong("a duration such as \"30s\""),
        (Kind::Fraction, _) => wrong("a number from 0 to 1"),
        (Kind::Choice(words), _) => wrong(&format!("one of \"{}\"", words.join("\", \""))),
        (Kind::Texts, _) => wrong("a list of texts"),
        (Kind::Weights, _) => wrong("{ source = 100, target = 0 }"),
        (Kind::Inner(_), _) => wrong("a table such as { user = \"...\", password = \"...\" }"),
    }
}

/// `"250ms"`, `"30s"`, `"5m"`, `"1h"`, `"0"`; `None` when it is something else or beyond 366 days.
pub fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "" if number == 0 => 0,
        _ => return None,
    };
    let millis = number.checked_mul(millis)?;
    // A bound, so that adding it to a clock never overflows.
    (millis <= 366 * 24 * 3_600_000).then(|| Duration::from_millis(millis))
}

/// Basis points of the target in `{ source = 90, target = 10 }`.
pub fn weights(table: &Table) -> Result<u16, Refusal> {
    let example = Some("write { source = 90, target = 10 }".to_owned());
    if let Some(other) = table.0.iter().find(|e| e.key != "source" && e.key != "target") {
        let name = other.key.escape_debug();
        return Err((format!("weights have source and target, not {name}"), example));
    }
    let part = |side: &str| -> Result<u16, Refusal> {
        let percent = match table.get(side).map(|n| &n.value) {
            Some(&Value::Int(i)) => i32::try_from(i).map_or(f64::NAN, f64::from),
            Some(&Value::Float(f)) => f,
            Some(Value::Text(_) | Value::Bool(_) | Value::List(_) | Value::Table(_) | Value::Other) => {
                f64::NAN
            }
            None => return Err((format!("{side} is missing"), example.clone())),
        };
        if !(0.0..=100.0).contains(&percent) {
            return Err((format!("{side} is not a number from 0 to 100"), example.clone()));
        }
        let points = (percent * 100.0).round();
        if (percent * 100.0 - points).abs() > 1e-6 {
            return Err((format!("{side} has more than two decimals"), None));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an integer from 0 to 10 000"
        )]
        Ok(points as u16)
    };
    let (source, target) = (part("source")?, part("target")?);
    if source + target == 10_000 {
        return Ok(target);
    }
    let sum = f64::from(source + target) / 100.0;
    Err((format!("source and target add up to {sum}, not 100"), None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::schema::SECTIONS;

    #[test]
    fn durations() {
        let ms = |n| Some(Duration::from_millis(n));
        let cases = [
            ("250ms", ms(250)),
            ("30s", ms(30_000)),
            ("5m", ms(300_000)),
            ("1h", ms(3_600_000)),
            ("0", ms(0)),
            ("0s", ms(0)),
            ("5", None),
            ("", None),
            ("s", None),
            ("-1s", None),
            ("1.5s", None),
            ("1 s", None),
            ("1d", None),
            ("9000h", None),
            ("99999999999999999999h", None),
            ("18446744073709551615h", None),
        ];
        for (text, expected) in cases {
            assert_eq!(duration(text), expected, "{text}");
        }
    }

    #[test]
    fn weights_are_exact() {
        let cases = [
            ("{ source = 90, target = 10 }", Ok(1_000)),
            ("{ source = 99.99, target = 0.01 }", Ok(1)),
            ("{ source = 66.67, target = 33.33 }", Ok(3_333)),
            ("{ source = 0, target = 100.0 }", Ok(10_000)),
            ("{ source = 90, target = 9 }", Err("source and target add up to 99, not 100")),
            ("{ source = 99.999, target = 0.001 }", Err("source has more than two decimals")),
            ("{ source = 101, target = -1 }", Err("source is not a number from 0 to 100")),
            ("{ source = \"90\", target = 10 }", Err("source is not a number from 0 to 100")),
            ("{ source = nan, target = 10 }", Err("source is not a number from 0 to 100")),
            ("{ source = 100 }", Err("target is missing")),
            ("{ old = 90, new = 10 }", Err("weights have source and target, not new")),
        ];
        for (text, expected) in cases {
            let root = parse(&format!("w = {text}"), "t", &mut Vec::new());
            let Some(Value::Table(table)) = root.get("w").map(|n| &n.value) else { panic!("{text}") };
            assert_eq!(weights(table).map_err(|(m, _)| m), expected.map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn environment() {
        let cases: [(&str, &str, &str); 8] = [
            ("CROSSFADE_SOURCE__HOST", "db1", ""),
            ("CROSSFADE_SOURCE__PORT", "5433", ""),
            ("CROSSFADE_PORT", "tcp://10.0.0.1:6432", ""),
            ("OTHER_SOURCE__HOTS", "x", ""),
            (
                "CROSSFADE_SOURCE__HOTS",
                "x",
                "CROSSFADE_SOURCE__HOTS: not a key that can be set from the environment (lists and [[tables]] cannot); \
                 did you mean \"CROSSFADE_SOURCE__HOST\"?",
            ),
            (
                "CROSSFADE_SOURCE_HOST",
                "x",
                "CROSSFADE_SOURCE_HOST: two underscores separate the table from the key; \
                 did you mean CROSSFADE_SOURCE__HOST?",
            ),
            ("CROSSFADE_SOURCE__PORT", "http", "CROSSFADE_SOURCE__PORT: expected a whole number"),
            (
                "CROSSFADE_SOURCE__PORT",
                "0",
                "CROSSFADE_SOURCE__PORT: source.port: 0 is not between 1 and 65535",
            ),
        ];
        for (variable, value, expected) in cases {
            let mut found = Vec::new();
            let text = "[source]\nhost = 'a'\ndatabase = 'd'\n[target]\nhost = 'a'\ndatabase = 'd'\n";
            let mut root = parse(text, "proxy.toml", &mut found);
            apply_environment(&mut root, SECTIONS, [(variable.to_owned(), value.to_owned())], &mut found);
            conform(&mut root, SECTIONS, &mut found);
            let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
            assert_eq!(shown.join("\n"), expected);
        }
    }

    #[test]
    fn a_password_from_the_environment_replaces_the_file() {
        let mut root = parse("[source]\npassword_file = 'x'\n", "t", &mut Vec::new());
        let pair = ("CROSSFADE_SOURCE__PASSWORD".to_owned(), "y".to_owned());
        apply_environment(&mut root, SECTIONS, [pair], &mut Vec::new());
        let Some(Value::Table(source)) = root.get("source").map(|n| &n.value) else { panic!("no table") };
        assert!(source.get("password_file").is_none());
        assert!(source.get("password").is_some());
    }

    #[test]
    fn a_syntax_mistake_shows_no_secret() {
        let wrong = [
            "hunter2",
            "\"hunter2",
            "\"hunter2\\q\"",
            "'hunter2' hunter2",
            "12hunter2",
            "-hunter2",
            "{hunter2",
            "[hunter2",
        ];
        for value in wrong {
            let mut found = Vec::new();
            parse(&format!("[source]\npassword = {value}\n"), "proxy.toml", &mut found);
            assert!(!found.is_empty(), "{value}");
            assert!(found.iter().all(|m| !m.to_string().contains("hunter")), "{found:?}");
        }
    }

    #[test]
    fn all_syntax_mistakes_at_once() {
        let mut found = Vec::new();
        parse("[source]\nhost = \nport = 5\n[target]\npassword = 'very secret\n", "proxy.toml", &mut found);
        let lines: Vec<usize> = found.iter().map(|m| m.place.line).collect();
        assert!(lines.contains(&2) && lines.contains(&5), "{found:?}");
        assert!(found.iter().all(|m| !m.to_string().contains("very secret")), "{found:?}");
    }
}
