//! SCRAM messages from both ends, and verifiers.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| crossfade::wire::scram::exercise(data));
