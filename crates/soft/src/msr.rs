//! MSR emulation: what KVM itself does with an access that no filter denies.
//!
//! [`MsrFile`] goes by the table in [`table`]: one row an MSR. It decides between done, UNKNOWN and INVAL;
//! filters, reasons and exits are the vCPU's.

mod guest_cpuid;
mod rule;
mod table;
#[cfg(test)]
mod tests;

use msrgate_core::MsrIndex;
use msrgate_x86::Cpu;

pub(crate) use guest_cpuid::GuestCpuid;
pub(crate) use rule::{Feature, Initiator, MCE_CAPABILITIES, Refusal};

use crate::clock::Tsc;
use crate::kvmclock::KvmClock;
use rule::{Home, Needs, Read, Reader, Write, Writer};
use table::{FEATURE_MSRS, ROWS, Row};

/// The MSRs of one vCPU that are not the processor's, and what their rules depend on.
#[derive(Clone, Debug)]
pub(crate) struct MsrFile {
    /// The values of all kept MSRs, row by row.
    values: Box<[u64]>,
    /// Where in `values` each row starts.
    starts: Box<[usize]>,
    /// The last index of each row, close together for the search.
    lasts: Box<[u32]>,
    pub(crate) cpuid: GuestCpuid,
    pub(crate) tsc: Tsc,
    pub(crate) clock: KvmClock,
    /// There is a local APIC in the kernel.
    pub(crate) has_apic: bool,
    /// PV MSRs need their CPUID bit (`KVM_CAP_ENFORCE_PV_FEATURE_CPUID`).
    pub(crate) pv_enforced: bool,
    /// The guest may not read PLATFORM_INFO (`KVM_CAP_MSR_PLATFORM_INFO` with 0).
    pub(crate) platform_info_hidden: bool,
}

impl MsrFile {
    /// All MSRs as after reset.
    pub(crate) fn new(cpuid: GuestCpuid, tsc: Tsc, clock: KvmClock) -> Self {
        let mut values = Vec::new();
        let mut starts = Vec::with_capacity(ROWS.len());
        for row in ROWS {
            starts.push(values.len());
            if let Home::Kept(reset) = row.home {
                values.extend((0..row.count).map(|_| reset));
            }
        }
        Self {
            values: values.into(),
            starts: starts.into(),
            lasts: ROWS.iter().map(|row| row.first + (row.count - 1)).collect(),
            cpuid,
            tsc,
            clock,
            has_apic: false,
            pv_enforced: false,
            platform_info_hidden: false,
        }
    }

    /// Reads an MSR. Nothing changes.
    ///
    /// # Errors
    /// There is no such MSR, or it does not allow this.
    pub(crate) fn rdmsr(&self, cpu: &Cpu, index: MsrIndex, by: Initiator) -> Result<u64, Refusal> {
        let (row, start) = self.find(index).ok_or(Refusal::Unknown)?;
        let answer = match row.read {
            Read::Unknown => Err(Refusal::Unknown),
            read => self.admit(row, by).and_then(|()| {
                let reader = Reader {
                    file: self,
                    cpu,
                    row,
                    start,
                    index: index.0,
                    by,
                };
                match read {
                    Read::Value => Ok(reader.value()),
                    Read::Always(value) => Ok(value),
                    Read::By(rule) => rule(&reader),
                    Read::Unknown => Err(Refusal::Unknown),
                }
            }),
        };
        match answer {
            Err(Refusal::Unknown) if row.listed && by == Initiator::Host => Ok(0),
            answer => answer,
        }
    }

    /// Writes an MSR. If it is refused, nothing changes.
    ///
    /// # Errors
    /// There is no such MSR, or it does not take this.
    pub(crate) fn wrmsr(
        &mut self,
        cpu: &mut Cpu,
        index: MsrIndex,
        value: u64,
        by: Initiator,
    ) -> Result<(), Refusal> {
        let (row, start) = self.find(index).ok_or(Refusal::Unknown)?;
        let answer = match row.write {
            Write::Unknown => Err(Refusal::Unknown),
            write => self.admit(row, by).and_then(|()| {
                let mut writer = Writer {
                    file: self,
                    cpu,
                    row,
                    start,
                    index: index.0,
                    by,
                };
                apply(write, &mut writer, value)
            }),
        };
        match answer {
            Err(Refusal::Unknown) if row.listed && by == Initiator::Host && value == 0 => Ok(()),
            answer => answer,
        }
    }

    /// `KVM_X86_SETUP_MCE`: how many banks there are, and what of [`MCE_CAPABILITIES`]; whether that is possible.
    pub(crate) fn setup_mce(&mut self, capability: u64) -> bool {
        const EXTENDED_STATES: u64 = 0xff_0000;
        let [banks, ..] = capability.to_le_bytes();
        let known = MCE_CAPABILITIES | EXTENDED_STATES | u64::from(banks);
        if !(1..=rule::MCE_BANKS).contains(&banks) || capability & !known != 0 {
            return false;
        }
        if let Some((_, start)) = self.find(rule::MCG_CAP) {
            self.keep(start, capability);
        }
        if capability & rule::MCG_CTL_P != 0
            && let Some((_, start)) = self.find(rule::MCG_CTL)
        {
            self.keep(start, u64::MAX);
        }
        if let Some((_, start)) = self.find(rule::MC0_CTL) {
            for bank in 0..usize::from(banks) {
                self.keep(start + 4 * bank, u64::MAX);
            }
        }
        true
    }

