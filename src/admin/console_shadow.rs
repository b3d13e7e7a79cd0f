//! What the console shows of shadow reads.

use super::{
    console_rows::{
        Cell, ToCells,
        Type::{self, Float8, Int8, Text},
    },
    snapshot::{Divergence, Figures, QueryRow},
};
use crate::{report::divergence::Writes, shadow::Outcome};

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
    /// What came of them.
    pub stats: Figures,
    /// Why reads were not executed twice, and how many.
    pub skipped: String,
    /// Mirrored transactions.
    pub writes: Option<Writes>,
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
    ("writes_compared", Int8),
    ("writes_differed", Int8),
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
        let stats = self.stats;
        let mut cells: Vec<Cell> = vec![
            self.repository.into(),
            self.application.into(),
            self.share.into(),
            self.eligible.into(),
            self.sampled.into(),
            stats.compared.into(),
        ];
        cells.extend(Outcome::NAMES.map(|outcome| Cell::from(stats.count(outcome))));
        cells.extend(
            [
                stats.rate,
                stats.rate_upper,
                stats.latency_ms.source.p50,
                stats.latency_ms.source.p99,
                stats.latency_ms.target.p50,
                stats.latency_ms.target.p99,
                stats.delta_ms.p50,
                stats.delta_ms.p99,
            ]
            .map(Cell::from),
        );
        cells.push(self.skipped.into());
        cells.push(self.writes.map(|w| w.compared).into());
        cells.push(self.writes.map(|w| w.differed).into());
        cells
    }
}

/// SHOW QUERIES: those with the most divergences first, then those that the target is slowest at.
impl ToCells for QueryRow {
    fn cells(self) -> Vec<Cell> {
        let stats = self.stats;
        let mut cells: Vec<Cell> =
            vec![self.repository.into(), self.fingerprint.into(), stats.compared.into()];
        let outcomes = ["match", "transient", "indeterminate", "divergence"];
        cells.extend(outcomes.map(|outcome| Cell::from(stats.count(outcome))));
        cells.extend(
            [
                stats.rate,
                stats.rate_upper,
                stats.latency_ms.source.p50,
                stats.latency_ms.target.p50,
                stats.delta_ms.p50,
                stats.delta_ms.p99,
            ]
            .map(Cell::from),
        );
        cells.push(self.sql.into());
        cells
    }
}

/// SHOW DIVERGENCES: the newest first.
impl ToCells for Divergence {
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
