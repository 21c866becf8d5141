//! x87 instructions and EMMS, and those that load and store MXCSR.
//!
//! Arithmetic runs on the host ([`x87`]); here are its operands, the checks before it, and what happens when a
//! store faults: nothing. `imm` of an x87 [`Op`] is opcode and ModRM.

use iced_x86::{Code, CpuidFeature, Instruction, Mnemonic, OpKind};

use super::fxsave::MXCSR_MASK;
use super::sse::require_sse;
use crate::control::cr0;
use crate::op::{Exec, Fault, Flow, Op, vector};
use crate::walk::AccessKind;
use crate::x87::{self, Operand};
use crate::{Bus, Cpu, Fpu, reg};

/// FCW and FSW: the exceptions.
const EXCEPTIONS: u16 = 0x3f;
/// FSW.ES: an unmasked exception is pending.
const PENDING: u16 = 1 << 7;

/// The functions of this family.
pub(super) fn lower<B: Bus>(insn: &Instruction, op: &mut Op<B>) -> Option<Exec<B>> {
    use Code::*;
    let exec: Exec<B> = match insn.code() {
        Ldmxcsr_m32 => ldmxcsr,
        Stmxcsr_m32 => stmxcsr,
        Emms => emms,
        Wait => wait,
        Fnstsw_AX => fnstsw_ax,
        _ if !is_x87(insn) => return None,
        _ => return Some(lower_escape(insn, op)),
    };
    Some(exec)
}

/// Whether this is an x87 instruction that runs on the host. The 16-bit environment is another layout, and nobody
/// has used 8087 protection since.
fn is_x87(insn: &Instruction) -> bool {
    use Code::*;
    use CpuidFeature::{FPU, FPU287, FPU387};
    let features = insn.cpuid_features();
    features
        .iter()
        .any(|feature| matches!(feature, FPU | FPU287 | FPU387))
        && !matches!(
            insn.code(),
            Fldenv_m14byte | Fnstenv_m14byte | Frstor_m94byte | Fnsave_m94byte | Frstpm
        )
}

/// `dst` becomes the size of the memory operand, `src` what kind of instruction this is.
fn lower_escape<B: Bus>(insn: &Instruction, op: &mut Op<B>) -> Exec<B> {
    use Mnemonic::*;
    let (waits, computes) = match insn.mnemonic() {
        Fninit | Fnclex | Fnstcw | Fnstsw | Fnstenv | Fnsave | Fneni | Fndisi | Fnsetpm => (0, 0),
        Fldcw | Fldenv | Frstor => (WAITS, 0),
        _ => (WAITS, COMPUTES),
    };
    op.dst = insn.memory_size().size() as u8;
    op.src = waits | computes;
    if !insn.op_kinds().any(|kind| kind == OpKind::Memory) {
        return registers;
    }
    match insn.mnemonic() {
        Fst | Fstp | Fist | Fistp | Fisttp | Fbstp | Fnstcw | Fnstsw | Fnstenv | Fnsave => store,
        _ => load,
    }
}

/// `src`: a pending exception comes first.
const WAITS: u8 = 1;
/// `src`: the instruction is noted in FIP, FOP and FDP.
const COMPUTES: u8 = 2;

/// The checks before an x87 instruction.
fn require_x87<B>(cpu: &mut Cpu, op: &Op<B>) -> Flow {
    if cpu.cr0 & (cr0::EM | cr0::TS) != 0 {
        return Err(cpu.raise(Fault::NM));
    }
    if op.src & WAITS != 0 {
        require_nothing_pending(cpu)
    } else {
        Ok(())
    }
}

fn require_nothing_pending(cpu: &mut Cpu) -> Flow {
    if cpu.fpu.fsw & !cpu.fpu.fcw & EXCEPTIONS == 0 {
        return Ok(());
    }
    Err(cpu.raise(Fault::plain(vector::MF)))
}

/// Runs the instruction on `fpu`, a copy of the guest's.
fn execute<B>(cpu: &mut Cpu, op: &Op<B>, fpu: &mut Fpu, operand: &mut Operand) {
    let (opcode, modrm) = ((op.imm >> 8) as u8, op.imm as u8);
    let flags = x87::run(fpu, opcode, modrm, operand, cpu.flags.arithmetic());
    cpu.flags.set_arithmetic(flags);
    if op.src & COMPUTES != 0 {
        fpu.fip = cpu.rip_of(op);
        fpu.fop = op.imm as u16 & 0x7ff;
        if op.dst != 0 {
            fpu.fdp = cpu.offset(op) & op.addressing.mask();
        }
    }
}

fn registers<B: Bus>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    require_x87(cpu, op)?;
    let mut fpu = cpu.fpu;
    execute(cpu, op, &mut fpu, &mut Operand::zeroed());
    let is_fninit = op.imm == 0xdbe3;
    if is_fninit {
        (fpu.fip, fpu.fdp, fpu.fop) = (0, 0, 0);
    }
    cpu.fpu = fpu;
    Ok(())
}

fn load<B: Bus>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    require_x87(cpu, op)?;
    let mut operand = Operand::zeroed();
    let len_bytes = usize::from(op.dst);
    let linear = cpu.linear(op, len_bytes, AccessKind::Read)?;
    cpu.read_bytes(bus, linear, op.segment(), &mut operand.0[..len_bytes])?;
    let mut fpu = cpu.fpu;
    execute(cpu, op, &mut fpu, &mut operand);
    if len_bytes >= ENVIRONMENT_BYTES {
        load_pointers(&mut fpu, &operand);
    }
    cpu.fpu = fpu;
    Ok(())
}

