//! crossfade: a Postgres wire-protocol proxy that moves an application from one Postgres (the
//! source) to another (the target), one repository of tables at a time.
//!
//! Modules in reading order; a step imports the steps above it, never those below.
//! `docs/architecture.md` is the map.

pub mod admin;
pub mod backend;
pub mod catalog;
pub mod cli;
pub mod compare;
pub mod config;
pub mod error;
pub mod frontend;
pub mod mirror;
pub mod proxy;
pub mod report;
pub mod route;
pub mod session;
pub mod shadow;
pub mod statement;
pub mod wire;

use serde::{Deserialize, Serialize};

/// One of the two databases. The names never swap during a migration.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Where the application's data lives when the migration begins.
    Source,
    /// Where it lives when the migration ends.
    Target,
}

impl Side {
    /// Both sides, in the order of [`Side::index`].
    pub const BOTH: [Side; 2] = [Side::Source, Side::Target];

    /// The other side.
    #[must_use]
    pub fn other(self) -> Side {
        match self {
            Side::Source => Side::Target,
            Side::Target => Side::Source,
        }
    }

    /// Index into an array with one element per side: source 0, target 1.
    pub fn index(self) -> usize {
        match self {
            Side::Source => 0,
            Side::Target => 1,
        }
    }

    /// The word used in configuration, metrics and messages.
    pub fn name(self) -> &'static str {
        match self {
            Side::Source => "source",
            Side::Target => "target",
        }
    }
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
