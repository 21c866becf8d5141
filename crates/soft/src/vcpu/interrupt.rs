//! A vCPU and the in-kernel interrupt controllers: what they have for it, and its accesses to them.

use std::thread;
use std::time::Duration;

use msrgate_core::{Errno, MsrIndex};
use msrgate_x86::{Cpu, Stop};

use super::Engine;
use crate::irq::{Chips, IOAPIC_BASE, IOAPIC_BYTES, IrqChip, Lapic, StartUp};
use crate::msr::{Initiator, Refusal};

/// How long a vCPU that waits sleeps before it looks at its client again.
const NAP: Duration = Duration::from_millis(1);
/// Bounds of a slice that ends when a timer is due, at two instructions a nanosecond.
const INSTRUCTIONS_A_NANOSECOND: u64 = 2;
const SHORTEST_SLICE: u64 = 2_000;

const APIC_BASE: MsrIndex = MsrIndex(0x1b);
const TSC_DEADLINE: MsrIndex = MsrIndex(0x6e0);
const X2APIC: std::ops::RangeInclusive<u32> = 0x800..=0x8ff;

/// Whether a vCPU executes instructions, and if not, what it waits for (`KVM_MP_STATE_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MpState {
    Runnable,
    /// An application processor before its first INIT.
    Uninitialized,
    /// It waits for a start-up message.
    InitReceived,
    /// HLT.
    Halted,
    /// As a guest with encrypted state waits; the same as `Halted` here.
    ResetHold,
}

impl Engine {
    /// Whether interrupts are ours to deliver.
    pub(crate) fn has_irqchip(&self) -> bool {
        self.irqchip.is_some()
    }

    /// Whether the 8259s are ours too.
    pub(crate) fn has_pics(&self) -> bool {
        let irqchip = self.irqchip.as_ref();
        irqchip.is_some_and(|irqchip| !irqchip.is_split())
    }

    /// The client wants to hear when its next interrupt could be taken, or not any more.
    pub(crate) fn want_window(&mut self, wanted: bool) {
        self.wants_window = wanted;
        if wanted {
            self.cpu.set_interrupt_window(true);
        }
    }

    /// What tells, while the vCPU runs, whether the client's 8259s may interrupt it.
    pub(crate) fn external_interrupts(&self) -> impl Fn() -> bool + use<> {
        let (irqchip, id) = (self.irqchip.clone(), self.id);
        move || {
            let irqchip = irqchip.as_ref();
            irqchip.is_none_or(|irqchip| irqchip.with(|chips, _| chips.takes_external(id)))
        }
    }

    /// An interrupt of the client's 8259s.
    ///
    /// # Errors
    /// ENXIO where they are ours, EEXIST if one waits already.
    pub(crate) fn interrupt_from_client(&mut self, vector: u8) -> Result<(), Errno> {
        if self.has_pics() {
            return Err(Errno::ENXIO);
        }
        self.look = true;
        let replaced = self.with_lapic(|lapic, _| match lapic.external {
            Some(_) => Err(Errno::EEXIST),
            None => {
                lapic.external = Some(vector);
                Ok(())
            }
        });
        replaced.unwrap_or(Ok(()))
    }

    /// Takes what the controllers have for the vCPU, as far as it can take it; whether it executes instructions
    /// now. If not, it has slept a little.
    #[inline]
    pub(crate) fn attend(&mut self) -> bool {
        let Some(irqchip) = &self.irqchip else {
            return true;
        };
        let news = irqchip.has_news(&mut self.seen);
        if !news && !self.look && self.mp_state == MpState::Runnable {
            return true;
        }
        // Who interrupts, or has made the vCPU wait, may have written guest memory before.
        self.foreign_writes |= news || self.mp_state != MpState::Runnable;
        self.take_interrupts();
        if self.mp_state == MpState::Runnable {
            return true;
        }
        if let Some(irqchip) = &self.irqchip {
            irqchip.sleep(self.seen, NAP);
        }
        false
    }

