//! Parts of the state that a host reads and writes by themselves: registers that are MSRs, and [`Events`].

use crate::cpu::Shadow;
use crate::{Cpu, seg};

/// What is on its way to the guest besides a queued exception (`struct kvm_vcpu_events`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// An injected external interrupt that is not delivered yet.
    pub interrupt: Option<u8>,
    /// STI has just retired: external interrupts wait for one instruction.
    pub shadow_sti: bool,
    /// MOV SS has just retired: so do NMI and #DB.
    pub shadow_mov_ss: bool,
    /// An NMI waits.
    pub nmi_pending: bool,
    /// NMIs wait for IRET.
    pub nmi_masked: bool,
}

impl Cpu {
    /// IA32_FS_BASE.
    #[must_use]
    pub fn fs_base(&self) -> u64 {
        self.segs[seg::FS].base
    }

    /// Sets IA32_FS_BASE. The value is taken as it is.
    pub fn set_fs_base(&mut self, base: u64) {
        self.segs[seg::FS].base = base;
    }

    /// IA32_GS_BASE.
    #[must_use]
    pub fn gs_base(&self) -> u64 {
        self.segs[seg::GS].base
    }

    /// Sets IA32_GS_BASE. The value is taken as it is.
    pub fn set_gs_base(&mut self, base: u64) {
        self.segs[seg::GS].base = base;
    }

    /// IA32_EFER.
    #[must_use]
    pub fn efer(&self) -> u64 {
        self.efer
    }

    /// Sets IA32_EFER. The value is taken as it is.
    pub fn set_efer(&mut self, efer: u64) {
        self.efer = efer;
        self.update_mode();
        self.flush_tlb(false);
    }

    /// CR8, the task priority.
    #[must_use]
    pub fn cr8(&self) -> u64 {
        self.cr8
    }

    /// Sets CR8.
    pub fn set_cr8(&mut self, priority: u64) {
        self.cr8 = priority & 15;
    }

    /// CR0.PG.
    #[must_use]
    pub fn is_paging(&self) -> bool {
        self.cr0 >> 31 & 1 == 1
    }

    /// The privilege level.
    #[must_use]
    pub fn cpl(&self) -> u8 {
        self.cpl
    }

    /// RFLAGS.IF.
    #[must_use]
    pub fn interrupt_flag(&self) -> bool {
        self.flags.has(crate::flags::IF)
    }

    /// What is on its way to the guest besides [`Cpu::pending`].
    #[must_use]
    pub fn events(&self) -> Events {
        Events {
            interrupt: self.pending.interrupt,
            shadow_sti: self.shadow == Shadow::Sti,
            shadow_mov_ss: self.shadow == Shadow::MovSs,
            nmi_pending: self.pending.nmi,
            nmi_masked: self.pending.nmi_masked,
        }
    }

    /// Replaces it.
    pub fn set_events(&mut self, events: Events) {
        self.pending.interrupt = events.interrupt;
        self.pending.nmi = events.nmi_pending;
        self.pending.nmi_masked = events.nmi_masked;
        self.shadow = match events {
            Events {
                shadow_mov_ss: true,
                ..
            } => Shadow::MovSs,
            Events {
                shadow_sti: true, ..
            } => Shadow::Sti,
            _ => Shadow::None,
        };
        self.attention = true;
    }
}
