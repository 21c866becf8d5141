//! SSE instructions: operands in, an operation of [`simd`], operands out.
//!
//! `imm` of the [`Op`] is the immediate byte, and above it the operation's index in [`OPERATIONS`].

use std::sync::LazyLock;

use iced_x86::{Code, Instruction, OpKind};

use super::places::{Aligned, General, Memory, Nothing, Place, Xmm};
use crate::control::{cr0, cr4};
use crate::op::{Exec, Exit, Fault, Flow, Op, vector};
use crate::simd::{self, Lengths, Operation, Text, TextResult};
use crate::walk::AccessKind;
use crate::{Bus, Cpu, flags, reg};

/// What this host can run, in order, by [`Code`] and by whether the source is memory.
static OPERATIONS: LazyLock<Vec<((Code, bool), Operation)>> = LazyLock::new(|| {
    Code::values()
        .flat_map(|code| [(code, false), (code, true)])
        .filter_map(|(code, loads)| Some(((code, loads), Operation::of(code, loads)?)))
        .collect()
});

/// Picks the instance of a function for the places of an instruction's two operands.
macro_rules! placed {
    ($insn:expr, $function:ident) => {
        match (place($insn, 0), place($insn, 1)) {
            (Kind::Xmm, Kind::Xmm) => $function::<B, Xmm, Xmm>,
            (Kind::Xmm, Kind::Nothing) => $function::<B, Xmm, Nothing>,
            (Kind::Xmm, Kind::General32) => $function::<B, Xmm, General<u32>>,
            (Kind::Xmm, Kind::General64) => $function::<B, Xmm, General<u64>>,
            (Kind::Xmm, Kind::Memory(1)) => $function::<B, Xmm, Memory<u8>>,
            (Kind::Xmm, Kind::Memory(2)) => $function::<B, Xmm, Memory<u16>>,
            (Kind::Xmm, Kind::Memory(4)) => $function::<B, Xmm, Memory<u32>>,
            (Kind::Xmm, Kind::Memory(8)) => $function::<B, Xmm, Memory<u64>>,
            (Kind::Xmm, Kind::Memory(16)) => $function::<B, Xmm, Memory<u128>>,
            (Kind::Xmm, Kind::Aligned) => $function::<B, Xmm, Aligned>,
            (Kind::General32, Kind::Xmm) => $function::<B, General<u32>, Xmm>,
            (Kind::General32, Kind::Memory(4)) => $function::<B, General<u32>, Memory<u32>>,
            (Kind::General32, Kind::Memory(8)) => $function::<B, General<u32>, Memory<u64>>,
            (Kind::General64, Kind::Xmm) => $function::<B, General<u64>, Xmm>,
            (Kind::General64, Kind::Memory(4)) => $function::<B, General<u64>, Memory<u32>>,
            (Kind::General64, Kind::Memory(8)) => $function::<B, General<u64>, Memory<u64>>,
            (Kind::Memory(1), Kind::Xmm) => $function::<B, Memory<u8>, Xmm>,
            (Kind::Memory(2), Kind::Xmm) => $function::<B, Memory<u16>, Xmm>,
            (Kind::Memory(4), Kind::Xmm) => $function::<B, Memory<u32>, Xmm>,
            (Kind::Memory(8), Kind::Xmm) => $function::<B, Memory<u64>, Xmm>,
            (Kind::Memory(16), Kind::Xmm) => $function::<B, Memory<u128>, Xmm>,
            (Kind::Aligned, Kind::Xmm) => $function::<B, Aligned, Xmm>,
            _ => return None,
        }
    };
}

/// The functions of this family.
pub(super) fn lower<B: Bus>(insn: &Instruction, op: &mut Op<B>) -> Option<Exec<B>> {
    let loads = insn.op_count() > 1 && insn.op1_kind() == OpKind::Memory;
    let key = (insn.code(), loads);
    let index = OPERATIONS
        .binary_search_by_key(&key, |&(key, _)| key)
        .ok()?;
    op.imm = op.imm & 0xff | (index as u64) << 8;
    let exec: Exec<B> = match OPERATIONS[index].1 {
        Operation::Move => placed!(insn, copy),
        Operation::Pure(_) => placed!(insn, pure),
        Operation::Float(_) => placed!(insn, float),
        Operation::Comparison(_) => placed!(insn, comparison),
        Operation::Blend(_) => placed!(insn, blend),
        Operation::Test => placed!(insn, test),
        Operation::Text(_) => placed!(insn, text),
        Operation::MaskedStore => {
            op.base = reg::RDI as u8;
            op.dst = insn.op2_register().number() as u8;
            masked_store
        }
    };
    Some(exec)
}

/// Where an operand is, with the size of memory.
enum Kind {
    Nothing,
    Xmm,
    General32,
    General64,
    Memory(usize),
    Aligned,
}

fn place(insn: &Instruction, operand: u32) -> Kind {
    match insn.op_kind(operand) {
        OpKind::Register => match insn.op_register(operand) {
            register if register.is_xmm() => Kind::Xmm,
            register if register.is_gpr64() => Kind::General64,
            _ => Kind::General32,
        },
        OpKind::Memory if simd::wants_alignment(insn) => Kind::Aligned,
        OpKind::Memory => Kind::Memory(insn.memory_size().size()),
        _ => Kind::Nothing,
    }
}

fn operation<B>(op: &Op<B>) -> Operation {
    OPERATIONS[(op.imm >> 8) as usize].1
}

/// #UD or #NM where the system has switched SSE off.
pub(super) fn require_sse(cpu: &mut Cpu) -> Flow {
    if cpu.cr0 & cr0::EM != 0 || cpu.cr4 & cr4::OSFXSR == 0 {
        return Err(cpu.raise(Fault::UD));
    }
    if cpu.cr0 & cr0::TS != 0 {
        return Err(cpu.raise(Fault::NM));
    }
    Ok(())
}

