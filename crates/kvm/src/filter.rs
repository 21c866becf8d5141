//! `KVM_X86_SET_MSR_FILTER` with bitmaps that are as long as the kernel reads them.
// UNSAFETY: the ioctl makes the kernel follow 16 pointers.
#![expect(unsafe_code, reason = "the ioctl's structure holds pointers")]

use kvm_bindings::{KVM_MSR_FILTER_DEFAULT_ALLOW, KVM_MSR_FILTER_DEFAULT_DENY, kvm_msr_filter};
use kvm_ioctls::VmFd;
use msrgate_core::{DefaultAction, FilterRange, MsrFilter, VmError};

use crate::vm::refused;

/// Replaces the VM's filter.
pub(crate) fn set_msr_filter(vm: &VmFd, filter: &MsrFilter) -> Result<(), VmError> {
    let raw = raw_filter(filter);
    // SAFETY: `kvm_vm_ioctl_set_msr_filter` copies the structure, and `kvm_add_msr_filter` reads
    // `BITS_TO_LONGS(nmsrs) * sizeof(long)` bytes from each bitmap: whole 64-bit words, as many as
    // `bitmap_words` counts. It writes nothing, and keeps its own copy; `filter` outlives the call.
    unsafe { vm.set_msr_filter_unchecked(&raw) }.map_err(refused("KVM_X86_SET_MSR_FILTER"))
}

/// The filter as the ioctl takes it. Its pointers lead into `filter`, which must outlive the call.
#[must_use]
pub fn raw_filter(filter: &MsrFilter) -> kvm_msr_filter {
    let mut raw = kvm_msr_filter {
        flags: match filter.default_action() {
            DefaultAction::Allow => KVM_MSR_FILTER_DEFAULT_ALLOW,
            DefaultAction::Deny => KVM_MSR_FILTER_DEFAULT_DENY,
        },
        ..Default::default()
    };
    for (slot, range) in raw.ranges.iter_mut().zip(filter.ranges()) {
        assert_eq!(
            range.bitmap.len(),
            FilterRange::bitmap_words(range.nmsrs),
            "MsrFilter::new checked the bitmap"
        );
        slot.flags = range.flags.0;
        slot.nmsrs = range.nmsrs;
        slot.base = range.base.0;
        slot.bitmap = range.bitmap.as_ptr().cast_mut().cast();
    }
    raw
}
