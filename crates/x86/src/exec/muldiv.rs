//! MUL, IMUL, DIV, IDIV.
//!
//! SF, ZF, PF and AF are undefined after a multiplication: they are those of the low half.

use iced_x86::{Instruction, Mnemonic};

use super::{Form, form, operand_bytes, sized};
use crate::int::Int;
use crate::op::{Exec, Fault, Flow, Op};
use crate::{Bus, Cpu, reg};

const RAX: u8 = reg::RAX as u8;
const RDX: u8 = reg::RDX as u8;
/// AH.
const AH: u8 = reg::HIGH;

pub(super) fn lower<B: Bus>(insn: &Instruction, _op: &mut Op<B>) -> Option<Exec<B>> {
    let bytes = operand_bytes(insn);
    match insn.mnemonic() {
        Mnemonic::Mul => one::<B, Mul>(insn),
        Mnemonic::Imul if insn.op_count() == 1 => one::<B, Imul>(insn),
        Mnemonic::Div => one::<B, Div>(insn),
        Mnemonic::Idiv => one::<B, Idiv>(insn),
        Mnemonic::Imul => match (form(insn), insn.op_count()) {
            (Form::RegReg, 2) => sized!(bytes, T => multiply_reg::<B, T>),
            (Form::RegMem, 2) => sized!(bytes, T => multiply_mem::<B, T>),
            (Form::RegReg, _) => sized!(bytes, T => multiply_reg_imm::<B, T>),
            _ => sized!(bytes, T => multiply_mem_imm::<B, T>),
        },
        _ => None,
    }
}

fn one<B: Bus, O: Wide>(insn: &Instruction) -> Option<Exec<B>> {
    match form(insn) {
        Form::Reg => sized!(operand_bytes(insn), T => by_reg::<B, T, O>),
        _ => sized!(operand_bytes(insn), T => by_mem::<B, T, O>),
    }
}

/// An operation between the double-width accumulator and an operand.
trait Wide {
    fn apply<T: Int>(cpu: &mut Cpu, operand: T) -> Flow;
}

fn by_reg<B: Bus, T: Int, O: Wide>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let operand = cpu.get::<T>(op.dst);
    O::apply(cpu, operand)
}

fn by_mem<B: Bus, T: Int, O: Wide>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let operand = cpu.load::<B, T>(bus, op)?;
    O::apply(cpu, operand)
}

fn multiply_reg<B: Bus, T: Int>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let (a, b) = (cpu.get::<T>(op.dst), cpu.get::<T>(op.src));
    multiply(cpu, op, a, b);
    Ok(())
}

fn multiply_mem<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    cpu.load_then(bus, op, |cpu, b: T| {
        let a = cpu.get::<T>(op.dst);
        multiply(cpu, op, a, b);
    })
}

fn multiply_reg_imm<B: Bus, T: Int>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let a = cpu.get::<T>(op.src);
    multiply(cpu, op, a, T::cut(op.imm));
    Ok(())
}

fn multiply_mem_imm<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    cpu.load_then(bus, op, |cpu, a: T| multiply(cpu, op, a, T::cut(op.imm)))
}

#[inline(always)]
fn multiply<B, T: Int>(cpu: &mut Cpu, op: &Op<B>, a: T, b: T) {
    let product = i128::from(a.sx() as i64) * i128::from(b.sx() as i64);
    let result = T::cut(product as u64);
    let overflow = i128::from(result.sx() as i64) != product;
    cpu.flags.result(result, overflow, overflow);
    cpu.set(op.dst, result);
}

struct Mul;
struct Imul;
struct Div;
struct Idiv;

impl Wide for Mul {
    #[inline(always)]
    fn apply<T: Int>(cpu: &mut Cpu, operand: T) -> Flow {
        let product = u128::from(cpu.get::<T>(RAX).zx()) * u128::from(operand.zx());
        let overflow = product >> T::BITS != 0;
        cpu.set_wide::<T>(product);
        cpu.flags.result(T::cut(product as u64), overflow, overflow);
        Ok(())
    }
}

impl Wide for Imul {
    #[inline(always)]
    fn apply<T: Int>(cpu: &mut Cpu, operand: T) -> Flow {
        let product = i128::from(cpu.get::<T>(RAX).sx() as i64) * i128::from(operand.sx() as i64);
        let low = T::cut(product as u64);
        let overflow = i128::from(low.sx() as i64) != product;
        cpu.set_wide::<T>(product as u128);
        cpu.flags.result(low, overflow, overflow);
        Ok(())
    }
}

impl Wide for Div {
    #[inline(always)]
    fn apply<T: Int>(cpu: &mut Cpu, operand: T) -> Flow {
        let divisor = operand.zx();
        if divisor == 0 {
            return Err(cpu.raise(Fault::DE));
        }
        let dividend = cpu.wide::<T>();
        // The host's 128-bit division is slow, and seldom needed.
        let (quotient, remainder) = match u64::try_from(dividend) {
            Ok(dividend) => (u128::from(dividend / divisor), dividend % divisor),
            Err(_) => {
                let divisor = u128::from(divisor);
                (dividend / divisor, (dividend % divisor) as u64)
            }
        };
        if quotient >> T::BITS != 0 {
            return Err(cpu.raise(Fault::DE));
        }
        cpu.set_halves(T::cut(quotient as u64), T::cut(remainder));
        Ok(())
    }
}

impl Wide for Idiv {
    #[inline(always)]
    fn apply<T: Int>(cpu: &mut Cpu, operand: T) -> Flow {
        let divisor = operand.sx() as i64;
        if divisor == 0 {
            return Err(cpu.raise(Fault::DE));
        }
        let unused = 128 - 2 * T::BITS;
        let dividend = (cpu.wide::<T>() << unused) as i128 >> unused;
        let (quotient, remainder) = match i64::try_from(dividend) {
            Ok(dividend) if divisor != -1 => (i128::from(dividend / divisor), dividend % divisor),
            _ => {
                let divisor = i128::from(divisor);
                let quotient = dividend.wrapping_div(divisor);
                (quotient, dividend.wrapping_rem(divisor) as i64)
            }
        };
        let low = T::cut(quotient as u64);
        if i128::from(low.sx() as i64) != quotient {
            return Err(cpu.raise(Fault::DE));
        }
        cpu.set_halves(low, T::cut(remainder as u64));
        Ok(())
    }
}

/// The double-width accumulator: AX, DX:AX, EDX:EAX or RDX:RAX.
impl Cpu {
    #[inline(always)]
    fn wide<T: Int>(&self) -> u128 {
        let high = if T::BYTES == 1 { AH } else { RDX };
        u128::from(self.get::<T>(high).zx()) << T::BITS | u128::from(self.get::<T>(RAX).zx())
    }

    #[inline(always)]
    fn set_wide<T: Int>(&mut self, value: u128) {
        self.set_halves(T::cut(value as u64), T::cut((value >> T::BITS) as u64));
    }

    #[inline(always)]
    fn set_halves<T: Int>(&mut self, low: T, high: T) {
        self.set(RAX, low);
        self.set(if T::BYTES == 1 { AH } else { RDX }, high);
    }
}
