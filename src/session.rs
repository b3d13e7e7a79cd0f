//! Protocol state of one connection. Pure: bytes and events in, decisions out.

pub mod pipeline;
pub mod prepared;
pub mod settings;
pub mod transaction;
pub mod words;
