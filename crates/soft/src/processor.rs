//! The seam to `msrgate-x86`: MSRs that are the processor's own, and guest memory as its bus.

use std::sync::Arc;

use msrgate_x86::{Bus, Cpu, RamPage};

use crate::clock::Tsc;
use crate::memory::{BadMemory, Slots};
use crate::random;

/// An MSR whose value the processor holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CpuMsr {
    ApicBase,
    Cstar,
    Efer,
    Fmask,
    FsBase,
    GsBase,
    KernelGsBase,
    Lstar,
    Pat,
    Star,
    SysenterCs,
    SysenterEip,
    SysenterEsp,
    TscAux,
    Xss,
}

/// Reads an MSR of the processor's.
pub(crate) fn msr(cpu: &Cpu, msr: CpuMsr) -> u64 {
    match msr {
        CpuMsr::ApicBase => cpu.msrs.apic_base,
        CpuMsr::Cstar => cpu.msrs.cstar,
        CpuMsr::Efer => cpu.efer(),
        CpuMsr::Fmask => cpu.msrs.fmask,
        CpuMsr::FsBase => cpu.fs_base(),
        CpuMsr::GsBase => cpu.gs_base(),
        CpuMsr::KernelGsBase => cpu.msrs.kernel_gs_base,
        CpuMsr::Lstar => cpu.msrs.lstar,
        CpuMsr::Pat => cpu.msrs.pat,
        CpuMsr::Star => cpu.msrs.star,
        CpuMsr::SysenterCs => cpu.msrs.sysenter_cs,
        CpuMsr::SysenterEip => cpu.msrs.sysenter_eip,
        CpuMsr::SysenterEsp => cpu.msrs.sysenter_esp,
        CpuMsr::TscAux => cpu.msrs.tsc_aux,
        CpuMsr::Xss => cpu.msrs.xss,
    }
}

/// Sets an MSR of the processor's.
pub(crate) fn set_msr(cpu: &mut Cpu, msr: CpuMsr, value: u64) {
    let home = match msr {
        CpuMsr::ApicBase => &mut cpu.msrs.apic_base,
        CpuMsr::Cstar => &mut cpu.msrs.cstar,
        CpuMsr::Fmask => &mut cpu.msrs.fmask,
        CpuMsr::KernelGsBase => &mut cpu.msrs.kernel_gs_base,
        CpuMsr::Lstar => &mut cpu.msrs.lstar,
        CpuMsr::Pat => &mut cpu.msrs.pat,
        CpuMsr::Star => &mut cpu.msrs.star,
        CpuMsr::SysenterCs => &mut cpu.msrs.sysenter_cs,
        CpuMsr::SysenterEip => &mut cpu.msrs.sysenter_eip,
        CpuMsr::SysenterEsp => &mut cpu.msrs.sysenter_esp,
        CpuMsr::TscAux => &mut cpu.msrs.tsc_aux,
        CpuMsr::Xss => &mut cpu.msrs.xss,
        CpuMsr::Efer => return cpu.set_efer(value),
        CpuMsr::FsBase => return cpu.set_fs_base(value),
        CpuMsr::GsBase => return cpu.set_gs_base(value),
    };
    *home = value;
}

/// What a processor is plugged into.
#[derive(Debug)]
pub(crate) struct GuestBus {
    pub(crate) slots: Arc<Slots>,
    pub(crate) tsc: Tsc,
    /// The client's memory was not where its slot says: the run fails with EFAULT.
    pub(crate) bad: Option<BadMemory>,
}

impl Bus for GuestBus {
    fn ram_page(&mut self, pfn: u64, write: bool) -> Option<RamPage> {
        match self.slots.page(pfn, write) {
            Ok(page) => page,
            Err(bad) => {
                self.bad = Some(bad);
                None
            }
        }
    }

    #[inline(always)]
    fn load<const N: usize>(&self, page: RamPage, offset: usize) -> [u8; N] {
        self.slots.load(page, offset)
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, page: RamPage, offset: usize, bytes: [u8; N]) {
        self.slots.store(page, offset, bytes);
    }

    fn load_bytes(&self, page: RamPage, offset: usize, bytes: &mut [u8]) {
        self.slots.load_bytes(page, offset, bytes);
    }

    fn store_bytes(&mut self, page: RamPage, offset: usize, bytes: &[u8]) {
        self.slots.store_bytes(page, offset, bytes);
    }

    fn copy(&mut self, from: (RamPage, usize), to: (RamPage, usize), len_bytes: usize) {
        self.slots.copy(from, to, len_bytes);
    }

    fn fill(&mut self, page: RamPage, offset: usize, len_bytes: usize, value: u8) {
        self.slots.fill(page, offset, len_bytes, value);
    }

    fn random(&mut self) -> Option<u64> {
        random::number()
    }

    fn tsc(&mut self) -> u64 {
        self.tsc.now()
    }
}
