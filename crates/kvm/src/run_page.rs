//! The `kvm_run` page of a vCPU: where the kernel leaves exits and takes answers.
//!
//! [`RunPage`] is our own mapping of it, shared by the vCPU and its kickers. Everything is copied out and in;
//! no reference into the page exists, because the kernel writes it behind the compiler's back.
// UNSAFETY: a mapping shared with the kernel, and the union in it.
#![expect(unsafe_code, reason = "memory shared with the kernel")]

use std::fmt;
use std::mem::{offset_of, size_of};
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU8;

use kvm_bindings::{
    KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR, kvm_run, kvm_run__bindgen_ty_1__bindgen_ty_2,
    kvm_run__bindgen_ty_1__bindgen_ty_4, kvm_run__bindgen_ty_1__bindgen_ty_5,
    kvm_run__bindgen_ty_1__bindgen_ty_6, kvm_run__bindgen_ty_1__bindgen_ty_13,
    kvm_run__bindgen_ty_1__bindgen_ty_23,
};
use msrgate_core::{Errno, ExitReason, Gp, VmEntry, VmExit};

use crate::fd;

/// `kvm_run.fail_entry`.
pub(crate) type FailEntry = kvm_run__bindgen_ty_1__bindgen_ty_2;
/// `kvm_run.io`.
pub(crate) type Io = kvm_run__bindgen_ty_1__bindgen_ty_4;
/// `kvm_run.debug`.
pub(crate) type Debug = kvm_run__bindgen_ty_1__bindgen_ty_5;
/// `kvm_run.mmio`.
pub(crate) type Mmio = kvm_run__bindgen_ty_1__bindgen_ty_6;
/// `kvm_run.internal`.
pub(crate) type Internal = kvm_run__bindgen_ty_1__bindgen_ty_13;
/// `kvm_run.msr`.
pub(crate) type Msr = kvm_run__bindgen_ty_1__bindgen_ty_23;

/// A member of the union of `kvm_run`.
///
/// # Safety
/// Every bit pattern is a value of the type, and it is one of the union's members (so it fits).
pub(crate) unsafe trait Member: Copy {}

/// The union's members that this crate reads: structures of integers.
macro_rules! members {
    ($($name:ident),*) => {
        $(
            // SAFETY: a structure of integers, and a member of the union by its definition.
            unsafe impl Member for $name {}
        )*
    };
}
members!(FailEntry, Io, Debug, Mmio, Internal, Msr);

/// `kvm_run.msr` of a page that somebody else has mapped. It means something only after an MSR exit.
pub(crate) fn msr_of(run: &kvm_run) -> Msr {
    // SAFETY: `Msr` is a `Member`: every bit pattern is a value.
    unsafe { run.__bindgen_anon_1.msr }
}

/// Where the union begins.
const UNION: usize = offset_of!(kvm_run, __bindgen_anon_1);

/// One vCPU's page (three pages, in fact), mapped for as long as this value lives: a mapping beside whatever others
/// there are.
pub struct RunPage {
    start: NonNull<u8>,
    len_bytes: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread.
unsafe impl Send for RunPage {}
// SAFETY: threads other than the vCPU's touch `immediate_exit` alone (through `KvmKicker`), which is only
// accessed as an atomic; the rest is volatile copies of integers, which mean something only to whoever runs the vCPU.
unsafe impl Sync for RunPage {}

impl RunPage {
    /// Maps the page of a vCPU, which is `KVM_GET_VCPU_MMAP_SIZE` bytes long.
    ///
    /// # Errors
    /// The kernel refuses, or it is too short to be one.
    pub fn map(vcpu: &impl AsRawFd, len_bytes: usize) -> Result<Self, Errno> {
        if len_bytes < size_of::<kvm_run>() {
            return Err(Errno::EINVAL);
        }
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(last_errno());
        }
        let start = NonNull::new(start.cast()).ok_or(Errno::ENOMEM)?;
        Ok(Self { start, len_bytes })
    }

    /// The MSR access for which the vCPU has stopped; `None` where it stopped for something else. It is stale where
    /// `KVM_RUN` failed.
    #[must_use]
    pub fn msr_exit(&self) -> Option<VmExit> {
        match self.exit_reason() {
            KVM_EXIT_X86_RDMSR => Some(fd::rdmsr(&self.member())),
            KVM_EXIT_X86_WRMSR => Some(fd::wrmsr(&self.member())),
            _ => None,
        }
    }

    /// Answers that access; the kernel completes it when the vCPU runs next.
    pub fn complete_msr(&self, entry: VmEntry) {
        let mut msr: Msr = self.member();
        fd::complete(&mut msr, entry);
        self.set_member(msr);
    }

