//! What a backend must do: the real KVM, the embedded one, or a test's decorator around either.
//!
//! Guest memory is not here: a backend is made with the memory it runs on, so that nothing in this
//! contract holds an address.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::{
    Errno, Exception, ExitReasons, MsrFilter, MsrIndex, Registers, SystemRegisters, VmEntry, VmExit,
};

/// A virtual machine whose MSR accesses can be filtered and deflected.
pub trait Vm {
    /// Its virtual processors.
    type Vcpu: Vcpu;

    /// Adds a vCPU (`KVM_CREATE_VCPU`), in its state after reset, with the backend's supported CPUID.
    ///
    /// # Errors
    /// The backend refuses the number, or has no room.
    fn create_vcpu(&self, id: u32) -> Result<Self::Vcpu, VmError>;

    /// Replaces the set of deflected reasons (`KVM_CAP_X86_USER_SPACE_MSR`). An exit that is pending
    /// is not affected.
    ///
    /// # Errors
    /// The backend cannot deflect.
    fn set_exit_reasons(&self, reasons: ExitReasons) -> Result<(), VmError>;

    /// Replaces the filter (`KVM_X86_SET_MSR_FILTER`) while vCPUs run: every access sees entirely the
    /// old one or entirely the new one. Keep [`ExitReason::FILTER`](crate::ExitReason::FILTER) enabled
    /// for as long as a filter denies anything.
    ///
    /// # Errors
    /// The backend cannot filter; the old filter is still in force.
    fn set_msr_filter(&self, filter: &MsrFilter) -> Result<(), VmError>;

    /// Drives a line of the in-kernel interrupt controllers (`KVM_IRQ_LINE`).
    ///
    /// # Errors
    /// There are no controllers.
    fn set_irq_line(&self, _gsi: u32, _level: LineLevel) -> Result<(), VmError> {
        Err(VmError::Unsupported {
            what: "interrupt controllers",
        })
    }
}

/// What an interrupt line is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineLevel {
    /// Inactive.
    Low,
    /// Active.
    High,
}

/// A virtual processor. One thread runs it; [`Vcpu::run`] is its loop body.
pub trait Vcpu {
    /// Interrupts this vCPU from another thread.
    type Kicker: Kick;

    /// Completes the pending exit with `entry`, then runs the guest to its next exit.
    ///
    /// # Errors
    /// [`RunError::Mismatch`] if `entry` does not answer the pending exit: nothing has happened, and the
    /// exit is still pending.
    fn run(&mut self, entry: VmEntry) -> Result<VmExit, RunError>;

    /// Completes the pending exit with `entry` without running the guest (`immediate_exit`): what a
    /// snapshot needs. An answer of #GP is then an exception that waits to be delivered.
    ///
    /// # Errors
    /// As for [`Vcpu::run`].
    fn complete(&mut self, entry: VmEntry) -> Result<(), RunError>;

    /// From now on, what the backend does by itself is told too: each RDMSR and WRMSR that leaves the guest for no
    /// [`ExitReason`](crate::ExitReason) is an exit of its own, [`VmExit::Native`], once it is done.
    ///
    /// # Errors
    /// The backend cannot tell.
    fn observe_msrs(&mut self) -> Result<(), VmError> {
        Err(VmError::Unsupported {
            what: "exit for what it does by itself",
        })
    }

    /// A handle with which another thread makes [`Vcpu::run`] come back.
    fn kicker(&self) -> Self::Kicker;

    /// General-purpose registers (`KVM_GET_REGS`).
    ///
    /// # Errors
    /// The backend cannot read them.
    fn registers(&self) -> Result<Registers, VmError>;

    /// Sets them (`KVM_SET_REGS`). A queued exception is dropped.
    ///
    /// # Errors
    /// The backend refuses them.
    fn set_registers(&mut self, registers: &Registers) -> Result<(), VmError>;

    /// Segments and control registers (`KVM_GET_SREGS`).
    ///
    /// # Errors
    /// The backend cannot read them.
    fn system_registers(&self) -> Result<SystemRegisters, VmError>;

    /// Sets them (`KVM_SET_SREGS`).
    ///
    /// # Errors
    /// The backend refuses them (an impossible mode).
    fn set_system_registers(&mut self, registers: &SystemRegisters) -> Result<(), VmError>;

    /// Host-initiated read of one MSR (`KVM_GET_MSRS`): neither filtered nor deflected. `None` where
    /// the backend refuses.
    ///
    /// # Errors
    /// The call itself failed.
    fn get_msr(&self, index: MsrIndex) -> Result<Option<u64>, VmError>;

    /// Host-initiated write of one MSR (`KVM_SET_MSRS`): whether the backend took it.
    ///
    /// # Errors
    /// The call itself failed.
    fn set_msr(&mut self, index: MsrIndex, value: u64) -> Result<bool, VmError>;

    /// The exception that the guest met last, where the backend keeps track: for the report of a triple
    /// fault.
    fn last_exception(&self) -> Option<Exception> {
        None
    }

    /// Instructions retired since reset, where the backend counts them.
    fn retired(&self) -> Option<u64> {
        None
    }

    /// Instructions that the guest ran and a backend in software does not have: a bounded list.
    fn unimplemented(&self) -> Vec<Unimplemented> {
        Vec::new()
    }
}

/// An instruction that a processor in software does not have, met by a guest: it got #UD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unimplemented {
    /// The decoder's name of the instruction.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Where it was first met.
    pub rip: u64,
    /// How often it was met.
    pub count: u64,
}

/// Interrupts a vCPU, from any thread and for as long as the handle lives.
pub trait Kick: Clone + Send + Sync {
    /// Makes the run that is under way, or else the next one, come back with [`VmExit::Interrupted`].
    /// One kick is never lost; several may become one.
    fn kick(&self);
}

/// A backend refused to set something up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VmError {
    /// An ioctl failed.
    Refused {
        /// Its name in the UAPI.
        call: &'static str,
        /// What it answered.
        errno: Errno,
    },
    /// The backend does not have this at all.
    Unsupported {
        /// The capability or feature, by name.
        what: &'static str,
    },
}

impl fmt::Display for VmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { call, errno } => write!(f, "{call} failed: {errno}"),
            Self::Unsupported { what } => write!(f, "this backend has no {what}"),
        }
    }
}

impl core::error::Error for VmError {}

/// `run` could not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RunError {
    /// The entry does not answer the exit that is pending; the exit is still pending.
    Mismatch {
        /// What waits for an answer (`None`: nothing does).
        pending: Option<VmExit>,
        /// What was offered.
        entry: VmEntry,
    },
    /// `KVM_RUN` failed.
    Refused {
        /// What it answered.
        errno: Errno,
    },
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mismatch {
                pending: Some(exit),
                entry,
            } => {
                write!(f, "{entry:?} does not answer the pending {exit:?}")
            }
            Self::Mismatch {
                pending: None,
                entry,
            } => {
                write!(f, "{entry:?} answers nothing: no exit is pending")
            }
            Self::Refused { errno } => write!(f, "KVM_RUN failed: {errno}"),
        }
    }
}

impl core::error::Error for RunError {}
