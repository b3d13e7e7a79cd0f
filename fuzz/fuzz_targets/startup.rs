//! Startup packets from strangers.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| crossfade::frontend::packet::exercise(data));
