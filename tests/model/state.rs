//! What there is: rows, writers, transactions, and what the protocol relies on.

use crate::{
    follower::Apply,
    repairer::{Place, Repairer},
};

/// The row: a version, or absent.
pub(crate) type Row = Option<u8>;
/// Both writers.
pub(crate) const WRITERS: [usize; 2] = [0, 1];

/// How a transaction of the data path commits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Mode {
    Journaled,
    Atomic,
}

/// What the protocol relies on. All true: as it is built.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// PREPARE stands behind a guard that fails once the proxy has given up.
    pub(crate) guard: bool,
    /// The repairer looks at the lead again when it holds the follower's row.
    pub(crate) second_look: bool,
    /// After a DELETE of no row the repairer waits for whoever held the fence when it began.
    pub(crate) fence_wait: bool,
    /// A writer's DELETE of a row that was there must hit it, else the journal keeps the key.
    pub(crate) count: bool,
    /// What is in progress on the lead is not resolved.
    pub(crate) in_progress_waits: bool,
    /// `pg_xact_status` is believed only while the lead's last checkpoint is the same: after another one the prepared
    /// half is rolled back, and the journal has the row.
    pub(crate) proof: bool,
    /// COMMIT PREPARED of what is not there any more (42704) is no success: whoever recovered it may have rolled it back.
    pub(crate) absent_is_unknown: bool,
}

impl Default for Rules {
    fn default() -> Self {
        let on = true;
        Self {
            guard: on,
            second_look: on,
            fence_wait: on,
            count: on,
            in_progress_waits: on,
            proof: on,
            absent_is_unknown: on,
        }
    }
}

/// The whole.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Protocol {
    pub(crate) mode: Mode,
    pub(crate) rules: Rules,
    /// Crashes and lost connections in one run.
    pub(crate) faults: u8,
    /// One start instead of all.
    pub(crate) only: Option<Start>,
}

/// The row, what the writers do to it, and whether the second one goes to the lead directly.
pub(crate) type Start = (Row, [Op; 2], bool);

/// What a writer does to the row.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Op {
    Put,
    Delete,
}

/// Where a writer's proxy is.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum At {
    Start,
    /// The lead has executed the statement, and the follower has been sent the batch.
    Shipping,
    /// COMMIT is sent.
    Committing,
    /// The lead's connection was lost: what became of it is asked.
    Lost,
    /// The follower was told.
    Ending,
    /// It is on both sides: the journal row goes.
    Cleaning,
    /// Or crashed.
    Over,
}

/// The lead's transaction.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Txn {
    No,
    Open,
    /// It is in progress, and COMMIT is on its way.
    CommitQueued,
    Committed,
    Aborted,
}

