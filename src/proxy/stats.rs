//! Totals per user and backend, for SHOW STATS.

use std::{cell::Cell, time::Duration};

use crate::{Side, report::hot::HotHandles};

/// What one data thread counted.
#[derive(Debug, Default)]
pub(super) struct Stats(Cell<Totals>);

/// Bytes of one data thread since they were last collected: received and sent.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    clients: Cell<[u64; 2]>,
    backends: [Cell<[u64; 2]>; 2],
}

impl Traffic {
    /// Bytes from and to clients.
    pub(super) fn client(&self, bytes: [u64; 2]) {
        add(&self.clients, bytes);
    }

    /// Bytes from and to a backend.
    pub(super) fn backend(&self, side: Side, bytes: [u64; 2]) {
        add(&self.backends[side.index()], bytes);
    }

    /// What was counted, to the metrics.
    pub(super) fn collect(&self, hot: &HotHandles) {
        let [received, sent] = self.clients.take();
        hot.client_received.increment(received);
        hot.client_sent.increment(sent);
        for side in 0..2 {
            let [received, sent] = self.backends[side].take();
            hot.backend_received[side].increment(received);
            hot.backend_sent[side].increment(sent);
        }
    }
}

fn add(cell: &Cell<[u64; 2]>, [received, sent]: [u64; 2]) {
    let [r, s] = cell.get();
    cell.set([r + received, s + sent]);
}

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

    /// One unit was answered.
    pub(super) fn query(&self, took: Duration, failed: bool) {
        self.change(|t| {
            t.queries += 1;
            t.errors += u64::from(failed);
            t.query_time += took;
        });
    }

    /// So many bytes were received from the server and sent to it.
    pub(super) fn bytes(&self, [received, sent]: [u64; 2]) {
        self.change(|t| {
            t.received_bytes += received;
            t.sent_bytes += sent;
        });
    }

    /// A transaction ended.
    pub(super) fn transaction(&self, took: Duration) {
        self.change(|t| {
            t.transactions += 1;
            t.transaction_time += took;
        });
    }

    /// A client got a server connection (or gave up) after this long.
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

fn average_ms(total: Duration, count: u64) -> f64 {
    if count == 0 { 0.0 } else { total.as_secs_f64() * 1e3 / count as f64 }
}
