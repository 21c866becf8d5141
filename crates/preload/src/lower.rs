//! What answers an ioctl of KVM's in the end: the kernel, or the embedded KVM. [`Lower`] is one descriptor's;
//! [`HostPath`] is a vCPU's MSRs through it.

use std::os::fd::{AsRawFd, IntoRawFd, RawFd};

use kvm_bindings::{kvm_msr_entry, kvm_regs};
use msrgate_core::{Errno, HostMsrs, MsrIndex, VmError};
use msrgate_kvm::abi::{KVM_GET_MSRS, KVM_GET_REGS, KVM_SET_MSRS};
use msrgate_soft::{Handle, Outcome};

use crate::real;

/// What stands behind a descriptor.
#[derive(Clone, Debug)]
pub(crate) enum Lower {
    /// The machine's KVM.
    Real,
    /// The embedded one.
    Soft(Handle),
}

/// What an ioctl came to: its value, and for a new descriptor what stands behind it.
pub(crate) struct Done {
    pub(crate) value: i32,
    pub(crate) made: Option<Lower>,
}

impl Lower {
    /// `ioctl(fd, request, argument)`.
    pub(crate) fn ioctl(&self, fd: RawFd, request: u32, argument: u64) -> Result<Done, Errno> {
        match self {
            Self::Real => {
                real::ioctl(fd, request.into(), argument).map(|value| Done { value, made: None })
            }
            Self::Soft(handle) => Ok(match handle.ioctl(request, argument)? {
                Outcome::Value(value) => Done { value, made: None },
                Outcome::Descriptor { handle, fd } => Done {
                    value: fd.into_raw_fd(),
                    made: Some(Self::Soft(handle)),
                },
            }),
        }
    }

    /// An ioctl on a structure of ours.
    pub(crate) fn ioctl_on<T>(
        &self,
        fd: RawFd,
        request: u32,
        structure: &mut T,
    ) -> Result<i32, Errno> {
        let address = (&raw mut *structure).expose_provenance() as u64;
        self.ioctl(fd, request, address).map(|done| done.value)
    }
}

/// `struct kvm_msrs` with room for one.
#[repr(C)]
struct OneMsr {
    nmsrs: u32,
    pad: u32,
    entry: kvm_msr_entry,
}

impl OneMsr {
    fn of(index: MsrIndex, data: u64) -> Self {
        let entry = kvm_msr_entry {
            index: index.0,
            data,
            ..Default::default()
        };
        Self {
            nmsrs: 1,
            pad: 0,
            entry,
        }
    }
}

/// A vCPU's MSRs as its program's host path has them.
pub(crate) struct HostPath<'a> {
    pub(crate) lower: &'a Lower,
    pub(crate) fd: RawFd,
    /// Whether anybody wants to know where the vCPU is: it costs a system call.
    pub(crate) tells_rip: bool,
}

impl HostPath<'_> {
    fn call(&self, request: u32, name: &'static str, msr: &mut OneMsr) -> Result<bool, VmError> {
        let done = self.lower.ioctl_on(self.fd, request, msr);
        let count = done.map_err(|errno| VmError::Refused { call: name, errno })?;
        Ok(count == 1)
    }
}

impl HostMsrs for HostPath<'_> {
    fn get_msr(&self, index: MsrIndex) -> Result<Option<u64>, VmError> {
        let mut msr = OneMsr::of(index, 0);
        let done = self.call(KVM_GET_MSRS, "KVM_GET_MSRS", &mut msr)?;
        Ok(done.then_some(msr.entry.data))
    }

    fn set_msr(&mut self, index: MsrIndex, value: u64) -> Result<bool, VmError> {
        let mut msr = OneMsr::of(index, value);
        self.call(KVM_SET_MSRS, "KVM_SET_MSRS", &mut msr)
    }

    fn rip(&self) -> Option<u64> {
        if !self.tells_rip {
            return None;
        }
        let mut registers = kvm_regs::default();
        let done = self.lower.ioctl_on(self.fd, KVM_GET_REGS, &mut registers);
        done.is_ok().then_some(registers.rip)
    }
}

/// A number that stands for an open descriptor, for calls that ask for more than a number.
pub(crate) struct Borrowed(pub(crate) RawFd);

impl AsRawFd for Borrowed {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}
