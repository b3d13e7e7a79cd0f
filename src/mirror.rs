//! Dual writes: what the lead's transactions change reaches the follower as rows, never as SQL.
//!
//! Triggers on the tables of mirrored repositories record the keys that a transaction changes; at COMMIT the proxy
//! reads the final rows of those keys and applies them to the follower. What cannot be applied at once stays in
//! `crossfade.journal` for the repairer. `docs/architecture.md` is the map.

pub mod apply;
pub mod batch;
pub mod capture;
pub mod deadlock;
pub mod facts;
pub mod install;
pub mod lead;
pub mod plan;
pub mod preflight;
pub mod recovery;
pub mod repair;
pub mod schema;
pub mod session;
pub mod shape;
pub mod status;
pub mod tables;
pub mod watch;
pub mod write_set;
