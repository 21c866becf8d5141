//! System registers: the checks of `KVM_SET_SREGS` (`kvm_is_valid_sregs`).

use msrgate_core::{Errno, SystemRegisters};

use crate::vcpu::Engine;

const CR0_PE: u64 = 1;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
const CR0_PG: u64 = 1 << 31;
/// PE MP EM TS ET NE, WP, AM, NW CD PG.
const CR0_KNOWN: u64 = 0xe005_003f;
const CR4_PAE: u64 = 1 << 5;
/// VME to OSXMMEXCPT, UMIP, FSGSBASE, PCIDE, OSXSAVE, SMEP, SMAP.
const CR4_KNOWN: u64 = 0x0077_0fff & !(1 << 19);
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Sets the system registers.
///
/// # Errors
/// EINVAL for a combination that no processor can be in; nothing has changed.
pub(crate) fn set(engine: &mut Engine, registers: &SystemRegisters) -> Result<(), Errno> {
    let SystemRegisters {
        cr0,
        cr3,
        cr4,
        efer,
        ..
    } = *registers;
    let long = efer & EFER_LME != 0 && cr0 & CR0_PG != 0;
    let possible = if long {
        let physical_bits = engine.msrs.cpuid.physical_bits();
        cr4 & CR4_PAE != 0 && efer & EFER_LMA != 0 && cr3 >> physical_bits == 0
    } else {
        efer & EFER_LMA == 0 && !registers.cs.l
    };
    let cr0_valid = cr0 & !CR0_KNOWN == 0
        && !(cr0 & CR0_NW != 0 && cr0 & CR0_CD == 0)
        && !(cr0 & CR0_PG != 0 && cr0 & CR0_PE == 0);
    if !possible || !cr0_valid || cr4 & !CR4_KNOWN != 0 {
        return Err(Errno::EINVAL);
    }
    engine.cpu.set_system_registers(registers);
    Ok(())
}
