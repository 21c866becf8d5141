//! [`Engine`]: one vCPU, as both doors use it: complete what is pending, run to the next exit.
//!
//! It speaks core's [`VmEntry`] and [`VmExit`]; the run page and the ioctls are in [`crate::ioctl`], and what it has
//! to do with interrupt controllers in [`interrupt`].

mod interrupt;

use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvm_bindings::{KVM_EXIT_IOAPIC_EOI, KVM_EXIT_SET_TPR};
use msrgate_core::{
    Access, Disposition, Emulation, Errno, FilterReader, Gp, MsrIndex, NativeAccess,
    PendingCompletion, RunError, VmEntry, VmExit,
};
use msrgate_x86::{Config, Cpu, CpuidLeaf, Stop};

use crate::clock::Tsc;
use crate::ioeventfd::{Bus, Place};
use crate::irq::{IrqChip, Lapic};
use crate::kvmclock::KvmClock;
use crate::msr::{Feature, GuestCpuid, Initiator, MsrFile, Refusal};
use crate::processor::GuestBus;
use crate::vm::VmState;
pub(crate) use interrupt::MpState;

/// Instructions between two looks at who wants to interrupt: some hundred microseconds.
pub(crate) const SLICE: u64 = 50_000;

/// IA32_TIME_STAMP_COUNTER.
const TSC: MsrIndex = MsrIndex(0x10);

/// DR6.BS: a single step.
pub(crate) const DR6_SINGLE_STEP: u64 = 1 << 14;

/// A vCPU.
#[derive(Debug)]
pub(crate) struct Engine {
    vm: Arc<VmState>,
    id: u32,
    /// On the heap: its translation caches are large.
    pub(crate) cpu: Box<Cpu>,
    pub(crate) msrs: MsrFile,
    filter: FilterReader,
    bus: GuestBus,
    /// The generation of `bus.slots`.
    generation: u64,
    pending: PendingCompletion,
    /// Decoded code may have changed under the processor since it ran last.
    foreign_writes: bool,
    /// What is done here is an exit too ([`VmExit::Native`]).
    pub(crate) is_observed: bool,
    /// A single step ended behind an exit that needs no answer.
    step_is_due: bool,
    pub(crate) mp_state: MpState,
    /// The in-kernel controllers, if the VM has them.
    irqchip: Option<Arc<IrqChip>>,
    /// What the controllers had raised when they were looked at last.
    seen: u64,
    /// No interrupt is delivered (`KVM_GUESTDBG_BLOCKIRQ`).
    blocks_interrupts: bool,
    /// See [`Engine::want_window`].
    wants_window: bool,
    /// They are to be looked at whether they have raised anything or not.
    look: bool,
    /// The vCPU has run: its model cannot change any more.
    pub(crate) has_run: bool,
    /// DR6 of the last [`VmExit::Debug`].
    pub(crate) debug_dr6: u64,
    /// The client is to be told that an interrupt of its I/O APIC has ended, and which was the last.
    ended: Option<u8>,
    pub(crate) ended_vector: u8,
}

