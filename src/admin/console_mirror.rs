//! What the console shows of dual writes.

use super::console_rows::{
    Cell, ToCells,
    Type::{self, Bool, Float8, Int4, Int8, Text},
};
use crate::Side;

/// SHOW JOURNAL: one for the journal of each backend (without `id`), and one for each row that could not be shipped.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JournalRow {
    /// Where the journal is.
    pub backend: Option<Side>,
    /// Place of a row that stays.
    pub id: Option<u64>,
    /// Rows of the journal; counted up to a bound.
    pub rows: Option<u64>,
    /// Rows of them that no transaction ships itself.
    pub dirty: Option<u64>,
    /// Age of the oldest, seconds.
    pub oldest_seconds: Option<f64>,
    /// `shipping`, `idle`, `elsewhere`, `failing`, `off`.
    pub repairer: Option<String>,
    /// Keys and whole rows shipped by this process.
    pub repaired: Option<u64>,
    /// The same, per second, lately.
    pub per_second: Option<f64>,
    /// How often it was tried.
    pub attempts: Option<u64>,
    /// The next attempt, seconds from now.
    pub retry_seconds: Option<f64>,
    /// Why it failed.
    pub reason: Option<String>,
}

/// `SHOW IN_DOUBT`
#[derive(Clone, Debug, PartialEq)]
pub struct InDoubtRow {
    /// Where it is prepared.
    pub backend: Side,
    /// Its name.
    pub gid: String,
    /// Seconds since it was prepared.
    pub age_seconds: f64,
    /// Only an operator can resolve it.
    pub stuck: bool,
    /// What becomes of it, or why nothing does.
    pub verdict: String,
}

/// SHOW TRANSACTIONS: mirrored transactions in flight.
#[derive(Clone, Debug, PartialEq)]
pub struct TransactionRow {
    /// For KILL.
    pub client: u64,
    /// User.
    pub user: String,
    /// Names of the repositories that it may have written.
    pub repositories: Vec<String>,
    /// The side that executes its statements.
    pub lead: Side,
    /// `armed`, `applying`, `prepared`, `committing`.
    pub state: String,
    /// Seconds since its first statement that may write.
    pub age_seconds: f64,
    /// Process id on the lead.
    pub lead_pid: i32,
    /// Process id on the follower, from the moment it is at work.
    pub follower_pid: Option<i32>,
}

pub(super) const JOURNAL: &[(&str, Type)] = &[
    ("backend", Text),
    ("id", Int8),
    ("rows", Int8),
    ("dirty", Int8),
    ("oldest_s", Float8),
    ("repairer", Text),
    ("repaired", Int8),
    ("per_second", Float8),
    ("attempts", Int8),
    ("retry_s", Float8),
    ("reason", Text),
];

pub(super) const IN_DOUBT: &[(&str, Type)] =
    &[("backend", Text), ("gid", Text), ("age_s", Float8), ("stuck", Bool), ("verdict", Text)];

pub(super) const TRANSACTIONS: &[(&str, Type)] = &[
    ("client_id", Int8),
    ("user", Text),
    ("repositories", Text),
    ("lead", Text),
    ("state", Text),
    ("age_s", Float8),
    ("lead_pid", Int4),
    ("follower_pid", Int4),
];

impl ToCells for JournalRow {
    fn cells(self) -> Vec<Cell> {
        vec![
            self.backend.into(),
            self.id.into(),
            self.rows.into(),
            self.dirty.into(),
            self.oldest_seconds.into(),
            self.repairer.into(),
            self.repaired.into(),
            self.per_second.into(),
            self.attempts.into(),
            self.retry_seconds.into(),
            self.reason.into(),
        ]
    }
}

impl ToCells for InDoubtRow {
    fn cells(self) -> Vec<Cell> {
        vec![
            self.backend.into(),
            self.gid.into(),
            self.age_seconds.into(),
            self.stuck.into(),
            self.verdict.into(),
        ]
    }
}

impl ToCells for TransactionRow {
    fn cells(self) -> Vec<Cell> {
        vec![
            self.client.into(),
            self.user.into(),
            self.repositories.join(", ").into(),
            self.lead.into(),
            self.state.into(),
            self.age_seconds.into(),
            self.lead_pid.into(),
            self.follower_pid.into(),
        ]
    }
}
