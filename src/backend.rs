//! The two databases: connections, pools, health.

pub mod connection;
