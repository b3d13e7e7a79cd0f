//! Drives one client connection through the flow, and everything that runs beside it.

mod client;
mod extended;
mod feed;
mod global;
mod host;
mod leave;
mod login;
mod operator;
mod plans;
mod relay;
mod serve;
mod shard;
mod shared;
mod stats;
mod transact;

pub use serve::{ServeError, serve};
