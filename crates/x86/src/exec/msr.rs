//! RDMSR and WRMSR: privilege is checked here, and everything else is for who runs the processor.

use iced_x86::{Instruction, Mnemonic};

use super::system::require_cpl0;
use crate::op::{Exec, Flow, Op};
use crate::{Bus, Cpu, Stop, reg};

/// The functions of this family.
pub(crate) fn lower<B: Bus>(insn: &Instruction, _op: &mut Op<B>) -> Option<Exec<B>> {
    match insn.mnemonic() {
        Mnemonic::Rdmsr => Some(rdmsr),
        Mnemonic::Wrmsr => Some(wrmsr),
        _ => None,
    }
}

fn rdmsr<B: Bus>(cpu: &mut Cpu, _bus: &mut B, _op: &Op<B>) -> Flow {
    require_cpl0(cpu)?;
    let index = cpu.gpr[reg::RCX] as u32;
    Err(cpu.stop(Stop::Rdmsr { index }))
}

fn wrmsr<B: Bus>(cpu: &mut Cpu, _bus: &mut B, _op: &Op<B>) -> Flow {
    require_cpl0(cpu)?;
    let index = cpu.gpr[reg::RCX] as u32;
    let value = cpu.edx_eax();
    Err(cpu.stop(Stop::Wrmsr { index, value }))
}
