//! SYSCALL, SYSRET, SYSENTER, SYSEXIT: flat segments out of MSRs, without a look at the descriptor tables.

use iced_x86::{Code, Instruction, Mnemonic};
use msrgate_core::Segment;

use super::system::require_cpl0;
use crate::control::efer;
use crate::descriptor::{RPL, flat};
use crate::op::{Exec, Exit, Fault, Flow, Op};
use crate::{Bus, Cpu, flags, reg, seg};

/// RFLAGS bits that SYSRET takes from R11.
const SYSRET_FLAGS: u64 = 0x3c_7fd7;

/// The functions of this family.
pub(crate) fn lower<B: Bus>(insn: &Instruction, _op: &mut Op<B>) -> Option<Exec<B>> {
    Some(match insn.mnemonic() {
        Mnemonic::Syscall => syscall,
        Mnemonic::Sysret | Mnemonic::Sysretq => match insn.code() {
            Code::Sysretq => sysret::<B, true>,
            _ => sysret::<B, false>,
        },
        Mnemonic::Sysenter => sysenter,
        Mnemonic::Sysexit | Mnemonic::Sysexitq => match insn.code() {
            Code::Sysexitq => sysexit::<B, true>,
            _ => sysexit::<B, false>,
        },
        _ => return None,
    })
}

/// Loads CS and SS at once, and with them the privilege level.
fn enter(cpu: &mut Cpu, cs: u16, ss: u16, cpl: u8, long: bool) -> Flow {
    let code = flat(cs & !RPL | u16::from(cpl), cpl, true);
    cpu.segs[seg::CS] = Segment {
        l: long,
        db: !long,
        ..code
    };
    cpu.segs[seg::SS] = flat(ss & !RPL | u16::from(cpl), cpl, false);
    cpu.set_cpl(cpl);
    Err(Exit::Jump)
}

fn syscall<B: Bus>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let from_compatibility = !cpu.is_64();
    // Only AMD has it outside 64-bit mode; there, legacy mode is left out.
    let refused = from_compatibility && !(cpu.features.amd && cpu.is_long());
    if cpu.efer & efer::SCE == 0 || refused {
        return Err(cpu.raise(Fault::UD));
    }
    cpu.gpr[reg::RCX] = cpu.next_rip(op);
    cpu.gpr[reg::R11] = cpu.flags.get() & !flags::RF;
    cpu.rip = if from_compatibility {
        cpu.msrs.cstar
    } else {
        cpu.msrs.lstar
    };
    cpu.flags
        .set(cpu.flags.get() & !(cpu.msrs.fmask & 0xffff_ffff | flags::RF));
    cpu.trap &= cpu.flags.has(flags::TF);
    let cs = (cpu.msrs.star >> 32) as u16 & !RPL;
    enter(cpu, cs, cs.wrapping_add(8), 0, true)
}

fn sysret<B: Bus, const TO_64: bool>(cpu: &mut Cpu, _bus: &mut B, _op: &Op<B>) -> Flow {
    let amd = cpu.features.amd;
    if cpu.efer & efer::SCE == 0 || !cpu.is_64() && !amd {
        return Err(cpu.raise(Fault::UD));
    }
    require_cpl0(cpu)?;
    // AMD has it outside 64-bit mode, which is left out.
    if !cpu.is_64() {
        return Err(cpu.raise(Fault::UD));
    }
    let rip = cpu.gpr[reg::RCX];
    // On AMD's processors the user's first fetch faults.
    if TO_64 && !amd && !Cpu::is_canonical(rip) {
        return Err(cpu.raise(Fault::GP));
    }
    cpu.rip = if TO_64 { rip } else { rip & 0xffff_ffff };
    cpu.flags.set(cpu.gpr[reg::R11] & SYSRET_FLAGS);
    let base = (cpu.msrs.star >> 48) as u16;
    let cs = if TO_64 { base.wrapping_add(16) } else { base };
    enter(cpu, cs, base.wrapping_add(8), 3, TO_64)
}

fn sysenter<B: Bus>(cpu: &mut Cpu, _bus: &mut B, _op: &Op<B>) -> Flow {
    let long = cpu.is_long();
    if long && cpu.features.amd {
        return Err(cpu.raise(Fault::UD));
    }
    let cs = cpu.msrs.sysenter_cs as u16 & !RPL;
    if cpu.is_real() || cs == 0 {
        return Err(cpu.raise(Fault::GP));
    }
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    cpu.rip = cpu.msrs.sysenter_eip & mask;
    cpu.gpr[reg::RSP] = cpu.msrs.sysenter_esp & mask;
    cpu.flags.put(flags::VM | flags::IF | flags::RF, false);
    enter(cpu, cs, cs.wrapping_add(8), 0, long)
}

fn sysexit<B: Bus, const TO_64: bool>(cpu: &mut Cpu, _bus: &mut B, _op: &Op<B>) -> Flow {
    if cpu.is_long() && cpu.features.amd {
        require_cpl0(cpu)?;
        return Err(cpu.raise(Fault::UD));
    }
    let base = cpu.msrs.sysenter_cs as u16 & !RPL;
    let (rip, rsp) = (cpu.gpr[reg::RDX], cpu.gpr[reg::RCX]);
    let canonical = Cpu::is_canonical(rip) && Cpu::is_canonical(rsp);
    if cpu.is_real() || cpu.cpl != 0 || base == 0 || TO_64 && !canonical {
        return Err(cpu.raise(Fault::GP));
    }
    let mask = if TO_64 { u64::MAX } else { 0xffff_ffff };
    cpu.rip = rip & mask;
    cpu.gpr[reg::RSP] = rsp & mask;
    let cs = base.wrapping_add(if TO_64 { 32 } else { 16 });
    enter(cpu, cs, cs.wrapping_add(8), 3, TO_64)
}
