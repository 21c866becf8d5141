//! What the MSR rules ask a guest's CPUID: [`GuestCpuid`], worked out once when the table is set.

use msrgate_x86::CpuidLeaf;

use super::rule::{Feature, On};

/// Vendor, features and address width, as the guest sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GuestCpuid {
    amd: bool,
    /// Bit `n`: the [`Feature`] with discriminant `n`.
    features: u32,
    /// EAX of leaf 0x40000001, if the hypervisor leaves are KVM's.
    pv: u32,
    physical_bits: u32,
}

/// A CPUID bit: leaf, subleaf, register (0 EAX .. 3 EDX), bit.
type Bit = (u32, u32, usize, u32);

const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

/// The bits of which one has to be there.
const FEATURES: &[(Feature, &[Bit])] = &[
    (Feature::ArchCapabilities, &[(7, 0, EDX, 29)]),
    (Feature::FlushL1d, &[(7, 0, EDX, 28)]),
    (Feature::LongMode, &[(0x8000_0001, 0, EDX, 29)]),
    (Feature::Nx, &[(0x8000_0001, 0, EDX, 20)]),
    (Feature::Osvw, &[(0x8000_0001, 0, ECX, 9)]),
    (Feature::Pdcm, &[(1, 0, ECX, 15)]),
    // SPEC_CTRL, AMD IBPB, SBPB.
    (
        Feature::PredCmd,
        &[
            (7, 0, EDX, 26),
            (0x8000_0008, 0, EBX, 12),
            (0x8000_0021, 0, EAX, 27),
        ],
    ),
    // RDTSCP, RDPID.
    (
        Feature::Rdtscp,
        &[(0x8000_0001, 0, EDX, 27), (7, 0, ECX, 22)],
    ),
    (Feature::SgxLc, &[(7, 0, ECX, 30)]),
    // SPEC_CTRL, AMD IBRS, AMD STIBP, AMD SSBD.
    (
        Feature::SpecCtrl,
        &[
            (7, 0, EDX, 26),
            (0x8000_0008, 0, EBX, 14),
            (0x8000_0008, 0, EBX, 15),
            (0x8000_0008, 0, EBX, 24),
        ],
    ),
    (Feature::TscAdjust, &[(7, 0, EBX, 1)]),
    (Feature::TscDeadline, &[(1, 0, ECX, 24)]),
    (Feature::TscRate, &[(0x8000_000a, 0, EDX, 4)]),
    (Feature::VirtSsbd, &[(0x8000_0008, 0, EBX, 25)]),
    (Feature::Waitpkg, &[(7, 0, ECX, 5)]),
    (Feature::X2apic, &[(1, 0, ECX, 21)]),
    (Feature::Xfd, &[(0xd, 1, EAX, 4)]),
    (Feature::Xsaves, &[(0xd, 1, EAX, 3)]),
];

impl GuestCpuid {
    /// Reads a CPUID table.
    pub(crate) fn new(table: &[CpuidLeaf]) -> Self {
        let leaf = |function, index| {
            let row = table
                .iter()
                .find(|row| row.function == function && row.index.is_none_or(|own| own == index));
            row.map(|row| [row.eax, row.ebx, row.ecx, row.edx])
        };
        let has = |&(function, index, register, bit): &Bit| {
            leaf(function, index).is_some_and(|row| row[register] >> bit & 1 == 1)
        };
        let features = FEATURES.iter().filter(|(_, bits)| bits.iter().any(has));
        let name = |[_, a, b, c]: [u32; 4]| [a, b, c].map(u32::to_le_bytes);
        let vendor = leaf(0, 0).map(|[eax, ebx, ecx, edx]| name([eax, ebx, edx, ecx]));
        let hypervisor = leaf(0x4000_0000, 0).map(name);
        let is_kvm = hypervisor.is_some_and(|name| name.as_flattened() == b"KVMKVMKVM\0\0\0");
        let physical_bits = leaf(0x8000_0008, 0).map_or(36, |[eax, ..]| eax & 0xff);
        Self {
            amd: vendor.is_some_and(|name| {
                matches!(name.as_flattened(), b"AuthenticAMD" | b"HygonGenuine")
            }),
            features: features.fold(0, |bits, (feature, _)| bits | 1 << *feature as u32),
            pv: leaf(0x4000_0001, 0)
                .filter(|_| is_kvm)
                .map_or(0, |[eax, ..]| eax),
            physical_bits: physical_bits.clamp(32, 52),
        }
    }

    /// Whether the vendor is AMD or Hygon.
    pub(crate) fn is_amd(&self) -> bool {
        self.amd
    }

    /// Whether a row of the table holds for this guest.
    pub(crate) fn is_on(&self, on: On) -> bool {
        match on {
            On::Both => true,
            On::Intel => !self.amd,
            On::Amd => self.amd,
        }
    }

    pub(crate) fn has(&self, feature: Feature) -> bool {
        self.features >> feature as u32 & 1 == 1
    }

    /// Whether KVM's PV feature `bit` is offered.
    pub(crate) fn has_pv(&self, bit: u32) -> bool {
        self.pv >> bit & 1 == 1
    }

    /// MAXPHYADDR, 32 to 52.
    pub(crate) fn physical_bits(&self) -> u32 {
        self.physical_bits
    }
}
