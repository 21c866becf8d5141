//! ADD, ADC, SUB, SBB, CMP, AND, OR, XOR, TEST, INC, DEC, NEG, NOT: one or two operands, one result.
//!
//! The operations are types ([`Binary`], [`Unary`]), so that each pair of operation and operand form is a
//! function of its own. CMP, TEST, INC and DEC also have functions that do the conditional jump behind them.

use iced_x86::{Instruction, Mnemonic};

use super::cond::conditional;
use super::{Form, form, operand_bytes, sized};
use crate::flags::Flags;
use crate::int::Int;
use crate::op::{Exec, Exit, Flow, Op};
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
        Form::RegReg => sized!(bytes, T => two::<B, RegReg, T, O>),
        Form::RegImm => sized!(bytes, T => two::<B, RegImm, T, O>),
        Form::RegMem => sized!(bytes, T => two::<B, RegMem, T, O>),
        Form::MemReg => sized!(bytes, T => two::<B, MemReg, T, O>),
        Form::MemImm => sized!(bytes, T => two::<B, MemImm, T, O>),
        _ => None,
    }
}

/// The function for CMP, TEST, INC or DEC and the conditional jump behind it, as one [`Op`].
pub(super) fn lower_with_jump<B: Bus>(first: &Instruction, cc: u8) -> Option<Exec<B>> {
    match first.mnemonic() {
        Mnemonic::Cmp => binary_with_jump::<B, Cmp>(first, cc),
        Mnemonic::Test => binary_with_jump::<B, Test>(first, cc),
        Mnemonic::Inc => unary_with_jump::<B, Inc>(first, cc),
        Mnemonic::Dec => unary_with_jump::<B, Dec>(first, cc),
        _ => None,
    }
}

fn unary_with_jump<B: Bus, O: Unary>(insn: &Instruction, cc: u8) -> Option<Exec<B>> {
    match (form(insn), operand_bytes(insn)) {
        (Form::Reg, 4) => conditional!(cc, CC => reg_and_jump::<B, u32, O, CC>),
        (Form::Reg, 8) => conditional!(cc, CC => reg_and_jump::<B, u64, O, CC>),
        _ => None,
    }
}

fn binary_with_jump<B: Bus, O: Binary>(insn: &Instruction, cc: u8) -> Option<Exec<B>> {
    let bytes = operand_bytes(insn);
    match form(insn) {
        Form::RegReg => sized_with_jump::<B, RegReg, O>(bytes, cc),
        Form::RegImm => sized_with_jump::<B, RegImm, O>(bytes, cc),
        Form::RegMem => sized_with_jump::<B, RegMem, O>(bytes, cc),
        Form::MemReg => sized_with_jump::<B, MemReg, O>(bytes, cc),
        Form::MemImm => sized_with_jump::<B, MemImm, O>(bytes, cc),
        _ => None,
    }
}

fn sized_with_jump<B: Bus, F: Operands, O: Binary>(bytes: usize, cc: u8) -> Option<Exec<B>> {
    match bytes {
        1 => conditional!(cc, CC => two_and_jump::<B, F, u8, O, CC>),
        4 => conditional!(cc, CC => two_and_jump::<B, F, u32, O, CC>),
        8 => conditional!(cc, CC => two_and_jump::<B, F, u64, O, CC>),
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

/// Where the two operands are.
trait Operands {
    fn apply<B: Bus, T: Int, O: Binary>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow;
}

fn two<B: Bus, F: Operands, T: Int, O: Binary>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    F::apply::<B, T, O>(cpu, bus, op)
}

fn two_and_jump<B: Bus, F: Operands, T: Int, O: Binary, const CC: u8>(
    cpu: &mut Cpu,
    bus: &mut B,
    op: &Op<B>,
) -> Flow {
    F::apply::<B, T, O>(cpu, bus, op)?;
    jump_if::<B, CC>(cpu, op)
}

#[inline(always)]
fn jump_if<B: Bus, const CC: u8>(cpu: &mut Cpu, op: &Op<B>) -> Flow {
    if cpu.flags.condition::<CC>() {
        cpu.rip = op.second_target(cpu.rip);
        return Err(Exit::Jump);
    }
    Ok(())
}

struct RegReg;
struct RegImm;
struct RegMem;
struct MemReg;
struct MemImm;

impl Operands for RegReg {
    #[inline(always)]
    fn apply<B: Bus, T: Int, O: Binary>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
        let (a, b) = (cpu.get::<T>(op.dst), cpu.get(op.src));
        let result = O::apply(&mut cpu.flags, a, b);
        if O::STORES {
            cpu.set(op.dst, result);
        }
        Ok(())
    }
}

impl Operands for RegImm {
    #[inline(always)]
    fn apply<B: Bus, T: Int, O: Binary>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
        let a = cpu.get::<T>(op.dst);
        let result = O::apply(&mut cpu.flags, a, op.immediate());
        if O::STORES {
            cpu.set(op.dst, result);
        }
        Ok(())
    }
}

impl Operands for RegMem {
    #[inline(always)]
    fn apply<B: Bus, T: Int, O: Binary>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
        cpu.load_then(bus, op, |cpu, b: T| {
            let a = cpu.get::<T>(op.dst);
            let result = O::apply(&mut cpu.flags, a, b);
            if O::STORES {
                cpu.set(op.dst, result);
            }
        })
    }
}

impl Operands for MemReg {
    #[inline(always)]
    fn apply<B: Bus, T: Int, O: Binary>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
        let b = cpu.get::<T>(op.src);
        mem_value::<B, T, O>(cpu, bus, op, b)
    }
}

impl Operands for MemImm {
    #[inline(always)]
    fn apply<B: Bus, T: Int, O: Binary>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
        mem_value::<B, T, O>(cpu, bus, op, op.immediate())
    }
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

#[inline(always)]
fn reg<B: Bus, T: Int, O: Unary>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let a = cpu.get::<T>(op.dst);
    let result = O::apply(&mut cpu.flags, a);
    cpu.set(op.dst, result);
    Ok(())
}

fn reg_and_jump<B: Bus, T: Int, O: Unary, const CC: u8>(
    cpu: &mut Cpu,
    bus: &mut B,
    op: &Op<B>,
) -> Flow {
    reg::<B, T, O>(cpu, bus, op)?;
    jump_if::<B, CC>(cpu, op)
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
