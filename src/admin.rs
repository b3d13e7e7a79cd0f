//! Operators: HTTP endpoints, the console, the service manager.

pub mod console;
pub mod console_rows;
pub mod console_wire;
pub mod http;
pub mod notify;
