//! What `/state` answers and `crossfade report` reads: state and evidence at one moment, as JSON.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::{console_rows::JournalRow, http::BackendState};
use crate::{
    Side,
    report::{
        divergence::{Query, Sample, Stats, Writes},
        history::Point,
        latency::{Deltas, Latencies},
    },
    shadow::Outcome,
};

/// All of it. Times are Unix seconds, latencies milliseconds, shares 0 to 1.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Snapshot {
    /// Of crossfade.
    pub version: String,
    /// When it was taken.
    pub now: u64,
    /// Hash of the configuration in force.
    pub config: String,
    /// About to stop.
    pub draining: bool,
    /// Are actions taken by HTTP?
    #[serde(default)]
    pub actions: bool,
    /// Backends that PAUSE keeps new work from.
    #[serde(default)]
    pub paused: Pair<bool>,
    /// What the last health checks said.
    pub backends: Pair<Option<BackendState>>,
    /// All repositories, `default` first.
    pub repositories: Vec<Repository>,
    /// Of each side, where anything is mirrored.
    pub journals: Vec<Journal>,
    /// Prepared transactions, and those of them that need an operator.
    pub in_doubt: InDoubt,
    /// Reads that wait for their second execution.
    pub queue: u64,
    /// Sampled reads that were not compared, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Queries with divergences, those with the most first; at most [`MOST_QUERIES`].
    pub divergent: Vec<QueryRow>,
    /// Queries at which the target is slower (median), the slowest first; at most [`MOST_QUERIES`].
    pub slower: Vec<QueryRow>,
    /// What differs, the newest first; at most [`MOST_DIVERGENCES`].
    pub divergences: Vec<Divergence>,
}

/// The same of both sides.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Pair<T> {
    /// Of the source.
    pub source: T,
    /// Of the target.
    pub target: T,
}

/// One repository.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Repository {
    /// Name.
    pub name: String,
    /// Patterns of its tables.
    pub tables: Vec<String>,
    /// Share of reads that the target answers.
    pub reads_target: f64,
    /// Share of writes that the target leads.
    pub writes_target: f64,
    /// `mirror` as configured.
    pub mirror: String,
    /// Who leads writes now.
    pub lead: String,
    /// Who is to, when that is another side.
    pub lead_wanted: Option<String>,
    /// What the move of the lead waits for.
    pub lead_waits_for: Option<String>,
    /// Statements answered.
    pub queries: Pair<u64>,
    /// Errors answered.
    pub errors: Pair<u64>,
    /// `shadow` as configured.
    pub shadow: f64,
    /// Of its reads, since this process began.
    pub coverage: Coverage,
    /// All its comparisons.
    pub stats: Figures,
    /// Mirrored transactions, by whether the follower had the rows that it should.
    pub writes: Writes,
    /// The same by `application_name`.
    pub applications: BTreeMap<String, Figures>,
    /// Its last hour, oldest first.
    pub history: VecDeque<Point>,
}

/// How many reads were to be executed twice.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Coverage {
    /// May be.
    pub eligible: u64,
    /// Were drawn.
    pub sampled: u64,
    /// May not be, by reason.
    pub skipped: BTreeMap<String, u64>,
}

/// What came of some comparisons; these outlive the process where `shadow.evidence` is set.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Figures {
    /// All of them.
    pub compared: u64,
    /// Those that said whether the sides are equal.
    pub decided: u64,
    /// By outcome.
    pub outcomes: BTreeMap<String, u64>,
    /// Divergences by class.
    pub classes: BTreeMap<String, u64>,
    /// Why nobody can say.
    pub indeterminate: BTreeMap<String, u64>,
    /// Divergences among the decided ones.
    pub rate: Option<f64>,
    /// Its 95 % upper bound.
    pub rate_upper: Option<f64>,
    /// Of each side.
    pub latency_ms: Pair<Quantiles>,
    /// Target minus source, of the same read.
    pub delta_ms: Quantiles,
    /// How long differences lasted that went away.
    pub transient_ms: Quantiles,
    /// By class of SQLSTATE.
    pub errors: Pair<BTreeMap<String, u64>>,
    /// Of the first comparison; 0 without any.
    pub first: u64,
    /// And of the last.
    pub last: u64,
}

