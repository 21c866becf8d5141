//! libFuzzer's door to [`msrgate_fuzz::import`]: a policy that was written for another program.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| msrgate_fuzz::import(data));
