//! Floating-point instructions, each run on the host with the guest's MXCSR.
//!
//! The host's own unit gives every bit right: rounding, flags, denormals, NaN payloads, estimates. The
//! MXCSR that comes in masks all exceptions ([`super::float`] sees to that), so nothing here can trap.
//! What needs SSE3 or SSE4.1 is refused by [`super::float::lookup`] on a host without it.
//!
//! UNSAFETY: inline assembly. Each block swaps MXCSR, runs one instruction on values that were copied
//! in, and puts MXCSR back. It touches no memory but the locals whose addresses it is given.
#![expect(unsafe_code, reason = "runs floating-point instructions on the host")]

use core::arch::asm;

/// MXCSR: every exception masked.
pub(super) const ALL_MASKED: u32 = 0x1f80;

/// Destination from MXCSR, destination and source.
pub(super) type HostOp = fn(&mut u32, u128, u128) -> u128;

macro_rules! register_ops {
    ($($name:ident)*) => {$(
        pub(super) fn $name(mxcsr: &mut u32, mut d: u128, s: u128) -> u128 {
            debug_assert!(*mxcsr & ALL_MASKED == ALL_MASKED, "a trap would hit the host");
            let mut host = 0_u32;
            // SAFETY: the pointers are to this function's own locals and its caller's `mxcsr`, 16 or 4
            // bytes each; MXCSR is put back; masked exceptions do not trap.
            unsafe {
                asm!(
                    "movdqu {x}, [{d}]",
                    "movdqu {y}, [{s}]",
                    "stmxcsr [{host}]",
                    "ldmxcsr [{guest}]",
                    concat!(stringify!($name), " {x}, {y}"),
                    "stmxcsr [{guest}]",
                    "ldmxcsr [{host}]",
                    "movdqu [{d}], {x}",
                    d = in(reg) &raw mut d,
                    s = in(reg) &raw const s,
                    host = in(reg) &raw mut host,
                    guest = in(reg) mxcsr,
                    x = out(xmm_reg) _,
                    y = out(xmm_reg) _,
                    options(nostack, preserves_flags),
                );
            }
            d
        }
    )*};
}

register_ops! {
    addps addpd addss addsd subps subpd subss subsd
    mulps mulpd mulss mulsd divps divpd divss divsd
    minps minpd minss minsd maxps maxpd maxss maxsd
    sqrtps sqrtpd sqrtss sqrtsd rsqrtps rsqrtss rcpps rcpss
    haddps haddpd hsubps hsubpd addsubps addsubpd
    cvtps2pd cvtpd2ps cvtss2sd cvtsd2ss
    cvtdq2ps cvtdq2pd cvtps2dq cvtpd2dq cvttps2dq cvttpd2dq
}

macro_rules! immediate_ops {
    ($($name:ident)*) => {$(
        pub(super) fn $name<const IMM: u8>(mxcsr: &mut u32, mut d: u128, s: u128) -> u128 {
            debug_assert!(*mxcsr & ALL_MASKED == ALL_MASKED, "a trap would hit the host");
            let mut host = 0_u32;
            // SAFETY: as for the instructions without an immediate.
            unsafe {
                asm!(
                    "movdqu {x}, [{d}]",
                    "movdqu {y}, [{s}]",
                    "stmxcsr [{host}]",
                    "ldmxcsr [{guest}]",
                    concat!(stringify!($name), " {x}, {y}, {imm}"),
                    "stmxcsr [{guest}]",
                    "ldmxcsr [{host}]",
                    "movdqu [{d}], {x}",
                    d = in(reg) &raw mut d,
                    s = in(reg) &raw const s,
                    host = in(reg) &raw mut host,
                    guest = in(reg) mxcsr,
                    x = out(xmm_reg) _,
                    y = out(xmm_reg) _,
                    imm = const IMM,
                    options(nostack, preserves_flags),
                );
            }
            d
        }
    )*};
}

immediate_ops! { cmpps cmppd cmpss cmpsd roundps roundpd roundss roundsd dpps dppd }