/// Of a distribution, in milliseconds; absent without values.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Quantiles {
    /// Median.
    pub p50: Option<f64>,
    /// 95 %.
    pub p95: Option<f64>,
    /// 99 %.
    pub p99: Option<f64>,
    /// At each of [`SHARES`]; empty where it is not told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub curve: Vec<f64>,
}

/// The journal of one side.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Journal {
    /// Where it is.
    pub backend: String,
    /// Rows, counted up to a bound.
    pub rows: Option<u64>,
    /// Rows of them that no transaction ships itself.
    pub dirty: Option<u64>,
    /// Age of the oldest.
    pub oldest_seconds: Option<f64>,
    /// `shipping`, `idle`, `elsewhere`, `failing`, `off`.
    pub repairer: Option<String>,
    /// Rows that could not be shipped yet.
    pub held: u64,
    /// Why not; one of them.
    pub reason: Option<String>,
}

/// Prepared transactions.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct InDoubt {
    /// All.
    pub transactions: u64,
    /// Those that need an operator.
    pub stuck: u64,
}

/// One query.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct QueryRow {
    /// Of its repository.
    pub repository: String,
    /// Hexadecimal.
    pub fingerprint: String,
    /// Without constants.
    pub sql: String,
    /// What came of it.
    pub stats: Figures,
}

/// Something that differs.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Divergence {
    /// Of its repository.
    pub repository: String,
    /// Of its query, hexadecimal.
    pub fingerprint: String,
    /// `cell`, `missing_row`, ...
    pub class: String,
    /// In this column.
    pub column: Option<String>,
    /// Of the row with this key.
    pub key: Option<String>,
    /// The side that answered the client.
    pub answering: String,
    /// What it answered; values of rows only with `shadow.values`.
    pub answered: Option<String>,
    /// What the other side did.
    pub other: Option<String>,
    /// How often it was seen.
    pub count: u64,
    /// When first.
    pub first: u64,
    /// And last.
    pub last: u64,
    /// The query without constants.
    pub sql: String,
    /// Shell command that asks both sides; `$SOURCE` and `$TARGET` are connection strings, constants are to be filled in.
    pub reproduce: String,
}

impl Figures {
    /// Of these; `curve` also tells the whole distributions.
    pub fn of(stats: &Stats, curve: bool) -> Self {
        let rate = stats.rate();
        let [source, target] = &stats.latency;
        let outcomes = Outcome::NAMES.iter().zip(stats.outcomes);
        Self {
            compared: stats.comparisons(),
            decided: stats.decided(),
            outcomes: outcomes.map(|(name, n)| ((*name).to_owned(), n)).collect(),
            classes: stats.classes.iter().map(|(class, &n)| (class.name().to_owned(), n)).collect(),
            indeterminate: stats.indeterminate.clone(),
            rate: rate.map(|(rate, _)| rate),
            rate_upper: rate.map(|(_, upper)| upper),
            latency_ms: Pair { source: Quantiles::of(source, curve), target: Quantiles::of(target, curve) },
            delta_ms: Quantiles::of_deltas(&stats.delta, curve),
            transient_ms: Quantiles::of(&stats.transient, false),
            errors: Pair { source: stats.errors[0].clone(), target: stats.errors[1].clone() },
            first: stats.first,
            last: stats.last,
        }
    }

    /// Comparisons with this outcome.
    pub fn count(&self, outcome: &str) -> u64 {
        self.outcomes.get(outcome).copied().unwrap_or_default()
    }
}

impl Quantiles {
    fn of(latencies: &Latencies, curve: bool) -> Self {
        Self::with(|share| latencies.quantile(share).map(|d| d.as_secs_f64() * 1e3), curve)
    }

