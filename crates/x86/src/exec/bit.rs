//! Bits: BT, BTS, BTR, BTC, BSF, BSR, TZCNT, LZCNT, POPCNT, CRC32.

use iced_x86::{Instruction, Mnemonic};

use super::{Form, form, operand_bytes, sized};
use crate::flags::{self, Flags};
use crate::int::Int;
use crate::op::{Exec, Flow, Op};
use crate::{Bus, Cpu};

pub(super) fn lower<B: Bus>(insn: &Instruction, _op: &mut Op<B>) -> Option<Exec<B>> {
    match insn.mnemonic() {
        Mnemonic::Bt => single::<B, KEEP>(insn),
        Mnemonic::Bts => single::<B, SET>(insn),
        Mnemonic::Btr => single::<B, RESET>(insn),
        Mnemonic::Btc => single::<B, COMPLEMENT>(insn),
        Mnemonic::Bsf => scan::<B, Bsf>(insn),
        Mnemonic::Bsr => scan::<B, Bsr>(insn),
        Mnemonic::Tzcnt => scan::<B, Tzcnt>(insn),
        Mnemonic::Lzcnt => scan::<B, Lzcnt>(insn),
        Mnemonic::Popcnt => scan::<B, Popcnt>(insn),
        Mnemonic::Crc32 => {
            let source_bytes = match form(insn) {
                Form::RegReg => insn.op1_register().size(),
                _ => insn.memory_size().size(),
            };
            match form(insn) {
                Form::RegReg => sized!(source_bytes, T => crc_reg::<B, T>),
                _ => sized!(source_bytes, T => crc_mem::<B, T>),
            }
        }
        _ => None,
    }
}

/// What happens to the bit that was copied to CF.
const KEEP: u8 = 0;
const SET: u8 = 1;
const RESET: u8 = 2;
const COMPLEMENT: u8 = 3;

fn single<B: Bus, const WHAT: u8>(insn: &Instruction) -> Option<Exec<B>> {
    let bytes = operand_bytes(insn);
    match form(insn) {
        Form::RegReg => sized!(bytes, T => bit_reg_reg::<B, T, WHAT>),
        Form::RegImm => sized!(bytes, T => bit_reg_imm::<B, T, WHAT>),
        Form::MemReg => sized!(bytes, T => bit_mem_reg::<B, T, WHAT>),
        Form::MemImm => sized!(bytes, T => bit_mem_imm::<B, T, WHAT>),
        _ => None,
    }
}

#[inline(always)]
fn change<T: Int, const WHAT: u8>(cpu: &mut Cpu, value: T, number: u64) -> T {
    let mask = 1 << (number % u64::from(T::BITS));
    cpu.flags.set_cf(value.zx() & mask != 0);
    T::cut(match WHAT {
        SET => value.zx() | mask,
        RESET => value.zx() & !mask,
        COMPLEMENT => value.zx() ^ mask,
        _ => value.zx(),
    })
}

#[inline(always)]
fn bit_reg<B, T: Int, const WHAT: u8>(cpu: &mut Cpu, op: &Op<B>, number: u64) -> Flow {
    let value = cpu.get::<T>(op.dst);
    let changed = change::<T, WHAT>(cpu, value, number);
    if WHAT != KEEP {
        cpu.set(op.dst, changed);
    }
    Ok(())
}

fn bit_reg_reg<B: Bus, T: Int, const WHAT: u8>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let number = cpu.get::<T>(op.src).zx();
    bit_reg::<B, T, WHAT>(cpu, op, number)
}

fn bit_reg_imm<B: Bus, T: Int, const WHAT: u8>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    bit_reg::<B, T, WHAT>(cpu, op, op.imm)
}

fn bit_mem<B: Bus, T: Int, const WHAT: u8>(
    cpu: &mut Cpu,
    bus: &mut B,
    op: &Op<B>,
    number: u64,
) -> Flow {
    if WHAT == KEEP {
        return cpu.load_then(bus, op, |cpu, value: T| {
            change::<T, WHAT>(cpu, value, number);
        });
    }
    cpu.update(bus, op, |cpu, value: T| {
        change::<T, WHAT>(cpu, value, number)
    })
}

