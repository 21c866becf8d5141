//! [`Plain`]: structures of the UAPI as bytes.

// UNSAFETY: reinterpreting a structure as its bytes and back, for types that the compiler cannot vouch for.
#![expect(
    unsafe_code,
    reason = "the UAPI's structures come from kvm-bindings, which says nothing of their bytes"
)]

use std::slice;

use kvm_bindings::{
    kvm_clock_data, kvm_cpuid_entry2, kvm_debug_exit_arch, kvm_debugregs, kvm_dirty_log,
    kvm_enable_cap, kvm_fpu, kvm_guest_debug, kvm_ioeventfd, kvm_irqfd, kvm_mp_state, kvm_msi,
    kvm_msr_entry, kvm_pic_state, kvm_pit_channel_state, kvm_pit_config, kvm_regs, kvm_sregs,
    kvm_sregs2, kvm_translation, kvm_userspace_memory_region, kvm_userspace_memory_region2,
    kvm_vcpu_events, kvm_xcrs,
};

/// Plain data.
///
/// # Safety
/// Any bytes are a value of the type, and a value has no padding.
pub(crate) unsafe trait Plain: Copy {
    /// The value whose bytes are all 0.
    fn zeroed() -> Self {
        // SAFETY: any bytes are a value (the trait's promise).
        unsafe { std::mem::zeroed() }
    }

    /// Its bytes.
    fn bytes(&self) -> &[u8] {
        // SAFETY: a value has no padding (the trait's promise), so all its bytes are initialised.
        unsafe { slice::from_raw_parts((&raw const *self).cast(), size_of::<Self>()) }
    }

    /// Its bytes, to be filled.
    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; and any bytes that are written make a value.
        unsafe { slice::from_raw_parts_mut((&raw mut *self).cast(), size_of::<Self>()) }
    }
}

/// Each type with its size, which is the sum of its fields' sizes: there is no padding.
macro_rules! plain {
    ($($type:ty = $size:literal;)*) => {
        $(
            const _: () = assert!(size_of::<$type>() == $size);
            // SAFETY: only integers, arrays of them and raw pointers, and the sizes of all fields add up to
            // the size of the whole.
            unsafe impl Plain for $type {}
        )*
    };
}

plain! {
    u8 = 1;
    u16 = 2;
    u32 = 4;
    u64 = 8;
    u128 = 16;
    kvm_clock_data = 48;
    kvm_cpuid_entry2 = 40;
    kvm_debug_exit_arch = 32;
    kvm_debugregs = 128;
    kvm_dirty_log = 16;
    kvm_enable_cap = 104;
    kvm_fpu = 416;
    kvm_guest_debug = 72;
    kvm_ioeventfd = 64;
    kvm_irqfd = 32;
    kvm_mp_state = 4;
    kvm_msr_entry = 16;
    kvm_msi = 32;
    kvm_pic_state = 16;
    kvm_pit_channel_state = 24;
    kvm_pit_config = 64;
    kvm_regs = 144;
    kvm_sregs = 312;
    kvm_sregs2 = 320;
    kvm_translation = 24;
    kvm_userspace_memory_region = 32;
    kvm_userspace_memory_region2 = 160;
    kvm_vcpu_events = 64;
    kvm_xcrs = 392;
}

// SAFETY: an array of plain values has no padding between them.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}
