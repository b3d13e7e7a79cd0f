//! `[[repository]]`: names, table patterns, weights.

use super::{
    Place,
    part::{Checker, Part},
};
use crate::{
    compare::rules::{Json, Numeric, Rules},
    config::Shadowed,
    route::{
        policy::{Ack, Ddl, MAX_REPOSITORIES, Mirror, Mode, OnFailure, Pattern, Repository, Share},
        slice::Slices,
    },
};

/// A pattern, where it stands, and the index of its repository.
struct Written {
    pattern: Pattern,
    text: String,
    place: Place,
    repository: usize,
}

impl Checker<'_> {
    /// What is executed twice and how it is compared, by the index of the repository.
    pub(super) fn shadowed(&self) -> Vec<Shadowed> {
        let parts = self.tables("repository");
        std::iter::once(Shadowed::default()).chain(parts.iter().map(shadowed)).collect()
    }

    /// `default` first, then those of the file.
    pub(super) fn repositories(&self) -> Vec<Repository> {
        let mut list = vec![Repository {
            name: "default".to_owned(),
            tables: Vec::new(),
            functions: Vec::new(),
            reads: Share::NONE,
            writes: Share::NONE,
            mirror: Mirror::default(),
        }];
        let (mut tables, mut functions) = (Vec::new(), Vec::new());
        let slice = self.section("mirror").duration("slice");
        for part in self.tables("repository") {
            let name = part.text("name").unwrap_or_default();
            check_name(&part, &name, &list);
            let index = list.len();
            if index == MAX_REPOSITORIES {
                part.mistake("name", format!("at most {} repositories", MAX_REPOSITORIES - 1), None);
                break;
            }
            let reads = part.share("reads");
            let writes = part.share("writes");
            let mirror = mirror(&part);
            check_mirror(&part, mirror, reads, writes);
            if let Some(slices) = Slices::new(slice, writes).filter(|_| mirror.mode.is_synchronous()) {
                part.warn("writes", take_turns(&slices), None);
            }
            let of_tables = patterns(&part, "tables", index, &mut tables);
            let of_functions = patterns(&part, "functions", index, &mut functions);
            if of_tables.is_empty() && part.is_written("tables") && part.texts("tables").is_empty() {
                part.mistake("tables", "is empty", None);
            }
            list.push(Repository { name, tables: of_tables, functions: of_functions, reads, writes, mirror });
        }
        let parts = self.tables("repository");
        for (key, all) in [("tables", &tables), ("functions", &functions)] {
            check_overlaps(&parts, &list, key, all);
        }
        list
    }
}

fn shadowed(part: &Part<'_>) -> Shadowed {
    let share = part.fraction_share("shadow");
    if share != Share::NONE && part.choice("mirror") == "off" {
        let message = "the sides are compared though nothing mirrors the writes: expect differences";
        part.warn("shadow", message, None);
    }
    let rules = part.inner("compare").map_or_else(Rules::default, |part| Rules {
        ignore: part.texts("ignore").into_iter().map(|(name, _)| name).collect(),
        float_tolerance: part.fraction("float_tolerance"),
        timestamp_tolerance_us: u64::try_from(part.duration("timestamp_tolerance").as_micros())
            .expect("durations are at most a year"),
        numeric: if part.choice("numeric") == "value" { Numeric::Value } else { Numeric::Scale },
        json: if part.choice("json") == "semantic" { Json::Semantic } else { Json::Text },
    });
    Shadowed { share, rules }
}

fn check_name(part: &Part<'_>, name: &str, list: &[Repository]) {
    if !part.is_written("name") {
        return;
    }
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c);
    if name.is_empty() || name.len() > 63 || !name.chars().all(allowed) {
        let message = format!("{name:?} is not 1 to 63 characters of a-z, 0-9, _ and -");
        part.mistake("name", message, None);
    } else if name == "default" {
        part.mistake("name", "\"default\" is built in: it has the tables of no other repository", None);
    } else if list.iter().any(|r| r.name == name) {
        part.mistake("name", format!("the repository {name:?} is there twice"), None);
    }
}

