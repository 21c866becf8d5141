//! The client of the ioctls: its memory, and the signals that wait for it.
//!
//! The client lives in this process, but its pointers are only numbers: they are read and written by the
//! kernel on our behalf (`process_vm_readv` on ourselves), so that a bad one is EFAULT and not a crash. Where a
//! seccomp filter forbids that call, every pointer is a bad one.

// UNSAFETY: system calls, and a memory access at an address that somebody else chose.
#![expect(unsafe_code, reason = "the calls that answer EFAULT are libc's")]

use std::os::fd::{FromRawFd, OwnedFd};
use std::{io, process, ptr};

use crate::plain::Plain;
use libc::{c_int, iovec};
use msrgate_core::Errno;

/// Reads a value of the client's.
///
/// # Errors
/// EFAULT.
pub(crate) fn load<T: Plain>(address: u64) -> Result<T, Errno> {
    let mut value = T::zeroed();
    read(address, value.bytes_mut())?;
    Ok(value)
}

/// Writes a value to the client.
///
/// # Errors
/// EFAULT.
pub(crate) fn store<T: Plain>(address: u64, value: &T) -> Result<(), Errno> {
    write(address, value.bytes())
}

/// Fills `bytes` from the client's memory.
///
/// # Errors
/// EFAULT if any byte cannot be read.
pub fn read(address: u64, bytes: &mut [u8]) -> Result<(), Errno> {
    let local = io_vector(bytes.as_mut_ptr(), bytes.len());
    let remote = io_vector(client_pointer(address)?, bytes.len());
    // SAFETY: `local` covers exactly `bytes`, which is ours to write; what `remote` names is checked by the
    // kernel page by page (`process_vm_rw_core` pins each page or stops short).
    let count =
        unsafe { libc::process_vm_readv(own_pid(), &raw const local, 1, &raw const remote, 1, 0) };
    all_or_fault(count, bytes.len())
}

/// Writes `bytes` to the client's memory.
///
/// # Errors
/// EFAULT if any byte cannot be written.
pub(crate) fn write(address: u64, bytes: &[u8]) -> Result<(), Errno> {
    let local = io_vector(bytes.as_ptr().cast_mut(), bytes.len());
    let remote = io_vector(client_pointer(address)?, bytes.len());
    // SAFETY: `local` covers exactly `bytes`, which is only read; the memory that `remote` names is the
    // caller's to have written, as with every ioctl that answers through a pointer.
    let count =
        unsafe { libc::process_vm_writev(own_pid(), &raw const local, 1, &raw const remote, 1, 0) };
    all_or_fault(count, bytes.len())
}

/// Another descriptor for what the client's number `fd` leads to, closed on exec.
///
/// # Errors
/// EBADF, or EMFILE.
pub(crate) fn duplicate(fd: u32) -> Result<OwnedFd, Errno> {
    let fd = c_int::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel answers EBADF for a number that is no descriptor.
    let new = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, FIRST_DESCRIPTOR) };
    if new < 0 {
        let error = io::Error::last_os_error().raw_os_error();
        return Err(error.map_or(Errno::EBADF, Errno));
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

/// The first number that no program expects to be a standard stream.
const FIRST_DESCRIPTOR: c_int = 3;

/// Signals that wait while `KVM_RUN` is under way, as they would wait in the kernel for its return: all that
/// the thread's own instructions do not cause. What was blocked before is blocked again after, and a handler
/// runs then.
#[derive(Debug)]
pub struct SignalGuard {
    /// The thread's mask, to be restored.
    before: u64,
    /// The mask that decides which signals end the run.
    effective: u64,
}

/// A set of signals as the kernel has it: bit `n - 1` is signal `n`.
const fn set_of(signals: &[c_int]) -> u64 {
    let mut set = 0;
    let mut at = 0;
    while at < signals.len() {
        set |= 1 << (signals[at] - 1);
        at += 1;
    }
    set
}

/// Those that an instruction causes, and the two that glibc keeps for itself.
const NEVER_BLOCKED: u64 = set_of(&[
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGSYS,
    libc::SIGABRT,
    32,
    33,
]);

impl SignalGuard {
    /// Holds signals back.
    #[must_use]
    pub fn hold() -> Self {
        let before = set_signal_mask(libc::SIG_BLOCK, !NEVER_BLOCKED);
        Self {
            before,
            effective: before,
        }
    }

    /// The signals that the thread itself had blocked: bit `n - 1` is signal `n`.
    #[must_use]
    pub const fn blocked_before(&self) -> u64 {
        self.before
    }

    /// Goes by the mask of `KVM_SET_SIGNAL_MASK` from here on, if there is one.
    pub fn use_mask(&mut self, mask: Option<u64>) {
        self.effective = mask.unwrap_or(self.before);
    }

    /// Whether a signal waits that is to end the run.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        let mut pending: u64 = 0;
        // SAFETY: the kernel writes at most the size it is given (`rt_sigpending`: sizeof(sigset_t) = 8).
        let result =
            unsafe { libc::syscall(libc::SYS_rt_sigpending, &raw mut pending, SIGSET_BYTES) };
        result == 0 && pending & !self.effective != 0
    }
}

