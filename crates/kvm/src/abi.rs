//! Numbers and layouts of the kernel interface, checked when the crate is compiled.
//!
//! The layouts are those of `kvm-bindings`; nothing is defined a second time here. Only the requests are
//! computed, because the bindings have none.

use std::mem::{offset_of, size_of};

use kvm_bindings::{
    KVM_CAP_X86_MSR_FILTER, KVM_CAP_X86_USER_SPACE_MSR, KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR,
    KVM_MSR_EXIT_REASON_VALID_MASK, KVM_MSR_FILTER_MAX_BITMAP_SIZE, KVM_MSR_FILTER_MAX_RANGES,
    KVM_MSR_FILTER_RANGE_VALID_MASK, KVM_MSR_FILTER_VALID_MASK, kvm_enable_cap, kvm_msr_filter,
    kvm_msr_filter_range, kvm_msrs, kvm_regs, kvm_run,
    kvm_run__bindgen_ty_1__bindgen_ty_23 as kvm_run_msr, kvm_signal_mask,
};
use msrgate_core::{ExitReasons, MAX_BITMAP_BYTES, MAX_RANGES};

/// The ioctl type byte of KVM (`KVMIO`).
const KVMIO: u32 = 0xae;
/// Bytes of the filter in the layout that a 32-bit caller has (`struct kvm_msr_filter_compat`).
const COMPAT_FILTER_BYTES: usize = 260;

/// The direction bits of a request, as `_IOC` places them.
#[derive(Clone, Copy)]
enum Direction {
    None = 0,
    Write = 1,
    Read = 2,
    ReadWrite = 3,
}

/// A request number (`_IOC`).
#[expect(
    clippy::cast_possible_truncation,
    reason = "the size field has 14 bits, and the sizes here are far smaller"
)]
const fn request(direction: Direction, number: u32, size_bytes: usize) -> u32 {
    (direction as u32) << 30 | (size_bytes as u32) << 16 | KVMIO << 8 | number
}

/// `KVM_CHECK_EXTENSION`.
pub const KVM_CHECK_EXTENSION: u32 = request(Direction::None, 0x03, 0);
/// `KVM_CREATE_VM`.
pub const KVM_CREATE_VM: u32 = request(Direction::None, 0x01, 0);
/// `KVM_CREATE_VCPU`.
pub const KVM_CREATE_VCPU: u32 = request(Direction::None, 0x41, 0);
/// `KVM_GET_VCPU_MMAP_SIZE`.
pub const KVM_GET_VCPU_MMAP_SIZE: u32 = request(Direction::None, 0x04, 0);
/// `KVM_RUN`.
pub const KVM_RUN: u32 = request(Direction::None, 0x80, 0);
/// `KVM_GET_REGS`.
pub const KVM_GET_REGS: u32 = request(Direction::Read, 0x81, size_of::<kvm_regs>());
/// `KVM_GET_MSRS`.
pub const KVM_GET_MSRS: u32 = request(Direction::ReadWrite, 0x88, size_of::<kvm_msrs>());
/// `KVM_SET_MSRS`.
pub const KVM_SET_MSRS: u32 = request(Direction::Write, 0x89, size_of::<kvm_msrs>());
/// `KVM_SET_SIGNAL_MASK`.
pub const KVM_SET_SIGNAL_MASK: u32 = request(Direction::Write, 0x8b, size_of::<kvm_signal_mask>());
/// `KVM_ENABLE_CAP`.
pub const KVM_ENABLE_CAP: u32 = request(Direction::Write, 0xa3, size_of::<kvm_enable_cap>());
/// `KVM_X86_SET_MSR_FILTER`.
pub const KVM_X86_SET_MSR_FILTER: u32 =
    request(Direction::Write, 0xc6, size_of::<kvm_msr_filter>());