    /// HLT that does not leave the guest, without controllers in the kernel that could wake it: as on a processor whose
    /// host has its timer ticks, it lasts for one of those.
    pub(super) fn nap(&self) {
        thread::sleep(NAP);
    }

    /// Whether interrupts are kept from the guest.
    pub(crate) fn block_interrupts(&mut self, block: bool) {
        self.blocks_interrupts = block;
        self.look = true;
    }

    /// Looks at the controllers before the next instruction, whether or not they have raised anything.
    pub(crate) fn look_at_interrupts(&mut self) {
        self.look = true;
    }

    #[cold]
    fn take_interrupts(&mut self) {
        self.look = false;
        self.accept_start_up();
        let Self {
            id, cpu, irqchip, ..
        } = self;
        let Some(irqchip) = irqchip else { return };
        let (mp_state, ended) = (&mut self.mp_state, &mut self.ended);
        let blocked = self.blocks_interrupts;
        let wanted = self.wants_window;
        irqchip.with(|chips, _| {
            let lapic = chips.lapic(*id).expect("made with the vCPU");
            lapic.set_cr8(cpu.cr8());
            *ended = lapic.ended.take().or(*ended);
            if !blocked && lapic.take_nmi() {
                cpu.nmi();
            }
            let waits = chips.has_interrupt(*id);
            if matches!(mp_state, MpState::Halted | MpState::ResetHold) && is_woken(cpu, waits) {
                *mp_state = MpState::Runnable;
            }
            if *mp_state == MpState::Runnable && !blocked {
                inject(cpu, chips, *id, waits);
                if wanted && chips.takes_external(*id) {
                    cpu.set_interrupt_window(true);
                }
            }
        });
    }

    /// INIT and start-up messages (`kvm_apic_accept_events`).
    pub(crate) fn accept_start_up(&mut self) {
        let start_up = self.with_lapic(|lapic, _| {
            let start_up = lapic.take_start_up();
            if start_up.init {
                lapic.init();
            }
            start_up
        });
        let StartUp { init, sipi } = start_up.unwrap_or_default();
        if init {
            self.reset_by_init();
        }
        if let Some(vector) = sipi
            && self.mp_state == MpState::InitReceived
        {
            let mut system = self.cpu.system_registers();
            system.cs.selector = u16::from(vector) << 8;
            system.cs.base = u64::from(vector) << 12;
            self.cpu.set_system_registers(&system);
            let mut registers = self.cpu.registers();
            registers.rip = 0;
            self.cpu.set_registers(&registers);
            self.mp_state = MpState::Runnable;
        }
    }

    /// MSRs, x87 and SSE state, and whether caches are on, survive INIT.
    fn reset_by_init(&mut self) {
        const ET: u64 = 1 << 4;
        const NW_CD: u64 = 3 << 29;
        const BOOTSTRAP: u64 = 1 << 8;
        let (msrs, fpu, xcr0) = (self.cpu.msrs, *self.cpu.fpu(), self.cpu.xcr0());
        let caches = self.cpu.system_registers().cr0 & NW_CD;
        self.cpu.reset();
        self.cpu.msrs = msrs;
        self.cpu.set_fpu(fpu);
        self.cpu.set_xcr0(xcr0);
        let mut system = self.cpu.system_registers();
        system.cr0 = ET | caches;
        self.cpu.set_system_registers(&system);
        self.mp_state = if msrs.apic_base & BOOTSTRAP != 0 {
            MpState::Runnable
        } else {
            MpState::InitReceived
        };
    }

    /// Works on the vCPU's local APIC, if it is in the kernel.
    pub(crate) fn with_lapic<R>(&self, work: impl FnOnce(&mut Lapic, u64) -> R) -> Option<R> {
        self.with_chips(|chips, now| chips.lapic(self.id).map(|lapic| work(lapic, now)))?
    }

