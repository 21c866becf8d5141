//! Near jumps, calls and returns; LOOP and JCXZ.
//!
//! Conditional jumps are in [`cond`](super::cond), far ones in [`segment`](crate::segment).

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::{operand_bytes, sized};
use crate::int::Int;
use crate::op::{Exec, Exit, Fault, Flow, Op};
use crate::{Bus, Cpu, reg, seg};

pub(super) fn lower<B: Bus>(insn: &Instruction, op: &mut Op<B>) -> Option<Exec<B>> {
    if insn.is_jmp_short_or_near() {
        return Some(jump);
    }
    if insn.is_jmp_near_indirect() {
        return match insn.op0_kind() {
            OpKind::Register => sized!(operand_bytes(insn), T => jump_reg::<B, T>),
            _ => sized!(operand_bytes(insn), T => jump_mem::<B, T>),
        };
    }
    if insn.is_call_near() {
        return match insn.op0_kind() {
            OpKind::NearBranch16 => Some(call::<B, u16>),
            OpKind::NearBranch32 => Some(call::<B, u32>),
            _ => Some(call::<B, u64>),
        };
    }
    if insn.is_call_near_indirect() {
        return match insn.op0_kind() {
            OpKind::Register => sized!(operand_bytes(insn), T => call_reg::<B, T>),
            _ => sized!(operand_bytes(insn), T => call_mem::<B, T>),
        };
    }
    match insn.code() {
        Code::Retnw | Code::Retnw_imm16 => return Some(ret::<B, u16>),
        Code::Retnd | Code::Retnd_imm16 => return Some(ret::<B, u32>),
        Code::Retnq | Code::Retnq_imm16 => return Some(ret::<B, u64>),
        _ => {}
    }
    if insn.is_loop() || insn.is_loopcc() || insn.is_jcx_short() {
        op.src = counter_bytes(insn.code());
        return Some(match insn.mnemonic() {
            Mnemonic::Loop => repeat::<B, true, 2>,
            Mnemonic::Loope => repeat::<B, true, 1>,
            Mnemonic::Loopne => repeat::<B, true, 0>,
            _ => repeat::<B, false, 2>,
        });
    }
    None
}

/// Size of the counter of LOOP and JCXZ: CX, ECX or RCX.
fn counter_bytes(code: Code) -> u8 {
    match code {
        Code::Jcxz_rel8_16
        | Code::Jcxz_rel8_32
        | Code::Loop_rel8_16_CX
        | Code::Loop_rel8_32_CX
        | Code::Loope_rel8_16_CX
        | Code::Loope_rel8_32_CX
        | Code::Loopne_rel8_16_CX
        | Code::Loopne_rel8_32_CX => 2,
        Code::Jrcxz_rel8_16
        | Code::Jrcxz_rel8_64
        | Code::Loop_rel8_16_RCX
        | Code::Loop_rel8_64_RCX
        | Code::Loope_rel8_16_RCX
        | Code::Loope_rel8_64_RCX
        | Code::Loopne_rel8_16_RCX
        | Code::Loopne_rel8_64_RCX => 8,
        _ => 4,
    }
}

impl Cpu {
    /// Checks the target of a near transfer that the guest computed.
    #[inline(always)]
    pub(crate) fn check_target(&mut self, target: u64) -> Flow {
        let valid = if self.is_64() {
            Self::is_canonical(target)
        } else {
            target <= u64::from(self.segs[seg::CS].limit)
        };
        if valid {
            Ok(())
        } else {
            Err(self.raise(Fault::GP))
        }
    }

    #[inline(always)]
    fn jump_to(&mut self, target: u64) -> Flow {
        self.check_target(target)?;
        self.rip = target;
        Err(Exit::Jump)
    }
}

fn jump<B: Bus>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    cpu.rip = op.imm;
    Err(Exit::Jump)
}

fn jump_reg<B: Bus, T: Int>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let target = cpu.get::<T>(op.dst);
    cpu.jump_to(target.zx())
}

fn jump_mem<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let target: T = cpu.load(bus, op)?;
    cpu.jump_to(target.zx())
}

fn call<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let next = cpu.next_rip(op);
    if !cpu.try_push(bus, T::cut(next)) {
        return call_slow::<B, T>(cpu, bus, op);
    }
    cpu.rip = op.imm;
    Err(Exit::Jump)
}

#[cold]
#[inline(never)]
fn call_slow<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let next = cpu.next_rip(op);
    cpu.push(bus, T::cut(next))?;
    cpu.rip = op.imm;
    Err(Exit::Jump)
}

fn call_reg<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let target = cpu.get::<T>(op.dst).zx();
    call_to::<B, T>(cpu, bus, op, target)
}

fn call_mem<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let target: T = cpu.load(bus, op)?;
    call_to::<B, T>(cpu, bus, op, target.zx())
}

fn call_to<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>, target: u64) -> Flow {
    cpu.check_target(target)?;
    let next = cpu.next_rip(op);
    cpu.push(bus, T::cut(next))?;
    cpu.rip = target;
    Err(Exit::Jump)
}

/// `imm`: how many bytes of arguments to drop.
fn ret<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let stack = cpu.gpr[reg::RSP];
    if let Some(target) = cpu.try_pop::<B, T>(bus, op.imm) {
        if Cpu::is_canonical(target.zx()) {
            cpu.rip = target.zx();
            return Err(Exit::Jump);
        }
        cpu.gpr[reg::RSP] = stack;
    }
    ret_slow::<B, T>(cpu, bus, op)
}

#[cold]
#[inline(never)]
fn ret_slow<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let target = cpu.peek::<B, T>(bus, 0)?.zx();
    cpu.check_target(target)?;
    cpu.move_stack_pointer(T::BYTES as u64 + op.imm);
    cpu.rip = target;
    Err(Exit::Jump)
}

/// LOOP (`COUNTS`) and JCXZ. `ZF`: 0 or 1 if ZF must be that, 2 if it does not matter.
fn repeat<B: Bus, const COUNTS: bool, const ZF: u8>(
    cpu: &mut Cpu,
    _bus: &mut B,
    op: &Op<B>,
) -> Flow {
    let counter = reg::RCX as u8;
    let step = u64::from(COUNTS);
    let count = match op.src {
        2 => {
            let count = cpu.get::<u16>(counter).wrapping_sub(step as u16);
            cpu.set(counter, count);
            u64::from(count)
        }
        4 => {
            let count = cpu.get::<u32>(counter).wrapping_sub(step as u32);
            if COUNTS {
                cpu.set(counter, count);
            }
            u64::from(count)
        }
        _ => {
            let count = cpu.get::<u64>(counter).wrapping_sub(step);
            cpu.set(counter, count);
            count
        }
    };
    let flag_agrees = ZF == 2 || cpu.flags.zf() == (ZF == 1);
    if (count != 0) == COUNTS && flag_agrees {
        cpu.rip = op.imm;
    } else {
        cpu.rip = cpu.next_rip(op);
    }
    Err(Exit::Jump)
}
