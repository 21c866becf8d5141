//! What yields which: the facts of Linux 6.12, access by access.

use std::sync::Arc;
use std::time::Instant;

use msrgate_core::MsrIndex;
use msrgate_x86::{Cpu, CpuidLeaf, fixed_cpuid};

use super::Refusal::{Invalid, Unknown};
use super::{GuestCpuid, Initiator, MsrFile, Refusal, index_list};
use crate::clock::{TSC_KHZ, Tsc};
use crate::kvmclock::{KvmClock, VmClock};

struct Msrs {
    file: MsrFile,
    cpu: Cpu,
}

impl Msrs {
    fn intel() -> Self {
        Self::of(&fixed_cpuid())
    }

    fn amd() -> Self {
        let mut table = fixed_cpuid();
        let word = |part: &[u8; 4]| u32::from_le_bytes(*part);
        for leaf in table.iter_mut().filter(|leaf| leaf.function == 0) {
            (leaf.ebx, leaf.edx, leaf.ecx) = (word(b"Auth"), word(b"enti"), word(b"cAMD"));
        }
        Self::of(&table)
    }

    fn of(table: &[CpuidLeaf]) -> Self {
        let epoch = Instant::now();
        let clock = KvmClock::new(Arc::new(VmClock::new(epoch)));
        Self {
            file: MsrFile::new(GuestCpuid::new(table), Tsc::new(epoch, TSC_KHZ), clock),
            cpu: Cpu::default(),
        }
    }

    fn read(&self, index: u32) -> Result<u64, Refusal> {
        self.file
            .rdmsr(&self.cpu, MsrIndex(index), Initiator::Guest)
    }

    fn write(&mut self, index: u32, value: u64) -> Result<(), Refusal> {
        let index = MsrIndex(index);
        self.file
            .wrmsr(&mut self.cpu, index, value, Initiator::Guest)
    }

    fn get(&self, index: u32) -> Result<u64, Refusal> {
        self.file.rdmsr(&self.cpu, MsrIndex(index), Initiator::Host)
    }

    fn set(&mut self, index: u32, value: u64) -> Result<(), Refusal> {
        let index = MsrIndex(index);
        self.file
            .wrmsr(&mut self.cpu, index, value, Initiator::Host)
    }
}

const EFER: u32 = 0xc000_0080;
const TSC: u32 = 0x10;
const TSC_ADJUST: u32 = 0x3b;

#[test]
fn unknown_and_invalid_are_told_apart() {
    for mut msrs in [Msrs::intel(), Msrs::amd()] {
        for index in [0x474f_4f00, 0xdead_beef, u32::MAX, 0x4000_0000] {
            assert_eq!(msrs.read(index), Err(Unknown), "{index:#x}");
            assert_eq!(msrs.write(index, 0), Err(Unknown), "{index:#x}");
        }
        assert_eq!(msrs.write(EFER, 1 << 1), Err(Invalid), "reserved bit");
        assert_eq!(msrs.read(0x9e), Err(Invalid), "SMBASE");
        assert_eq!(msrs.read(0x49), Err(Unknown), "PRED_CMD is write-only");
        assert_eq!(msrs.write(0x49, 1), Err(Invalid), "PRED_CMD without CPUID");
        assert_eq!(msrs.write(0xfe, 0), Err(Unknown), "MTRRCAP is read-only");
        assert_eq!(msrs.read(0x10a), Err(Invalid), "ARCH_CAPABILITIES");
        assert_eq!(msrs.read(0xda0), Err(Invalid), "XSS");
        assert_eq!(msrs.write(0xda0, 0), Err(Invalid), "XSS");
        assert_eq!(msrs.read(0x802), Err(Invalid), "x2APIC");
        assert_eq!(msrs.write(0x8ff, 0), Err(Invalid), "x2APIC");
        assert_eq!(msrs.write(0xce, 0), Err(Invalid), "PLATFORM_INFO");
        assert_eq!(msrs.write(0xc001_0058, 1), Err(Invalid), "MMIO_CONF_BASE");
        assert_eq!(msrs.write(0xc001_0058, 0), Ok(()));
        assert_eq!(msrs.read(0x611), Ok(0), "RAPL reads 0");
        assert_eq!(msrs.write(0x611, 0), Err(Unknown));
    }
}

