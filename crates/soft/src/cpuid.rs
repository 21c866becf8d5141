//! The CPUID that a VM supports: the host's identity, or a fixed one, with the features that the processor
//! has, and KVM's hypervisor leaves.

use std::arch::x86_64::{__cpuid_count, CpuidResult};

use msrgate_x86::{CpuidLeaf, CpuidRegister, fixed_cpuid, supported_mask};

use crate::{pv, random};

/// Whose processor a guest sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum CpuidSource {
    /// The host's vendor, family, model and brand, with the features that the processor in software has.
    #[default]
    Host,
    /// The same on every host.
    Fixed,
}

/// Leaf 1 ECX: features that are ours and not the processor's: the hypervisor bit, and x2APIC, which a VM has that
/// makes in-kernel interrupt controllers.
const HYPERVISOR: u32 = 1 << 31;
const X2APIC: u32 = 1 << 21;
/// Leaf 1 ECX: a timer mode of local APICs in the kernel (`KVM_CAP_TSC_DEADLINE_TIMER`).
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: RDRAND, whose numbers are the host's.
const RDRAND: u32 = 1 << 30;
/// Leaf 1 EDX: a local APIC, in the kernel or the client's.
const APIC: u32 = 1 << 9;
/// Leaf 1 EDX: MCE and MCA, MTRR, which are MSRs here.
const MCE_MTRR_MCA: u32 = 1 << 7 | 1 << 12 | 1 << 14;
/// Leaf 7 EBX: TSC_ADJUST, an MSR here.
const TSC_ADJUST: u32 = 1 << 1;
/// Leaf 7 EDX: IA32_ARCH_CAPABILITIES, an MSR here.
const ARCH_CAPABILITIES: u32 = 1 << 29;
/// Leaf 0x80000007 EDX: the TSC never changes its frequency.
const INVARIANT_TSC: u32 = 1 << 8;

/// AMD's second leaf of features, and the last that there is.
const AMD_HIGHEST: u32 = 0x8000_0021;

/// Leaf 0x40000001 EAX: kvmclock by the old MSRs and the new ones, with pages that agree; ports need no delay.
const PV_FEATURES: u32 = 1 << pv::CLOCKSOURCE
    | 1 << pv::NOP_IO_DELAY
    | 1 << pv::CLOCKSOURCE2
    | 1 << pv::CLOCKSOURCE_STABLE;

/// The leaves from which a guest learns the frequency of its TSC without measuring it.
const TSC_CRYSTAL: u32 = 0x15;
const FREQUENCY: u32 = 0x16;

/// What `KVM_GET_SUPPORTED_CPUID` answers.
pub(crate) fn supported(source: CpuidSource, tsc_khz: u32) -> Vec<CpuidLeaf> {
    let mut leaves = match source {
        CpuidSource::Fixed => fixed_cpuid(),
        CpuidSource::Host => host_cpuid(),
    };
    for leaf in &mut leaves {
        match leaf.function {
            0 => leaf.eax = FREQUENCY,
            1 => {
                leaf.ecx |= HYPERVISOR | X2APIC;
                leaf.edx |= MCE_MTRR_MCA | APIC;
            }
            7 => {
                leaf.ebx |= TSC_ADJUST;
                leaf.edx |= ARCH_CAPABILITIES;
            }
            _ => {}
        }
    }
    let [b, c, d] = [b"KVMK", b"VMKV", b"M\0\0\0"].map(|part| u32::from_le_bytes(*part));
    leaves.push(leaf(0x4000_0000, [0x4000_0001, b, c, d]));
    leaves.push(leaf(0x4000_0001, [PV_FEATURES, 0, 0, 0]));
    // The TSC counts a crystal's cycles; the processor and its bus run at the same frequency.
    let (hz, mhz) = (tsc_khz.saturating_mul(1000), tsc_khz / 1000);
    leaves.push(leaf(TSC_CRYSTAL, [1, 1, hz, 0]));
    leaves.push(leaf(FREQUENCY, [mhz, mhz, mhz, 0]));
    leaves.push(leaf(0x8000_0007, [0, 0, 0, INVARIANT_TSC]));
    leaves.sort_by_key(|leaf| (leaf.function, leaf.index));
    leaves
}

