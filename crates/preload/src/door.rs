//! The answers to the program's calls. `None` means: not ours, ask libc.
//!
//! Nothing here holds the table's lock while the embedded KVM runs.

use std::ffi::{CStr, c_int};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use msrgate_core::Errno;
use msrgate_soft::{Handle, Outcome, SystemConfig};

use crate::device::Device;
use crate::real::{self, FileId};
use crate::table::TABLE;

/// What a call that is ours returns; `Err` becomes -1 and errno.
pub(crate) type Answer<T = c_int> = Option<Result<T, Errno>>;

/// The type byte of KVM's ioctls (`KVMIO`).
const KVM_TYPE: u32 = 0xae;

/// Ioctls that the kernel answers for every file before it asks the file (`do_vfs_ioctl`).
const FILE_IOCTLS: [u32; 5] = [
    0x5421, // FIONBIO
    0x5450, // FIONCLEX
    0x5451, // FIOCLEX
    0x5452, // FIOASYNC
    0x5460, // FIOQSIZE
];

/// `open` and its kin.
pub(crate) fn open(path: &CStr, flags: c_int) -> Answer {
    let device = Device::at(path)?;
    Some(
        open_device(device, flags).and_then(|(fd, handle)| match handle {
            Some(handle) => publish(fd, handle),
            None => Ok(fd.into_raw_fd()),
        }),
    )
}

/// `fopen`: the descriptor that the stream is to be made of.
pub(crate) fn open_stream(path: &CStr, mode: &CStr) -> Answer {
    let mode = mode.to_bytes();
    let access = match (mode.first(), mode.contains(&b'+')) {
        (Some(b'r'), false) => libc::O_RDONLY,
        (_, true) => libc::O_RDWR,
        (_, false) => libc::O_WRONLY,
    };
    let close_on_exec = if mode.contains(&b'e') {
        libc::O_CLOEXEC
    } else {
        0
    };
    open(path, access | close_on_exec)
}

/// `ioctl`.
#[inline]
pub(crate) fn ioctl(fd: RawFd, request: u32, argument: u64) -> Answer {
    let outcome = TABLE.with(fd, |entry| {
        if request >> 8 & 0xff != KVM_TYPE
            && (FILE_IOCTLS.contains(&request) || real::file_id(fd) != Some(entry.file))
        {
            return None;
        }
        Some(entry.handle.ioctl(request, argument))
    })??;
    Some(outcome.and_then(|outcome| match outcome {
        Outcome::Value(value) => Ok(value),
        Outcome::Descriptor { handle, fd } => publish(fd, handle),
    }))
}

/// Before `close`: the number may mean something else as soon as it is closed.
pub(crate) fn forget(fd: RawFd) {
    TABLE.remove(fd);
}

/// Before `close_range` and `closefrom`.
pub(crate) fn forget_range(first: u32, last: u32) {
    let number = |fd: u32| RawFd::try_from(fd).unwrap_or(RawFd::MAX);
    TABLE.remove_range(number(first), number(last));
}

/// After libc has made `new` of `old`: `new` leads to the same, and no more to what it was.
pub(crate) fn duplicated(old: RawFd, new: RawFd) {
    match TABLE.with(old, Arc::clone) {
        Some(_) if old == new => {}
        Some(entry) => {
            TABLE.share(new, entry);
        }
        None => TABLE.remove(new),
    }
}

fn open_device(device: Device, flags: c_int) -> Result<(OwnedFd, Option<Handle>), Errno> {
    match device {
        Device::Kvm => {
            let fd = real::open(device.stand_in(), flags)?;
            Ok((fd, Some(Handle::open(config()))))
        }
        Device::Parameter(_) if flags & libc::O_ACCMODE != libc::O_RDONLY => Err(Errno::EACCES),
        Device::Parameter(content) => {
            let fd = real::file_with(content, flags & libc::O_CLOEXEC != 0)?;
            Ok((fd, None))
        }
        Device::Missing => Err(Errno::ENOENT),
    }
}

/// As the parameters in [`crate::device`] say.
fn config() -> SystemConfig {
    let mut config = SystemConfig::default();
    config.forced_emulation_prefix = true;
    config
}

/// Gives the program `fd`, which leads to `handle` from now on.
fn publish(fd: OwnedFd, handle: Handle) -> Result<c_int, Errno> {
    let file: FileId = real::file_id(fd.as_raw_fd()).ok_or(Errno::EBADF)?;
    if TABLE.insert(fd.as_raw_fd(), handle, file) {
        Ok(fd.into_raw_fd())
    } else {
        Err(Errno::EMFILE)
    }
}
