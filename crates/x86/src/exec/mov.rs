//! Moves between general registers, memory and immediates: MOV, MOVZX, MOVSX, MOVSXD, LEA, XCHG, BSWAP, MOVBE, MOVNTI,
//! XLAT, and the sign extensions of the accumulator.
//!
//! MOV with segment, control or debug registers is not here.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::{Form, form, operand_bytes, sized};
use crate::int::Int;
use crate::op::{Exec, Flow, Op};
use crate::walk::AccessKind;
use crate::{Bus, Cpu, reg};

pub(super) fn lower<B: Bus>(insn: &Instruction, op: &mut Op<B>) -> Option<Exec<B>> {
    let bytes = operand_bytes(insn);
    let source_bytes = match insn.op1_kind() {
        OpKind::Register => insn.op1_register().size(),
        _ => insn.memory_size().size(),
    };
    match insn.mnemonic() {
        Mnemonic::Mov | Mnemonic::Movnti => lower_mov(insn),
        Mnemonic::Movzx => lower_movzx(form(insn), bytes, source_bytes),
        Mnemonic::Movsx | Mnemonic::Movsxd => lower_movsx(form(insn), bytes, source_bytes),
        Mnemonic::Lea => {
            op.addressing = op.addressing.unsegmented();
            if op.addressing.is_flat() && bytes == 8 {
                return Some(lea_flat);
            }
            sized!(bytes, T => lea::<B, T>)
        }
        Mnemonic::Xchg => match form(insn) {
            Form::RegReg => sized!(bytes, T => exchange_registers::<B, T>),
            _ => sized!(bytes, T => exchange::<B, T>),
        },
        Mnemonic::Bswap => match bytes {
            8 => Some(bswap64),
            4 => Some(bswap32),
            _ => Some(bswap16),
        },
        Mnemonic::Movbe => match form(insn) {
            Form::RegMem => sized!(bytes, T => movbe_load::<B, T>),
            _ => sized!(bytes, T => movbe_store::<B, T>),
        },
        Mnemonic::Xlatb => Some(xlat),
        Mnemonic::Cbw => Some(extend_accumulator::<B, u8, u16>),
        Mnemonic::Cwde => Some(extend_accumulator::<B, u16, u32>),
        Mnemonic::Cdqe => Some(extend_accumulator::<B, u32, u64>),
        Mnemonic::Cwd => Some(spread_sign::<B, u16>),
        Mnemonic::Cdq => Some(spread_sign::<B, u32>),
        Mnemonic::Cqo => Some(spread_sign::<B, u64>),
        _ => None,
    }
}

fn lower_mov<B: Bus>(insn: &Instruction) -> Option<Exec<B>> {
    let special = insn
        .op_kinds()
        .enumerate()
        .any(|(i, kind)| kind == OpKind::Register && !insn.op_register(i as u32).is_gpr());
    if special {
        return None;
    }
    let bytes = operand_bytes(insn);
    match form(insn) {
        Form::RegReg => sized!(bytes, T => reg_reg::<B, T>),
        Form::RegImm => sized!(bytes, T => reg_imm::<B, T>),
        Form::RegMem => sized!(bytes, T => reg_mem::<B, T>),
        Form::MemReg => sized!(bytes, T => mem_reg::<B, T>),
        Form::MemImm => sized!(bytes, T => mem_imm::<B, T>),
        _ => None,
    }
}

fn lower_movzx<B: Bus>(form: Form, to: usize, from: usize) -> Option<Exec<B>> {
    // A 32-bit destination clears the upper half, so it is a 64-bit one.
    Some(match (form, to, from) {
        (Form::RegReg, 2, 1) => reg_extended::<B, u16, u8>,
        (Form::RegReg, 2, 2) => reg_reg::<B, u16>,
        (Form::RegReg, _, 1) => reg_extended::<B, u64, u8>,
        (Form::RegReg, _, _) => reg_extended::<B, u64, u16>,
        (_, 2, 1) => mem_extended::<B, u16, u8>,
        (_, 2, 2) => reg_mem::<B, u16>,
        (_, _, 1) => mem_extended::<B, u64, u8>,
        (_, _, _) => mem_extended::<B, u64, u16>,
    })
}

fn lower_movsx<B: Bus>(form: Form, to: usize, from: usize) -> Option<Exec<B>> {
    let is_register = form == Form::RegReg;
    match (is_register, from) {
        (true, 1) => sized!(to, T => reg_sign_extended::<B, T, u8>),
        (true, 2) => sized!(to, T => reg_sign_extended::<B, T, u16>),
        (true, 4) => sized!(to, T => reg_sign_extended::<B, T, u32>),
        (false, 1) => sized!(to, T => mem_sign_extended::<B, T, u8>),
        (false, 2) => sized!(to, T => mem_sign_extended::<B, T, u16>),
        (false, 4) => sized!(to, T => mem_sign_extended::<B, T, u32>),
        _ => None,
    }
}

