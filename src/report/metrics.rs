//! Every metric, declared once; `docs/metrics.md` shows the same table and a test compares the two.
//!
//! Counters and histograms are kept in [`Series`], with a writer per data thread. Gauges mirror
//! state that lives elsewhere, so a callback sets them right before they are rendered; a
//! label set that is no longer true (a removed repository, an old hash) must vanish at once.

mod closed;
mod text;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use super::{
    process,
    tally::{Count, Distribution, Series, Times},
};
use crate::{Side, route::policy::Policy};

/// A future on the heap that any thread may drive.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Sets the gauges that mirror state; called right before rendering.
pub type Collect = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// One metric family.
#[derive(Debug, Eq, PartialEq)]
pub struct Metric {
    /// Full name, base units, `_total` for counters.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// Names of its labels, in the order their values are given.
    pub labels: &'static [&'static str],
    /// One line for `# HELP` and for `docs/metrics.md`.
    pub help: &'static str,
}

/// How a metric behaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Only rises.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by bounds.
    Histogram,
}

impl Kind {
    /// Prometheus' word.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

macro_rules! declare {
    ($($id:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(#[doc = $help]
        pub const $id: Metric =
            Metric { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };)*

        /// Every metric there is.
        pub const ALL: &[&Metric] = &[$(&$id),*];
    };
}

declare! {
    BUILD_INFO: Gauge "crossfade_build_info" ["version"] "Always 1; the label is the version that runs.";
    CONFIG_INFO: Gauge "crossfade_config_info" ["hash"] "Always 1; the label is the hash of the configuration in force.";
    CONFIG_LAST_RELOAD_SUCCESSFUL: Gauge "crossfade_config_last_reload_successful" [] "1 when the last attempt to load the configuration was accepted, else 0.";
    CONFIG_LAST_RELOAD_SUCCESS: Gauge "crossfade_config_last_reload_success_timestamp_seconds" [] "Unix time at which the configuration in force was accepted.";
    CONFIG_RELOAD: Counter "crossfade_config_reload_total" ["result"] "Attempts to load the configuration: ok, refused.";
    ROUTE_WEIGHT: Gauge "crossfade_route_weight" ["repository", "backend", "op"] "Configured share of reads and writes (op) that this backend answers or leads, 0 to 1.";
    CLIENT_CONNECTIONS: Gauge "crossfade_client_connections" ["state"] "Clients connected now: login, idle, active, waiting.";
    LOGINS: Counter "crossfade_logins_total" ["outcome"] "Connections by how their start-up ended: `ok`, `refused`, `wrong_password`, `timeout`.";
    TLS_STUFFING_REFUSED: Counter "crossfade_tls_stuffing_refused_total" [] "Connections closed because plain bytes followed a request for TLS.";
    CANCEL_REQUESTS: Counter "crossfade_cancel_requests_total" ["outcome"] "Cancel requests by what became of them: `passed_on`, `unknown_key`.";
    PINNED_SESSIONS: Gauge "crossfade_pinned_sessions" ["reason"] "Clients in transaction pooling that keep their server connection now, and why.";
    CLIENT_RECEIVED_BYTES: Counter "crossfade_client_received_bytes_total" [] "Bytes received from clients after their login.";
    CLIENT_SENT_BYTES: Counter "crossfade_client_sent_bytes_total" [] "Bytes sent to clients after their login.";
    BACKEND_RECEIVED_BYTES: Counter "crossfade_backend_received_bytes_total" ["backend"] "Bytes received from this backend.";
    BACKEND_SENT_BYTES: Counter "crossfade_backend_sent_bytes_total" ["backend"] "Bytes sent to this backend.";
    BACKEND_UP: Gauge "crossfade_backend_up" ["backend"] "1 when the backend answered its last health check, else 0.";
    POOL_CONNECTIONS: Gauge "crossfade_pool_connections" ["backend", "state"] "Server connections now: active (opening ones included), idle.";
    POOL_WAITERS: Gauge "crossfade_pool_waiters" ["backend"] "Clients that wait for a server connection now.";
    POOL_WAIT: Histogram "crossfade_pool_wait_seconds" ["backend"] "Time clients waited for a server connection.";
    POOL_SATURATION: Gauge "crossfade_pool_saturation_ratio" ["backend"] "Server connections in use divided by the most there may be, of the fullest pool.";
    QUERIES: Counter "crossfade_queries_total" ["repository", "backend", "op"] "Statements answered, by what they do (op): read, write, ddl, tx, other.";
    QUERY_DURATION: Histogram "crossfade_query_duration_seconds" ["repository", "backend", "op"] "Time from the statement's arrival to the end of its answer.";
    TRANSACTIONS: Counter "crossfade_transactions_total" ["backend", "outcome"] "Transactions ended, lone statements included: commit, rollback.";
    ERRORS: Counter "crossfade_errors_total" ["backend", "sqlstate_class", "repository"] "Errors that backends answered, by the first two characters of SQLSTATE.";
    ROUTES: Counter "crossfade_routes_total" ["repository", "backend", "reason"] "Statements routed to this backend, and why.";
    UNKNOWN_STATEMENTS: Counter "crossfade_unknown_statements_total" ["reason"] "Statements whose effect was not understood, and why.";
    MIRROR_TRANSACTIONS: Counter "crossfade_mirror_transactions_total" ["lead", "outcome"] "Transactions whose rows the proxy shipped at COMMIT, by what became of them: `both`, `journal`, `rolled_back`.";
    MIRROR_ROUND_TRIPS: Counter "crossfade_mirror_round_trips_total" ["lead"] "Round trips in sequence that shipping took, of statements of crossfade's own and of autocommit statements.";
    MIRROR_FOLLOWER_FAILURES: Counter "crossfade_mirror_follower_failures_total" ["backend", "reason"] "Transactions that the follower did not take: `avoided`, `unreachable`, `refused`, `unfit`.";
    PLAN_CACHE_HITS: Counter "crossfade_plan_cache_hits_total" [] "Statements whose plan was in the cache.";
    PLAN_CACHE_MISSES: Counter "crossfade_plan_cache_misses_total" [] "Statements that had to be analysed.";
    PLAN_CACHE_ENTRIES: Gauge "crossfade_plan_cache_entries" [] "Plans in the caches of all threads.";
    PLAN_CACHE_BYTES: Gauge "crossfade_plan_cache_bytes" [] "Estimated size of the plan caches of all threads.";
    JOURNAL_ROWS: Gauge "crossfade_journal_rows" ["backend"] "Rows of the journal on this backend, counted up to 100000.";
    JOURNAL_DIRTY: Gauge "crossfade_journal_dirty_rows" ["backend"] "Rows of them whose transaction does not ship them itself: the follower may be behind.";
    JOURNAL_OLDEST: Gauge "crossfade_journal_oldest_seconds" ["backend"] "Age of the oldest row of the journal.";
    JOURNAL_HELD: Gauge "crossfade_journal_held_rows" ["backend"] "Rows that this process failed to ship and tries again, up to 100 (SHOW JOURNAL says why).";
    JOURNAL_EMPTIED: Counter "crossfade_journal_removed_rows_total" ["backend"] "Rows of this backend's journal that this process removed, shipped.";
    REPAIRED_KEYS: Counter "crossfade_repaired_keys_total" ["backend"] "Keys and whole rows of this backend's journal that this process made the same on the follower.";
    REPAIR_ERRORS: Counter "crossfade_repair_errors_total" ["reason"] "What kept rows of the journal from the follower, by reason.";
    IN_DOUBT: Gauge "crossfade_in_doubt_transactions" ["backend"] "Prepared transactions of crossfade on this backend.";
    IN_DOUBT_OLDEST: Gauge "crossfade_in_doubt_oldest_seconds" ["backend"] "Age of the oldest of them.";
    IN_DOUBT_STUCK: Gauge "crossfade_in_doubt_stuck_transactions" ["backend"] "Those that only an operator can resolve.";
    RECOVERED: Counter "crossfade_recovered_transactions_total" ["outcome"] "Transactions in doubt that this process looked after, by outcome.";
    IN_DOUBT_WAITS: Counter "crossfade_in_doubt_waits_total" ["backend"] "Looks that found a transaction waiting for one in doubt on this backend: recovery is told to look at once.";
    DEADLOCKS: Counter "crossfade_deadlocks_total" ["outcome"] "Deadlocks over both databases that this process found, by what became of them: `broken`, `elsewhere`.";
    MIRROR_LEAD: Gauge "crossfade_mirror_lead" ["repository", "backend"] "1 on the side that leads the writes of a mirrored repository now, else 0. Absent while neither side can be asked.";
    LEAD_MOVES: Counter "crossfade_lead_moves_total" ["outcome"] "Attempts of this process to move the lead of a repository's writes: `moved`, `waited` for others and tries again, `failed`.";
    MIRROR_WRITES_COMPARED: Counter "crossfade_mirror_writes_compared_total" ["repository", "outcome"] "Mirrored transactions by whether the follower had the rows that it should before (`equal`) or not (`different`).";
    SHADOW_READS: Counter "crossfade_shadow_reads_total" ["repository", "state"] "Reads that may be executed on the other side as well (`eligible`), and those that were to be (`sampled`).";
    SHADOW_SKIPPED: Counter "crossfade_shadow_skipped_total" ["repository", "reason"] "Reads that may not be executed twice, and why.";
    SHADOW_DROPPED: Counter "crossfade_shadow_dropped_total" ["reason"] "Sampled reads that were not compared, and why.";
    SHADOW_OUTCOMES: Counter "crossfade_shadow_comparisons_total" ["repository", "outcome"] "Comparisons of both sides' answers, by what came of them.";
    SHADOW_DIVERGENCES: Counter "crossfade_shadow_divergences_total" ["repository", "class"] "Divergences by what differs.";
    SHADOW_RATE_BOUND: Gauge "crossfade_shadow_divergence_rate_upper_bound" ["repository"] "95 % upper bound of the share of reads that diverge; 0 of n is not 0.";
    SHADOW_LATENCY: Histogram "crossfade_shadow_latency_seconds" ["repository", "backend"] "Latency of the reads that were executed on both sides.";
    SHADOW_DELTA: Histogram "crossfade_shadow_delta_seconds" ["repository"] "Latency on the target minus that on the source, of the same read: below 0 the target was faster.";
    SHADOW_QUEUE: Gauge "crossfade_shadow_queue" [] "Reads that wait for their second execution now.";
    OTLP_DROPPED: Counter "crossfade_otlp_dropped_spans_total" ["reason"] "Spans that did not reach `telemetry.otlp_endpoint`: `queue` full, `export` failed.";
    PROCESS_CPU: Counter "process_cpu_seconds_total" [] "User and system CPU time of the process.";
    PROCESS_RSS: Gauge "process_resident_memory_bytes" [] "Resident memory of the process.";
    PROCESS_VIRTUAL: Gauge "process_virtual_memory_bytes" [] "Virtual memory of the process.";
    PROCESS_OPEN_FDS: Gauge "process_open_fds" [] "Open file descriptors.";
    PROCESS_MAX_FDS: Gauge "process_max_fds" [] "Most file descriptors the process may open.";
    PROCESS_THREADS: Gauge "process_threads" [] "Threads of the process.";
    PROCESS_START_TIME: Gauge "process_start_time_seconds" [] "Unix time at which the process started.";
}

/// The value of a label. Never a client's text: there is no way to make one from it by accident.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// A word of the program.
    Word(&'static str),
    /// Checked text of the configuration: a repository's name, the file's hash.
    Configured(&'a str),
}

impl From<&'static str> for Value<'_> {
    fn from(word: &'static str) -> Self {
        Value::Word(word)
    }
}

impl From<Side> for Value<'_> {
    fn from(side: Side) -> Self {
        Value::Word(side.name())
    }
}

impl Value<'_> {
    fn text(self) -> Cow<'static, str> {
        match self {
            Value::Word(word) => Cow::Borrowed(word),
            Value::Configured(text) => Cow::Owned(text.to_owned()),
        }
    }
}

