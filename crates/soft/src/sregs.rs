//! System registers: the checks of `KVM_SET_SREGS` (`kvm_is_valid_sregs`).

use msrgate_core::{Errno, MsrIndex, SystemRegisters};
use msrgate_x86::{CpuidRegister, supported_mask};

use crate::vcpu::Engine;

/// IA32_APIC_BASE: the MSR's own rules hold here too.
const APIC_BASE: MsrIndex = MsrIndex(0x1b);
const CR0_PE: u64 = 1;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
const CR0_PG: u64 = 1 << 31;
/// PE MP EM TS ET NE, WP, AM, NW CD PG.
const CR0_KNOWN: u64 = 0xe005_003f;
const CR4_PAE: u64 = 1 << 5;
/// VME to OSXMMEXCPT, which every processor has.
const CR4_ALWAYS: u64 = 0x7ff;
/// Bits of CR4 that come with a feature: the bit, the feature's leaf, register and bit.
const CR4_FEATURES: [(u32, u32, CpuidRegister, u32); 6] = [
    (11, 7, CpuidRegister::Ecx, 2),  // UMIP
    (16, 7, CpuidRegister::Ebx, 0),  // FSGSBASE
    (17, 1, CpuidRegister::Ecx, 17), // PCIDE
    (18, 1, CpuidRegister::Ecx, 26), // OSXSAVE
    (20, 7, CpuidRegister::Ebx, 7),  // SMEP
    (21, 7, CpuidRegister::Ebx, 20), // SMAP
];
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
    if !possible || !cr0_valid || cr4 & !known_cr4() != 0 {
        return Err(Errno::EINVAL);
    }
    if !engine.set_msr(APIC_BASE, registers.apic_base) {
        return Err(Errno::EINVAL);
    }
    engine.cpu.set_system_registers(registers);
    engine.look_at_interrupts();
    Ok(())
}

/// The bits of CR4 that the processor has, whatever its guest's CPUID says.
fn known_cr4() -> u64 {
    let features = CR4_FEATURES
        .iter()
        .filter(|(_, leaf, register, bit)| supported_mask(*leaf, *register) >> bit & 1 == 1);
    features.fold(CR4_ALWAYS, |known, (bit, ..)| known | 1 << bit)
}
