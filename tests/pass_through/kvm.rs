//! What KVM wants to pass through, as data: [`CONDITIONS`]. What is not in there is as core says of a new vCPU.
//!
//! Of Linux 6.12: `vmx_vcpu_after_set_cpuid`, `vmx_set_msr`, `init_vmcb_after_set_cpuid`, `svm_vcpu_after_set_cpuid`,
//! `svm_set_msr`.

use std::path::Path;

use kvm_bindings::kvm_cpuid_entry2;
use msrgate_core::Access::{Read, Write};
use msrgate_core::Desired::{Intercept, PassThrough};
use msrgate_core::{Access, Desired, MsrIndex, PermissionLayout};

/// Whose hardware KVM runs its guests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vendor {
    Intel,
    Amd,
}

impl Vendor {
    /// The one whose module is loaded.
    pub(crate) fn of_this_host() -> Option<Self> {
        let is_loaded = |module: &str| Path::new("/sys/module").join(module).is_dir();
        [(Self::Intel, "kvm_intel"), (Self::Amd, "kvm_amd")]
            .into_iter()
            .find_map(|(vendor, module)| is_loaded(module).then_some(vendor))
    }

    pub(crate) const fn layout(self) -> &'static PermissionLayout {
        match self {
            Self::Intel => PermissionLayout::VMX,
            Self::Amd => PermissionLayout::SVM,
        }
    }
}

/// A way in which a vCPU may be, and what KVM then wants.
#[derive(Clone, Copy)]
pub(crate) struct Condition {
    pub(crate) name: &'static str,
    /// Changes what the guest's CPUID says.
    pub(crate) cpuid: fn(&mut [kvm_cpuid_entry2]),
    /// One of these must be in the guest's CPUID, where there are any.
    pub(crate) features: &'static [Feature],
    /// What the guest writes first. If that is refused, nothing changes.
    pub(crate) written: Option<u64>,
    /// What KVM wants otherwise than for a new vCPU.
    pub(crate) desired: &'static [(Access, Desired)],
}

/// A bit of CPUID.
pub(crate) struct Feature {
    leaf: u32,
    subleaf: u32,
    register: fn(&mut kvm_cpuid_entry2) -> &mut u32,
    bit: u32,
}

impl Feature {
    const fn new(
        leaf: u32,
        subleaf: u32,
        register: fn(&mut kvm_cpuid_entry2) -> &mut u32,
        bit: u32,
    ) -> Self {
        Self {
            leaf,
            subleaf,
            register,
            bit,
        }
    }

    /// Whether a guest has it.
    pub(crate) fn is_in(&self, cpuid: &[kvm_cpuid_entry2]) -> bool {
        let mut leaves = cpuid.iter();
        let leaf = leaves.find(|leaf| (leaf.function, leaf.index) == (self.leaf, self.subleaf));
        leaf.is_some_and(|leaf| *(self.register)(&mut leaf.clone()) >> self.bit & 1 == 1)
    }
}

const SPEC_CTRL: Feature = Feature::new(7, 0, |leaf| &mut leaf.edx, 26);
const IBPB: Feature = Feature::new(0x8000_0008, 0, |leaf| &mut leaf.ebx, 12);
const FLUSH_L1D: Feature = Feature::new(7, 0, |leaf| &mut leaf.edx, 28);
const XFD: Feature = Feature::new(0xd, 1, |leaf| &mut leaf.eax, 4);

const NEW: Condition = Condition {
    name: "new vCPU",
    cpuid: |_| (),
    features: &[],
    written: None,
    desired: &[],
};

const BOTH: &[(Access, Desired)] = &[(Read, PassThrough), (Write, PassThrough)];
const NEITHER: &[(Access, Desired)] = &[(Read, Intercept), (Write, Intercept)];

/// With what of CPUID KVM passes it through.
const fn offered(features: &'static [Feature], desired: &'static [(Access, Desired)]) -> Condition {
    Condition {
        name: "as CPUID says",
        features,
        desired,
        ..NEW
    }
}

const fn written(value: u64) -> Condition {
    Condition {
        name: "after a write",
        written: Some(value),
        desired: BOTH,
        ..NEW
    }
}

/// Without the features above.
const PLAIN: Condition = Condition {
    name: "CPUID without it",
    cpuid: |leaves| {
        for leaf in leaves {
            match (leaf.function, leaf.index) {
                (7, 0) => leaf.edx = 0,
                (0x8000_0008, 0) => leaf.ebx = 0,
                (0xd, 1) => leaf.eax = 0,
                _ => {}
            }
        }
    },
    ..NEW
};

const OF_AMD: Condition = Condition {
    name: "CPUID of AMD",
    desired: BOTH,
    ..NEW
};

/// KVM emulates SYSENTER's registers for guests that may move to Intel.
const OF_INTEL: Condition = Condition {
    name: "CPUID of Intel",
    cpuid: |leaves| {
        for leaf in leaves.iter_mut().filter(|leaf| leaf.function == 0) {
            [leaf.ebx, leaf.edx, leaf.ecx] = [*b"Genu", *b"ineI", *b"ntel"].map(u32::from_le_bytes);
        }
    },
    desired: NEITHER,
    ..NEW
};

#[rustfmt::skip]
const CONDITIONS: &[(Vendor, u32, Condition)] = &[
    (Vendor::Intel, 0x48,  NEW),
    (Vendor::Intel, 0x48,  written(1)),
    (Vendor::Intel, 0x49,  offered(&[SPEC_CTRL, IBPB], &[(Write, PassThrough)])),
    (Vendor::Intel, 0x49,  PLAIN),
    (Vendor::Intel, 0x10b, offered(&[FLUSH_L1D], &[(Write, PassThrough)])),
    (Vendor::Intel, 0x10b, PLAIN),
    (Vendor::Intel, 0x1c4, NEW),
    (Vendor::Intel, 0x1c4, written(1 << 18)),
    (Vendor::Intel, 0x1c5, offered(&[XFD], &[(Read, PassThrough)])),
    (Vendor::Intel, 0x1c5, PLAIN),
    (Vendor::Amd,   0x48,  NEW),
    (Vendor::Amd,   0x48,  written(1)),
    (Vendor::Amd,   0x49,  offered(&[SPEC_CTRL, IBPB], &[(Write, PassThrough)])),
    (Vendor::Amd,   0x49,  PLAIN),
    (Vendor::Amd,   0x10b, offered(&[FLUSH_L1D], &[(Write, PassThrough)])),
    (Vendor::Amd,   0x10b, PLAIN),
    (Vendor::Amd,   0x175, OF_AMD),
    (Vendor::Amd,   0x175, OF_INTEL),
    (Vendor::Amd,   0x176, OF_AMD),
    (Vendor::Amd,   0x176, OF_INTEL),
];

/// The ways to look at a candidate.
pub(crate) fn variants(vendor: Vendor, index: MsrIndex) -> Vec<Condition> {
    let rows = CONDITIONS.iter();
    let rows: Vec<_> = rows
        .filter(|row| (row.0, row.1) == (vendor, index.0))
        .map(|row| row.2)
        .collect();
    if rows.is_empty() { vec![NEW] } else { rows }
}

/// Of the MSRs that are no candidates, every how many-th is tried: emulators are slow. Odd, so that all bits of a byte come.
pub(crate) const fn sweep_step(vendor: Vendor) -> usize {
    match vendor {
        Vendor::Intel => 7,
        Vendor::Amd => 3,
    }
}