/// What vCPU `id` is told of itself, by who sets a VM's tables: its APIC ID, and with controllers in the kernel the timer
/// mode that only they have.
pub(crate) fn of_vcpu(mut table: Vec<CpuidLeaf>, id: u32, has_irqchip: bool) -> Vec<CpuidLeaf> {
    for leaf in table.iter_mut().filter(|leaf| leaf.function == 1) {
        leaf.ebx = leaf.ebx & 0x00ff_ffff | id << 24;
        if has_irqchip {
            leaf.ecx |= TSC_DEADLINE;
        }
    }
    table
}

/// The host's identity, with the processor's features.
fn host_cpuid() -> Vec<CpuidLeaf> {
    let identity = [0, 0x8000_0002, 0x8000_0003, 0x8000_0004];
    let [_, b, c, d] = host(0);
    let is_amd = c == u32::from_le_bytes(*b"cAMD");
    let [signature, ..] = host(1);
    let [address_bits, ..] = host(0x8000_0008);
    let mut leaves = fixed_cpuid();
    for leaf in &mut leaves {
        match leaf.function {
            function if identity.contains(&function) => {
                let highest = if function == 0 {
                    leaf.eax
                } else {
                    host(function)[0]
                };
                [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx] = host(function);
                leaf.eax = highest;
            }
            1 => {
                leaf.eax = signature;
                if random::is_there() {
                    leaf.ecx |= RDRAND;
                }
            }
            0x8000_0000 if is_amd => {
                [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx] = [AMD_HIGHEST, b, c, d];
            }
            0x8000_0001 if is_amd => {
                leaf.eax = signature;
                leaf.edx = supported_mask(0x8000_0001, CpuidRegister::Edx);
            }
            0x8000_0008 => {
                leaf.eax = address_bits & 0xffff;
                if is_amd {
                    leaf.ebx = supported_mask(0x8000_0008, CpuidRegister::Ebx);
                }
            }
            _ => {}
        }
    }
    if is_amd {
        use CpuidRegister::{Eax, Ebx, Ecx, Edx};
        let registers = [Eax, Ebx, Ecx, Edx].map(|it| supported_mask(AMD_HIGHEST, it));
        leaves.push(leaf(AMD_HIGHEST, registers));
    }
    leaves
}

fn host(function: u32) -> [u32; 4] {
    let CpuidResult { eax: highest, .. } = __cpuid_count(function & 0xf000_0000, 0);
    if function > highest {
        return [0; 4];
    }
    let CpuidResult { eax, ebx, ecx, edx } = __cpuid_count(function, 0);
    [eax, ebx, ecx, edx]
}

fn leaf(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidLeaf {
    CpuidLeaf {
        function,
        index: None,
        eax,
        ebx,
        ecx,
        edx,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amd_guests_learn_that_nothing_speculates() {
        let table = supported(CpuidSource::Host, 2_600_000);
        let find = |function| table.iter().find(|leaf| leaf.function == function);
        let is_amd = find(0).unwrap().ecx == u32::from_le_bytes(*b"cAMD");
        let highest = find(0x8000_0000).unwrap().eax;
        assert_eq!(highest, if is_amd { 0x8000_0021 } else { 0x8000_0008 });
        assert_eq!(find(0x8000_0021).is_some(), is_amd);
        let no_errata = find(0x8000_0008).unwrap().ebx;
        assert_eq!(no_errata, if is_amd { 1 << 26 | 1 << 29 } else { 0 });
    }

    #[test]
    fn tables_name_kvm_and_the_frequency_of_the_tsc() {
        for source in [CpuidSource::Host, CpuidSource::Fixed] {
            let table = supported(source, 2_600_000);
            let find = |function| table.iter().find(|leaf| leaf.function == function).unwrap();
            assert_eq!(find(0x15).ecx, 2_600_000_000);
            assert_eq!(find(0).eax, 0x16);
            assert_eq!(find(0x4000_0000).ebx.to_le_bytes(), *b"KVMK");
            assert_ne!(find(1).ecx & HYPERVISOR, 0);
            // No feature that the processor does not have.
            let known = supported_mask(1, CpuidRegister::Ecx) | HYPERVISOR | X2APIC | RDRAND;
            assert_eq!(find(1).ecx & !known, 0);
            let rising = |pair: &[CpuidLeaf]| pair[0].function < pair[1].function;
            assert!(table.windows(2).all(rising), "one row a leaf, in order");
        }
    }
}
