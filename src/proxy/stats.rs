//! Totals per user and backend, for SHOW STATS, and what all who count need.

use std::{
    cell::Cell,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// What one data thread counted.
#[derive(Debug, Default)]
pub(super) struct Stats(Cell<Totals>);

/// The numbers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) transactions: u64,
    pub(super) queries: u64,
    pub(super) errors: u64,
    /// From the server.
    pub(super) received_bytes: u64,
    /// To the server.
    pub(super) sent_bytes: u64,
    pub(super) waits: u64,
    query_time: Duration,
    transaction_time: Duration,
    wait_time: Duration,
}

impl Stats {
    pub(super) fn totals(&self) -> Totals {
        self.0.get()
    }

    fn change(&self, f: impl FnOnce(&mut Totals)) {
        let mut totals = self.0.get();
        f(&mut totals);
        self.0.set(totals);
    }

    /// One unit was answered; `bytes` were received from the server and sent to it.
    pub(super) fn query(&self, took: Duration, failed: bool, bytes: [u64; 2]) {
        self.change(|t| {
            t.queries += 1;
            t.errors += u64::from(failed);
            t.query_time += took;
            t.received_bytes += bytes[0];
            t.sent_bytes += bytes[1];
        });
    }

    /// A transaction ended.
    pub(super) fn transaction(&self, took: Duration) {
        self.change(|t| {
            t.transactions += 1;
            t.transaction_time += took;
        });
    }

    /// A client got a server connection after this long.
    pub(super) fn wait(&self, took: Duration) {
        self.change(|t| {
            t.waits += 1;
            t.wait_time += took;
        });
    }
}

impl Totals {
    pub(super) fn add(&mut self, other: &Totals) {
        self.transactions += other.transactions;
        self.queries += other.queries;
        self.errors += other.errors;
        self.received_bytes += other.received_bytes;
        self.sent_bytes += other.sent_bytes;
        self.waits += other.waits;
        self.query_time += other.query_time;
        self.transaction_time += other.transaction_time;
        self.wait_time += other.wait_time;
    }

    pub(super) fn query_ms_avg(&self) -> f64 {
        average_ms(self.query_time, self.queries)
    }

    pub(super) fn transaction_ms_avg(&self) -> f64 {
        average_ms(self.transaction_time, self.transactions)
    }

    pub(super) fn wait_ms_avg(&self) -> f64 {
        average_ms(self.wait_time, self.waits)
    }
}

/// A count as a number that is shown: exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "counts for display; exact far beyond what is counted here")]
pub(super) fn approximate(count: u64) -> f64 {
    count as f64
}

/// Unix time in seconds.
pub(super) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn average_ms(total: Duration, count: u64) -> f64 {
    if count == 0 { 0.0 } else { total.as_secs_f64() * 1e3 / approximate(count) }
}