fn reg_reg<B: Bus, T: Int>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let value = cpu.get::<T>(op.src);
    cpu.set(op.dst, value);
    Ok(())
}

fn reg_imm<B: Bus, T: Int>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    cpu.set(op.dst, T::cut(op.imm));
    Ok(())
}

fn reg_mem<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    cpu.load_then(bus, op, |cpu, value: T| cpu.set(op.dst, value))
}

fn mem_reg<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let value = cpu.get::<T>(op.src);
    cpu.store(bus, op, value)
}

fn mem_imm<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    cpu.store(bus, op, T::cut(op.imm))
}

fn reg_extended<B: Bus, T: Int, S: Int>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let value = cpu.get::<S>(op.src);
    cpu.set(op.dst, T::cut(value.zx()));
    Ok(())
}

fn mem_extended<B: Bus, T: Int, S: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    cpu.load_then(bus, op, |cpu, value: S| cpu.set(op.dst, T::cut(value.zx())))
}

fn reg_sign_extended<B: Bus, T: Int, S: Int>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let value = cpu.get::<S>(op.src);
    cpu.set(op.dst, T::cut(value.sx()));
    Ok(())
}

fn mem_sign_extended<B: Bus, T: Int, S: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    cpu.load_then(bus, op, |cpu, value: S| cpu.set(op.dst, T::cut(value.sx())))
}

fn lea_flat<B: Bus>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let offset = cpu.offset(op);
    cpu.set(op.dst, offset);
    Ok(())
}

fn lea<B: Bus, T: Int>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let offset = cpu.offset(op) & op.addressing.mask();
    cpu.set(op.dst, T::cut(offset));
    Ok(())
}

fn exchange_registers<B: Bus, T: Int>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let (a, b) = (cpu.get::<T>(op.dst), cpu.get::<T>(op.src));
    cpu.set(op.src, a);
    cpu.set(op.dst, b);
    Ok(())
}

/// Memory is the first operand or the second; the register field that is not used is 0, like the other.
fn exchange<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let register = op.dst | op.src;
    cpu.update(bus, op, |cpu, memory: T| {
        let value = cpu.get(register);
        cpu.set(register, memory);
        value
    })
}

fn bswap64<B: Bus>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let value = cpu.get::<u64>(op.dst).swap_bytes();
    cpu.set(op.dst, value);
    Ok(())
}

fn bswap32<B: Bus>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let value = cpu.get::<u32>(op.dst).swap_bytes();
    cpu.set(op.dst, value);
    Ok(())
}

/// Undefined in the manuals; processors clear the register.
fn bswap16<B: Bus>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    cpu.set(op.dst, 0_u16);
    Ok(())
}

/// The bytes of `value` in reverse.
fn reversed<T: Int>(value: T) -> T {
    T::cut(value.zx().swap_bytes() >> (64 - T::BITS))
}

fn movbe_load<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let value: T = cpu.load(bus, op)?;
    cpu.set(op.dst, reversed(value));
    Ok(())
}

fn movbe_store<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let value = reversed(cpu.get::<T>(op.src));
    cpu.store(bus, op, value)
}

fn xlat<B: Bus>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let offset = cpu.gpr[reg::RBX].wrapping_add(cpu.gpr[reg::RAX] & 0xff);
    let linear = if op.addressing.is_flat() {
        offset
    } else {
        cpu.segmented(op.addressing, offset, 1, AccessKind::Read)?
    };
    let value: u8 = cpu.read(bus, linear, op.segment())?;
    cpu.set(reg::RAX as u8, value);
    Ok(())
}

fn extend_accumulator<B: Bus, S: Int, T: Int>(cpu: &mut Cpu, _bus: &mut B, _op: &Op<B>) -> Flow {
    let value = cpu.get::<S>(reg::RAX as u8);
    cpu.set(reg::RAX as u8, T::cut(value.sx()));
    Ok(())
}

fn spread_sign<B: Bus, T: Int>(cpu: &mut Cpu, _bus: &mut B, _op: &Op<B>) -> Flow {
    let value = cpu.get::<T>(reg::RAX as u8);
    let sign = (value.sx() as i64 >> 63) as u64;
    cpu.set(reg::RDX as u8, T::cut(sign));
    Ok(())
}
