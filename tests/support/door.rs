//! The raw door: ioctls as a program issues them, whoever answers them.

use msrgate_core::{Errno, MsrIndex};

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
