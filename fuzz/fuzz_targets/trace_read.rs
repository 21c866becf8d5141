//! libFuzzer's door to [`msrgate_fuzz::trace_read`]: the bytes of a trace file.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| msrgate_fuzz::trace_read(data));
