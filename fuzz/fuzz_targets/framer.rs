//! Frames of any bytes, cut anywhere, and the pipeline that follows them.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| crossfade::session::exercise::exercise(data));
