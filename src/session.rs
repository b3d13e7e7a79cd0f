//! Protocol state of one connection. Pure: bytes and events in, decisions out.

#[doc(hidden)]
pub mod exercise;
pub mod pipeline;
pub mod prepared;
pub mod settings;
pub mod transaction;
pub mod words;
