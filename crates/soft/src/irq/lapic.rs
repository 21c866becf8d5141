//! [`Lapic`]: the local APIC of one vCPU (SDM vol. 3, chapter 12), with the choices of Linux's KVM.
//!
//! A state machine: time is an argument, interrupts leave as a [`Message`]. Errors are not logged in ESR, as in
//! Linux. Its timer is in [`timer`]; how a guest's reads and writes reach it is in [`access`].

mod access;
#[cfg(test)]
mod tests;
mod timer;

use super::delivery::{DeliveryMode, Message};
use timer::Timer;

pub(crate) use access::{Effect, Invalid};

/// Registers, by their offset in the page divided by 16: the numbers of x2APIC MSRs less 0x800.
pub(super) mod reg {
    pub(crate) const ID: usize = 0x02;
    pub(crate) const VERSION: usize = 0x03;
    pub(crate) const TPR: usize = 0x08;
    pub(crate) const ARBITRATION: usize = 0x09;
    pub(crate) const PPR: usize = 0x0a;
    pub(crate) const EOI: usize = 0x0b;
    pub(crate) const LDR: usize = 0x0d;
    pub(crate) const DFR: usize = 0x0e;
    pub(crate) const SVR: usize = 0x0f;
    pub(crate) const ISR: usize = 0x10;
    pub(crate) const TMR: usize = 0x18;
    pub(crate) const IRR: usize = 0x20;
    pub(crate) const ESR: usize = 0x28;
    pub(crate) const ICR: usize = 0x30;
    pub(crate) const ICR2: usize = 0x31;
    pub(crate) const LVT_TIMER: usize = 0x32;
    pub(crate) const LVT_THERMAL: usize = 0x33;
    pub(crate) const LVT_PERF: usize = 0x34;
    pub(crate) const LVT_LINT0: usize = 0x35;
    pub(crate) const LVT_LINT1: usize = 0x36;
    pub(crate) const LVT_ERROR: usize = 0x37;
    pub(crate) const TIMER_INITIAL: usize = 0x38;
    pub(crate) const TIMER_CURRENT: usize = 0x39;
    pub(crate) const TIMER_DIVIDE: usize = 0x3e;
    pub(crate) const SELF_IPI: usize = 0x3f;
    pub(crate) const COUNT: usize = 0x40;
}

/// The registers as bytes: what `struct kvm_lapic_state` holds.
pub(crate) const REGISTER_BYTES: usize = 16 * reg::COUNT;
/// IA32_APIC_BASE.
const BASE_BOOTSTRAP: u64 = 1 << 8;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLED: u64 = 1 << 11;
const BASE_PAGE: u64 = 0xf_ffff_ffff_f000;
/// Version 0x14, six LVT entries.
const VERSION: u32 = 0x0005_0014;
const SVR_ENABLED: u32 = 1 << 8;
const LVT_MASKED: u32 = 1 << 16;
const LVT_LEVEL: u32 = 1 << 15;
/// LVT LINT0 in delivery mode ExtINT, not masked: how the bootstrap processor gets the 8259's interrupts.
const LINT0_EXTINT: u32 = 7 << 8;

/// What waits to start or restart the vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StartUp {
    pub(crate) init: bool,
    pub(crate) sipi: Option<u8>,
}

/// A local APIC.
#[derive(Debug)]
pub(crate) struct Lapic {
    /// The vCPU's number, which is its x2APIC ID.
    id: u32,
    base: u64,
    regs: [u32; reg::COUNT],
    timer: Timer,
    /// An NMI has come.
    nmi: bool,
    start_up: StartUp,
    /// Of the last start-up message.
    sipi_vector: u8,
    /// An interrupt of the client's own 8259s waits.
    pub(crate) external: Option<u8>,
    /// An interrupt of the client's own I/O APIC has ended.
    pub(crate) ended: Option<u8>,
}

impl Lapic {
    /// As after reset.
    pub(crate) fn new(id: u32, base: u64) -> Self {
        let mut lapic = Self {
            id,
            base,
            regs: [0; reg::COUNT],
            timer: Timer::default(),
            nmi: false,
            start_up: StartUp::default(),
            sipi_vector: 0,
            external: None,
            ended: None,
        };
        lapic.regs[reg::ID] = id << 24;
        lapic.init();
        lapic
    }