fn store<B: Bus>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    require_x87(cpu, op)?;
    let len_bytes = usize::from(op.dst);
    let linear = cpu.linear(op, len_bytes, AccessKind::Write)?;
    cpu.reserve_bytes(bus, linear, op.segment(), len_bytes)?;
    let (mut fpu, mut operand) = (cpu.fpu, Operand::zeroed());
    execute(cpu, op, &mut fpu, &mut operand);
    if len_bytes >= ENVIRONMENT_BYTES {
        store_pointers(&cpu.fpu, &mut operand);
    }
    let is_fnsave = len_bytes > ENVIRONMENT_BYTES;
    if is_fnsave {
        (fpu.fip, fpu.fdp, fpu.fop) = (0, 0, 0);
    }
    if fpu.fsw & PENDING == 0 || op.src & WAITS == 0 || stored(cpu, op, &operand) {
        cpu.write_bytes(bus, linear, op.segment(), &operand.0[..len_bytes])?;
    }
    cpu.fpu = fpu;
    Ok(())
}

/// Whether an instruction that left an unmasked exception has stored `operand` all the same: then it
/// does so again over other bytes.
fn stored<B>(cpu: &mut Cpu, op: &Op<B>, operand: &Operand) -> bool {
    let mut again = Operand([0xff; Operand::BYTES]);
    execute(cpu, op, &mut cpu.fpu.clone(), &mut again);
    let len_bytes = usize::from(op.dst);
    again.0[..len_bytes] == operand.0[..len_bytes]
}

/// Size of what FLDENV and FNSTENV move; FRSTOR and FNSAVE move more.
const ENVIRONMENT_BYTES: usize = 28;

/// Where the environment has FIP, FOP and FDP.
const FIP: usize = 12;
const FOP: usize = 18;
const FDP: usize = 20;

fn load_pointers(fpu: &mut Fpu, operand: &Operand) {
    let at = |place: usize| {
        operand.0[place..]
            .first_chunk()
            .copied()
            .unwrap_or_default()
    };
    let word = |place: usize| u32::from_le_bytes(at(place));
    fpu.fip = word(FIP).into();
    fpu.fdp = word(FDP).into();
    fpu.fop = (word(FOP - 2) >> 16) as u16 & 0x7ff;
}

fn store_pointers(fpu: &Fpu, operand: &mut Operand) {
    operand.0[FIP..FIP + 4].copy_from_slice(&(fpu.fip as u32).to_le_bytes());
    operand.0[FIP + 4..FOP].fill(0);
    operand.0[FOP..FOP + 2].copy_from_slice(&fpu.fop.to_le_bytes());
    operand.0[FDP..FDP + 4].copy_from_slice(&(fpu.fdp as u32).to_le_bytes());
    operand.0[FDP + 4..FDP + 8].fill(0);
}

fn fnstsw_ax<B: Bus>(cpu: &mut Cpu, _bus: &mut B, _op: &Op<B>) -> Flow {
    if cpu.cr0 & (cr0::EM | cr0::TS) != 0 {
        return Err(cpu.raise(Fault::NM));
    }
    cpu.set::<u16>(reg::RAX as u8, cpu.fpu.fsw);
    Ok(())
}

fn wait<B: Bus>(cpu: &mut Cpu, _bus: &mut B, _op: &Op<B>) -> Flow {
    const BOTH: u64 = cr0::MP | cr0::TS;
    if cpu.cr0 & BOTH == BOTH {
        return Err(cpu.raise(Fault::NM));
    }
    require_nothing_pending(cpu)
}

fn emms<B: Bus>(cpu: &mut Cpu, _bus: &mut B, _op: &Op<B>) -> Flow {
    require_mmx(cpu)?;
    enter_mmx(&mut cpu.fpu);
    cpu.fpu.ftw = 0;
    Ok(())
}

/// The checks before an MMX instruction.
pub(super) fn require_mmx(cpu: &mut Cpu) -> Flow {
    if cpu.cr0 & cr0::EM != 0 {
        return Err(cpu.raise(Fault::UD));
    }
    if cpu.cr0 & cr0::TS != 0 {
        return Err(cpu.raise(Fault::NM));
    }
    require_nothing_pending(cpu)
}

/// What any MMX instruction does to the x87 stack: all registers are in use, and ST0 is the bottom one. The others
/// follow in their order.
pub(super) fn enter_mmx(fpu: &mut Fpu) {
    let top = usize::from(fpu.fsw >> 11 & 7);
    fpu.st.rotate_right(top);
    fpu.fsw &= !(7 << 11);
    fpu.ftw = 0xff;
}

fn ldmxcsr<B: Bus>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    require_sse(cpu)?;
    let mxcsr: u32 = cpu.load(bus, op)?;
    if mxcsr & !MXCSR_MASK != 0 {
        return Err(cpu.raise(Fault::GP));
    }
    cpu.fpu.mxcsr = mxcsr;
    Ok(())
}

fn stmxcsr<B: Bus>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    require_sse(cpu)?;
    cpu.store(bus, op, cpu.fpu.mxcsr)
}
