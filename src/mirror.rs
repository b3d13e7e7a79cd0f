//! Dual writes: what the lead's transactions changed reaches the follower.

pub mod apply;
pub mod batch;
pub mod write_set;
