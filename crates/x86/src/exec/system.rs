//! What is left of the system instructions: HLT, CLI, STI, PAUSE, CPUID, RDTSC, RDRAND, hypercalls, caches and fences.
//!
//! RDPMC always faults: there are no counters. MONITOR and MWAIT exist where CPUID says so, and do not wait.

use iced_x86::{Instruction, Mnemonic};

use super::{nop, operand_bytes, sized, undefined};
use crate::control::cr4;
use crate::cpu::Shadow;
use crate::cpuid::{self, CpuidRegister};
use crate::int::Int;
use crate::op::{Exec, Exit, Fault, Flow, Op};
use crate::{Bus, Cpu, Stop, flags, reg};

/// The functions of this family.
pub(crate) fn lower<B: Bus>(insn: &Instruction, _op: &mut Op<B>) -> Option<Exec<B>> {
    use Mnemonic::{
        Clac, Cldemote, Clflush, Clflushopt, Cli, Clwb, Cpuid, Getsec, Hlt, Invd, Lfence, Mfence,
        Monitor, Mwait, Pause, Prefetch, Prefetchnta, Prefetcht0, Prefetcht1, Prefetcht2,
        Prefetchw, Prefetchwt1, Rdpid, Rdpmc, Rdrand, Rdtsc, Rdtscp, Rsm, Sfence, Stac, Sti, Ud0,
        Ud1, Ud2, Vmcall, Vmmcall, Wbinvd,
    };
    Some(match insn.mnemonic() {
        Pause => pause,
        Rdrand => return sized!(operand_bytes(insn), T => rdrand::<B, T>),
        Hlt => hlt,
        Cli => cli,
        Sti => sti,
        Clac => set_ac::<B, false>,
        Stac => set_ac::<B, true>,
        Cpuid => cpuid,
        Rdtsc => rdtsc,
        Rdtscp => rdtscp,
        Rdpid => rdpid,
        Rdpmc => rdpmc,
        Vmcall | Vmmcall => hypercall,
        Monitor | Mwait => monitor,
        Invd | Wbinvd => flush_caches,
        Ud0 | Ud1 | Ud2 | Rsm | Getsec => undefined,
        Clflush | Clflushopt | Clwb | Cldemote | Lfence | Mfence | Sfence | Prefetch
        | Prefetchnta | Prefetcht0 | Prefetcht1 | Prefetcht2 | Prefetchw | Prefetchwt1 => nop,
        _ => return None,
    })
}

/// #GP(0) unless CPL is 0.
pub(super) fn require_cpl0(cpu: &mut Cpu) -> Flow {
    if cpu.cpl == 0 {
        Ok(())
    } else {
        Err(cpu.raise(Fault::GP))
    }
}

/// #GP(0) where CR4.UMIP hides system registers from user code.
pub(super) fn require_umip(cpu: &mut Cpu) -> Flow {
    if cpu.cpl > 0 && cpu.cr4 & cr4::UMIP != 0 {
        Err(cpu.raise(Fault::GP))
    } else {
        Ok(())
    }
}

/// #UD unless CPUID has the feature.
pub(super) fn require_feature(cpu: &mut Cpu, leaf: u32, register: CpuidRegister, bit: u8) -> Flow {
    if cpu.features.has(leaf, register, bit) {
        Ok(())
    } else {
        Err(cpu.raise(Fault::UD))
    }
}

/// EDX:EAX.
impl Cpu {
    pub(crate) fn set_edx_eax(&mut self, value: u64) {
        self.gpr[reg::RAX] = value & 0xffff_ffff;
        self.gpr[reg::RDX] = value >> 32;
    }

    pub(crate) const fn edx_eax(&self) -> u64 {
        self.gpr[reg::RAX] & 0xffff_ffff | self.gpr[reg::RDX] << 32
    }
}

fn hlt<B: Bus>(cpu: &mut Cpu, _bus: &mut B, _op: &Op<B>) -> Flow {
    require_cpl0(cpu)?;
    Err(cpu.stop_after(Stop::Hlt))
}

/// After so many of them, who runs the processor may let others run.
fn pause<B: Bus>(cpu: &mut Cpu, _bus: &mut B, _op: &Op<B>) -> Flow {
    const PATIENCE: u32 = 16;
    cpu.pauses += 1;
    if cpu.pauses < PATIENCE {
        return Ok(());
    }
    cpu.pauses = 0;
    Err(cpu.stop_after(Stop::Pause))
}

