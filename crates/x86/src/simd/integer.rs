//! Packed integer arithmetic, logic, comparison and shifts: SSE2 to SSE4.2, one row an instruction.
//!
//! What moves bits about without computing is in `shuffle`.

use iced_x86::Code;

use super::Pure;
use super::lanes::{Lane, build, map, mask, pairs, zip};

/// The function of `code`: new destination from destination, source and immediate.
#[expect(clippy::too_many_lines, reason = "a table")]
pub(super) fn lookup(code: Code) -> Option<Pure> {
    use Code::*;
    let function: Pure = match code {
        Pand_xmm_xmmm128 | Andps_xmm_xmmm128 | Andpd_xmm_xmmm128 => |d, s, _| d & s,
        Pandn_xmm_xmmm128 | Andnps_xmm_xmmm128 | Andnpd_xmm_xmmm128 => |d, s, _| !d & s,
        Por_xmm_xmmm128 | Orps_xmm_xmmm128 | Orpd_xmm_xmmm128 => |d, s, _| d | s,
        Pxor_xmm_xmmm128 | Xorps_xmm_xmmm128 | Xorpd_xmm_xmmm128 => |d, s, _| d ^ s,

        Paddb_xmm_xmmm128 => |d, s, _| zip(d, s, u8::wrapping_add),
        Paddw_xmm_xmmm128 => |d, s, _| zip(d, s, u16::wrapping_add),
        Paddd_xmm_xmmm128 => |d, s, _| zip(d, s, u32::wrapping_add),
        Paddq_xmm_xmmm128 => |d, s, _| zip(d, s, u64::wrapping_add),
        Paddsb_xmm_xmmm128 => |d, s, _| zip(d, s, i8::saturating_add),
        Paddsw_xmm_xmmm128 => |d, s, _| zip(d, s, i16::saturating_add),
        Paddusb_xmm_xmmm128 => |d, s, _| zip(d, s, u8::saturating_add),
        Paddusw_xmm_xmmm128 => |d, s, _| zip(d, s, u16::saturating_add),
        Psubb_xmm_xmmm128 => |d, s, _| zip(d, s, u8::wrapping_sub),
        Psubw_xmm_xmmm128 => |d, s, _| zip(d, s, u16::wrapping_sub),
        Psubd_xmm_xmmm128 => |d, s, _| zip(d, s, u32::wrapping_sub),
        Psubq_xmm_xmmm128 => |d, s, _| zip(d, s, u64::wrapping_sub),
        Psubsb_xmm_xmmm128 => |d, s, _| zip(d, s, i8::saturating_sub),
        Psubsw_xmm_xmmm128 => |d, s, _| zip(d, s, i16::saturating_sub),
        Psubusb_xmm_xmmm128 => |d, s, _| zip(d, s, u8::saturating_sub),
        Psubusw_xmm_xmmm128 => |d, s, _| zip(d, s, u16::saturating_sub),

        Phaddw_xmm_xmmm128 => |d, s, _| pairs(d, s, i16::wrapping_add),
        Phaddd_xmm_xmmm128 => |d, s, _| pairs(d, s, i32::wrapping_add),
        Phaddsw_xmm_xmmm128 => |d, s, _| pairs(d, s, i16::saturating_add),
        Phsubw_xmm_xmmm128 => |d, s, _| pairs(d, s, i16::wrapping_sub),
        Phsubd_xmm_xmmm128 => |d, s, _| pairs(d, s, i32::wrapping_sub),
        Phsubsw_xmm_xmmm128 => |d, s, _| pairs(d, s, i16::saturating_sub),

        Pmullw_xmm_xmmm128 => |d, s, _| zip(d, s, i16::wrapping_mul),
        Pmulld_xmm_xmmm128 => |d, s, _| zip(d, s, i32::wrapping_mul),
        Pmulhw_xmm_xmmm128 => |d, s, _| zip(d, s, |a, b| (product(a, b) >> 16) as i16),
        Pmulhuw_xmm_xmmm128 => |d, s, _| {
            zip(d, s, |a: u16, b: u16| {
                ((u32::from(a) * u32::from(b)) >> 16) as u16
            })
        },
        Pmulhrsw_xmm_xmmm128 => {
            |d, s, _| zip(d, s, |a, b| (((product(a, b) >> 14) + 1) >> 1) as i16)
        }
        Pmuludq_xmm_xmmm128 => |d, s, _| {
            zip(d, s, |a: u64, b: u64| {
                u64::from(a as u32) * u64::from(b as u32)
            })
        },
        Pmuldq_xmm_xmmm128 => |d, s, _| {
            zip(d, s, |a: i64, b: i64| {
                i64::from(a as i32) * i64::from(b as i32)
            })
        },
        Pmaddwd_xmm_xmmm128 => |d, s, _| multiply_add_words(d, s),
        Pmaddubsw_xmm_xmmm128 => |d, s, _| multiply_add_bytes(d, s),

        Pavgb_xmm_xmmm128 => |d, s, _| {
            zip(d, s, |a: u8, b: u8| {
                (u16::from(a) + u16::from(b)).div_ceil(2) as u8
            })
        },
        Pavgw_xmm_xmmm128 => |d, s, _| {
            zip(d, s, |a: u16, b: u16| {
                (u32::from(a) + u32::from(b)).div_ceil(2) as u16
            })
        },
        Psadbw_xmm_xmmm128 => |d, s, _| absolute_differences(d, s),
        Mpsadbw_xmm_xmmm128_imm8 => sliding_differences,
        Pabsb_xmm_xmmm128 => |_, s, _| map(s, i8::wrapping_abs),
        Pabsw_xmm_xmmm128 => |_, s, _| map(s, i16::wrapping_abs),
        Pabsd_xmm_xmmm128 => |_, s, _| map(s, i32::wrapping_abs),
        Psignb_xmm_xmmm128 => |d, s, _| zip(d, s, |a: i8, b: i8| a.wrapping_mul(b.signum())),
        Psignw_xmm_xmmm128 => |d, s, _| zip(d, s, |a: i16, b: i16| a.wrapping_mul(b.signum())),
        Psignd_xmm_xmmm128 => |d, s, _| zip(d, s, |a: i32, b: i32| a.wrapping_mul(b.signum())),

        Pminub_xmm_xmmm128 => |d, s, _| zip(d, s, u8::min),
        Pminuw_xmm_xmmm128 => |d, s, _| zip(d, s, u16::min),
        Pminud_xmm_xmmm128 => |d, s, _| zip(d, s, u32::min),
        Pminsb_xmm_xmmm128 => |d, s, _| zip(d, s, i8::min),
        Pminsw_xmm_xmmm128 => |d, s, _| zip(d, s, i16::min),
        Pminsd_xmm_xmmm128 => |d, s, _| zip(d, s, i32::min),
        Pmaxub_xmm_xmmm128 => |d, s, _| zip(d, s, u8::max),
        Pmaxuw_xmm_xmmm128 => |d, s, _| zip(d, s, u16::max),
        Pmaxud_xmm_xmmm128 => |d, s, _| zip(d, s, u32::max),
        Pmaxsb_xmm_xmmm128 => |d, s, _| zip(d, s, i8::max),
        Pmaxsw_xmm_xmmm128 => |d, s, _| zip(d, s, i16::max),
        Pmaxsd_xmm_xmmm128 => |d, s, _| zip(d, s, i32::max),
        Phminposuw_xmm_xmmm128 => |_, s, _| minimum_position(s),

        Pcmpeqb_xmm_xmmm128 => |d, s, _| mask(d, s, u8::eq),
        Pcmpeqw_xmm_xmmm128 => |d, s, _| mask(d, s, u16::eq),
        Pcmpeqd_xmm_xmmm128 => |d, s, _| mask(d, s, u32::eq),
        Pcmpeqq_xmm_xmmm128 => |d, s, _| mask(d, s, u64::eq),
        Pcmpgtb_xmm_xmmm128 => |d, s, _| mask(d, s, i8::gt),
        Pcmpgtw_xmm_xmmm128 => |d, s, _| mask(d, s, i16::gt),
        Pcmpgtd_xmm_xmmm128 => |d, s, _| mask(d, s, i32::gt),
        Pcmpgtq_xmm_xmmm128 => |d, s, _| mask(d, s, i64::gt),

        Psllw_xmm_xmmm128 => |d, s, _| shift(d, s, u16::checked_shl),
        Pslld_xmm_xmmm128 => |d, s, _| shift(d, s, u32::checked_shl),
        Psllq_xmm_xmmm128 => |d, s, _| shift(d, s, u64::checked_shl),
        Psrlw_xmm_xmmm128 => |d, s, _| shift(d, s, u16::checked_shr),
        Psrld_xmm_xmmm128 => |d, s, _| shift(d, s, u32::checked_shr),
        Psrlq_xmm_xmmm128 => |d, s, _| shift(d, s, u64::checked_shr),
        Psraw_xmm_xmmm128 => |d, s, _| map(d, |lane: i16| lane >> count(s).min(15)),
        Psrad_xmm_xmmm128 => |d, s, _| map(d, |lane: i32| lane >> count(s).min(31)),
        Psllw_xmm_imm8 => |d, _, imm| shift(d, imm.into(), u16::checked_shl),
        Pslld_xmm_imm8 => |d, _, imm| shift(d, imm.into(), u32::checked_shl),
        Psllq_xmm_imm8 => |d, _, imm| shift(d, imm.into(), u64::checked_shl),
        Psrlw_xmm_imm8 => |d, _, imm| shift(d, imm.into(), u16::checked_shr),
        Psrld_xmm_imm8 => |d, _, imm| shift(d, imm.into(), u32::checked_shr),
        Psrlq_xmm_imm8 => |d, _, imm| shift(d, imm.into(), u64::checked_shr),
        Psraw_xmm_imm8 => |d, _, imm| map(d, |lane: i16| lane >> imm.min(15)),
        Psrad_xmm_imm8 => |d, _, imm| map(d, |lane: i32| lane >> imm.min(31)),
        Pslldq_xmm_imm8 => |d, _, imm| d.checked_shl(u32::from(imm) * 8).unwrap_or(0),
        Psrldq_xmm_imm8 => |d, _, imm| d.checked_shr(u32::from(imm) * 8).unwrap_or(0),
        _ => return None,
    };
    Some(function)
}

