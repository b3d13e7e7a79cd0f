//! The follower's server: what it does with what it was sent, also when nobody waits for it any more.

use crate::{
    repairer::Repairer,
    state::{Mode, Op, Protocol, Row, State, Txn, WRITERS},
};

/// A transaction that applies a writer's row.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Apply {
    No,
    /// Sent; not read yet.
    Queued,
    /// It holds the fence lock.
    Fenced,
    /// `hit`: it holds the row. A DELETE that hits nothing holds nothing.
    Applied {
        hit: bool,
    },
    /// The guard has let it pass, PREPARE comes next.
    Guarded {
        hit: bool,
    },
    Prepared {
        hit: bool,
    },
    /// `committed`: by its owner.
    Gone {
        committed: bool,
    },
}

impl Apply {
    /// Does it hold the fence lock?
    pub(crate) fn is_fenced(self) -> bool {
        !matches!(self, Apply::No | Apply::Queued | Apply::Gone { .. })
    }

    fn holds_row(self) -> bool {
        matches!(
            self,
            Apply::Applied { hit: true } | Apply::Guarded { hit: true } | Apply::Prepared { hit: true }
        )
    }
}

/// Who else holds the follower's row, or has inserted it. `me`: a writer; the repairer is 2.
pub(crate) fn locker(state: &State, me: usize) -> Option<usize> {
    let writer = WRITERS.into_iter().find(|&i| i != me && state.writers[i].apply.holds_row());
    writer.or((me != 2 && state.repairer.locked).then_some(2))
}

/// What becomes of a write now: `None` it waits, else whether it hits. A DELETE sees what is committed only, and does
/// not wait for an INSERT.
pub(crate) fn write(state: &State, me: usize, image: Row) -> Option<bool> {
    if image.is_none() && state.follower.is_none() {
        return Some(false);
    }
    locker(state, me).is_none().then_some(true)
}

impl Protocol {
    /// Has the follower anything to do for this writer?
    pub(crate) fn follower_can(self, state: &State, i: usize) -> bool {
        let w = &state.writers[i];
        match w.apply {
            Apply::Queued | Apply::Guarded { .. } => true,
            Apply::Fenced => write(state, i, state.image(i)).is_some(),
            Apply::Applied { .. } => w.prepare_sent || w.end_sent || !w.open,
            Apply::Prepared { .. } => w.end_sent,
            Apply::No | Apply::Gone { .. } => false,
        }
    }

    pub(crate) fn follower_step(self, s: &mut State, i: usize) {
        let image = s.image(i);
        let written = write(s, i, image);
        let w = &mut s.writers[i];
        w.apply = match w.apply {
            Apply::Queued => Apply::Fenced,
            Apply::Fenced => Apply::Applied { hit: written.expect("it does not wait") },
            Apply::Applied { hit } if w.prepare_sent => {
                if self.rules.guard && w.gave_up {
                    Apply::Gone { committed: false }
                } else {
                    Apply::Guarded { hit }
                }
            }
            Apply::Guarded { hit } => Apply::Prepared { hit },
            Apply::Applied { hit } if w.end_sent && self.mode == Mode::Journaled => {
                return Self::commit(s, i, hit);
            }
            Apply::Prepared { hit } => return Self::commit(s, i, hit),
            // Its client is gone.
            Apply::Applied { .. } => Apply::Gone { committed: false },
            Apply::No | Apply::Gone { .. } => unreachable!("it has nothing to do"),
        };
    }

    fn commit(s: &mut State, i: usize, hit: bool) {
        if hit {
            s.follower = s.image(i);
        }
        s.writers[i].apply = Apply::Gone { committed: true };
    }

    /// COMMIT PREPARED or ROLLBACK PREPARED by whoever recovers; 42704 when it is gone.
    pub(crate) fn recover(self, s: &mut State, i: usize) {
        let verdict = s.writers[i].verdict.take();
        if let Apply::Prepared { hit } = s.writers[i].apply {
            if verdict == Some(true) {
                Self::commit(s, i, hit);
            }
            s.writers[i].apply = Apply::Gone { committed: false };
        }
    }

    /// What is prepared survives.
    pub(crate) fn crash_follower(s: &mut State) {
        for w in &mut s.writers {
            if !matches!(w.apply, Apply::No | Apply::Prepared { .. } | Apply::Gone { .. }) {
                w.apply = Apply::Gone { committed: false };
            }
            (w.open, w.end_sent) = (false, false);
        }
        s.repairer = Repairer::default();
    }
}

#[test]
fn a_delete_does_not_wait_for_an_insert() {
    let rules = crate::state::Rules::default();
    let protocol = Protocol { mode: Mode::Atomic, rules, faults: 0, only: None };
    let mut state = stateright::Model::init_states(&protocol).swap_remove(0);
    state.writers[0].apply = Apply::Applied { hit: true };
    state.writers[1].op = Op::Delete;
    state.writers[0].txn = Txn::Committed;
    assert_eq!(write(&state, 1, None), Some(false));
    assert_eq!(write(&state, 1, Some(2)), None);
    state.follower = Some(0);
    assert_eq!(write(&state, 1, None), None);
}
