//! What depends on a condition: Jcc, SETcc, CMOVcc.

use iced_x86::{ConditionCode, Instruction, OpKind};

use super::{Form, form, operand_bytes};
use crate::int::Int;
use crate::op::{Exec, Exit, Flow, Op};
use crate::{Bus, Cpu};

/// Picks the instance for a condition code: `conditional!(cc, CC => jump::<B, CC>)`.
macro_rules! conditional {
    ($code:expr, $CC:ident => $function:expr) => {
        conditional!(@arms $code, $CC, $function, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@arms $code:expr, $CC:ident, $function:expr, $($number:literal)*) => {
        match $code {
            $($number => {
                const $CC: u8 = $number;
                Some($function as Exec<B>)
            })*
            _ => None,
        }
    };
}

pub(super) use conditional;

pub(super) fn lower<B: Bus>(insn: &Instruction, op: &mut Op<B>) -> Option<Exec<B>> {
    let cc = condition(insn)?;
    if insn.is_jcc_short_or_near() {
        op.disp = insn.next_ip();
        return conditional!(cc, CC => jump::<B, CC>);
    }
    if insn.op_count() == 1 {
        return match insn.op0_kind() {
            OpKind::Register => conditional!(cc, CC => set_reg::<B, CC>),
            OpKind::Memory => conditional!(cc, CC => set_mem::<B, CC>),
            _ => None,
        };
    }
    match (form(insn), operand_bytes(insn)) {
        (Form::RegReg, 8) => conditional!(cc, CC => move_reg::<B, u64, CC>),
        (Form::RegReg, 4) => conditional!(cc, CC => move_reg::<B, u32, CC>),
        (Form::RegReg, 2) => conditional!(cc, CC => move_reg::<B, u16, CC>),
        (Form::RegMem, 8) => conditional!(cc, CC => move_mem::<B, u64, CC>),
        (Form::RegMem, 4) => conditional!(cc, CC => move_mem::<B, u32, CC>),
        (Form::RegMem, 2) => conditional!(cc, CC => move_mem::<B, u16, CC>),
        _ => None,
    }
}

/// The condition that `insn` depends on: the low four bits of its opcode.
pub(super) fn condition(insn: &Instruction) -> Option<u8> {
    match insn.condition_code() {
        ConditionCode::None => None,
        code => Some(code as u8 - 1), // the enum's order is that of the opcodes, after `None`
    }
}

fn jump<B: Bus, const CC: u8>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    if cpu.flags.condition::<CC>() {
        cpu.rip = op.imm;
        return Err(Exit::Jump);
    }
    Ok(())
}

fn set_reg<B: Bus, const CC: u8>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let value = u8::from(cpu.flags.condition::<CC>());
    cpu.set(op.dst, value);
    Ok(())
}

fn set_mem<B: Bus, const CC: u8>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let value = u8::from(cpu.flags.condition::<CC>());
    cpu.store(bus, op, value)
}

/// Without the condition, the destination is still written: a 32-bit one is zero-extended.
fn move_reg<B: Bus, T: Int, const CC: u8>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let from = if cpu.flags.condition::<CC>() {
        op.src
    } else {
        op.dst
    };
    let value = cpu.get::<T>(from);
    cpu.set(op.dst, value);
    Ok(())
}

fn move_mem<B: Bus, T: Int, const CC: u8>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    cpu.load_then(bus, op, |cpu, mut value: T| {
        if !cpu.flags.condition::<CC>() {
            value = cpu.get(op.dst);
        }
        cpu.set(op.dst, value);
    })
}
