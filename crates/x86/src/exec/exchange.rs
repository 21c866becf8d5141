//! CMPXCHG, CMPXCHG8B, CMPXCHG16B, XADD.
//!
//! One processor runs at a time, so LOCK changes nothing.

use iced_x86::{Instruction, Mnemonic};

use super::{Form, form, operand_bytes, sized};
use crate::flags;
use crate::int::Int;
use crate::op::{Exec, Fault, Flow, Op};
use crate::walk::AccessKind;
use crate::{Bus, Cpu, reg};

const RAX: u8 = reg::RAX as u8;

pub(super) fn lower<B: Bus>(insn: &Instruction, _op: &mut Op<B>) -> Option<Exec<B>> {
    let bytes = operand_bytes(insn);
    match (insn.mnemonic(), form(insn)) {
        (Mnemonic::Cmpxchg, Form::RegReg) => sized!(bytes, T => compare_reg::<B, T>),
        (Mnemonic::Cmpxchg, _) => sized!(bytes, T => compare_mem::<B, T>),
        (Mnemonic::Xadd, Form::RegReg) => sized!(bytes, T => add_reg::<B, T>),
        (Mnemonic::Xadd, _) => sized!(bytes, T => add_mem::<B, T>),
        (Mnemonic::Cmpxchg8b, _) => Some(compare_8_bytes),
        (Mnemonic::Cmpxchg16b, _) => Some(compare_16_bytes),
        _ => None,
    }
}

/// Compares with the accumulator; `Err` holds what the accumulator becomes.
#[inline(always)]
fn compare<T: Int>(cpu: &mut Cpu, found: T) -> Result<(), T> {
    let expected = cpu.get::<T>(RAX);
    let difference = T::cut(expected.zx().wrapping_sub(found.zx()));
    cpu.flags.sub(expected, found, difference);
    if expected == found {
        Ok(())
    } else {
        Err(found)
    }
}

fn compare_reg<B: Bus, T: Int>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let found = cpu.get::<T>(op.dst);
    match compare(cpu, found) {
        Ok(()) => {
            let value = cpu.get::<T>(op.src);
            cpu.set(op.dst, value);
        }
        Err(found) => cpu.set(RAX, found),
    }
    Ok(())
}

fn compare_mem<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    cpu.update(bus, op, |cpu, found: T| match compare(cpu, found) {
        Ok(()) => cpu.get(op.src),
        Err(found) => {
            cpu.set(RAX, found);
            found
        }
    })
}

fn add_reg<B: Bus, T: Int>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let found = cpu.get::<T>(op.dst);
    let sum = add(cpu, op, found);
    cpu.set(op.dst, sum);
    Ok(())
}

fn add_mem<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    cpu.update(bus, op, |cpu, found: T| add(cpu, op, found))
}

/// The sum; the source register gets what was found.
#[inline(always)]
fn add<B, T: Int>(cpu: &mut Cpu, op: &Op<B>, found: T) -> T {
    let addend = cpu.get::<T>(op.src);
    let sum = T::cut(found.zx().wrapping_add(addend.zx()));
    cpu.flags.add(found, addend, sum);
    cpu.set(op.src, found);
    sum
}

fn compare_8_bytes<B: Bus>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    cpu.update(bus, op, |cpu, found: u64| {
        let pair =
            |cpu: &Cpu, high: usize, low: usize| cpu.gpr[high] << 32 | cpu.gpr[low] & 0xffff_ffff;
        let equal = pair(cpu, reg::RDX, reg::RAX) == found;
        cpu.flags
            .merge_arithmetic(flags::ZF, if equal { flags::ZF } else { 0 });
        if equal {
            return pair(cpu, reg::RCX, reg::RBX);
        }
        cpu.gpr[reg::RAX] = found & 0xffff_ffff;
        cpu.gpr[reg::RDX] = found >> 32;
        found
    })
}

fn compare_16_bytes<B: Bus>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let linear = cpu.linear(op, 16, AccessKind::Write)?;
    if linear % 16 != 0 {
        return Err(cpu.raise(Fault::GP));
    }
    cpu.update(bus, op, |cpu, found: u128| {
        let pair = |cpu: &Cpu, high: usize, low: usize| {
            u128::from(cpu.gpr[high]) << 64 | u128::from(cpu.gpr[low])
        };
        let equal = pair(cpu, reg::RDX, reg::RAX) == found;
        cpu.flags
            .merge_arithmetic(flags::ZF, if equal { flags::ZF } else { 0 });
        if equal {
            return pair(cpu, reg::RCX, reg::RBX);
        }
        cpu.gpr[reg::RAX] = found as u64;
        cpu.gpr[reg::RDX] = (found >> 64) as u64;
        found
    })
}
