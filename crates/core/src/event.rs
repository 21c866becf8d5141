//! One answered access, as a value of fixed size that can be compared, counted and replayed.
//!
//! There is no time in an [`Event`]: two runs of the same guest give the same events.

use core::fmt;

use crate::{Access, ExitReason, Gp, MsrIndex};

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
    /// Why KVM did not answer by itself; [`ExitReason::NONE`] where it did, and somebody watched.
    pub reason: ExitReason,
    /// Where the instruction is, if the recorder wants to know.
    pub rip: Option<u64>,
    /// What was written, or what the read was answered with (0 where that is #GP).
    pub value: u64,
    /// What became of it.
    pub outcome: Outcome,
    /// Whether the policy asks that this access be logged.
    pub log: bool,
}

/// One line for people, such as `vCPU 0: rdmsr 0x8b (IA32_BIOS_SIGN_ID), filter: = 0x42`.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let instruction = self.access.instruction();
        write!(f, "vCPU {}: {instruction} {}", self.vcpu, self.index)?;
        if let Some(name) = self.index.name() {
            write!(f, " ({name})")?;
        }
        if self.access == Access::Write {
            write!(f, ", {:#x}", self.value)?;
        }
        write!(f, ", {}: ", self.reason)?;
        match (self.outcome, self.access) {
            (Outcome::Fault, _) => fmt::Display::fmt(&Gp, f),
            (Outcome::Ignored, _) | (_, Access::Write) => fmt::Display::fmt(&self.outcome, f),
            (_, Access::Read) => write!(f, "= {:#x}", self.value),
        }
    }
}

/// What became of an access that left the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// The read was answered with the policy's value.
    Value,
    /// KVM did it on the host path.
    Forwarded,
    /// KVM did it on the host path, but for some bits.
    Masked,
    /// A register that the gate keeps.
    Shadow,
    /// A program's own handler did it.
    Handled,
    /// It never left KVM, which did it.
    Native,
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
            Self::Masked => "masked",
            Self::Shadow => "shadow",
            Self::Handled => "handled",
            Self::Native => "native",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_is_a_line() {
        let read = Event {
            vcpu: VcpuId(0),
            index: MsrIndex(0x8b),
            access: Access::Read,
            reason: ExitReason::FILTER,
            rip: None,
            value: 0x42,
            outcome: Outcome::Value,
            log: false,
        };
        assert_eq!(
            read.to_string(),
            "vCPU 0: rdmsr 0x8b (IA32_BIOS_SIGN_ID), filter: = 0x42"
        );
        let write = Event {
            index: MsrIndex(0x474f_4f00),
            access: Access::Write,
            reason: ExitReason::UNKNOWN,
            outcome: Outcome::Fault,
            ..read
        };
        assert_eq!(
            write.to_string(),
            "vCPU 0: wrmsr 0x474f4f00, 0x42, unknown: #GP(0)"
        );
    }
}
