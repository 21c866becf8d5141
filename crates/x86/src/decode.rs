//! From bytes to [`Op`]s.
//!
//! The decoder is iced-x86's. This file fills in the operands, in the same way for every instruction;
//! the function comes from the families in [`exec`](crate::exec).

use iced_x86::{Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, OpKind, Register};

use crate::op::{Addressing, Exec, Op};
use crate::{Bus, Cpu, exec, reg, seg};

/// UD2 and what makes it the forced emulation prefix.
const FORCED_EMULATION_PREFIX: &[u8] = b"\x0f\x0bkvm";

/// Decodes a block at RIP: at most `limit` instructions, to the first that always jumps. Returns its length in
/// bytes: 0 if the bytes end within the first instruction.
pub(crate) fn block<B: Bus>(cpu: &Cpu, bytes: &[u8], limit: usize, ops: &mut Vec<Op<B>>) -> usize {
    let bits = u32::from(cpu.code_bits);
    let mut decoder = Decoder::with_ip(bits, bytes, cpu.rip, DecoderOptions::NONE);
    let mut insn = Instruction::default();
    let mut previous = insn;
    for through in 1..=limit {
        let start = decoder.position();
        if start > 240 {
            return start;
        }
        if cpu.config().forced_emulation_prefix
            && bytes[start..].starts_with(FORCED_EMULATION_PREFIX)
        {
            let len = FORCED_EMULATION_PREFIX.len();
            ops.push(Op::bare(exec::nop, start, len, through));
            previous = Instruction::default();
            let next = start + len;
            decoder.set_ip(cpu.rip.wrapping_add(next as u64));
            if decoder.set_position(next).is_err() {
                return next;
            }
            continue;
        }
        decoder.decode_out(&mut insn);
        if decoder.last_error() == DecoderError::NoMoreBytes {
            return start;
        }
        let len = decoder.position() - start;
        let distance = insn.near_branch_target().wrapping_sub(cpu.rip) as i64;
        if let Some(op) = ops.last_mut()
            && let Some(exec) = exec::lower_with_jump(&previous, &insn)
            && let Ok(distance) = i32::try_from(distance)
        {
            op.add_jump(exec, distance, len);
        } else {
            let mut op = Op::new(&insn, bits, start, len, through);
            if let Some(escape) = escape(&bytes[start..start + len], bits) {
                op.imm = escape;
            }
            op.exec = exec::lower(&insn, &mut op);
            ops.push(op);
        }
        if !matches!(
            insn.flow_control(),
            FlowControl::Next | FlowControl::ConditionalBranch
        ) {
            return start + len;
        }
        previous = insn;
    }
    decoder.position()
}

impl<B: Bus> Op<B> {
    fn bare(exec: Exec<B>, start: usize, len: usize, through: usize) -> Self {
        Self {
            exec,
            imm: 0,
            disp: 0,
            dst: 0,
            src: 0,
            base: reg::ZERO,
            index: reg::ZERO,
            addressing: Addressing::FLAT,
            start: start as u8,
            len: len as u8,
            through: through as u8,
        }
    }

    /// With all operands filled in.
    fn new(insn: &Instruction, bits: u32, start: usize, len: usize, through: usize) -> Self {
        let mut op = Self::bare(exec::nop, start, len, through);
        op.dst = number(insn.op0_register());
        op.src = number(insn.op1_register());
        op.imm = immediate(insn);
        op.base = address_part(insn.memory_base());
        op.index = address_part(insn.memory_index());
        op.disp = insn.memory_displacement64();
        let segment = number(insn.memory_segment());
        let size_bytes = address_bytes(insn, bits);
        if bits != 64 || size_bytes != 8 || usize::from(segment) >= seg::FS {
            op.addressing = Addressing::new(segment, size_bytes);
        }
        let scale = insn.memory_index_scale().trailing_zeros();
        op.addressing = op.addressing.scaled(scale);
        op
    }
}

/// Opcode and ModRM of an x87 instruction: it runs on the host as it is.
fn escape(bytes: &[u8], bits: u32) -> Option<u64> {
    let is_prefix = |byte: &u8| match byte {
        0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf2 | 0xf3 => true,
        0x40..=0x4f => bits == 64,
        _ => false,
    };
    let at = bytes.iter().position(|byte| !is_prefix(byte))?;
    match bytes[at..] {
        [opcode @ 0xd8..=0xdf, modrm, ..] => Some(u64::from(opcode) << 8 | u64::from(modrm)),
        _ => None,
    }
}

/// A register's number in the order of encoding: see [`reg`].
fn number(register: Register) -> u8 {
    let number = register.number() as u8;
    if !register.is_gpr8() {
        return number;
    }
    match number {
        0..4 => number,
        4..8 => reg::HIGH | (number - 4),
        _ => number - 4,
    }
}

fn address_part(register: Register) -> u8 {
    if register.is_gpr() {
        number(register)
    } else {
        reg::ZERO
    }
}

/// Bytes of the offset of the memory operand, written or implied.
fn address_bytes(insn: &Instruction, bits: u32) -> u8 {
    let implied = insn.op_kinds().find_map(|kind| match kind {
        OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => Some(2),
        OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => Some(4),
        OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => Some(8),
        _ => None,
    });
    let parts = [insn.memory_base(), insn.memory_index()];
    let part = parts.into_iter().find(|&part| part != Register::None);
    implied
        .or(part.map(|part| part.size() as u8))
        .unwrap_or(match insn.memory_displ_size() {
            size @ (2 | 4 | 8) => size as u8,
            _ => (bits / 8) as u8,
        })
}

/// The immediate, sign-extended as the operand is; the target of a branch; or two immediates, the second
/// 32 bits higher.
fn immediate(insn: &Instruction) -> u64 {
    let mut imm = 0;
    let mut shift = 0;
    for (i, kind) in insn.op_kinds().enumerate() {
        let i = i as u32;
        imm |= match kind {
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                insn.near_branch_target()
            }
            OpKind::FarBranch16 => {
                u64::from(insn.far_branch_selector()) << 32 | u64::from(insn.far_branch16())
            }
            OpKind::FarBranch32 => {
                u64::from(insn.far_branch_selector()) << 32 | u64::from(insn.far_branch32())
            }
            OpKind::Register | OpKind::Memory => continue,
            _ => match insn.try_immediate(i) {
                Ok(value) => value << shift,
                Err(_) => continue,
            },
        };
        shift = 32;
    }
    imm
}
