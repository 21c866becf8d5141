//! The ioctls: [`Handle`] is what a descriptor of /dev/kvm is, and [`Handle::ioctl`] what ioctl(2) does to it.
//!
//! Arguments are as the client passes them: numbers, and pointers into its memory, which is this process's.
//! A bad pointer is EFAULT. Each kind of descriptor has one table from request to handler; what is not in it
//! is EINVAL on the system and on a vCPU, ENOTTY on a VM, as with Linux.

mod capability;
mod convert;
mod eventfd;
mod irqchip;
mod msrs;
mod request;
mod run;
mod state;
mod system;
mod vcpu;
mod vm;

use std::fmt;
use std::os::fd::OwnedFd;
use std::process;
use std::sync::Arc;

use msrgate_core::Errno;

pub use system::System;
pub use vcpu::VcpuDescriptor;
pub use vm::VmDescriptor;

use crate::vm::SystemConfig;

/// One descriptor: of /dev/kvm itself, of a VM, or of a vCPU.
#[derive(Clone, Debug)]
pub enum Handle {
    /// What open("/dev/kvm") gives.
    System(Arc<System>),
    /// What `KVM_CREATE_VM` gives.
    Vm(Arc<VmDescriptor>),
    /// What `KVM_CREATE_VCPU` gives.
    Vcpu(Arc<VcpuDescriptor>),
}

/// What an ioctl that succeeds answers.
pub enum Outcome {
    /// The return value.
    Value(i32),
    /// A new descriptor: what it does, and a real one to hand to the client in its place. A vCPU's is a memfd
    /// of `KVM_GET_VCPU_MMAP_SIZE` bytes, so that the client's own mmap gives it the run page.
    Descriptor {
        /// What ioctls on it do.
        handle: Handle,
        /// The descriptor for the client.
        fd: OwnedFd,
    },
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(value) => f.debug_tuple("Value").field(value).finish(),
            Self::Descriptor { fd, .. } => f.debug_tuple("Descriptor").field(fd).finish(),
        }
    }
}

impl Handle {
    /// A system descriptor, whose VMs are made as `config` says.
    #[must_use]
    pub fn open(config: SystemConfig) -> Self {
        Self::System(Arc::new(System::new(config)))
    }

    /// Does what ioctl(2) would: `request` is its number, `arg` its argument, a value or the address of a
    /// structure in this process. What the address leads to is the caller's to answer for, as with ioctl(2);
    /// and the memory of a slot stays mapped until the slot is deleted.
    ///
    /// # Errors
    /// What errno would be.
    pub fn ioctl(&self, request: u32, arg: u64) -> Result<Outcome, Errno> {
        match self {
            Self::System(system) => {
                let handler = find(system::HANDLERS, request).ok_or(Errno::EINVAL)?;
                handler(system, arg)
            }
            Self::Vm(vm) => {
                vm.creator.check()?;
                let handler = find(vm::HANDLERS, request).ok_or(Errno::ENOTTY)?;
                handler(vm, arg)
            }
            Self::Vcpu(vcpu) => {
                vcpu.creator.check()?;
                let handler = find(vcpu::HANDLERS, request).ok_or(Errno::EINVAL)?;
                handler(vcpu, arg)
            }
        }
    }
}

/// What does an ioctl on a descriptor of kind `T`.
type Handler<T> = fn(&Arc<T>, u64) -> Result<Outcome, Errno>;

fn find<T>(handlers: &[(u32, Handler<T>)], request: u32) -> Option<Handler<T>> {
    let row = handlers.iter().find(|(number, _)| *number == request);
    row.map(|&(_, handler)| handler)
}

/// The process that made a VM. In another, a forked child, its descriptors answer EIO.
#[derive(Debug)]
struct Creator(u32);

impl Creator {
    fn this_process() -> Self {
        Self(process::id())
    }

    fn check(&self) -> Result<(), Errno> {
        if process::id() == self.0 {
            Ok(())
        } else {
            Err(Errno::EIO)
        }
    }
}

/// Done.
fn done() -> Result<Outcome, Errno> {
    Ok(Outcome::Value(0))
}

/// The argument is an `int` or a part of one.
fn int(arg: u64) -> u32 {
    (arg & 0xffff_ffff) as u32
}