/// `KVM_X86_SET_MSR_FILTER` as a 32-bit caller spells it; ENOTTY from a 64-bit task.
pub const KVM_X86_SET_MSR_FILTER_COMPAT: u32 = request(Direction::Write, 0xc6, COMPAT_FILTER_BYTES);

const _: () = {
    assert!(KVM_CHECK_EXTENSION == 0xae03);
    assert!(KVM_CREATE_VM == 0xae01);
    assert!(KVM_CREATE_VCPU == 0xae41);
    assert!(KVM_GET_VCPU_MMAP_SIZE == 0xae04);
    assert!(KVM_RUN == 0xae80);
    assert!(KVM_GET_REGS == 0x8090_ae81);
    assert!(KVM_SET_SIGNAL_MASK == 0x4004_ae8b);
    assert!(KVM_GET_MSRS == 0xc008_ae88);
    assert!(KVM_SET_MSRS == 0x4008_ae89);
    assert!(KVM_ENABLE_CAP == 0x4068_aea3);
    assert!(KVM_X86_SET_MSR_FILTER == 0x4188_aec6);
    assert!(KVM_X86_SET_MSR_FILTER_COMPAT == 0x4104_aec6);
};

const _: () = {
    assert!(KVM_CAP_X86_USER_SPACE_MSR == 188);
    assert!(KVM_CAP_X86_MSR_FILTER == 189);
    assert!(KVM_EXIT_X86_RDMSR == 29);
    assert!(KVM_EXIT_X86_WRMSR == 30);
    assert!(KVM_MSR_EXIT_REASON_VALID_MASK == ExitReasons::ALL.mask());
    assert!(KVM_MSR_FILTER_RANGE_VALID_MASK == 3);
    assert!(KVM_MSR_FILTER_VALID_MASK == 1);
    assert!(KVM_MSR_FILTER_MAX_RANGES as usize == MAX_RANGES);
    assert!(KVM_MSR_FILTER_MAX_BITMAP_SIZE == MAX_BITMAP_BYTES);
};

const _: () = {
    assert!(size_of::<kvm_msr_filter_range>() == 24);
    assert!(offset_of!(kvm_msr_filter_range, flags) == 0);
    assert!(offset_of!(kvm_msr_filter_range, nmsrs) == 4);
    assert!(offset_of!(kvm_msr_filter_range, base) == 8);
    assert!(offset_of!(kvm_msr_filter_range, bitmap) == 16);
    assert!(size_of::<kvm_msr_filter>() == 392);
    assert!(offset_of!(kvm_msr_filter, flags) == 0);
    assert!(offset_of!(kvm_msr_filter, ranges) == 8);
};

const _: () = {
    assert!(size_of::<kvm_enable_cap>() == 104);
    assert!(offset_of!(kvm_enable_cap, flags) == 4);
    assert!(offset_of!(kvm_enable_cap, args) == 8);
    assert!(offset_of!(kvm_enable_cap, pad) == 40);
};

const _: () = {
    assert!(offset_of!(kvm_run, immediate_exit) == 1);
    assert!(offset_of!(kvm_run, exit_reason) == 8);
    assert!(offset_of!(kvm_run, cr8) == 16);
    assert!(offset_of!(kvm_run, apic_base) == 24);
    assert!(offset_of!(kvm_run, __bindgen_anon_1) == 32);
    assert!(offset_of!(kvm_run, kvm_valid_regs) == 288);
    assert!(offset_of!(kvm_run, kvm_dirty_regs) == 296);
    assert!(offset_of!(kvm_run, s) == 304);
    assert!(size_of::<kvm_run>() == 2352);
    assert!(size_of::<kvm_run_msr>() == 24);
    assert!(offset_of!(kvm_run_msr, error) == 0);
    assert!(offset_of!(kvm_run_msr, reason) == 8);
    assert!(offset_of!(kvm_run_msr, index) == 12);
    assert!(offset_of!(kvm_run_msr, data) == 16);
};
