//! Where evidence goes.

pub mod bound;
pub mod divergence;
pub mod history;
pub mod hot;
pub mod latency;
pub mod log;
pub mod metrics;
#[cfg(feature = "otlp")]
pub mod otlp;
pub mod process;
pub mod tally;
