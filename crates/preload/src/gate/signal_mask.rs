//! `KVM_SET_SIGNAL_MASK`: the signals that are blocked while a vCPU runs, in place of its thread's own.

use std::os::fd::RawFd;

use msrgate_core::Errno;
use msrgate_kvm::abi::KVM_SET_SIGNAL_MASK;
use msrgate_soft::client;

use crate::lower::Lower;

/// `struct kvm_signal_mask` with the kernel's `sigset_t` behind it.
#[repr(C)]
struct SignalMask {
    len: u32,
    /// Not aligned as a `u64` is.
    set: [u8; 8],
}

/// Sets it; bit `n - 1` is signal `n`.
pub(super) fn set(lower: &Lower, fd: RawFd, mask: u64) -> Result<(), Errno> {
    let mut structure = SignalMask {
        len: 8,
        set: mask.to_le_bytes(),
    };
    lower
        .ioctl_on(fd, KVM_SET_SIGNAL_MASK, &mut structure)
        .map(drop)
}

/// What the program asks for; `None`: that the thread's own mask counts again.
pub(super) fn read(argument: u64) -> Result<Option<u64>, Errno> {
    if argument == 0 {
        return Ok(None);
    }
    let mut structure = [0; size_of::<SignalMask>()];
    client::read(argument, &mut structure)?;
    let [_, _, _, _, set @ ..] = structure;
    Ok(Some(u64::from_le_bytes(set)))
}
