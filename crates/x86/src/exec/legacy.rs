//! What only 16- and 32-bit code has, besides decimal arithmetic: ARPL, BOUND, SALC.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::operand_bytes;
use crate::flags;
use crate::int::Int;
use crate::op::{Exec, Fault, Flow, Op, vector};
use crate::{Bus, Cpu, reg};

pub(super) fn lower<B: Bus>(insn: &Instruction, _op: &mut Op<B>) -> Option<Exec<B>> {
    Some(match insn.mnemonic() {
        Mnemonic::Arpl if insn.op0_kind() == OpKind::Register => arpl_reg,
        Mnemonic::Arpl => arpl_mem,
        Mnemonic::Bound if operand_bytes(insn) == 2 => bound::<B, u16, u32>,
        Mnemonic::Bound => bound::<B, u32, u64>,
        Mnemonic::Salc => salc,
        _ => return None,
    })
}

fn require_selectors(cpu: &mut Cpu) -> Flow {
    if cpu.is_real() || cpu.is_v86() {
        Err(cpu.raise(Fault::UD))
    } else {
        Ok(())
    }
}

/// `selector` with at least the RPL of `least`; ZF says whether it was raised.
fn raise_rpl(cpu: &mut Cpu, selector: u16, least: u16) -> u16 {
    let raised = selector & 3 < least & 3;
    let zf = if raised { flags::ZF } else { 0 };
    cpu.flags.merge_arithmetic(flags::ZF, zf);
    if raised {
        selector & !3 | least & 3
    } else {
        selector
    }
}

fn arpl_reg<B: Bus>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    require_selectors(cpu)?;
    let (selector, least) = (cpu.get(op.dst), cpu.get(op.src));
    let selector = raise_rpl(cpu, selector, least);
    cpu.set(op.dst, selector);
    Ok(())
}

fn arpl_mem<B: Bus>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    require_selectors(cpu)?;
    let least = cpu.get(op.src);
    cpu.update(bus, op, |cpu, selector| raise_rpl(cpu, selector, least))
}

/// #BR unless the register is between the two numbers in memory, which are loaded as one of twice the size.
fn bound<B: Bus, T: Int, Pair: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let pair: Pair = cpu.load(bus, op)?;
    let [lower, upper] = [0, T::BITS].map(|shift| T::cut(pair.zx() >> shift).sx() as i64);
    let index = cpu.get::<T>(op.dst).sx() as i64;
    if (lower..=upper).contains(&index) {
        Ok(())
    } else {
        Err(cpu.raise(Fault::plain(vector::BR)))
    }
}

/// AL becomes 0xff if CF is set, else 0.
fn salc<B: Bus>(cpu: &mut Cpu, _bus: &mut B, _op: &Op<B>) -> Flow {
    let value: u8 = if cpu.flags.cf() { 0xff } else { 0 };
    cpu.set(reg::RAX as u8, value);
    Ok(())
}
