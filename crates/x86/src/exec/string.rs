//! MOVS, STOS, LODS, SCAS, CMPS, with and without REP.
//!
//! One execution of a repeated instruction does a portion: a run of bytes within a page where nothing stands in
//! the way, else some elements one by one. Then it ends with [`Exit::Repeat`], so that budgets and interrupts
//! are seen. Registers always say how far it got.

use iced_x86::{Code, Instruction, Mnemonic};

use super::sized;
use crate::flags;
use crate::int::Int;
use crate::op::{Addressing, Exec, Exit, Flow, Op};
use crate::walk::AccessKind;
use crate::{Bus, Cpu, reg, seg};

/// How many elements are done one by one before the run loop is asked.
const PORTION: u64 = 64;
const PAGE: usize = crate::PAGE_BYTES;

const RAX: u8 = reg::RAX as u8;

pub(super) fn lower<B: Bus>(insn: &Instruction, op: &mut Op<B>) -> Option<Exec<B>> {
    let bytes = element_bytes(insn.code())?;
    op.dst = op.addressing.size_bytes();
    op.imm = match (insn.has_rep_prefix(), insn.has_repne_prefix()) {
        (false, false) => ONCE,
        (true, _) => WHILE_EQUAL,
        (_, true) => WHILE_DIFFERENT,
    };
    match insn.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => {
            sized!(bytes, T => string::<B, T, Movs>)
        }
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => {
            sized!(bytes, T => string::<B, T, Stos>)
        }
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => {
            sized!(bytes, T => string::<B, T, Lods>)
        }
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => {
            sized!(bytes, T => string::<B, T, Scas>)
        }
        _ => sized!(bytes, T => string::<B, T, Cmps>),
    }
}

fn element_bytes(code: Code) -> Option<usize> {
    use Code::*;
    match code {
        Movsb_m8_m8 | Stosb_m8_AL | Lodsb_AL_m8 | Scasb_AL_m8 | Cmpsb_m8_m8 => Some(1),
        Movsw_m16_m16 | Stosw_m16_AX | Lodsw_AX_m16 | Scasw_AX_m16 | Cmpsw_m16_m16 => Some(2),
        Movsd_m32_m32 | Stosd_m32_EAX | Lodsd_EAX_m32 | Scasd_EAX_m32 | Cmpsd_m32_m32 => Some(4),
        Movsq_m64_m64 | Stosq_m64_RAX | Lodsq_RAX_m64 | Scasq_RAX_m64 | Cmpsq_m64_m64 => Some(8),
        _ => None,
    }
}

/// `imm`: the prefix.
const ONCE: u64 = 0;
const WHILE_EQUAL: u64 = 1;
const WHILE_DIFFERENT: u64 = 2;

/// What is done with an element.
trait Element {
    /// REPE and REPNE look at ZF.
    const COMPARES: bool = false;
    const MOVES_RSI: bool;
    const MOVES_RDI: bool;

    /// One element. Pointers are moved by the caller.
    fn one<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow;

    /// As many of `limit` elements as lie in one run of RAM, upwards. Answers how many.
    fn run<B: Bus, T: Int>(
        _cpu: &mut Cpu,
        _bus: &mut B,
        _op: &Op<B>,
        _limit: u64,
    ) -> Result<u64, Exit> {
        Ok(0)
    }
}

fn string<B: Bus, T: Int, E: Element>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    if op.imm == ONCE {
        E::one::<B, T>(cpu, bus, op)?;
        advance::<B, T, E>(cpu, op, 1);
        return Ok(());
    }
    let count = address(cpu, op, reg::RCX);
    if count == 0 {
        return Ok(());
    }
    if !cpu.careful && !cpu.flags.has(flags::DF) {
        let done = E::run::<B, T>(cpu, bus, op, count)?;
        if done > 0 {
            advance::<B, T, E>(cpu, op, done);
            set_count(cpu, op, count - done);
            return if done == count {
                Ok(())
            } else {
                Err(Exit::Repeat)
            };
        }
    }
    let portion = if cpu.careful { 1 } else { count.min(PORTION) };
    for done in 1..=portion {
        E::one::<B, T>(cpu, bus, op)?;
        advance::<B, T, E>(cpu, op, 1);
        set_count(cpu, op, count - done);
        if E::COMPARES && cpu.flags.zf() != (op.imm == WHILE_EQUAL) {
            return Ok(());
        }
    }
    if portion == count {
        Ok(())
    } else {
        Err(Exit::Repeat)
    }
}

/// A pointer or the counter, cut to the address size.
fn address<B>(cpu: &Cpu, op: &Op<B>, register: usize) -> u64 {
    match op.dst {
        2 => cpu.gpr[register] & 0xffff,
        4 => cpu.gpr[register] & 0xffff_ffff,
        _ => cpu.gpr[register],
    }
}

fn set_address<B>(cpu: &mut Cpu, op: &Op<B>, register: usize, value: u64) {
    match op.dst {
        2 => cpu.set(register as u8, value as u16),
        4 => cpu.set(register as u8, value as u32),
        _ => cpu.set(register as u8, value),
    }
}

fn set_count<B>(cpu: &mut Cpu, op: &Op<B>, count: u64) {
    set_address(cpu, op, reg::RCX, count);
}

fn advance<B, T: Int, E: Element>(cpu: &mut Cpu, op: &Op<B>, elements: u64) {
    let bytes = elements.wrapping_mul(T::BYTES as u64);
    let delta = if cpu.flags.has(flags::DF) {
        bytes.wrapping_neg()
    } else {
        bytes
    };
    if E::MOVES_RSI {
        let moved = cpu.gpr[reg::RSI].wrapping_add(delta);
        set_address(cpu, op, reg::RSI, moved);
    }
    if E::MOVES_RDI {
        let moved = cpu.gpr[reg::RDI].wrapping_add(delta);
        set_address(cpu, op, reg::RDI, moved);
    }
}

