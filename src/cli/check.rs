//! `crossfade check`: every mistake of the configuration at once, then what the two databases say to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    path::Path,
};

use serde::Serialize;
use tokio_postgres::Client;

use crate::{
    Side,
    backend::control,
    config::{Config, check::may_match, file::Mistake, reload},
    mirror::install::{self, Missing},
    route::policy::{Mode, OnUnknown, Pattern, Repository},
};

/// Nothing is wrong (there may be warnings).
pub const FINE: u8 = 0;
/// The configuration has mistakes, or the databases contradict it.
pub const MISTAKES: u8 = 1;
/// A backend cannot be reached.
pub const UNREACHABLE: u8 = 2;

/// Checks `path` and, with `connect`, both backends; writes findings to `out`, as text or as one JSON object.
/// Returns the exit code: [`FINE`], [`MISTAKES`] or [`UNREACHABLE`]. Makes a runtime of its own: call it outside any.
pub fn run(
    path: &Path,
    environment: &[(String, String)],
    connect: bool,
    json: bool,
    out: &mut dyn Write,
) -> io::Result<u8> {
    let checked = reload::check_file(path, environment);
    let mut report =
        Report { warnings: checked.warnings.iter().map(Shown::new).collect(), ..Report::default() };
    match &checked.config {
        Err(mistakes) => report.mistakes = mistakes.iter().map(Shown::new).collect(),
        Ok(config) => {
            report.policy(config);
            if connect {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(backends(config, &mut report));
            }
        }
    }
    report.exit_code = report.code();
    if json {
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        report.write(path, out)?;
    }
    Ok(report.exit_code)
}

#[derive(Debug, Default, Serialize)]
struct Report {
    exit_code: u8,
    mistakes: Vec<Shown>,
    warnings: Vec<Shown>,
    backends: Vec<Finding>,
}

#[derive(Debug, Serialize)]
struct Shown {
    file: String,
    line: usize,
    column: usize,
    key: String,
    message: String,
    suggestion: Option<String>,
    #[serde(skip)]
    text: String,
}

impl Shown {
    fn new(mistake: &Mistake) -> Self {
        let Mistake { place, key, message, suggestion } = mistake;
        Self {
            file: place.file.to_string(),
            line: place.line,
            column: place.column,
            key: key.clone(),
            message: message.clone(),
            suggestion: suggestion.clone(),
            text: mistake.to_string(),
        }
    }
}

/// Something about one backend, or about both.
#[derive(Debug, Serialize)]
struct Finding {
    level: Level,
    side: Option<Side>,
    message: String,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Info,
    Warning,
    Mistake,
    Unreachable,
}

impl Report {
    fn add(&mut self, level: Level, side: impl Into<Option<Side>>, message: impl Into<String>) {
        self.backends.push(Finding { level, side: side.into(), message: message.into() });
    }

    fn code(&self) -> u8 {
        let any = |level| self.backends.iter().any(|f| f.level == level);
        if !self.mistakes.is_empty() {
            MISTAKES
        } else if any(Level::Unreachable) {
            UNREACHABLE
        } else if any(Level::Mistake) {
            MISTAKES
        } else {
            FINE
        }
    }

    fn write(&self, path: &Path, out: &mut dyn Write) -> io::Result<()> {
        for mistake in &self.mistakes {
            writeln!(out, "{}", mistake.text)?;
        }
        for warning in &self.warnings {
            writeln!(out, "warning: {}", warning.text)?;
        }
        for Finding { level, side, message } in &self.backends {
            let level = match level {
                Level::Info => "info",
                Level::Warning => "warning",
                Level::Mistake => "mistake",
                Level::Unreachable => "unreachable",
            };
            let side = side.map_or_else(String::new, |s| format!("{s}: "));
            writeln!(out, "{level}: {side}{message}")?;
        }
        let warned = self.backends.iter().filter(|f| f.level == Level::Warning).count() + self.warnings.len();
        let wrong = self.backends.iter().filter(|f| f.level == Level::Mistake).count() + self.mistakes.len();
        let result = match self.exit_code {
            FINE => "fine",
            MISTAKES => "refused",
            _ => "a backend cannot be reached",
        };
        writeln!(out, "{}: {result} (mistakes: {wrong}, warnings: {warned})", path.display())
    }