/// Values of the labels, in the order of [`Metric::labels`].
pub type Labels = Vec<Cow<'static, str>>;
/// Values of one family of gauges.
type Rows = BTreeMap<Labels, f64>;

/// All metrics of one process (or of one test). Cheap to share as `Arc<Metrics>`.
#[derive(Default)]
pub struct Metrics {
    gauges: Mutex<BTreeMap<&'static str, Rows>>,
    series: Mutex<BTreeMap<&'static str, BTreeMap<Labels, Series>>>,
    distributions: Mutex<BTreeMap<&'static str, BTreeMap<Labels, Distribution>>>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// Nothing counted yet.
    pub fn new() -> Self {
        let metrics = Self::default();
        metrics.gauge(&BUILD_INFO, &[env!("CARGO_PKG_VERSION").into()], 1.0);
        // A counter that is there from the start makes the first increase visible to `rate()`.
        for metric in ALL.iter().filter(|m| m.kind == Kind::Counter && m.labels.is_empty()) {
            if !metric.name.starts_with("process_") {
                metrics.add(metric, &[], 0);
            }
        }
        for (metric, labels) in closed::series() {
            metrics.add(metric, &labels, 0);
        }
        metrics
    }

    /// A counter for one thread to count with; keep it. The same labels are summed.
    pub fn counter(&self, metric: &'static Metric, labels: &[Value<'_>]) -> Count {
        debug_assert_eq!(metric.kind, Kind::Counter, "{}", metric.name);
        self.with(metric, labels, Series::count)
    }

    /// As above, a histogram.
    pub fn histogram(&self, metric: &'static Metric, labels: &[Value<'_>]) -> Times {
        debug_assert_eq!(metric.kind, Kind::Histogram, "{}", metric.name);
        self.with(metric, labels, Series::times)
    }

    /// Counts what is rare.
    pub fn add(&self, metric: &'static Metric, labels: &[Value<'_>], n: u64) {
        debug_assert_eq!(metric.kind, Kind::Counter, "{}", metric.name);
        self.with(metric, labels, |series| series.add(n));
    }

    /// Sets a counter that somebody else keeps.
    pub fn set(&self, metric: &'static Metric, labels: &[Value<'_>], n: u64) {
        debug_assert_eq!(metric.kind, Kind::Counter, "{}", metric.name);
        self.with(metric, labels, |series| series.set(n));
    }

    /// Sets all series of a counter that somebody else keeps: those not named are gone.
    pub fn renew<'a>(&self, metric: &'static Metric, rows: impl IntoIterator<Item = (Vec<Value<'a>>, u64)>) {
        debug_assert_eq!(metric.kind, Kind::Counter, "{}", metric.name);
        let series = rows.into_iter().map(|(labels, n)| {
            debug_assert_eq!(metric.labels.len(), labels.len(), "{}", metric.name);
            let mut series = Series::default();
            series.set(n);
            (labels.iter().map(|l| l.text()).collect(), series)
        });
        let series = series.collect();
        lock(&self.series).insert(metric.name, series);
    }

    /// The same of a histogram.
    pub fn renew_histogram<'a>(
        &self,
        metric: &'static Metric,
        rows: impl IntoIterator<Item = (Vec<Value<'a>>, Distribution)>,
    ) {
        debug_assert_eq!(metric.kind, Kind::Histogram, "{}", metric.name);
        let rows = rows.into_iter().map(|(labels, found)| {
            debug_assert_eq!(metric.labels.len(), labels.len(), "{}", metric.name);
            (labels.iter().map(|l| l.text()).collect(), found)
        });
        let rows = rows.collect();
        lock(&self.distributions).insert(metric.name, rows);
    }

    fn with<R>(&self, metric: &'static Metric, labels: &[Value<'_>], f: impl FnOnce(&mut Series) -> R) -> R {
        debug_assert_eq!(metric.labels.len(), labels.len(), "{}", metric.name);
        debug_assert!(closed::knows(metric, labels), "{}: {labels:?}", metric.name);
        let labels = labels.iter().map(|l| l.text()).collect();
        f(lock(&self.series).entry(metric.name).or_default().entry(labels).or_default())
    }

    /// Sets one gauge.
    pub fn gauge(&self, metric: &'static Metric, labels: &[Value<'_>], value: f64) {
        debug_assert_eq!(metric.kind, Kind::Gauge, "{}", metric.name);
        debug_assert_eq!(metric.labels.len(), labels.len(), "{}", metric.name);
        let labels = labels.iter().map(|l| l.text()).collect();
        lock(&self.gauges).entry(metric.name).or_default().insert(labels, value);
    }

    /// Sets all gauges of a family: those not named are gone.
    pub fn replace<'a>(
        &self,
        metric: &'static Metric,
        rows: impl IntoIterator<Item = (Vec<Value<'a>>, f64)>,
    ) {
        let rows = rows.into_iter().map(|(labels, value)| (labels.iter().map(|l| l.text()).collect(), value));
        let rows: Rows = rows.collect();
        debug_assert_eq!(metric.kind, Kind::Gauge, "{}", metric.name);
        debug_assert!(rows.keys().all(|k| k.len() == metric.labels.len()), "{}", metric.name);
        lock(&self.gauges).insert(metric.name, rows);
    }

    /// A configuration was accepted (at the start too): its hash and weights are in force from now on.
    pub fn config_accepted(&self, hash: &str, policy: &Policy) {
        self.add(&CONFIG_RELOAD, &["ok".into()], 1);
        self.replace(&CONFIG_INFO, [(vec![Value::Configured(hash)], 1.0)]);
        self.gauge(&CONFIG_LAST_RELOAD_SUCCESSFUL, &[], 1.0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.gauge(&CONFIG_LAST_RELOAD_SUCCESS, &[], now.as_secs_f64());
        self.replace(&ROUTE_WEIGHT, weights(policy));
    }

    /// A configuration was refused; the old one stays.
    pub fn config_refused(&self) {
        self.add(&CONFIG_RELOAD, &["refused".into()], 1);
        self.gauge(&CONFIG_LAST_RELOAD_SUCCESSFUL, &[], 0.0);
    }

    /// Everything, in Prometheus' text format.
    pub fn render(&self) -> String {
        text::render(&self.families())
    }

    /// Everything there is now, in the order of [`ALL`].
    pub fn families(&self) -> Vec<Family> {
        let process: BTreeMap<_, _> = process::read().into_iter().map(|(m, value)| (m.name, value)).collect();
        let mut families = Vec::new();
        for &metric in ALL {
            let rows: Vec<(Labels, Sample)> = if let Some(&value) = process.get(metric.name) {
                vec![(Vec::new(), Sample::Number(value))]
            } else if let Some(rows) = lock(&self.gauges).get(metric.name) {
                rows.iter().map(|(labels, &value)| (labels.clone(), Sample::Number(value))).collect()
            } else if let Some(rows) = lock(&self.distributions).get(metric.name) {
                rows.iter().map(|(l, found)| (l.clone(), Sample::Distribution(found.clone()))).collect()
            } else if let Some(rows) = lock(&self.series).get(metric.name) {
                let sample = |series: &Series| match metric.kind {
                    Kind::Counter | Kind::Gauge => Sample::Count(series.total()),
                    Kind::Histogram => Sample::Distribution(series.distribution()),
                };
                rows.iter().map(|(labels, series)| (labels.clone(), sample(series))).collect()
            } else {
                continue;
            };
            families.push(Family { metric, rows });
        }
        families
    }
}

