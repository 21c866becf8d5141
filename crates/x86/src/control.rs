//! Control and debug registers: their bits, and which values they take.
//!
//! Long mode follows EFER.LME when paging is switched on ([`Cpu::write_cr0`]). CR4 bits of features that CPUID
//! does not advertise are refused.

use crate::cpuid::CpuidRegister;
use crate::op::{Exit, Fault, Flow, vector};
use crate::{Cpu, Stop, seg};

/// CR0 bits.
pub(crate) mod cr0 {
    pub(crate) const PE: u64 = 1 << 0;
    pub(crate) const MP: u64 = 1 << 1;
    pub(crate) const EM: u64 = 1 << 2;
    pub(crate) const TS: u64 = 1 << 3;
    pub(crate) const ET: u64 = 1 << 4;
    pub(crate) const NE: u64 = 1 << 5;
    pub(crate) const WP: u64 = 1 << 16;
    pub(crate) const AM: u64 = 1 << 18;
    pub(crate) const NW: u64 = 1 << 29;
    pub(crate) const CD: u64 = 1 << 30;
    pub(crate) const PG: u64 = 1 << 31;
}

/// CR4 bits.
pub(crate) mod cr4 {
    pub(crate) const TSD: u64 = 1 << 2;
    pub(crate) const DE: u64 = 1 << 3;
    pub(crate) const PSE: u64 = 1 << 4;
    pub(crate) const PAE: u64 = 1 << 5;
    pub(crate) const MCE: u64 = 1 << 6;
    pub(crate) const PGE: u64 = 1 << 7;
    pub(crate) const PCE: u64 = 1 << 8;
    pub(crate) const OSFXSR: u64 = 1 << 9;
    pub(crate) const OSXMMEXCPT: u64 = 1 << 10;
    pub(crate) const UMIP: u64 = 1 << 11;
    pub(crate) const FSGSBASE: u64 = 1 << 16;
    pub(crate) const PCIDE: u64 = 1 << 17;
    pub(crate) const OSXSAVE: u64 = 1 << 18;
    pub(crate) const SMEP: u64 = 1 << 20;
    pub(crate) const SMAP: u64 = 1 << 21;
}

/// EFER bits.
pub(crate) mod efer {
    pub(crate) const SCE: u64 = 1 << 0;
    pub(crate) const LME: u64 = 1 << 8;
    pub(crate) const LMA: u64 = 1 << 10;
    pub(crate) const NXE: u64 = 1 << 11;
}

/// Bits of CR4 that any guest may set, whatever CPUID says (as in KVM).
const CR4_ALWAYS: u64 = 3 // VME and PVI are kept, without effect
    | cr4::TSD
    | cr4::DE
    | cr4::PSE
    | cr4::PAE
    | cr4::MCE
    | cr4::PGE
    | cr4::PCE
    | cr4::OSFXSR
    | cr4::OSXMMEXCPT;

/// Bits of CR4 that need a CPUID bit: leaf, register, bit.
const CR4_FEATURES: &[(u64, u32, CpuidRegister, u8)] = &[
    (cr4::UMIP, 7, CpuidRegister::Ecx, 2),
    (cr4::FSGSBASE, 7, CpuidRegister::Ebx, 0),
    (cr4::PCIDE, 1, CpuidRegister::Ecx, 17),
    (cr4::OSXSAVE, 1, CpuidRegister::Ecx, 26),
    (cr4::SMEP, 7, CpuidRegister::Ebx, 7),
    (cr4::SMAP, 7, CpuidRegister::Ebx, 20),
];

const CR0_DEFINED: u64 = cr0::PE
    | cr0::MP
    | cr0::EM
    | cr0::TS
    | cr0::ET
    | cr0::NE
    | cr0::WP
    | cr0::AM
    | cr0::NW
    | cr0::CD
    | cr0::PG;

/// Changes of CR0 after which translations are stale.
const CR0_FLUSHES: u64 = cr0::PE | cr0::WP | cr0::PG;
/// Changes of CR4 after which translations are stale.
const CR4_FLUSHES: u64 = cr4::PSE | cr4::PAE | cr4::PGE | cr4::SMEP | cr4::SMAP | cr4::PCIDE;
/// The address space's number in CR3, with CR4.PCIDE.
const PCID: u64 = 0xfff;

const DR6_FIXED: u64 = 0xffff_0ff0;
const DR6_VOLATILE: u64 = 0xe00f;
/// DR6.BD: MOV DR met DR7.GD.
const DR6_BD: u64 = 1 << 13;
const DR7_FIXED: u64 = 0x400;
const DR7_VOLATILE: u64 = 0xffff_2bff;
const DR7_GD: u64 = 1 << 13;