    /// What is refused now and then because sides take turns.
    fn turns(&mut self, config: &Config) {
        let list = &config.policy.repositories;
        let turns = |r: &Repository| r.slices(config.mirror.slice).is_some();
        for (i, a) in list.iter().enumerate() {
            let apart = |b: &&Repository| a.writes != b.writes && (turns(a) || turns(b));
            let names: Vec<&str> = list[i + 1..].iter().filter(apart).map(|b| b.name.as_str()).collect();
            if !names.is_empty() {
                let text = format!(
                    "transactions that write {} together with {} are refused (0A000) whenever different sides lead them: \
                     only repositories of equal write weights change sides together",
                    a.name,
                    names.join(", ")
                );
                self.add(Level::Warning, None, text);
            }
        }
        let refused = config.policy.on_unknown == OnUnknown::Refuse;
        for r in list.iter().filter(|r| refused && turns(r)) {
            let text = format!(
                "while the target leads {}, DO blocks, calls of undeclared volatile functions and statements that cannot be \
                 understood are refused (0A000): routing.on_unknown is \"refuse\"",
                r.name
            );
            self.add(Level::Warning, None, text);
        }
    }

    /// Statements that the weights leave without any backend.
    fn policy(&mut self, config: &Config) {
        self.turns(config);
        let list = &config.policy.repositories;
        for (i, a) in list.iter().enumerate() {
            let apart = |b: &&Repository| {
                !Side::BOTH.iter().any(|&side| a.reads.allows(side) && b.reads.allows(side))
            };
            let names: Vec<&str> = list[i + 1..].iter().filter(apart).map(|b| b.name.as_str()).collect();
            if !names.is_empty() {
                let names = names.join(", ");
                let text = format!(
                    "statements that read {} together with {names} are refused: no side answers both",
                    a.name
                );
                self.add(Level::Warning, None, text);
            }
        }
    }
}

/// What one backend says about itself.
#[derive(Debug)]
struct Facts {
    version: i32,
    encoding: String,
    prepared: i32,
    standard_strings: bool,
    /// Schema, table -> column -> its type and whether it may be NULL.
    tables: BTreeMap<(String, String), BTreeMap<String, String>>,
    functions: BTreeSet<(String, String)>,
}

async fn backends(config: &Config, report: &mut Report) {
    let connect = |side: Side| async move {
        let backend = &config.backends[side.index()];
        let client = control::Manager::new(backend, config.timeouts.server_connect)?.open().await?;
        Ok::<Client, control::Error>(client)
    };
    let (source, target) = tokio::join!(connect(Side::Source), connect(Side::Target));
    let mut facts = [None, None];
    for (side, client) in Side::BOTH.into_iter().zip([source, target]) {
        let backend = &config.backends[side.index()];
        let (host, port) = (&backend.host, backend.port);
        let client = match client {
            Ok(client) => client,
            Err(error) => {
                report.add(Level::Unreachable, side, format!("{host} port {port}: {error}"));
                continue;
            }
        };
        match read_facts(&client).await {
            Ok(read) => {
                about_one(config, side, &read, report);
                facts[side.index()] = Some(read);
            }
            Err(error) => {
                let text = format!("cannot read the catalog: {}", control::describe(&error));
                report.add(Level::Mistake, side, text);
            }
        }
        if side == Side::Source {
            check_auth_query(config, &client, report).await;
        }
    }
    if let [Some(source), Some(target)] = &facts {
        about_both(config, source, target, report);
        mirrored(config, report).await;
    }
}

/// Is what mirrored repositories need installed?
async fn mirrored(config: &Config, report: &mut Report) {
    let names =
        config.policy.repositories.iter().filter(|r| r.mirror.mode != Mode::Off).map(|r| r.name.as_str());
    let names: Vec<&str> = names.collect();
    if names.is_empty() {
        return;
    }
    let names = names.join(", ");
    match install::look(config).await {
        Ok(missing) if missing.is_empty() => {
            report.add(Level::Info, None, format!("mirroring of {names} is installed"));
        }
        Ok(missing) => {
            let way_out =
                if config.mirror.install { "`serve` does it" } else { "run `crossfade mirror install`" };
            let Missing { side, table, what } = &missing[0];
            let table = if table.is_empty() { String::new() } else { format!("{table}: ") };
            let text = format!(
                "mirroring of {names} is not installed or not up to date ({} places, the first: {table}{what}): {way_out}",
                missing.len()
            );
            report.add(Level::Warning, *side, text);
        }
        Err(error) => report.add(Level::Mistake, None, format!("mirroring of {names}: {error}")),
    }
}