impl Engine {
    /// The vCPU `id`, whose number is reserved, as after reset.
    pub(crate) fn new(vm: Arc<VmState>, id: u32) -> Self {
        let mut tsc = Tsc::new(vm.epoch, vm.tsc_khz());
        vm.tsc_sync.join(&mut tsc);
        let mut cpu = Box::new(Cpu::new(Config {
            forced_emulation_prefix: vm.config.forced_emulation_prefix,
            ..Config::default()
        }));
        if id != vm.bootstrap_id() {
            const BOOTSTRAP: u64 = 1 << 8;
            cpu.msrs.apic_base &= !BOOTSTRAP;
        }
        let mut msrs = MsrFile::new(
            GuestCpuid::new(&[]),
            tsc,
            KvmClock::new(Arc::clone(&vm.clock)),
        );
        let irqchip = vm.irqchip();
        msrs.has_apic = irqchip.is_some();
        let mut mp_state = MpState::Runnable;
        if let Some(irqchip) = &irqchip {
            irqchip.with(|chips, _| chips.add(Lapic::new(id, cpu.msrs.apic_base)));
            if id != vm.bootstrap_id() {
                mp_state = MpState::Uninitialized;
            }
        }
        Self {
            id,
            cpu,
            msrs,
            filter: vm.filter.reader(),
            bus: GuestBus {
                slots: vm.memory.slots(),
                tsc,
                bad: None,
            },
            generation: vm.memory.generation(),
            pending: PendingCompletion::default(),
            foreign_writes: false,
            is_observed: false,
            step_is_due: false,
            mp_state,
            irqchip,
            seen: 0,
            blocks_interrupts: false,
            wants_window: false,
            look: true,
            has_run: false,
            debug_dr6: 0,
            ended: None,
            ended_vector: 0,
            vm,
        }
    }

    /// The VM that it belongs to.
    pub(crate) fn vm(&self) -> &Arc<VmState> {
        &self.vm
    }

    /// The exit that waits for its answer.
    pub(crate) fn pending(&self) -> Option<VmExit> {
        self.pending.exit()
    }

    /// Replaces the CPUID table.
    pub(crate) fn set_cpuid(&mut self, cpuid: Vec<CpuidLeaf>) {
        self.msrs.set_cpuid(GuestCpuid::new(&cpuid));
        let deadline_mode = self.msrs.cpuid.has(Feature::TscDeadline);
        self.with_lapic(|lapic, _| lapic.set_deadline_mode(deadline_mode));
        self.cpu.set_config(Config {
            cpuid,
            ..self.cpu.config().clone()
        });
    }

    /// Others may have written guest memory: a device, or the client itself.
    pub(crate) fn note_foreign_writes(&mut self) {
        self.foreign_writes = true;
    }

    /// Completes the pending exit. The instruction is retired, or #GP is queued, when this returns. Some
    /// instructions then leave again at once: string I/O, and accesses that cross into another device.
    ///
    /// # Errors
    /// `entry` is no answer to the exit, which goes on waiting.
    pub(crate) fn complete(&mut self, entry: VmEntry) -> Result<Option<VmExit>, RunError> {
        let Some(exit) = self.pending.take(entry)? else {
            let step_is_due = mem::take(&mut self.step_is_due);
            return Ok(step_is_due.then(|| self.single_step_exit()));
        };
        let done = match entry {
            VmEntry::CompleteRdmsr(answer) => {
                self.cpu.complete_rdmsr(answer);
                answer.is_ok()
            }
            VmEntry::CompleteWrmsr(answer) => {
                self.cpu.complete_wrmsr(answer);
                answer.is_ok()
            }
            VmEntry::CompleteIoIn(value) => {
                self.cpu.complete_io_in(value);
                return self.finish_instruction(exit);
            }
            VmEntry::CompleteMmioRead(value) => {
                self.cpu.complete_mmio_read(value);
                return self.finish_instruction(exit);
            }
            VmEntry::Run => false,
        };
        Ok((done && self.cpu.config().single_step).then(|| self.single_step_exit()))
    }

    /// Runs the guest to its next exit, in slices of `budget` instructions. Before each of them `check` may
    /// end the run.
    ///
    /// # Errors
    /// EFAULT where a slot leads to memory that the client does not have.
    #[inline]
    pub(crate) fn run(
        &mut self,
        budget: u64,
        mut check: impl FnMut(&Cpu) -> Option<VmExit>,
    ) -> Result<VmExit, Errno> {
        self.has_run = true;
        self.look = true;
        loop {
            if let Some(exit) = check(&self.cpu) {
                return Ok(exit);
            }
            let runnable = self.attend();
            if let Some(vector) = self.ended.take() {
                self.ended_vector = vector;
                return Ok(VmExit::Other(KVM_EXIT_IOAPIC_EOI));
            }
            if !runnable {
                continue;
            }
            let stop = self.slice(self.slice_budget(budget))?;
            if let Some(exit) = self.handle(stop) {
                self.pending.arm(exit);
                return Ok(exit);
            }
        }
    }

