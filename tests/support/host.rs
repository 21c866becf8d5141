//! What the processor under the real KVM is known to get wrong: [`HostFlaws`].
//!
//! `MSRGATE_HOST=tcg` says that it is QEMU's TCG, which emulates SVM well enough for a KVM in it. Its RDMSR and
//! WRMSR do not fault on LOCK, and take any address; its intercept check looks at the upper half of RCX too
//! (QEMU 7.2).

use std::env;
use std::ops::RangeInclusive;

use crate::guest::{Request, Routine};

/// The flaws that tests must step around.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostFlaws {
    is_tcg: bool,
}

impl HostFlaws {
    /// Those of the host that `MSRGATE_HOST` names; none without it.
    #[must_use]
    pub fn of_this_host() -> Self {
        Self {
            is_tcg: env::var_os("MSRGATE_HOST").is_some_and(|name| name == "tcg"),
        }
    }

    /// The bits of RCX that may hold junk above the index.
    #[must_use]
    pub const fn rcx_junk(self) -> u64 {
        if self.is_tcg {
            0
        } else {
            0xffff_ffff_0000_0000
        }
    }

    /// Whether an exception that the host queues outlives the completion of an exit. Without next-RIP saving
    /// (which TCG lacks) kvm-amd decodes the instruction to step over it, and that empties the queue.
    #[must_use]
    pub const fn keeps_queued_exceptions(self) -> bool {
        !self.is_tcg
    }

    /// Whether the processor does the access right. A denied access never gets to it.
    #[must_use]
    pub fn can_run(self, request: &Request) -> bool {
        let is_locked = matches!(request.routine, Routine::LockRdmsr | Routine::LockWrmsr);
        let index = request.rcx & 0xffff_ffff;
        let is_address = ADDRESSES.iter().any(|range| range.contains(&index));
        let sign = (request.rdx & 0xffff_ffff) >> 15;
        let is_canonical = sign == 0 || sign == 0x1_ffff;
        !(self.is_tcg && (is_locked || is_address && !is_canonical))
    }
}

/// MSRs that hold addresses and are passed through to the processor: `MSR_LSTAR`, `MSR_CSTAR`, and the bases.
const ADDRESSES: [RangeInclusive<u64>; 2] = [0xc000_0082..=0xc000_0083, 0xc000_0100..=0xc000_0102];
