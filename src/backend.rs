//! The two databases: connections, pools, health.

pub mod budget;
pub mod connection;
pub mod pool;
pub mod server;
pub mod login;
pub mod tls;
pub mod control;