fn product(a: i16, b: i16) -> i32 {
    i32::from(a) * i32::from(b)
}

fn multiply_add_words(d: u128, s: u128) -> u128 {
    let (d, s) = (i16::split(d), i16::split(s));
    let at = |lane| product(d[lane], s[lane]);
    build(|pair| at(2 * pair).wrapping_add(at(2 * pair + 1)))
}

/// PMADDUBSW: the destination's bytes are unsigned, the source's signed.
fn multiply_add_bytes(d: u128, s: u128) -> u128 {
    let (d, s) = (u8::split(d), i8::split(s));
    let at = |lane: usize| i16::from(d[lane]) * i16::from(s[lane]);
    build(|pair| at(2 * pair).saturating_add(at(2 * pair + 1)))
}

fn absolute_differences(d: u128, s: u128) -> u128 {
    let (d, s) = (u8::split(d), u8::split(s));
    build(|half| {
        (8 * half..8 * half + 8)
            .map(|lane| u64::from(d[lane].abs_diff(s[lane])))
            .sum::<u64>()
    })
}

/// MPSADBW: a block of four source bytes against eleven of the destination, at eight places.
fn sliding_differences(d: u128, s: u128, imm: u8) -> u128 {
    let (d, s) = (u8::split(d), u8::split(s));
    let (window, block) = (usize::from(imm >> 2 & 1) * 4, usize::from(imm & 3) * 4);
    build(|place| {
        (0..4)
            .map(|byte| u16::from(d[window + place + byte].abs_diff(s[block + byte])))
            .sum::<u16>()
    })
}

fn minimum_position(s: u128) -> u128 {
    let lanes = u16::split(s);
    let (index, minimum) = (0_u8..)
        .zip(lanes)
        .min_by_key(|&(_, lane)| lane)
        .expect("a register has eight words");
    u128::from(minimum) | u128::from(index) << 16
}

/// The shift count in a source register: its low 64 bits, and anything large is large.
fn count(source: u128) -> u32 {
    u32::try_from(source as u64).unwrap_or(u32::MAX)
}

fn shift<T: Lane<N> + Default, const N: usize>(
    d: u128,
    source: u128,
    f: impl Fn(T, u32) -> Option<T>,
) -> u128 {
    map(d, |lane| f(lane, count(source)).unwrap_or_default())
}
