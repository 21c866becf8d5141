//! PUSH, POP, PUSHA, POPA, PUSHF, POPF, ENTER, LEAVE, and the stack itself.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::sized;
use crate::flags;
use crate::int::{Datum, Int};
use crate::op::{Exec, Exit, Fault, Flow, Op};
use crate::walk::AccessKind;
use crate::{Bus, Cpu, reg, seg};

pub(super) fn lower<B: Bus>(insn: &Instruction, op: &mut Op<B>) -> Option<Exec<B>> {
    let moved = insn.stack_pointer_increment().unsigned_abs() as usize;
    match insn.mnemonic() {
        Mnemonic::Push => match insn.op0_kind() {
            OpKind::Register if insn.op0_register().is_segment_register() => {
                sized!(moved, T => push_segment::<B, T>)
            }
            OpKind::Register => sized!(moved, T => push_reg::<B, T>),
            OpKind::Memory => sized!(moved, T => push_mem::<B, T>),
            _ => sized!(moved, T => push_imm::<B, T>),
        },
        Mnemonic::Pop => match insn.op0_kind() {
            OpKind::Register if insn.op0_register().is_segment_register() => None,
            OpKind::Register => sized!(moved, T => pop_reg::<B, T>),
            _ => sized!(moved, T => pop_mem::<B, T>),
        },
        Mnemonic::Pusha => Some(push_all::<B, u16>),
        Mnemonic::Pushad => Some(push_all::<B, u32>),
        Mnemonic::Popa => Some(pop_all::<B, u16>),
        Mnemonic::Popad => Some(pop_all::<B, u32>),
        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => {
            sized!(moved, T => push_flags::<B, T>)
        }
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => sized!(moved, T => pop_flags::<B, T>),
        Mnemonic::Leave => {
            op.src = match insn.code() {
                iced_x86::Code::Leavew => 2,
                iced_x86::Code::Leaved => 4,
                _ => 8,
            };
            sized!(op.src, T => leave::<B, T>)
        }
        Mnemonic::Enter => match insn.code() {
            iced_x86::Code::Enterw_imm16_imm8 => Some(enter::<B, u16>),
            iced_x86::Code::Enterd_imm16_imm8 => Some(enter::<B, u32>),
            _ => Some(enter::<B, u64>),
        },
        _ => None,
    }
}

/// The stack.
impl Cpu {
    /// Pushes a value. Nothing changes if it faults.
    #[inline(always)]
    pub(crate) fn push<B: Bus, T: Datum>(&mut self, bus: &mut B, value: T) -> Flow {
        if self.try_push(bus, value) {
            return Ok(());
        }
        self.push_slow(bus, value)
    }

    /// Pops a value. Nothing changes if it faults.
    #[inline(always)]
    pub(crate) fn pop<B: Bus, T: Datum>(&mut self, bus: &mut B) -> Result<T, Exit> {
        match self.try_pop(bus, 0) {
            Some(value) => Ok(value),
            None => self.pop_slow(bus),
        }
    }

    /// Pushes a value, if it takes nothing but a TLB hit in 64-bit mode.
    #[inline(always)]
    pub(crate) fn try_push<B: Bus, T: Datum>(&mut self, bus: &mut B, value: T) -> bool {
        let top = self.gpr[reg::RSP].wrapping_sub(T::BYTES as u64);
        let done = self.is_64() && self.try_write(bus, top, value);
        if done {
            self.gpr[reg::RSP] = top;
        }
        done
    }

    /// Pops a value and drops `more` bytes, if it takes nothing but a TLB hit in 64-bit mode.
    #[inline(always)]
    pub(crate) fn try_pop<B: Bus, T: Datum>(&mut self, bus: &B, more: u64) -> Option<T> {
        if !self.is_64() {
            return None;
        }
        let top = self.gpr[reg::RSP];
        let value = self.try_read(bus, top)?;
        self.gpr[reg::RSP] = top.wrapping_add(T::BYTES as u64 + more);
        Some(value)
    }

