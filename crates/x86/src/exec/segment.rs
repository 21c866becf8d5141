//! Instructions about segment registers: MOV, POP, LDS and its kin; LAR, LSL, VERR, VERW.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::{operand_bytes, sized, undefined};
use crate::cpu::Shadow;
use crate::int::Int;
use crate::op::{Exec, Exit, Fault, Flow, Op};
use crate::stack::StackWidth;
use crate::walk::AccessKind;
use crate::{Bus, Cpu, flags, reg, seg};

/// The functions of this family.
pub(crate) fn lower<B: Bus>(insn: &Instruction, op: &mut Op<B>) -> Option<Exec<B>> {
    let in_memory = |i: u32| insn.op_kind(i) == OpKind::Memory;
    let from_memory = insn.op_count() > 1 && in_memory(1);
    match insn.mnemonic() {
        Mnemonic::Mov if insn.op0_register() == Register::CS => Some(undefined),
        Mnemonic::Mov if insn.op0_register().is_segment_register() => Some(match from_memory {
            true => mov_to_segment::<B, true>,
            false => mov_to_segment::<B, false>,
        }),
        Mnemonic::Mov if insn.op1_register().is_segment_register() => match in_memory(0) {
            true => Some(mov_from_segment_to_memory),
            false => sized!(operand_bytes(insn), T => mov_from_segment::<B, T>),
        },
        Mnemonic::Pop if insn.op0_register() == Register::CS => Some(undefined),
        Mnemonic::Pop if insn.op0_register().is_segment_register() => {
            sized!(stack_bytes(insn), T => pop_segment::<B, T>)
        }
        Mnemonic::Les | Mnemonic::Lds | Mnemonic::Lss | Mnemonic::Lfs | Mnemonic::Lgs => {
            op.imm = match insn.mnemonic() {
                Mnemonic::Les => seg::ES,
                Mnemonic::Lds => seg::DS,
                Mnemonic::Lss => seg::SS,
                Mnemonic::Lfs => seg::FS,
                _ => seg::GS,
            } as u64;
            sized!(operand_bytes(insn), T => load_far_pointer::<B, T>)
        }
        Mnemonic::Lar | Mnemonic::Lsl => {
            let lar = insn.mnemonic() == Mnemonic::Lar;
            op.imm = u64::from(lar);
            match from_memory {
                true => sized!(operand_bytes(insn), T => ask::<B, T, true>),
                false => sized!(operand_bytes(insn), T => ask::<B, T, false>),
            }
        }
        Mnemonic::Verr | Mnemonic::Verw => {
            op.imm = u64::from(insn.mnemonic() == Mnemonic::Verw);
            op.src = op.dst;
            Some(match in_memory(0) {
                true => verify::<B, true>,
                false => verify::<B, false>,
            })
        }
        _ => None,
    }
}

/// Size of what POP moves.
fn stack_bytes(insn: &Instruction) -> usize {
    insn.stack_pointer_increment().unsigned_abs() as usize
}

/// The 16-bit source operand.
fn selector<B: Bus, const MEMORY: bool>(
    cpu: &mut Cpu,
    bus: &mut B,
    op: &Op<B>,
) -> Result<u16, Exit> {
    if MEMORY {
        cpu.load(bus, op)
    } else {
        Ok(cpu.get(op.src))
    }
}

fn mov_to_segment<B: Bus, const MEMORY: bool>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let selector = selector::<B, MEMORY>(cpu, bus, op)?;
    let index = usize::from(op.dst);
    cpu.load_segment(bus, index, selector)?;
    after_load(cpu, index)
}

/// A new SS keeps interrupts away until the stack pointer is loaded as well.
fn after_load(cpu: &mut Cpu, index: usize) -> Flow {
    if index != seg::SS {
        return Ok(());
    }
    cpu.shadow = Shadow::MovSs;
    cpu.attention = true;
    Err(Exit::Leave)
}

fn mov_from_segment<B: Bus, T: Int>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let selector = cpu.segs[usize::from(op.src)].selector;
    cpu.set(op.dst, T::cut(u64::from(selector)));
    Ok(())
}

fn mov_from_segment_to_memory<B: Bus>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let selector = cpu.segs[usize::from(op.src)].selector;
    cpu.store(bus, op, selector)
}

fn pop_segment<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let width = StackWidth::of(T::BYTES as u64);
    let selector = cpu.stack_slot(bus, width, 0)? as u16;
    let rsp = cpu.gpr[reg::RSP];
    cpu.move_stack_pointer(width.bytes());
    let index = usize::from(op.dst);
    if let Err(exit) = cpu.load_segment(bus, index, selector) {
        cpu.gpr[reg::RSP] = rsp;
        return Err(exit);
    }
    after_load(cpu, index)
}

/// LES, LDS, LSS, LFS, LGS. `imm` is the segment register.
fn load_far_pointer<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let (offset, selector) = far_pointer::<B, T>(cpu, bus, op)?;
    let index = op.imm as usize;
    cpu.load_segment(bus, index, selector)?;
    cpu.set(op.dst, offset);
    // Unlike MOV SS, LSS has no shadow: it loads both halves.
    if index == seg::SS {
        Err(Exit::Leave)
    } else {
        Ok(())
    }
}

/// The far pointer that the memory operand is.
pub(super) fn far_pointer<B: Bus, T: Int>(
    cpu: &mut Cpu,
    bus: &mut B,
    op: &Op<B>,
) -> Result<(T, u16), Exit> {
    let linear = cpu.linear(op, T::BYTES + 2, AccessKind::Read)?;
    let offset = cpu.read(bus, linear, op.segment())?;
    let behind = cpu.wrap_linear(linear.wrapping_add(T::BYTES as u64));
    Ok((offset, cpu.read(bus, behind, op.segment())?))
}

/// LAR (`imm` 1) and LSL.
fn ask<B: Bus, T: Int, const MEMORY: bool>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    require_descriptors(cpu)?;
    let selector = selector::<B, MEMORY>(cpu, bus, op)?;
    let answer = if op.imm == 1 {
        cpu.access_rights(bus, selector)?
    } else {
        cpu.segment_limit(bus, selector)?
    };
    if let Some(answer) = answer {
        cpu.set(op.dst, T::cut(u64::from(answer)));
    }
    set_zf(cpu, answer.is_some());
    Ok(())
}

/// VERR and VERW (`imm` 1).
fn verify<B: Bus, const MEMORY: bool>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    require_descriptors(cpu)?;
    let selector = selector::<B, MEMORY>(cpu, bus, op)?;
    let answer = cpu.verify_segment(bus, selector, op.imm == 1)?;
    set_zf(cpu, answer);
    Ok(())
}

/// #UD where selectors do not name descriptors.
pub(super) fn require_descriptors(cpu: &mut Cpu) -> Flow {
    if cpu.is_real() || cpu.is_v86() {
        Err(cpu.raise(Fault::UD))
    } else {
        Ok(())
    }
}

fn set_zf(cpu: &mut Cpu, zero: bool) {
    cpu.flags
        .merge_arithmetic(flags::ZF, if zero { flags::ZF } else { 0 });
}
