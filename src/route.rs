//! Chooses who runs a statement, and why. Pure: the caller draws the ticket, once per transaction.
//!
//! The invariants (a property test holds them): a write runs on the lead of every repository it
//! writes; a read only where the weights allow it or the repository is led; `default` only on the source.

mod check;
mod footprint;
mod lead;
pub mod policy;
mod reason;
pub mod slice;

pub use check::{Warning, check_policy};
pub use footprint::{Class, Footprint, Repositories};
pub use lead::lead;
pub use reason::{Reason, Refusal, Rule};

use self::policy::{OnUnknown, Policy, TransactionReads};
use crate::{
    Side,
    statement::{Isolation, Unknown},
};

/// Where a statement goes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Decision {
    /// On this side; a block that is nowhere yet begins there.
    Run(Side, Reason),
    /// The block continues on this side: roll back the other one, repeat its prologue here.
    Move(Side, Reason),
    /// Nowhere.
    Refuse(Refusal),
}

/// What routing must know of the session.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TransactionState {
    /// The open transaction block; `None` is autocommit.
    pub block: Option<Block>,
    /// The session wrote less than `routing.sticky` ago.
    pub sticky: bool,
    /// The session has temporary tables, all of them on the source.
    pub temporary: bool,
    /// The side of the session's last write: what `lastval()` means.
    pub last_write: Option<Side>,
    /// The statement opens a cursor, or a portal that is read in parts: what a later write could not move away from.
    pub holds: bool,
    /// Mirrored repositories whose follower is not known to be current: their lead alone answers reads.
    pub stale: Repositories,
}

/// An open transaction block.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Block {
    /// Where it is; `None`: not begun on any server yet.
    pub side: Option<Side>,
    /// What it did there.
    pub work: Work,
    /// Repositories read in it so far ([`Footprint::reads`], united).
    pub read: Repositories,
    /// Its isolation level; `None` is not known and taken for READ COMMITTED, Postgres' default.
    pub isolation: Option<Isolation>,
    /// READ ONLY; `None` is not known and taken for READ WRITE.
    pub read_only: Option<bool>,
    /// A cursor or a suspended portal is open.
    pub pinned: bool,
}

/// What a block has done, the strongest of it.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum Work {
    /// Nothing but BEGIN, SAVEPOINT, settings: it can be repeated elsewhere.
    #[default]
    Prologue,
    /// Read rows.
    Read,
    /// Written, locked, or left something that cannot be repeated.
    Written,
    /// Failed: waits for ROLLBACK.
    Failed,
}

impl Footprint {
    /// What running it adds to the work of its block.
    pub fn work(&self) -> Work {
        if self.is_write() || self.side_effects {
            Work::Written
        } else if self.reads != 0 || self.reads_unknown {
            Work::Read
        } else {
            Work::Prologue
        }
    }
}

/// Chooses the side of a text. `ticket` is below 10 000, drawn once per transaction.
///
/// Moving a block that has only read is right at READ COMMITTED, where each statement has a snapshot of
/// its own, if the new side leads what was read (a follower is never ahead of its lead) or cannot read it.
pub fn decide(footprint: &Footprint, policy: &Policy, state: &TransactionState, ticket: u16) -> Decision {
    debug_assert_eq!(footprint.generation, policy.generation, "the footprint is of another policy");
    let block = state.block.unwrap_or_default();
    if block.work == Work::Failed {
        return Decision::Run(block.side.unwrap_or(Side::Source), Reason::Failed);
    }
    let syntax_error = footprint.class == Class::Unknown(Unknown::Syntax);
    if syntax_error || footprint.is_free() {
        return stay(footprint, state);
    }
    let router = Router { footprint, policy, state, block, ticket };
    match router.sides() {
        Ok(may) => {
            let (side, reason) = router.choose(may);
            router.place(may, side, reason)
        }
        Err(refusal) => Decision::Refuse(refusal),
    }
}

/// What concerns no repository runs where the block is, or where the session lives.
fn stay(footprint: &Footprint, state: &TransactionState) -> Decision {
    match (state.block.and_then(|block| block.side), state.last_write) {
        (Some(side), _) => Decision::Run(side, Reason::Block),
        (None, Some(side)) if footprint.sequence_state => Decision::Run(side, Reason::SequenceState),
        (None, _) => Decision::Run(Side::Source, Reason::Home),
    }
}

