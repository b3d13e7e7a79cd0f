//! The end of a mirrored transaction: write set, follower, lead, follower (DESIGN 6). The lead's COMMIT is the commit
//! point: before it everything can be taken back, after it the follower is made to follow.

use std::{
    collections::BTreeSet,
    rc::Rc,
    time::{Duration, Instant},
};

use super::{
    around::write_set,
    follower::{Failure, Pending, Work},
    gaps::Gap,
    inflight::State,
    own,
};
use crate::{
    Side,
    backend::{
        script::{Reply, Script},
        server::Server,
    },
    config::Mirror,
    error::ClientError,
    mirror::{batch::Counts, recovery::Gid},
    proxy::{
        client::{Client, End},
        flight::{Broken, Flight},
    },
    route::policy::{Ack, Mode, OnFailure},
    session::transaction::Status,
    wire::frame::{self, HEADER},
};

/// What of a transaction has reached the follower before its COMMIT.
#[derive(Debug)]
pub(in crate::proxy) enum Shipped {
    /// It has changed nothing.
    Alone,
    /// The lead's journal has all of it.
    Journal(Side),
    /// All of it, waiting for the lead.
    Waiting(Box<Waiting>),
}

/// A follower's transaction, and what is to be done when it has ended.
#[derive(Debug)]
pub(in crate::proxy) struct Waiting {
    pending: Pending,
    lead: Side,
    /// Row of the lead's journal to be deleted then.
    journal: Option<i64>,
    /// The lead's transaction.
    pub(in crate::proxy) xid: String,
    /// [`crate::mirror::recovery::Gid::epoch`]
    epoch: u64,
    /// From before the lead's COMMIT until after the follower's.
    gap: Gap,
}

/// Why a transaction does not commit.
#[derive(Debug)]
pub(in crate::proxy) enum Stopped {
    /// The lead's own error, for the client.
    Server(Vec<u8>),
    /// Ours.
    Error(ClientError),
    /// The lead's connection is lost.
    Lost(String),
    /// The client's connection ends, with these words.
    Ended(ClientError),
}

impl From<std::io::Error> for Stopped {
    fn from(error: std::io::Error) -> Self {
        Stopped::Lost(error.to_string())
    }
}

impl Client {
    /// Brings to the follower what the lead's transaction has changed. `reply` is the answer of
    /// `crossfade.write_set`.
    pub(in crate::proxy) async fn ship(
        &mut self,
        lead: &mut Server,
        repositories: u64,
        reply: Reply,
    ) -> Result<Shipped, Stopped> {
        if let Some(error) = reply.error {
            return Err(Stopped::Server(without_context(&error)));
        }
        let mode = self.mode_of(repositories);
        self.in_state(State::Applying);
        if mode == Mode::Async {
            return Ok(self.journaled(lead.side, repositories));
        }
        let set =
            write_set(&reply).map_err(|e| Stopped::Error(ClientError::error("XX000", e.to_string())))?;
        if set.changes.is_empty() && !set.overflow {
            return Ok(Shipped::Alone);
        }
        if set.overflow {
            return Ok(self.journaled(lead.side, repositories));
        }
        let xid = set.xid.clone().unwrap_or_default();
        let epoch = lead.checkpoint;
        let gid = (mode == Mode::Atomic).then(|| self.gid(lead.side, &xid, epoch)).transpose();
        let applied = match gid {
            Ok(gid) => {
                let work = Work { lead: lead.side, lead_pid: lead.process_id, set: &set, gid };
                let applied = Box::pin(self.apply(&work)).await;
                applied.map_err(|told| told.stops(self.shared.in_flight().as_deref()))?
            }
            Err(failure) => Err(failure),
        };
        let failure = match applied {
            Ok(pending) => {
                if pending.stale {
                    self.leave_to_repairer(lead, set.journal).await?;
                }
                let journal = set.journal.filter(|_| !pending.stale);
                self.in_state(if pending.is_prepared() { State::Prepared } else { State::Committing });
                self.note_counts(lead.side, &pending.counts);
                let state = &self.shard.global.mirror;
                let written = state.installed.load().written(&set).into_iter().map(str::to_owned).collect();
                let gap = state.gaps.enter(written, Instant::now());
                let waiting = Waiting { pending, lead: lead.side, journal, xid, epoch, gap };
                return Ok(Shipped::Waiting(Box::new(waiting)));
            }
            Err(failure) => failure,
        };
        self.shard.count_follower_failure(lead.side.other(), failure.name());
        if self.fails_with_follower(repositories) {
            return Err(Stopped::Error(refusal(&failure)));
        }
        if !matches!(failure, Failure::Avoided(_)) {
            tracing::warn!(side = %lead.side.other(), error = %failure, "a transaction goes to the journal");
        }
        if set.journal.is_some() {
            // The answer to a PREPARE may be lost: whole rows may be there, under this transaction's mark.
            self.leave_to_repairer(lead, set.journal).await?;
        } else {
            let mut script = Script::beside();
            script.call(lead, own::SPILL, &[]);
            self.told(script, lead).await?;
        }
        Ok(self.journaled(lead.side, repositories))
    }

