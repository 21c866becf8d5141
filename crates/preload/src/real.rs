//! Libc's own functions, behind ours: [`Next`] finds them, and the rest uses them for what `std` has no
//! words for.

// UNSAFETY: the dynamic loader's symbols are untyped, and errno is a pointer.
#![expect(
    unsafe_code,
    reason = "dlsym, errno, and calls of libc on raw descriptors"
)]

use std::ffi::{CStr, c_int, c_long, c_uint, c_ulong, c_void};
use std::fs::File;
use std::io::{Seek, Write};
use std::mem::{self, MaybeUninit};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use msrgate_core::Errno;

/// The function of this name in the library after ours, looked up when it is first needed: other libraries'
/// constructors call us before ours could run.
pub(crate) struct Next {
    name: &'static str,
    address: AtomicPtr<c_void>,
}

impl Next {
    /// `name` ends with NUL.
    pub(crate) const fn named(name: &'static str) -> Self {
        Self {
            name,
            address: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Its address; null if this libc has no such function.
    pub(crate) fn address(&self) -> *mut c_void {
        let known = self.address.load(Ordering::Relaxed);
        if !known.is_null() {
            return known;
        }
        // SAFETY: `name` ends with NUL; RTLD_NEXT looks behind the library that holds this code.
        let found = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr().cast()) };
        self.address.store(found, Ordering::Relaxed);
        found
    }
}

/// Which file a descriptor leads to: its device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId(u64, u64);

/// Which file `fd` leads to, if it is open.
pub(crate) fn file_id(fd: RawFd) -> Option<FileId> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the kernel writes one `struct stat` (`cp_new_stat`: sizeof) or fails.
    let result = unsafe { libc::fstat(fd, stat.as_mut_ptr()) };
    if result != 0 {
        return None;
    }
    // SAFETY: `fstat` succeeded, so it is filled.
    let stat = unsafe { stat.assume_init() };
    Some(FileId(stat.st_dev, stat.st_ino))
}

/// Opens `path` as the program would.
pub(crate) fn open(path: &CStr, flags: c_int) -> Result<OwnedFd, Errno> {
    // SAFETY: `path` ends with NUL; the mode is only used with O_CREAT.
    let fd = unsafe { libc::open(path.as_ptr(), flags, 0) };
    owned(fd)
}

/// A file of its own with this content, at its beginning.
pub(crate) fn file_with(content: &str, close_on_exec: bool) -> Result<OwnedFd, Errno> {
    let flags = if close_on_exec { libc::MFD_CLOEXEC } else { 0 };
    // SAFETY: the name ends with NUL.
    let fd = unsafe { libc::memfd_create(c"kvm-parameter".as_ptr(), flags) };
    let mut file = File::from(owned(fd)?);
    file.write_all(content.as_bytes())
        .and_then(|()| file.rewind())
        .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno))?;
    Ok(file.into())
}

/// `ioctl` by libc.
pub(crate) fn ioctl(fd: RawFd, request: c_ulong, argument: u64) -> Result<c_int, Errno> {
    type Function = unsafe extern "C-unwind" fn(c_int, c_ulong, ...) -> c_int;
    static NEXT: Next = Next::named("ioctl\0");
    let address = NEXT.address();
    if address.is_null() {
        return Err(Errno::ENOSYS);
    }
    // SAFETY: the loader found libc's function of this name, and this is its type.
    let next = unsafe { mem::transmute::<*mut c_void, Function>(address) };
    // SAFETY: what `argument` leads to is what the request takes: the program's own, or a structure of ours whose
    // layout is kvm-bindings'.
    let result = unsafe { next(fd, request, argument) };
    if result < 0 {
        return Err(errno());
    }
    Ok(result)
}

/// `syscall` by libc; what it returns, with errno where that is -1.
pub(crate) fn syscall(number: c_long, arguments: [c_ulong; 6]) -> c_long {
    type Function = unsafe extern "C-unwind" fn(c_long, ...) -> c_long;
    static NEXT: Next = Next::named("syscall\0");
    let address = NEXT.address();
    if address.is_null() {
        set_errno(Errno::ENOSYS);
        return -1;
    }
    // SAFETY: the loader found libc's function of this name, and this is its type.
    let next = unsafe { mem::transmute::<*mut c_void, Function>(address) };
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the program's own call.
    unsafe { next(number, a, b, c, d, e, f) }
}

/// `close_range` by libc.
pub(crate) fn close_range(from: c_uint, to: c_uint, flags: c_int) -> Result<c_int, Errno> {
    // SAFETY: the program's own call, but for a descriptor of ours.
    let result = unsafe { libc::close_range(from, to, flags) };
    if result < 0 {
        return Err(errno());
    }
    Ok(result)
}

/// Another descriptor for the same file, which is closed on exec.
pub(crate) fn duplicate(fd: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: the kernel answers EBADF for a number that is no descriptor.
    owned(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) })
}

/// The calling thread's errno.
pub(crate) fn errno() -> Errno {
    // SAFETY: libc's promise: the pointer is valid for as long as this thread lives.
    Errno(unsafe { *errno_location() })
}

/// Sets the calling thread's errno.
pub(crate) fn set_errno(errno: Errno) {
    // SAFETY: as in `errno`.
    unsafe { *errno_location() = errno.0 };
}

/// Has `before` and `after` called around every `fork`; `after` in both processes.
pub(crate) fn at_fork(before: unsafe extern "C" fn(), after: unsafe extern "C" fn()) {
    // SAFETY: functions that stay where they are: a preloaded library is never unloaded.
    unsafe { libc::pthread_atfork(Some(before), Some(after), Some(after)) };
}

/// Has `last` called when the process exits.
pub(crate) fn at_exit(last: extern "C" fn()) {
    // SAFETY: as in `at_fork`.
    unsafe { libc::atexit(last) };
}

fn errno_location() -> *mut c_int {
    // SAFETY: no arguments, no preconditions.
    unsafe { libc::__errno_location() }
}

/// A descriptor that the kernel has just made, or errno.
pub(crate) fn owned(fd: c_int) -> Result<OwnedFd, Errno> {
    if fd < 0 {
        return Err(errno());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
