//! Reads and writes of the local APIC's registers: as MMIO, as MSRs, and as `struct kvm_lapic_state`.

use super::{LVT_MASKED, Lapic, REGISTER_BYTES, SVR_ENABLED, VERSION, reg};
use crate::irq::delivery::{Message, Shorthand};

/// What a write asks of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing.
    None,
    /// An interrupt is to be sent.
    Send(Message),
    /// The interrupt of this vector has ended; whether it was level-triggered.
    EndOfInterrupt { vector: u8, level_triggered: bool },
}

/// The register does not exist in this mode, or does not take this value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Invalid;

/// ICR: delivery pending, which it never is here.
const ICR_BUSY: u32 = 1 << 12;
/// ICR bits that an x2APIC refuses.
const X2APIC_ICR_RESERVED: u64 = 0xfff0_0000 | 3 << 16 | 1 << 13;
const LVT_VECTOR: u32 = 0xff;
const LVT_DELIVERY: u32 = 7 << 8;
const LVT_PENDING: u32 = 1 << 12;
/// Polarity, remote IRR and trigger mode of the LINT pins.
const LVT_PIN: u32 = 7 << 13;

/// Registers that can be read in either mode; three more in xAPIC mode.
fn is_readable(register: usize, x2apic: bool) -> bool {
    match register {
        reg::ARBITRATION | reg::DFR | reg::ICR2 => !x2apic,
        reg::ID
        | reg::VERSION
        | reg::TPR
        | reg::PPR
        | reg::LDR
        | reg::SVR
        | reg::ISR..=0x28
        | reg::ICR
        | reg::LVT_TIMER..=reg::TIMER_CURRENT
        | reg::TIMER_DIVIDE => true,
        _ => false,
    }
}

/// The bits of an LVT entry that can be written, without the timer's mode.
fn lvt_bits(register: usize) -> u32 {
    LVT_VECTOR
        | LVT_PENDING
        | LVT_MASKED
        | match register {
            reg::LVT_THERMAL | reg::LVT_PERF => LVT_DELIVERY,
            reg::LVT_LINT0 | reg::LVT_LINT1 => LVT_DELIVERY | LVT_PIN,
            _ => 0,
        }
}

impl Lapic {
    /// A guest's load of `len` bytes from its page. What cannot be read is 0.
    pub(crate) fn load(&mut self, offset: usize, len: usize, now: u64) -> u64 {
        if !self.is_enabled() || self.is_x2apic() {
            return u64::MAX;
        }
        let byte = offset & 15;
        if byte + len > 4 || !is_readable(offset >> 4, false) {
            return 0;
        }
        u64::from(self.read(offset >> 4, now) >> (8 * byte))
    }

    /// A guest's store to its page. Only whole aligned registers can be written.
    pub(crate) fn store(&mut self, offset: usize, len: usize, value: u64, now: u64) -> Effect {
        if !self.is_enabled() || self.is_x2apic() || len != 4 || offset & 15 != 0 {
            return Effect::None;
        }
        let value = low(value);
        self.write(offset >> 4, value, now).unwrap_or(Effect::None)
    }

    /// RDMSR of 0x800 + `register`.
    pub(crate) fn rdmsr(&mut self, register: usize, now: u64) -> Result<u64, Invalid> {
        if !self.is_x2apic() || !is_readable(register, true) {
            return Err(Invalid);
        }
        let low = u64::from(self.read(register, now));
        Ok(match register {
            reg::ICR => low | u64::from(self.regs[reg::ICR2]) << 32,
            _ => low,
        })
    }

    /// WRMSR of 0x800 + `register`.
    pub(crate) fn wrmsr(
        &mut self,
        register: usize,
        value: u64,
        now: u64,
    ) -> Result<Effect, Invalid> {
        if !self.is_x2apic() {
            return Err(Invalid);
        }
        if register == reg::ICR {
            if value & X2APIC_ICR_RESERVED != 0 {
                return Err(Invalid);
            }
            let (low, high) = (low(value) & !ICR_BUSY, low(value >> 32));
            (self.regs[reg::ICR], self.regs[reg::ICR2]) = (low, high);
            return Ok(Effect::Send(Message::of_icr(low, high)));
        }
        if value >> 32 != 0 {
            return Err(Invalid);
        }
        self.write(register, low(value), now)
    }

    fn read(&mut self, register: usize, now: u64) -> u32 {
        match register {
            reg::ARBITRATION => 0,
            reg::TIMER_CURRENT => self.current_count(now),
            reg::PPR => self.update_ppr(),
            _ => self.regs[register],
        }
    }