    /// What INIT does: all but the base and the ID is as after reset.
    pub(crate) fn init(&mut self) {
        let id = self.regs[reg::ID];
        let ldr = self.regs[reg::LDR];
        self.regs = [0; reg::COUNT];
        self.regs[reg::ID] = id;
        if self.is_x2apic() {
            self.regs[reg::LDR] = ldr;
        }
        self.regs[reg::VERSION] = VERSION;
        for lvt in reg::LVT_TIMER..=reg::LVT_ERROR {
            self.regs[lvt] = LVT_MASKED;
        }
        if self.base & BASE_BOOTSTRAP != 0 {
            self.regs[reg::LVT_LINT0] = LINT0_EXTINT;
        }
        self.regs[reg::DFR] = u32::MAX;
        self.regs[reg::SVR] = 0xff;
        self.timer.reset();
    }

    /// The vCPU's number.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Follows IA32_APIC_BASE. A change of mode sets the ID that the mode has.
    pub(crate) fn set_base(&mut self, base: u64) {
        let changed = self.base ^ base;
        self.base = base;
        if changed & BASE_ENABLED != 0 && base & BASE_ENABLED != 0 {
            self.regs[reg::ID] = self.id << 24;
        }
        if changed & BASE_X2APIC != 0 {
            if self.is_x2apic() {
                self.regs[reg::ID] = self.id;
                self.regs[reg::LDR] = self.x2apic_ldr();
            } else if self.is_enabled() {
                self.regs[reg::ID] = self.id << 24;
            }
        }
    }

    /// The guest-physical page of its registers.
    pub(crate) fn page(&self) -> u64 {
        self.base & BASE_PAGE
    }

    /// IA32_APIC_BASE.EN.
    pub(crate) fn is_enabled(&self) -> bool {
        self.base & BASE_ENABLED != 0
    }

    /// The registers are MSRs.
    pub(crate) fn is_x2apic(&self) -> bool {
        self.is_enabled() && self.base & BASE_X2APIC != 0
    }

    /// Enabled by software too (SVR).
    pub(crate) fn is_software_enabled(&self) -> bool {
        self.regs[reg::SVR] & SVR_ENABLED != 0
    }

    /// CR8.
    pub(crate) fn cr8(&self) -> u64 {
        u64::from(self.regs[reg::TPR] >> 4 & 15)
    }

    /// Follows CR8.
    pub(crate) fn set_cr8(&mut self, priority: u64) {
        if self.cr8() != priority {
            self.regs[reg::TPR] = u32::from(priority.to_le_bytes()[0] & 15) << 4;
            self.update_ppr();
        }
    }

    /// Cluster in the upper half, a bit for the position in the lower.
    fn x2apic_ldr(&self) -> u32 {
        self.id >> 4 << 16 | 1 << (self.id & 15)
    }

    /// Whether a message for `destination` is for this one. `from_bus`: it is from a device, whose 0xff means
    /// everybody even to an x2APIC.
    pub(crate) fn is_destination(&self, destination: u32, logical: bool, from_bus: bool) -> bool {
        const XAPIC_ALL: u32 = 0xff;
        let x2apic = self.is_x2apic();
        let all = if x2apic { u32::MAX } else { XAPIC_ALL };
        if destination == all || from_bus && x2apic && destination == XAPIC_ALL {
            return true;
        }
        match (logical, x2apic) {
            (false, true) => destination == self.id,
            (false, false) if destination > XAPIC_ALL => destination == self.id,
            (false, false) => destination == self.regs[reg::ID] >> 24,
            (true, true) => {
                let own = self.regs[reg::LDR];
                own >> 16 == destination >> 16 && own & destination & 0xffff != 0
            }
            (true, false) => self.is_xapic_logical(destination),
        }
    }

    /// Flat model: a bit each. Cluster model: four bits in each of 15 clusters.
    fn is_xapic_logical(&self, destination: u32) -> bool {
        const FLAT: u32 = u32::MAX;
        const CLUSTER: u32 = 0x0fff_ffff;
        let own = self.regs[reg::LDR] >> 24;
        match self.regs[reg::DFR] {
            FLAT => own & destination != 0,
            CLUSTER => own >> 4 == destination >> 4 && own & destination & 15 != 0,
            _ => false,
        }
    }

