//! The columns of the MSR table, and the rules that need a function.
//!
//! A function's name says what it checks or does; its line of explanation is the reason that Linux has.

use msrgate_core::MsrIndex;
use msrgate_x86::Cpu;

use super::MsrFile;
use super::table::Row;
use crate::processor::{self, CpuMsr};

/// Machine-check banks (`KVM_MAX_MCE_BANKS`).
pub(crate) const MCE_BANKS: u8 = 32;

/// For which guests a row holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum On {
    /// Every guest.
    Both,
    /// CPUID does not name AMD or Hygon.
    Intel,
    /// CPUID names AMD or Hygon.
    Amd,
}

/// Where the value lives.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Home {
    /// Nowhere: reads have a fixed answer, writes are dropped or refused.
    Nowhere,
    /// In the [`MsrFile`], with this value after reset.
    Kept(u64),
    /// In the processor.
    Cpu(CpuMsr),
}

/// Who may use the MSR.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Needs {
    /// Everybody.
    Nothing,
    /// A guest whose CPUID has the feature; for others it is INVAL. Hosts always.
    Feature(Feature),
    /// A guest whose CPUID has the feature; without it, it is INVAL for hosts too.
    Strictly(Feature),
    /// A guest whose CPUID 0x40000001 has the bit, where that is enforced; for others it is UNKNOWN.
    Pv(u32),
    /// Hosts; for guests it is INVAL.
    Host,
    /// Nobody: INVAL.
    Nobody,
}

/// What a read does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Read {
    /// Answers the value.
    Value,
    /// Answers this.
    Always(u64),
    /// Is UNKNOWN.
    Unknown,
    /// Has a rule of its own.
    By(fn(&Reader<'_>) -> Result<u64, Refusal>),
}

/// What a write does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Write {
    /// Takes any value.
    Any,
    /// Succeeds and changes nothing.
    Drop,
    /// Takes a value with no other bits than these; INVAL otherwise.
    Bits(u64),
    /// Takes these bits of any value.
    Low(u64),
    /// Takes a canonical address (48 bits); INVAL otherwise.
    Canonical,
    /// Takes a value that passes the check; INVAL otherwise.
    If(fn(&Reader<'_>, u64) -> bool),
    /// Takes any value from a host; from a guest it is INVAL.
    HostOnly,
    /// Takes any value from a host; from a guest it is dropped.
    HostOrDrop,
    /// Is UNKNOWN.
    Unknown,
    /// Has a rule of its own.
    By(fn(&mut Writer<'_>, u64) -> Result<(), Refusal>),
}

/// Why an access is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There is no such MSR (`KVM_MSR_RET_UNSUPPORTED`).
    Unknown,
    /// There is, and it does not take this.
    Invalid,
}

/// Who accesses the MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Initiator {
    /// RDMSR or WRMSR.
    Guest,
    /// `KVM_GET_MSRS` or `KVM_SET_MSRS`.
    Host,
}

/// Guest features that MSRs depend on. The discriminant is a bit of
/// [`GuestCpuid`](super::guest_cpuid::GuestCpuid).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Feature {
    ArchCapabilities,
    FlushL1d,
    LongMode,
    Nx,
    Osvw,
    Pdcm,
    PredCmd,
    Rdtscp,
    SgxLc,
    SpecCtrl,
    TscAdjust,
    TscDeadline,
    TscRate,
    VirtSsbd,
    Waitpkg,
    X2apic,
    Xfd,
    Xsaves,
}

/// A read that is under way.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    pub(crate) file: &'a MsrFile,
    pub(crate) cpu: &'a Cpu,
    pub(crate) row: &'static Row,
    /// Where the row's values start in the file.
    pub(crate) start: usize,
    pub(crate) index: u32,
    pub(crate) by: Initiator,
}

