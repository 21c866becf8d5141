//! What KVM's host path does otherwise than the guest's instruction: [`host_path`], a row for each MSR that KVM knows.
//!
//! A filter denies before KVM is asked. What the policy then lets KVM do is done by `KVM_GET_MSRS` and
//! `KVM_SET_MSRS`, which skip some of the guest's checks and some of its side effects. Facts are those of Linux
//! 6.12: what depends on `host_initiated` in `kvm_{get,set}_msr_common`, `vmx_`, `svm_` and `kvm_pmu_`, and in
//! `kvm_do_msr_access` and `do_set_msr`. Encrypted guests are not
//! looked at, and nested guests only for the TSC.

use msrgate_core::{Access, MsrIndex};

/// What the host path makes of an access, measured by what the guest's own comes to. The texts go on after "the host path".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HostPath {
    /// The same for every guest. What it refuses, KVM knows and refuses to the guest.
    Same,
    /// The same but in this case.
    Nearly(&'static str),
    /// Something else.
    Differs(&'static str),
    /// KVM does not know this access, and refuses it either way.
    Unknown,
}

/// What the host path makes of an access.
///
/// ```
/// use msrgate_core::{Access, MsrIndex};
/// use msrgate_policy::{HostPath, host_path};
///
/// let efer = MsrIndex(0xc000_0080);
/// assert_eq!(host_path(efer, Access::Read), HostPath::Same);
/// assert!(matches!(host_path(efer, Access::Write), HostPath::Differs(_)));
/// ```
#[must_use]
pub fn host_path(index: MsrIndex, access: Access) -> HostPath {
    let mut rows = ROWS.iter();
    rows.find(|row| row.next_from(index.0) == Some(index.0))
        .map_or(Unknown, |row| row.paths[access as usize])
}

/// Whether KVM has any use for the MSR, in either direction.
pub(crate) fn is_known(index: MsrIndex) -> bool {
    index.is_x2apic() || Access::ALL.map(|access| host_path(index, access)) != [Unknown; 2]
}

/// The MSRs of `first..=last` for which the host path is not the same, by index.
pub(crate) fn differences(
    first: u32,
    last: u32,
    access: Access,
) -> impl Iterator<Item = (MsrIndex, HostPath)> {
    let rows = ROWS.iter().filter_map(move |row| {
        let index = row.next_from(first).filter(|&index| index <= last)?;
        Some((MsrIndex(index), row.paths[access as usize]))
    });
    rows.filter(|(_, path)| matches!(path, Nearly(_) | Differs(_)))
}

/// Every MSR for which the host path is the same.
pub(crate) fn same(access: Access) -> impl Iterator<Item = MsrIndex> {
    let rows = ROWS.iter();
    let rows = rows.filter(move |row| row.paths[access as usize] == Same);
    rows.flat_map(Row::msrs)
}

/// Every MSR that KVM knows and for which the host path is not the same, and how it differs.
pub(crate) fn unobservable(access: Access) -> impl Iterator<Item = (MsrIndex, &'static str)> {
    let rows = ROWS
        .iter()
        .filter_map(move |row| match row.paths[access as usize] {
            Nearly(how) | Differs(how) => Some((row, how)),
            Same | Unknown => None,
        });
    rows.flat_map(|(row, how)| row.msrs().map(move |index| (index, how)))
}

use HostPath::{Differs, Nearly, Same, Unknown};

/// Every `step`-th MSR from `first` to `last`.
#[derive(Debug)]
struct Row {
    first: u32,
    last: u32,
    step: u32,
    /// By [`Access`].
    paths: [HostPath; 2],
}

impl Row {
    /// The row's first MSR that is not before `index`.
    fn next_from(&self, index: u32) -> Option<u32> {
        let steps = index.saturating_sub(self.first).div_ceil(self.step);
        let next = self.first.checked_add(steps.checked_mul(self.step)?)?;
        (next <= self.last).then_some(next)
    }

    fn msrs(&self) -> impl Iterator<Item = MsrIndex> {
        let firsts = (self.first..=self.last).step_by(self.step as usize);
        firsts.map(MsrIndex)
    }
}

const OFFERED: HostPath = Nearly("also serves guests whose CPUID does not offer it");
const COUNTER: HostPath = Nearly("reads 0 and takes 0 where the guest has no such counter");
const ONE_VENDOR: HostPath = Nearly("does not tell whether KVM knows it for this processor");
const HYPERV: HostPath = Nearly("also serves guests without Hyper-V's interface");
const READ_ONLY: HostPath = Differs("writes what the guest may only read");
const LOCK: HostPath = Differs("writes although the guest has locked it");

#[rustfmt::skip]
const ROWS: &[Row] = &[
    //  first        last         read       write
    row(0x0000_0000, 0x0000_0001, Same,      Unknown),   // IA32_P5_MC_ADDR, _TYPE
    row(0x0000_0010, 0x0000_0010, Nearly("reads the outer guest's TSC while a nested guest runs"),
                                             Differs("sets the TSC's offset as a restore does")),
    row(0x0000_0011, 0x0000_0011, OFFERED,   OFFERED),   // KVM_WALL_CLOCK
    row(0x0000_0012, 0x0000_0012, OFFERED,   Differs("does not choose the clock's interface")), // KVM_SYSTEM_TIME
    row(0x0000_0017, 0x0000_0017, Same,      Unknown),   // IA32_PLATFORM_ID
    row(0x0000_001b, 0x0000_001b, Same,      Differs("changes the APIC's mode without the guest's checks")),
    row(0x0000_002a, 0x0000_002a, Same,      Unknown),   // EBL_CR_POWERON
    row(0x0000_002c, 0x0000_002c, Same,      Unknown),   // EBC_FREQUENCY_ID
    row(0x0000_0034, 0x0000_0034, Same,      READ_ONLY), // SMI_COUNT
    row(0x0000_003a, 0x0000_003a, ONE_VENDOR, LOCK),   // IA32_FEATURE_CONTROL
    row(0x0000_003b, 0x0000_003b, Same,      Differs("does not move the TSC along")), // IA32_TSC_ADJUST
    row(0x0000_0048, 0x0000_0048, OFFERED,   OFFERED),   // IA32_SPEC_CTRL
    row(0x0000_0049, 0x0000_0049, Unknown,   OFFERED),   // IA32_PRED_CMD
    row(0x0000_0079, 0x0000_0079, Unknown,   Same),      // IA32_BIOS_UPDT_TRIG
    row(0x0000_008b, 0x0000_008b, Same,      READ_ONLY), // IA32_BIOS_SIGN_ID
    row(0x0000_008c, 0x0000_008f, OFFERED,   LOCK),      // IA32_SGXLEPUBKEYHASH0..3
    row(0x0000_009e, 0x0000_009e, Differs("reads what the guest may not read"), Differs("writes what the guest may not write")),
    row(0x0000_00c1, 0x0000_00c2, Same,      Differs("sets the whole counter")), // IA32_PMC0, 1
    row(0x0000_00c3, 0x0000_00c8, COUNTER,   Differs("sets the whole counter")), // IA32_PMC2..7
    row(0x0000_00cd, 0x0000_00cd, Same,      Unknown),   // FSB_FREQ
    row(0x0000_00ce, 0x0000_00ce, Nearly("reads it although the VMM has hidden it"), READ_ONLY), // PLATFORM_INFO
    row(0x0000_00e1, 0x0000_00e1, OFFERED,   OFFERED),   // IA32_UMWAIT_CONTROL
    row(0x0000_00fe, 0x0000_00fe, Same,      Unknown),   // IA32_MTRRCAP
    row(0x0000_010a, 0x0000_010a, OFFERED,   READ_ONLY), // IA32_ARCH_CAPABILITIES
    row(0x0000_010b, 0x0000_010b, Unknown,   OFFERED),   // IA32_FLUSH_CMD
    row(0x0000_011e, 0x0000_011e, Same,      Same),      // BBL_CR_CTL3
    row(0x0000_0122, 0x0000_0122, OFFERED,   OFFERED),   // IA32_TSX_CTRL
    row(0x0000_0140, 0x0000_0140, Same,      Same),      // MISC_FEATURES_ENABLES
    row(0x0000_0174, 0x0000_0174, Same,      Same),      // IA32_SYSENTER_CS
    row(0x0000_0175, 0x0000_0176, Same,      Nearly("takes what is no canonical address, which Intel's processors refuse")), // IA32_SYSENTER_ESP, _EIP
    row(0x0000_0179, 0x0000_0179, Same,      Unknown),   // IA32_MCG_CAP
    row(0x0000_017a, 0x0000_017a, Same,      Same),      // IA32_MCG_STATUS
    row(0x0000_017b, 0x0000_017b, OFFERED,   OFFERED),   // IA32_MCG_CTL
    row(0x0000_0186, 0x0000_0187, Same,      Same),      // IA32_PERFEVTSEL0, 1
    row(0x0000_0188, 0x0000_018d, COUNTER,   COUNTER),   // IA32_PERFEVTSEL2..7
    row(0x0000_0198, 0x0000_0199, Same,      Unknown),   // IA32_PERF_STATUS, _CTL
    row(0x0000_01a0, 0x0000_01a0, Same,      Differs("changes bits that the guest may only read")), // IA32_MISC_ENABLE
    row(0x0000_01c4, 0x0000_01c5, OFFERED,   OFFERED),   // IA32_XFD, _ERR
    row(0x0000_01d9, 0x0000_01d9, Same,      Nearly("takes bits that the guest's CPUID does not offer")), // IA32_DEBUGCTL
    row(0x0000_01db, 0x0000_01de, Same,      READ_ONLY), // LASTBRANCHFROMIP .. LASTINTTOIP
    row(0x0000_01fc, 0x0000_01fc, Same,      Same),      // POWER_CTL
    row(0x0000_0200, 0x0000_026f, Same,      Same),      // MTRRs, but for the default type
    row(0x0000_0277, 0x0000_0277, Same,      Same),      // IA32_PAT
    row(0x0000_0280, 0x0000_029f, Nearly("reads it although there is no CMCI"), Nearly("takes 0 although there is no CMCI")), // IA32_MC0_CTL2 ..
    row(0x0000_02ff, 0x0000_02ff, Same,      Same),      // IA32_MTRR_DEF_TYPE
    row(0x0000_0309, 0x0000_030c, COUNTER,   COUNTER),   // IA32_FIXED_CTR0..3
    row(0x0000_0345, 0x0000_0345, OFFERED,   READ_ONLY), // IA32_PERF_CAPABILITIES
    row(0x0000_038d, 0x0000_038d, COUNTER,   COUNTER),   // IA32_FIXED_CTR_CTRL
    row(0x0000_038e, 0x0000_038e, COUNTER,   READ_ONLY), // IA32_PERF_GLOBAL_STATUS
    row(0x0000_038f, 0x0000_038f, COUNTER,   COUNTER),   // IA32_PERF_GLOBAL_CTRL
    row(0x0000_0390, 0x0000_0390, COUNTER,   Differs("does not clear the status")), // IA32_PERF_GLOBAL_OVF_CTRL
    row(0x0000_03f1, 0x0000_03f2, COUNTER,   COUNTER),   // IA32_PEBS_ENABLE, PEBS_DATA_CFG
    every_fourth(0x400, 0x47c,    Same,      Same),      // IA32_MC0_CTL ..
    every_fourth(0x401, 0x47d,    Same,      Differs("sets status bits that the guest may only clear")), // IA32_MC0_STATUS ..
    every_fourth(0x402, 0x47e,    Same,      Same),      // IA32_MC0_ADDR ..
    every_fourth(0x403, 0x47f,    Same,      Same),      // IA32_MC0_MISC ..
    row(0x0000_0480, 0x0000_0491, Nearly("reads it without Hyper-V's restrictions"), READ_ONLY), // IA32_VMX_BASIC ..
    row(0x0000_04c1, 0x0000_04c8, COUNTER,   COUNTER),   // IA32_A_PMC0..7
    row(0x0000_04d0, 0x0000_04d0, OFFERED,   OFFERED),   // IA32_MCG_EXT_CTL
    row(0x0000_0560, 0x0000_0561, ONE_VENDOR, ONE_VENDOR), // IA32_RTIT_OUTPUT_BASE, _MASK
    row(0x0000_0570, 0x0000_0572, ONE_VENDOR, ONE_VENDOR), // IA32_RTIT_CTL, _STATUS, _CR3_MATCH
    row(0x0000_0580, 0x0000_0587, ONE_VENDOR, ONE_VENDOR), // IA32_RTIT_ADDR0_A ..
    row(0x0000_0600, 0x0000_0600, COUNTER,   COUNTER),   // IA32_DS_AREA
    row(0x0000_0606, 0x0000_0606, Same,      Unknown),   // RAPL_POWER_UNIT
    row(0x0000_0611, 0x0000_0611, Same,      Unknown),   // PKG_ENERGY_STATUS
    row(0x0000_0619, 0x0000_0619, Same,      Unknown),   // DRAM_ENERGY_STATUS
    row(0x0000_0639, 0x0000_0639, Same,      Unknown),   // PP0_ENERGY_STATUS
    row(0x0000_0641, 0x0000_0641, Same,      Unknown),   // PP1_ENERGY_STATUS
    row(0x0000_06e0, 0x0000_06e0, Same,      Nearly("is not taken where KVM writes it before it asks the filter")), // IA32_TSC_DEADLINE
    row(0x0000_0d90, 0x0000_0d90, OFFERED,   OFFERED),   // IA32_BNDCFGS
    row(0x0000_0da0, 0x0000_0da0, OFFERED,   OFFERED),   // IA32_XSS
    row(0x4000_0000, 0x4000_0118, HYPERV,    Differs("writes without Hyper-V's checks and effects")), // HV_X64_MSR_GUEST_OS_ID ..
    row(0x4b56_4d00, 0x4b56_4d00, OFFERED,   OFFERED),   // KVM_WALL_CLOCK_NEW
    row(0x4b56_4d01, 0x4b56_4d01, OFFERED,   Differs("does not choose the clock's interface")), // KVM_SYSTEM_TIME_NEW
    row(0x4b56_4d02, 0x4b56_4d07, OFFERED,   OFFERED),   // KVM_ASYNC_PF_EN ..
    row(0xc000_0080, 0xc000_0080, Same,      Differs("changes modes without the guest's checks")), // IA32_EFER
    row(0xc000_0081, 0xc000_0084, Same,      Same),      // IA32_STAR, _LSTAR, _CSTAR, _FMASK
    row(0xc000_0100, 0xc000_0102, Same,      Same),      // IA32_FS_BASE, _GS_BASE, _KERNEL_GS_BASE
    row(0xc000_0103, 0xc000_0103, OFFERED,   OFFERED),   // IA32_TSC_AUX
    row(0xc000_0104, 0xc000_0104, OFFERED,   OFFERED),   // TSC_RATIO
    row(0xc000_0300, 0xc000_0300, COUNTER,   READ_ONLY), // PERF_CNTR_GLOBAL_STATUS
    row(0xc000_0301, 0xc000_0301, COUNTER,   COUNTER),   // PERF_CNTR_GLOBAL_CTL
    row(0xc000_0302, 0xc000_0303, COUNTER,   Differs("does not change the status")), // PERF_CNTR_GLOBAL_STATUS_CLR, _SET
    row(0xc001_0000, 0xc001_0007, Same,      Same),      // K7_EVNTSEL0..3, K7_PERFCTR0..3
    row(0xc001_0010, 0xc001_0010, Same,      Unknown),   // SYSCFG
    row(0xc001_0015, 0xc001_0015, Same,      Same),      // HWCR
    row(0xc001_001b, 0xc001_001b, Same,      Same),      // K7_CLK_CTL
    row(0xc001_001f, 0xc001_001f, Same,      Same),      // NB_CFG
    row(0xc001_0020, 0xc001_0020, Unknown,   Same),      // PATCH_LOADER
    row(0xc001_0055, 0xc001_0055, Same,      Unknown),   // INT_PENDING_MSG
    row(0xc001_0058, 0xc001_0058, Same,      Same),      // MMIO_CONF_BASE
    row(0xc001_0112, 0xc001_0113, Same,      Unknown),   // TSEG_ADDR, TSEG_MASK
    row(0xc001_0114, 0xc001_0114, ONE_VENDOR, ONE_VENDOR), // VM_CR
    row(0xc001_0115, 0xc001_0115, Unknown,   ONE_VENDOR), // IGNNE
    row(0xc001_0117, 0xc001_0117, Same,      Differs("takes addresses that the guest may not write")), // VM_HSAVE_PA
    row(0xc001_011f, 0xc001_011f, OFFERED,   OFFERED),   // VIRT_SPEC_CTRL
    row(0xc001_0140, 0xc001_0141, Same,      Same),      // OSVW_ID_LENGTH, OSVW_STATUS
    row(0xc001_0200, 0xc001_020b, COUNTER,   COUNTER),   // PERF_CTL0, PERF_CTR0 ..
    row(0xc001_1021, 0xc001_1021, ONE_VENDOR, Unknown),  // IC_CFG
    row(0xc001_1022, 0xc001_1023, Same,      Same),      // DC_CFG, TW_CFG
    row(0xc001_1029, 0xc001_1029, ONE_VENDOR, Differs("refuses a change once the guest has run")), // DE_CFG
    row(0xc001_102a, 0xc001_102a, Same,      Same),      // BU_CFG2
    row(0xc001_102c, 0xc001_102c, Same,      Same),      // EX_CFG
];

const fn row(first: u32, last: u32, read: HostPath, write: HostPath) -> Row {
    Row {
        first,
        last,
        step: 1,
        paths: [read, write],
    }
}

const fn every_fourth(first: u32, last: u32, read: HostPath, write: HostPath) -> Row {
    Row {
        step: 4,
        ..row(first, last, read, write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_msr_has_two_rows() {
        let mut all: Vec<MsrIndex> = ROWS.iter().flat_map(Row::msrs).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn machine_check_status_differs_in_every_bank_and_for_writes_only() {
        for index in 0x400..=0x47f {
            let expected = index % 4 == 1;
            let write = host_path(MsrIndex(index), Access::Write);
            assert_eq!(matches!(write, Differs(_)), expected, "{index:#x}");
            assert_eq!(host_path(MsrIndex(index), Access::Read), Same);
        }
    }

    #[test]
    fn differences_within_a_range_are_found_from_its_first_msr_on() {
        let found = |first, last, access| -> Vec<u32> {
            let found = differences(first, last, access);
            found.map(|(index, _)| index.0).collect()
        };
        assert_eq!(found(0x0, 0x1b, Access::Write), [0x10, 0x11, 0x12, 0x1b]);
        assert_eq!(found(0x0, 0x10, Access::Read), [0x10]);
        assert_eq!(found(0x402, 0x405, Access::Write), [0x405]);
        assert!(found(0x402, 0x404, Access::Write).is_empty());
        assert!(found(0xffff_fff0, u32::MAX, Access::Read).is_empty());
    }
}