    /// The guest-physical address of a linear one.
    pub(crate) fn translate(&mut self, linear: u64) -> Option<u64> {
        let _turn = self.vm.turn.take();
        self.bus.slots = self.vm.memory.slots();
        self.cpu.translate_linear(&mut self.bus, linear)
    }

    /// Host-initiated read of an MSR.
    pub(crate) fn get_msr(&self, index: MsrIndex) -> Option<u64> {
        self.rdmsr_as(index, Initiator::Host).ok()
    }

    /// Host-initiated write of an MSR; whether it was taken.
    pub(crate) fn set_msr(&mut self, index: MsrIndex, value: u64) -> bool {
        if self.has_run && MsrFile::is_fixed(index) && self.get_msr(index) != Some(value) {
            return false;
        }
        if index == TSC {
            self.vm.tsc_sync.set(&mut self.msrs.tsc, value);
            return true;
        }
        self.wrmsr_as(index, value, Initiator::Host).is_ok()
    }

    /// One turn of at most `budget` instructions.
    #[inline]
    fn slice(&mut self, budget: u64) -> Result<Stop, Errno> {
        let turn = self.vm.turn.take();
        let generation = self.vm.memory.generation();
        if generation != self.generation {
            self.bus.slots = self.vm.memory.slots();
            self.generation = generation;
            self.cpu.flush();
        }
        let runner = self.id + 1;
        if self.vm.last_runner.load(Ordering::Relaxed) != runner {
            self.vm.last_runner.store(runner, Ordering::Relaxed);
            self.foreign_writes = true;
        }
        if self.msrs.clock.is_due(&self.msrs.tsc) {
            self.msrs.clock.tell(&self.bus.slots, &self.msrs.tsc);
            self.foreign_writes = true;
        }
        if self.foreign_writes {
            self.foreign_writes = false;
            self.cpu.verify_code();
        }
        self.bus.tsc = self.msrs.tsc;
        self.msrs.platform_info_hidden = self.vm.platform_info_hidden.load(Ordering::Relaxed);
        let stop = self.cpu.run(&mut self.bus, budget);
        drop(turn);
        match self.bus.bad.take() {
            Some(_) => Err(Errno::EFAULT),
            None => Ok(stop),
        }
    }

    /// Retires the instruction that has just got its data.
    fn finish_instruction(&mut self, exit: VmExit) -> Result<Option<VmExit>, RunError> {
        self.foreign_writes = true;
        match self.slice(1) {
            Ok(stop) => {
                let exit = self.handle(stop);
                if let Some(exit) = exit {
                    self.pending.arm(exit);
                }
                Ok(exit)
            }
            Err(errno) => {
                self.pending.arm(exit);
                Err(RunError::Refused { errno })
            }
        }
    }

