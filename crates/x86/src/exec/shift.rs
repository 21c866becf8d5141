//! Shifts and rotations: SHL, SHR, SAR, ROL, ROR, RCL, RCR, SHLD, SHRD.
//!
//! A count of 0 changes no flag, but still writes the destination. Flags that the manuals leave undefined get what
//! the formula for a count of 1 gives.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::{Form, form, operand_bytes, sized};
use crate::flags::Flags;
use crate::int::Int;
use crate::op::{Exec, Flow, Op};
use crate::{Bus, Cpu, reg};

pub(super) fn lower<B: Bus>(insn: &Instruction, op: &mut Op<B>) -> Option<Exec<B>> {
    match insn.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => shift::<B, Shl>(insn),
        Mnemonic::Shr => shift::<B, Shr>(insn),
        Mnemonic::Sar => shift::<B, Sar>(insn),
        Mnemonic::Rol => shift::<B, Rol>(insn),
        Mnemonic::Ror => shift::<B, Ror>(insn),
        Mnemonic::Rcl => shift::<B, Rcl>(insn),
        Mnemonic::Rcr => shift::<B, Rcr>(insn),
        Mnemonic::Shld => double::<B, Shld>(insn, op),
        Mnemonic::Shrd => double::<B, Shrd>(insn, op),
        _ => None,
    }
}

fn shift<B: Bus, O: Shift>(insn: &Instruction) -> Option<Exec<B>> {
    let bytes = operand_bytes(insn);
    match form(insn) {
        Form::RegImm => sized!(bytes, T => reg_imm::<B, T, O>),
        Form::RegReg => sized!(bytes, T => reg_cl::<B, T, O>),
        Form::MemImm => sized!(bytes, T => mem_imm::<B, T, O>),
        Form::MemReg => sized!(bytes, T => mem_cl::<B, T, O>),
        _ => None,
    }
}

fn double<B: Bus, O: Double>(insn: &Instruction, op: &mut Op<B>) -> Option<Exec<B>> {
    let bytes = operand_bytes(insn);
    // Where there is no immediate, the count is CL; the fields of the address are taken, `imm` is not.
    if insn.op2_kind() == OpKind::Register {
        op.imm = COUNT_IN_CL;
    }
    match form(insn) {
        Form::RegReg => sized!(bytes, T => double_reg::<B, T, O>),
        _ => sized!(bytes, T => double_mem::<B, T, O>),
    }
}

/// A shift by `count`, which is masked and not 0.
trait Shift {
    fn apply<T: Int>(flags: &mut Flags, a: T, count: u32) -> T;
}

/// A shift of two operands by `count`, which is masked and not 0.
trait Double {
    fn apply<T: Int>(flags: &mut Flags, a: T, b: T, count: u32) -> T;
}

#[inline(always)]
fn masked<T: Int>(count: u64) -> u32 {
    count as u32 & if T::BYTES == 8 { 63 } else { 31 }
}

#[inline(always)]
fn apply<T: Int, O: Shift>(cpu: &mut Cpu, a: T, count: u32) -> T {
    if count == 0 {
        a
    } else {
        O::apply(&mut cpu.flags, a, count)
    }
}

fn reg_imm<B: Bus, T: Int, O: Shift>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let a = cpu.get::<T>(op.dst);
    let result = apply::<T, O>(cpu, a, masked::<T>(op.imm));
    cpu.set(op.dst, result);
    Ok(())
}

fn reg_cl<B: Bus, T: Int, O: Shift>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let a = cpu.get::<T>(op.dst);
    let result = apply::<T, O>(cpu, a, masked::<T>(cpu.gpr[reg::RCX]));
    cpu.set(op.dst, result);
    Ok(())
}

fn mem_imm<B: Bus, T: Int, O: Shift>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let count = masked::<T>(op.imm);
    cpu.update(bus, op, |cpu, a: T| apply::<T, O>(cpu, a, count))
}

fn mem_cl<B: Bus, T: Int, O: Shift>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let count = masked::<T>(cpu.gpr[reg::RCX]);
    cpu.update(bus, op, |cpu, a: T| apply::<T, O>(cpu, a, count))
}

/// `imm` of SHLD and SHRD by CL.
const COUNT_IN_CL: u64 = 1 << 8;

#[inline(always)]
fn double_count<B, T: Int>(cpu: &Cpu, op: &Op<B>) -> u32 {
    masked::<T>(if op.imm == COUNT_IN_CL {
        cpu.gpr[reg::RCX]
    } else {
        op.imm
    })
}

fn double_reg<B: Bus, T: Int, O: Double>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let (mut a, b) = (cpu.get::<T>(op.dst), cpu.get::<T>(op.src));
    let count = double_count::<B, T>(cpu, op);
    if count != 0 {
        a = O::apply(&mut cpu.flags, a, b, count);
    }
    cpu.set(op.dst, a);
    Ok(())
}

