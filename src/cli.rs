//! What the subcommands of `crossfade` print. Pure: text and configuration in, text out.

pub mod route;
//! What the `crossfade` command does besides serving.

pub mod check;
