//! The `crossfade` command: arguments, logging, runtime, exit code.

fn main() {}
