//! What moves bits without computing: moves, shuffles, packs, blends, inserts and extracts.
//!
//! A value in a general register or in memory arrives zero-extended, and a result leaves through as many
//! low bits as the destination holds.

use iced_x86::Code;

use super::Pure;
use super::lanes::{Lane, build, map, signs};

const LOW_32: u128 = 0xffff_ffff;
const LOW_64: u128 = 0xffff_ffff_ffff_ffff;

/// The function of `code` whose source and destination are registers.
pub(super) fn lookup(code: Code) -> Option<Pure> {
    moves(code)
        .or_else(|| shuffles(code))
        .or_else(|| single_lanes(code))
}

/// The function of `code` where the source is memory and that makes a difference.
pub(super) fn lookup_load(code: Code) -> Option<Pure> {
    use Code::*;
    let function: Pure = match code {
        Movlps_xmm_m64 | Movlpd_xmm_m64 => |d, s, _| d & !LOW_64 | s,
        Movhps_xmm_m64 | Movhpd_xmm_m64 => |d, s, _| d & LOW_64 | s << 64,
        Insertps_xmm_xmmm32_imm8 => |d, s, imm| insert_single(d, s, imm & 0x3f),
        _ => return None,
    };
    Some(function)
}

/// Whether `code` only copies its source.
pub(super) fn is_move(code: Code, loads: bool) -> bool {
    use Code::*;
    match code {
        Movss_xmm_xmmm32 | Movsd_xmm_xmmm64 => loads,
        Movups_xmm_xmmm128 | Movupd_xmm_xmmm128 | Movups_xmmm128_xmm | Movupd_xmmm128_xmm
        | Movaps_xmm_xmmm128 | Movapd_xmm_xmmm128 | Movaps_xmmm128_xmm | Movapd_xmmm128_xmm
        | Movdqa_xmm_xmmm128 | Movdqu_xmm_xmmm128 | Movdqa_xmmm128_xmm | Movdqu_xmmm128_xmm
        | Movntps_m128_xmm | Movntpd_m128_xmm | Movntdq_m128_xmm | Movntdqa_xmm_m128
        | Lddqu_xmm_m128 | Movlps_m64_xmm | Movlpd_m64_xmm | Movd_xmm_rm32 | Movq_xmm_rm64
        | Movd_rm32_xmm | Movq_rm64_xmm => true,
        _ => false,
    }
}

/// Lanes of `s` where `selector`'s lane is negative, else of `d`.
pub(super) fn blend_by_sign<T: Lane<N> + Into<i64>, const N: usize>(
    d: u128,
    s: u128,
    selector: u128,
) -> u128 {
    let (d, s, selector) = (T::split(d), T::split(s), T::split(selector));
    build(|lane| if selector[lane].into() < 0 { s } else { d }[lane])
}

fn moves(code: Code) -> Option<Pure> {
    use Code::*;
    let function: Pure = match code {
        Movq_xmm_xmmm64 | Movq_xmmm64_xmm => |_, s, _| s & LOW_64,
        Movss_xmm_xmmm32 | Movss_xmmm32_xmm => |d, s, _| d & !LOW_32 | s & LOW_32,
        Movsd_xmm_xmmm64 | Movsd_xmmm64_xmm => |d, s, _| d & !LOW_64 | s & LOW_64,
        Movhps_m64_xmm | Movhpd_m64_xmm => |_, s, _| s >> 64,
        Movhlps_xmm_xmm => |d, s, _| d & !LOW_64 | s >> 64,
        Movlhps_xmm_xmm => |d, s, _| d & LOW_64 | s << 64,
        Movsldup_xmm_xmmm128 => |_, s, _| pick::<u32, 4>(s, |lane| lane & !1),
        Movshdup_xmm_xmmm128 => |_, s, _| pick::<u32, 4>(s, |lane| lane | 1),
        Movddup_xmm_xmmm64 => |_, s, _| s & LOW_64 | s << 64,
        Movmskps_r32_xmm | Movmskps_r64_xmm => |_, s, _| signs::<i32, 4>(s),
        Movmskpd_r32_xmm | Movmskpd_r64_xmm => |_, s, _| signs::<i64, 2>(s),
        Pmovmskb_r32_xmm | Pmovmskb_r64_xmm => |_, s, _| signs::<i8, 16>(s),
        _ => return None,
    };
    Some(function)
}