    /// Whether the follower had the rows that it should is evidence, unless it is known to lack some.
    fn note_counts(&self, lead: Side, counts: &Counts) {
        let global = &self.shard.global;
        let installed = global.mirror.installed.load();
        let of = |table: &i32| installed.tables.get(table).map(|t| t.meta.repository.as_str());
        let differed: BTreeSet<&str> = counts.differed.iter().filter_map(of).collect();
        for name in counts.compared.iter().filter_map(of).collect::<BTreeSet<_>>() {
            if global.mirrored.status.is_clean(name, lead, Instant::now()) {
                global.shadow.wrote(name, differed.contains(name));
            }
        }
    }

    /// The journal's row is the repairer's, at once.
    async fn leave_to_repairer(&self, lead: &mut Server, journal: Option<i64>) -> Result<(), Stopped> {
        let Some(id) = journal else { return Ok(()) };
        let grace = self.current.config.mirror.journal_grace.as_secs_f64().to_string();
        let mut script = Script::beside();
        script.call(lead, own::LEAVE, &[Some(id.to_string().as_bytes()), Some(grace.as_bytes())]);
        self.told(script, lead).await
    }

    /// The journal alone has it.
    fn journaled(&self, lead: Side, repositories: u64) -> Shipped {
        self.shard.count_mirrored(lead, "journal");
        self.soil(lead, repositories);
        Shipped::Journal(lead)
    }

    /// Runs statements of ours in the lead's transaction.
    async fn told(&self, script: Script, lead: &mut Server) -> Result<(), Stopped> {
        Script::sync(lead);
        self.shard.count_trip(lead.side);
        let reply = self.heeded(script, lead).await?;
        reply.error.map_or(Ok(()), |error| Err(Stopped::Server(without_context(&error))))
    }

    /// Asks for the write set, and waits.
    pub(in crate::proxy) async fn ask(&self, lead: &mut Server, repositories: u64) -> Result<Reply, Stopped> {
        self.shard.count_trip(lead.side);
        self.heeded(self.ask_write_set(repositories, lead), lead).await
    }

    /// Ends a block of ours on the lead that was not committed.
    pub(super) async fn roll_back_lead(&self, lead: &mut Server) -> std::io::Result<()> {
        if lead.status == Status::Idle {
            return Ok(());
        }
        let mut script = Script::default();
        script.call(lead, own::ROLLBACK, &[]);
        self.shard.count_trip(lead.side);
        script.run(lead, &self.shard.buffers).await.map(drop)
    }

    /// The block ends where it cannot be intercepted.
    pub(in crate::proxy) async fn spill(&mut self, lead: &mut Server) -> Result<(), Stopped> {
        let mut script = Script::beside();
        script.call(lead, own::SPILL, &[]);
        self.txn.captured = 0;
        self.txn.armed = 0;
        self.told(script, lead).await
    }

