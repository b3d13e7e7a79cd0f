//! What the `crossfade` command does besides serving.

pub mod check;
pub mod route;
