//! The two databases: connections, pools, health.

pub mod budget;
pub mod connection;
pub mod control;
pub mod line;
pub mod login;
pub mod pool;
pub mod script;
pub mod server;
pub mod tls;