/// A metric and its series at one moment.
#[derive(Debug)]
pub struct Family {
    /// Which.
    pub metric: &'static Metric,
    /// By the values of its labels.
    pub rows: Vec<(Labels, Sample)>,
}

/// The value of a series.
#[derive(Clone, Debug, PartialEq)]
pub enum Sample {
    /// Of a counter.
    Count(u64),
    /// Of a gauge, or of a counter of the kernel's.
    Number(f64),
    /// Of a histogram.
    Distribution(Distribution),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The class of an SQLSTATE, from the closed list of Postgres' appendix A: a server sends any five characters
/// that a function raises, so what is not in the list is `other`.
pub fn sqlstate_class(sqlstate: &str) -> &'static str {
    const CLASSES: &[&str] = &[
        "00", "01", "02", "03", "08", "09", "0A", "0B", "0F", "0L", "0P", "0Z", "10", "20", "21", "22", "23",
        "24", "25", "26", "27", "28", "2B", "2D", "2F", "34", "38", "39", "3B", "3D", "3F", "40", "42", "44",
        "53", "54", "55", "57", "58", "72", "F0", "HV", "P0", "XX",
    ];
    let class = sqlstate.as_bytes().get(..2).unwrap_or_default();
    CLASSES.iter().copied().find(|c| c.as_bytes() == class).unwrap_or("other")
}