    #[cold]
    #[inline(never)]
    fn push_slow<B: Bus, T: Datum>(&mut self, bus: &mut B, value: T) -> Flow {
        let delta = 0_u64.wrapping_sub(T::BYTES as u64);
        self.poke(bus, delta, value)?;
        self.move_stack_pointer(delta);
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn pop_slow<B: Bus, T: Datum>(&mut self, bus: &mut B) -> Result<T, Exit> {
        let value = self.peek(bus, 0)?;
        self.move_stack_pointer(T::BYTES as u64);
        Ok(value)
    }

    /// Reads the stack at `delta` bytes from its top.
    #[inline(always)]
    pub(crate) fn peek<B: Bus, T: Datum>(&mut self, bus: &mut B, delta: u64) -> Result<T, Exit> {
        let linear = self.stack_linear(delta, T::BYTES, AccessKind::Read)?;
        self.read(bus, linear, seg::SS)
    }

    /// Writes the stack at `delta` bytes from its top.
    pub(crate) fn poke<B: Bus, T: Datum>(&mut self, bus: &mut B, delta: u64, value: T) -> Flow {
        let linear = self.stack_linear(delta, T::BYTES, AccessKind::Write)?;
        self.write(bus, linear, seg::SS, value)
    }

    /// Adds to RSP, ESP or SP, as wide as the stack is.
    #[inline(always)]
    pub(crate) fn move_stack_pointer(&mut self, delta: u64) {
        let moved = self.gpr[reg::RSP].wrapping_add(delta);
        self.set_stack_pointer(moved);
    }

    /// Sets RSP, ESP or SP, as wide as the stack is.
    #[inline(always)]
    pub(crate) fn set_stack_pointer(&mut self, value: u64) {
        let mask = self.stack_mask();
        let kept = if mask == 0xffff {
            self.gpr[reg::RSP] & !mask
        } else {
            0
        };
        self.gpr[reg::RSP] = kept | value & mask;
    }

    #[inline(always)]
    fn stack_linear(
        &mut self,
        delta: u64,
        len_bytes: usize,
        kind: AccessKind,
    ) -> Result<u64, Exit> {
        let offset = self.gpr[reg::RSP].wrapping_add(delta);
        if self.is_64() {
            return Ok(offset);
        }
        let offset = offset & self.stack_mask();
        self.in_segment(seg::SS, offset, len_bytes, kind)
    }
}

fn push_reg<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let value = cpu.get::<T>(op.dst);
    cpu.push(bus, value)
}

fn push_imm<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    cpu.push(bus, T::cut(op.imm))
}

fn push_mem<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let value: T = cpu.load(bus, op)?;
    cpu.push(bus, value)
}

/// Wider than 16 bits, the selector is zero-extended, and what is stored is all of it.
fn push_segment<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let selector = cpu.segs[usize::from(op.dst) % 6].selector;
    cpu.push(bus, T::cut(u64::from(selector)))
}

fn pop_reg<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let Some(value) = cpu.try_pop::<B, T>(bus, 0) else {
        return pop_reg_slow::<B, T>(cpu, bus, op);
    };
    cpu.set(op.dst, value);
    Ok(())
}

#[cold]
#[inline(never)]
fn pop_reg_slow<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let value: T = cpu.pop_slow(bus)?;
    cpu.set(op.dst, value);
    Ok(())
}

/// The address is computed with the stack pointer after the pop.
fn pop_mem<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let before = cpu.gpr[reg::RSP];
    let value: T = cpu.pop(bus)?;
    let flow = cpu.store(bus, op, value);
    if flow.is_err() {
        cpu.gpr[reg::RSP] = before;
    }
    flow
}