fn mirror(part: &Part<'_>) -> Mirror {
    Mirror {
        mode: match part.choice("mirror").as_str() {
            "async" => Mode::Async,
            "journaled" => Mode::Journaled,
            "atomic" => Mode::Atomic,
            _ => Mode::Off,
        },
        ack: match part.choice("ack").as_str() {
            "both" => Ack::Both,
            "lead" => Ack::Lead,
            _ => Ack::Auto,
        },
        on_failure: if part.choice("on_follower_failure") == "fail" {
            OnFailure::Fail
        } else {
            OnFailure::Journal
        },
        ddl: if part.choice("ddl") == "lead" { Ddl::Lead } else { Ddl::Refuse },
    }
}

fn check_mirror(part: &Part<'_>, mirror: Mirror, reads: Share, writes: Share) {
    let whole = writes == Share::NONE || writes == Share::ALL;
    let hint = "write { source = 100, target = 0 } or { source = 0, target = 100 }";
    match mirror.mode {
        Mode::Off if !whole => {
            let message = "without mirroring some rows would be on one side only and the data would be split";
            part.mistake("writes", message, Some(hint.to_owned()));
        }
        Mode::Off if reads != writes => {
            let message = "some reads are answered by the side that does not get the writes: with mirror = \"off\" \
                           something else must keep it current";
            part.warn("reads", message, None);
        }
        Mode::Async if !whole => {
            let message = "source and target can only take turns while the follower is current, and mirror = \"async\" \
                           leaves it behind";
            let hint = format!("use mirror = \"journaled\" or \"atomic\", or {hint}");
            part.mistake("writes", message, Some(hint));
        }
        Mode::Async if reads != writes => {
            let message = "reads stay on the lead while mirror = \"async\": the follower is behind";
            part.warn("reads", message, Some("use mirror = \"journaled\"".to_owned()));
        }
        Mode::Off | Mode::Async | Mode::Journaled | Mode::Atomic => {}
    }
}

/// What a weight between 0 and 100 means.
fn take_turns(slices: &Slices) -> String {
    let (target, period) = (slices.target().as_secs_f64(), slices.period().as_secs_f64());
    format!(
        "source and target take turns: the target leads {target} s of every {period} s, one side at a time; writers wait a \
         moment at each change, and each change leaves out some values of every sequence"
    )
}

fn patterns(part: &Part<'_>, key: &str, repository: usize, all: &mut Vec<Written>) -> Vec<Pattern> {
    let mut list = Vec::new();
    for (text, place) in part.texts(key) {
        match pattern(&text) {
            Ok(p) if list.contains(&p) => part.warn_at(place, key, format!("{text} is there twice"), None),
            Ok(p) => {
                list.push(p.clone());
                all.push(Written { pattern: p, text, place, repository });
            }
            Err((message, hint)) => part.mistake_at(place, key, message, hint),
        }
    }
    list
}

/// `schema.name`; unquoted letters become lower case, as in SQL.
pub(super) fn pattern(text: &str) -> Result<Pattern, (String, Option<String>)> {
    let (mut parts, mut part, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                part.push('"');
            }
            '"' => quoted = !quoted,
            '.' if !quoted => parts.push(std::mem::take(&mut part)),
            c if quoted => part.push(c),
            // Postgres folds ASCII only in a multi-byte encoding.
            c if c.is_alphanumeric() || "_$*?".contains(c) => part.push(c.to_ascii_lowercase()),
            c => {
                return Err((
                    format!("{text:?}: {c:?} needs double quotes around the name"),
                    Some("write 'public.\"My table\"'".to_owned()),
                ));
            }
        }
    }
    parts.push(part);
    if quoted {
        return Err((format!("{text:?}: a double quote is not closed"), None));
    }
    let [schema, name] = <[String; 2]>::try_from(parts).map_err(|parts| {
        let hint = (parts.len() == 1).then(|| format!("did you mean \"public.{text}\"?"));
        (format!("{text:?} is not schema.name"), hint)
    })?;
    if [&schema, &name].iter().any(|p| p.is_empty() || p.len() > 63) {
        return Err((format!("{text:?}: schema and name have 1 to 63 bytes"), None));
    }
    if schema == "information_schema" || schema.starts_with("pg_") {
        return Err((format!("{text:?}: the system's own tables belong to no repository"), None));
    }
    Ok(Pattern { schema, name })
}

