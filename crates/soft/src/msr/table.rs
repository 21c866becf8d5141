//! Every MSR that this KVM knows: one row each, in the order of their indices.
//!
//! A row says where the value lives, who may use it, and what reads and writes do; what has no row is UNKNOWN.
//! Facts are those of Linux 6.12 (`kvm_{get,set}_msr_common`, `svm_`, `vmx_`), for a host without PMU, nested
//! virtualization, SMM, Hyper-V and CET. Rules that need more than a column are functions in [`super::rule`].

use super::rule;
use super::rule::Feature::{
    FlushL1d, Osvw, PredCmd, Rdtscp, SgxLc, SpecCtrl, TscRate, VirtSsbd, Waitpkg, Xfd, Xsaves,
};
use super::rule::Home::{self, Cpu, Kept, Nowhere};
use super::rule::Needs::{self, Feature, Host, Nobody, Nothing, Pv, Strictly};
use super::rule::On::{self, Amd, Both, Intel};
use super::rule::Read::{self, Always, By as ReadBy, Value};
use super::rule::Write::{self, Any, Bits, By, Canonical, Drop, HostOnly, HostOrDrop, If, Low};
use crate::processor::CpuMsr::{
    ApicBase, Cstar, Efer, Fmask, FsBase, GsBase, KernelGsBase, Lstar, Pat, Star, SysenterCs,
    SysenterEip, SysenterEsp, TscAux, Xss,
};
use crate::pv::{
    ASYNC_PF, ASYNC_PF_INT, CLOCKSOURCE, CLOCKSOURCE2, POLL_CONTROL, PV_EOI, STEAL_TIME,
};

/// The rules of one MSR, or of `count` consecutive ones that share them.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) first: u32,
    pub(crate) count: u32,
    /// The guest's vendor for which the row holds.
    pub(crate) on: On,
    /// In `KVM_GET_MSR_INDEX_LIST`. A host may read such an MSR, and write 0, even where it is UNKNOWN.
    pub(crate) listed: bool,
    pub(crate) home: Home,
    pub(crate) needs: Needs,
    pub(crate) read: Read,
    pub(crate) write: Write,
}

const LISTED: bool = true;
const HIDDEN: bool = false;