impl Reader<'_> {
    /// What the MSR holds.
    pub(crate) fn value(&self) -> u64 {
        match self.row.home {
            Home::Nowhere => 0,
            Home::Kept(_) => self.file.kept(self.position()),
            Home::Cpu(msr) => processor::msr(self.cpu, msr),
        }
    }

    fn position(&self) -> usize {
        self.start + (self.index - self.row.first) as usize
    }

    fn is_guest(&self) -> bool {
        self.by == Initiator::Guest
    }

    fn has(&self, feature: Feature) -> bool {
        self.file.cpuid.has(feature)
    }

    /// Bits above the guest's physical address width.
    fn reserved_address_bits(&self) -> u64 {
        u64::MAX << self.file.cpuid.physical_bits()
    }
}

/// A write that is under way.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    pub(crate) file: &'a mut MsrFile,
    pub(crate) cpu: &'a mut Cpu,
    pub(crate) row: &'static Row,
    pub(crate) start: usize,
    pub(crate) index: u32,
    pub(crate) by: Initiator,
}

impl Writer<'_> {
    /// The same access, to look and not to touch.
    pub(crate) fn reader(&self) -> Reader<'_> {
        Reader {
            file: self.file,
            cpu: self.cpu,
            row: self.row,
            start: self.start,
            index: self.index,
            by: self.by,
        }
    }

    /// Makes the MSR hold `value`.
    pub(crate) fn keep(&mut self, value: u64) {
        match self.row.home {
            Home::Nowhere => {}
            Home::Kept(_) => {
                let position = self.reader().position();
                self.file.keep(position, value);
            }
            Home::Cpu(msr) => processor::set_msr(self.cpu, msr, value),
        }
    }

    fn value(&self) -> u64 {
        self.reader().value()
    }

    fn is_guest(&self) -> bool {
        self.by == Initiator::Guest
    }
}

/// A 48-bit address, sign-extended.
pub(crate) fn is_canonical(address: u64) -> bool {
    canonical(address) == address
}

fn canonical(address: u64) -> u64 {
    ((address << 16).cast_signed() >> 16).cast_unsigned()
}

/// `refused` is INVAL.
fn unless(refused: bool) -> Result<(), Refusal> {
    if refused {
        Err(Refusal::Invalid)
    } else {
        Ok(())
    }
}

/// IA32_TIME_STAMP_COUNTER.
pub(super) fn read_tsc(access: &Reader<'_>) -> Result<u64, Refusal> {
    Ok(access.file.tsc.now())
}

/// A guest's write moves IA32_TSC_ADJUST along; a host's does not.
pub(super) fn write_tsc(access: &mut Writer<'_>, value: u64) -> Result<(), Refusal> {
    let jump = access.file.tsc.set(value);
    if access.is_guest() {
        access.file.move_tsc_adjust(jump);
    }
    Ok(())
}

/// A guest's write makes the TSC jump by the difference; without the feature nothing happens.
pub(super) fn write_tsc_adjust(access: &mut Writer<'_>, value: u64) -> Result<(), Refusal> {
    if access.file.cpuid.has(Feature::TscAdjust) {
        if access.is_guest() {
            let jump = value.wrapping_sub(access.value());
            access.file.tsc.adjust(jump);
        }
        access.keep(value);
    }
    Ok(())
}

/// KVM_SYSTEM_TIME, the old register and the new one.
pub(super) fn read_system_time(access: &Reader<'_>) -> Result<u64, Refusal> {
    Ok(access.file.clock.system_time())
}

/// Any value is taken: where it leads to is seen when the page is written.
pub(super) fn write_system_time(access: &mut Writer<'_>, value: u64) -> Result<(), Refusal> {
    access.file.clock.set_system_time(value);
    Ok(())
}

/// KVM_WALL_CLOCK, likewise.
pub(super) fn read_wall_clock(access: &Reader<'_>) -> Result<u64, Refusal> {
    Ok(access.file.clock.wall_clock())
}

/// Any value is taken.
pub(super) fn write_wall_clock(access: &mut Writer<'_>, value: u64) -> Result<(), Refusal> {
    access.file.clock.set_wall_clock(value);
    Ok(())
}

/// KVM_ASYNC_PF_EN. Without a local APIC there is nothing to be told with.
pub(super) fn async_pf_enable(access: &Reader<'_>, value: u64) -> bool {
    const RESERVED: u64 = 0x30;
    access.file.has_apic && value & RESERVED == 0 || value == 0
}

