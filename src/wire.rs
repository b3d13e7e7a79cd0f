//! Frames of the Postgres protocol: exact cuts, size limits, byte-exact relay.

pub mod stream;
