//! Frames of the Postgres protocol: exact cuts, size limits, byte-exact relay.

pub mod conn;
pub mod frame;
pub mod oids;
pub mod scram;
pub mod stream;
pub mod tls;
