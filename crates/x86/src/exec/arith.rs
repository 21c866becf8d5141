//! ADD, ADC, SUB, SBB, CMP, AND, OR, XOR, TEST, INC, DEC, NEG, NOT: one or two operands, one result.
//!
//! The operations are types ([`Binary`], [`Unary`]), so that each pair of operation and operand form is a
//! function of its own.

use iced_x86::{Instruction, Mnemonic};

use super::{Form, form, operand_bytes, sized};
use crate::flags::Flags;
use crate::int::Int;
use crate::op::{Exec, Flow, Op};
use crate::{Bus, Cpu};

pub(super) fn lower<B: Bus>(insn: &Instruction, _op: &mut Op<B>) -> Option<Exec<B>> {
    match insn.mnemonic() {
        Mnemonic::Add => binary::<B, Add>(insn),
        Mnemonic::Adc => binary::<B, Adc>(insn),
        Mnemonic::Sub => binary::<B, Sub>(insn),
        Mnemonic::Sbb => binary::<B, Sbb>(insn),
        Mnemonic::Cmp => binary::<B, Cmp>(insn),
        Mnemonic::And => binary::<B, And>(insn),
        Mnemonic::Or => binary::<B, Or>(insn),
        Mnemonic::Xor => binary::<B, Xor>(insn),
        Mnemonic::Test => binary::<B, Test>(insn),
        Mnemonic::Inc => unary::<B, Inc>(insn),
        Mnemonic::Dec => unary::<B, Dec>(insn),
        Mnemonic::Neg => unary::<B, Neg>(insn),
        Mnemonic::Not => unary::<B, Not>(insn),
        _ => None,
    }
}

fn binary<B: Bus, O: Binary>(insn: &Instruction) -> Option<Exec<B>> {
    let bytes = operand_bytes(insn);
    match form(insn) {
        Form::RegReg => sized!(bytes, T => reg_reg::<B, T, O>),
        Form::RegImm => sized!(bytes, T => reg_imm::<B, T, O>),
        Form::RegMem => sized!(bytes, T => reg_mem::<B, T, O>),
        Form::MemReg => sized!(bytes, T => mem_reg::<B, T, O>),
        Form::MemImm => sized!(bytes, T => mem_imm::<B, T, O>),
        _ => None,
    }
}

fn unary<B: Bus, O: Unary>(insn: &Instruction) -> Option<Exec<B>> {
    let bytes = operand_bytes(insn);
    match form(insn) {
        Form::Reg => sized!(bytes, T => reg::<B, T, O>),
        Form::Mem => sized!(bytes, T => mem::<B, T, O>),
        _ => None,
    }
}

/// An operation on two operands, the first of which gets the result.
trait Binary {
    /// CMP and TEST do not.
    const STORES: bool = true;

    fn apply<T: Int>(flags: &mut Flags, a: T, b: T) -> T;
}

/// An operation on one operand.
trait Unary {
    fn apply<T: Int>(flags: &mut Flags, a: T) -> T;
}

fn reg_reg<B: Bus, T: Int, O: Binary>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let (a, b) = (cpu.get::<T>(op.dst), cpu.get(op.src));
    let result = O::apply(&mut cpu.flags, a, b);
    if O::STORES {
        cpu.set(op.dst, result);
    }
    Ok(())
}

fn reg_imm<B: Bus, T: Int, O: Binary>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let a = cpu.get::<T>(op.dst);
    let result = O::apply(&mut cpu.flags, a, T::cut(op.imm));
    if O::STORES {
        cpu.set(op.dst, result);
    }
    Ok(())
}

fn reg_mem<B: Bus, T: Int, O: Binary>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    cpu.load_then(bus, op, |cpu, b: T| {
        let a = cpu.get::<T>(op.dst);
        let result = O::apply(&mut cpu.flags, a, b);
        if O::STORES {
            cpu.set(op.dst, result);
        }
    })
}

fn mem_reg<B: Bus, T: Int, O: Binary>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let b = cpu.get::<T>(op.src);
    mem_value::<B, T, O>(cpu, bus, op, b)
}

fn mem_imm<B: Bus, T: Int, O: Binary>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    mem_value::<B, T, O>(cpu, bus, op, T::cut(op.imm))
}

#[inline(always)]
fn mem_value<B: Bus, T: Int, O: Binary>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>, b: T) -> Flow {
    if O::STORES {
        return cpu.update(bus, op, |cpu, a: T| O::apply(&mut cpu.flags, a, b));
    }
    cpu.load_then(bus, op, |cpu, a: T| {
        O::apply(&mut cpu.flags, a, b);
    })
}

fn reg<B: Bus, T: Int, O: Unary>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let a = cpu.get::<T>(op.dst);
    let result = O::apply(&mut cpu.flags, a);
    cpu.set(op.dst, result);
    Ok(())
}

fn mem<B: Bus, T: Int, O: Unary>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    cpu.update(bus, op, |cpu, a: T| O::apply(&mut cpu.flags, a))
}

struct Add;
struct Adc;
struct Sub;
struct Sbb;
struct Cmp;
struct And;
struct Or;
struct Xor;
struct Test;
struct Inc;
struct Dec;
struct Neg;
struct Not;

impl Binary for Add {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, a: T, b: T) -> T {
        let result = T::cut(a.zx().wrapping_add(b.zx()));
        flags.add(a, b, result);
        result
    }
}

impl Binary for Adc {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, a: T, b: T) -> T {
        let carry = u64::from(flags.cf());
        let result = T::cut(a.zx().wrapping_add(b.zx()).wrapping_add(carry));
        flags.add(a, b, result);
        result
    }
}

impl Binary for Sub {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, a: T, b: T) -> T {
        let result = T::cut(a.zx().wrapping_sub(b.zx()));
        flags.sub(a, b, result);
        result
    }
}

impl Binary for Sbb {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, a: T, b: T) -> T {
        let borrow = u64::from(flags.cf());
        let result = T::cut(a.zx().wrapping_sub(b.zx()).wrapping_sub(borrow));
        flags.sub(a, b, result);
        result
    }
}

impl Binary for Cmp {
    const STORES: bool = false;

    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, a: T, b: T) -> T {
        Sub::apply(flags, a, b)
    }
}

impl Binary for And {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, a: T, b: T) -> T {
        let result = T::cut(a.zx() & b.zx());
        flags.logic(result);
        result
    }
}

impl Binary for Or {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, a: T, b: T) -> T {
        let result = T::cut(a.zx() | b.zx());
        flags.logic(result);
        result
    }
}

impl Binary for Xor {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, a: T, b: T) -> T {
        let result = T::cut(a.zx() ^ b.zx());
        flags.logic(result);
        result
    }
}

impl Binary for Test {
    const STORES: bool = false;

    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, a: T, b: T) -> T {
        And::apply(flags, a, b)
    }
}

impl Unary for Inc {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, a: T) -> T {
        let carry = flags.cf();
        let result = Add::apply(flags, a, T::cut(1));
        flags.set_cf(carry);
        result
    }
}

impl Unary for Dec {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, a: T) -> T {
        let carry = flags.cf();
        let result = Sub::apply(flags, a, T::cut(1));
        flags.set_cf(carry);
        result
    }
}

impl Unary for Neg {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, a: T) -> T {
        Sub::apply(flags, T::cut(0), a)
    }
}

impl Unary for Not {
    #[inline(always)]
    fn apply<T: Int>(_flags: &mut Flags, a: T) -> T {
        T::cut(!a.zx())
    }
}
