//! Chooses who runs a statement, and why. Pure: the caller draws the ticket.

pub mod policy;
