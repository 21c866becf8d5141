//! Floating point: which host instruction a guest instruction is, and what an exception does.
//!
//! A function gets MXCSR with every exception masked and returns the result that masked exceptions give;
//! [`evaluate`] decides from the flags it raised whether the guest gets #XM instead. One bit is not exact:
//! MXCSR.PE after an unmasked overflow or underflow is that of the masked result.

use iced_x86::Code;
use std::arch::is_x86_feature_detected;

use super::host::{self, ALL_MASKED, HostOp};

/// Destination from MXCSR, destination, source and immediate.
pub(crate) type Float = fn(&mut u32, u128, u128, u8) -> u128;

/// ZF, PF and CF from MXCSR, destination and source.
pub(crate) type Comparison = fn(&mut u32, u128, u128) -> u64;

/// #XM: the destination stays as it was, and this is the new MXCSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unmasked {
    pub mxcsr: u32,
}

const FLAGS: u32 = 0x3f;
const BEFORE_COMPUTING: u32 = 0x07; // invalid, denormal, divide by zero
const UNDERFLOW: u32 = 0x10;
const PRECISION: u32 = 0x20;
const ROUNDING: u32 = 0x6000;
const FLUSH_TO_ZERO: u32 = 0x8000;

/// Runs `f` under the guest's `mxcsr` and leaves the flags there; or says that it raises #XM.
pub(crate) fn evaluate<R>(mxcsr: u32, f: impl Fn(&mut u32) -> R) -> Result<(R, u32), Unmasked> {
    let mut state = mxcsr;
    if mxcsr & ALL_MASKED == ALL_MASKED {
        let result = f(&mut state);
        return Ok((result, state));
    }
    let unmasked = !(mxcsr >> 7) & FLAGS;
    // Flushing to zero is the masked answer to underflow.
    let ignored = if unmasked & UNDERFLOW == 0 {
        FLAGS
    } else {
        FLAGS | FLUSH_TO_ZERO
    };
    state = mxcsr & !ignored | ALL_MASKED;
    let result = f(&mut state);
    let mut raised = state & FLAGS;
    if raised & unmasked & BEFORE_COMPUTING != 0 {
        raised &= BEFORE_COMPUTING;
    } else if unmasked & UNDERFLOW != 0 {
        // Unmasked, a tiny result counts even where it is exact; flushing detects just that.
        state = mxcsr & !FLAGS | ALL_MASKED | FLUSH_TO_ZERO;
        f(&mut state);
        raised |= state & UNDERFLOW;
    }
    let mxcsr = mxcsr | raised;
    if raised & unmasked == 0 {
        Ok((result, mxcsr))
    } else {
        Err(Unmasked { mxcsr })
    }
}

/// The function of `code`, unless this host cannot run it.
pub(super) fn lookup(code: Code) -> Option<Float> {
    arithmetic(code)
        .or_else(|| conversion(code))
        .or_else(|| sse3(code).filter(|_| is_x86_feature_detected!("sse3")))
        .or_else(|| sse41(code).filter(|_| is_x86_feature_detected!("sse4.1")))
}

/// Conversions between MMX registers and floats: of the low half, with zeros above that raise nothing.
pub(super) fn lookup_mmx(code: Code) -> Option<Float> {
    use Code::*;
    const LOW: u128 = u64::MAX as u128;
    let function: Float = match code {
        Cvtpi2ps_xmm_mmm64 => |m, d, s, _| d & !LOW | host::cvtdq2ps(m, 0, s & LOW) & LOW,
        Cvtpi2pd_xmm_mmm64 => |m, d, s, _| host::cvtdq2pd(m, d, s),
        Cvtps2pi_mm_xmmm64 => |m, _, s, _| host::cvtps2dq(m, 0, s & LOW),
        Cvttps2pi_mm_xmmm64 => |m, _, s, _| host::cvttps2dq(m, 0, s & LOW),
        Cvtpd2pi_mm_xmmm128 => |m, _, s, _| host::cvtpd2dq(m, 0, s),
        Cvttpd2pi_mm_xmmm128 => |m, _, s, _| host::cvttpd2dq(m, 0, s),
        _ => return None,
    };
    Some(function)
}

/// COMISS and relatives.
pub(super) fn lookup_comparison(code: Code) -> Option<Comparison> {
    let comparison: Comparison = match code {
        Code::Comiss_xmm_xmmm32 => host::comiss,
        Code::Comisd_xmm_xmmm64 => host::comisd,
        Code::Ucomiss_xmm_xmmm32 => host::ucomiss,
        Code::Ucomisd_xmm_xmmm64 => host::ucomisd,
        _ => return None,
    };
    Some(comparison)
}

