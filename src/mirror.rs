//! Dual writes: what the lead's transactions changed reaches the follower.

pub mod apply;
pub mod recovery;
pub mod repair;
pub mod session;
pub mod status;
pub mod tables;
pub mod watch;
