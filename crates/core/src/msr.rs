//! Which register, and in which direction.

use core::fmt;

/// Which model-specific register: what RDMSR and WRMSR take from ECX.
///
/// `Display` and `Debug` print hexadecimal (`0x48`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MsrIndex(pub u32);

impl MsrIndex {
    /// Whether the index lies in the x2APIC window `0x800..=0x8ff`, which no filter ever sees
    /// (`kvm_msr_allowed`).
    #[must_use]
    pub const fn is_x2apic(self) -> bool {
        self.0 >> 8 == 8
    }
}

impl fmt::Display for MsrIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for MsrIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<u32> for MsrIndex {
    fn from(index: u32) -> Self {
        Self(index)
    }
}

/// The direction of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// RDMSR.
    Read,
    /// WRMSR.
    Write,
}

impl Access {
    /// Both directions, reads first.
    pub const ALL: [Self; 2] = [Self::Read, Self::Write];

    /// The instruction: `rdmsr` or `wrmsr`.
    #[must_use]
    pub const fn instruction(self) -> &'static str {
        match self {
            Self::Read => "rdmsr",
            Self::Write => "wrmsr",
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
        })
    }
}
