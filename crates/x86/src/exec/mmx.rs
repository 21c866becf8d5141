//! MMX instructions: the low 64 bits of the x87 registers.
//!
//! `imm` of the [`Op`] is the immediate byte, and above it the index in [`FUNCTIONS`].

use std::sync::LazyLock;

use iced_x86::{Code, Instruction, OpKind};

use super::fpu::{enter_mmx, require_mmx};
use super::places::{Aligned, General, Memory, Nothing, Place, Xmm};
use super::sse::{require_sse, store_selected, under_mxcsr};
use crate::op::{Exec, Exit, Flow, Op};
use crate::simd::Mmx;
use crate::{Bus, Cpu, reg};

static FUNCTIONS: LazyLock<Vec<(Code, Mmx)>> = LazyLock::new(|| {
    Code::values()
        .filter_map(|code| Some((code, Mmx::of(code)?)))
        .collect()
});

/// The functions of this family.
pub(super) fn lower<B: Bus>(insn: &Instruction, op: &mut Op<B>) -> Option<Exec<B>> {
    if insn.code() == Code::Maskmovq_rDI_mm_mm {
        op.base = reg::RDI as u8;
        op.dst = insn.op2_register().number() as u8;
        return Some(masked_store);
    }
    let index = FUNCTIONS
        .binary_search_by_key(&insn.code(), |&(code, _)| code)
        .ok()?;
    op.imm = op.imm & 0xff | (index as u64) << 8;
    let exec: Exec<B> = match (kind(insn, 0), kind(insn, 1)) {
        (to, from) if matches!(FUNCTIONS[index].1, Mmx::Float(_)) => match (to, from) {
            (Kind::Xmm, Kind::Mm) => convert::<B, Xmm, Mm, true>,
            (Kind::Xmm, _) => convert::<B, Xmm, Memory<u64>, false>,
            (_, Kind::Xmm) => convert::<B, Mm, Xmm, true>,
            (_, Kind::Memory(8)) => convert::<B, Mm, Memory<u64>, true>,
            _ => convert::<B, Mm, Aligned, true>,
        },
        (Kind::Mm, Kind::Mm) => mmx::<B, Mm, Mm>,
        (Kind::Mm, Kind::Xmm) => mmx::<B, Mm, Xmm>,
        (Kind::Mm, Kind::General32) => mmx::<B, Mm, General<u32>>,
        (Kind::Mm, Kind::General64) => mmx::<B, Mm, General<u64>>,
        (Kind::Mm, Kind::Memory(2)) => mmx::<B, Mm, Memory<u16>>,
        (Kind::Mm, Kind::Memory(4)) => mmx::<B, Mm, Memory<u32>>,
        (Kind::Mm, Kind::Memory(8)) => mmx::<B, Mm, Memory<u64>>,
        (Kind::Mm, Kind::Nothing) => mmx::<B, Mm, Nothing>,
        (Kind::Xmm, Kind::Mm) => mmx::<B, Xmm, Mm>,
        (Kind::General32, Kind::Mm) => mmx::<B, General<u32>, Mm>,
        (Kind::General64, Kind::Mm) => mmx::<B, General<u64>, Mm>,
        (Kind::Memory(4), Kind::Mm) => mmx::<B, Memory<u32>, Mm>,
        (Kind::Memory(8), Kind::Mm) => mmx::<B, Memory<u64>, Mm>,
        _ => return None,
    };
    Some(exec)
}

/// Where an operand is, with the size of memory.
enum Kind {
    Nothing,
    Mm,
    Xmm,
    General32,
    General64,
    Memory(usize),
}

fn kind(insn: &Instruction, operand: u32) -> Kind {
    match insn.op_kind(operand) {
        OpKind::Register => match insn.op_register(operand) {
            register if register.is_mm() => Kind::Mm,
            register if register.is_xmm() => Kind::Xmm,
            register if register.is_gpr64() => Kind::General64,
            _ => Kind::General32,
        },
        OpKind::Memory => Kind::Memory(insn.memory_size().size()),
        _ => Kind::Nothing,
    }
}

fn mmx<B: Bus, D: Place, S: Place>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let Mmx::Integer(function) = FUNCTIONS[(op.imm >> 8) as usize].1 else {
        unreachable!("lowered so")
    };
    require_mmx(cpu)?;
    let source = S::read(cpu, bus, op, op.src)?;
    let value = function.apply(D::before(cpu, op), source, op.imm as u8);
    let before = cpu.fpu;
    enter_mmx(&mut cpu.fpu);
    D::write(cpu, bus, op, value).inspect_err(|_| cpu.fpu = before)
}

/// `ENTERS`: an MMX register takes part.
fn convert<B: Bus, D: Place, S: Place, const ENTERS: bool>(
    cpu: &mut Cpu,
    bus: &mut B,
    op: &Op<B>,
) -> Flow {
    let Mmx::Float(function) = FUNCTIONS[(op.imm >> 8) as usize].1 else {
        unreachable!("lowered so")
    };
    require_sse(cpu)?;
    require_mmx(cpu)?;
    let source = S::read(cpu, bus, op, op.src)?;
    let before = D::before(cpu, op);
    if ENTERS {
        // Even where #XM follows.
        enter_mmx(&mut cpu.fpu);
    }
    let value = under_mxcsr(cpu, |mxcsr| function(mxcsr, before, source, 0))?;
    D::write(cpu, bus, op, value)
}

/// MASKMOVQ. `src` is the data, `dst` the mask.
fn masked_store<B: Bus>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    require_mmx(cpu)?;
    let (data, mask) = (Mm::get(cpu, op.src), Mm::get(cpu, op.dst));
    store_selected(cpu, bus, op, data, mask)?;
    enter_mmx(&mut cpu.fpu);
    Ok(())
}

/// An MMX register.
struct Mm;

impl Mm {
    fn get(cpu: &Cpu, number: u8) -> u128 {
        let top = (cpu.fpu.fsw >> 11) as u8;
        let st = cpu.fpu.st[usize::from(number.wrapping_sub(top) & 7)];
        u128::from_le_bytes(st) & u128::from(u64::MAX)
    }
}

impl Place for Mm {
    fn read<B: Bus>(cpu: &mut Cpu, _: &mut B, _: &Op<B>, number: u8) -> Result<u128, Exit> {
        Ok(Self::get(cpu, number))
    }

    fn before<B>(cpu: &Cpu, op: &Op<B>) -> u128 {
        Self::get(cpu, op.dst)
    }

    /// The register's sign and exponent become ones. ST0 is the bottom register by now.
    fn write<B: Bus>(cpu: &mut Cpu, _: &mut B, op: &Op<B>, value: u128) -> Flow {
        let value = value & u128::from(u64::MAX) | 0xffff << 64;
        cpu.fpu.st[usize::from(op.dst & 7)] = value.to_le_bytes();
        Ok(())
    }
}