/// May each side run it? By [`Side::index`].
type May = [bool; 2];

struct Router<'a> {
    footprint: &'a Footprint,
    policy: &'a Policy,
    state: &'a TransactionState,
    block: Block,
    ticket: u16,
}

impl Router<'_> {
    /// The sides that may run it at all: not none.
    fn sides(&self) -> Result<May, Refusal> {
        let mut may = [true, true];
        let leads = |side| self.all(self.footprint.writes, |index| self.lead(index) == side);
        if self.footprint.writes != 0 {
            may = [leads(Side::Source), leads(Side::Target)];
            if may == [false, false] {
                return Err(self.refuse(Rule::TwoLeads));
            }
        }
        if let Some(side) = self.unknown_side()? {
            may[side.other().index()] = false;
        }
        if self.side_effects_at_home() || (self.state.temporary && self.footprint.unresolved) {
            may[Side::Target.index()] = false;
        }
        for side in Side::BOTH {
            may[side.index()] &= self.all(self.footprint.reads, |index| self.readable(index, side));
        }
        if may == [false, false] { Err(self.refuse(Rule::NoSide)) } else { Ok(may) }
    }

    /// The side for what may touch anything; `None` when all that it touches is known.
    fn unknown_side(&self) -> Result<Option<Side>, Refusal> {
        let everything = |rule: &dyn Fn(usize) -> bool| (0..self.policy.repositories.len()).all(rule);
        let source_knows = if self.footprint.writes_unknown {
            everything(&|index| index == 0 || self.policy.repositories[index].writes.basis_points() == 0)
        } else if self.footprint.reads_unknown {
            everything(&|index| self.readable(index, Side::Source))
        } else {
            return Ok(None);
        };
        match self.policy.on_unknown {
            _ if source_knows => Ok(Some(Side::Source)),
            OnUnknown::Refuse => Err(self.refuse(Rule::Unknown)),
            OnUnknown::Source => Ok(Some(Side::Source)),
            OnUnknown::Target => Ok(Some(Side::Target)),
        }
    }

    /// Advisory locks and the like exclude only those who take them in the same place. A write, or a
    /// block that works on the target, may take them there if the operator has said what to do with the unknown.
    fn side_effects_at_home(&self) -> bool {
        let stays = self.block.side == Some(Side::Target) && self.block.work != Work::Prologue;
        let elsewhere = (stays || self.footprint.writes != 0) && self.policy.on_unknown == OnUnknown::Target;
        self.footprint.side_effects && !elsewhere
    }

    fn choose(&self, may: May) -> (Side, Reason) {
        match may {
            [true, false] => (Side::Source, self.only_reason(Side::Source)),
            [false, true] => (Side::Target, self.only_reason(Side::Target)),
            _ => self.draw(),
        }
    }

    fn only_reason(&self, side: Side) -> Reason {
        let footprint = self.footprint;
        if footprint.writes != 0 {
            Reason::Lead
        } else if footprint.writes_unknown || footprint.reads_unknown {
            let all = self.all(self.everything(), |index| self.lead(index) == side);
            if all { Reason::AllLedThere } else { Reason::OnUnknown }
        } else if footprint.reads & self.state.stale != 0 {
            Reason::Stale
        } else if footprint.side_effects {
            Reason::Home
        } else if self.state.temporary && footprint.unresolved {
            Reason::Temporary
        } else {
            Reason::OnlySide
        }
    }

    /// A read that both sides may answer.
    fn draw(&self) -> (Side, Reason) {
        let reads = self.footprint.reads;
        if self.state.temporary {
            return (Side::Source, Reason::Temporary);
        }
        if self.footprint.introspects {
            return (Side::Source, Reason::Home);
        }
        let common = |side_of: &dyn Fn(usize) -> Side| {
            Side::BOTH.into_iter().find(|&side| self.all(reads, |index| side_of(index) == side))
        };
        let lead = if self.state.block.is_none() {
            self.state.sticky.then_some(Reason::Sticky)
        } else {
            self.block_reads_from_lead().then_some(Reason::BlockLead)
        };
        if let (Some(reason), Some(side)) = (lead, common(&|index| self.lead(index))) {
            return (side, reason);
        }
        if let Some(side) = common(&|index| self.policy.repositories[index].reads.draw(self.ticket)) {
            return (side, Reason::Weighted);
        }
        let weighted = |side| self.all(reads, |index| self.policy.repositories[index].reads.allows(side));
        // Both sides may answer, so when the weights do not settle it, the source does.
        let target = !weighted(Side::Source) && weighted(Side::Target);
        (if target { Side::Target } else { Side::Source }, Reason::Agreed)
    }

    fn block_reads_from_lead(&self) -> bool {
        let may_write = self.block.read_only != Some(true);
        may_write
            && (self.state.holds
                || self.policy.transactions == TransactionReads::Lead
                || !self.own_snapshots())
    }

    /// Has each statement a snapshot of its own?
    fn own_snapshots(&self) -> bool {
        matches!(self.block.isolation, None | Some(Isolation::ReadCommitted))
    }

    /// Reconciles the choice with the block that is already somewhere.
    fn place(&self, may: May, side: Side, reason: Reason) -> Decision {
        let Some(here) = self.block.side else { return Decision::Run(side, reason) };
        let free = self.block.work == Work::Prologue && !self.block.pinned;
        if side == here {
            return Decision::Run(here, reason);
        }
        if free {
            return Decision::Move(side, reason);
        }
        let leaves = self.state.holds && reason == Reason::BlockLead && self.may_leave_for(side);
        if may[here.index()] && !leaves {
            return Decision::Run(here, Reason::Block);
        }
        match self.block.work {
            Work::Written | Work::Failed => Decision::Refuse(self.refuse(Rule::BlockWrote(here))),
            // The lead refuses it in its own words, and the block fails whatever it had seen.
            _ if self.block.read_only == Some(true) && !self.block.pinned && self.footprint.is_write() => {
                Decision::Move(side, reason)
            }
            Work::Read | Work::Prologue if self.may_leave_for(side) => Decision::Move(side, reason),
            Work::Read | Work::Prologue => Decision::Refuse(self.refuse(Rule::BlockRead(here))),
        }
    }

    /// Would no later read of what was read be older there than it was here?
    fn may_leave_for(&self, side: Side) -> bool {
        let never_older = |index| self.lead(index) == side || !self.readable(index, side);
        self.own_snapshots() && !self.block.pinned && self.all(self.block.read, never_older)
    }

    fn lead(&self, index: usize) -> Side {
        self.policy.lead(index, self.ticket)
    }

    fn readable(&self, index: usize, side: Side) -> bool {
        let current = self.state.stale >> index & 1 == 0;
        self.lead(index) == side
            || (index != 0 && current && self.policy.repositories[index].reads.allows(side))
    }

    fn everything(&self) -> Repositories {
        (0..self.policy.repositories.len()).fold(0, |all, index| all | 1 << index)
    }

    fn all(&self, repositories: Repositories, rule: impl Fn(usize) -> bool) -> bool {
        self.policy.of(repositories).all(|(index, _)| rule(index))
    }

    /// Names the repositories by the only side that suits each.
    fn refuse(&self, rule: Rule) -> Refusal {
        let (reads, writes) = match rule {
            Rule::Unknown => (0, self.everything()),
            Rule::TwoLeads | Rule::NoSide | Rule::BlockWrote(_) | Rule::BlockRead(_) => {
                (self.footprint.reads, self.footprint.writes)
            }
        };
        let needing = |side: Side| {
            let needs = |index: usize| {
                let written = writes >> index & 1 == 1 && self.lead(index) == side;
                written || (reads >> index & 1 == 1 && !self.readable(index, side.other()))
            };
            let names = self.policy.repositories.iter().enumerate();
            names.filter(|(index, _)| needs(*index)).map(|(_, r)| r.name.clone()).collect()
        };
        Refusal { rule, source: needing(Side::Source), target: needing(Side::Target) }
    }
}

#[cfg(test)]
mod tests;