/// What the client was told.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Told {
    Nothing,
    Committed,
    RolledBack,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Writer {
    pub(crate) op: Op,
    /// Past the proxy: the trigger writes the journal row.
    pub(crate) direct: bool,
    pub(crate) at: At,
    pub(crate) txn: Txn,
    pub(crate) xid: u8,
    /// The lead's last checkpoint, when it was read.
    pub(crate) checkpoint: u8,
    pub(crate) told: Told,
    /// Its journal row can be seen.
    pub(crate) journal: bool,
    /// The journal row stays: the follower does not have all.
    pub(crate) keep: bool,
    /// The proxy does not wait for the batch any more.
    pub(crate) gave_up: bool,
    pub(crate) apply: Apply,
    /// The follower's connection.
    pub(crate) open: bool,
    /// PREPARE is sent.
    pub(crate) prepare_sent: bool,
    /// COMMIT or COMMIT PREPARED is sent to the follower.
    pub(crate) end_sent: bool,
    /// Some recoverer is about to do this: COMMIT PREPARED (true) or ROLLBACK PREPARED.
    pub(crate) verdict: Option<bool>,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct State {
    /// What is committed on the lead.
    pub(crate) lead: Row,
    /// And on the follower.
    pub(crate) follower: Row,
    pub(crate) next_xid: u8,
    pub(crate) checkpoint: u8,
    pub(crate) writers: [Writer; 2],
    pub(crate) repairer: Repairer,
    pub(crate) faults: u8,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Action {
    /// The statement on the lead, and its row to the follower.
    Write(usize),
    /// The follower goes on with what it was sent.
    Follower(usize),
    /// A DELETE that hit nothing, again.
    Retry(usize),
    /// The proxy takes the follower's answer, and sends PREPARE or the lead's COMMIT.
    Applied(usize),
    /// No answer in time: the lead commits alone (true), or all is rolled back.
    GiveUp(usize, bool),
    /// The lead carries COMMIT out.
    LeadCommits(usize),
    LeadRefuses(usize),
    /// The lead finds that its client is gone.
    LeadNotices(usize),
    /// The lead's answer is there: the follower is told.
    Heard(usize),
    /// The lead is asked what became of it.
    Ask(usize),
    HeardEnd(usize),
    GiveUpEnd(usize),
    /// The journal row is deleted.
    Clean(usize),
    /// A recoverer asks the lead about what is prepared.
    RecovererAsks(usize),
    RecovererActs(usize),
    /// The repairer's next step.
    Repair,
    /// It is cut, or times out.
    RepairCut,
    CrashProxy(usize),
    LoseLead(usize),
    CrashLead,
    CrashFollower,
    /// An ordinary one of the lead.
    Checkpoint,
}

/// What is known of a transaction.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    InProgress,
    Committed,
    Aborted,
    /// `pg_xact_status` says committed, maybe of another transaction.
    NoProof,
    /// The number is of the future.
    Refused,
}

impl State {
    /// The lead's row is locked by whoever has written it.
    pub(crate) fn lead_locked(&self) -> bool {
        self.writers.iter().any(|w| matches!(w.txn, Txn::Open | Txn::CommitQueued))
    }

    pub(crate) fn image(&self, i: usize) -> Row {
        (self.writers[i].op == Op::Put).then_some(1 + u8::try_from(i).expect("two writers"))
    }

    /// What cannot matter any more, so that states meet.
    pub(crate) fn forget(&mut self) {
        for w in &mut self.writers {
            if (w.told, w.txn) == (Told::Committed, Txn::Committed)
                || (w.told, w.txn) == (Told::RolledBack, Txn::Aborted)
            {
                w.told = Told::Nothing;
            }
            if !matches!(w.apply, Apply::Prepared { .. }) {
                w.verdict = None;
            }
            if matches!(w.apply, Apply::No | Apply::Gone { .. }) {
                (w.prepare_sent, w.end_sent) = (false, false);
                w.gave_up &= w.at != At::Over;
            }
            if w.at == At::Over {
                w.keep = false;
                if matches!(w.apply, Apply::Gone { .. }) {
                    w.apply = Apply::No;
                }
            }
        }
        if self.is_quiet() {
            (self.faults, self.next_xid, self.checkpoint) = (0, 0, 0);
            self.writers.iter_mut().for_each(|w| (w.xid, w.checkpoint) = (0, 0));
        }
    }

    pub(crate) fn is_quiet(&self) -> bool {
        let over = |w: &Writer| {
            w.at == At::Over
                && !matches!(w.txn, Txn::Open | Txn::CommitQueued)
                && matches!(w.apply, Apply::No | Apply::Gone { .. })
                && !w.journal
        };
        self.writers.iter().all(over) && self.repairer.place == Place::Idle
    }

    /// `pg_xact_status` of a number, whoever has it.
    pub(crate) fn outcome(&self, i: usize, rules: Rules) -> Outcome {
        let xid = self.writers[i].xid;
        let of = |txn: Txn| self.writers.iter().any(|w| w.xid == xid && w.txn == txn);
        let committed = of(Txn::Committed);
        if of(Txn::Open) || of(Txn::CommitQueued) {
            Outcome::InProgress
        } else if committed && (!rules.proof || self.writers[i].checkpoint == self.checkpoint) {
            Outcome::Committed
        } else if committed {
            Outcome::NoProof
        } else if !rules.proof && xid >= self.next_xid {
            Outcome::Refused
        } else {
            Outcome::Aborted
        }
    }
}
