//! `crossfade mirror install|status|remove`: what mirroring needs on both databases.

use std::{
    io::{self, Write},
    path::Path,
    time::Duration,
};

use crate::{
    config::reload,
    mirror::{
        install::{self, Error, Report},
        preflight::Severity,
    },
};

/// All that was asked for is there.
pub const FINE: u8 = 0;
/// Something cannot be mirrored, or is missing.
pub const MISSING: u8 = 1;
/// A backend cannot be reached, or refused; nothing more is known.
pub const FAILED: u8 = 2;

/// What to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// Install, or bring up to date.
    Install,
    /// Look.
    Status,
    /// Take away; `force` also when journal rows are not shipped yet.
    Remove {
        /// Loses what the journal holds.
        force: bool,
    },
}

/// Runs `action` on the repositories of the configuration (of `only` that one) and writes what was found to `out`.
/// Waits at most `patience` for the locks of one table. Makes a runtime of its own: call it outside any.
pub fn run(
    path: &Path,
    environment: &[(String, String)],
    action: Action,
    only: Option<&str>,
    patience: Duration,
    out: &mut dyn Write,
) -> io::Result<u8> {
    let config = match reload::check_file(path, environment).config {
        Ok(config) => config,
        Err(mistakes) => {
            for mistake in &mistakes {
                writeln!(out, "{mistake}")?;
            }
            return Ok(MISSING);
        }
    };
    if let Some(only) = only
        && !config.policy.repositories.iter().skip(1).any(|r| r.name == only)
        && !matches!(action, Action::Remove { .. })
    {
        writeln!(out, "there is no repository {only:?} in {}", path.display())?;
        return Ok(MISSING);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result: Result<Report, Error> = runtime.block_on(async {
        match action {
            Action::Install => install::install(&config, only, patience).await,
            Action::Status => install::status(&config, only).await,
            Action::Remove { force } => install::remove(&config, only, force, patience).await,
        }
    });
    match result {
        Ok(report) => write(&report, action, out),
        Err(error) => {
            writeln!(out, "{error}")?;
            Ok(FAILED)
        }
    }
}

fn write(report: &Report, action: Action, out: &mut dyn Write) -> io::Result<u8> {
    for finding in &report.findings {
        writeln!(out, "{finding}")?;
    }
    for done in &report.done {
        writeln!(out, "done: {done}")?;
    }
    for missing in &report.missing {
        let table = if missing.table.is_empty() { String::new() } else { format!("{}: ", missing.table) };
        writeln!(out, "missing: {}: {table}{}", missing.side, missing.what)?;
    }
    if matches!(action, Action::Remove { .. }) {
        if report.done.is_empty() {
            writeln!(out, "nothing is installed")?;
        }
        return Ok(FINE);
    }
    for (name, row) in &report.registry.repositories {
        let tables = report.registry.tables.values().filter(|t| t.repository == *name).count();
        writeln!(
            out,
            "repository {name}: number {}, {tables} tables, led by the {}, epoch {}",
            row.number, row.lead, row.epoch
        )?;
    }
    let refused = report.findings.iter().any(|f| f.severity == Severity::Refused);
    let result = match (refused, report.missing.is_empty()) {
        (true, _) => "some repositories cannot be mirrored",
        (false, false) => "not all is installed: run `crossfade mirror install`",
        (false, true) if report.registry.repositories.is_empty() => "no repository is mirrored",
        (false, true) => "all is installed and up to date",
    };
    writeln!(out, "{result}")?;
    Ok(if refused || !report.missing.is_empty() { MISSING } else { FINE })
}
