//! MMX: 64-bit instructions as what their 128-bit twins do to the low half.

use iced_x86::Code;

use super::{Float, Pure, float, integer, shuffle};

/// What an MMX instruction does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mmx {
    /// Bits in, bits out.
    Integer(Integer),
    /// A conversion under MXCSR; may raise #XM.
    Float(Float),
}

impl Mmx {
    /// What `code` does, if it is an MMX instruction other than MASKMOVQ.
    pub(crate) fn of(code: Code) -> Option<Self> {
        let integer = Integer::of(code).map(Self::Integer);
        integer.or_else(|| float::lookup_mmx(code).map(Self::Float))
    }
}

/// What an instruction does with 64-bit values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Integer {
    shape: Shape,
    function: Pure,
}

/// How the operands meet the 128-bit function.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// As low halves.
    Low,
    /// As low halves, and the result is the high one.
    High,
    /// Together as one operand: the function takes neighbours.
    Joined,
}

impl Integer {
    fn of(code: Code) -> Option<Self> {
        if let Some(function) = own(code) {
            return Some(Self {
                shape: Shape::Low,
                function,
            });
        }
        let (shape, twin) = twin(code)?;
        let function = integer::lookup(twin).or_else(|| shuffle::lookup(twin))?;
        Some(Self { shape, function })
    }

    /// The new destination, in the low 64 bits.
    pub(crate) fn apply(self, d: u128, s: u128, imm: u8) -> u128 {
        match self.shape {
            Shape::Low => (self.function)(d, s, imm),
            Shape::High => (self.function)(d, s, imm) >> 64,
            Shape::Joined => (self.function)(d | s << 64, 0, imm),
        }
    }
}

