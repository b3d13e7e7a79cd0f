//! Rules about Rust code.

use crate::{File, files, nothing};

/// Lines of a file before its tests.
const MOST_LINES: usize = 500;

/// What a module may use of the crate besides itself. `proxy` drives them all and is not in the list; `error` and
/// the root (`Side`) are everybody's.
const FLOW: [(&str, &[&str]); 7] = [
    ("wire", &[]),
    ("compare", &["wire"]),
    ("shadow", &["compare", "route", "statement"]),
    ("statement", &["catalog"]),
    ("route", &["catalog", "statement"]),
    ("session", &["route", "statement", "wire"]),
    ("catalog", &["backend", "statement", "wire"]),
];

/// Values in, values out: no runtime, clock, file or socket.
const PURE: [&str; 5] = ["compare", "route", "session", "shadow", "statement"];
const IMPURE: [&str; 7] =
    ["tokio::", "Instant::now", "SystemTime::now", "std::fs", "std::net", "rand::", "getrandom::"];

fn sources() -> Vec<File> {
    files().into_iter().filter(|f| f.path.starts_with("src/") && f.is("rs")).collect()
}

/// What stands before the unit tests, which close a file by convention.
fn before_tests(text: &str) -> &str {
    let module =
        |at: &usize| text[*at..].lines().nth(2).is_some_and(|l| l.contains("mod ") && l.ends_with('{'));
    text.match_indices("\n#[cfg(test)]\n").map(|(at, _)| at).find(module).map_or(text, |at| &text[..at])
}

/// `src/wire/frame.rs` and `src/wire.rs` belong to `wire`.
fn module(path: &str) -> &str {
    let path = path.trim_start_matches("src/").trim_end_matches(".rs");
    path.split('/').next().unwrap_or(path)
}

/// Is the file nothing but tests?
fn is_test(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name == "tests.rs" || name.ends_with("_tests.rs") || name == "testing.rs"
}

#[test]
fn files_are_short() {
    let mut found = Vec::new();
    for file in files().iter().filter(|f| f.is("rs")) {
        let lines = before_tests(&file.text).lines().count();
        if lines > MOST_LINES {
            found.push(format!("{}: {lines} lines before its tests", file.path));
        }
    }
    nothing("A file has at most 500 lines before its tests.", &found);
}

#[test]
fn modules_import_upwards() {
    let mut found = Vec::new();
    for file in sources().iter().filter(|f| !is_test(&f.path)) {
        let Some((name, allowed)) = FLOW.iter().find(|(name, _)| *name == module(&file.path)) else {
            continue;
        };
        for used in uses(before_tests(&file.text)) {
            if used != *name
                && !["error", "Side"].contains(&used.as_str())
                && !allowed.contains(&used.as_str())
            {
                found.push(format!("{}: `{name}` uses `crate::{used}`", file.path));
            }
        }
    }
    nothing("A step imports the steps above it, never those below (docs/architecture.md).", &found);
}

/// The first names behind every `crate::`, also of `use crate::{a::b, c}`.
fn uses(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let code: String =
        text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let list = rest.strip_prefix('{').map_or(rest, |inside| &inside[..closing(inside)]);
        if list.len() == rest.len() {
            found.push(word(rest));
            continue;
        }
        let mut depth = 0;
        let mut begins = true;
        for (i, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => begins = true,
                _ if begins && !c.is_whitespace() => {
                    found.push(word(&list[i..]));
                    begins = false;
                }
                _ => {}
            }
        }
    }
    found
}

fn word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// Where the brace closes that stands before `text`.
fn closing(text: &str) -> usize {
    let mut depth = 1;
    for (i, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i;
        }
    }
    text.len()
}

#[test]
fn names_behind_crate_are_read() {
    let text = "use crate::{\n    Side,\n    backend::{pool::Pool, server},\n    wire::frame,\n};\nlet x = crate::route::lead();";
    assert_eq!(uses(text), ["Side", "backend", "wire", "route"]);
}

#[test]
fn pure_modules_are_pure() {
    let mut found = Vec::new();
    for file in sources().iter().filter(|f| PURE.contains(&module(&f.path)) && !is_test(&f.path)) {
        for (number, line) in before_tests(&file.text).lines().enumerate() {
            if let Some(word) =
                IMPURE.iter().find(|w| line.contains(**w) && !line.trim_start().starts_with("//"))
            {
                found.push(format!("{}:{}: {word}", file.path, number + 1));
            }
        }
    }
    nothing(
        "session, statement, route, compare and shadow take time and chance as arguments, and touch nothing outside.",
        &found,
    );
}

#[test]
fn no_unwrap_outside_tests() {
    let mut found = Vec::new();
    for file in sources().iter().filter(|f| !is_test(&f.path)) {
        for (number, line) in before_tests(&file.text).lines().enumerate() {
            if line.contains(".unwrap()") && !line.trim_start().starts_with("//") {
                found.push(format!("{}:{}", file.path, number + 1));
            }
        }
    }
    nothing("`expect` with the invariant, never `unwrap`.", &found);
}

#[test]
fn no_module_files() {
    let all = sources();
    let found: Vec<_> = all.iter().filter(|f| f.path.ends_with("/mod.rs")).map(|f| f.path.clone()).collect();
    nothing("`foo.rs` beside `foo/`, never `foo/mod.rs`.", &found);
}
