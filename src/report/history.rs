//! The last hour of shadow reads in steps, per repository: what the totals of [`super::divergence`] do not tell.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::{
    divergence::{Book, Stats},
    latency::Latencies,
};

/// What happened in one step.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Point {
    /// Its end, Unix seconds.
    pub at: u64,
    /// Comparisons.
    pub compared: u64,
    /// Divergences of them.
    pub divergences: u64,
    /// Milliseconds, as the next ones; absent without comparisons.
    pub source_ms_p50: Option<f64>,
    /// The same.
    pub source_ms_p99: Option<f64>,
    /// The same.
    pub target_ms_p50: Option<f64>,
    /// The same.
    pub target_ms_p99: Option<f64>,
}

/// Steps of all repositories that have evidence.
#[derive(Debug, Default)]
pub struct History(BTreeMap<String, Steps>);

#[derive(Debug, Default)]
struct Steps {
    points: VecDeque<Point>,
    compared: u64,
    divergences: u64,
    latency: [Latencies; 2],
}

impl History {
    /// Ends a step. What is in the book before the first one is not of this hour.
    pub fn step(&mut self, book: &Book, now: u64) {
        self.0.retain(|name, _| book.repositories.contains_key(name));
        for (name, repository) in &book.repositories {
            if let Some(steps) = self.0.get_mut(name) {
                steps.step(&repository.all, now);
            } else {
                let mut steps = Steps::default();
                steps.remember(&repository.all);
                self.0.insert(name.clone(), steps);
            }
        }
    }

    /// Of one repository, oldest first.
    pub fn of(&self, repository: &str) -> VecDeque<Point> {
        self.0.get(repository).map(|steps| steps.points.clone()).unwrap_or_default()
    }
}

impl Steps {
    fn step(&mut self, all: &Stats, now: u64) {
        let [source, target] = [0, 1].map(|side| all.latency[side].since(&self.latency[side]));
        let ms = |latencies: &Latencies, share| latencies.quantile(share).map(|d| d.as_secs_f64() * 1e3);
        self.points.push_back(Point {
            at: now,
            // Less than before: the evidence was forgotten in between.
            compared: all.comparisons().saturating_sub(self.compared),
            divergences: all.count("divergence").saturating_sub(self.divergences),
            source_ms_p50: ms(&source, 0.5),
            source_ms_p99: ms(&source, 0.99),
            target_ms_p50: ms(&target, 0.5),
            target_ms_p99: ms(&target, 0.99),
        });
        while self.points.len() > MOST_POINTS {
            self.points.pop_front();
        }
        self.remember(all);
    }

    fn remember(&mut self, all: &Stats) {
        self.compared = all.comparisons();
        self.divergences = all.count("divergence");
        self.latency.clone_from(&all.latency);
    }
}

/// An hour of steps of 10 s.
const MOST_POINTS: usize = 360;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        Side,
        report::divergence::{Comparison, Limits},
        shadow::Outcome,
    };

    fn record(book: &mut Book, ms: u64) {
        let comparison = Comparison {
            repository: "document",
            fingerprint: 1,
            sql: "",
            application: "",
            answering: Side::Source,
            latency: [Duration::from_millis(ms), Duration::from_millis(ms * 2)],
            sqlstate: [None, None],
            outcome: &Outcome::Match,
            now: 1,
        };
        book.record(&comparison, &Limits::default());
    }

    #[test]
    fn a_step_has_its_own_latencies() {
        let (mut book, mut history) = (Book::default(), History::default());
        record(&mut book, 1_000);
        history.step(&book, 10);
        assert_eq!(history.of("document").len(), 0, "what was there before is not of this hour");
        record(&mut book, 10);
        history.step(&book, 20);
        history.step(&book, 30);
        let points = history.of("document");
        let (source, target) = (points[0].source_ms_p99.unwrap(), points[0].target_ms_p50.unwrap());
        assert!((source - 10.0).abs() < 0.5 && (target - 20.0).abs() < 1.0, "{points:?}");
        assert_eq!((points[0].compared, points[1].compared, points[1].source_ms_p50), (1, 0, None));
        for n in 0..1_000 {
            history.step(&book, n);
        }
        assert_eq!(history.of("document").len(), MOST_POINTS);
        book.forget(None);
        history.step(&book, 5_000);
        assert!(history.0.is_empty());
    }
}