    /// Ends the block of ours around an autocommit unit, and lets the client hear of it.
    pub(in crate::proxy) async fn unwrap(
        &mut self,
        lead: &mut Server,
        flight: &mut Flight,
        repositories: u64,
    ) -> Result<(), Broken> {
        match self.try_unwrap(lead, flight, repositories).await {
            Ok(()) => self.conn.output.extend_from_slice(&flight.mirrored.held),
            Err(Stopped::Lost(why)) => return Err(Broken::Server(why)),
            Err(Stopped::Ended(error)) => return Err(Broken::Client(End::Error(error))),
            Err(Stopped::Server(error)) => {
                flight.sqlstate = frame::error_field(&error[HEADER..], b'C').and_then(|c| c.try_into().ok());
                self.conn.output.extend_from_slice(&error);
            }
            Err(Stopped::Error(error)) => {
                flight.sqlstate = error.sqlstate.as_bytes().try_into().ok();
                error.encode(self.id(), &mut self.conn.output);
            }
        }
        self.roll_back_lead(lead).await.map_err(|e| Broken::Server(e.to_string()))?;
        frame::put_ready(&mut self.conn.output, b'I');
        Ok(())
    }

    async fn try_unwrap(
        &mut self,
        lead: &mut Server,
        flight: &mut Flight,
        repositories: u64,
    ) -> Result<(), Stopped> {
        // Asked for before it was known how the unit ends.
        let reply = match flight.mirrored.after.take() {
            Some(script) => Some(self.heeded(*script, lead).await?),
            None => None,
        };
        if let Some(error) = flight.mirrored.refused.take() {
            return Err(Stopped::Server(without_context(&error)));
        }
        if flight.sqlstate.is_some() {
            return Ok(()); // the client has heard of it
        }
        let reply = match reply {
            Some(reply) => reply,
            None => self.ask(lead, repositories).await?,
        };
        let shipped = self.ship(lead, repositories, reply).await?;
        let mut script = Script::default();
        script.call(lead, own::COMMIT, &[]);
        Script::sync(lead);
        self.shard.count_trip(lead.side);
        let answer = match self.heeded_commit(script, lead).await {
            Ok(reply) => reply,
            Err(error) => {
                let committed = self.resolve_lost(lead.side, shipped).await;
                // Nothing more can be said to it, and nothing more is to be.
                (lead.status, lead.spent) = (Status::Idle, true);
                return if committed == Some(true) { Ok(()) } else { Err(Stopped::Lost(error.to_string())) };
            }
        };
        let committed = answer.error.is_none() && answer.tags.last().is_some_and(|t| **t == *b"COMMIT");
        self.end_follower(shipped, committed, repositories).await;
        answer.error.map_or(Ok(()), |error| Err(Stopped::Server(error)))
    }

    /// The lead's transaction has ended: so does the follower's. The client waits for it where it may read there next.
    pub(in crate::proxy) async fn end_follower(&self, shipped: Shipped, committed: bool, repositories: u64) {
        let waiting = match shipped {
            Shipped::Alone => return,
            Shipped::Journal(lead) => return self.soil(lead, repositories),
            Shipped::Waiting(waiting) => waiting,
        };
        let Waiting { pending, lead, journal, gap, .. } = *waiting;
        if pending.stale {
            self.soil(lead, repositories); // once more: a look before the lead's COMMIT has seen nothing
        }
        self.in_state(State::Committing);
        let shard = Rc::clone(&self.shard);
        let waits = !committed || self.waits_for_both(repositories);
        if !waits {
            pending.leave_client();
        }
        let Mirror { apply_timeout: limit, journal_grace, .. } = self.current.config.mirror;
        let end = async move {
            let known = pending.end(committed, &shard, limit).await;
            if known || !committed {
                drop(gap);
            } else {
                gap.linger(Instant::now(), journal_grace + JOURNAL_LOOK);
            }
            shard.count_trip(lead);
            shard.count_mirrored(
                lead,
                match (committed, known) {
                    (true, true) => "both",
                    (true, false) => "journal",
                    (false, _) => "rolled_back",
                },
            );
            match journal.filter(|_| committed) {
                Some(id) if known => shard.global.mirror.done(lead, id),
                Some(id) => shard.global.mirror.late(lead, id),
                None => {}
            }
        };
        if waits {
            end.await;
        } else {
            tokio::task::spawn_local(end);
        }
    }

