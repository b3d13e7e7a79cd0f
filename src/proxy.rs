//! Drives one client connection through the flow, and everything that runs beside it.

mod cancel;
mod checkout;
mod client;
mod count;
mod extended;
mod feed;
mod flight;
mod global;
mod health;
mod host;
mod leave;
mod login;
mod mirror;
mod operator;
pub mod plans;
mod relay;
mod rows;
mod send;
mod serve;
mod settle;
mod shadow;
mod shard;
mod shared;
mod snapshot;
mod stats;
mod tags;
#[cfg(feature = "otlp")]
mod telemetry;
mod thread;
mod transact;

pub use serve::{ServeError, serve};
