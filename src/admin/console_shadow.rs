//! What the console shows of shadow reads.

use super::console_rows::{
    Cell, ToCells,
    Type::{self, Float8, Int8, Text},
};
use crate::{Side, shadow::Outcome};

/// SHOW SHADOW: one for each repository, one for each application of it, and one for each reason to drop a read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ShadowRow {
    /// Name; `dropped` for sampled reads that were not compared.
    pub repository: String,
    /// `application_name`, where the row is about one.
    pub application: Option<String>,
    /// Configured share of reads.
    pub share: Option<f64>,
    /// Reads of this process that may be executed twice.
    pub eligible: Option<u64>,
    /// Those that were to be.
    pub sampled: Option<u64>,
    /// Comparisons; these and what follows include those of earlier processes where `shadow.evidence` is set.
    pub compared: u64,
    /// In the order of [`Outcome::NAMES`].
    pub outcomes: [u64; Outcome::NAMES.len()],
    /// Share of divergences.
    pub rate: Option<f64>,
    /// Its 95 % upper bound.
    pub rate_upper: Option<f64>,
    /// Latency, milliseconds.
    pub source_ms_p50: Option<f64>,
    /// The same.
    pub source_ms_p99: Option<f64>,
    /// The same.
    pub target_ms_p50: Option<f64>,
    /// The same.
    pub target_ms_p99: Option<f64>,
    /// Target minus source, of the same read.
    pub delta_ms_p50: Option<f64>,
    /// The same.
    pub delta_ms_p99: Option<f64>,
    /// Why reads were not executed twice, and how many.
    pub skipped: String,
}

/// SHOW QUERIES: those with the most divergences first, then those that the target is slowest at.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueryRow {
    /// Name.
    pub repository: String,
    /// Of the statement, hexadecimal.
    pub fingerprint: String,
    /// Without constants.
    pub sql: String,
    /// What came of it.
    pub stats: ShadowRow,
}

/// SHOW DIVERGENCES: the newest first.
#[derive(Clone, Debug, PartialEq)]
pub struct DivergenceRow {
    /// Name.
    pub repository: String,
    /// Of the statement, hexadecimal.
    pub fingerprint: String,
    /// What differs: `cell`, `missing_row`, ...
    pub class: String,
    /// In this column.
    pub column: Option<String>,
    /// Of the row with this key.
    pub key: Option<String>,
    /// The side that answered the client.
    pub answering: Side,
    /// What it answered, with `shadow.values`.
    pub answered: Option<String>,
    /// What the other side has.
    pub other: Option<String>,
    /// How often it was seen.
    pub count: u64,
    /// Unix time of the first time.
    pub first: u64,
    /// And of the last.
    pub last: u64,
    /// Without constants.
    pub sql: String,
}

pub(super) const SHADOW: &[(&str, Type)] = &[
    ("repository", Text),
    ("application", Text),
    ("share", Float8),
    ("eligible", Int8),
    ("sampled", Int8),
    ("compared", Int8),
    ("match", Int8),
    ("order_only", Int8),
    ("ignored", Int8),
    ("noise", Int8),
    ("transient", Int8),
    ("indeterminate", Int8),
    ("divergence", Int8),
    ("rate", Float8),
    ("rate_upper", Float8),
    ("source_ms_p50", Float8),
    ("source_ms_p99", Float8),
    ("target_ms_p50", Float8),
    ("target_ms_p99", Float8),
    ("delta_ms_p50", Float8),
    ("delta_ms_p99", Float8),
    ("skipped", Text),
];

pub(super) const QUERIES: &[(&str, Type)] = &[
    ("repository", Text),
    ("fingerprint", Text),
    ("compared", Int8),
    ("match", Int8),
    ("transient", Int8),
    ("indeterminate", Int8),
    ("divergence", Int8),
    ("rate", Float8),
    ("rate_upper", Float8),
    ("source_ms_p50", Float8),
    ("target_ms_p50", Float8),
    ("delta_ms_p50", Float8),
    ("delta_ms_p99", Float8),
    ("sql", Text),
];

pub(super) const DIVERGENCES: &[(&str, Type)] = &[
    ("repository", Text),
    ("fingerprint", Text),
    ("class", Text),
    ("column", Text),
    ("key", Text),
    ("answering", Text),
    ("answered", Text),
    ("other", Text),
    ("count", Int8),
    ("first", Int8),
    ("last", Int8),
    ("sql", Text),
];

impl ToCells for ShadowRow {
    fn cells(self) -> Vec<Cell> {
        let mut cells: Vec<Cell> = vec![
            self.repository.into(),
            self.application.into(),
            self.share.into(),
            self.eligible.into(),
            self.sampled.into(),
            self.compared.into(),
        ];
        cells.extend(self.outcomes.map(Cell::from));
        cells.extend(
            [
                self.rate,
                self.rate_upper,
                self.source_ms_p50,
                self.source_ms_p99,
                self.target_ms_p50,
                self.target_ms_p99,
                self.delta_ms_p50,
                self.delta_ms_p99,
            ]
            .map(Cell::from),
        );
        cells.push(self.skipped.into());
        cells
    }
}

impl ToCells for QueryRow {
    fn cells(self) -> Vec<Cell> {
        let stats = self.stats;
        let [matches, _order_only, _ignored, _noise, transient, indeterminate, divergence] = stats.outcomes;
        vec![
            self.repository.into(),
            self.fingerprint.into(),
            stats.compared.into(),
            matches.into(),
            transient.into(),
            indeterminate.into(),
            divergence.into(),
            stats.rate.into(),
            stats.rate_upper.into(),
            stats.source_ms_p50.into(),
            stats.target_ms_p50.into(),
            stats.delta_ms_p50.into(),
            stats.delta_ms_p99.into(),
            self.sql.into(),
        ]
    }
}

impl ToCells for DivergenceRow {
    fn cells(self) -> Vec<Cell> {
        vec![
            self.repository.into(),
            self.fingerprint.into(),
            self.class.into(),
            self.column.into(),
            self.key.into(),
            self.answering.into(),
            self.answered.into(),
            self.other.into(),
            self.count.into(),
            self.first.into(),
            self.last.into(),
            self.sql.into(),
        ]
    }
}