#[rustfmt::skip]
pub(crate) static ROWS: &[Row] = &[
    //  first        n     on     listed  home                needs                      read             write
    row(0x0000_0000, 2,    Both,  HIDDEN, Nowhere,            Nothing,                   Always(0),       Write::Unknown),               // IA32_P5_MC_ADDR, _TYPE
    row(0x0000_0010, 1,    Both,  LISTED, Nowhere,            Nothing,                   ReadBy(rule::read_tsc), By(rule::write_tsc)),   // IA32_TIME_STAMP_COUNTER
    row(0x0000_0011, 1,    Both,  LISTED, Nowhere,            Pv(CLOCKSOURCE),           ReadBy(rule::read_wall_clock), By(rule::write_wall_clock)), // KVM_WALL_CLOCK
    row(0x0000_0012, 1,    Both,  LISTED, Nowhere,            Pv(CLOCKSOURCE),           ReadBy(rule::read_system_time), By(rule::write_system_time)), // KVM_SYSTEM_TIME
    row(0x0000_0017, 1,    Both,  HIDDEN, Nowhere,            Nothing,                   Always(0),       Write::Unknown),               // IA32_PLATFORM_ID
    row(0x0000_001b, 1,    Both,  HIDDEN, Cpu(ApicBase),      Nothing,                   Value,           If(rule::apic_base)),          // IA32_APIC_BASE
    row(0x0000_002a, 1,    Both,  HIDDEN, Nowhere,            Nothing,                   Always(0),       Write::Unknown),               // EBL_CR_POWERON
    row(0x0000_002c, 1,    Both,  HIDDEN, Nowhere,            Nothing,                   Always(1 << 24), Write::Unknown),               // EBC_FREQUENCY_ID
    row(0x0000_0034, 1,    Both,  LISTED, Kept(0),            Nothing,                   Value,           HostOnly),                     // SMI_COUNT
    row(0x0000_003a, 1,    Intel, LISTED, Kept(0),            Nothing,                   Value,           If(rule::feature_control)),    // IA32_FEATURE_CONTROL
    row(0x0000_003b, 1,    Both,  LISTED, Kept(0),            Nothing,                   Value,           By(rule::write_tsc_adjust)),   // IA32_TSC_ADJUST
    row(0x0000_0048, 1,    Both,  LISTED, Kept(0),            Feature(SpecCtrl),         Value,           Bits(0x7)),                    // IA32_SPEC_CTRL
    row(0x0000_0049, 1,    Both,  HIDDEN, Nowhere,            Feature(PredCmd),          Read::Unknown,   Bits(0x1)),                    // IA32_PRED_CMD
    row(0x0000_0079, 1,    Both,  HIDDEN, Nowhere,            Nothing,                   Read::Unknown,   Drop),                         // IA32_BIOS_UPDT_TRIG
    row(0x0000_008b, 1,    Intel, LISTED, Kept(1 << 32),      Nothing,                   Value,           HostOrDrop),                   // IA32_BIOS_SIGN_ID
    row(0x0000_008b, 1,    Amd,   LISTED, Kept(0x0100_0065),  Nothing,                   Value,           HostOrDrop),                   // PATCH_LEVEL
    row(0x0000_008c, 4,    Intel, HIDDEN, Kept(0),            Feature(SgxLc),            Value,           Any),                          // IA32_SGXLEPUBKEYHASH0..3
    row(0x0000_009e, 1,    Both,  LISTED, Kept(0x3_0000),     Host,                      Value,           Any),                          // IA32_SMBASE
    row(0x0000_00c1, 2,    Both,  HIDDEN, Nowhere,            Nothing,                   Always(0),       Drop),                         // IA32_PMC0, 1
    row(0x0000_00cd, 1,    Both,  HIDDEN, Nowhere,            Nothing,                   Always(3),       Write::Unknown),               // FSB_FREQ
    row(0x0000_00ce, 1,    Both,  LISTED, Kept(1 << 31),      Nothing,                   ReadBy(rule::read_platform_info), By(rule::write_platform_info)), // PLATFORM_INFO
    row(0x0000_00e1, 1,    Intel, LISTED, Kept(0),            Feature(Waitpkg),          Value,           Bits(0xffff_fffd)),            // IA32_UMWAIT_CONTROL
    row(0x0000_00fe, 1,    Both,  HIDDEN, Nowhere,            Nothing,                   Always(0x508),   Write::Unknown),               // IA32_MTRRCAP
    row(0x0000_010a, 1,    Both,  LISTED, Kept(0),            Nothing,                   ReadBy(rule::read_arch_capabilities), HostOnly), // IA32_ARCH_CAPABILITIES
    row(0x0000_010b, 1,    Both,  HIDDEN, Nowhere,            Feature(FlushL1d),         Read::Unknown,   Bits(0x1)),                    // IA32_FLUSH_CMD
    row(0x0000_011e, 1,    Both,  HIDDEN, Nowhere,            Nothing,                   Always(0xbe70_2111), Drop),                     // BBL_CR_CTL3
    row(0x0000_0122, 1,    Intel, HIDDEN, Nowhere,            Nobody,                    Value,           Any),                          // IA32_TSX_CTRL
    row(0x0000_0140, 1,    Both,  LISTED, Kept(0),            Nothing,                   Value,           If(rule::misc_features)),      // MISC_FEATURES_ENABLES
    row(0x0000_0174, 1,    Both,  LISTED, Cpu(SysenterCs),    Nothing,                   Value,           Any),                          // IA32_SYSENTER_CS
    row(0x0000_0175, 1,    Both,  LISTED, Cpu(SysenterEsp),   Nothing,                   Value,           By(rule::write_sysenter)),     // IA32_SYSENTER_ESP
    row(0x0000_0176, 1,    Both,  LISTED, Cpu(SysenterEip),   Nothing,                   Value,           By(rule::write_sysenter)),     // IA32_SYSENTER_EIP
    row(0x0000_0179, 1,    Both,  HIDDEN, Kept(rule::MCE_BANKS as u64), Nothing,         Value,           Write::Unknown),               // IA32_MCG_CAP
    row(0x0000_017a, 1,    Both,  LISTED, Kept(0),            Nothing,                   Value,           Any),                          // IA32_MCG_STATUS
    row(0x0000_017b, 1,    Both,  LISTED, Kept(0),            Nothing,                   ReadBy(rule::read_mcg_ctl), By(rule::write_mcg_ctl)),   // IA32_MCG_CTL
    row(0x0000_0186, 2,    Both,  HIDDEN, Nowhere,            Nothing,                   Always(0),       Drop),                         // IA32_PERFEVTSEL0, 1
    row(0x0000_0198, 1,    Both,  HIDDEN, Nowhere,            Nothing,                   Always(4 << 40 | 1000), Write::Unknown),        // IA32_PERF_STATUS
    row(0x0000_0199, 1,    Both,  HIDDEN, Nowhere,            Nothing,                   Always(0),       Write::Unknown),               // IA32_PERF_CTL
    row(0x0000_01a0, 1,    Both,  LISTED, Kept(0x1800),       Nothing,                   Value,           By(rule::write_misc_enable)),  // IA32_MISC_ENABLE
    row(0x0000_01c4, 2,    Both,  LISTED, Kept(0),            Feature(Xfd),              Value,           Bits(0)),                      // IA32_XFD, IA32_XFD_ERR
    row(0x0000_01d9, 1,    Both,  LISTED, Kept(0),            Nothing,                   Value,           By(rule::write_debugctl)),     // IA32_DEBUGCTL
    row(0x0000_01db, 4,    Intel, LISTED, Nowhere,            Nothing,                   Always(0),       Write::Unknown),               // LASTBRANCHFROMIP .. LASTINTTOIP
    row(0x0000_01db, 4,    Amd,   LISTED, Kept(0),            Nothing,                   Value,           HostOnly),
    row(0x0000_01fc, 1,    Both,  LISTED, Kept(0),            Nothing,                   Value,           Any),                          // POWER_CTL
    row(0x0000_0200, 0x10, Both,  HIDDEN, Kept(0),            Nothing,                   Value,           If(rule::mtrr_variable)),      // IA32_MTRR_PHYSBASE0 .. PHYSMASK7
    row(0x0000_0210, 0x40, Both,  HIDDEN, Nowhere,            Nobody,                    Value,           Any),
    row(0x0000_0250, 1,    Both,  HIDDEN, Kept(0),            Nothing,                   Value,           If(rule::mtrr_fixed)),         // IA32_MTRR_FIX64K_00000
    row(0x0000_0251, 7,    Both,  HIDDEN, Nowhere,            Nobody,                    Value,           Any),
    row(0x0000_0258, 2,    Both,  HIDDEN, Kept(0),            Nothing,                   Value,           If(rule::mtrr_fixed)),         // IA32_MTRR_FIX16K_80000, A0000
    row(0x0000_025a, 0xe,  Both,  HIDDEN, Nowhere,            Nobody,                    Value,           Any),
    row(0x0000_0268, 8,    Both,  HIDDEN, Kept(0),            Nothing,                   Value,           If(rule::mtrr_fixed)),         // IA32_MTRR_FIX4K_C0000 .. F8000
    row(0x0000_0277, 1,    Both,  LISTED, Cpu(Pat),           Nothing,                   Value,           If(rule::pat)),                // IA32_PAT
    row(0x0000_0280, 0x20, Both,  HIDDEN, Kept(0),            Host,                      ReadBy(rule::read_mci_ctl2), By(rule::write_mci_ctl2)), // IA32_MC0_CTL2 .. (no MCG_CMCI_P)
    row(0x0000_02ff, 1,    Both,  HIDDEN, Kept(0),            Nothing,                   Value,           If(rule::mtrr_default)),       // IA32_MTRR_DEF_TYPE
    row(0x0000_0345, 1,    Both,  LISTED, Kept(0),            Nothing,                   ReadBy(rule::read_perf_capabilities), By(rule::write_perf_capabilities)), // IA32_PERF_CAPABILITIES
    row(0x0000_0400, 0x80, Both,  HIDDEN, Kept(0),            Nothing,                   ReadBy(rule::read_mce_bank), By(rule::write_mce_bank)), // IA32_MC0_CTL ..
    row(0x0000_0480, 0x12, Intel, HIDDEN, Nowhere,            Nobody,                    Value,           Any),                          // IA32_VMX_BASIC ..
    row(0x0000_04d0, 1,    Intel, LISTED, Kept(0),            Host,                      Value,           Bits(0x1)),                    // IA32_MCG_EXT_CTL
    row(0x0000_0560, 2,    Intel, HIDDEN, Nowhere,            Nobody,                    Value,           Any),                          // IA32_RTIT_OUTPUT_BASE, _MASK
    row(0x0000_0570, 3,    Intel, HIDDEN, Nowhere,            Nobody,                    Value,           Any),                          // IA32_RTIT_CTL, _STATUS, _CR3_MATCH
    row(0x0000_0580, 8,    Intel, HIDDEN, Nowhere,            Nobody,                    Value,           Any),                          // IA32_RTIT_ADDR0_A ..
    row(0x0000_0606, 1,    Both,  HIDDEN, Nowhere,            Nothing,                   Always(0),       Write::Unknown),               // RAPL_POWER_UNIT
    row(0x0000_0611, 1,    Both,  HIDDEN, Nowhere,            Nothing,                   Always(0),       Write::Unknown),               // PKG_ENERGY_STATUS
    row(0x0000_0619, 1,    Both,  HIDDEN, Nowhere,            Nothing,                   Always(0),       Write::Unknown),               // DRAM_ENERGY_STATUS
    row(0x0000_0639, 1,    Both,  HIDDEN, Nowhere,            Nothing,                   Always(0),       Write::Unknown),               // PP0_ENERGY_STATUS
    row(0x0000_0641, 1,    Both,  HIDDEN, Nowhere,            Nothing,                   Always(0),       Write::Unknown),               // PP1_ENERGY_STATUS
    row(0x0000_06e0, 1,    Both,  LISTED, Nowhere,            Nothing,                   Always(0),       Drop),                         // IA32_TSC_DEADLINE (no in-kernel APIC timer)
    row(0x0000_0800, 0x100, Both, HIDDEN, Nowhere,            Nobody,                    Value,           Any),                          // x2APIC (no in-kernel APIC)
    row(0x0000_0d90, 1,    Intel, HIDDEN, Nowhere,            Nobody,                    Value,           Any),                          // IA32_BNDCFGS
    row(0x0000_0da0, 1,    Both,  HIDDEN, Cpu(Xss),           Feature(Xsaves),           Value,           Bits(0)),                      // IA32_XSS
    row(0x4b56_4d00, 1,    Both,  LISTED, Nowhere,            Pv(CLOCKSOURCE2),          ReadBy(rule::read_wall_clock), By(rule::write_wall_clock)), // KVM_WALL_CLOCK_NEW
    row(0x4b56_4d01, 1,    Both,  LISTED, Nowhere,            Pv(CLOCKSOURCE2),          ReadBy(rule::read_system_time), By(rule::write_system_time)), // KVM_SYSTEM_TIME_NEW
    row(0x4b56_4d02, 1,    Both,  LISTED, Kept(0),            Pv(ASYNC_PF),              Value,           If(rule::async_pf_enable)),                      // KVM_ASYNC_PF_EN (nothing is ever told)
    row(0x4b56_4d03, 1,    Both,  LISTED, Kept(0),            Pv(STEAL_TIME),            Value,           Bits(!0x3e)),                  // KVM_STEAL_TIME
    row(0x4b56_4d04, 1,    Both,  LISTED, Kept(0),            Pv(PV_EOI),                Value,           Bits(!0x2)),                   // KVM_PV_EOI_EN
    row(0x4b56_4d05, 1,    Both,  LISTED, Kept(1),            Pv(POLL_CONTROL),          Value,           Bits(0x1)),                    // KVM_POLL_CONTROL
    row(0x4b56_4d06, 1,    Both,  LISTED, Kept(0),            Pv(ASYNC_PF_INT),          Value,           If(rule::async_pf_vector)),                      // KVM_ASYNC_PF_INT
    row(0x4b56_4d07, 1,    Both,  LISTED, Nowhere,            Pv(ASYNC_PF_INT),          Always(0),       Drop),                         // KVM_ASYNC_PF_ACK
    row(0xc000_0080, 1,    Both,  HIDDEN, Cpu(Efer),          Nothing,                   Value,           By(rule::write_efer)),         // IA32_EFER
    row(0xc000_0081, 1,    Both,  LISTED, Cpu(Star),          Nothing,                   Value,           Any),                          // IA32_STAR
    row(0xc000_0082, 1,    Both,  LISTED, Cpu(Lstar),         Nothing,                   Value,           Canonical),                    // IA32_LSTAR
    row(0xc000_0083, 1,    Both,  LISTED, Cpu(Cstar),         Nothing,                   Value,           Canonical),                    // IA32_CSTAR
    row(0xc000_0084, 1,    Both,  LISTED, Cpu(Fmask),         Nothing,                   Value,           Any),                          // IA32_FMASK
    row(0xc000_0100, 1,    Both,  HIDDEN, Cpu(FsBase),        Nothing,                   Value,           Canonical),                    // IA32_FS_BASE
    row(0xc000_0101, 1,    Both,  HIDDEN, Cpu(GsBase),        Nothing,                   Value,           Canonical),                    // IA32_GS_BASE
    row(0xc000_0102, 1,    Both,  LISTED, Cpu(KernelGsBase),  Nothing,                   Value,           Canonical),                    // IA32_KERNEL_GS_BASE
    row(0xc000_0103, 1,    Intel, LISTED, Cpu(TscAux),        Feature(Rdtscp),           Value,           Bits(0xffff_ffff)),            // IA32_TSC_AUX
    row(0xc000_0103, 1,    Amd,   LISTED, Cpu(TscAux),        Feature(Rdtscp),           Value,           Low(0xffff_ffff)),
    row(0xc000_0104, 1,    Amd,   LISTED, Kept(1 << 32),      Feature(TscRate),          Value,           If(rule::tsc_ratio)),          // TSC_RATIO
    row(0xc001_0000, 8,    Both,  LISTED, Nowhere,            Nothing,                   Always(0),       Drop),                         // K7_EVNTSEL0..3, K7_PERFCTR0..3
    row(0xc001_0010, 1,    Both,  HIDDEN, Nowhere,            Nothing,                   Always(0),       Write::Unknown),               // SYSCFG
    row(0xc001_0015, 1,    Both,  LISTED, Kept(0),            Nothing,                   Value,           By(rule::write_hwcr)),         // HWCR
    row(0xc001_001b, 1,    Both,  HIDDEN, Nowhere,            Nothing,                   Always(0x2000_0000), Drop),                     // K7_CLK_CTL
    row(0xc001_001f, 1,    Both,  HIDDEN, Nowhere,            Nothing,                   Always(0),       Drop),                         // NB_CFG
    row(0xc001_0020, 1,    Both,  HIDDEN, Nowhere,            Nothing,                   Read::Unknown,   Drop),                         // PATCH_LOADER
    row(0xc001_0055, 1,    Both,  HIDDEN, Nowhere,            Nothing,                   Always(0),       Write::Unknown),               // INT_PENDING_MSG
    row(0xc001_0058, 1,    Both,  HIDDEN, Nowhere,            Nothing,                   Always(0),       Bits(0)),                      // MMIO_CONF_BASE
    row(0xc001_0112, 2,    Both,  HIDDEN, Nowhere,            Nothing,                   Always(0),       Write::Unknown),               // TSEG_ADDR, TSEG_MASK
    row(0xc001_0114, 1,    Amd,   HIDDEN, Kept(0),            Nothing,                   Value,           By(rule::write_vm_cr)),        // VM_CR
    row(0xc001_0115, 1,    Amd,   HIDDEN, Nowhere,            Nothing,                   Read::Unknown,   Drop),                         // IGNNE
    row(0xc001_0117, 1,    Intel, HIDDEN, Nowhere,            Nothing,                   Always(0),       Drop),                         // VM_HSAVE_PA
    row(0xc001_0117, 1,    Amd,   LISTED, Kept(0),            Nothing,                   Value,           By(rule::write_hsave_pa)),
    row(0xc001_011f, 1,    Amd,   LISTED, Kept(0),            Feature(VirtSsbd),         Value,           Bits(0x4)),                    // VIRT_SPEC_CTRL
    row(0xc001_0140, 2,    Both,  HIDDEN, Kept(0),            Strictly(Osvw),            Value,           Any),                          // OSVW_ID_LENGTH, OSVW_STATUS
    row(0xc001_1021, 1,    Amd,   HIDDEN, Nowhere,            Nothing,                   Always(0),       Write::Unknown),               // IC_CFG
    row(0xc001_1022, 2,    Both,  HIDDEN, Nowhere,            Nothing,                   Always(0),       Drop),                         // DC_CFG, TW_CFG
    row(0xc001_1029, 1,    Amd,   HIDDEN, Kept(0),            Nothing,                   Value,           Bits(0x2)),                    // DE_CFG
    row(0xc001_102a, 1,    Both,  HIDDEN, Nowhere,            Nothing,                   Always(0),       Drop),                         // BU_CFG2
    row(0xc001_102c, 1,    Both,  HIDDEN, Nowhere,            Nothing,                   Always(0),       Drop),                         // EX_CFG
];

