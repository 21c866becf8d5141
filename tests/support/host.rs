//! What the processor under the real KVM is known to get wrong: [`HostFlaws`].
//!
//! `MSRGATE_HOST=tcg` says that it is QEMU's TCG, which emulates SVM well enough for a KVM in it. Its RDMSR and
//! WRMSR do not fault on LOCK, and its intercept check looks at the upper half of RCX too (QEMU 7.2).

use std::env;

use crate::guest::Routine;

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

    /// Whether the processor does `routine` right.
    #[must_use]
    pub const fn can_run(self, routine: Routine) -> bool {
        !(self.is_tcg && matches!(routine, Routine::LockRdmsr | Routine::LockWrmsr))
    }
}