fn bit_mem_imm<B: Bus, T: Int, const WHAT: u8>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    bit_mem::<B, T, WHAT>(cpu, bus, op, op.imm)
}

/// The bit number is signed, and reaches beyond the operand: whole operands are added to the address.
fn bit_mem_reg<B: Bus, T: Int, const WHAT: u8>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let number = cpu.get::<T>(op.src).sx();
    let operands = (number as i64).div_euclid(i64::from(T::BITS));
    let mut moved = *op;
    moved.disp = op
        .disp
        .wrapping_add((operands as u64).wrapping_mul(T::BYTES as u64));
    bit_mem::<B, T, WHAT>(cpu, bus, &moved, number)
}

/// A number made of an operand.
trait Scan {
    /// `None`: the destination keeps its value.
    fn apply<T: Int>(flags: &mut Flags, value: T) -> Option<u32>;
}

fn scan<B: Bus, O: Scan>(insn: &Instruction) -> Option<Exec<B>> {
    match form(insn) {
        Form::RegReg => sized!(operand_bytes(insn), T => scan_reg::<B, T, O>),
        _ => sized!(operand_bytes(insn), T => scan_mem::<B, T, O>),
    }
}

fn scan_reg<B: Bus, T: Int, O: Scan>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let value = cpu.get::<T>(op.src);
    scan_value::<B, T, O>(cpu, op, value)
}

fn scan_mem<B: Bus, T: Int, O: Scan>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let value: T = cpu.load(bus, op)?;
    scan_value::<B, T, O>(cpu, op, value)
}

#[inline(always)]
fn scan_value<B, T: Int, O: Scan>(cpu: &mut Cpu, op: &Op<B>, value: T) -> Flow {
    if let Some(number) = O::apply(&mut cpu.flags, value) {
        cpu.set(op.dst, T::cut(u64::from(number)));
    }
    Ok(())
}

struct Bsf;
struct Bsr;
struct Tzcnt;
struct Lzcnt;
struct Popcnt;

impl Scan for Bsf {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, value: T) -> Option<u32> {
        flags.merge_arithmetic(flags::ZF, zero_flag(value));
        (value.zx() != 0).then(|| value.zx().trailing_zeros())
    }
}

impl Scan for Bsr {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, value: T) -> Option<u32> {
        flags.merge_arithmetic(flags::ZF, zero_flag(value));
        value.zx().checked_ilog2()
    }
}

impl Scan for Tzcnt {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, value: T) -> Option<u32> {
        let count = value.zx().trailing_zeros().min(T::BITS);
        count_flags::<T>(flags, count);
        Some(count)
    }
}

impl Scan for Lzcnt {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, value: T) -> Option<u32> {
        let count = value.zx().leading_zeros() - (64 - T::BITS);
        count_flags::<T>(flags, count);
        Some(count)
    }
}

impl Scan for Popcnt {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, value: T) -> Option<u32> {
        flags.set_arithmetic(zero_flag(value));
        Some(value.zx().count_ones())
    }
}

fn zero_flag<T: Int>(value: T) -> u64 {
    if value.zx() == 0 { flags::ZF } else { 0 }
}

/// CF: the operand is 0. ZF: the count is.
fn count_flags<T: Int>(flags: &mut Flags, count: u32) {
    let mut value = 0;
    if count == T::BITS {
        value |= flags::CF;
    }
    if count == 0 {
        value |= flags::ZF;
    }
    flags.merge_arithmetic(flags::CF | flags::ZF, value);
}

fn crc_reg<B: Bus, T: Int>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let value = cpu.get::<T>(op.src);
    crc(cpu, op, value)
}

fn crc_mem<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let value: T = cpu.load(bus, op)?;
    crc(cpu, op, value)
}

fn crc<B, T: Int>(cpu: &mut Cpu, op: &Op<B>, value: T) -> Flow {
    let mut crc = cpu.get::<u32>(op.dst);
    for byte in value.zx().to_le_bytes().into_iter().take(T::BYTES) {
        crc = crc >> 8 ^ CRC32C[usize::from(crc as u8 ^ byte)];
    }
    cpu.set(op.dst, crc);
    Ok(())
}

/// The remainders of all bytes by the Castagnoli polynomial, bits reflected.
const CRC32C: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};