    fn write(&mut self, register: usize, value: u32, now: u64) -> Result<Effect, Invalid> {
        let x2apic = self.is_x2apic();
        match register {
            reg::ID | reg::LDR | reg::DFR | reg::ICR2 if x2apic => return Err(Invalid),
            reg::ID | reg::LDR | reg::ICR2 => self.regs[register] = value & 0xff00_0000,
            reg::DFR => self.regs[reg::DFR] = value | 0x0fff_ffff,
            reg::TPR => {
                self.regs[reg::TPR] = value & 0xff;
                self.update_ppr();
            }
            reg::EOI => {
                let ended = self.end_of_interrupt();
                return Ok(ended.map_or(Effect::None, |(vector, level_triggered)| {
                    Effect::EndOfInterrupt {
                        vector,
                        level_triggered,
                    }
                }));
            }
            reg::SVR => self.write_svr(value),
            reg::ICR => {
                let low = value & !ICR_BUSY;
                self.regs[reg::ICR] = low;
                return Ok(Effect::Send(Message::of_icr(
                    low,
                    self.regs[reg::ICR2] >> 24,
                )));
            }
            reg::LVT_TIMER..=reg::LVT_ERROR => self.write_lvt(register, value),
            reg::TIMER_INITIAL if self.is_deadline_mode() => {}
            reg::TIMER_INITIAL => {
                self.regs[reg::TIMER_INITIAL] = value;
                self.start_timer(now);
            }
            reg::TIMER_DIVIDE => self.set_divide(value, now),
            reg::ESR if x2apic && value != 0 => return Err(Invalid),
            reg::ESR => {}
            reg::SELF_IPI if x2apic && value <= 0xff => {
                let mut message = Message::of_icr(value, 0);
                message.shorthand = Shorthand::Myself;
                return Ok(Effect::Send(message));
            }
            _ => return Err(Invalid),
        }
        Ok(Effect::None)
    }

    /// Disabled by software, all local interrupts are masked.
    fn write_svr(&mut self, value: u32) {
        self.regs[reg::SVR] = value & 0x3ff;
        if value & SVR_ENABLED == 0 {
            for lvt in reg::LVT_TIMER..=reg::LVT_ERROR {
                self.regs[lvt] |= LVT_MASKED;
            }
        }
    }

    fn write_lvt(&mut self, register: usize, value: u32) {
        let mask = if self.is_software_enabled() {
            0
        } else {
            LVT_MASKED
        };
        let modes = if register == reg::LVT_TIMER {
            self.timer.modes
        } else {
            0
        };
        self.regs[register] = (value | mask) & (lvt_bits(register) | modes);
        if register == reg::LVT_TIMER {
            self.update_mode();
        }
    }

    /// All registers (`KVM_GET_LAPIC`). `wide_ids`: an x2APIC ID has all its bits (`KVM_CAP_X2APIC_API`).
    pub(crate) fn state(&self, wide_ids: bool, now: u64) -> [u8; REGISTER_BYTES] {
        let mut regs = self.regs;
        regs[reg::TIMER_CURRENT] = self.current_count(now);
        if self.is_x2apic() && !wide_ids {
            regs[reg::ID] = self.id << 24;
        }
        let mut bytes = [0; REGISTER_BYTES];
        for (place, value) in bytes.chunks_exact_mut(16).zip(regs) {
            place[..4].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    /// Replaces all registers (`KVM_SET_LAPIC`).
    ///
    /// # Errors
    /// An x2APIC's ID is another one.
    pub(crate) fn set_state(
        &mut self,
        bytes: &[u8; REGISTER_BYTES],
        wide_ids: bool,
        now: u64,
    ) -> Result<(), Invalid> {
        let word = |place: &[u8]| u32::from_le_bytes([place[0], place[1], place[2], place[3]]);
        let mut regs = [0; reg::COUNT];
        for (value, place) in regs.iter_mut().zip(bytes.chunks_exact(16)) {
            *value = word(place);
        }
        if self.is_x2apic() {
            if wide_ids && regs[reg::ID] != self.id {
                return Err(Invalid);
            }
            regs[reg::ID] = self.id;
            regs[reg::LDR] = self.x2apic_ldr();
        }
        let left = regs[reg::TIMER_CURRENT];
        self.regs = regs;
        self.regs[reg::VERSION] = VERSION;
        self.stop_timer();
        self.update_mode();
        self.update_ppr();
        self.start_timer_at(left, now);
        self.regs[reg::TIMER_CURRENT] = 0;
        Ok(())
    }
}

fn low(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}
