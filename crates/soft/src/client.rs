//! The client of the ioctls: its memory, and the signals that wait for it.
//!
//! The client lives in this process, but its pointers are only numbers: they are read and written by the
//! kernel on our behalf (`process_vm_readv` on ourselves), so that a bad one is EFAULT and not a crash.

// UNSAFETY: system calls, and a memory access at an address that somebody else chose.
#![expect(unsafe_code, reason = "the calls that answer EFAULT are libc's")]

use std::cell::Cell;
use std::{process, ptr};

use crate::plain::Plain;
use libc::iovec;
use msrgate_core::Errno;

thread_local! {
    /// A signal handler has run in this thread.
    static SIGNALLED: Cell<bool> = const { Cell::new(false) };
}

/// Says that a signal handler runs in this thread: a `KVM_RUN` in its middle then ends with EINTR. To be
/// called from the handler; it does nothing that a handler may not.
pub fn note_signal() {
    let _ = SIGNALLED.try_with(|signalled| signalled.set(true));
}

/// Whether a handler has run in this thread since this was asked last.
pub(crate) fn take_signal() -> bool {
    SIGNALLED
        .try_with(|signalled| signalled.replace(false))
        .unwrap_or(false)
}

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
pub(crate) fn read(address: u64, bytes: &mut [u8]) -> Result<(), Errno> {
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

/// Whether a signal waits that is blocked in this thread but not in `mask` (a `sigset_t` of the kernel:
/// bit `n - 1` is signal `n`). KVM_RUN answers EINTR then and leaves the signal pending.
pub(crate) fn signal_pending(mask: u64) -> bool {
    let mut pending: u64 = 0;
    // SAFETY: the kernel writes at most the size it is given (`rt_sigpending`: sizeof(sigset_t) = 8).
    let result =
        unsafe { libc::syscall(libc::SYS_rt_sigpending, &raw mut pending, size_of::<u64>()) };
    result == 0 && pending & !mask != 0
}

/// Sleeps for at most `nanoseconds`; whether a signal handler ran meanwhile.
pub(crate) fn nap(nanoseconds: u32) -> bool {
    let duration = libc::timespec {
        tv_sec: 0,
        tv_nsec: i64::from(nanoseconds.min(999_999_999)),
    };
    // SAFETY: the kernel reads one timespec, and no remainder is asked for.
    unsafe { libc::nanosleep(&raw const duration, ptr::null_mut()) != 0 }
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
mod tests {
    use super::*;

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
