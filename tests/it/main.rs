//! Integration tests: one binary, real databases, a file per promise.
//!
//! Run with `cargo test --test it`: the two clusters are shared by the tests of one process.
//! `CROSSFADE_IT=direct` lets the suites talk to Postgres itself; what needs the proxy is then skipped. That is how
//! the suites are tested. `CROSSFADE_BIN` names another build of the proxy, `CROSSFADE_SEED` and `CROSSFADE_ROUNDS` play
//! a random test again.

mod clusters;
mod dashboards;
mod differential;
mod failures;
mod hazards;
mod leftovers;
mod mirror;
mod mirror_install;
mod mirror_lead;
mod mirror_repair;
mod mirror_waits;
mod moves;
mod operation;
#[cfg(feature = "otlp")]
mod otlp;
mod page;
mod reload;
mod security;
mod shadow;
mod shadow_soak;
mod support;
mod tenants;
