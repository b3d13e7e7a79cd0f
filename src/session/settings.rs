//! Settings of a session that live on whichever server connection serves it.

use std::rc::Rc;

use crate::wire::frame::{quote_ident, quote_literal};

/// Names (lower case) and values, sorted by name. Shared: two clients with the same settings hold the same value.
pub type Settings = Rc<Vec<(String, String)>>;

/// The statement that turns a session with `from` into one with `to`; `None` when nothing differs.
///
/// Values travel as literals: a value given as a quoted identifier would be cut at 63 bytes.
/// `session_authorization` and `role` come last, so that the rest is set with the login role's rights.
pub fn transition(from: &[(String, String)], to: &[(String, String)]) -> Option<String> {
    let get = |list: &[(String, String)], name: &str| {
        list.binary_search_by(|(n, _)| n.as_str().cmp(name)).ok().map(|i| list[i].1.clone())
    };
    let mut reset = Vec::new();
    let mut set = Vec::new();
    let identity_changes = IDENTITY.iter().any(|n| get(from, n) != get(to, n));
    if identity_changes {
        reset.push("RESET SESSION AUTHORIZATION".to_owned());
        reset.push("RESET ROLE".to_owned());
    }
    for (name, _) in from.iter().filter(|(n, _)| !IDENTITY.contains(&n.as_str())) {
        if get(to, name).is_none() {
            reset.push(format!("RESET {}", dotted(name)));
        }
    }
    for (name, value) in to.iter().filter(|(n, _)| !IDENTITY.contains(&n.as_str())) {
        if get(from, name).as_ref() != Some(value) {
            set.push(assign(name, value));
        }
    }
    if identity_changes {
        for name in IDENTITY {
            match get(to, name) {
                Some(value) if value != "none" => set.push(assign(name, &value)),
                _ => {}
            }
        }
    }
    if !set.is_empty() {
        reset.push(format!("SELECT {}", set.join(", ")));
    }
    (!reset.is_empty()).then(|| reset.join("; "))
}

/// The query that reads the present values of `names`, one column each; NULL for one that does not exist.
pub fn readback(names: &[String]) -> String {
    let columns: Vec<String> =
        names.iter().map(|n| format!("pg_catalog.current_setting({}, true)", quote_literal(n))).collect();
    format!("SELECT {}", columns.join(", "))
}

fn assign(name: &str, value: &str) -> String {
    format!("pg_catalog.set_config({}, {}, false)", quote_literal(name), quote_literal(value))
}

fn dotted(name: &str) -> String {
    name.split('.').map(quote_ident).collect::<Vec<_>>().join(".")
}

/// Splits a `search_path` value as Postgres does (SplitIdentifierString): unquoted parts are folded to lower case.
/// `$user` is replaced, `pg_catalog` left out. `None` when it is malformed.
pub fn search_path(value: &str, user: &str) -> Option<Vec<String>> {
    let mut parts = Vec::new();
    let mut rest = value.trim_start();
    while !rest.is_empty() {
        let (part, after) = if let Some(quoted) = rest.strip_prefix('"') {
            split_quoted(quoted)?
        } else {
            let end = rest.find([',', ' ', '\t', '\n']).unwrap_or(rest.len());
            (rest[..end].to_ascii_lowercase(), &rest[end..])
        };
        match part.as_str() {
            "$user" => parts.push(user.to_owned()),
            "" if !rest.starts_with('"') => return None,
            "" | "pg_catalog" => {}
            _ => parts.push(part),
        }
        rest = after.trim_start();
        if let Some(next) = rest.strip_prefix(',') {
            rest = next.trim_start();
            if rest.is_empty() {
                return None;
            }
        } else if !rest.is_empty() {
            return None;
        }
    }
    Some(parts)
}

fn split_quoted(text: &str) -> Option<(String, &str)> {
    let mut part = String::new();
    let mut rest = text;
    loop {
        let end = rest.find('"')?;
        part.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(next) => {
                part.push('"');
                rest = next;
            }
            None => return Some((part, rest)),
        }
    }
}

/// Settings that change whose rights the session has.
const IDENTITY: [&str; 2] = ["session_authorization", "role"];

#[cfg(test)]
mod tests {
    use super::*;

    fn list(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn transitions() {
        #[track_caller]
        fn check(from: &[(&str, &str)], to: &[(&str, &str)], want: Option<&str>) {
            assert_eq!(transition(&list(from), &list(to)).as_deref(), want);
        }
        check(&[], &[], None);
        check(&[("a", "1")], &[("a", "1")], None);
        check(&[("a", "1")], &[], Some("RESET \"a\""));
        check(&[("x.y", "1")], &[], Some("RESET \"x\".\"y\""));
        check(&[], &[("a", "o'x")], Some("SELECT pg_catalog.set_config('a', 'o''x', false)"));
        check(&[("role", "r")], &[], Some("RESET SESSION AUTHORIZATION; RESET ROLE"));
        check(
            &[],
            &[("a", "1"), ("role", "r")],
            Some(
                "RESET SESSION AUTHORIZATION; RESET ROLE; SELECT pg_catalog.set_config('a', '1', false), \
                 pg_catalog.set_config('role', 'r', false)",
            ),
        );
    }

    #[test]
    fn search_paths() {
        #[track_caller]
        fn check(value: &str, want: Option<&[&str]>) {
            let want = want.map(|w| w.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
            assert_eq!(search_path(value, "app"), want, "{value}");
        }
        check("\"$user\", public", Some(&["app", "public"]));
        check("a,B, \"C d\"", Some(&["a", "b", "C d"]));
        check("\"x\"\"y\"", Some(&["x\"y"]));
        check("", Some(&[]));
        check("\"\"", Some(&[]));
        check("pg_catalog, x", Some(&["x"]));
        check("a,", None);
        check("\"a", None);
        check("a b", None);
    }
}