/// KVM_ASYNC_PF_INT: a vector for the local APIC.
pub(super) fn async_pf_vector(access: &Reader<'_>, value: u64) -> bool {
    access.file.has_apic && value >> 8 == 0
}

/// TSC_RATIO: 8.32 fixed point, the rest reserved.
pub(super) fn tsc_ratio(_: &Reader<'_>, value: u64) -> bool {
    value >> 40 == 0
}

/// The base page is inside the guest's addresses, the mode exists, and a guest does not go from x2APIC back
/// to xAPIC, nor from disabled straight to x2APIC.
pub(super) fn apic_base(access: &Reader<'_>, value: u64) -> bool {
    const X2APIC: u64 = 1 << 10;
    const ENABLED: u64 = 1 << 11;
    const RESERVED: u64 = 0x2ff;
    let x2apic = if access.has(Feature::X2apic) {
        0
    } else {
        X2APIC
    };
    if value & (access.reserved_address_bits() | RESERVED | x2apic) != 0 {
        return false;
    }
    let modes = [access.value(), value].map(|base| (base & ENABLED != 0, base & X2APIC != 0));
    match modes {
        [_, (false, true)] => false,
        [(true, true), (true, false)] | [(false, _), (true, true)] => !access.is_guest(),
        _ => true,
    }
}

/// Only the lock bit, as there is nothing to lock; once locked it is closed to the guest.
pub(super) fn feature_control(access: &Reader<'_>, value: u64) -> bool {
    const LOCKED: u64 = 1;
    value & !LOCKED == 0 && !(access.is_guest() && access.value() & LOCKED != 0)
}

/// PLATFORM_INFO, which a VM may hide (`KVM_CAP_MSR_PLATFORM_INFO`).
pub(super) fn read_platform_info(access: &Reader<'_>) -> Result<u64, Refusal> {
    unless(access.is_guest() && access.file.platform_info_hidden)?;
    Ok(access.value())
}

const CPUID_FAULT: u64 = 1 << 31;

/// A host may not take CPUID faulting away while the guest has it on.
pub(super) fn write_platform_info(access: &mut Writer<'_>, value: u64) -> Result<(), Refusal> {
    let in_use = access.file.misc_features_enables() & 1 != 0;
    unless(access.is_guest() || (value & CPUID_FAULT == 0 && in_use))?;
    access.keep(value);
    Ok(())
}

/// CPUID faulting, where PLATFORM_INFO offers it.
pub(super) fn misc_features(access: &Reader<'_>, value: u64) -> bool {
    value & !1 == 0 && (value == 0 || access.file.platform_info() & CPUID_FAULT != 0)
}

/// A guest needs the CPUID bit.
pub(super) fn read_arch_capabilities(access: &Reader<'_>) -> Result<u64, Refusal> {
    unless(access.is_guest() && !access.has(Feature::ArchCapabilities))?;
    Ok(access.value())
}

/// A guest needs the CPUID bit.
pub(super) fn read_perf_capabilities(access: &Reader<'_>) -> Result<u64, Refusal> {
    unless(access.is_guest() && !access.has(Feature::Pdcm))?;
    Ok(access.value())
}

/// There is no PMU, so a host may only write 0, and a guest nothing.
pub(super) fn write_perf_capabilities(access: &mut Writer<'_>, value: u64) -> Result<(), Refusal> {
    unless(access.is_guest() || value != 0)
}

/// Any address is made canonical; AMD has no 64-bit SYSENTER and keeps 32 bits.
pub(super) fn write_sysenter(access: &mut Writer<'_>, value: u64) -> Result<(), Refusal> {
    let value = canonical(value);
    access.keep(if access.file.cpuid.is_amd() {
        value & 0xffff_ffff
    } else {
        value
    });
    Ok(())
}

/// A guest cannot change what says that PEBS and BTS are missing, and does not change EMON.
pub(super) fn write_misc_enable(access: &mut Writer<'_>, value: u64) -> Result<(), Refusal> {
    const NO_PEBS_NO_BTS: u64 = 0x1800;
    const EMON: u64 = 1 << 7;
    let old = access.value();
    if access.is_guest() {
        unless((old ^ value) & NO_PEBS_NO_BTS != 0)?;
        access.keep(value & !EMON | old & EMON);
    } else {
        access.keep(value);
    }
    Ok(())
}

