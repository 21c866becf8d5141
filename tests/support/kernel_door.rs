//! The raw door to the real kernel: `libc::ioctl`, `int 0x80`, `fork`, `mmap`.
// UNSAFETY: test harness that issues raw system calls.
#![expect(unsafe_code, reason = "raw system calls are the subject")]

use std::arch::asm;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};

use msrgate_core::{Errno, MsrIndex};
use msrgate_kvm::Kvm;

use crate::door::Door;

/// `KVM_GET_VCPU_MMAP_SIZE`.
const KVM_GET_VCPU_MMAP_SIZE: u32 = 0xae04;

/// The kernel's `/dev/kvm`.
#[derive(Debug)]
pub struct KernelDoor {
    system: OwnedFd,
}

impl KernelDoor {
    /// Opens the door; `_usable` shows that somebody checked that the device works.
    ///
    /// # Panics
    /// The device vanished meanwhile.
    #[must_use]
    pub fn new(_usable: &Kvm) -> Self {
        let file = File::options().read(true).write(true).open("/dev/kvm");
        Self {
            system: file.expect("/dev/kvm opened a moment ago").into(),
        }
    }
}

impl Door for KernelDoor {
    type Handle = OwnedFd;

    fn name(&self) -> &'static str {
        "kvm"
    }

    fn system(&self) -> &OwnedFd {
        &self.system
    }

    fn ioctl(&self, on: &OwnedFd, request: u32, argument: u64) -> Result<i32, Errno> {
        // SAFETY: by the contract of `Door::ioctl` the argument is a number, an address that does not exist
        // (the kernel answers EFAULT), or memory of the test that the kernel may use.
        let answer = unsafe { libc::ioctl(on.as_raw_fd(), request.into(), argument) };
        result(answer)
    }

    fn create(&self, on: &OwnedFd, request: u32, argument: u64) -> Result<OwnedFd, Errno> {
        let fd = self.ioctl(on, request, argument)?;
        // SAFETY: the kernel just made this descriptor for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    fn ioctl_compat(
        &self,
        on: &OwnedFd,
        request: u32,
        argument: u32,
    ) -> Option<Result<i32, Errno>> {
        let fd = u64::try_from(on.as_raw_fd()).expect("descriptors are positive");
        let answer = int80_ioctl(fd, request.into(), argument.into());
        let result = if answer < 0 {
            Err(Errno(-answer))
        } else {
            Ok(answer)
        };
        (result != Err(Errno::ENOSYS)).then_some(result)
    }

    fn ioctl_in_child(
        &self,
        on: &OwnedFd,
        request: u32,
        argument: u64,
    ) -> Option<Result<i32, Errno>> {
        Some(in_child(|| self.ioctl(on, request, argument)))
    }

    fn map_run_page(&self, vcpu: &OwnedFd) -> Result<Mapping, Errno> {
        let bytes = self.ioctl(&self.system, KVM_GET_VCPU_MMAP_SIZE, 0)?;
        let bytes = usize::try_from(bytes).expect("a size is positive");
        Mapping::shared(vcpu, bytes)
    }

    fn writes_before_filter(&self, index: MsrIndex) -> bool {
        msrgate_kvm::writes_before_filter(index) == Some(true)
    }
}

/// Does `call` in a forked child; a success is 0 there.
///
/// # Panics
/// The child cannot be made.
pub fn in_child(call: impl FnOnce() -> Result<i32, Errno>) -> Result<i32, Errno> {
    // SAFETY: the child makes one call and ends. A lock that another thread held stays locked in it; the calls
    // tested here are refused before they take any, and one that is not is ended by the alarm.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: takes a number of seconds.
        unsafe { libc::alarm(10) };
        let errno = call().err().map_or(0, |errno| errno.0);
        // SAFETY: ends the child without running what belongs to the parent.
        unsafe { libc::_exit(errno) };
    }
    let mut status = 0;
    // SAFETY: `status` is ours to write.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(waited, child, "the child ends");
    assert!(libc::WIFEXITED(status), "the child's call ends");
    match libc::WEXITSTATUS(status) {
        0 => Ok(0),
        errno => Err(Errno(errno)),
    }
}

