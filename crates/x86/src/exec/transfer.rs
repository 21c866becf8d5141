//! Far JMP, CALL and RET, IRET, and the INT family.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::segment::far_pointer;
use super::sized;
use crate::int::Int;
use crate::op::{Exec, Fault, Flow, Op, vector};
use crate::stack::StackWidth;
use crate::{Bus, Cpu};

/// The functions of this family.
pub(crate) fn lower<B: Bus>(insn: &Instruction, op: &mut Op<B>) -> Option<Exec<B>> {
    use Mnemonic::{Call, Int, Int1, Int3, Into, Iret, Iretd, Iretq, Jmp, Retf};
    match insn.mnemonic() {
        Jmp if insn.is_jmp_far() => sized!(offset_bytes(insn), T => jmp_pointer::<B, T>),
        Jmp if insn.is_jmp_far_indirect() => sized!(offset_bytes(insn), T => jmp_memory::<B, T>),
        Call if insn.is_call_far() => sized!(offset_bytes(insn), T => call_pointer::<B, T>),
        Call if insn.is_call_far_indirect() => {
            sized!(offset_bytes(insn), T => call_memory::<B, T>)
        }
        Retf => {
            op.imm &= 0xffff;
            sized!(retf_bytes(insn), T => retf::<B, T>)
        }
        Iret => Some(iret::<B, u16>),
        Iretd => Some(iret::<B, u32>),
        Iretq => Some(iret::<B, u64>),
        Int => Some(int),
        Int3 => {
            op.imm = u64::from(vector::BP);
            Some(int3)
        }
        Into => Some(into),
        Int1 => Some(int1),
        _ => None,
    }
}

/// Size of the offset in a far pointer.
fn offset_bytes(insn: &Instruction) -> usize {
    match insn.op0_kind() {
        OpKind::FarBranch16 => 2,
        OpKind::FarBranch32 => 4,
        _ => insn.memory_size().size().saturating_sub(2),
    }
}

/// Operand size of RETF, whose mnemonic does not tell.
fn retf_bytes(insn: &Instruction) -> usize {
    use iced_x86::Code;
    match insn.code() {
        Code::Retfw | Code::Retfw_imm16 => 2,
        Code::Retfd | Code::Retfd_imm16 => 4,
        _ => 8,
    }
}

fn width<T: Int>() -> StackWidth {
    StackWidth::of(T::BYTES as u64)
}

/// `imm` is the offset, and 32 bits higher the selector.
fn jmp_pointer<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    cpu.far_jump(bus, (op.imm >> 32) as u16, op.imm & 0xffff_ffff)
}

fn jmp_memory<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let (offset, selector) = far_pointer::<B, T>(cpu, bus, op)?;
    cpu.far_jump(bus, selector, offset.zx())
}

fn call_pointer<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let next = cpu.next_rip(op);
    cpu.far_call(
        bus,
        (op.imm >> 32) as u16,
        op.imm & 0xffff_ffff,
        next,
        width::<T>(),
    )
}

fn call_memory<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let (offset, selector) = far_pointer::<B, T>(cpu, bus, op)?;
    let next = cpu.next_rip(op);
    cpu.far_call(bus, selector, offset.zx(), next, width::<T>())
}

fn retf<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    cpu.far_return(bus, width::<T>(), op.imm)
}

fn iret<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, _op: &Op<B>) -> Flow {
    cpu.interrupt_return(bus, width::<T>())
}

fn int<B: Bus>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    if cpu.is_v86() && cpu.iopl() < 3 {
        return Err(cpu.raise(Fault::GP));
    }
    let next = cpu.next_rip(op);
    cpu.software_interrupt(bus, op.imm as u8, next, false)
}

/// INT3, which a debugger of the guest may want to see first.
fn int3<B: Bus>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    if cpu.config.trap_breakpoint {
        return Err(cpu.raise(Fault::plain(vector::BP)));
    }
    let next = cpu.next_rip(op);
    cpu.software_interrupt(bus, vector::BP, next, false)
}

fn into<B: Bus>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    if !cpu.flags.of() {
        return Ok(());
    }
    let next = cpu.next_rip(op);
    cpu.software_interrupt(bus, vector::OF, next, false)
}

fn int1<B: Bus>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let next = cpu.next_rip(op);
    cpu.software_interrupt(bus, vector::DB, next, true)
}
