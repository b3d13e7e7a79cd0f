//! What the subcommands of `crossfade` print. Pure: text and configuration in, text out.

pub mod route;