async fn read_facts(client: &Client) -> Result<Facts, tokio_postgres::Error> {
    let no_parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)] = &[];
    let (settings, columns, functions) = tokio::try_join!(
        client.query_one(SETTINGS, no_parameters),
        client.query(COLUMNS, no_parameters),
        client.query(FUNCTIONS, no_parameters),
    )?;
    let mut tables: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
    for row in &columns {
        let columns = tables.entry((row.get(0), row.get(1))).or_default();
        // A table without columns has one row here, of NULLs.
        if let Some(column) = row.get::<_, Option<String>>(2) {
            columns.insert(column, row.get(3));
        }
    }
    Ok(Facts {
        version: settings.get(0),
        encoding: settings.get(1),
        prepared: settings.get(2),
        standard_strings: settings.get(3),
        tables,
        functions: functions.iter().map(|r| (r.get(0), r.get(1))).collect(),
    })
}

const SETTINGS: &str = "
SELECT pg_catalog.current_setting('server_version_num')::int, pg_catalog.current_setting('server_encoding'),
       pg_catalog.current_setting('max_prepared_transactions')::int,
       pg_catalog.current_setting('standard_conforming_strings')::bool";

const COLUMNS: &str = "
SELECT n.nspname::text, c.relname::text, a.attname::text,
       pg_catalog.format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't'
  AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'";

const FUNCTIONS: &str = "
SELECT DISTINCT n.nspname::text, p.proname::text
FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'";

fn about_one(config: &Config, side: Side, facts: &Facts, report: &mut Report) {
    // 120004 and 9.6's 90603.
    let (major, minor) = (facts.version / 10_000, facts.version % 10_000);
    if major < 12 {
        report.add(Level::Mistake, side, format!("Postgres {major} is too old: 12 is the oldest"));
    } else {
        let text =
            format!("Postgres {major}.{minor}, encoding {}, {} tables", facts.encoding, facts.tables.len());
        report.add(Level::Info, side, text);
    }
    if major > 18 {
        report.add(Level::Warning, side, format!("Postgres {major} is newer than any that was tried"));
    }
    let prepared = match facts.prepared {
        0 => "off: mirror = \"atomic\" needs it on the follower".to_owned(),
        n => n.to_string(),
    };
    report.add(Level::Info, side, format!("max_prepared_transactions is {prepared}"));
    if !facts.standard_strings {
        let text = "standard_conforming_strings is off: backslashes in plain strings are escapes";
        report.add(Level::Warning, side, text);
    }
    let text = |p: &Pattern| format!("{}.{}", p.schema, p.name);
    for repository in &config.policy.repositories {
        let name = &repository.name;
        for p in &repository.tables {
            if !facts.tables.keys().any(|(s, t)| may_match(p, s, t)) {
                report.add(Level::Warning, side, format!("repository {name}: no table matches {}", text(p)));
            }
        }
        for p in &repository.functions {
            if !facts.functions.iter().any(|(s, f)| may_match(p, s, f)) {
                report.add(
                    Level::Warning,
                    side,
                    format!("repository {name}: no function matches {}", text(p)),
                );
            }
        }
    }
}