fn arithmetic(code: Code) -> Option<Float> {
    use Code::*;
    let function: Float = match code {
        Addps_xmm_xmmm128 => |m, d, s, _| host::addps(m, d, s),
        Addpd_xmm_xmmm128 => |m, d, s, _| host::addpd(m, d, s),
        Addss_xmm_xmmm32 => |m, d, s, _| host::addss(m, d, s),
        Addsd_xmm_xmmm64 => |m, d, s, _| host::addsd(m, d, s),
        Subps_xmm_xmmm128 => |m, d, s, _| host::subps(m, d, s),
        Subpd_xmm_xmmm128 => |m, d, s, _| host::subpd(m, d, s),
        Subss_xmm_xmmm32 => |m, d, s, _| host::subss(m, d, s),
        Subsd_xmm_xmmm64 => |m, d, s, _| host::subsd(m, d, s),
        Mulps_xmm_xmmm128 => |m, d, s, _| host::mulps(m, d, s),
        Mulpd_xmm_xmmm128 => |m, d, s, _| host::mulpd(m, d, s),
        Mulss_xmm_xmmm32 => |m, d, s, _| host::mulss(m, d, s),
        Mulsd_xmm_xmmm64 => |m, d, s, _| host::mulsd(m, d, s),
        Divps_xmm_xmmm128 => |m, d, s, _| host::divps(m, d, s),
        Divpd_xmm_xmmm128 => |m, d, s, _| host::divpd(m, d, s),
        Divss_xmm_xmmm32 => |m, d, s, _| host::divss(m, d, s),
        Divsd_xmm_xmmm64 => |m, d, s, _| host::divsd(m, d, s),
        Minps_xmm_xmmm128 => |m, d, s, _| host::minps(m, d, s),
        Minpd_xmm_xmmm128 => |m, d, s, _| host::minpd(m, d, s),
        Minss_xmm_xmmm32 => |m, d, s, _| host::minss(m, d, s),
        Minsd_xmm_xmmm64 => |m, d, s, _| host::minsd(m, d, s),
        Maxps_xmm_xmmm128 => |m, d, s, _| host::maxps(m, d, s),
        Maxpd_xmm_xmmm128 => |m, d, s, _| host::maxpd(m, d, s),
        Maxss_xmm_xmmm32 => |m, d, s, _| host::maxss(m, d, s),
        Maxsd_xmm_xmmm64 => |m, d, s, _| host::maxsd(m, d, s),
        Sqrtps_xmm_xmmm128 => |m, d, s, _| host::sqrtps(m, d, s),
        Sqrtpd_xmm_xmmm128 => |m, d, s, _| host::sqrtpd(m, d, s),
        Sqrtss_xmm_xmmm32 => |m, d, s, _| host::sqrtss(m, d, s),
        Sqrtsd_xmm_xmmm64 => |m, d, s, _| host::sqrtsd(m, d, s),
        Rsqrtps_xmm_xmmm128 => |m, d, s, _| host::rsqrtps(m, d, s),
        Rsqrtss_xmm_xmmm32 => |m, d, s, _| host::rsqrtss(m, d, s),
        Rcpps_xmm_xmmm128 => |m, d, s, _| host::rcpps(m, d, s),
        Rcpss_xmm_xmmm32 => |m, d, s, _| host::rcpss(m, d, s),
        Cmpps_xmm_xmmm128_imm8 => |m, d, s, imm| CMPPS[usize::from(imm & 7)](m, d, s),
        Cmppd_xmm_xmmm128_imm8 => |m, d, s, imm| CMPPD[usize::from(imm & 7)](m, d, s),
        Cmpss_xmm_xmmm32_imm8 => |m, d, s, imm| CMPSS[usize::from(imm & 7)](m, d, s),
        Cmpsd_xmm_xmmm64_imm8 => |m, d, s, imm| CMPSD[usize::from(imm & 7)](m, d, s),
        _ => return None,
    };
    Some(function)
}

macro_rules! predicates {
    ($name:ident) => {
        [
            host::$name::<0>,
            host::$name::<1>,
            host::$name::<2>,
            host::$name::<3>,
            host::$name::<4>,
            host::$name::<5>,
            host::$name::<6>,
            host::$name::<7>,
        ]
    };
}

static CMPPS: [HostOp; 8] = predicates!(cmpps);
static CMPPD: [HostOp; 8] = predicates!(cmppd);
static CMPSS: [HostOp; 8] = predicates!(cmpss);
static CMPSD: [HostOp; 8] = predicates!(cmpsd);

