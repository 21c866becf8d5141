//! Leaving the guest and going back: owned values that can be compared, recorded and replayed.

use core::fmt;

use crate::{Access, ExitReason, MsrIndex};

/// The access is refused: the guest gets #GP(0) at the instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gp;

impl fmt::Display for Gp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad("#GP(0)")
    }
}

/// An exception that was delivered, or could not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Exception {
    /// Vector, 0 to 31.
    pub vector: u8,
    /// For the vectors that push one.
    pub error_code: Option<u32>,
}

impl Exception {
    /// The manuals' mnemonic, such as `#GP`; SDM vol. 3, table 7-1.
    #[must_use]
    pub const fn mnemonic(self) -> Option<&'static str> {
        const NAMES: [&str; 22] = [
            "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "", "#TS", "#NP", "#SS",
            "#GP", "#PF", "", "#MF", "#AC", "#MC", "#XM", "#VE", "#CP",
        ];
        if (self.vector as usize) < NAMES.len() && !NAMES[self.vector as usize].is_empty() {
            Some(NAMES[self.vector as usize])
        } else {
            None
        }
    }
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mnemonic() {
            Some(mnemonic) => f.write_str(mnemonic)?,
            None => write!(f, "exception {}", self.vector)?,
        }
        match self.error_code {
            Some(code) => write!(f, "({code:#x})"),
            None => Ok(()),
        }
    }
}

/// Why `run` came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VmExit {
    /// RDMSR, not retired: RIP is at the instruction. Answer with [`VmEntry::CompleteRdmsr`].
    Rdmsr {
        /// Which register.
        index: MsrIndex,
        /// Why KVM did not answer by itself.
        reason: ExitReason,
    },
    /// WRMSR, not retired. Answer with [`VmEntry::CompleteWrmsr`].
    Wrmsr {
        /// Which register.
        index: MsrIndex,
        /// EDX:EAX.
        value: u64,
        /// Why KVM did not do it by itself.
        reason: ExitReason,
    },
    /// RDMSR or WRMSR that needs no answer: only of a vCPU that is [observed](crate::Vcpu::observe_msrs). Go
    /// on with [`VmEntry::Run`].
    Native(NativeAccess),
    /// One element of IN or INS. Answer with [`VmEntry::CompleteIoIn`].
    IoIn {
        /// Port number.
        port: u16,
        /// 1, 2 or 4 bytes.
        len_bytes: u8,
    },
    /// One element of OUT or OUTS, done. Go on with [`VmEntry::Run`].
    IoOut {
        /// Port number.
        port: u16,
        /// 1, 2 or 4 bytes.
        len_bytes: u8,
        /// What is written, zero-extended.
        value: u32,
    },
    /// A load from where there is no RAM. Answer with [`VmEntry::CompleteMmioRead`].
    MmioRead {
        /// Guest-physical address.
        address: u64,
        /// 1 to 8 bytes.
        len_bytes: u8,
    },
    /// A store to where there is no RAM, done. Go on with [`VmEntry::Run`].
    MmioWrite {
        /// Guest-physical address.
        address: u64,
        /// 1 to 8 bytes.
        len_bytes: u8,
        /// What is written, zero-extended.
        value: u64,
    },
    /// HLT, with nobody in the backend to wait for an interrupt.
    Hlt,
    /// Triple fault.
    Shutdown,
    /// A guest-debug stop (`KVM_EXIT_DEBUG`).
    Debug {
        /// Vector of the debug exception: 1 (#DB) or 3 (#BP).
        exception: u32,
        /// Linear address of the instruction it stopped at (`kvm_run.debug.arch.pc`).
        pc: u64,
    },
    /// `immediate_exit` or a signal: nothing else happened. A pending exit *was* completed.
    Interrupted,
    /// The backend could not go on (`KVM_EXIT_INTERNAL_ERROR`, `KVM_EXIT_FAIL_ENTRY`).
    Failed {
        /// `suberror`, or the hardware's entry failure reason.
        code: u64,
    },
    /// An exit without a word of its own here: the kernel's number.
    Other(u32),
}

impl VmExit {
    /// The MSR access that waits for an answer, if that is why the vCPU stopped.
    #[must_use]
    pub const fn msr_access(&self) -> Option<(MsrIndex, Access, ExitReason)> {
        match *self {
            Self::Rdmsr { index, reason } => Some((index, Access::Read, reason)),
            Self::Wrmsr { index, reason, .. } => Some((index, Access::Write, reason)),
            _ => None,
        }
    }

    /// Whether the vCPU is between two instructions.
    ///
    /// Where it is not, an instruction waits for its completion: registers read now are those from
    /// before the instruction, and a snapshot must first complete it (`immediate_exit`).
    #[must_use]
    pub const fn is_consistent(&self) -> bool {
        !matches!(
            self,
            Self::Rdmsr { .. }
                | Self::Wrmsr { .. }
                | Self::IoIn { .. }
                | Self::IoOut { .. }
                | Self::MmioRead { .. }
                | Self::MmioWrite { .. }
        )
    }

    /// Whether `entry` is an answer to this exit.
    #[must_use]
    pub const fn accepts(&self, entry: &VmEntry) -> bool {
        match self {
            Self::Rdmsr { .. } => matches!(entry, VmEntry::CompleteRdmsr(_)),
            Self::Wrmsr { .. } => matches!(entry, VmEntry::CompleteWrmsr(_)),
            Self::IoIn { .. } => matches!(entry, VmEntry::CompleteIoIn(_)),
            Self::MmioRead { .. } => matches!(entry, VmEntry::CompleteMmioRead(_)),
            _ => matches!(entry, VmEntry::Run),
        }
    }
}

/// An MSR access that the backend did, or made #GP, by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NativeAccess {
    /// Which register.
    pub index: MsrIndex,
    /// In which direction.
    pub access: Access,
    /// What was written, or what was read (0 where that is #GP).
    pub value: u64,
    /// Whether it was done.
    pub answer: Result<(), Gp>,
    /// Where the instruction is; the vCPU is behind it, or in its #GP.
    pub rip: u64,
}

/// How the vCPU goes on: the answer to its last [`VmExit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmEntry {
    /// Nothing waits for an answer.
    Run,
    /// RDMSR reads this value (EAX and EDX zero-extended), or is #GP(0).
    CompleteRdmsr(Result<u64, Gp>),
    /// WRMSR is done, or is #GP(0).
    CompleteWrmsr(Result<(), Gp>),
    /// IN reads this value.
    CompleteIoIn(u32),
    /// The load from the device reads this value.
    CompleteMmioRead(u64),
}