    /// What that access is answered with, if the vCPU runs now: the value that a read reads, or #GP.
    ///
    /// # Errors
    /// #GP.
    pub fn msr_answer(&self) -> Result<u64, Gp> {
        let msr: Msr = self.member();
        if msr.error == 0 {
            Ok(msr.data)
        } else {
            Err(Gp)
        }
    }

    /// Makes that access one that left for another reason: KVM asks only for the answer.
    pub fn set_msr_reason(&self, reason: ExitReason) {
        self.set_member(Msr {
            reason: reason.0,
            ..self.member()
        });
    }

    /// What an MSR exit replaces in the page.
    #[must_use]
    pub fn exit_record(&self) -> ExitRecord {
        ExitRecord {
            exit_reason: self.exit_reason(),
            msr: self.member(),
        }
    }

    /// Puts back what MSR exits have replaced, as if none had been.
    pub fn restore(&self, record: ExitRecord) {
        let reason = self.at(offset_of!(kvm_run, exit_reason)).cast();
        // SAFETY: an aligned u32 inside the mapping.
        unsafe { ptr::write_volatile(reason, record.exit_reason) };
        self.set_member(record.msr);
    }

    /// `KVM_RUN`: completes what is pending, and runs the guest.
    pub(crate) fn run(&self, vcpu: &impl AsRawFd) -> Result<(), Errno> {
        // SAFETY: `kvm_arch_vcpu_ioctl_run` takes no argument. It writes `kvm_run`, of which only copies are
        // ever held here, and guest memory, which the VM keeps mapped.
        let answer = unsafe { libc::ioctl(vcpu.as_raw_fd(), crate::abi::KVM_RUN.into(), 0) };
        if answer < 0 {
            Err(last_errno())
        } else {
            Ok(())
        }
    }

    /// The byte that makes `KVM_RUN` come back at once.
    pub(crate) fn immediate_exit(&self) -> &AtomicU8 {
        let byte = self.at(offset_of!(kvm_run, immediate_exit));
        // SAFETY: a byte inside the mapping, which lives as long as `self`; nobody accesses it otherwise
        // than as an atomic, and the kernel only reads it.
        unsafe { AtomicU8::from_ptr(byte) }
    }

    /// `kvm_run.exit_reason`. Stale where `KVM_RUN` failed.
    pub(crate) fn exit_reason(&self) -> u32 {
        let reason = self.at(offset_of!(kvm_run, exit_reason)).cast();
        // SAFETY: an aligned u32 inside the mapping.
        unsafe { ptr::read_volatile(reason) }
    }

    /// A member of the union.
    pub(crate) fn member<T: Member>(&self) -> T {
        let member = self.at(UNION).cast();
        // SAFETY: `Member` promises that it fits and that every bit pattern is a value; the union's offset
        // is a multiple of its alignment.
        unsafe { ptr::read_volatile(member) }
    }

    /// Replaces a member of the union.
    pub(crate) fn set_member<T: Member>(&self, value: T) {
        let member = self.at(UNION).cast();
        // SAFETY: as for `member`.
        unsafe { ptr::write_volatile(member, value) };
    }

    /// Up to eight bytes at `offset`, zero-extended; bytes outside the mapping read 0.
    pub(crate) fn load(&self, offset: usize, len_bytes: u8) -> u64 {
        (0..usize::from(len_bytes.min(8)))
            .rev()
            .fold(0, |value, n| {
                let byte = match self.inside(offset, n) {
                    // SAFETY: `inside` checked it against the mapping's length.
                    Some(byte) => unsafe { ptr::read_volatile(byte) },
                    None => 0,
                };
                value << 8 | u64::from(byte)
            })
    }

    /// Stores the low bytes of `value` at `offset`, as far as they are inside the mapping.
    pub(crate) fn store(&self, offset: usize, len_bytes: u8, value: u64) {
        let bytes = value.to_le_bytes();
        for (n, &byte) in bytes.iter().take(len_bytes.into()).enumerate() {
            if let Some(place) = self.inside(offset, n) {
                // SAFETY: `inside` checked it against the mapping's length.
                unsafe { ptr::write_volatile(place, byte) };
            }
        }
    }

    fn inside(&self, offset: usize, n: usize) -> Option<*mut u8> {
        let offset = offset.checked_add(n)?;
        (offset < self.len_bytes).then(|| self.at(offset))
    }

    /// The address of an offset that lies inside the mapping.
    fn at(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset < self.len_bytes, "callers stay inside the mapping");
        self.start.as_ptr().wrapping_add(offset)
    }
}

/// What the page said before an MSR exit; see [`RunPage::restore`].
#[derive(Clone, Copy, Debug)]
pub struct ExitRecord {
    exit_reason: u32,
    msr: Msr,
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: our own mapping, of this length, to which no reference outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len_bytes) };
    }
}

impl fmt::Debug for RunPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunPage")
            .field("exit_reason", &self.exit_reason())
            .finish_non_exhaustive()
    }
}

fn last_errno() -> Errno {
    Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}