fn shuffles(code: Code) -> Option<Pure> {
    use Code::*;
    let function: Pure = match code {
        Punpcklbw_xmm_xmmm128 => |d, s, _| interleave::<u8, 16>(d, s, 0),
        Punpcklwd_xmm_xmmm128 => |d, s, _| interleave::<u16, 8>(d, s, 0),
        Punpckldq_xmm_xmmm128 | Unpcklps_xmm_xmmm128 => |d, s, _| interleave::<u32, 4>(d, s, 0),
        Punpcklqdq_xmm_xmmm128 | Unpcklpd_xmm_xmmm128 => |d, s, _| d & LOW_64 | s << 64,
        Punpckhbw_xmm_xmmm128 => |d, s, _| interleave::<u8, 16>(d, s, 8),
        Punpckhwd_xmm_xmmm128 => |d, s, _| interleave::<u16, 8>(d, s, 4),
        Punpckhdq_xmm_xmmm128 | Unpckhps_xmm_xmmm128 => |d, s, _| interleave::<u32, 4>(d, s, 2),
        Punpckhqdq_xmm_xmmm128 | Unpckhpd_xmm_xmmm128 => |d, s, _| d >> 64 | s & !LOW_64,

        Packsswb_xmm_xmmm128 => {
            |d, s, _| pack::<i16, 8, i8, 16>(d, s, |lane| clamp(lane, i8::MIN, i8::MAX))
        }
        Packuswb_xmm_xmmm128 => {
            |d, s, _| pack::<i16, 8, u8, 16>(d, s, |lane| clamp(lane, u8::MIN, u8::MAX))
        }
        Packssdw_xmm_xmmm128 => {
            |d, s, _| pack::<i32, 4, i16, 8>(d, s, |lane| clamp(lane, i16::MIN, i16::MAX))
        }
        Packusdw_xmm_xmmm128 => {
            |d, s, _| pack::<i32, 4, u16, 8>(d, s, |lane| clamp(lane, u16::MIN, u16::MAX))
        }

        Pshufd_xmm_xmmm128_imm8 => |_, s, imm| pick::<u32, 4>(s, |lane| quarter(imm, lane)),
        Pshuflw_xmm_xmmm128_imm8 => {
            |_, s, imm| pick::<u16, 8>(s, |lane| if lane < 4 { quarter(imm, lane) } else { lane })
        }
        Pshufhw_xmm_xmmm128_imm8 => |_, s, imm| {
            pick::<u16, 8>(s, |lane| {
                if lane < 4 {
                    lane
                } else {
                    4 + quarter(imm, lane - 4)
                }
            })
        },
        Shufps_xmm_xmmm128_imm8 => |d, s, imm| {
            let (d, s) = (u32::split(d), u32::split(s));
            build(|lane| if lane < 2 { d } else { s }[quarter(imm, lane)])
        },
        Shufpd_xmm_xmmm128_imm8 => |d, s, imm| {
            (d >> (u32::from(imm & 1) * 64)) & LOW_64 | s >> (u32::from(imm >> 1 & 1) * 64) << 64
        },
        Pshufb_xmm_xmmm128 => |d, s, _| shuffle_bytes(d, s),
        Palignr_xmm_xmmm128_imm8 => |d, s, imm| match u32::from(imm) * 8 {
            0 => s,
            bits @ 1..128 => s >> bits | d << (128 - bits),
            bits => d.checked_shr(bits - 128).unwrap_or(0),
        },

        Pmovsxbw_xmm_xmmm64 => |_, s, _| widen::<i8, 16, i16, 8>(s),
        Pmovsxbd_xmm_xmmm32 => |_, s, _| widen::<i8, 16, i32, 4>(s),
        Pmovsxbq_xmm_xmmm16 => |_, s, _| widen::<i8, 16, i64, 2>(s),
        Pmovsxwd_xmm_xmmm64 => |_, s, _| widen::<i16, 8, i32, 4>(s),
        Pmovsxwq_xmm_xmmm32 => |_, s, _| widen::<i16, 8, i64, 2>(s),
        Pmovsxdq_xmm_xmmm64 => |_, s, _| widen::<i32, 4, i64, 2>(s),
        Pmovzxbw_xmm_xmmm64 => |_, s, _| widen::<u8, 16, u16, 8>(s),
        Pmovzxbd_xmm_xmmm32 => |_, s, _| widen::<u8, 16, u32, 4>(s),
        Pmovzxbq_xmm_xmmm16 => |_, s, _| widen::<u8, 16, u64, 2>(s),
        Pmovzxwd_xmm_xmmm64 => |_, s, _| widen::<u16, 8, u32, 4>(s),
        Pmovzxwq_xmm_xmmm32 => |_, s, _| widen::<u16, 8, u64, 2>(s),
        Pmovzxdq_xmm_xmmm64 => |_, s, _| widen::<u32, 4, u64, 2>(s),

        Blendps_xmm_xmmm128_imm8 => |d, s, imm| blend::<u32, 4>(d, s, imm),
        Blendpd_xmm_xmmm128_imm8 => |d, s, imm| blend::<u64, 2>(d, s, imm),
        Pblendw_xmm_xmmm128_imm8 => |d, s, imm| blend::<u16, 8>(d, s, imm),
        _ => return None,
    };
    Some(function)
}

