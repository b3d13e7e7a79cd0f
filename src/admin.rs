//! Operators: HTTP endpoints, the console, the service manager.

pub mod act;
pub mod console;
mod console_frames;
mod console_mirror;
mod console_parse;
pub mod console_rows;
mod console_shadow;
pub mod console_wait;
pub mod console_wire;
pub mod http;
pub mod notify;
pub mod page;
pub mod snapshot;
