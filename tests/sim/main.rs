//! Chaos: many clients write through two proxies while proxies, servers and connections die; in the end nothing that was
//! acknowledged is lost, nothing that was rolled back is there, and source and target are equal.
//!
//! `make chaos` runs it for `CHAOS_SECONDS` (120) in each mode of `CHAOS_MODE` (all), `make test` for some seconds.
//! The mode `switching` edits mode and lead of the repositories at random moments, whole or in turns.
//! `CROSSFADE_SEED` repeats the choices of a run, though not the moments at which they meet.

mod client;
mod faults;
mod judge;
mod ledger;
mod run;
mod schema;
mod work;

#[path = "../it"]
mod it {
    #[expect(
        dead_code,
        unused_imports,
        unused_macros,
        reason = "the suites of tests/it need more of the harness"
    )]
    pub(crate) mod support;
}
use it::support;

/// Runs one mode, when it is asked for.
fn chaos(mode: &'static str) {
    if std::env::var("CHAOS_MODE").is_ok_and(|wanted| !wanted.is_empty() && wanted != mode) {
        return;
    }
    let seed = support::seed(&format!("chaos {mode}"));
    run::Run::new(mode, seed).play(support::env_number("CHAOS_SECONDS").unwrap_or(SHORT_SECONDS));
}

#[test]
fn chaos_async() {
    chaos("async");
}

#[test]
fn chaos_journaled() {
    chaos("journaled");
}

#[test]
fn chaos_atomic() {
    chaos("atomic");
}

/// Modes and leads are edited all the time, right after a crash as well.
#[test]
fn chaos_switching() {
    chaos(run::SWITCHING);
}

/// In `make test`.
const SHORT_SECONDS: u64 = 8;
