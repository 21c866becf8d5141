//! What instructions do: one file for each family, and the table that finds the function.
//!
//! A family's `lower` looks at the decoded instruction and answers with the function for it, or `None` if the
//! instruction is not of the family. The operands are in the [`Op`] already; where a family wants something else
//! there, it changes the `Op`. Functions are generic over the bus, the operand size, and often the
//! operation, so that a decoded instruction runs without a decision that decoding could make.

mod arith;
mod bcd;
mod bit;
mod block;
mod cond;
mod control;
mod exchange;
mod flag;
mod fpu;
mod fxsave;
mod io;
mod legacy;
mod mmx;
mod mov;
mod msr;
mod muldiv;
mod places;
mod register;
mod segment;
mod shift;
mod sse;
mod stack;
mod string;
mod syscall;
mod system;
mod table;
mod transfer;

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use crate::int::Int;
use crate::op::{Exec, Fault, Flow, Op};
use crate::{Bus, Cpu};

/// Picks the instance of a function for an operand size in bytes: `sized!(4, T => move_reg::<B, T>)`.
macro_rules! sized {
    ($bytes:expr, $T:ident => $function:expr) => {
        match $bytes {
            1 => {
                type $T = u8;
                Some($function as crate::op::Exec<B>)
            }
            2 => {
                type $T = u16;
                Some($function as crate::op::Exec<B>)
            }
            4 => {
                type $T = u32;
                Some($function as crate::op::Exec<B>)
            }
            8 => {
                type $T = u64;
                Some($function as crate::op::Exec<B>)
            }
            _ => None,
        }
    };
}
pub(crate) use sized;

/// A family's part of the table.
type Lower<B> = fn(&Instruction, &mut Op<B>) -> Option<Exec<B>>;

/// The function that executes an instruction.
pub(crate) fn lower<B: Bus>(insn: &Instruction, op: &mut Op<B>) -> Exec<B> {
    let families: &[Lower<B>] = &[
        idle,
        mov::lower,
        arith::lower,
        cond::lower,
        control::lower,
        stack::lower,
        shift::lower,
        bit::lower,
        muldiv::lower,
        string::lower,
        exchange::lower,
        flag::lower,
        bcd::lower,
        legacy::lower,
        sse::lower,
        mmx::lower,
        fpu::lower,
        fxsave::lower,
        segment::lower,
        transfer::lower,
        register::lower,
        table::lower,
        system::lower,
        syscall::lower,
        io::lower,
        msr::lower,
    ];
    if insn.is_invalid() {
        return if op.len >= 15 { too_long } else { undefined };
    }
    if let Some(exec) = families.iter().find_map(|family| family(insn, op)) {
        return exec;
    }
    op.imm = insn.code() as u64;
    unimplemented
}

/// The function that executes `first` and the conditional jump `second` behind it, if there is one.
pub(crate) fn lower_with_jump<B: Bus>(
    first: &Instruction,
    second: &Instruction,
) -> Option<Exec<B>> {
    if !second.is_jcc_short_or_near() {
        return None;
    }
    arith::lower_with_jump(first, cond::condition(second)?)
}

/// What does nothing here: hints, and the fences and cache instructions of a processor without caches.
fn idle<B: Bus>(insn: &Instruction, _op: &mut Op<B>) -> Option<Exec<B>> {
    use Mnemonic::*;
    let idle = matches!(
        insn.mnemonic(),
        Nop | Reservednop
            | Endbr64
            | Endbr32
            | Lfence
            | Sfence
            | Mfence
            | Prefetchw
            | Prefetchnta
            | Prefetcht0
            | Prefetcht1
            | Prefetcht2
            | Prefetch
    );
    let touches = matches!(insn.mnemonic(), Clflush | Clflushopt | Clwb);
    match (idle, touches) {
        (true, _) => Some(nop),
        (_, true) => Some(touch),
        _ => None,
    }
}

/// Where the operands are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Reg,
    Mem,
    RegReg,
    RegMem,
    MemReg,
    RegImm,
    MemImm,
    Other,
}

/// Where the first two operands are.
pub(crate) fn form(insn: &Instruction) -> Form {
    use OpKind::{Memory, Register};
    let second = (insn.op_count() > 1).then(|| insn.op1_kind());
    match (insn.op0_kind(), second) {
        _ if insn.op_count() == 0 => Form::Other,
        (Register, None) => Form::Reg,
        (Memory, None) => Form::Mem,
        (Register, Some(Register)) => Form::RegReg,
        (Register, Some(Memory)) => Form::RegMem,
        (Memory, Some(Register)) => Form::MemReg,
        (Register, Some(_)) => Form::RegImm,
        (Memory, Some(_)) => Form::MemImm,
        _ => Form::Other,
    }
}

/// Size of the first operand in bytes.
pub(crate) fn operand_bytes(insn: &Instruction) -> usize {
    match insn.op0_kind() {
        OpKind::Register => insn.op0_register().size(),
        _ => insn.memory_size().size(),
    }
}

/// Nothing.
pub(crate) fn nop<B: Bus>(_cpu: &mut Cpu, _bus: &mut B, _op: &Op<B>) -> Flow {
    Ok(())
}

/// Faults as a load would.
fn touch<B: Bus>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    cpu.load::<B, u8>(bus, op).map(drop)
}

/// #UD.
pub(crate) fn undefined<B: Bus>(cpu: &mut Cpu, _bus: &mut B, _op: &Op<B>) -> Flow {
    Err(cpu.raise(Fault::UD))
}

/// More than 15 bytes.
fn too_long<B: Bus>(cpu: &mut Cpu, _bus: &mut B, _op: &Op<B>) -> Flow {
    Err(cpu.raise(Fault::GP))
}

/// #UD, and a note for the host. `imm` is the decoder's code.
fn unimplemented<B: Bus>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let name =
        Code::try_from(op.imm as usize).map_or_else(|_| String::new(), |code| format!("{code:?}"));
    let rip = cpu.rip_of(op);
    let mut bytes = [0; 15];
    let bytes = &mut bytes[..usize::from(op.len)];
    for (i, byte) in bytes.iter_mut().enumerate() {
        let linear = rip.wrapping_add(i as u64);
        if let Ok(Some((page, _))) = cpu.fetch_page(bus, linear) {
            bus.load_bytes(page, linear as usize % 4096, core::slice::from_mut(byte));
        }
    }
    cpu.note_unimplemented(name, bytes, rip);
    Err(cpu.raise(Fault::UD))
}

/// Registers, and the stack.
impl Cpu {
    /// Reads a general register.
    #[inline(always)]
    pub(crate) fn get<T: Int>(&self, number: u8) -> T {
        T::get(&self.gpr, number)
    }

    /// Writes a general register.
    #[inline(always)]
    pub(crate) fn set<T: Int>(&mut self, number: u8, value: T) {
        value.set(&mut self.gpr, number);
    }
}
