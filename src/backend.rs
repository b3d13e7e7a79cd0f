//! The two databases: connections, pools, health.

pub mod connection;
pub mod control;