fn require_io_privilege(cpu: &mut Cpu) -> Flow {
    if cpu.cpl <= cpu.iopl() {
        Ok(())
    } else {
        Err(cpu.raise(Fault::GP))
    }
}

fn cli<B: Bus>(cpu: &mut Cpu, _bus: &mut B, _op: &Op<B>) -> Flow {
    require_io_privilege(cpu)?;
    cpu.flags.put(flags::IF, false);
    Ok(())
}

fn sti<B: Bus>(cpu: &mut Cpu, _bus: &mut B, _op: &Op<B>) -> Flow {
    require_io_privilege(cpu)?;
    if cpu.flags.has(flags::IF) {
        return Ok(());
    }
    cpu.flags.put(flags::IF, true);
    cpu.shadow = Shadow::Sti;
    cpu.attention = true;
    Err(Exit::Leave)
}

/// CLAC and STAC.
fn set_ac<B: Bus, const ON: bool>(cpu: &mut Cpu, _bus: &mut B, _op: &Op<B>) -> Flow {
    require_feature(cpu, 7, CpuidRegister::Ebx, 20)?;
    if cpu.cpl != 0 {
        return Err(cpu.raise(Fault::UD));
    }
    cpu.flags.put(flags::AC, ON);
    cpu.update_context();
    Ok(())
}

fn cpuid<B: Bus>(cpu: &mut Cpu, _bus: &mut B, _op: &Op<B>) -> Flow {
    const OSXSAVE: u32 = 1 << 27;
    const APIC: u32 = 1 << 9;
    const APIC_ENABLED: u64 = 1 << 11;
    let (function, index) = (cpu.get(reg::RAX as u8), cpu.get(reg::RCX as u8));
    let [eax, ebx, mut ecx, mut edx] = cpuid::lookup(&cpu.config.cpuid, function, index);
    if function == 1 {
        ecx &= !OSXSAVE;
        if cpu.cr4 & cr4::OSXSAVE != 0 {
            ecx |= OSXSAVE;
        }
        if cpu.msrs.apic_base & APIC_ENABLED == 0 {
            edx &= !APIC;
        }
    }
    for (register, value) in [
        (reg::RAX, eax),
        (reg::RBX, ebx),
        (reg::RCX, ecx),
        (reg::RDX, edx),
    ] {
        cpu.gpr[register] = u64::from(value);
    }
    Ok(())
}

fn rdtsc<B: Bus>(cpu: &mut Cpu, bus: &mut B, _op: &Op<B>) -> Flow {
    if cpu.cpl > 0 && cpu.cr4 & cr4::TSD != 0 {
        return Err(cpu.raise(Fault::GP));
    }
    cpu.set_edx_eax(bus.tsc());
    Ok(())
}

fn rdtscp<B: Bus>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    require_feature(cpu, 0x8000_0001, CpuidRegister::Edx, 27)?;
    rdtsc(cpu, bus, op)?;
    cpu.gpr[reg::RCX] = cpu.msrs.tsc_aux & 0xffff_ffff;
    Ok(())
}

fn rdpid<B: Bus>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    require_feature(cpu, 7, CpuidRegister::Ecx, 22)?;
    cpu.set(op.dst, cpu.msrs.tsc_aux & 0xffff_ffff);
    Ok(())
}

/// CF says whether there was a number; the other flags are clear.
fn rdrand<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    require_feature(cpu, 1, CpuidRegister::Ecx, 30)?;
    let number = bus.random();
    cpu.set(op.dst, T::cut(number.unwrap_or(0)));
    let carry = if number.is_some() { flags::CF } else { 0 };
    cpu.flags.set_arithmetic(carry);
    Ok(())
}

fn rdpmc<B: Bus>(cpu: &mut Cpu, _bus: &mut B, _op: &Op<B>) -> Flow {
    Err(cpu.raise(Fault::GP))
}

fn hypercall<B: Bus>(cpu: &mut Cpu, _bus: &mut B, _op: &Op<B>) -> Flow {
    Err(cpu.stop_after(Stop::Hypercall))
}

/// MONITOR and MWAIT.
fn monitor<B: Bus>(cpu: &mut Cpu, _bus: &mut B, _op: &Op<B>) -> Flow {
    require_feature(cpu, 1, CpuidRegister::Ecx, 3)?;
    if cpu.cpl == 0 {
        Ok(())
    } else {
        Err(cpu.raise(Fault::UD))
    }
}

fn flush_caches<B: Bus>(cpu: &mut Cpu, _bus: &mut B, _op: &Op<B>) -> Flow {
    require_cpl0(cpu)
}