/// Single-stepping on branches is dropped. Branch records exist on AMD, where bits 5:2 are dropped too;
/// Intel drops them with the records.
pub(super) fn write_debugctl(access: &mut Writer<'_>, value: u64) -> Result<(), Refusal> {
    const LBR: u64 = 1;
    const BTF: u64 = 1 << 1;
    const EXTERNAL_PINS: u64 = 0x3c;
    let amd = access.file.cpuid.is_amd();
    let (dropped, taken) = if amd {
        (BTF | EXTERNAL_PINS, LBR)
    } else {
        (BTF | LBR, 0)
    };
    let value = value & !dropped;
    unless(value & !taken != 0)?;
    access.keep(value);
    Ok(())
}

/// Memory types: uncached, write-combining, write-through, write-protected, write-back.
fn is_memory_type(kind: u8) -> bool {
    matches!(kind, 0 | 1 | 4 | 5 | 6)
}

/// Even indices are bases with a type, odd ones masks with a valid bit.
pub(super) fn mtrr_variable(access: &Reader<'_>, value: u64) -> bool {
    let reserved = access.reserved_address_bits();
    if access.index & 1 == 0 {
        is_memory_type(value.to_le_bytes()[0]) && value & (reserved | 0xf00) == 0
    } else {
        value & (reserved | 0x7ff) == 0
    }
}

/// Eight memory types.
pub(super) fn mtrr_fixed(_: &Reader<'_>, value: u64) -> bool {
    value.to_le_bytes().into_iter().all(is_memory_type)
}

/// A memory type, and the two enable bits.
pub(super) fn mtrr_default(_: &Reader<'_>, value: u64) -> bool {
    value & !0xcff == 0 && is_memory_type(value.to_le_bytes()[0])
}

/// Eight memory types, of which one more exists here: uncached, overridable.
pub(super) fn pat(_: &Reader<'_>, value: u64) -> bool {
    let mut types = value.to_le_bytes().into_iter();
    types.all(|kind| is_memory_type(kind) || kind == 7)
}

/// IA32_MCG_CAP, IA32_MCG_CTL, and the first of the four MSRs of a bank.
pub(super) const MCG_CAP: MsrIndex = MsrIndex(0x179);
pub(super) const MCG_CTL: MsrIndex = MsrIndex(0x17b);
pub(super) const MC0_CTL: MsrIndex = MsrIndex(0x400);

/// Bits of IA32_MCG_CAP: there is IA32_MCG_CTL, and recovery by software.
pub(super) const MCG_CTL_P: u64 = 1 << 8;
const MCG_SER_P: u64 = 1 << 24;
/// `KVM_X86_GET_MCE_CAP_SUPPORTED`.
pub(crate) const MCE_CAPABILITIES: u64 = MCG_CTL_P | MCG_SER_P;

fn has_mcg_ctl(file: &MsrFile) -> bool {
    file.kept_at(MCG_CAP.0) & MCG_CTL_P != 0
}

/// IA32_MCG_CTL without its capability: a host reads 0.
pub(super) fn read_mcg_ctl(access: &Reader<'_>) -> Result<u64, Refusal> {
    unless(access.by == Initiator::Guest && !has_mcg_ctl(access.file))?;
    Ok(access.value())
}

/// All banks on or all off. Without its capability a host may write 0.
pub(super) fn write_mcg_ctl(access: &mut Writer<'_>, value: u64) -> Result<(), Refusal> {
    let refused = if has_mcg_ctl(access.file) {
        value != 0 && value != u64::MAX
    } else {
        value != 0 || access.is_guest()
    };
    unless(refused)?;
    access.keep(value);
    Ok(())
}

/// A host may lower the number of banks (`KVM_X86_SETUP_MCE`); what is beyond is INVAL.
fn bank_exists(access: &Reader<'_>, per_bank: u32) -> Result<(), Refusal> {
    let bank = (access.index - access.row.first) / per_bank;
    unless(u64::from(bank) >= access.file.mce_banks())
}