/// Of patterns in different repositories: equal ones are a mistake, those that may match the same name a warning.
fn check_overlaps(parts: &[Part<'_>], list: &[Repository], key: &str, all: &[Written]) {
    for (i, later) in all.iter().enumerate() {
        let part = &parts[later.repository - 1];
        for earlier in all[..i].iter().filter(|e| e.repository != later.repository) {
            let (text, other) = (&later.text, &list[earlier.repository].name);
            if later.pattern == earlier.pattern {
                let message = format!("{text} is in the repository {other:?} too");
                part.mistake_at(later.place.clone(), key, message, None);
            } else if overlap(&later.pattern.schema, &earlier.pattern.schema)
                && overlap(&later.pattern.name, &earlier.pattern.name)
            {
                let message = format!(
                    "{text} and {} of the repository {other:?} may match the same name",
                    earlier.text
                );
                part.warn_at(later.place.clone(), key, message, None);
            }
        }
    }
}

/// Does the pattern match this name? (A `*` or `?` in the name itself counts as a wildcard too: good for warnings.)
pub fn may_match(pattern: &Pattern, schema: &str, name: &str) -> bool {
    overlap(&pattern.schema, schema) && overlap(&pattern.name, name)
}

/// Is there a name that both match? `*` is any characters, `?` is one.
fn overlap(a: &str, b: &str) -> bool {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    // reach[j]: the rest of `a` from the current row and `b[j..]` have a name in common.
    let mut reach = vec![false; b.len() + 1];
    for i in (0..=a.len()).rev() {
        let below = std::mem::replace(&mut reach, vec![false; b.len() + 1]);
        for j in (0..=b.len()).rev() {
            let (x, y) = (a.get(i), b.get(j));
            reach[j] = match (x, y) {
                (None, None) => true,
                // A star ends here, or swallows one more of the other side.
                (Some('*'), _) if below[j] => true,
                (_, Some('*')) | (Some('*'), Some(_)) if reach[j + 1] => true,
                (Some(_), Some('*')) if below[j] => true,
                (Some(x), Some(y)) if *x != '*' && *y != '*' => {
                    (x == y || *x == '?' || *y == '?') && below[j + 1]
                }
                _ => false,
            };
        }
    }
    reach[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps() {
        let cases = [
            ("a", "a", true),
            ("a", "b", false),
            ("*", "b", true),
            ("*", "*", true),
            ("user_*", "user_groups", true),
            ("user_*", "*_groups", true),
            ("user_*", "users", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("?", "*", true),
            ("a*b*c", "a?c", true),
            ("a*b*b*c", "a?c", false),
            ("a*b*c", "a??c*", true),
            ("*x", "*y", false),
            ("x*", "y*", false),
            ("", "*", true),
            ("", "?", false),
        ];
        for (a, b, expected) in cases {
            assert_eq!(overlap(a, b), expected, "{a} {b}");
            assert_eq!(overlap(b, a), expected, "{b} {a}");
        }
    }

    #[test]
    fn patterns_are_read_as_sql_reads_names() {
        let cases = [
            ("public.documents", Some(("public", "documents"))),
            ("Public.Documents", Some(("public", "documents"))),
            ("public.\"Docu ments\"", Some(("public", "Docu ments"))),
            ("\"A.b\".\"c\"\"d\"", Some(("A.b", "c\"d"))),
            ("*.user_?", Some(("*", "user_?"))),
            ("documents", None),
            ("a.b.c", None),
            ("public.", None),
            (".a", None),
            ("public.a b", None),
            ("public.\"a", None),
            ("pg_catalog.pg_class", None),
            ("information_schema.tables", None),
            ("", None),
        ];
        for (text, expected) in cases {
            let read = pattern(text).ok();
            assert_eq!(read.as_ref().map(|p| (p.schema.as_str(), p.name.as_str())), expected, "{text}");
        }
    }
}
