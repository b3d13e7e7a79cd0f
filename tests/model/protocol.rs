//! Writers, their proxies and the lead.

use stateright::{Model, Property};

use crate::{
    follower::{Apply, locker},
    repairer::{Place, Repairer},
    state::{Action, At, Mode, Op, Outcome, Protocol, Row, State, Told, Txn, WRITERS, Writer},
};

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