    fn of_deltas(deltas: &Deltas, curve: bool) -> Self {
        Self::with(|share| deltas.quantile(share).map(|s| s * 1e3), curve)
    }

    fn with(at: impl Fn(f64) -> Option<f64>, curve: bool) -> Self {
        let curve = if curve { SHARES.iter().filter_map(|&share| at(share)).collect() } else { Vec::new() };
        Self { p50: at(0.5), p95: at(0.95), p99: at(0.99), curve }
    }
}

impl QueryRow {
    /// Of this query.
    pub fn of(repository: &str, fingerprint: u64, query: &Query) -> Self {
        Self {
            repository: repository.to_owned(),
            fingerprint: format!("{fingerprint:016x}"),
            sql: query.sql.clone(),
            stats: Figures::of(&query.stats, false),
        }
    }
}

impl Divergence {
    /// Of this one.
    pub fn of(repository: &str, fingerprint: u64, query: &Query, sample: &Sample) -> Self {
        Self {
            repository: repository.to_owned(),
            fingerprint: format!("{fingerprint:016x}"),
            class: sample.class.name().to_owned(),
            column: sample.column.clone(),
            key: sample.key.clone(),
            answering: sample.answering.name().to_owned(),
            answered: sample.answered.clone(),
            other: sample.other.clone(),
            count: sample.count,
            first: sample.first,
            last: sample.last,
            sql: query.sql.clone(),
            reproduce: reproduce(&query.sql),
        }
    }
}

impl Journal {
    /// One for each side that has rows of SHOW JOURNAL.
    pub fn of(rows: &[JournalRow]) -> Vec<Self> {
        let of = |side: Side| {
            let mine = || rows.iter().filter(move |row| row.backend == Some(side));
            let whole = mine().find(|row| row.id.is_none())?;
            let held = mine().filter(|row| row.id.is_some());
            Some(Self {
                backend: side.name().to_owned(),
                rows: whole.rows,
                dirty: whole.dirty,
                oldest_seconds: whole.oldest_seconds,
                repairer: whole.repairer.clone(),
                held: held.clone().count() as u64,
                reason: whole.reason.clone().or_else(|| held.clone().find_map(|row| row.reason.clone())),
            })
        };
        Side::BOTH.into_iter().filter_map(of).collect()
    }
}

/// A shell command: a quote inside of quotes is `'\''`.
fn reproduce(sql: &str) -> String {
    let quoted = sql.replace('\'', r"'\''");
    format!(r#"for side in "$SOURCE" "$TARGET"; do psql "$side" -c '{quoted}'; done"#)
}

/// Places of [`Quantiles::curve`].
pub const SHARES: [f64; 13] = [0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99];
/// Queries of either kind that are told.
pub const MOST_QUERIES: usize = 20;
/// Divergences that are told.
pub const MOST_DIVERGENCES: usize = 50;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quote_ends_no_command() {
        let command = reproduce("SELECT 'a' || $1; -- '; rm");
        assert!(command.contains(r"'SELECT '\''a'\'' || $1; -- '\''; rm'"), "{command}");
    }

    #[test]
    fn held_rows_belong_to_their_journal() {
        let whole = JournalRow { backend: Some(Side::Source), rows: Some(3), ..JournalRow::default() };
        let held = JournalRow { id: Some(7), reason: Some("no key".to_owned()), ..whole.clone() };
        let journals = Journal::of(&[whole, held]);
        assert_eq!(journals.len(), 1);
        assert_eq!((journals[0].held, journals[0].reason.as_deref()), (1, Some("no key")));
    }

    #[test]
    fn json_is_read_back() {
        let snapshot = Snapshot { repositories: vec![Repository::default()], ..Snapshot::default() };
        let text = serde_json::to_string(&snapshot).unwrap();
        assert_eq!(serde_json::from_str::<Snapshot>(&text).unwrap(), snapshot);
    }
}
