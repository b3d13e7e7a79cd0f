//! Writers, their proxies and the lead.

use stateright::{Model, Property};

use crate::{
    follower::{Apply, locker},
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
enum Outcome {
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
    fn lead_locked(&self) -> bool {
        self.writers.iter().any(|w| matches!(w.txn, Txn::Open | Txn::CommitQueued))
    }

    pub(crate) fn image(&self, i: usize) -> Row {
        (self.writers[i].op == Op::Put).then_some(1 + u8::try_from(i).expect("two writers"))
    }

    /// What cannot matter any more, so that states meet.
    fn forget(&mut self) {
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

    fn is_quiet(&self) -> bool {
        let over = |w: &Writer| {
            w.at == At::Over
                && !matches!(w.txn, Txn::Open | Txn::CommitQueued)
                && matches!(w.apply, Apply::No | Apply::Gone { .. })
                && !w.journal
        };
        self.writers.iter().all(over) && self.repairer.place == Place::Idle
    }

    /// `pg_xact_status` of a number, whoever has it.
    fn outcome(&self, i: usize, rules: Rules) -> Outcome {
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

impl Protocol {
    fn start(self, row: Row, ops: [Op; 2], direct: bool) -> State {
        let writer = |op, direct| Writer {
            op,
            direct,
            at: At::Start,
            txn: Txn::No,
            xid: 0,
            checkpoint: 0,
            told: Told::Nothing,
            journal: false,
            keep: false,
            gave_up: false,
            apply: Apply::No,
            open: false,
            prepare_sent: false,
            end_sent: false,
            verdict: None,
        };
        State {
            lead: row,
            follower: row,
            next_xid: 1,
            checkpoint: 0,
            writers: [writer(ops[0], false), writer(ops[1], direct)],
            repairer: Repairer::default(),
            faults: self.faults,
        }
    }

    /// Steps of a proxy, when nothing fails.
    fn proxy_steps(self, state: &State, i: usize, out: &mut Vec<Action>) {
        let w = &state.writers[i];
        match w.at {
            At::Start if !state.lead_locked() => out.push(Action::Write(i)),
            At::Shipping => {
                out.extend([Action::GiveUp(i, true), Action::GiveUp(i, false)]);
                match w.apply {
                    Apply::Applied { hit } if self.mode == Mode::Journaled || !w.prepare_sent => {
                        out.push(Action::Applied(i));
                        if !hit && state.follower.is_some() && locker(state, i).is_none() {
                            out.push(Action::Retry(i));
                        }
                    }
                    Apply::Prepared { .. } => out.push(Action::Applied(i)),
                    _ => {}
                }
            }
            At::Committing if w.txn == Txn::Committed => out.push(Action::Heard(i)),
            At::Lost if state.outcome(i, self.rules) != Outcome::InProgress => out.push(Action::Ask(i)),
            At::Ending => {
                let gone = matches!(w.apply, Apply::Gone { .. });
                if gone && w.open {
                    out.push(Action::HeardEnd(i));
                }
                out.push(Action::GiveUpEnd(i));
            }
            At::Cleaning => out.push(Action::Clean(i)),
            At::Start | At::Committing | At::Lost | At::Over => {}
        }
    }

    /// What goes on whether or not the proxy lives.
    fn server_steps(self, state: &State, i: usize, out: &mut Vec<Action>) {
        let w = &state.writers[i];
        if w.txn == Txn::CommitQueued {
            out.extend([Action::LeadCommits(i), Action::LeadRefuses(i)]);
        }
        if matches!(w.txn, Txn::Open | Txn::CommitQueued) && matches!(w.at, At::Lost | At::Over) {
            out.push(Action::LeadNotices(i));
        }
        if self.follower_can(state, i) {
            out.push(Action::Follower(i));
        }
        if matches!(w.apply, Apply::Prepared { .. }) && w.verdict.is_none() {
            let waits = match state.outcome(i, self.rules) {
                Outcome::InProgress => self.rules.in_progress_waits,
                Outcome::Refused => true,
                Outcome::Committed | Outcome::Aborted | Outcome::NoProof => false,
            };
            if !waits {
                out.push(Action::RecovererAsks(i));
            }
        }
        if w.verdict.is_some() {
            out.push(Action::RecovererActs(i));
        }
    }

    fn steps(self, state: &State, out: &mut Vec<Action>) {
        for i in WRITERS {
            self.proxy_steps(state, i, out);
            self.server_steps(state, i, out);
        }
        if self.repairer_can(state) {
            out.push(Action::Repair);
        }
    }

    fn faults(state: &State, out: &mut Vec<Action>) {
        if state.repairer.place != Place::Idle {
            out.push(Action::RepairCut);
        }
        if state.faults == 0 || state.is_quiet() {
            return;
        }
        for i in WRITERS {
            let w = &state.writers[i];
            if !w.direct && !matches!(w.at, At::Start | At::Over) {
                out.push(Action::CrashProxy(i));
            }
            if !w.direct && w.at == At::Committing {
                out.push(Action::LoseLead(i));
            }
        }
        out.extend([Action::CrashLead, Action::CrashFollower, Action::Checkpoint]);
    }

    /// A step of a writer that concerns the lead, or the end.
    fn proxy_step(self, s: &mut State, i: usize, action: Action) {
        let (image, outcome) = (s.image(i), s.outcome(i, self.rules));
        let nothing_to_delete = s.lead.is_none();
        let (next_xid, checkpoint) = (s.next_xid, s.checkpoint);
        let w = &mut s.writers[i];
        match action {
            Action::Write(_) if w.op == Op::Delete && nothing_to_delete => w.at = At::Over,
            Action::Write(_) => {
                s.next_xid += 1;
                (w.xid, w.checkpoint) = (next_xid, checkpoint);
                if w.direct {
                    (w.at, w.txn) = (At::Committing, Txn::CommitQueued);
                } else {
                    (w.at, w.txn, w.apply, w.open) = (At::Shipping, Txn::Open, Apply::Queued, true);
                    // Behind rows that need not be counted PREPARE is in the same batch.
                    w.prepare_sent = self.mode == Mode::Atomic && w.op == Op::Put;
                }
            }
            Action::GiveUp(_, alone) => {
                (w.gave_up, w.keep, w.open) = (true, alone, false);
                if alone {
                    (w.at, w.txn) = (At::Committing, Txn::CommitQueued);
                } else {
                    (w.at, w.txn, w.told) = (At::Over, Txn::Aborted, Told::RolledBack);
                }
            }
            Action::Applied(_) => self.applied(w),
            Action::LeadCommits(_) => {
                (w.txn, w.journal) = (Txn::Committed, true);
                s.lead = image;
            }
            Action::LeadRefuses(_) => {
                w.txn = Txn::Aborted;
                if w.at == At::Committing {
                    Self::undo(w);
                }
            }
            Action::LeadNotices(_) => w.txn = Txn::Aborted,
            Action::Heard(_) => Self::end(w),
            Action::Ask(_) => match outcome {
                Outcome::Committed => Self::end(w),
                Outcome::Aborted => Self::undo(w),
                Outcome::NoProof | Outcome::Refused | Outcome::InProgress => {
                    (w.at, w.open) = (At::Over, false);
                }
            },
            Action::HeardEnd(_) => {
                let known = !self.rules.absent_is_unknown || w.apply == Apply::Gone { committed: true };
                (w.at, w.open) = (if known && !w.keep { At::Cleaning } else { At::Over }, false);
            }
            Action::GiveUpEnd(_) => (w.at, w.open) = (At::Over, false),
            Action::Clean(_) => (w.at, w.journal) = (At::Over, false),
            _ => unreachable!("not a step of a writer"),
        }
    }

    /// It committed: the follower is told, unless the journal has it.
    fn end(w: &mut Writer) {
        w.told = Told::Committed;
        let alone = w.gave_up || w.direct;
        (w.at, w.end_sent) = if alone { (At::Over, false) } else { (At::Ending, w.open) };
    }

    /// It did not commit: nor does the follower.
    fn undo(w: &mut Writer) {
        w.told = Told::RolledBack;
        if matches!(w.apply, Apply::Prepared { .. }) && w.open {
            w.apply = Apply::Gone { committed: false };
        }
        (w.at, w.open) = (At::Over, false);
    }

    /// The batch was answered.
    fn applied(self, w: &mut Writer) {
        if let Apply::Applied { hit } = w.apply {
            w.keep = !hit && self.rules.count;
            if self.mode == Mode::Atomic {
                w.prepare_sent = true;
                return;
            }
        }
        (w.at, w.txn) = (At::Committing, Txn::CommitQueued);
    }

    fn crash_lead(s: &mut State) {
        let committed = s.writers.iter().filter(|w| w.txn == Txn::Committed).map(|w| w.xid).max();
        for w in &mut s.writers {
            if matches!(w.txn, Txn::Open | Txn::CommitQueued) {
                w.txn = Txn::Aborted;
            }
            match w.at {
                At::Committing => w.at = At::Lost,
                At::Shipping => (w.at, w.open) = (At::Over, false),
                _ => {}
            }
            if w.direct && w.at == At::Lost {
                w.at = At::Over;
            }
        }
        // What its log has not heard of is given again.
        s.next_xid = committed.unwrap_or(0) + 1;
        s.checkpoint += 1;
        s.repairer = Repairer::default();
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        if let Some((row, ops, direct)) = self.only {
            return vec![self.start(row, ops, direct)];
        }
        let mut states = Vec::new();
        for row in [None, Some(0)] {
            for ops in
                [[Op::Put, Op::Put], [Op::Put, Op::Delete], [Op::Delete, Op::Put], [Op::Delete, Op::Delete]]
            {
                // Two writers through proxies are alike: their order does not matter.
                let direct = if ops == [Op::Delete, Op::Put] { &[true][..] } else { &[false, true] };
                states.extend(direct.iter().map(|&direct| self.start(row, ops, direct)));
            }
        }
        states
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.steps(state, actions);
        Self::faults(state, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut s = *last;
        match action {
            Action::Follower(i) => self.follower_step(&mut s, i),
            Action::Retry(i) => s.writers[i].apply = Apply::Applied { hit: true },
            Action::RecovererAsks(i) => {
                let committed = s.outcome(i, self.rules) == Outcome::Committed;
                s.writers[i].verdict = Some(committed);
            }
            Action::RecovererActs(i) => self.recover(&mut s, i),
            Action::Repair => self.repair_step(&mut s),
            Action::RepairCut => s.repairer = Repairer::default(),
            Action::CrashProxy(i) => {
                let w = &mut s.writers[i];
                (w.at, w.open) = (At::Over, false);
            }
            Action::LoseLead(i) => s.writers[i].at = At::Lost,
            Action::CrashLead => Self::crash_lead(&mut s),
            Action::CrashFollower => Self::crash_follower(&mut s),
            Action::Checkpoint => s.checkpoint += 1,
            Action::Write(i)
            | Action::Applied(i)
            | Action::GiveUp(i, _)
            | Action::LeadCommits(i)
            | Action::LeadRefuses(i)
            | Action::LeadNotices(i)
            | Action::Heard(i)
            | Action::Ask(i)
            | Action::HeardEnd(i)
            | Action::GiveUpEnd(i)
            | Action::Clean(i) => self.proxy_step(&mut s, i, action),
        }
        if matches!(
            action,
            Action::CrashProxy(_)
                | Action::LoseLead(_)
                | Action::CrashLead
                | Action::CrashFollower
                | Action::Checkpoint
        ) {
            s.faults -= 1;
        }
        s.forget();
        (s != *last).then_some(s)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("equal", |_, s: &State| !s.is_quiet() || s.lead == s.follower),
            Property::always("honest", |_, s: &State| {
                s.writers.iter().all(|w| match w.told {
                    Told::Nothing => true,
                    Told::Committed => w.txn == Txn::Committed,
                    Told::RolledBack => w.txn == Txn::Aborted,
                })
            }),
            Property::always("ends", |model: &Self, s: &State| {
                let mut steps = Vec::new();
                model.steps(s, &mut steps);
                s.is_quiet() || !steps.is_empty()
            }),
            Property::sometimes("both commit", |_, s: &State| {
                s.is_quiet() && s.writers.iter().all(|w| w.txn == Txn::Committed)
            }),
            Property::sometimes("the journal ships", |_, s: &State| {
                s.repairer.place == Place::Committed && s.writers.iter().all(|w| w.journal)
            }),
            Property::sometimes("doubts are resolved", |_, s: &State| {
                s.writers.iter().any(|w| w.txn == Txn::Open || w.verdict == Some(true))
            }),
        ]
    }
}
