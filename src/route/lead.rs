//! What several footprints mean together, and who leads one.

use super::{Footprint, policy::Policy};
use crate::Side;

impl Footprint {
    /// What both do, as if they stood in one text: the statements of a pipeline are one transaction.
    #[must_use]
    pub fn merged(&self, other: &Footprint) -> Footprint {
        let stronger = if other.class.strength() >= self.class.strength() { other } else { self };
        let writes = self.writes | other.writes;
        Footprint {
            generation: self.generation,
            class: stronger.class.clone(),
            reads: (self.reads | other.reads) & !writes,
            writes,
            writes_unknown: self.writes_unknown | other.writes_unknown,
            reads_unknown: self.reads_unknown | other.reads_unknown,
            side_effects: self.side_effects | other.side_effects,
            introspects: self.introspects | other.introspects,
            unresolved: self.unresolved | other.unresolved,
            sequence_state: self.sequence_state | other.sequence_state,
            opens_cursor: self.opens_cursor | other.opens_cursor,
            mixed_control: self.mixed_control | other.mixed_control,
        }
    }

    /// Does it only read, so that another side could answer it as well?
    pub fn only_reads(&self) -> bool {
        !self.is_write() && !self.side_effects && self.reads != 0
    }
}

/// The side that leads all that a footprint reads: the one that can always answer it.
pub fn lead(footprint: &Footprint, policy: &Policy, ticket: u16) -> Option<Side> {
    let mut sides = policy.of(footprint.reads).map(|(index, _)| policy.lead(index, ticket));
    let first = sides.next()?;
    sides.all(|side| side == first).then_some(first)
}