fn double_mem<B: Bus, T: Int, O: Double>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let b = cpu.get::<T>(op.src);
    let count = double_count::<B, T>(cpu, op);
    cpu.update(bus, op, |cpu, a: T| match count {
        0 => a,
        _ => O::apply(&mut cpu.flags, a, b, count),
    })
}

#[inline(always)]
fn top_bit<T: Int>(value: T) -> bool {
    value.zx() >> (T::BITS - 1) & 1 != 0
}

#[inline(always)]
fn second_bit<T: Int>(value: T) -> bool {
    value.zx() >> (T::BITS - 2) & 1 != 0
}

struct Shl;
struct Shr;
struct Sar;
struct Rol;
struct Ror;
struct Rcl;
struct Rcr;
struct Shld;
struct Shrd;

impl Shift for Shl {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, a: T, count: u32) -> T {
        let result = T::cut(a.zx() << count);
        // Bit `BITS - count`; beyond the operand's width there is nothing.
        let carry = (a.zx() << (count - 1)) >> (T::BITS - 1) & 1 != 0;
        flags.result(result, carry, carry != top_bit(result));
        result
    }
}

impl Shift for Shr {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, a: T, count: u32) -> T {
        let result = T::cut(a.zx() >> count);
        let carry = a.zx() >> (count - 1) & 1 != 0;
        flags.result(result, carry, top_bit(result) != second_bit(result));
        result
    }
}

impl Shift for Sar {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, a: T, count: u32) -> T {
        let signed = a.sx() as i64;
        let result = T::cut((signed >> count) as u64);
        flags.result(result, signed >> (count - 1) & 1 != 0, false);
        result
    }
}

impl Shift for Rol {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, a: T, count: u32) -> T {
        let count = count % T::BITS;
        let result = T::cut(a.zx() << count | a.zx() >> ((T::BITS - count) % 64));
        let result = if count == 0 { a } else { result };
        let carry = result.zx() & 1 != 0;
        flags.set_cf_of(carry, carry != top_bit(result));
        result
    }
}

impl Shift for Ror {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, a: T, count: u32) -> T {
        let count = count % T::BITS;
        let result = T::cut(a.zx() >> count | a.zx() << ((T::BITS - count) % 64));
        let result = if count == 0 { a } else { result };
        flags.set_cf_of(top_bit(result), top_bit(result) != second_bit(result));
        result
    }
}

impl Shift for Rcl {
    fn apply<T: Int>(flags: &mut Flags, a: T, count: u32) -> T {
        let width = T::BITS + 1;
        let (result, carry) = rotate_through(a, flags.cf(), count % width);
        flags.set_cf_of(carry, carry != top_bit(result));
        result
    }
}

impl Shift for Rcr {
    fn apply<T: Int>(flags: &mut Flags, a: T, count: u32) -> T {
        let width = T::BITS + 1;
        let (result, carry) = rotate_through(a, flags.cf(), (width - count % width) % width);
        flags.set_cf_of(carry, top_bit(result) != second_bit(result));
        result
    }
}

/// Rotates left through the carry, which is the bit above `a`.
fn rotate_through<T: Int>(a: T, carry: bool, count: u32) -> (T, bool) {
    let width = T::BITS + 1;
    let wide = u128::from(carry) << T::BITS | u128::from(a.zx());
    let rotated = if count == 0 {
        wide
    } else {
        wide << count | wide >> (width - count)
    };
    (T::cut(rotated as u64), rotated >> T::BITS & 1 != 0)
}

impl Double for Shld {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, a: T, b: T, count: u32) -> T {
        // 16-bit operands may be shifted by up to 31: then the second one follows itself.
        let below = T::BITS.max(32);
        let wide = u128::from(a.zx()) << below | repeated(b);
        let result = T::cut((wide << count >> below) as u64);
        let carry = wide >> (below + T::BITS - count) & 1 != 0;
        flags.result(result, carry, top_bit(result) != top_bit(a));
        result
    }
}

impl Double for Shrd {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, a: T, b: T, count: u32) -> T {
        let wide = repeated(b) << T::BITS | u128::from(a.zx());
        let result = T::cut((wide >> count) as u64);
        let carry = wide >> (count - 1) & 1 != 0;
        flags.result(result, carry, top_bit(result) != top_bit(a));
        result
    }
}

/// 16 bits twice, or just `value`.
#[inline(always)]
fn repeated<T: Int>(value: T) -> u128 {
    let value64 = value.zx();
    u128::from(if T::BITS == 16 {
        value64 << 16 | value64
    } else {
        value64
    })
}
