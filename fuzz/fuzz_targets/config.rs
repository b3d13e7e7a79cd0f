//! Any bytes as `proxy.toml`: a configuration or a list of mistakes, never a panic.
#![no_main]

use std::{io, path::Path};

use crossfade::config::check::{Contents, Inputs, check};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    // A file named by the configuration holds what the configuration holds: users, keys and passwords get fuzzed too.
    let read = |_: &Path| -> io::Result<Contents> { Ok(Contents { bytes: bytes.to_vec(), world_readable: true }) };
    let path = Path::new("proxy.toml");
    let checked = check(&Inputs { path, text: &text, environment: &[], read: &read, cores: 2, generation: 1 });
    for mistake in checked.config.err().iter().flatten().chain(&checked.warnings) {
        assert!(!mistake.to_string().is_empty());
    }
});