macro_rules! from_general {
    ($($name:ident($mnemonic:literal, $width:literal))*) => {$(
        pub(super) fn $name(mxcsr: &mut u32, mut d: u128, s: u64) -> u128 {
            debug_assert!(*mxcsr & ALL_MASKED == ALL_MASKED, "a trap would hit the host");
            let mut host = 0_u32;
            // SAFETY: as for the instructions between XMM registers.
            unsafe {
                asm!(
                    "movdqu {x}, [{d}]",
                    "stmxcsr [{host}]",
                    "ldmxcsr [{guest}]",
                    concat!($mnemonic, " {x}, {s:", $width, "}"),
                    "stmxcsr [{guest}]",
                    "ldmxcsr [{host}]",
                    "movdqu [{d}], {x}",
                    d = in(reg) &raw mut d,
                    s = in(reg) s,
                    host = in(reg) &raw mut host,
                    guest = in(reg) mxcsr,
                    x = out(xmm_reg) _,
                    options(nostack, preserves_flags),
                );
            }
            d
        }
    )*};
}

from_general! {
    cvtsi2ss_32("cvtsi2ss", "e") cvtsi2ss_64("cvtsi2ss", "r")
    cvtsi2sd_32("cvtsi2sd", "e") cvtsi2sd_64("cvtsi2sd", "r")
}

macro_rules! to_general {
    ($($name:ident($mnemonic:literal, $width:literal))*) => {$(
        pub(super) fn $name(mxcsr: &mut u32, s: u128) -> u64 {
            debug_assert!(*mxcsr & ALL_MASKED == ALL_MASKED, "a trap would hit the host");
            let mut host = 0_u32;
            let result: u64;
            // SAFETY: as for the instructions between XMM registers.
            unsafe {
                asm!(
                    "movdqu {y}, [{s}]",
                    "stmxcsr [{host}]",
                    "ldmxcsr [{guest}]",
                    concat!($mnemonic, " {result:", $width, "}, {y}"),
                    "stmxcsr [{guest}]",
                    "ldmxcsr [{host}]",
                    s = in(reg) &raw const s,
                    host = in(reg) &raw mut host,
                    guest = in(reg) mxcsr,
                    result = out(reg) result,
                    y = out(xmm_reg) _,
                    options(nostack, preserves_flags),
                );
            }
            result
        }
    )*};
}

to_general! {
    cvtss2si_32("cvtss2si", "e") cvtss2si_64("cvtss2si", "r")
    cvtsd2si_32("cvtsd2si", "e") cvtsd2si_64("cvtsd2si", "r")
    cvttss2si_32("cvttss2si", "e") cvttss2si_64("cvttss2si", "r")
    cvttsd2si_32("cvttsd2si", "e") cvttsd2si_64("cvttsd2si", "r")
}

macro_rules! comparisons {
    ($($name:ident)*) => {$(
        /// ZF, PF and CF, where RFLAGS has them.
        pub(super) fn $name(mxcsr: &mut u32, d: u128, s: u128) -> u64 {
            debug_assert!(*mxcsr & ALL_MASKED == ALL_MASKED, "a trap would hit the host");
            let mut host = 0_u32;
            let flags: u64;
            // SAFETY: as for the instructions between XMM registers. LAHF writes AH only.
            unsafe {
                asm!(
                    "movdqu {x}, [{d}]",
                    "movdqu {y}, [{s}]",
                    "stmxcsr [{host}]",
                    "ldmxcsr [{guest}]",
                    concat!(stringify!($name), " {x}, {y}"),
                    "lahf",
                    "stmxcsr [{guest}]",
                    "ldmxcsr [{host}]",
                    d = in(reg) &raw const d,
                    s = in(reg) &raw const s,
                    host = in(reg) &raw mut host,
                    guest = in(reg) mxcsr,
                    x = out(xmm_reg) _,
                    y = out(xmm_reg) _,
                    out("rax") flags,
                    options(nostack),
                );
            }
            (flags >> 8) & 0x45
        }
    )*};
}

comparisons! { comiss comisd ucomiss ucomisd }
