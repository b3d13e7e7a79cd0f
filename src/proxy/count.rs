//! What a data thread counts.

use std::{rc::Rc, time::Duration};

use super::{global::Global, shard::Shard, stats::Stats};
use crate::{
    Side,
    config::Config,
    report::hot::{HotHandles, Op},
    route::{Class, Footprint, Reason},
};

impl Shard {
    pub(super) fn lost_server(&self, side: Side, why: &str) {
        tracing::warn!(%side, why, "a server connection was lost");
        self.hot.borrow().error(0, side, "08006");
    }

    pub(super) fn count_refusal(&self, sqlstate: &str) {
        self.hot.borrow().error(0, Side::Source, sqlstate);
    }

    pub(super) fn count_route(&self, footprint: &Footprint, side: Side, reason: Reason) {
        let hot = self.hot.borrow();
        hot.route(repository(footprint), side, reason.name());
        if let Class::Unknown(why) = &footprint.class {
            hot.unknown(why.name());
        }
    }

    pub(super) fn count_query(
        &self,
        footprint: &Footprint,
        side: Side,
        took: Duration,
        error: Option<&[u8; 5]>,
    ) {
        let hot = self.hot.borrow();
        hot.query(repository(footprint), side, op(footprint), took);
        if let Some(sqlstate) = error {
            hot.error(repository(footprint), side, std::str::from_utf8(sqlstate).unwrap_or("XX000"));
        }
    }

    /// Bytes received from and sent to a client and a server.
    pub(super) fn count_bytes(&self, client: [u64; 2], side: Side, server: [u64; 2]) {
        let hot = self.hot.borrow();
        hot.client_received.increment(client[0]);
        hot.client_sent.increment(client[1]);
        hot.backend_received[side.index()].increment(server[0]);
        hot.backend_sent[side.index()].increment(server[1]);
    }

    /// A wait for a server connection.
    pub(super) fn count_wait(&self, user: &Rc<str>, side: Side, waited: Duration) {
        self.hot.borrow().pool_wait(side, waited);
        self.stats(user, side).wait(waited);
    }

    /// One more round trip of a transaction that `lead` leads.
    pub(super) fn count_trip(&self, lead: Side) {
        self.hot.borrow().mirror_trips[lead.index()].increment(1);
    }

    pub(super) fn count_mirrored(&self, lead: Side, outcome: &'static str) {
        self.hot.borrow().mirrored(lead, outcome);
    }

    pub(super) fn count_follower_failure(&self, side: Side, reason: &'static str) {
        self.hot.borrow().follower_failure(side, reason);
    }

    pub(super) fn count_transaction(&self, side: Side, committed: bool) {
        self.hot.borrow().transaction(side, committed);
    }

    /// Totals of one user on one side.
    pub(super) fn stats(&self, user: &Rc<str>, side: Side) -> Rc<Stats> {
        Rc::clone(self.stats.borrow_mut().entry((Rc::clone(user), side)).or_default())
    }
}

/// The repository a statement is counted under: the lowest it writes, else the lowest it reads that is not `default`.
fn repository(footprint: &Footprint) -> usize {
    let named = |set: u64| (set & !1 != 0).then(|| (set & !1).trailing_zeros() as usize);
    named(footprint.writes).or_else(|| named(footprint.reads)).unwrap_or(0)
}

fn op(footprint: &Footprint) -> Op {
    match footprint.class {
        Class::Ddl => Op::Ddl,
        Class::Control(_) => Op::Tx,
        _ if footprint.is_write() => Op::Write,
        Class::Read | Class::Introspection | Class::Cursor => Op::Read,
        Class::Empty
        | Class::Local
        | Class::Session
        | Class::Locking
        | Class::Utility
        | Class::Write
        | Class::Code
        | Class::Unknown(_) => Op::Other,
    }
}

pub(super) fn handles(global: &Global, config: &Config) -> HotHandles {
    HotHandles::new(&global.metrics, names(config))
}

pub(super) fn names(config: &Config) -> impl Iterator<Item = &str> {
    config.policy.repositories.iter().map(|r| r.name.as_str())
}
