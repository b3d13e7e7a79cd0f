//! Where evidence goes.

pub mod metrics;