fn copy<B: Bus, D: Place, S: Place>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    require_sse(cpu)?;
    let value = S::read(cpu, bus, op, op.src)?;
    D::write(cpu, bus, op, value)
}

fn pure<B: Bus, D: Place, S: Place>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let Operation::Pure(function) = operation(op) else {
        unreachable!("lowered so")
    };
    require_sse(cpu)?;
    let source = S::read(cpu, bus, op, op.src)?;
    let value = function(D::before(cpu, op), source, op.imm as u8);
    D::write(cpu, bus, op, value)
}

fn float<B: Bus, D: Place, S: Place>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let Operation::Float(function) = operation(op) else {
        unreachable!("lowered so")
    };
    require_sse(cpu)?;
    let source = S::read(cpu, bus, op, op.src)?;
    let before = D::before(cpu, op);
    let value = under_mxcsr(cpu, |mxcsr| function(mxcsr, before, source, op.imm as u8))?;
    D::write(cpu, bus, op, value)
}

fn comparison<B: Bus, D: Place, S: Place>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let Operation::Comparison(function) = operation(op) else {
        unreachable!("lowered so")
    };
    require_sse(cpu)?;
    let source = S::read(cpu, bus, op, op.src)?;
    let before = D::before(cpu, op);
    let answer = under_mxcsr(cpu, |mxcsr| function(mxcsr, before, source))?;
    cpu.flags.set_arithmetic(answer);
    Ok(())
}

/// Runs `f` under the guest's MXCSR, which gets the new flags; or raises #XM.
pub(super) fn under_mxcsr<R>(cpu: &mut Cpu, f: impl Fn(&mut u32) -> R) -> Result<R, Exit> {
    match simd::evaluate(cpu.fpu.mxcsr, f) {
        Ok((result, mxcsr)) => {
            cpu.fpu.mxcsr = mxcsr;
            Ok(result)
        }
        Err(unmasked) => {
            cpu.fpu.mxcsr = unmasked.mxcsr;
            let told = cpu.cr4 & cr4::OSXMMEXCPT != 0;
            Err(cpu.raise(if told {
                Fault::plain(vector::XM)
            } else {
                Fault::UD
            }))
        }
    }
}

fn blend<B: Bus, D: Place, S: Place>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let Operation::Blend(function) = operation(op) else {
        unreachable!("lowered so")
    };
    require_sse(cpu)?;
    let source = S::read(cpu, bus, op, op.src)?;
    let value = function(D::before(cpu, op), source, cpu.fpu.xmm[0]);
    D::write(cpu, bus, op, value)
}

/// PTEST.
fn test<B: Bus, D: Place, S: Place>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    require_sse(cpu)?;
    let source = S::read(cpu, bus, op, op.src)?;
    let before = D::before(cpu, op);
    let zero = if before & source == 0 { flags::ZF } else { 0 };
    let carry = if !before & source == 0 { flags::CF } else { 0 };
    cpu.flags.set_arithmetic(zero | carry);
    Ok(())
}

fn text<B: Bus, D: Place, S: Place>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let Operation::Text(Text { lengths, result }) = operation(op) else {
        unreachable!("lowered so")
    };
    require_sse(cpu)?;
    let second = S::read(cpu, bus, op, op.src)?;
    let first = D::before(cpu, op);
    let imm = op.imm as u8;
    let (rax, rdx) = (cpu.gpr[reg::RAX] as i64, cpu.gpr[reg::RDX] as i64);
    let found = match lengths {
        Lengths::Implicit => simd::compare_implicit(first, second, imm),
        Lengths::Bits32 => {
            let lengths = (i64::from(rax as i32), i64::from(rdx as i32));
            simd::compare_explicit(first, second, lengths, imm)
        }
        Lengths::Bits64 => simd::compare_explicit(first, second, (rax, rdx), imm),
    };
    match result {
        TextResult::Index => cpu.gpr[reg::RCX] = found.index(imm).into(),
        TextResult::Mask => cpu.fpu.xmm[0] = found.mask(imm),
    }
    let flags = [
        (flags::CF, found.bits != 0),
        (flags::OF, found.bits & 1 != 0),
        (flags::SF, found.first_ends),
        (flags::ZF, found.second_ends),
    ];
    let set = flags.into_iter().filter(|&(_, holds)| holds);
    cpu.flags
        .set_arithmetic(set.fold(0, |set, (flag, _)| set | flag));
    Ok(())
}

/// MASKMOVDQU. `src` is the data, `dst` the mask.
fn masked_store<B: Bus>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    require_sse(cpu)?;
    let data = cpu.fpu.xmm[usize::from(op.src & 15)];
    let mask = cpu.fpu.xmm[usize::from(op.dst & 15)];
    store_selected(cpu, bus, op, data, mask)
}

/// Stores those bytes of `data` whose byte of `mask` has its sign bit set.
pub(super) fn store_selected<B: Bus>(
    cpu: &mut Cpu,
    bus: &mut B,
    op: &Op<B>,
    data: u128,
    mask: u128,
) -> Flow {
    let linear = cpu.linear(op, 16, AccessKind::Write)?;
    let bytes = || (0_u64..).zip(data.to_le_bytes()).zip(mask.to_le_bytes());
    let selected = || bytes().filter(|(_, mask)| mask & 0x80 != 0);
    for ((at, _), _) in selected() {
        cpu.reserve(bus, linear.wrapping_add(at), op.segment(), 1)?;
    }
    for ((at, byte), _) in selected() {
        cpu.write(bus, linear.wrapping_add(at), op.segment(), byte)?;
    }
    Ok(())
}