/// Does `call` while a signal waits for this thread, blocked; it is gone afterwards.
pub fn with_pending_signal<T>(call: impl FnOnce() -> T) -> T {
    // SAFETY: all-zero is an empty set.
    let mut signals: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is ours.
    unsafe { libc::sigaddset(&raw mut signals, libc::SIGUSR1) };
    // SAFETY: reads the set; the old mask is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, ptr::null_mut()) };
    // SAFETY: takes a number; the signal is blocked in this thread, which it is for.
    unsafe { libc::raise(libc::SIGUSR1) };
    let answer = call();
    let no_wait = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: reads the set and the time; nobody asks who sent it.
    unsafe { libc::sigtimedwait(&raw const signals, ptr::null_mut(), &raw const no_wait) };
    // SAFETY: as for blocking.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const signals, ptr::null_mut()) };
    answer
}

/// `ioctl` as a 32-bit program calls it: system call 54 through vector 0x80.
fn int80_ioctl(fd: u64, request: u64, argument: u64) -> i32 {
    let answer: i32;
    // SAFETY: the 32-bit entry keeps every register but RAX and R8 to R11. RBX belongs to the compiler, so
    // it is exchanged around the call. The argument is as for `Door::ioctl`.
    unsafe {
        asm!(
            "xchg rbx, {fd}",
            "int 0x80",
            "xchg rbx, {fd}",
            fd = inout(reg) fd => _,
            inlateout("eax") 54 => answer,
            in("rcx") request,
            in("rdx") argument,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    answer
}

/// Memory of our own that is mapped for as long as this value lives, reached only by copying.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len_bytes: usize,
}

impl Mapping {
    /// Maps a descriptor, shared.
    ///
    /// # Errors
    /// What mmap answers.
    pub fn shared(fd: &impl AsRawFd, len_bytes: usize) -> Result<Self, Errno> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        Self::map(len_bytes, protection, libc::MAP_SHARED, fd.as_raw_fd())
    }

    /// Private zeroed memory below 4 GiB, with a page that cannot be read before and behind it.
    ///
    /// # Errors
    /// What mmap answers.
    ///
    /// # Panics
    /// `len_bytes` is not in whole pages.
    pub fn fenced(len_bytes: usize) -> Result<Fenced, Errno> {
        const PAGE: usize = 4096;
        assert_eq!(len_bytes % PAGE, 0, "whole pages");
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
        let whole = Self::map(len_bytes + 2 * PAGE, libc::PROT_NONE, flags, -1)?;
        let inside = whole.start.as_ptr().wrapping_add(PAGE);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: pages of the mapping just made, which nobody else knows.
        result(unsafe { libc::mprotect(inside.cast(), len_bytes, protection) })?;
        Ok(Fenced {
            whole,
            offset: PAGE,
            len_bytes,
        })
    }

    fn map(len_bytes: usize, protection: i32, flags: i32, fd: i32) -> Result<Self, Errno> {
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let start = unsafe { libc::mmap(ptr::null_mut(), len_bytes, protection, flags, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(last_errno());
        }
        let start = NonNull::new(start.cast()).expect("nobody maps address 0");
        Ok(Self { start, len_bytes })
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// Copies bytes out.
    ///
    /// # Panics
    /// They are not inside.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        assert!(offset + bytes.len() <= self.len_bytes, "inside the mapping");
        for (n, byte) in bytes.iter_mut().enumerate() {
            let place = self.start.as_ptr().wrapping_add(offset + n);
            // SAFETY: inside the mapping, by the assertion.
            *byte = unsafe { ptr::read_volatile(place) };
        }
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// They do not fit.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.len_bytes, "inside the mapping");
        for (n, &byte) in bytes.iter().enumerate() {
            let place = self.start.as_ptr().wrapping_add(offset + n);
            // SAFETY: inside the mapping, by the assertion.
            unsafe { ptr::write_volatile(place, byte) };
        }
    }

    /// A little-endian word.
    #[must_use]
    pub fn read_u32(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping; only copies of what is in it exist.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len_bytes) };
    }
}

/// Memory between two pages that cannot be read.
#[derive(Debug)]
pub struct Fenced {
    whole: Mapping,
    offset: usize,
    len_bytes: usize,
}

impl Fenced {
    /// Where it begins.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.whole.address() + self.offset as u64
    }

    /// Copies bytes to its beginning.
    ///
    /// # Panics
    /// They do not fit.
    pub fn write(&self, bytes: &[u8]) {
        assert!(bytes.len() <= self.len_bytes, "between the fences");
        self.whole.write(self.offset, bytes);
    }
}

fn result(answer: i32) -> Result<i32, Errno> {
    if answer < 0 {
        Err(last_errno())
    } else {
        Ok(answer)
    }
}

fn last_errno() -> Errno {
    let error = std::io::Error::last_os_error();
    Errno(error.raw_os_error().expect("a system call failed"))
}