#[test]
fn vendors_differ_where_linux_does() {
    let (mut intel, mut amd) = (Msrs::intel(), Msrs::amd());
    assert_eq!(intel.read(0x480), Err(Invalid), "VMX_BASIC without VMX");
    assert_eq!(amd.read(0x480), Err(Unknown));
    assert_eq!(intel.read(0x3a), Ok(0), "FEATURE_CONTROL");
    assert_eq!(amd.read(0x3a), Err(Unknown));
    assert_eq!(amd.read(0xc001_0114), Ok(0), "VM_CR");
    assert_eq!(intel.read(0xc001_0114), Err(Unknown));
    assert_eq!(
        (intel.read(0x8b), amd.read(0x8b)),
        (Ok(1 << 32), Ok(0x0100_0065))
    );
    // SYSENTER_EIP: any address is made canonical, and AMD keeps 32 bits.
    for msrs in [&mut intel, &mut amd] {
        assert_eq!(msrs.write(0x176, 0x0000_8123_4567_89ab), Ok(()));
    }
    assert_eq!(intel.read(0x176), Ok(0xffff_8123_4567_89ab));
    assert_eq!(amd.read(0x176), Ok(0x4567_89ab));
    // TSC_AUX: the upper half is reserved, or dropped.
    assert_eq!(intel.write(0xc000_0103, 1 << 32 | 5), Err(Invalid));
    assert_eq!(amd.write(0xc000_0103, 1 << 32 | 5), Ok(()));
    assert_eq!(amd.read(0xc000_0103), Ok(5));
}

#[test]
fn values_are_checked_as_in_linux() {
    let mut msrs = Msrs::amd();
    let lstar = 0xc000_0082;
    assert_eq!(msrs.write(lstar, 1 << 47), Err(Invalid), "not canonical");
    assert_eq!(msrs.write(lstar, 0xffff_8000_0000_0000), Ok(()));
    assert_eq!(
        msrs.write(0x277, 0x0007_0406_0007_0402),
        Err(Invalid),
        "PAT type 2"
    );
    assert_eq!(msrs.write(0x277, 0x0706_0504_0100_0001), Ok(()));
    assert_eq!(msrs.write(0x2ff, 0xc06), Ok(()));
    assert_eq!(msrs.write(0x2ff, 0x1006), Err(Invalid), "MTRR_DEF_TYPE");
    assert_eq!(msrs.write(0x250, 0x0606_0606_0606_0602), Err(Invalid));
    assert_eq!(msrs.write(0x200, 1 << 45), Err(Invalid), "40 address bits");
    assert_eq!(msrs.read(0x251), Err(Invalid), "between the fixed MTRRs");
    assert_eq!(msrs.write(0x400, 1), Err(Invalid), "MC0_CTL: 0 or all ones");
    assert_eq!(msrs.write(0x400, !(1 << 10)), Ok(()));
    assert_eq!(msrs.write(0x401, 1), Err(Invalid), "MC0_STATUS: 0");
    assert_eq!(msrs.write(0xc001_0015, 1 << 18 | 0x148), Ok(()), "HWCR");
    assert_eq!(msrs.read(0xc001_0015), Ok(1 << 18));
    assert_eq!(msrs.write(0x401, 1), Ok(()), "McStatusWrEn");
    assert_eq!(msrs.write(0x1a0, 0), Err(Invalid), "MISC_ENABLE: PEBS, BTS");
    assert_eq!(msrs.write(0x1a0, 0x1881), Ok(()));
    assert_eq!(msrs.read(0x1a0), Ok(0x1801), "EMON does not change");
}

#[test]
fn tsc_and_tsc_adjust_move_together_for_a_guest() {
    const FAR: u64 = 1 << 60;
    let mut table = fixed_cpuid();
    for leaf in table.iter_mut().filter(|leaf| leaf.function == 7) {
        leaf.ebx |= 1 << 1;
    }
    let mut msrs = Msrs::of(&table);
    assert_eq!(msrs.write(TSC_ADJUST, FAR), Ok(()));
    assert!(msrs.read(TSC).unwrap() >= FAR, "the TSC jumped");
    assert_eq!(msrs.write(TSC, 0), Ok(()));
    let adjust = msrs.read(TSC_ADJUST).unwrap();
    let back = 0_u64.wrapping_sub(adjust);
    assert!(back < 1 << 50, "by the time since the start: {back:#x}");
    // A host's write moves one without the other.
    assert_eq!(msrs.set(TSC_ADJUST, 7), Ok(()));
    assert!(msrs.read(TSC).unwrap() < FAR);
    assert_eq!(msrs.set(TSC, FAR), Ok(()));
    assert_eq!(msrs.read(TSC_ADJUST), Ok(7));
}

