//! Frames of the Postgres protocol: exact cuts, size limits, byte-exact relay.

pub mod scram;
pub mod stream;
pub mod tls;
