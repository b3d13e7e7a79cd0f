//! Dual writes on the client's path: what the lead's transaction changed goes to the follower before the client hears
//! of its COMMIT (DESIGN 5 and 6).
//!
//! [`duty`] says what has to be done around a unit, [`around`] does it, [`commit`] is the protocol, [`follower`] talks to
//! the other side.

mod around;
mod background;
mod commit;
mod duty;
mod follower;
mod gaps;
mod heed;
mod inflight;
mod journal;
mod keeper;
mod lead;
mod moved;
mod mover;
mod own;
mod run;
mod state;
mod upkeep;
mod waits;

pub(super) use background::{learn, ready};
pub(super) use commit::Stopped;
pub(super) use duty::{Duty, no_further};
pub(super) use follower::prepare;
pub(super) use gaps::Seen;
pub(super) use inflight::{InFlight, transaction_rows};
pub(super) use journal::{Mirrored, collect, in_doubt_rows, journal_rows, start};
pub(super) use lead::{Leads, effective};
pub(super) use moved::Late;
pub(super) use state::State;