impl Drop for SignalGuard {
    fn drop(&mut self) {
        set_signal_mask(libc::SIG_SETMASK, self.before);
    }
}

/// Bytes of the kernel's `sigset_t`.
pub(crate) const SIGSET_BYTES: u32 = 8;

/// Changes the thread's mask; what it was.
fn set_signal_mask(how: c_int, set: u64) -> u64 {
    let mut before: u64 = 0;
    // SAFETY: the kernel reads and writes a sigset_t of the size that it is given (`rt_sigprocmask`).
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            how,
            &raw const set,
            &raw mut before,
            SIGSET_BYTES,
        )
    };
    before
}

fn io_vector(start: *mut u8, len: usize) -> iovec {
    iovec {
        iov_base: start.cast(),
        iov_len: len,
    }
}

fn client_pointer(address: u64) -> Result<*mut u8, Errno> {
    let address = usize::try_from(address).map_err(|_| Errno::EFAULT)?;
    Ok(ptr::with_exposed_provenance_mut(address))
}

fn own_pid() -> libc::pid_t {
    process::id().cast_signed()
}

fn all_or_fault(count: isize, len: usize) -> Result<(), Errno> {
    if usize::try_from(count) == Ok(len) {
        Ok(())
    } else {
        Err(Errno::EFAULT)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A signal that does nothing unless somebody waits for it.
    const HARMLESS: c_int = libc::SIGWINCH;

    /// The calling thread, for [`signal`].
    pub(crate) fn this_thread() -> libc::pthread_t {
        // SAFETY: it has no preconditions.
        unsafe { libc::pthread_self() }
    }

    /// Sends a signal to a thread that has not ended.
    pub(crate) fn signal(thread: libc::pthread_t) {
        // SAFETY: the caller's test joins the thread later.
        unsafe { libc::pthread_kill(thread, HARMLESS) };
    }

    #[test]
    fn signal_waits_for_the_guard_to_go() {
        let signals = SignalGuard::hold();
        assert!(!signals.is_pending());
        signal(this_thread());
        assert!(signals.is_pending());
        drop(signals);
        assert!(!SignalGuard::hold().is_pending(), "delivered");
    }

    #[test]
    fn signal_that_the_mask_blocks_does_not_end_the_run() {
        let mut signals = SignalGuard::hold();
        signals.use_mask(Some(set_of(&[HARMLESS])));
        signal(this_thread());
        assert!(!signals.is_pending());
        signals.use_mask(Some(0));
        assert!(signals.is_pending());
    }

    #[test]
    fn own_memory_is_read_and_written() {
        let mut word: u64 = 0x1122_3344_5566_7788;
        let address = (&raw mut word).expose_provenance() as u64;
        assert_eq!(load::<u32>(address), Ok(0x5566_7788));
        assert_eq!(store(address + 4, &0xaabb_ccdd_u32), Ok(()));
        assert_eq!(load::<u64>(address), Ok(0xaabb_ccdd_5566_7788));
    }

    #[test]
    fn bad_pointer_is_efault() {
        for address in [0, 0x10, 1 << 47, u64::MAX - 3, 0xffff_8000_0000_0000] {
            assert_eq!(load::<u64>(address), Err(Errno::EFAULT), "{address:#x}");
            assert_eq!(store(address, &1_u64), Err(Errno::EFAULT), "{address:#x}");
        }
    }

    #[test]
    fn code_is_readable_and_not_writable() {
        let code = bad_pointer_is_efault as *const ();
        let address = code.expose_provenance() as u64;
        assert!(load::<u8>(address).is_ok());
        assert_eq!(store(address, &0_u8), Err(Errno::EFAULT));
    }
}