#[test]
fn host_has_more_rights_than_the_guest() {
    let mut msrs = Msrs::amd();
    assert_eq!(msrs.get(0x9e), Ok(0x3_0000), "SMBASE");
    assert_eq!(msrs.set(0x34, 5), Ok(()), "SMI_COUNT");
    assert_eq!(msrs.write(0x34, 6), Err(Invalid));
    assert_eq!(msrs.write(0x8b, 9), Ok(()), "dropped");
    assert_eq!(msrs.read(0x8b), Ok(0x0100_0065));
    assert_eq!(msrs.set(0x8b, 9), Ok(()));
    assert_eq!(msrs.read(0x8b), Ok(9));
    assert_eq!(msrs.get(0x474f_4f00), Err(Unknown));
    // Listed, but not there without enforced PV features: reads 0, takes 0 and nothing else.
    msrs.file.pv_enforced = true;
    assert_eq!(msrs.read(0x4b56_4d01), Err(Unknown));
    assert_eq!(msrs.get(0x4b56_4d01), Ok(0));
    assert_eq!(msrs.set(0x4b56_4d01, 0), Ok(()));
    assert_eq!(msrs.set(0x4b56_4d01, 1), Err(Unknown));
}

#[test]
fn asynchronous_page_faults_need_a_local_apic() {
    const ENABLE: u32 = 0x4b56_4d02;
    const VECTOR: u32 = 0x4b56_4d06;
    let mut msrs = Msrs::intel();
    assert_eq!(msrs.write(ENABLE, 1), Err(Invalid));
    assert_eq!(msrs.write(ENABLE, 0), Ok(()));
    assert_eq!(msrs.write(VECTOR, 0), Err(Invalid));
    msrs.file.has_apic = true;
    assert_eq!(msrs.write(ENABLE, 0xd), Ok(()));
    assert_eq!(msrs.write(ENABLE, 0x10), Err(Invalid));
    assert_eq!(msrs.write(VECTOR, 0xff), Ok(()));
    assert_eq!(msrs.write(VECTOR, 0x100), Err(Invalid));
}

#[test]
fn every_listed_msr_can_be_saved_and_restored() {
    for mut msrs in [Msrs::intel(), Msrs::amd()] {
        // Without one, the vector of asynchronous page faults takes nothing, in Linux too.
        msrs.file.has_apic = true;
        for index in index_list(&msrs.file.cpuid.clone()) {
            let value = msrs.get(index.0);
            assert!(value.is_ok(), "{index}");
            assert_eq!(msrs.set(index.0, value.unwrap_or(0)), Ok(()), "{index}");
        }
    }
}

#[test]
fn refused_write_changes_nothing() {
    let mut value = 0x0123_4567_89ab_cdef_u64;
    for mut msrs in [Msrs::intel(), Msrs::amd()] {
        let windows = [
            0..0x2000,
            0xc000_0000..0xc000_2000,
            0xc001_0000..0xc001_2000,
        ];
        for index in windows.into_iter().flatten() {
            value = value.rotate_left(7) ^ u64::from(index);
            let before = msrs.get(index);
            if msrs.write(index, value).is_err() && index != TSC {
                assert_eq!(msrs.get(index), before, "{index:#x}");
            }
        }
    }
}

#[test]
fn machine_check_control_is_there_if_the_host_says_so() {
    const MCG_CTL: u32 = 0x17b;
    let mut msrs = Msrs::amd();
    assert_eq!(msrs.read(MCG_CTL), Err(Invalid));
    assert_eq!((msrs.get(MCG_CTL), msrs.set(MCG_CTL, 0)), (Ok(0), Ok(())));
    assert_eq!(msrs.set(MCG_CTL, u64::MAX), Err(Invalid));
    // No bank, too many, a capability that is not there (MCG_CMCI_P).
    for capability in [0x100, 33, 1 << 10 | 10] {
        assert!(!msrs.file.setup_mce(capability), "{capability:#x}");
    }
    assert!(msrs.file.setup_mce(0x0100_010a));
    assert_eq!(msrs.read(0x179), Ok(0x0100_010a));
    assert_eq!(msrs.read(MCG_CTL), Ok(u64::MAX));
    assert_eq!(msrs.write(MCG_CTL, 1), Err(Invalid), "all or none");
    assert_eq!(msrs.write(MCG_CTL, 0), Ok(()));
    assert_eq!(msrs.read(0x400 + 4 * 9), Ok(u64::MAX), "the last bank");
    assert_eq!(msrs.read(0x400 + 4 * 10), Err(Invalid));
}