/// What has no twin.
fn own(code: Code) -> Option<Pure> {
    use Code::*;
    const INDEX_AND_SIGN: u128 = 0x8787_8787_8787_8787;
    let function: Pure = match code {
        Movd_mm_rm32 | Movq_mm_rm64 | Movd_rm32_mm | Movq_rm64_mm | Movq_mm_mmm64
        | Movq_mmm64_mm | Movntq_m64_mm | Movq2dq_xmm_mm | Movdq2q_mm_xmm => |_, s, _| s,
        Pinsrw_mm_r32m16_imm8 | Pinsrw_mm_r64m16_imm8 => {
            |d, s, imm| shuffle::insert::<16>(d, s, imm & 3)
        }
        Pextrw_r32_mm_imm8 | Pextrw_r64_mm_imm8 => |_, s, imm| shuffle::extract::<16>(s, imm & 3),
        Pshufb_mm_mmm64 => |d, s, _| shuffle::shuffle_bytes(d, s & INDEX_AND_SIGN),
        Palignr_mm_mmm64_imm8 => {
            |d, s, imm| (d << 64 | s).checked_shr(u32::from(imm) * 8).unwrap_or(0)
        }
        _ => return None,
    };
    Some(function)
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn twin(code: Code) -> Option<(Shape, Code)> {
    use Code::*;
    use Shape::{High, Joined, Low};
    let row = match code {
        Pcmpgtb_mm_mmm64 => (Low, Pcmpgtb_xmm_xmmm128),
        Pcmpgtw_mm_mmm64 => (Low, Pcmpgtw_xmm_xmmm128),
        Pcmpgtd_mm_mmm64 => (Low, Pcmpgtd_xmm_xmmm128),
        Pcmpeqb_mm_mmm64 => (Low, Pcmpeqb_xmm_xmmm128),
        Pcmpeqw_mm_mmm64 => (Low, Pcmpeqw_xmm_xmmm128),
        Pcmpeqd_mm_mmm64 => (Low, Pcmpeqd_xmm_xmmm128),
        Psrlw_mm_mmm64 => (Low, Psrlw_xmm_xmmm128),
        Psrld_mm_mmm64 => (Low, Psrld_xmm_xmmm128),
        Psrlq_mm_mmm64 => (Low, Psrlq_xmm_xmmm128),
        Psllw_mm_mmm64 => (Low, Psllw_xmm_xmmm128),
        Pslld_mm_mmm64 => (Low, Pslld_xmm_xmmm128),
        Psllq_mm_mmm64 => (Low, Psllq_xmm_xmmm128),
        Psraw_mm_mmm64 => (Low, Psraw_xmm_xmmm128),
        Psrad_mm_mmm64 => (Low, Psrad_xmm_xmmm128),
        Paddb_mm_mmm64 => (Low, Paddb_xmm_xmmm128),
        Paddw_mm_mmm64 => (Low, Paddw_xmm_xmmm128),
        Paddd_mm_mmm64 => (Low, Paddd_xmm_xmmm128),
        Paddq_mm_mmm64 => (Low, Paddq_xmm_xmmm128),
        Paddsb_mm_mmm64 => (Low, Paddsb_xmm_xmmm128),
        Paddsw_mm_mmm64 => (Low, Paddsw_xmm_xmmm128),
        Paddusb_mm_mmm64 => (Low, Paddusb_xmm_xmmm128),
        Paddusw_mm_mmm64 => (Low, Paddusw_xmm_xmmm128),
        Psubb_mm_mmm64 => (Low, Psubb_xmm_xmmm128),
        Psubw_mm_mmm64 => (Low, Psubw_xmm_xmmm128),
        Psubd_mm_mmm64 => (Low, Psubd_xmm_xmmm128),
        Psubq_mm_mmm64 => (Low, Psubq_xmm_xmmm128),
        Psubsb_mm_mmm64 => (Low, Psubsb_xmm_xmmm128),
        Psubsw_mm_mmm64 => (Low, Psubsw_xmm_xmmm128),
        Psubusb_mm_mmm64 => (Low, Psubusb_xmm_xmmm128),
        Psubusw_mm_mmm64 => (Low, Psubusw_xmm_xmmm128),
        Pmullw_mm_mmm64 => (Low, Pmullw_xmm_xmmm128),
        Pmulhw_mm_mmm64 => (Low, Pmulhw_xmm_xmmm128),
        Pmulhuw_mm_mmm64 => (Low, Pmulhuw_xmm_xmmm128),
        Pmulhrsw_mm_mmm64 => (Low, Pmulhrsw_xmm_xmmm128),
        Pmuludq_mm_mmm64 => (Low, Pmuludq_xmm_xmmm128),
        Pmaddwd_mm_mmm64 => (Low, Pmaddwd_xmm_xmmm128),
        Pmaddubsw_mm_mmm64 => (Low, Pmaddubsw_xmm_xmmm128),
        Psadbw_mm_mmm64 => (Low, Psadbw_xmm_xmmm128),
        Pavgb_mm_mmm64 => (Low, Pavgb_xmm_xmmm128),
        Pavgw_mm_mmm64 => (Low, Pavgw_xmm_xmmm128),
        Pminub_mm_mmm64 => (Low, Pminub_xmm_xmmm128),
        Pminsw_mm_mmm64 => (Low, Pminsw_xmm_xmmm128),
        Pmaxub_mm_mmm64 => (Low, Pmaxub_xmm_xmmm128),
        Pmaxsw_mm_mmm64 => (Low, Pmaxsw_xmm_xmmm128),
        Pand_mm_mmm64 => (Low, Pand_xmm_xmmm128),
        Pandn_mm_mmm64 => (Low, Pandn_xmm_xmmm128),
        Por_mm_mmm64 => (Low, Por_xmm_xmmm128),
        Pxor_mm_mmm64 => (Low, Pxor_xmm_xmmm128),
        Psignb_mm_mmm64 => (Low, Psignb_xmm_xmmm128),
        Psignw_mm_mmm64 => (Low, Psignw_xmm_xmmm128),
        Psignd_mm_mmm64 => (Low, Psignd_xmm_xmmm128),
        Pabsb_mm_mmm64 => (Low, Pabsb_xmm_xmmm128),
        Pabsw_mm_mmm64 => (Low, Pabsw_xmm_xmmm128),
        Pabsd_mm_mmm64 => (Low, Pabsd_xmm_xmmm128),
        Psrlw_mm_imm8 => (Low, Psrlw_xmm_imm8),
        Psrld_mm_imm8 => (Low, Psrld_xmm_imm8),
        Psrlq_mm_imm8 => (Low, Psrlq_xmm_imm8),
        Psllw_mm_imm8 => (Low, Psllw_xmm_imm8),
        Pslld_mm_imm8 => (Low, Pslld_xmm_imm8),
        Psllq_mm_imm8 => (Low, Psllq_xmm_imm8),
        Psraw_mm_imm8 => (Low, Psraw_xmm_imm8),
        Psrad_mm_imm8 => (Low, Psrad_xmm_imm8),
        Punpcklbw_mm_mmm32 => (Low, Punpcklbw_xmm_xmmm128),
        Punpcklwd_mm_mmm32 => (Low, Punpcklwd_xmm_xmmm128),
        Punpckldq_mm_mmm32 => (Low, Punpckldq_xmm_xmmm128),
        Pshufw_mm_mmm64_imm8 => (Low, Pshuflw_xmm_xmmm128_imm8),
        Pmovmskb_r32_mm | Pmovmskb_r64_mm => (Low, Pmovmskb_r32_xmm),
        Punpckhbw_mm_mmm64 => (High, Punpcklbw_xmm_xmmm128),
        Punpckhwd_mm_mmm64 => (High, Punpcklwd_xmm_xmmm128),
        Punpckhdq_mm_mmm64 => (High, Punpckldq_xmm_xmmm128),
        Packsswb_mm_mmm64 => (Joined, Packsswb_xmm_xmmm128),
        Packuswb_mm_mmm64 => (Joined, Packuswb_xmm_xmmm128),
        Packssdw_mm_mmm64 => (Joined, Packssdw_xmm_xmmm128),
        Phaddw_mm_mmm64 => (Joined, Phaddw_xmm_xmmm128),
        Phaddd_mm_mmm64 => (Joined, Phaddd_xmm_xmmm128),
        Phaddsw_mm_mmm64 => (Joined, Phaddsw_xmm_xmmm128),
        Phsubw_mm_mmm64 => (Joined, Phsubw_xmm_xmmm128),
        Phsubd_mm_mmm64 => (Joined, Phsubd_xmm_xmmm128),
        Phsubsw_mm_mmm64 => (Joined, Phsubsw_xmm_xmmm128),
        _ => return None,
    };
    Some(row)
}