    /// The lead's connection was lost at COMMIT: the outcome is asked of the server, and the follower follows.
    /// `None`: it cannot be known.
    pub(in crate::proxy) async fn resolve_lost(&self, lead: Side, shipped: Shipped) -> Option<bool> {
        let Shipped::Waiting(waiting) = shipped else { return None };
        let outcome = self.shard.global.mirror.outcome(lead, waiting.xid.clone(), waiting.epoch).await;
        let Mirror { apply_timeout: limit, journal_grace, .. } = self.current.config.mirror;
        let Waiting { pending, journal, gap, .. } = *waiting;
        let known = match outcome {
            Some(committed) => {
                let known = pending.end(committed, &self.shard, limit).await;
                if let Some(id) = journal.filter(|_| known && committed) {
                    self.shard.global.mirror.done(lead, id);
                }
                known
            }
            // What is prepared waits for who recovers it; what is not is gone with its connection.
            None => false,
        };
        if !known {
            gap.linger(Instant::now(), journal_grace + JOURNAL_LOOK);
        }
        outcome
    }

    fn waits_for_both(&self, repositories: u64) -> bool {
        self.current.config.policy.of(repositories).any(|(_, r)| match r.mirror.ack {
            Ack::Both => true,
            Ack::Lead => false,
            Ack::Auto => {
                r.reads.allows(Side::Source) != r.writes.allows(Side::Source)
                    || r.reads.allows(Side::Target) != r.writes.allows(Side::Target)
                    || r.writes.allows(Side::Source) && r.writes.allows(Side::Target)
            }
        })
    }

    /// Must the transaction fail when the follower cannot take it?
    fn fails_with_follower(&self, repositories: u64) -> bool {
        self.current.config.policy.of(repositories).any(|(_, r)| r.mirror.on_failure == OnFailure::Fail)
    }

    fn gid(&self, lead: Side, xid: &str, epoch: u64) -> Result<String, Failure> {
        let state = &self.shard.global.mirror;
        let Some(identity) = state.identity[lead.index()].load_full() else {
            let why = "which server it is, is not known yet".to_owned();
            return Err(Failure::Unreachable(lead, why));
        };
        let Ok(xid) = xid.parse() else {
            return Err(Failure::Unreachable(lead, format!("{xid:?} is no transaction")));
        };
        Ok(Gid { identity: *identity, xid, instance: state.instance.to_string(), epoch }.to_string())
    }
}

/// After its grace a row of the journal counts as dirty at the next look, which comes well within this.
const JOURNAL_LOOK: Duration = Duration::from_secs(2);

fn refusal(failure: &Failure) -> ClientError {
    // 40001: whoever repeats the transaction may succeed.
    ClientError::error("40001", format!("rolled back on both sides: {failure}"))
        .hint("Try again; on_follower_failure = \"journal\" lets the lead go on alone.")
}

/// An error without its `W` field: where in crossfade's own function it came from is not the client's business.
fn without_context(error: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(error.len());
    let mut rest = &error[HEADER..];
    while let Some((&code, after)) = rest.split_first() {
        let Some(end) = after.iter().position(|&b| b == 0).filter(|_| code != 0) else { break };
        if code != b'W' {
            body.extend_from_slice(&rest[..end + 2]);
        }
        rest = &after[end + 1..];
    }
    body.push(0);
    let mut out = bytes::BytesMut::new();
    frame::put(&mut out, b'E', |b| b.extend_from_slice(&body));
    out.to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_is_left_out() {
        let mut out = bytes::BytesMut::new();
        frame::put(&mut out, b'E', |b| b.extend_from_slice(b"SERROR\0C23503\0WSQL statement\nPL\0Mno\0\0"));
        let without = without_context(&out);
        assert_eq!(&without[HEADER..], b"SERROR\0C23503\0Mno\0\0");
        assert_eq!(frame::header(&without), Ok(Some((b'E', without.len()))));
    }
}