    /// Works on all controllers, with the task priority that the vCPU has now.
    fn with_chips<R>(&self, work: impl FnOnce(&mut Chips, u64) -> R) -> Option<R> {
        let irqchip = self.irqchip.as_ref()?;
        Some(irqchip.with(|chips, now| {
            if let Some(lapic) = chips.lapic(self.id) {
                lapic.set_cr8(self.cpu.cr8());
            }
            work(chips, now)
        }))
    }

    /// Follows what an access of its own may have changed.
    pub(crate) fn note_lapic_change(&mut self) {
        if let Some(priority) = self.with_lapic_as_is(|lapic| lapic.cr8()) {
            self.cpu.set_cr8(priority);
        }
        self.look = true;
    }

    fn with_lapic_as_is<R>(&self, work: impl FnOnce(&mut Lapic) -> R) -> Option<R> {
        let irqchip = self.irqchip.as_ref()?;
        irqchip.with(|chips, _| chips.lapic(self.id).map(work))
    }

    /// How many instructions of `budget` to run before a timer wants to be looked at.
    pub(super) fn slice_budget(&self, budget: u64) -> u64 {
        let timer = self.irqchip.as_deref().and_then(IrqChip::until_timer);
        timer.map_or(budget, |nanoseconds| {
            let instructions = nanoseconds.saturating_mul(INSTRUCTIONS_A_NANOSECOND);
            budget.min(instructions.max(SHORTEST_SLICE))
        })
    }

    /// RDMSR, or a host's read: the local APIC's own MSRs, then all others.
    pub(super) fn rdmsr_as(&self, index: MsrIndex, by: Initiator) -> Result<u64, Refusal> {
        if self.irqchip.is_some() {
            if let Some(register) = x2apic_register(index) {
                let value = self.with_lapic(|lapic, now| lapic.rdmsr(register, now));
                return value.and_then(Result::ok).ok_or(Refusal::Invalid);
            }
            if index == TSC_DEADLINE {
                let deadline = self.with_lapic(|lapic, _| lapic.deadline());
                return Ok(deadline.unwrap_or(0));
            }
        }
        self.msrs.rdmsr(&self.cpu, index, by)
    }

    /// WRMSR, or a host's write.
    pub(super) fn wrmsr_as(
        &mut self,
        index: MsrIndex,
        value: u64,
        by: Initiator,
    ) -> Result<(), Refusal> {
        if self.irqchip.is_some() {
            if let Some(register) = x2apic_register(index) {
                let id = self.id;
                let done =
                    self.with_chips(|chips, now| chips.wrmsr_lapic(id, register, value, now));
                self.note_lapic_change();
                return done.and_then(Result::ok).ok_or(Refusal::Invalid);
            }
            if index == TSC_DEADLINE {
                let tsc = self.msrs.tsc;
                self.with_lapic(|lapic, now| lapic.set_deadline(value, &tsc, now));
                return Ok(());
            }
        }
        self.msrs.wrmsr(&mut self.cpu, index, value, by)?;
        if index == APIC_BASE {
            self.follow_apic_base();
        }
        Ok(())
    }

    /// IA32_APIC_BASE may have changed.
    pub(crate) fn follow_apic_base(&mut self) {
        let base = self.cpu.msrs.apic_base;
        if self.with_lapic(|lapic, _| lapic.set_base(base)).is_some() {
            self.look = true;
        }
    }

    /// Does what a stop is about, if that is the controllers' affair; whether it was.
    pub(super) fn serve(&mut self, stop: Stop) -> bool {
        match stop {
            Stop::Hlt => self.mp_state = MpState::Halted,
            Stop::InterruptWindow | Stop::PriorityLowered => self.look = true,
            Stop::IoIn { port, len_bytes } => match self.read_port(port, len_bytes) {
                Some(value) => self.cpu.complete_io_in(value),
                None => return false,
            },
            Stop::IoOut {
                port,
                len_bytes,
                value,
            } => return self.write_port(port, len_bytes, value),
            Stop::MmioRead { gpa, len_bytes } => match self.load_mmio(gpa, len_bytes) {
                Some(value) => self.cpu.complete_mmio_read(value),
                None => return false,
            },
            Stop::MmioWrite {
                gpa,
                len_bytes,
                value,
            } => return self.store_mmio(gpa, len_bytes, value),
            _ => return false,
        }
        true
    }

