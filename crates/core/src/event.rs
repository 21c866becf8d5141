//! One answered access, as a value of fixed size that can be compared, counted and replayed.
//!
//! There is no time in an [`Event`]: two runs of the same guest give the same events.

use core::fmt;

use crate::{Access, ExitReason, MsrIndex};

/// Which vCPU of its VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VcpuId(pub u32);

impl fmt::Display for VcpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// One MSR access that left the guest, and what was made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    /// Who did it.
    pub vcpu: VcpuId,
    /// Which register.
    pub index: MsrIndex,
    /// In which direction.
    pub access: Access,
    /// Why KVM did not answer by itself.
    pub reason: ExitReason,
    /// What was written, or what the read was answered with (0 where that is #GP).
    pub value: u64,
    /// What became of it.
    pub outcome: Outcome,
    /// Whether the policy asks that this access be logged.
    pub log: bool,
}

/// What became of an access that left the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// The read was answered with the policy's value.
    Value,
    /// KVM did it on the host path.
    Forwarded,
    /// A read of 0, or a write that was dropped.
    Ignored,
    /// The guest got #GP(0).
    Fault,
}

impl Outcome {
    /// One word for tables and files.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Fault => "fault",
            Self::Ignored => "ignored",
            Self::Value => "value",
            Self::Forwarded => "forwarded",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}