    /// How many machine-check banks there are.
    fn mce_banks(&self) -> u64 {
        self.kept_at(rule::MCG_CAP.0) & 0xff
    }

    /// Whether the MSR is a part of the vCPU's model, which cannot change once the vCPU has run.
    pub(crate) fn is_fixed(index: MsrIndex) -> bool {
        const MICROCODE: MsrIndex = MsrIndex(0x8b);
        index != MICROCODE && FEATURE_MSRS.iter().any(|&(fixed, ..)| fixed == index.0)
    }

    /// A new CPUID table. The values stay.
    pub(crate) fn set_cpuid(&mut self, cpuid: GuestCpuid) {
        self.cpuid = cpuid;
    }

    /// The row that holds for this guest, and where its values start.
    fn find(&self, index: MsrIndex) -> Option<(&'static Row, usize)> {
        let first = self.lasts.partition_point(|&last| last < index.0);
        let rows = ROWS.get(first..)?.iter().zip(self.starts.get(first..)?);
        let mut here = rows.take_while(|(row, _)| row.first <= index.0);
        let (row, start) = here.find(|(row, _)| self.cpuid.is_on(row.on))?;
        Some((row, *start))
    }

    /// Whether `by` may use the row's MSRs at all.
    fn admit(&self, row: &Row, by: Initiator) -> Result<(), Refusal> {
        let guest = by == Initiator::Guest;
        match row.needs {
            Needs::Nothing => Ok(()),
            Needs::Feature(feature) if guest && !self.cpuid.has(feature) => Err(Refusal::Invalid),
            Needs::Strictly(feature) if !self.cpuid.has(feature) => Err(Refusal::Invalid),
            Needs::Pv(bit) if self.pv_enforced && !self.cpuid.has_pv(bit) => Err(Refusal::Unknown),
            Needs::Host if guest => Err(Refusal::Invalid),
            Needs::Nobody => Err(Refusal::Invalid),
            Needs::Feature(_) | Needs::Strictly(_) | Needs::Pv(_) | Needs::Host => Ok(()),
        }
    }

    fn kept(&self, position: usize) -> u64 {
        self.values.get(position).copied().unwrap_or(0)
    }

    fn keep(&mut self, position: usize, value: u64) {
        if let Some(kept) = self.values.get_mut(position) {
            *kept = value;
        }
    }

    /// The kept value of another MSR, for rules that look across.
    fn kept_at(&self, index: u32) -> u64 {
        let found = self.find(MsrIndex(index));
        found.map_or(0, |(_, start)| self.kept(start))
    }

    fn move_tsc_adjust(&mut self, jump: u64) {
        const TSC_ADJUST: MsrIndex = MsrIndex(0x3b);
        if let Some((_, start)) = self.find(TSC_ADJUST) {
            self.keep(start, self.kept(start).wrapping_add(jump));
        }
    }

    fn platform_info(&self) -> u64 {
        self.kept_at(0xce)
    }

    fn misc_features_enables(&self) -> u64 {
        self.kept_at(0x140)
    }

    fn mc_status_writable(&self) -> bool {
        self.kept_at(0xc001_0015) & rule::MC_STATUS_WRITABLE != 0
    }
}

fn apply(write: Write, writer: &mut Writer<'_>, value: u64) -> Result<(), Refusal> {
    let guest = writer.by == Initiator::Guest;
    let taken = match write {
        Write::Unknown => return Err(Refusal::Unknown),
        Write::By(rule) => return rule(writer, value),
        Write::Drop => return Ok(()),
        Write::HostOrDrop if guest => return Ok(()),
        Write::Low(bits) => {
            writer.keep(value & bits);
            return Ok(());
        }
        Write::Any | Write::HostOrDrop => true,
        Write::Bits(bits) => value & !bits == 0,
        Write::Canonical => rule::is_canonical(value),
        Write::If(check) => check(&writer.reader(), value),
        Write::HostOnly => !guest,
    };
    if !taken {
        return Err(Refusal::Invalid);
    }
    writer.keep(value);
    Ok(())
}

/// `KVM_GET_MSR_INDEX_LIST` for guests of this vendor.
pub(crate) fn index_list(cpuid: &GuestCpuid) -> impl Iterator<Item = MsrIndex> {
    let rows = ROWS.iter().filter(|row| row.listed && cpuid.is_on(row.on));
    rows.flat_map(|row| (row.first..row.first + row.count).map(MsrIndex))
}

/// `KVM_GET_MSR_FEATURE_INDEX_LIST`, with the values that the system offers.
pub(crate) fn feature_list(cpuid: &GuestCpuid) -> impl Iterator<Item = (MsrIndex, u64)> {
    let rows = FEATURE_MSRS.iter().filter(|(_, on, _)| cpuid.is_on(*on));
    rows.map(|&(index, _, value)| (MsrIndex(index), value))
}
