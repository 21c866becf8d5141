//! The raw door to the embedded KVM: the same ioctls, answered in this process.

use std::os::fd::OwnedFd;

use msrgate_core::Errno;
use msrgate_soft::{Handle, Outcome, SystemConfig};

use crate::door::{Door, Mapping};
use crate::kernel_door::in_child;

/// `KVM_GET_VCPU_MMAP_SIZE`.
const KVM_GET_VCPU_MMAP_SIZE: u32 = 0xae04;

/// The embedded KVM's `/dev/kvm`.
#[derive(Debug)]
pub struct SoftDoor {
    system: SoftHandle,
}

/// A descriptor of the embedded KVM.
#[derive(Debug)]
pub struct SoftHandle {
    handle: Handle,
    /// What a client would hold in its place.
    fd: Option<OwnedFd>,
}

impl SoftDoor {
    /// Opens the door.
    #[must_use]
    pub fn new() -> Self {
        Self {
            system: SoftHandle {
                handle: Handle::open(SystemConfig::default()),
                fd: None,
            },
        }
    }
}

impl Default for SoftDoor {
    fn default() -> Self {
        Self::new()
    }
}

impl Door for SoftDoor {
    type Handle = SoftHandle;

    fn name(&self) -> &'static str {
        "soft"
    }

    fn system(&self) -> &SoftHandle {
        &self.system
    }

    fn ioctl(&self, on: &SoftHandle, request: u32, argument: u64) -> Result<i32, Errno> {
        match on.handle.ioctl(request, argument)? {
            Outcome::Value(value) => Ok(value),
            Outcome::Descriptor { .. } => panic!("{request:#x} makes a descriptor"),
        }
    }

    fn create(&self, on: &SoftHandle, request: u32, argument: u64) -> Result<SoftHandle, Errno> {
        match on.handle.ioctl(request, argument)? {
            Outcome::Descriptor { handle, fd } => Ok(SoftHandle {
                handle,
                fd: Some(fd),
            }),
            Outcome::Value(value) => panic!("{request:#x} makes no descriptor, but {value}"),
        }
    }

    fn ioctl_compat(&self, _: &SoftHandle, _: u32, _: u32) -> Option<Result<i32, Errno>> {
        None
    }

    fn ioctl_in_child(
        &self,
        on: &SoftHandle,
        request: u32,
        argument: u64,
    ) -> Option<Result<i32, Errno>> {
        Some(in_child(|| self.ioctl(on, request, argument)))
    }

    fn map_run_page(&self, vcpu: &SoftHandle) -> Result<Mapping, Errno> {
        let bytes = self.ioctl(&self.system, KVM_GET_VCPU_MMAP_SIZE, 0)?;
        let bytes = usize::try_from(bytes).expect("a size is positive");
        let fd = vcpu.fd.as_ref().ok_or(Errno::EBADF)?;
        Mapping::shared(fd, bytes)
    }
}