/// Linear address of an element at RSI, in the segment that the prefix chose.
fn source<B, T: Int>(cpu: &mut Cpu, op: &Op<B>) -> Result<u64, Exit> {
    let offset = cpu.gpr[reg::RSI];
    if op.addressing.is_flat() {
        return Ok(offset);
    }
    cpu.segmented(op.addressing, offset, T::BYTES, AccessKind::Read)
}

/// Linear address of an element at ES:RDI.
fn destination<B, T: Int>(cpu: &mut Cpu, op: &Op<B>, kind: AccessKind) -> Result<u64, Exit> {
    let offset = cpu.gpr[reg::RDI];
    if op.addressing.is_flat() {
        return Ok(offset);
    }
    let addressing = Addressing::new(seg::ES as u8, op.dst);
    cpu.segmented(addressing, offset, T::BYTES, kind)
}

struct Movs;
struct Stos;
struct Lods;
struct Scas;
struct Cmps;

impl Element for Movs {
    const MOVES_RSI: bool = true;
    const MOVES_RDI: bool = true;

    fn one<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
        let from = source::<B, T>(cpu, op)?;
        let value: T = cpu.read(bus, from, op.addressing.segment())?;
        let to = destination::<B, T>(cpu, op, AccessKind::Write)?;
        cpu.write(bus, to, seg::ES, value)
    }

    fn run<B: Bus, T: Int>(
        cpu: &mut Cpu,
        bus: &mut B,
        op: &Op<B>,
        limit: u64,
    ) -> Result<u64, Exit> {
        if !op.addressing.is_flat() {
            return Ok(0);
        }
        let (from, to) = (cpu.gpr[reg::RSI], cpu.gpr[reg::RDI]);
        let (from_offset, to_offset) = (from as usize % PAGE, to as usize % PAGE);
        let room = (PAGE - from_offset).min(PAGE - to_offset);
        let elements = limit.min((room / T::BYTES) as u64);
        if elements < 2 {
            return Ok(0);
        }
        let Some(from) = cpu.run_page(bus, from, AccessKind::Read)? else {
            return Ok(0);
        };
        let Some(to) = cpu.run_page(bus, to, AccessKind::Write)? else {
            return Ok(0);
        };
        let len = elements as usize * T::BYTES;
        // Copied upwards, element by element: the copy must not run over its own source.
        if from == to && to_offset > from_offset && to_offset < from_offset + len {
            return Ok(0);
        }
        bus.copy((from, from_offset), (to, to_offset), len);
        Ok(elements)
    }
}

impl Element for Stos {
    const MOVES_RSI: bool = false;
    const MOVES_RDI: bool = true;

    fn one<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
        let to = destination::<B, T>(cpu, op, AccessKind::Write)?;
        let value: T = cpu.get(RAX);
        cpu.write(bus, to, seg::ES, value)
    }

    fn run<B: Bus, T: Int>(
        cpu: &mut Cpu,
        bus: &mut B,
        op: &Op<B>,
        limit: u64,
    ) -> Result<u64, Exit> {
        if !op.addressing.is_flat() {
            return Ok(0);
        }
        let to = cpu.gpr[reg::RDI];
        let offset = to as usize % PAGE;
        let elements = limit.min(((PAGE - offset) / T::BYTES) as u64);
        if elements < 2 {
            return Ok(0);
        }
        let Some(page) = cpu.run_page(bus, to, AccessKind::Write)? else {
            return Ok(0);
        };
        let len = elements as usize * T::BYTES;
        let value: T = cpu.get(RAX);
        let bytes = value.to_bytes();
        if bytes[..T::BYTES].iter().all(|byte| *byte == bytes[0]) {
            bus.fill(page, offset, len, bytes[0]);
        } else {
            for at in (offset..offset + len).step_by(T::BYTES) {
                value.store(bus, page, at);
            }
        }
        Ok(elements)
    }
}

impl Element for Lods {
    const MOVES_RSI: bool = true;
    const MOVES_RDI: bool = false;

    fn one<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
        let from = source::<B, T>(cpu, op)?;
        let value: T = cpu.read(bus, from, op.addressing.segment())?;
        cpu.set(RAX, value);
        Ok(())
    }
}

impl Element for Scas {
    const COMPARES: bool = true;
    const MOVES_RSI: bool = false;
    const MOVES_RDI: bool = true;

    fn one<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
        let at = destination::<B, T>(cpu, op, AccessKind::Read)?;
        let value: T = cpu.read(bus, at, seg::ES)?;
        let accumulator = cpu.get(RAX);
        compare(cpu, accumulator, value);
        Ok(())
    }
}

impl Element for Cmps {
    const COMPARES: bool = true;
    const MOVES_RSI: bool = true;
    const MOVES_RDI: bool = true;

    fn one<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
        let first = source::<B, T>(cpu, op)?;
        let first: T = cpu.read(bus, first, op.addressing.segment())?;
        let second = destination::<B, T>(cpu, op, AccessKind::Read)?;
        let second: T = cpu.read(bus, second, seg::ES)?;
        compare(cpu, first, second);
        Ok(())
    }
}

fn compare<T: Int>(cpu: &mut Cpu, a: T, b: T) {
    cpu.flags.sub(a, b, T::cut(a.zx().wrapping_sub(b.zx())));
}
