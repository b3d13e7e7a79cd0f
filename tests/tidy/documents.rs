//! Rules about documents, and about every file.

use std::collections::HashSet;

use crate::{files, nothing, root};

#[test]
fn nothing_is_put_off() {
    // Put together here, so that this file does not break its own rule.
    let words = ["TO", "FIX", "XX"].map(|begin| {
        format!(
            "{begin}{}",
            if begin == "TO" {
                "DO"
            } else if begin == "FIX" {
                "ME"
            } else {
                "X"
            }
        )
    });
    let mut found = Vec::new();
    for file in files() {
        for (number, line) in file.text.lines().enumerate() {
            let whole = |word: &str| line.split(|c: char| !c.is_ascii_alphanumeric()).any(|w| w == word);
            if words.iter().any(|w| whole(w)) {
                found.push(format!("{}:{}: {}", file.path, number + 1, line.trim()));
            }
        }
    }
    nothing("What is missing is said in docs/, or in an issue.", &found);
}

#[test]
fn no_machine_is_named() {
    // Paths of one machine's work, and hosts that packages come from: both would break elsewhere.
    let words = ["/work", "/home", "/Users"].map(|w| format!("{w}/"));
    let hosts = ["crates", "npmjs", "pypi"].map(|w| match w {
        "crates" => format!("static.{w}.io"),
        "npmjs" => format!("registry.{w}.org"),
        _ => format!("files.{w}hosted.org"),
    });
    let mut found = Vec::new();
    for file in
        files().iter().filter(|f| !f.path.ends_with("Cargo.lock") && !f.path.ends_with("package-lock.json"))
    {
        for (number, line) in file.text.lines().enumerate() {
            if words.iter().chain(&hosts).any(|w| line.contains(w.as_str())) {
                found.push(format!("{}:{}: {}", file.path, number + 1, line.trim()));
            }
        }
    }
    nothing("No tracked file names a path of one machine or the host of a registry.", &found);
}

#[test]
fn links_lead_somewhere() {
    let mut found = Vec::new();
    for file in files().iter().filter(|f| f.is("md")) {
        let directory = root().join(&file.path);
        let directory = directory.parent().expect("a file is in a directory");
        for target in links(&file.text) {
            let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
            if path.contains("://") {
                continue;
            }
            let to = if path.is_empty() { root().join(&file.path) } else { directory.join(path) };
            match std::fs::read_to_string(&to) {
                Ok(text) if anchor.is_empty() || headings(&text).contains(anchor) => {}
                Ok(_) => found.push(format!("{}: no heading #{anchor} in {path}", file.path)),
                // A directory, or a picture.
                Err(_) if to.exists() => {}
                Err(_) => found.push(format!("{}: {path} does not exist", file.path)),
            }
        }
    }
    nothing("Every link in a document resolves.", &found);
}

/// Targets of `[text](target)`.
fn links(text: &str) -> Vec<String> {
    let ends = text.match_indices("](").map(|(at, _)| &text[at + 2..]);
    ends.filter_map(|rest| rest.split_once(')').map(|(target, _)| target.to_owned()))
        .filter(|t| !t.contains(' '))
        .collect()
}

/// Anchors as GitHub makes them.
fn headings(text: &str) -> HashSet<String> {
    let lines = text.lines().filter(|l| l.starts_with('#'));
    let anchor = |line: &str| -> String {
        let kept = line.trim_start_matches('#').trim().to_lowercase();
        kept.chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect()
    };
    lines.map(anchor).collect()
}

/// Names in back quotes that look like tests of this project: `differential::golden_oldest`, `asyncpg_driver.py`.
#[test]
fn compatibility_names_real_tests() {
    let files = files();
    let mut known = HashSet::new();
    for file in files.iter().filter(|f| f.path.starts_with("tests/") || f.path.starts_with("src/")) {
        known.extend(file.path.split('/').map(str::to_owned));
        let stem = file.path.rsplit('/').next().and_then(|n| n.split('.').next()).unwrap_or_default();
        for line in file.text.lines() {
            let line = line.trim_start();
            let name =
                ["fn ", "def ", "async def ", "async function ", "pub fn ", "async fn ", "pub async fn "]
                    .iter()
                    .find_map(|p| line.strip_prefix(p));
            if let Some(name) = name {
                let name: String = name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                known.insert(format!("{stem}::{name}"));
            }
            // A case of the differential suite: case("name", ...
            for kind in ["case(\"", "once(\"", "session(\""] {
                if let Some(rest) = line.strip_prefix(kind)
                    && let Some((name, _)) = rest.split_once('"')
                {
                    known.insert(format!("case {name}"));
                }
            }
        }
    }
    let document =
        files.iter().find(|f| f.path == "docs/compatibility.md").expect("docs/compatibility.md exists");
    let mut named = 0;
    let mut found = Vec::new();
    for quoted in document.text.split('`').skip(1).step_by(2) {
        let script = quoted.rsplit_once('.').is_some_and(|(_, kind)| ["py", "js"].contains(&kind));
        let test = script || quoted.starts_with("case ") || quoted.contains("::");
        if test && !quoted.starts_with("::") {
            named += 1;
            if !known.contains(quoted) {
                found.push(quoted.to_owned());
            }
        }
    }
    nothing("docs/compatibility.md names only tests that exist.", &found);
    assert!(named > 50, "docs/compatibility.md names only {named} tests");
}

#[test]
fn every_configuration_loads() {
    let files = files();
    let mut seen = 0;
    for file in files.iter().filter(|f| f.path.ends_with("proxy.toml")) {
        seen += 1;
        let none = |path: &std::path::Path| -> std::io::Result<crossfade::config::check::Contents> {
            panic!("{} is read, and is not in the repository", path.display())
        };
        let path = root().join(&file.path);
        let inputs = crossfade::config::check::Inputs {
            path: &path,
            text: &file.text,
            environment: &[],
            read: &none,
            cores: 2,
            generation: 1,
        };
        let checked = crossfade::config::check::check(&inputs);
        if let Err(mistakes) = &checked.config {
            let all: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
            nothing(&file.path, &all);
        }
    }
    assert!(seen >= 2, "the configurations are gone");
}