    /// What becomes of a stop: an exit, or nothing that the guest's owner needs to know.
    #[inline]
    fn handle(&mut self, stop: Stop) -> Option<VmExit> {
        if self.has_irqchip() && self.serve(stop) || self.signals_event(stop) {
            return None;
        }
        Some(match stop {
            Stop::Rdmsr { index } => return self.rdmsr(MsrIndex(index)),
            Stop::Wrmsr { index, value } => return self.wrmsr(MsrIndex(index), value),
            Stop::Budget => {
                self.foreign_writes = true;
                return None;
            }
            // The turn goes to who waits for it, and the vCPU asks for another.
            Stop::Pause => return None,
            Stop::Hypercall => {
                self.hypercall();
                return None;
            }
            Stop::Hlt if self.vm.hlt_stays.load(Ordering::Relaxed) => {
                self.nap();
                return None;
            }
            Stop::Hlt => VmExit::Hlt,
            Stop::PriorityLowered => VmExit::Other(KVM_EXIT_SET_TPR),
            Stop::InterruptWindow => return None,
            Stop::IoIn { port, len_bytes } => VmExit::IoIn { port, len_bytes },
            Stop::IoOut {
                port,
                len_bytes,
                value,
            } => VmExit::IoOut {
                port,
                len_bytes,
                value,
            },
            Stop::MmioRead { gpa, len_bytes } => VmExit::MmioRead {
                address: gpa,
                len_bytes,
            },
            Stop::MmioWrite {
                gpa,
                len_bytes,
                value,
            } => VmExit::MmioWrite {
                address: gpa,
                len_bytes,
                value,
            },
            Stop::TripleFault => VmExit::Shutdown,
            Stop::Debug { vector, rip, dr6 } => {
                self.debug_dr6 = dr6;
                VmExit::Debug {
                    exception: u32::from(vector),
                    pc: self.linear(rip),
                }
            }
        })
    }

    /// Whether the stop is a write that somebody waits for elsewhere (`KVM_IOEVENTFD`), and now knows of.
    fn signals_event(&self, stop: Stop) -> bool {
        let (bus, address, len_bytes, value) = match stop {
            Stop::IoOut {
                port,
                len_bytes,
                value,
            } => (Bus::Port, port.into(), len_bytes, value.into()),
            Stop::MmioWrite {
                gpa,
                len_bytes,
                value,
            } => (Bus::Memory, gpa, len_bytes, value),
            _ => return false,
        };
        self.vm.ioeventfds.signal(&Place {
            bus,
            address,
            len_bytes: len_bytes.into(),
            value: Some(value),
        })
    }

    /// RDMSR: filter, emulation, reason, in this order (`kvm_emulate_rdmsr`).
    #[inline]
    fn rdmsr(&mut self, index: MsrIndex) -> Option<VmExit> {
        let verdict = self.filter.verdict(index, Access::Read);
        let unknown = self.vm.config.unknown_msrs;
        let mut value = 0;
        let emulate = || {
            let answer = self.rdmsr_as(index, Initiator::Guest);
            value = answer.unwrap_or(0);
            emulation(answer)
        };
        let answer = match Disposition::of(verdict, emulate, unknown, self.vm.reasons()) {
            Disposition::Exit(reason) => return Some(VmExit::Rdmsr { index, reason }),
            Disposition::Native => Ok(value),
            Disposition::InjectGp => Err(Gp),
        };
        let native = self.observed(index, Access::Read, value, answer.map(drop));
        self.cpu.complete_rdmsr(answer);
        self.after_native(answer.is_ok(), native)
    }

    /// WRMSR, likewise. There is no way around the filter, not even for `IA32_TSC_DEADLINE`.
    #[inline]
    fn wrmsr(&mut self, index: MsrIndex, value: u64) -> Option<VmExit> {
        let verdict = self.filter.verdict(index, Access::Write);
        let unknown = self.vm.config.unknown_msrs;
        let reasons = self.vm.reasons();
        let emulate = || emulation(self.wrmsr_as(index, value, Initiator::Guest));
        let answer = match Disposition::of(verdict, emulate, unknown, reasons) {
            Disposition::Exit(reason) => {
                return Some(VmExit::Wrmsr {
                    index,
                    value,
                    reason,
                });
            }
            Disposition::Native => Ok(()),
            Disposition::InjectGp => Err(Gp),
        };
        let native = self.observed(index, Access::Write, value, answer);
        self.cpu.complete_wrmsr(answer);
        self.after_native(answer.is_ok(), native)
    }

    /// What is to be told of an access that is about to complete here.
    #[inline]
    fn observed(
        &self,
        index: MsrIndex,
        access: Access,
        value: u64,
        answer: Result<(), Gp>,
    ) -> Option<VmExit> {
        self.is_observed.then(|| {
            VmExit::Native(NativeAccess {
                index,
                access,
                value,
                answer,
                rip: self.cpu.registers().rip,
            })
        })
    }