fn conversion(code: Code) -> Option<Float> {
    use Code::*;
    let function: Float = match code {
        Cvtps2pd_xmm_xmmm64 => |m, d, s, _| host::cvtps2pd(m, d, s),
        Cvtpd2ps_xmm_xmmm128 => |m, d, s, _| host::cvtpd2ps(m, d, s),
        Cvtss2sd_xmm_xmmm32 => |m, d, s, _| host::cvtss2sd(m, d, s),
        Cvtsd2ss_xmm_xmmm64 => |m, d, s, _| host::cvtsd2ss(m, d, s),
        Cvtdq2ps_xmm_xmmm128 => |m, d, s, _| host::cvtdq2ps(m, d, s),
        Cvtdq2pd_xmm_xmmm64 => |m, d, s, _| host::cvtdq2pd(m, d, s),
        Cvtps2dq_xmm_xmmm128 => |m, d, s, _| host::cvtps2dq(m, d, s),
        Cvtpd2dq_xmm_xmmm128 => |m, d, s, _| host::cvtpd2dq(m, d, s),
        Cvttps2dq_xmm_xmmm128 => |m, d, s, _| host::cvttps2dq(m, d, s),
        Cvttpd2dq_xmm_xmmm128 => |m, d, s, _| host::cvttpd2dq(m, d, s),
        Cvtsi2ss_xmm_rm32 => |m, d, s, _| host::cvtsi2ss_32(m, d, s as u64),
        Cvtsi2ss_xmm_rm64 => |m, d, s, _| host::cvtsi2ss_64(m, d, s as u64),
        Cvtsi2sd_xmm_rm32 => |m, d, s, _| host::cvtsi2sd_32(m, d, s as u64),
        Cvtsi2sd_xmm_rm64 => |m, d, s, _| host::cvtsi2sd_64(m, d, s as u64),
        Cvtss2si_r32_xmmm32 => |m, _, s, _| host::cvtss2si_32(m, s).into(),
        Cvtss2si_r64_xmmm32 => |m, _, s, _| host::cvtss2si_64(m, s).into(),
        Cvtsd2si_r32_xmmm64 => |m, _, s, _| host::cvtsd2si_32(m, s).into(),
        Cvtsd2si_r64_xmmm64 => |m, _, s, _| host::cvtsd2si_64(m, s).into(),
        Cvttss2si_r32_xmmm32 => |m, _, s, _| host::cvttss2si_32(m, s).into(),
        Cvttss2si_r64_xmmm32 => |m, _, s, _| host::cvttss2si_64(m, s).into(),
        Cvttsd2si_r32_xmmm64 => |m, _, s, _| host::cvttsd2si_32(m, s).into(),
        Cvttsd2si_r64_xmmm64 => |m, _, s, _| host::cvttsd2si_64(m, s).into(),
        _ => return None,
    };
    Some(function)
}

fn sse3(code: Code) -> Option<Float> {
    use Code::*;
    let function: Float = match code {
        Haddps_xmm_xmmm128 => |m, d, s, _| host::haddps(m, d, s),
        Haddpd_xmm_xmmm128 => |m, d, s, _| host::haddpd(m, d, s),
        Hsubps_xmm_xmmm128 => |m, d, s, _| host::hsubps(m, d, s),
        Hsubpd_xmm_xmmm128 => |m, d, s, _| host::hsubpd(m, d, s),
        Addsubps_xmm_xmmm128 => |m, d, s, _| host::addsubps(m, d, s),
        Addsubpd_xmm_xmmm128 => |m, d, s, _| host::addsubpd(m, d, s),
        _ => return None,
    };
    Some(function)
}

fn sse41(code: Code) -> Option<Float> {
    use Code::*;
    let function: Float = match code {
        Roundps_xmm_xmmm128_imm8 => |m, d, s, imm| round(host::roundps::<4>, m, d, s, imm),
        Roundpd_xmm_xmmm128_imm8 => |m, d, s, imm| round(host::roundpd::<4>, m, d, s, imm),
        Roundss_xmm_xmmm32_imm8 => |m, d, s, imm| round(host::roundss::<4>, m, d, s, imm),
        Roundsd_xmm_xmmm64_imm8 => |m, d, s, imm| round(host::roundsd::<4>, m, d, s, imm),
        Dpps_xmm_xmmm128_imm8 => |m, d, s, imm| {
            let factors = select::<32>(imm >> 4);
            host::dpps::<0xff>(m, d & factors, s & factors) & select::<32>(imm)
        },
        Dppd_xmm_xmmm128_imm8 => |m, d, s, imm| {
            let factors = select::<64>(imm >> 4);
            host::dppd::<0xff>(m, d & factors, s & factors) & select::<64>(imm)
        },
        _ => return None,
    };
    Some(function)
}

/// ROUNDxx: `f` rounds as MXCSR says; the immediate may say otherwise, and may silence precision.
fn round(f: HostOp, mxcsr: &mut u32, d: u128, s: u128, imm: u8) -> u128 {
    let before = *mxcsr;
    if imm & 4 == 0 {
        *mxcsr = before & !ROUNDING | u32::from(imm & 3) << 13;
    }
    let result = f(mxcsr, d, s);
    let silent = if imm & 8 == 0 { 0 } else { PRECISION };
    *mxcsr = before | *mxcsr & FLAGS & !silent;
    result
}

/// Ones in the lanes whose bit is set in `lanes`.
fn select<const BITS: u32>(lanes: u8) -> u128 {
    (0..128 / BITS)
        .filter(|lane| lanes >> lane & 1 != 0)
        .fold(0, |mask, lane| mask | ((1 << BITS) - 1) << (lane * BITS))
}
