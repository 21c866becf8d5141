//! The run page: `struct kvm_run` and the page of port data behind it, shared with the client by a memfd.
//!
//! [`RunPage`] reads and writes single fields at their UAPI offsets. The client may write any byte at any
//! time, so nothing read from here is trusted to be what was written here.

// UNSAFETY: the page is shared memory, mapped from a memfd that the client maps as well.
#![expect(unsafe_code, reason = "mmap of the memfd that the client shares")]

use std::mem::offset_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::{io, ptr};

use crate::memory::PAGE_BYTES;
use kvm_bindings::kvm_run;
use msrgate_core::Errno;

use crate::plain::Plain;
use crate::shared::SharedBytes;

/// What `KVM_GET_VCPU_MMAP_SIZE` answers: `kvm_run`, a page of port data, a page of coalesced MMIO.
pub(crate) const RUN_BYTES: usize = 3 * PAGE_BYTES;
/// Where the data of KVM_EXIT_IO is (`KVM_PIO_PAGE_OFFSET`).
pub(crate) const IO_DATA_OFFSET: usize = PAGE_BYTES;
/// The exit's union.
pub(crate) const EXIT: usize = offset_of!(kvm_run, __bindgen_anon_1);

const _: () = assert!(size_of::<kvm_run>() <= PAGE_BYTES && EXIT == 32);

/// The mapping of one vCPU's run page.
#[derive(Debug)]
pub(crate) struct RunPage {
    bytes: SharedBytes,
}

impl RunPage {
    /// A zeroed run page, and the descriptor with which the client maps it.
    ///
    /// # Errors
    /// What the kernel answers where there is no room.
    pub(crate) fn new() -> Result<(Self, OwnedFd), Errno> {
        let fd = memfd(c"kvm-vcpu", RUN_BYTES)?;
        // SAFETY: a fresh shared mapping of the memfd's RUN_BYTES bytes at an address that the kernel chooses.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                RUN_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(last_errno());
        }
        // SAFETY: just mapped, and unmapped only by `drop`; the memfd is sealed against shrinking, so the
        // client cannot take the pages away.
        let bytes = unsafe { SharedBytes::new(start.cast(), RUN_BYTES) };
        Ok((Self { bytes }, fd))
    }

    /// The field at `offset`.
    pub(crate) fn load<T: Plain>(&self, offset: usize) -> T {
        self.bytes.load(offset).expect("fields lie inside the page")
    }

    /// Sets the field at `offset`.
    pub(crate) fn store<T: Plain>(&self, offset: usize, value: T) {
        assert!(
            self.bytes.store(offset, value),
            "fields lie inside the page"
        );
    }

    /// Fills `bytes` from `offset` on.
    pub(crate) fn load_bytes(&self, offset: usize, bytes: &mut [u8]) {
        assert!(
            self.bytes.load_bytes(offset, bytes),
            "fields lie inside the page"
        );
    }

    /// Writes `bytes` from `offset` on.
    pub(crate) fn store_bytes(&self, offset: usize, bytes: &[u8]) {
        assert!(
            self.bytes.store_bytes(offset, bytes),
            "fields lie inside the page"
        );
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made; `bytes` is not used any more.
        unsafe { libc::munmap(self.bytes.start().cast(), self.bytes.len()) };
    }
}

/// A memfd of `len` bytes that cannot change its size, closed on exec.
///
/// # Errors
/// What the kernel answers where there is no room.
pub(crate) fn memfd(name: &std::ffi::CStr, len: usize) -> Result<OwnedFd, Errno> {
    // SAFETY: the kernel reads a C string.
    let fd =
        unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd < 0 {
        return Err(last_errno());
    }
    // SAFETY: a descriptor that the kernel has just made for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let len = libc::off_t::try_from(len).map_err(|_| Errno::EINVAL)?;
    // SAFETY: no memory is involved.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), len) } != 0 {
        return Err(last_errno());
    }
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: no memory is involved.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
        return Err(last_errno());
    }
    Ok(fd)
}

fn last_errno() -> Errno {
    Errno(
        io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EINVAL),
    )
}