    /// Takes an interrupt that is for this one; whether it did.
    pub(crate) fn accept(&mut self, message: &Message) -> bool {
        let vector = message.vector;
        match message.mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                if message.level_triggered && !message.assert || !self.accepts_vectors() {
                    return false;
                }
                self.put_bit(reg::TMR, vector, message.level_triggered);
                self.put_bit(reg::IRR, vector, true);
            }
            DeliveryMode::Nmi => self.nmi = true,
            // De-assertion is for processors of another age.
            DeliveryMode::Init if message.level_triggered && !message.assert => return false,
            DeliveryMode::Init => {
                self.start_up = StartUp {
                    init: true,
                    sipi: None,
                }
            }
            DeliveryMode::StartUp => {
                self.sipi_vector = vector;
                self.start_up.sipi = Some(vector);
            }
            DeliveryMode::RemoteRead => {}
            DeliveryMode::Smi | DeliveryMode::ExtInt => return false,
        }
        true
    }

    fn accepts_vectors(&self) -> bool {
        self.is_enabled() && self.is_software_enabled()
    }

    /// Signals one of the local interrupts.
    fn local(&mut self, lvt: usize) -> bool {
        let entry = self.regs[lvt];
        self.is_enabled()
            && entry & LVT_MASKED == 0
            && self.accept(&Message {
                mode: DeliveryMode::of(entry),
                vector: entry.to_le_bytes()[0],
                level_triggered: entry & LVT_LEVEL != 0,
                assert: true,
                ..Message::default()
            })
    }

    /// The PIT ticks on LINT0, which may be an NMI watchdog; whether anything was signalled.
    pub(crate) fn tick_lint0(&mut self) -> bool {
        DeliveryMode::of(self.regs[reg::LVT_LINT0]) == DeliveryMode::Nmi
            && self.local(reg::LVT_LINT0)
    }

    /// Whether the 8259's interrupts come through to this vCPU.
    pub(crate) fn takes_extint(&self) -> bool {
        let lint0 = self.regs[reg::LVT_LINT0];
        !self.is_enabled()
            || lint0 & LVT_MASKED == 0 && DeliveryMode::of(lint0) == DeliveryMode::ExtInt
    }

    /// The vector that the processor would get now.
    pub(crate) fn vector(&mut self) -> Option<u8> {
        if !self.is_enabled() {
            return None;
        }
        let priority = self.update_ppr();
        let vector = self.highest(reg::IRR)?;
        (u32::from(vector & 0xf0) > priority).then_some(vector)
    }

    /// The processor takes [`Lapic::vector`].
    pub(crate) fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.vector()?;
        self.put_bit(reg::IRR, vector, false);
        self.put_bit(reg::ISR, vector, true);
        self.update_ppr();
        Some(vector)
    }

    /// End of interrupt: the vector whose interrupt has ended, and whether it was level-triggered.
    pub(crate) fn end_of_interrupt(&mut self) -> Option<(u8, bool)> {
        let vector = self.highest(reg::ISR)?;
        self.put_bit(reg::ISR, vector, false);
        self.update_ppr();
        Some((vector, self.bit(reg::TMR, vector)))
    }

    /// The processor's priority: the higher of the task's and the one in service.
    fn update_ppr(&mut self) -> u32 {
        let task = self.regs[reg::TPR] & 0xff;
        let in_service = u32::from(self.highest(reg::ISR).unwrap_or(0)) & 0xf0;
        let priority = if task & 0xf0 >= in_service {
            task
        } else {
            in_service
        };
        self.regs[reg::PPR] = priority;
        priority
    }

    /// Takes the NMI that has come.
    pub(crate) fn take_nmi(&mut self) -> bool {
        std::mem::take(&mut self.nmi)
    }

    /// Takes it.
    pub(crate) fn take_start_up(&mut self) -> StartUp {
        std::mem::take(&mut self.start_up)
    }

    /// A start-up message waits, with the vector of the last one (`KVM_MP_STATE_SIPI_RECEIVED`).
    pub(crate) fn start_again(&mut self) {
        self.start_up.sipi = Some(self.sipi_vector);
    }

    fn bit(&self, bank: usize, vector: u8) -> bool {
        self.regs[bank + usize::from(vector / 32)] >> (vector % 32) & 1 == 1
    }

    fn put_bit(&mut self, bank: usize, vector: u8, on: bool) {
        let word = &mut self.regs[bank + usize::from(vector / 32)];
        *word = *word & !(1 << (vector % 32)) | u32::from(on) << (vector % 32);
    }

    fn highest(&self, bank: usize) -> Option<u8> {
        let words = (0_u8..8).zip(&self.regs[bank..bank + 8]);
        let (word, bits) = words.rev().find(|(_, bits)| **bits != 0)?;
        let bit = 31 - u8::try_from(bits.leading_zeros()).ok()?;
        Some(32 * word + bit)
    }
}