    /// IN from a controller in the kernel. Only bytes are answered.
    fn read_port(&self, port: u16, len_bytes: u8) -> Option<u32> {
        let irqchip = self.irqchip.as_ref()?;
        let value = irqchip.with(|chips, now| chips.read_port(port, now))?;
        Some(if len_bytes == 1 { u32::from(value) } else { 0 })
    }

    /// OUT to one; whether there is one.
    fn write_port(&mut self, port: u16, len_bytes: u8, value: u32) -> bool {
        let [value, ..] = value.to_le_bytes();
        let done = self.irqchip.as_ref().is_some_and(|irqchip| {
            irqchip.with(|chips, now| match len_bytes {
                1 => chips.write_port(port, value, now),
                _ => chips.has_port(port),
            })
        });
        self.look |= done;
        done
    }

    /// A load from a controller's page.
    fn load_mmio(&self, address: u64, len_bytes: u8) -> Option<u64> {
        let len = usize::from(len_bytes);
        let id = self.id;
        self.with_chips(|chips, now| {
            if let Some(offset) = lapic_offset(chips, id, address) {
                return Some(chips.load_lapic(id, offset, len, now));
            }
            ioapic_offset(chips, address).map(|offset| u64::from(chips.ioapic.load(offset)))
        })?
    }

    /// A store to one; whether there is one.
    fn store_mmio(&mut self, address: u64, len_bytes: u8, value: u64) -> bool {
        let len = usize::from(len_bytes);
        let id = self.id;
        let done = self.with_chips(|chips, now| {
            if let Some(offset) = lapic_offset(chips, id, address) {
                chips.store_lapic(id, offset, len, value, now);
                return true;
            }
            let offset = ioapic_offset(chips, address);
            if let Some(offset) = offset {
                chips.store_ioapic(offset, (value & 0xffff_ffff) as u32);
            }
            offset.is_some()
        });
        let done = done == Some(true);
        if done {
            self.note_lapic_change();
        }
        done
    }
}

/// Whether a halted vCPU goes on.
fn is_woken(cpu: &Cpu, interrupt_waits: bool) -> bool {
    let events = cpu.events();
    events.nmi_pending && !events.nmi_masked
        || cpu.pending().is_some()
        || events.interrupt.is_some()
        || interrupt_waits && cpu.can_interrupt()
}

/// Hands the next interrupt over, or asks to hear when it can be.
fn inject(cpu: &mut Cpu, chips: &mut Chips, id: u32, waits: bool) {
    let mut waits = waits;
    if waits
        && cpu.can_interrupt()
        && let Some(vector) = chips.acknowledge(id)
    {
        cpu.interrupt(vector);
        waits = chips.has_interrupt(id);
    }
    cpu.set_interrupt_window(waits);
}

fn x2apic_register(index: MsrIndex) -> Option<usize> {
    X2APIC
        .contains(&index.0)
        .then(|| usize::try_from(index.0 - X2APIC.start()).unwrap_or(usize::MAX))
}

fn lapic_offset(chips: &mut Chips, id: u32, address: u64) -> Option<usize> {
    let page = chips.lapic(id)?.page();
    usize::try_from(address.checked_sub(page)?)
        .ok()
        .filter(|offset| *offset < 0x1000)
}

fn ioapic_offset(chips: &Chips, address: u64) -> Option<u64> {
    address
        .checked_sub(IOAPIC_BASE)
        .filter(|offset| !chips.is_split() && *offset < IOAPIC_BYTES)
}
