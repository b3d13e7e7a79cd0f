//! Where evidence goes.

pub mod hot;
pub mod log;
pub mod metrics;
pub mod process;
pub mod tally;