fn single_lanes(code: Code) -> Option<Pure> {
    use Code::*;
    let function: Pure = match code {
        Pinsrb_xmm_r32m8_imm8 | Pinsrb_xmm_r64m8_imm8 => |d, s, imm| insert::<8>(d, s, imm & 15),
        Pinsrw_xmm_r32m16_imm8 | Pinsrw_xmm_r64m16_imm8 => |d, s, imm| insert::<16>(d, s, imm & 7),
        Pinsrd_xmm_rm32_imm8 => |d, s, imm| insert::<32>(d, s, imm & 3),
        Pinsrq_xmm_rm64_imm8 => |d, s, imm| insert::<64>(d, s, imm & 1),
        Insertps_xmm_xmmm32_imm8 => insert_single,
        Pextrb_r32m8_xmm_imm8 | Pextrb_r64m8_xmm_imm8 => |_, s, imm| extract::<8>(s, imm & 15),
        Pextrw_r32_xmm_imm8
        | Pextrw_r64_xmm_imm8
        | Pextrw_r32m16_xmm_imm8
        | Pextrw_r64m16_xmm_imm8 => |_, s, imm| extract::<16>(s, imm & 7),
        Pextrd_rm32_xmm_imm8 | Extractps_rm32_xmm_imm8 | Extractps_r64m32_xmm_imm8 => {
            |_, s, imm| extract::<32>(s, imm & 3)
        }
        Pextrq_rm64_xmm_imm8 => |_, s, imm| extract::<64>(s, imm & 1),
        _ => return None,
    };
    Some(function)
}

/// The two-bit field of an immediate that says where result lane `lane` comes from.
fn quarter(imm: u8, lane: usize) -> usize {
    usize::from(imm >> (2 * lane) & 3)
}

/// Result lane `i` is lane `from(i)` of `s`.
fn pick<T: Lane<N>, const N: usize>(s: u128, from: impl Fn(usize) -> usize) -> u128 {
    let s = T::split(s);
    build(|lane| s[from(lane)])
}

/// Lanes of `d` and `s` in turn, beginning with lane `first` of each.
fn interleave<T: Lane<N>, const N: usize>(d: u128, s: u128, first: usize) -> u128 {
    let (d, s) = (T::split(d), T::split(s));
    build(|lane| if lane % 2 == 0 { &d } else { &s }[first + lane / 2])
}

/// The lanes of `d`, then those of `s`, each made half as wide.
fn pack<T: Lane<N>, const N: usize, U: Lane<M>, const M: usize>(
    d: u128,
    s: u128,
    narrow: impl Fn(T) -> U,
) -> u128 {
    let (d, s) = (T::split(d), T::split(s));
    build(|lane| narrow(if lane < N { d[lane] } else { s[lane - N] }))
}

fn clamp<T: Copy + Ord + From<U>, U: TryFrom<T> + Copy>(lane: T, low: U, high: U) -> U {
    U::try_from(lane).unwrap_or(if lane < low.into() { low } else { high })
}

/// The low lanes of `s`, each made wider.
fn widen<T: Lane<N>, const N: usize, U: Lane<M> + From<T>, const M: usize>(s: u128) -> u128 {
    let s = T::split(s);
    build(|lane| U::from(s[lane]))
}

fn blend<T: Lane<N>, const N: usize>(d: u128, s: u128, imm: u8) -> u128 {
    let (d, s) = (T::split(d), T::split(s));
    build(|lane| if imm >> lane & 1 == 0 { d } else { s }[lane])
}

pub(super) fn insert<const BITS: u32>(d: u128, s: u128, lane: u8) -> u128 {
    let (at, ones) = (u32::from(lane) * BITS, (1 << BITS) - 1);
    d & !(ones << at) | (s & ones) << at
}

pub(super) fn extract<const BITS: u32>(s: u128, lane: u8) -> u128 {
    s >> (u32::from(lane) * BITS) & ((1 << BITS) - 1)
}

/// PSHUFB.
pub(super) fn shuffle_bytes(d: u128, s: u128) -> u128 {
    let d = u8::split(d);
    map(s, |index: u8| {
        if index < 0x80 {
            d[usize::from(index & 15)]
        } else {
            0
        }
    })
}

/// INSERTPS: imm is source lane, destination lane, and a mask of lanes to clear.
fn insert_single(d: u128, s: u128, imm: u8) -> u128 {
    let inserted = insert::<32>(d, extract::<32>(s, imm >> 6), imm >> 4 & 3);
    blend::<u32, 4>(inserted, 0, imm)
}
