//! What a guest's RDRAND reads: the host's RDRAND, as on hardware. No system call, as a client may have forbidden those.

// UNSAFETY: the instruction may only run where the processor has it.
#![expect(unsafe_code, reason = "RDRAND is an intrinsic")]

use std::arch::x86_64::_rdrand64_step;

/// Whether the host has it. Without it, guests are not told of it.
pub(crate) fn is_there() -> bool {
    is_x86_feature_detected!("rdrand")
}

/// A random number; `None` if there is none now.
pub(crate) fn number() -> Option<u64> {
    if !is_there() {
        return None;
    }
    let mut number = 0;
    // SAFETY: the processor has the instruction, as CPUID says.
    let done = unsafe { _rdrand64_step(&mut number) };
    (done == 1).then_some(number)
}
