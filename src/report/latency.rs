//! Latencies in little space: quantiles within 3 %, from a microsecond to an hour.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::tally::Distribution;

/// Counts of durations, in buckets that grow with the duration.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(from = "BTreeMap<u16, u64>", into = "BTreeMap<u16, u64>")]
pub struct Latencies {
    counts: Vec<u64>,
    total: u64,
}

impl Latencies {
    /// One more.
    pub fn record(&mut self, took: Duration) {
        self.add(bucket(took), 1);
    }

    /// How many there are.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The duration that a share of all, 0 to 1, does not exceed; `None` without any.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let place = place(share, self.total)?;
        at(&self.counts, place).map(middle)
    }

    /// Those that came after `earlier`, an older state of this one.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut new = Self::default();
        for (bucket, n) in self.counts.iter().enumerate() {
            let before = earlier.counts.get(bucket).copied().unwrap_or_default();
            new.add(bucket, n.saturating_sub(before));
        }
        new
    }

    /// The same with a bound for each power of two of a microsecond from 64 µs to 34 s, in seconds: exact but for the sum,
    /// which is within 3 %.
    pub fn distribution(&self) -> Distribution {
        let below = LATENCY_POWERS.map(|power| (seconds(power), self.below(power)));
        Distribution { below: below.collect(), count: self.total, sum: self.sum() }
    }

    /// Those below 2^`power` microseconds.
    fn below(&self, power: u32) -> u64 {
        self.counts.iter().take(first_of(power)).sum()
    }

    fn sum(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "counts above 2^53 do not occur")]
        let of = |(bucket, &n): (usize, &u64)| middle(bucket).as_secs_f64() * n as f64;
        self.counts.iter().enumerate().map(of).sum()
    }

    fn add(&mut self, bucket: usize, n: u64) {
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] += n;
        self.total += n;
    }
}

impl From<BTreeMap<u16, u64>> for Latencies {
    fn from(counts: BTreeMap<u16, u64>) -> Self {
        let mut new = Self::default();
        for (bucket, n) in counts.into_iter().filter(|(bucket, _)| usize::from(*bucket) < BUCKETS) {
            new.add(usize::from(bucket), n);
        }
        new
    }
}

impl From<Latencies> for BTreeMap<u16, u64> {
    fn from(latencies: Latencies) -> Self {
        (0_u16..).zip(latencies.counts).filter(|(_, n)| *n > 0).collect()
    }
}

/// Differences of two latencies of one query: target minus source.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Deltas {
    /// The target was faster by this.
    faster: Latencies,
    /// The target was slower by this, or as fast.
    slower: Latencies,
}

impl Deltas {
    /// One more pair.
    pub fn record(&mut self, source: Duration, target: Duration) {
        match target.checked_sub(source) {
            Some(slower) => self.slower.record(slower),
            None => self.faster.record(source.saturating_sub(target)),
        }
    }

    /// How many there are.
    pub fn total(&self) -> u64 {
        self.faster.total + self.slower.total
    }

    /// With bounds below 0 for those in which the target was faster; from -4 s to 4 s.
    pub fn distribution(&self) -> Distribution {
        let (faster, slower) = (&self.faster, &self.slower);
        let negative = DELTA_POWERS.rev().map(|power| (-seconds(power), faster.total - faster.below(power)));
        let positive = DELTA_POWERS.map(|power| (seconds(power), faster.total + slower.below(power)));
        let below = negative.chain([(0.0, faster.total)]).chain(positive).collect();
        Distribution { below, count: self.total(), sum: slower.sum() - faster.sum() }
    }

    /// Seconds, negative where the target was faster.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let place = place(share, self.total())?;
        if place >= self.faster.total {
            return at(&self.slower.counts, place - self.faster.total).map(|b| middle(b).as_secs_f64());
        }
        // The largest lead comes first.
        at(&self.faster.counts, self.faster.total - 1 - place).map(|b| -middle(b).as_secs_f64())
    }
}

/// Index of the value at a share of `total` values in order.
fn place(share: f64, total: u64) -> Option<u64> {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a count is no larger than the count, and not negative"
    )]
    let place = (share.clamp(0.0, 1.0) * total as f64).ceil() as u64;
    total.checked_sub(1).map(|last| place.saturating_sub(1).min(last))
}

fn at(counts: &[u64], place: u64) -> Option<usize> {
    let mut before = 0;
    counts.iter().position(|n| {
        before += n;
        before > place
    })
}

