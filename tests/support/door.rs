//! The raw door: ioctls as a program issues them, whoever answers them.

use kvm_bindings::kvm_userspace_memory_region;
use msrgate_core::{Errno, MsrIndex};
use msrgate_kvm::abi;

const KVM_SET_USER_MEMORY_REGION: u32 = 0x4020_ae46;

/// An engine that answers KVM's ioctls.
pub trait Door {
    /// A descriptor: `/dev/kvm`, a VM or a vCPU.
    type Handle;

    /// Its name in reports.
    fn name(&self) -> &'static str;

    /// The open `/dev/kvm`.
    fn system(&self) -> &Self::Handle;

    /// An ioctl whose argument is a number, or the address of memory that the callee may read and write
    /// (or that does not exist).
    ///
    /// # Errors
    /// What the engine answers.
    fn ioctl(&self, on: &Self::Handle, request: u32, argument: u64) -> Result<i32, Errno>;

    /// An ioctl that makes a descriptor.
    ///
    /// # Errors
    /// What the engine answers.
    fn create(&self, on: &Self::Handle, request: u32, argument: u64)
    -> Result<Self::Handle, Errno>;

    /// A VM that has `size_bytes` of RAM from address 0 on; `host` is where they are in this process.
    ///
    /// # Errors
    /// What the engine answers.
    fn create_vm(&self, host: *mut u8, size_bytes: usize) -> Result<Self::Handle, Errno> {
        let vm = self.create(self.system(), abi::KVM_CREATE_VM, 0)?;
        let region = kvm_userspace_memory_region {
            memory_size: size_bytes as u64,
            userspace_addr: host.expose_provenance() as u64,
            ..Default::default()
        };
        self.ioctl(&vm, KVM_SET_USER_MEMORY_REGION, &raw const region as u64)?;
        Ok(vm)
    }

    /// An ioctl from a 32-bit caller; `None` where this door has none.
    fn ioctl_compat(
        &self,
        on: &Self::Handle,
        request: u32,
        argument: u32,
    ) -> Option<Result<i32, Errno>>;

    /// An ioctl from a forked child; `None` where this door has none.
    fn ioctl_in_child(
        &self,
        on: &Self::Handle,
        request: u32,
        argument: u64,
    ) -> Option<Result<i32, Errno>>;

    /// The `kvm_run` page of a vCPU.
    ///
    /// # Errors
    /// What the engine answers.
    fn map_run_page(&self, vcpu: &Self::Handle) -> Result<Mapping, Errno>;

    /// Whether the engine does a guest's writes of this MSR before it asks the filter.
    fn writes_before_filter(&self, _index: MsrIndex) -> bool {
        false
    }
}

pub use crate::kernel_door::{KernelDoor, Mapping};
pub use crate::soft_door::SoftDoor;
