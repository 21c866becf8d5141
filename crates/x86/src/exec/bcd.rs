//! Decimal arithmetic of 16- and 32-bit code: DAA, DAS, AAA, AAS, AAM, AAD.

use iced_x86::{Instruction, Mnemonic};

use crate::flags;
use crate::op::{Exec, Fault, Flow, Op};
use crate::{Bus, Cpu, reg};

const AL: u8 = reg::RAX as u8;
const AH: u8 = reg::HIGH;

pub(super) fn lower<B: Bus>(insn: &Instruction, _op: &mut Op<B>) -> Option<Exec<B>> {
    Some(match insn.mnemonic() {
        Mnemonic::Daa => |cpu, _, _| adjust_packed(cpu, u8::wrapping_add),
        Mnemonic::Das => |cpu, _, _| adjust_packed(cpu, u8::wrapping_sub),
        Mnemonic::Aaa => |cpu, _, _| adjust_digit(cpu, 0x106),
        Mnemonic::Aas => |cpu, _, _| adjust_digit(cpu, 0_u16.wrapping_sub(0x106)),
        Mnemonic::Aam => aam,
        Mnemonic::Aad => aad,
        _ => return None,
    })
}

fn adjust_packed(cpu: &mut Cpu, change: fn(u8, u8) -> u8) -> Flow {
    let before = cpu.get::<u8>(AL);
    let (had_carry, had_af) = (cpu.flags.cf(), cpu.flags.af());
    let mut result = before;
    let mut carry = false;
    let af = before & 15 > 9 || had_af;
    if af {
        result = change(result, 6);
        // The borrow or carry out of the low adjustment counts too.
        let wrapped = if change(0, 1) == 1 {
            result < before
        } else {
            result > before
        };
        carry = had_carry || wrapped;
    }
    if before > 0x99 || had_carry {
        result = change(result, 0x60);
        carry = true;
    }
    cpu.set(AL, result);
    cpu.flags.result(result, carry, false);
    let value = if af { flags::AF } else { 0 };
    cpu.flags.merge_arithmetic(flags::AF, value);
    Ok(())
}

fn adjust_digit(cpu: &mut Cpu, change: u16) -> Flow {
    let adjust = cpu.get::<u8>(AL) & 15 > 9 || cpu.flags.af();
    if adjust {
        let value = cpu.get::<u16>(AL).wrapping_add(change);
        cpu.set(AL, value);
    }
    let digit = cpu.get::<u8>(AL) & 15;
    cpu.set(AL, digit);
    let value = if adjust { flags::CF | flags::AF } else { 0 };
    cpu.flags.merge_arithmetic(flags::CF | flags::AF, value);
    Ok(())
}

fn aam<B: Bus>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let base = op.imm as u8;
    if base == 0 {
        return Err(cpu.raise(Fault::DE));
    }
    let value = cpu.get::<u8>(AL);
    cpu.set(AH, value / base);
    cpu.set(AL, value % base);
    cpu.flags.result(value % base, false, false);
    Ok(())
}

fn aad<B: Bus>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let (low, high) = (cpu.get::<u8>(AL), cpu.get::<u8>(AH));
    let value = low.wrapping_add(high.wrapping_mul(op.imm as u8));
    cpu.set(AL, u16::from(value));
    cpu.flags.result(value, false, false);
    Ok(())
}