fn about_both(config: &Config, source: &Facts, target: &Facts, report: &mut Report) {
    if source.encoding != target.encoding {
        let text = format!("server_encoding differs: {} and {}", source.encoding, target.encoding);
        report.add(Level::Mistake, None, text);
    }
    if source.standard_strings != target.standard_strings {
        report.add(Level::Mistake, None, "standard_conforming_strings differs: a string may mean two things");
    }
    if target.version < source.version {
        report.add(Level::Warning, None, "the target is older than the source");
    }
    // The tables of no repository stay on the source: the target need not have them.
    let named = |(schema, table): &&(String, String)| {
        let mut patterns = config.policy.repositories.iter().flat_map(|r| &r.tables);
        patterns.any(|p| may_match(p, schema, table))
    };
    let all: BTreeSet<_> = source.tables.keys().chain(target.tables.keys()).filter(named).collect();
    for name in all {
        let label = format!("{}.{}", name.0, name.1);
        match (source.tables.get(name), target.tables.get(name)) {
            (Some(_), None) => report.add(Level::Warning, Side::Target, format!("{label} does not exist")),
            (None, _) => report.add(Level::Warning, Side::Source, format!("{label} does not exist")),
            (Some(source), Some(target)) => {
                for text in column_differences(source, target) {
                    report.add(Level::Warning, None, format!("{label}.{text}"));
                }
            }
        }
    }
}

fn column_differences(source: &BTreeMap<String, String>, target: &BTreeMap<String, String>) -> Vec<String> {
    let names: BTreeSet<&String> = source.keys().chain(target.keys()).collect();
    let difference = |name: &String| match (source.get(name), target.get(name)) {
        (Some(s), Some(t)) if s == t => None,
        (Some(s), Some(t)) => Some(format!("{name} is {s} on the source and {t} on the target")),
        (Some(_), None) => Some(format!("{name} does not exist on the target")),
        (None, _) => Some(format!("{name} does not exist on the source")),
    };
    names.into_iter().filter_map(difference).collect()
}

/// May the control user run it, and is its answer one row of a name and a secret?
async fn check_auth_query(config: &Config, client: &Client, report: &mut Report) {
    let Some(query) = &config.auth.query else { return };
    let user = &config.backends[0].control_user;
    // No role has an empty name; the privileges are checked all the same.
    let nobody = "";
    let run = async {
        let statement = client.prepare(query).await?;
        client.query(&statement, &[&nobody]).await?;
        Ok::<_, tokio_postgres::Error>(statement.columns().len())
    };
    let side = Side::Source;
    match run.await {
        Ok(2) => report.add(Level::Info, side, format!("{user} may run auth.query")),
        Ok(n) => {
            report.add(Level::Mistake, side, format!("auth.query returns {n} columns, not name and secret"));
        }
        Err(error) => {
            let text = format!("auth.query fails as {user}: {}", control::describe(&error));
            report.add(Level::Mistake, side, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_compared() {
        let table = |list: &[(&str, &str)]| list.iter().map(|&(a, b)| (a.to_owned(), b.to_owned())).collect();
        let found = column_differences(
            &table(&[("id", "bigint"), ("a", "text"), ("b", "text")]),
            &table(&[("id", "integer"), ("b", "text"), ("c", "text")]),
        );
        assert_eq!(
            found,
            [
                "a does not exist on the target",
                "c does not exist on the source",
                "id is bigint on the source and integer on the target"
            ]
        );
    }

    #[test]
    fn a_bad_file_is_shown_whole() {
        let path = std::env::temp_dir().join(format!("crossfade-check-{}.toml", std::process::id()));
        std::fs::write(
            &path,
            "[pool]\nsise = 1\nmode = 'x'\n[source]\nhost='a'\ndatabase='d'\npassword='hush'\n",
        )
        .unwrap();
        for json in [false, true] {
            let mut out = Vec::new();
            let code = run(&path, &[], true, json, &mut out).unwrap();
            let text = String::from_utf8(out).unwrap();
            assert_eq!(code, MISTAKES, "{text}");
            for part in ["did you mean", "pool.mode", "target", "nobody can log in"] {
                assert!(text.contains(part), "{part} is not in {text}");
            }
            assert!(!text.contains("hush"), "{text}");
        }
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn an_unreachable_backend_is_another_exit_code() {
        let mut report = Report::default();
        assert_eq!(report.code(), FINE);
        report.add(Level::Warning, None, "w");
        assert_eq!(report.code(), FINE);
        report.add(Level::Mistake, Side::Source, "m");
        assert_eq!(report.code(), MISTAKES);
        report.add(Level::Unreachable, Side::Target, "u");
        assert_eq!(report.code(), UNREACHABLE);
    }
}
