//! SSE to SSE4.2: what an instruction does with values, apart from where the values come from.
//!
//! [`Operation::of`] finds the function of an instruction; the tables are in `integer`, `shuffle` and
//! `float`. Operands are 128-bit values: a general register or a narrow memory operand arrives
//! zero-extended, and a narrow destination takes the low bits of the result.
//!
//! Deliberately not here: AES, SHA, PCLMULQDQ, and everything with a VEX prefix.

use iced_x86::{Code, Instruction};

mod float;
mod host;
mod integer;
mod lanes;
mod mmx;
mod shuffle;
mod text;

pub(crate) use float::{Comparison, Float, evaluate};
pub(crate) use mmx::Mmx;
pub(crate) use text::{compare_explicit, compare_implicit};

/// Destination from destination, source and immediate.
pub(crate) type Pure = fn(u128, u128, u8) -> u128;

/// Destination from destination, source and XMM0.
pub(crate) type Blend = fn(u128, u128, u128) -> u128;

/// What an instruction does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operation {
    /// The source as it is.
    Move,
    /// Bits in, bits out.
    Pure(Pure),
    /// Under MXCSR; may raise #XM.
    Float(Float),
    /// Sets ZF, PF and CF under MXCSR, clears OF, SF and AF; may raise #XM.
    Comparison(Comparison),
    /// PTEST: ZF and CF; the other arithmetic flags are cleared.
    Test,
    /// PBLENDVB and relatives: XMM0 is a third operand.
    Blend(Blend),
    /// PCMPxSTRx.
    Text(Text),
    /// MASKMOVDQU: stores to DS:RDI the bytes whose mask byte has its sign bit set.
    MaskedStore,
}

/// One of the four text instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Text {
    /// The lengths are in RAX and RDX (EAX and EDX without REX.W), not given by zero elements.
    pub lengths: Lengths,
    pub result: TextResult,
}

/// Where the lengths of a text instruction's strings are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lengths {
    /// Zero elements end the strings.
    Implicit,
    /// EAX and EDX.
    Bits32,
    /// RAX and RDX.
    Bits64,
}

/// What a text instruction leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TextResult {
    /// ECX.
    Index,
    /// XMM0.
    Mask,
}

impl Operation {
    /// What the instruction does, given whether its source is memory; `None` where it is no SSE
    /// instruction, or none that this host can run.
    pub(crate) fn of(code: Code, loads: bool) -> Option<Self> {
        let load = || shuffle::lookup_load(code).filter(|_| loads);
        shuffle::is_move(code, loads)
            .then_some(Self::Move)
            .or_else(|| load().map(Self::Pure))
            .or_else(|| shuffle::lookup(code).map(Self::Pure))
            .or_else(|| integer::lookup(code).map(Self::Pure))
            .or_else(|| float::lookup(code).map(Self::Float))
            .or_else(|| float::lookup_comparison(code).map(Self::Comparison))
            .or_else(|| special(code))
    }
}

/// Whether the instruction faults on a memory operand that is not aligned to its 16 bytes.
pub(crate) fn wants_alignment(instruction: &Instruction) -> bool {
    use Code::*;
    let exempt = matches!(
        instruction.code(),
        Movups_xmm_xmmm128
            | Movups_xmmm128_xmm
            | Movupd_xmm_xmmm128
            | Movupd_xmmm128_xmm
            | Movdqu_xmm_xmmm128
            | Movdqu_xmmm128_xmm
            | Lddqu_xmm_m128
            | Pcmpestrm_xmm_xmmm128_imm8
            | Pcmpestrm64_xmm_xmmm128_imm8
            | Pcmpestri_xmm_xmmm128_imm8
            | Pcmpestri64_xmm_xmmm128_imm8
            | Pcmpistrm_xmm_xmmm128_imm8
            | Pcmpistri_xmm_xmmm128_imm8
    );
    !exempt && instruction.memory_size().size() == 16
}

fn special(code: Code) -> Option<Operation> {
    use Code::*;
    let text = |lengths, result| Operation::Text(Text { lengths, result });
    let operation = match code {
        Ptest_xmm_xmmm128 => Operation::Test,
        Maskmovdqu_rDI_xmm_xmm => Operation::MaskedStore,
        Pblendvb_xmm_xmmm128 => Operation::Blend(shuffle::blend_by_sign::<i8, 16>),
        Blendvps_xmm_xmmm128 => Operation::Blend(shuffle::blend_by_sign::<i32, 4>),
        Blendvpd_xmm_xmmm128 => Operation::Blend(shuffle::blend_by_sign::<i64, 2>),
        Pcmpistri_xmm_xmmm128_imm8 => text(Lengths::Implicit, TextResult::Index),
        Pcmpistrm_xmm_xmmm128_imm8 => text(Lengths::Implicit, TextResult::Mask),
        Pcmpestri_xmm_xmmm128_imm8 => text(Lengths::Bits32, TextResult::Index),
        Pcmpestrm_xmm_xmmm128_imm8 => text(Lengths::Bits32, TextResult::Mask),
        Pcmpestri64_xmm_xmmm128_imm8 => text(Lengths::Bits64, TextResult::Index),
        Pcmpestrm64_xmm_xmmm128_imm8 => text(Lengths::Bits64, TextResult::Mask),
        _ => return None,
    };
    Some(operation)
}