/// Feature MSRs (`KVM_GET_MSR_FEATURE_INDEX_LIST`), with what the system answers for them.
pub(crate) static FEATURE_MSRS: &[(u32, On, u64)] = &[
    (0x0000_008b, Intel, 1 << 32),   // IA32_BIOS_SIGN_ID
    (0x0000_008b, Amd, 0x0100_0065), // PATCH_LEVEL
    (0x0000_010a, Both, 0),          // IA32_ARCH_CAPABILITIES
    (0x0000_0345, Both, 0),          // IA32_PERF_CAPABILITIES
    (0xc001_1029, Amd, 0x2),         // DE_CFG
];

#[expect(clippy::too_many_arguments, reason = "the columns of the table")]
const fn row(
    first: u32,
    count: u32,
    on: On,
    listed: bool,
    home: Home,
    needs: Needs,
    read: Read,
    write: Write,
) -> Row {
    Row {
        first,
        count,
        on,
        listed,
        home,
        needs,
        read,
        write,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sorted_and_overlap_only_for_different_vendors() {
        for pair in ROWS.windows(2) {
            let [row, next] = pair else { unreachable!() };
            let apart = row.first + (row.count - 1) < next.first;
            let by_vendor = row.first == next.first
                && row.count == next.count
                && (row.on, next.on) == (Intel, Amd);
            assert!(apart || by_vendor, "{:#x} and {:#x}", row.first, next.first);
        }
    }
}