fn weights(policy: &Policy) -> impl Iterator<Item = (Vec<Value<'_>>, f64)> {
    policy.repositories.iter().flat_map(|repository| {
        [("read", repository.reads), ("write", repository.writes)].into_iter().flat_map(move |(op, share)| {
            let target = share.fraction();
            let row = move |side: Side| vec![Value::Configured(&repository.name), side.into(), op.into()];
            [(row(Side::Source), 1.0 - target), (row(Side::Target), target)]
        })
    })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use super::*;
    use crate::route::policy::{OnUnknown, Repository, Share, TransactionReads};

    fn policy(repositories: &[(&str, u16)]) -> Policy {
        let repository = |&(name, target): &(&str, u16)| Repository {
            name: name.into(),
            tables: vec![],
            functions: vec![],
            reads: Share::new(target).unwrap(),
            writes: Share::NONE,
            mirror: crate::route::policy::Mirror::default(),
        };
        Policy {
            generation: 1,
            repositories: repositories.iter().map(repository).collect(),
            on_unknown: OnUnknown::Refuse,
            transactions: TransactionReads::Weighted,
            sticky: Duration::ZERO,
        }
    }

    #[test]
    fn documentation_and_code_agree() {
        let text = include_str!("../../docs/metrics.md");
        let row = |line: &str| -> Option<(String, String, String, String)> {
            let cells: Vec<&str> = line.strip_prefix("| `")?.trim_end_matches(" |").split(" | ").collect();
            let [name, kind, labels, help] = cells[..] else { panic!("four cells: {line}") };
            Some((name.trim_end_matches('`').into(), kind.into(), labels.replace('`', ""), help.into()))
        };
        let documented: BTreeSet<_> = text.lines().filter_map(row).collect();
        let declared: BTreeSet<_> = ALL
            .iter()
            .map(|m| (m.name.into(), m.kind.name().into(), m.labels.join(", "), m.help.into()))
            .collect();
        let missing: Vec<_> = declared.difference(&documented).collect();
        let stale: Vec<_> = documented.difference(&declared).collect();
        assert!(missing.is_empty() && stale.is_empty(), "not in docs: {missing:#?}\nnot in code: {stale:#?}");
    }

    /// Dashboards and alerts that ask for a metric nobody exports stay silent for ever.
    #[test]
    fn what_is_deployed_asks_for_metrics_that_exist() {
        let word = regex::Regex::new("(?:crossfade|process)_[a-z_]+").unwrap();
        for (file, text) in [
            ("alerts.yml", include_str!("../../deploy/alerts.yml")),
            ("alerts_test.yml", include_str!("../../deploy/alerts_test.yml")),
            ("crossfade.json", include_str!("../../deploy/grafana/dashboards/crossfade.json")),
        ] {
            for name in word.find_iter(text).map(|m| m.as_str()) {
                let family = name.strip_suffix("_bucket").or(name.strip_suffix("_count")).unwrap_or(name);
                assert!(ALL.iter().any(|m| m.name == family), "{file} asks for {name}");
            }
        }
    }

    #[test]
    fn names_follow_the_conventions() {
        let names: BTreeSet<_> = ALL.iter().map(|m| m.name).collect();
        assert_eq!(names.len(), ALL.len(), "a name is declared twice");
        for metric in ALL {
            assert!(
                metric.name.starts_with("crossfade_") || metric.name.starts_with("process_"),
                "{metric:?}"
            );
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{metric:?}");
            assert!(metric.kind != Kind::Histogram || metric.name.ends_with("_seconds"), "{metric:?}");
        }
    }

    #[test]
    fn renders_every_kind() {
        let metrics = Metrics::new();
        metrics.counter(&LOGINS, &["ok".into()]).increment(3);
        metrics.histogram(&POOL_WAIT, &[Side::Target.into()]).record(Duration::from_micros(700));
        metrics.gauge(&CLIENT_CONNECTIONS, &["idle".into()], 2.0);
        let text = metrics.render();
        for line in [
            "# TYPE crossfade_logins_total counter",
            "crossfade_logins_total{outcome=\"ok\"} 3",
            "crossfade_pool_wait_seconds_bucket{backend=\"target\",le=\"0.0005\"} 0",
            "crossfade_pool_wait_seconds_bucket{backend=\"target\",le=\"0.001\"} 1",
            "crossfade_pool_wait_seconds_count{backend=\"target\"} 1",
            "# TYPE crossfade_client_connections gauge",
            "crossfade_client_connections{state=\"idle\"} 2",
            "crossfade_plan_cache_hits_total 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(text.contains("\nprocess_resident_memory_bytes "), "{text}");
        let types: Vec<_> = text.lines().filter(|l| l.starts_with("# TYPE")).collect();
        assert_eq!(types.iter().collect::<BTreeSet<_>>().len(), types.len(), "a family is rendered twice");
    }

    #[test]
    fn what_the_configuration_no_longer_names_is_gone() {
        let metrics = Metrics::new();
        metrics.config_accepted("aa", &policy(&[("default", 0), ("old", 2_500)]));
        let text = metrics.render();
        assert!(
            text.contains("crossfade_route_weight{repository=\"old\",backend=\"target\",op=\"read\"} 0.25\n")
        );
        metrics.config_accepted("bb", &policy(&[("default", 0)]));
        metrics.config_refused();
        let text = metrics.render();
        assert!(!text.contains("\"old\"") && !text.contains("hash=\"aa\""), "{text}");
        for line in [
            "crossfade_config_info{hash=\"bb\"} 1",
            "crossfade_config_reload_total{result=\"ok\"} 2",
            "crossfade_config_reload_total{result=\"refused\"} 1",
            "crossfade_config_last_reload_successful 0",
            "crossfade_route_weight{repository=\"default\",backend=\"source\",op=\"write\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn label_values_are_escaped() {
        let metrics = Metrics::new();
        let value = "a\"b\\c\nd";
        metrics.gauge(&CONFIG_INFO, &[Value::Configured(value)], 1.0);
        metrics
            .counter(&ROUTES, &[Value::Configured(value), Side::Source.into(), "weight".into()])
            .increment(1);
        let text = metrics.render();
        assert!(text.contains(r#"crossfade_config_info{hash="a\"b\\c\nd"} 1"#), "{text}");
        assert!(text.contains(r#"{repository="a\"b\\c\nd",backend="source",reason="weight"} 1"#), "{text}");
    }

    #[test]
    fn sqlstate_classes_are_a_closed_set() {
        for (state, class) in [
            ("23505", "23"),
            ("XX000", "XX"),
            ("zz123", "other"),
            ("", "other"),
            ("é1", "other"),
            ("4", "other"),
        ] {
            assert_eq!(sqlstate_class(state), class, "{state}");
        }
    }
}