/// Threshold of a bank.
pub(super) fn read_mci_ctl2(access: &Reader<'_>) -> Result<u64, Refusal> {
    bank_exists(access, 1)?;
    Ok(access.value())
}

/// Control, status, address or miscellaneous of a bank.
pub(super) fn read_mce_bank(access: &Reader<'_>) -> Result<u64, Refusal> {
    bank_exists(access, 4)?;
    Ok(access.value())
}

/// There is no CMCI: a host may write 0.
pub(super) fn write_mci_ctl2(access: &mut Writer<'_>, value: u64) -> Result<(), Refusal> {
    bank_exists(&access.reader(), 1)?;
    unless(value != 0)
}

/// Control: 0 or all ones (bits 0 and 10 may be clear, as some guests do). Status: a guest writes 0, unless
/// HWCR says otherwise. Address and miscellaneous: anything.
pub(super) fn write_mce_bank(access: &mut Writer<'_>, value: u64) -> Result<(), Refusal> {
    const MAY_BE_CLEAR: u64 = 1 << 10 | 1;
    bank_exists(&access.reader(), 4)?;
    let refused = match access.index & 3 {
        0 => value != 0 && value | MAY_BE_CLEAR != u64::MAX,
        1 => access.is_guest() && value != 0 && !access.file.mc_status_writable(),
        _ => false,
    };
    unless(refused)?;
    access.keep(value);
    Ok(())
}

/// Switches that change nothing are dropped; McStatusWrEn and TscFreqSel are kept; others are INVAL.
pub(super) fn write_hwcr(access: &mut Writer<'_>, value: u64) -> Result<(), Refusal> {
    const DROPPED: u64 = 0x148;
    const TAKEN: u64 = MC_STATUS_WRITABLE | 1 << 24;
    let value = value & !DROPPED;
    unless(value & !TAKEN != 0)?;
    access.keep(value);
    Ok(())
}

/// HWCR.McStatusWrEn.
pub(super) const MC_STATUS_WRITABLE: u64 = 1 << 18;

/// VM_CR: a disabled SVM stays disabled and locked.
pub(super) fn write_vm_cr(access: &mut Writer<'_>, value: u64) -> Result<(), Refusal> {
    const TAKEN: u64 = 0x1f;
    const LOCK: u64 = 1 << 3;
    const SVM_DISABLED: u64 = 1 << 4;
    unless(value & !TAKEN != 0)?;
    let old = access.value();
    let fixed = if old & SVM_DISABLED != 0 {
        LOCK | SVM_DISABLED
    } else {
        0
    };
    access.keep(old & fixed | value & !fixed);
    Ok(())
}

/// A page inside the guest's addresses; a host may write anything, and the offset is dropped.
pub(super) fn write_hsave_pa(access: &mut Writer<'_>, value: u64) -> Result<(), Refusal> {
    const OFFSET: u64 = 0xfff;
    let reserved = access.reader().reserved_address_bits();
    unless(access.is_guest() && value & (reserved | OFFSET) != 0)?;
    access.keep(value & !OFFSET);
    Ok(())
}

/// Known bits that the guest's CPUID has, and no change of LME while paging is on. LMA is the processor's.
pub(super) fn write_efer(access: &mut Writer<'_>, value: u64) -> Result<(), Refusal> {
    const SCE: u64 = 1;
    const LME: u64 = 1 << 8;
    const LMA: u64 = 1 << 10;
    const NX: u64 = 1 << 11;
    unless(value & !(SCE | LME | LMA | NX) != 0)?;
    let old = access.value();
    if access.is_guest() {
        let cpuid = &access.file.cpuid;
        let missing = value & (LME | LMA) != 0 && !cpuid.has(Feature::LongMode)
            || value & NX != 0 && !cpuid.has(Feature::Nx);
        unless(missing || access.cpu.is_paging() && (old ^ value) & LME != 0)?;
    }
    access.keep(value & !LMA | old & LMA);
    Ok(())
}
