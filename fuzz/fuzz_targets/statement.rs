#![no_main]
//! Any bytes as a statement: bounded, without a panic, spans inside the text.

libfuzzer_sys::fuzz_target!(|data: &[u8]| crossfade::statement::fuzz_statement(data));