    /// An MSR access that needs no answer has retired or raised #GP.
    #[inline]
    fn after_native(&mut self, retired: bool, native: Option<VmExit>) -> Option<VmExit> {
        let step = retired && self.cpu.config().single_step;
        self.step_is_due = step && native.is_some();
        native.or_else(|| step.then(|| self.single_step_exit()))
    }

    fn single_step_exit(&mut self) -> VmExit {
        self.debug_dr6 = DR6_SINGLE_STEP;
        VmExit::Debug {
            exception: 1,
            pc: self.linear(self.cpu.registers().rip),
        }
    }

    /// The linear address of an instruction (`kvm_get_linear_rip`).
    fn linear(&self, rip: u64) -> u64 {
        if self.is_64_bit() {
            rip
        } else {
            self.cpu.system_registers().cs.base.wrapping_add(rip) & 0xffff_ffff
        }
    }

    fn is_64_bit(&self) -> bool {
        const EFER_LMA: u64 = 1 << 10;
        self.cpu.efer() & EFER_LMA != 0 && self.cpu.system_registers().cs.l
    }

    /// No hypercall is offered: the guest gets KVM's -KVM_ENOSYS, or -KVM_EPERM from outside its kernel.
    fn hypercall(&mut self) {
        const KVM_EPERM: u64 = 1;
        const KVM_ENOSYS: u64 = 1000;
        let error = if self.cpu.cpl() == 0 {
            KVM_ENOSYS
        } else {
            KVM_EPERM
        };
        let width = if self.is_64_bit() {
            u64::MAX
        } else {
            u32::MAX.into()
        };
        let mut registers = self.cpu.registers();
        registers.rax = error.wrapping_neg() & width;
        self.cpu.set_registers(&registers);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(irqchip) = &self.irqchip {
            irqchip.with(|chips, _| chips.remove(self.id));
        }
        self.vm.release(self.id);
    }
}

fn emulation<T>(answer: Result<T, Refusal>) -> Emulation {
    match answer {
        Ok(_) => Emulation::Done,
        Err(Refusal::Unknown) => Emulation::Unknown,
        Err(Refusal::Invalid) => Emulation::Invalid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use crate::vm::SystemConfig;
    use kvm_bindings::kvm_userspace_memory_region;
    use vm_memory::{MmapRegion, VolatileMemory};

    #[test]
    fn single_step_ends_behind_the_exit_of_an_observed_access() {
        // rdmsr at the reset vector; ECX is 0 (IA32_P5_MC_ADDR).
        let ram = MmapRegion::<()>::new(0x1000).unwrap();
        ram.get_slice(0xff0, 2).unwrap().copy_from(&[0x0f_u8, 0x32]);
        let memory = Memory::default();
        memory
            .set_slot(&kvm_userspace_memory_region {
                guest_phys_addr: 0xffff_f000,
                memory_size: 0x1000,
                userspace_addr: ram.as_ptr().expose_provenance() as u64,
                ..kvm_userspace_memory_region::default()
            })
            .unwrap();
        let vm = VmState::new(SystemConfig::default(), memory);
        let mut engine = Engine::new(Arc::new(vm), 0);
        engine.cpu.set_config(Config {
            single_step: true,
            ..engine.cpu.config().clone()
        });
        engine.is_observed = true;
        let exit = engine.run(SLICE, |_| None).unwrap();
        assert!(matches!(exit, VmExit::Native(_)), "{exit:?}");
        let step = engine.complete(VmEntry::Run).unwrap();
        let expected = VmExit::Debug {
            exception: 1,
            pc: 0xffff_fff2,
        };
        assert_eq!(step, Some(expected));
        assert_eq!(engine.complete(VmEntry::Run), Ok(None));
    }
}
