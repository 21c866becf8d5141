//! libFuzzer's door to [`msrgate_fuzz::policy_parse`]: the text of a policy.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| msrgate_fuzz::policy_parse(data));
