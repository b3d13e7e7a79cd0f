//! Counters and histograms with one writer each.
//!
//! A data thread counts several things for every statement. A counter shared by threads costs a locked
//! instruction, and the cache line travels between the cores; so each thread has its own cells, written
//! with plain loads and stores, and whoever renders adds them up.

use std::{
    cell::Cell,
    marker::PhantomData,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Upper bounds of every histogram, in seconds: 0.1 ms to 60 s.
pub const BUCKETS: [f64; 18] = [
    0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0,
];

/// The same bounds in nanoseconds.
const NANOS: [u64; BUCKETS.len()] = {
    let mut nanos = [0; BUCKETS.len()];
    let mut at = 0;
    while at < nanos.len() {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "whole nanoseconds below 2^36"
        )]
        let bound = (BUCKETS[at] * 1e9 + 0.5) as u64;
        nanos[at] = bound;
        at += 1;
    }
    nanos
};

/// Values of a histogram: one per bucket, the one above all bounds, and the sum in nanoseconds.
const HISTOGRAM: usize = BUCKETS.len() + 2;

type Cells = Arc<[AtomicU64]>;

/// Counts for one thread. May move to a thread, but not be shared: `add` is not atomic.
#[derive(Debug)]
pub struct Count(Cells, PhantomData<Cell<()>>);

impl Count {
    /// Adds `n`.
    pub fn increment(&self, n: u64) {
        add(&self.0[0], n);
    }

    /// What this one has counted.
    pub fn get(&self) -> u64 {
        self.0[0].load(Relaxed)
    }
}

/// Times of one thread, by [`BUCKETS`].
#[derive(Debug)]
pub struct Times(Cells, PhantomData<Cell<()>>);

impl Times {
    /// One more.
    pub fn record(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = NANOS.iter().position(|&bound| nanos <= bound).unwrap_or(BUCKETS.len());
        add(&self.0[bucket], 1);
        add(&self.0[HISTOGRAM - 1], nanos);
    }
}

fn add(cell: &AtomicU64, n: u64) {
    cell.store(cell.load(Relaxed).wrapping_add(n), Relaxed);
}

/// A histogram that somebody else keeps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Distribution {
    /// Upper bounds, rising, and how many values are below each.
    pub below: Vec<(f64, u64)>,
    /// All values.
    pub count: u64,
    /// Their sum.
    pub sum: f64,
}

/// All writers of one set of labels, and what those that are gone have counted.
#[derive(Debug, Default)]
pub struct Series {
    past: Vec<u64>,
    writers: Vec<Cells>,
}

impl Series {
    /// A counter that starts with 0; the series goes on.
    pub fn count(&mut self) -> Count {
        Count(self.writer(1), PhantomData)
    }

    /// As above, a histogram.
    pub fn times(&mut self) -> Times {
        Times(self.writer(HISTOGRAM), PhantomData)
    }

    fn writer(&mut self, cells: usize) -> Cells {
        self.past.resize(cells, 0);
        let Self { past, writers } = self;
        writers.retain_mut(|writer| {
            // Nobody else has it: it will not rise any more.
            let Some(cells) = Arc::get_mut(writer) else { return true };
            for (past, cell) in past.iter_mut().zip(cells) {
                *past = past.wrapping_add(*cell.get_mut());
            }
            false
        });
        let new: Cells = (0..cells).map(|_| AtomicU64::new(0)).collect();
        writers.push(Arc::clone(&new));
        new
    }

    /// Adds to a counter that is used too rarely to have a writer.
    pub fn add(&mut self, n: u64) {
        self.past.resize(1, 0);
        self.past[0] = self.past[0].wrapping_add(n);
    }

    /// Sets a counter that somebody else keeps.
    pub fn set(&mut self, n: u64) {
        self.past = vec![n];
    }

    /// Of a counter.
    pub fn total(&self) -> u64 {
        self.totals().first().copied().unwrap_or_default()
    }

    /// Of a histogram.
    pub fn distribution(&self) -> Distribution {
        let totals = self.totals();
        let Some((nanos, buckets)) = totals.split_last() else { return Distribution::default() };
        let mut count = 0;
        let mut rise = |n: &u64| {
            count += n;
            count
        };
        let below = BUCKETS.iter().zip(buckets).map(|(&bound, n)| (bound, rise(n))).collect();
        Distribution { below, count: buckets.iter().sum(), sum: Duration::from_nanos(*nanos).as_secs_f64() }
    }

    /// The sums over all writers.
    pub fn totals(&self) -> Vec<u64> {
        let mut totals = self.past.clone();
        for writer in &self.writers {
            for (total, cell) in totals.iter_mut().zip(writer.iter()) {
                *total = total.wrapping_add(cell.load(Relaxed));
            }
        }
        totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_outlive_their_writers() {
        let mut series = Series::default();
        for _ in 0..3 {
            let count = series.count();
            std::thread::spawn(move || count.increment(5)).join().unwrap();
        }
        let count = series.count();
        count.increment(1);
        assert_eq!((series.totals(), count.get(), series.writers.len()), (vec![16], 1, 1));
        series.add(2);
        assert_eq!(series.totals(), [18]);
    }

    #[test]
    fn times_fall_into_their_buckets() {
        for (nanos, bucket) in
            [(0, 0), (100_000, 0), (100_001, 1), (60_000_000_000, 17), (60_000_000_001, 18), (u64::MAX, 18)]
        {
            let mut series = Series::default();
            series.times().record(Duration::from_nanos(nanos));
            let totals = series.totals();
            assert_eq!(totals.iter().position(|&n| n == 1), Some(bucket), "{nanos}");
            assert_eq!(totals[HISTOGRAM - 1], nanos);
        }
    }
}