fn push_all<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, _op: &Op<B>) -> Flow {
    let size = T::BYTES as u64;
    // The far end first: if it fits, and the near end does, so does everything between.
    let last: T = cpu.get(reg::RDI as u8);
    cpu.poke(bus, 0_u64.wrapping_sub(8 * size), last)?;
    for number in 0..7 {
        let value: T = cpu.get(number);
        cpu.poke(
            bus,
            0_u64.wrapping_sub((u64::from(number) + 1) * size),
            value,
        )?;
    }
    cpu.move_stack_pointer(0_u64.wrapping_sub(8 * size));
    Ok(())
}

fn pop_all<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, _op: &Op<B>) -> Flow {
    let size = T::BYTES as u64;
    let mut values = [T::cut(0); 8];
    for (i, value) in values.iter_mut().enumerate() {
        *value = cpu.peek(bus, i as u64 * size)?;
    }
    cpu.move_stack_pointer(8 * size);
    for (number, value) in (0..8).rev().zip(values) {
        if number != reg::RSP as u8 {
            cpu.set(number, value);
        }
    }
    Ok(())
}

fn push_flags<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, _op: &Op<B>) -> Flow {
    if cpu.is_v86() && cpu.iopl() < 3 {
        return Err(cpu.raise(Fault::GP));
    }
    let value = cpu.flags.get() & !(flags::VM | flags::RF);
    cpu.push(bus, T::cut(value))
}

fn pop_flags<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, _op: &Op<B>) -> Flow {
    if cpu.is_v86() && cpu.iopl() < 3 {
        return Err(cpu.raise(Fault::GP));
    }
    let value: T = cpu.pop(bus)?;
    let mut changes = flags::ARITHMETIC | flags::TF | flags::DF | flags::NT;
    if T::BYTES > 2 {
        changes |= flags::AC | flags::ID;
    }
    if cpu.cpl <= cpu.iopl() {
        changes |= flags::IF;
    }
    if cpu.cpl == 0 {
        changes |= flags::IOPL;
    }
    let kept = cpu.flags.get() & !changes & !flags::RF;
    cpu.flags.set(kept | value.zx() & changes);
    cpu.update_context();
    cpu.attention = true;
    Err(Exit::Leave)
}

fn leave<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, _op: &Op<B>) -> Flow {
    let delta = cpu.gpr[reg::RBP].wrapping_sub(cpu.gpr[reg::RSP]);
    let frame: T = cpu.peek(bus, delta)?;
    let top = cpu.gpr[reg::RBP].wrapping_add(T::BYTES as u64);
    cpu.set_stack_pointer(top);
    cpu.set(reg::RBP as u8, frame);
    Ok(())
}

/// `imm`: bytes of locals, and 32 bits higher the nesting level.
fn enter<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let size = T::BYTES as u64;
    let level = op.imm >> 32 & 31;
    let locals = op.imm & 0xffff;
    let frame: T = cpu.get(reg::RBP as u8);
    let frame_top = cpu.gpr[reg::RSP].wrapping_sub(size);
    let below = |words: u64| 0_u64.wrapping_sub(words * size);
    // The last word that will be written, and the one that ENTER merely touches.
    let words = if level == 0 { 1 } else { level + 1 };
    let bottom = below(words).wrapping_sub(locals);
    let linear = cpu.stack_linear(bottom, T::BYTES, AccessKind::Write)?;
    cpu.reserve(bus, linear, seg::SS, T::BYTES)?;
    cpu.poke(bus, below(1), frame)?;
    for i in 1..level {
        let display = cpu.gpr[reg::RBP]
            .wrapping_sub(i * size)
            .wrapping_sub(cpu.gpr[reg::RSP]);
        let outer: T = cpu.peek(bus, display)?;
        cpu.poke(bus, below(i + 1), outer)?;
    }
    if level > 0 {
        cpu.poke(bus, below(level + 1), T::cut(frame_top))?;
    }
    cpu.move_stack_pointer(bottom);
    cpu.set(reg::RBP as u8, T::cut(frame_top));
    Ok(())
}

impl Cpu {
    /// RFLAGS.IOPL.
    pub(crate) fn iopl(&self) -> u8 {
        (self.flags.get() >> 12 & 3) as u8
    }
}
