//! Dual writes: what the lead's transactions changed reaches the follower.

pub mod apply;