/// Microseconds below 16 have a bucket each, then every power of two has 16.
fn bucket(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
    let power = micros.ilog2() as usize;
    let bucket = if power < 4 {
        usize::try_from(micros).expect("below 16")
    } else {
        (power - 3) * 16 + usize::try_from(micros >> (power - 4) & 15).expect("below 16")
    };
    bucket.min(BUCKETS - 1)
}

/// The first bucket of what is 2^`power` microseconds or more.
fn first_of(power: u32) -> usize {
    bucket(Duration::from_micros(1 << power))
}

/// 2^`power` microseconds.
fn seconds(power: u32) -> f64 {
    Duration::from_micros(1 << power).as_secs_f64()
}

fn middle(bucket: usize) -> Duration {
    if bucket < 16 {
        return Duration::from_micros(bucket as u64);
    }
    let power = bucket / 16 + 3;
    let width = 1_u64 << (power - 4);
    Duration::from_micros((16 + bucket as u64 % 16) * width + width / 2)
}

/// Of the bounds of [`Latencies::distribution`].
const LATENCY_POWERS: std::ops::Range<u32> = 6..26;
/// Of those of [`Deltas::distribution`].
const DELTA_POWERS: std::ops::Range<u32> = 7..23;
/// Up to an hour and a bit.
const BUCKETS: usize = 16 * 29;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_within_three_percent() {
        let mut last = 0;
        for exponent in 0..320 {
            let micros = 1.07_f64.powi(exponent);
            let took = Duration::from_secs_f64(micros / 1e6);
            let bucket = bucket(took);
            assert!(bucket >= last && bucket < BUCKETS, "{took:?}");
            last = bucket;
            let (real, kept) = (took.as_secs_f64(), middle(bucket).as_secs_f64());
            assert!((real - kept).abs() <= 0.032 * real + 1e-6, "{took:?} {kept}");
        }
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.quantile(0.5), None);
        (1..=1_000).for_each(|ms| latencies.record(Duration::from_millis(ms)));
        for (share, ms) in [(0.0, 1.0), (0.5, 500.0), (0.95, 950.0), (0.99, 990.0), (1.0, 1_000.0)] {
            let found = latencies.quantile(share).unwrap().as_secs_f64() * 1e3;
            assert!((found - ms).abs() <= 0.032 * ms, "{share}: {found}");
        }
        let kept: Latencies = serde_json::from_str(&serde_json::to_string(&latencies).unwrap()).unwrap();
        assert_eq!(kept, latencies);
    }

    #[test]
    fn distributions_are_exact() {
        let (mut latencies, mut deltas) = (Latencies::default(), Deltas::default());
        for micros in [1, 63, 64, 127, 128, 1_023, 1_024, 40_000_000] {
            let took = Duration::from_micros(micros);
            latencies.record(took);
            deltas.record(Duration::ZERO, took);
            deltas.record(took, Duration::ZERO);
        }
        let found = latencies.distribution();
        let below = |bound: f64| found.below.iter().find(|(b, _)| (b - bound).abs() < 1e-9).unwrap().1;
        assert_eq!([0.000_064, 0.000_128, 0.000_256, 0.001_024, 33.554_432].map(below), [2, 4, 5, 6, 7]);
        assert!(found.count == 8 && (found.sum - 40.0).abs() < 1.3, "{found:?}");

        let found = deltas.distribution();
        let below = |bound: f64| found.below.iter().find(|(b, _)| (b - bound).abs() < 1e-9).unwrap().1;
        assert_eq!([-0.001_024, -0.000_128, 0.0, 0.000_128, 0.001_024].map(below), [2, 4, 8, 12, 14]);
        assert!(found.count == 16 && found.sum.abs() < 1e-9, "{found:?}");
        assert!(found.below.is_sorted(), "{found:?}");
    }

    #[test]
    fn deltas_have_a_sign() {
        let mut deltas = Deltas::default();
        for ms in 1..=100 {
            deltas.record(Duration::from_millis(50), Duration::from_millis(ms));
        }
        for (share, ms) in [(0.01, -49.0), (0.25, -25.0), (0.75, 25.0), (1.0, 50.0)] {
            let found = deltas.quantile(share).unwrap() * 1e3;
            assert!((found - ms).abs() <= 1.7, "{share}: {found}");
        }
        let kept: Deltas = serde_json::from_str(&serde_json::to_string(&deltas).unwrap()).unwrap();
        assert_eq!((kept.quantile(0.3), kept.total()), (deltas.quantile(0.3), 100));
    }
}
