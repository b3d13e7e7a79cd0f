//! The repairer: follower first, then the look that counts.

use crate::{
    follower::write,
    state::{Protocol, Row, State, WRITERS},
};

/// Where it is.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub(crate) enum Place {
    #[default]
    Idle,
    /// Journal and lead are read.
    Looked,
    /// The follower's transaction is open, and it is known who else holds the fence.
    Began,
    Wrote,
    /// Whoever held the fence is gone.
    Waited,
    Committed,
}

#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub(crate) struct Repairer {
    pub(crate) place: Place,
    /// It holds the follower's row.
    pub(crate) locked: bool,
    /// Whose journal rows it works for.
    rows: [bool; 2],
    image: Row,
    holders: [bool; 2],
}

impl Protocol {
    pub(crate) fn repairer_can(self, state: &State) -> bool {
        let r = &state.repairer;
        match r.place {
            Place::Idle => state.writers.iter().any(|w| w.journal),
            Place::Looked | Place::Committed => true,
            Place::Began => write(state, 2, r.image).is_some(),
            Place::Wrote => !self.must_wait(state) && write(state, 2, r.image).is_some(),
            Place::Waited => {
                let image = self.looked(state);
                image == r.image || r.locked || write(state, 2, image).is_some()
            }
        }
    }

    fn must_wait(self, state: &State) -> bool {
        let r = &state.repairer;
        let holds = |i: usize| r.holders[i] && state.writers[i].apply.is_fenced();
        self.rules.fence_wait && !r.locked && WRITERS.into_iter().any(holds)
    }

    fn looked(self, state: &State) -> Row {
        if self.rules.second_look { state.lead } else { state.repairer.image }
    }

    pub(crate) fn repair_step(self, s: &mut State) {
        let image = self.looked(s);
        let hit = write(s, 2, s.repairer.image).unwrap_or(false);
        let hit_again = write(s, 2, image) == Some(true);
        let r = &mut s.repairer;
        match r.place {
            Place::Idle => {
                *r = Repairer { place: Place::Looked, image: s.lead, ..Repairer::default() };
                r.rows = s.writers.map(|w| w.journal);
            }
            Place::Looked => {
                r.place = Place::Began;
                r.holders = s.writers.map(|w| w.apply.is_fenced());
            }
            Place::Began => (r.place, r.locked) = (Place::Wrote, hit),
            // A DELETE that hit nothing is sent again; whoever holds the row has it.
            Place::Wrote => (r.place, r.locked) = (Place::Waited, r.locked || hit),
            Place::Waited if image == r.image => {
                if r.locked {
                    s.follower = r.image;
                }
                (r.place, r.locked) = (Place::Committed, false);
            }
            Place::Waited => {
                r.locked |= hit_again;
                r.image = image;
            }
            Place::Committed => {
                let rows = r.rows;
                for i in WRITERS {
                    s.writers[i].journal &= !rows[i];
                }
                s.repairer = Repairer::default();
            }
        }
    }
}