/// Writes, with the checks of SDM vol. 2, "MOV to control registers". The privilege check is the caller's.
impl Cpu {
    pub(crate) fn write_cr0(&mut self, value: u64) -> Flow {
        let new = value & CR0_DEFINED | cr0::ET;
        let (old, turned_on) = (self.cr0, new & !self.cr0);
        let turned_off = self.cr0 & !new;
        let wrong = value >> 32 != 0
            || new & (cr0::PG | cr0::PE) == cr0::PG
            || new & (cr0::NW | cr0::CD) == cr0::NW
            || turned_on & cr0::PG != 0
                && self.efer & efer::LME != 0
                && (self.cr4 & cr4::PAE == 0 || self.segs[seg::CS].l)
            || turned_off & cr0::PG != 0 && (self.is_64() || self.cr4 & cr4::PCIDE != 0);
        if wrong {
            return Err(self.raise(Fault::GP));
        }
        self.cr0 = new;
        self.efer &= !efer::LMA;
        if new & cr0::PG != 0 && self.efer & efer::LME != 0 {
            self.efer |= efer::LMA;
        }
        if (old ^ new) & CR0_FLUSHES != 0 {
            self.flush_tlb(false);
        }
        self.update_mode();
        Err(Exit::Leave)
    }

    /// Bit 63 asks to keep the translations of the new PCID. They are not kept apart here, so all go that are not global,
    /// as they may at any time.
    pub(crate) fn write_cr3(&mut self, value: u64) -> Flow {
        const KEEP: u64 = 1 << 63;
        let value = if self.cr4 & cr4::PCIDE != 0 {
            value & !KEEP
        } else {
            value
        };
        if self.is_long() && value >> self.features.physical_bits != 0 {
            return Err(self.raise(Fault::GP));
        }
        self.cr3 = value;
        self.flush_tlb(true);
        self.update_mode();
        Err(Exit::Leave)
    }

    pub(crate) fn write_cr4(&mut self, value: u64) -> Flow {
        let allowed = CR4_FEATURES
            .iter()
            .filter(|&&(_, leaf, register, bit)| self.features.has(leaf, register, bit))
            .fold(CR4_ALWAYS, |allowed, (bit, ..)| allowed | bit);
        let changed = self.cr4 ^ value;
        let pcids_too_soon =
            changed & value & cr4::PCIDE != 0 && (!self.is_long() || self.cr3 & PCID != 0);
        let wrong =
            value & !allowed != 0 || self.is_long() && value & cr4::PAE == 0 || pcids_too_soon;
        if wrong {
            return Err(self.raise(Fault::GP));
        }
        self.cr4 = value;
        if changed & CR4_FLUSHES != 0 {
            self.flush_tlb(false);
        }
        self.update_mode();
        Err(Exit::Leave)
    }

    pub(crate) fn write_cr8(&mut self, value: u64) -> Flow {
        if value > 15 {
            return Err(self.raise(Fault::GP));
        }
        let lowered = value < self.cr8;
        self.cr8 = value;
        if lowered {
            return Err(self.stop_after(Stop::PriorityLowered));
        }
        Err(Exit::Leave)
    }

    /// DR6 and DR7 as their numbers say; 4 and 5 are their other names, without CR4.DE.
    pub(crate) fn debug_register(&mut self, number: u8) -> Result<u64, Exit> {
        let number = self.debug_register_number(number)?;
        Ok(match number {
            6 => self.debug.dr6,
            7 => self.debug.dr7,
            _ => self.debug.db[usize::from(number & 3)],
        })
    }

    pub(crate) fn write_debug_register(&mut self, number: u8, value: u64) -> Flow {
        let number = self.debug_register_number(number)?;
        if number >= 6 && value >> 32 != 0 {
            return Err(self.raise(Fault::GP));
        }
        match number {
            6 => self.debug.dr6 = value & DR6_VOLATILE | DR6_FIXED,
            7 => self.debug.dr7 = value & DR7_VOLATILE | DR7_FIXED,
            _ => self.debug.db[usize::from(number & 3)] = value,
        }
        self.update_breakpoints();
        Err(Exit::Leave)
    }

    fn debug_register_number(&mut self, number: u8) -> Result<u8, Exit> {
        let number = match number {
            4 | 5 if self.cr4 & cr4::DE != 0 => return Err(self.raise(Fault::UD)),
            4 | 5 => number + 2,
            8.. => return Err(self.raise(Fault::UD)),
            _ => number,
        };
        if self.debug_in_force().dr7 & DR7_GD != 0 {
            let fault = Fault {
                payload: DR6_BD,
                ..Fault::plain(vector::DB)
            };
            return Err(self.raise(fault));
        }
        Ok(number)
    }
}
