//! The state as a host reads and writes it: all registers, those that are MSRs by themselves, and what is
//! on its way to the guest.

use msrgate_core::{Registers, SystemRegisters, Unimplemented};

use crate::control::cr0;
use crate::cpu::Shadow;
use crate::op::{Fault, vector};
use crate::state::{DebugRegisters, Exception, Fpu};
use crate::{Cpu, flags, seg};

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
    /// General registers, RIP and RFLAGS.
    #[must_use]
    pub fn registers(&self) -> Registers {
        let [
            rax,
            rcx,
            rdx,
            rbx,
            rsp,
            rbp,
            rsi,
            rdi,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            ..,
        ] = self.gpr;
        Registers {
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rsp,
            rbp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip: self.rip,
            rflags: self.flags.get(),
        }
    }

    /// Replaces general registers, RIP and RFLAGS. As with `KVM_SET_REGS`, a queued exception is dropped.
    pub fn set_registers(&mut self, registers: &Registers) {
        let r = registers;
        self.gpr[..16].copy_from_slice(&[
            r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11,
            r.r12, r.r13, r.r14, r.r15,
        ]);
        self.rip = r.rip;
        self.flags.set(r.rflags);
        self.pending.exception = None;
        self.update_mode();
    }

    /// Segments, descriptor tables and control registers.
    #[must_use]
    pub fn system_registers(&self) -> SystemRegisters {
        let [es, cs, ss, ds, fs, gs] = self.segs;
        SystemRegisters {
            cs,
            ds,
            es,
            fs,
            gs,
            ss,
            tr: self.tr,
            ldt: self.ldt,
            gdt: self.gdt,
            idt: self.idt,
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            cr8: self.cr8,
            efer: self.efer,
            apic_base: self.msrs.apic_base,
        }
    }

    /// Replaces segments, descriptor tables and control registers. The values are taken as they are: a
    /// host checks before it calls.
    pub fn set_system_registers(&mut self, registers: &SystemRegisters) {
        let r = registers;
        self.segs = [r.es, r.cs, r.ss, r.ds, r.fs, r.gs];
        (self.tr, self.ldt, self.gdt, self.idt) = (r.tr, r.ldt, r.gdt, r.idt);
        (self.cr0, self.cr2, self.cr3, self.cr4) = (r.cr0, r.cr2, r.cr3, r.cr4);
        self.cr8 = r.cr8 & 15;
        self.efer = r.efer;
        self.msrs.apic_base = r.apic_base;
        self.cpl = if r.cr0 & cr0::PE == 0 {
            0
        } else {
            r.ss.dpl & 3
        };
        self.update_mode();
        self.flush_tlb(false);
    }

    /// x87 and SSE state.
    #[must_use]
    pub fn fpu(&self) -> &Fpu {
        &self.fpu
    }

    /// Replaces x87 and SSE state.
    pub fn set_fpu(&mut self, fpu: Fpu) {
        self.fpu = fpu;
    }

    /// Debug registers.
    #[must_use]
    pub fn debug_registers(&self) -> DebugRegisters {
        self.debug
    }

    /// Replaces debug registers.
    pub fn set_debug_registers(&mut self, debug: DebugRegisters) {
        self.debug = debug;
        self.update_breakpoints();
    }

    /// XCR0.
    #[must_use]
    pub fn xcr0(&self) -> u64 {
        self.xcr0
    }

    /// Replaces XCR0.
    pub fn set_xcr0(&mut self, xcr0: u64) {
        self.xcr0 = xcr0;
    }

    /// The queued exception, to be delivered before the next instruction.
    #[must_use]
    pub fn pending(&self) -> Option<Exception> {
        self.pending.exception.map(|fault| Exception {
            vector: fault.vector,
            error_code: fault.error_code,
        })
    }

    /// Queues an exception, or drops the queued one.
    pub fn set_pending(&mut self, exception: Option<Exception>) {
        self.pending.exception = exception.map(|exception| Fault {
            vector: exception.vector,
            error_code: exception.error_code,
            payload: if exception.vector == vector::PF {
                self.cr2
            } else {
                0
            },
        });
        self.attention = true;
    }

    /// Whether an external interrupt would be taken now.
    #[must_use]
    pub fn can_interrupt(&self) -> bool {
        self.flags.has(flags::IF)
            && self.shadow == Shadow::None
            && self.pending.exception.is_none()
            && self.pending.interrupt.is_none()
            && !self.shut_down
    }

    /// Injects an external interrupt, to be delivered before the next instruction. `false`: not now.
    pub fn interrupt(&mut self, vector: u8) -> bool {
        if !self.can_interrupt() {
            return false;
        }
        self.pending.interrupt = Some(vector);
        self.attention = true;
        true
    }

    /// Stop with [`Stop::InterruptWindow`](crate::Stop::InterruptWindow) as soon as
    /// [`Cpu::can_interrupt`]; once.
    pub fn set_interrupt_window(&mut self, wanted: bool) {
        self.pending.window = wanted;
        self.attention |= wanted;
    }

    /// Makes an NMI pending.
    pub fn nmi(&mut self) {
        self.pending.nmi = true;
        self.attention = true;
    }

    /// Instructions retired since the processor was made.
    #[must_use]
    pub fn retired(&self) -> u64 {
        self.retired
    }

    /// The exception that was delivered last: for the report of a triple fault.
    #[must_use]
    pub fn last_exception(&self) -> Option<Exception> {
        self.last_exception
    }

    /// Instructions that the guest ran and the processor does not have.
    #[must_use]
    pub fn unimplemented(&self) -> &[Unimplemented] {
        &self.unimplemented
    }

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
        self.flags.has(flags::IF)
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
