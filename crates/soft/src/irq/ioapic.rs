//! [`Ioapic`]: 24 pins, each with an entry that says what message it sends (82093AA).

#[cfg(test)]
mod tests;

use super::delivery::{DeliveryMode, Message};

pub(crate) const PINS: usize = 24;
/// Where its registers are, and how many bytes of them.
pub(crate) const BASE: u64 = 0xfec0_0000;
pub(crate) const BYTES: u64 = 0x100;
/// Version 0x11, the number of the last pin.
const VERSION: u32 = 0x0017_0011;
/// Bits of an entry.
const DELIVERY_STATUS: u64 = 1 << 12;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const READ_ONLY: u64 = DELIVERY_STATUS | REMOTE_IRR;

/// Delivers a message: how many local APICs took it, `None` if it was for all and there was
/// nobody.
pub(crate) type Deliver<'a> = &'a mut dyn FnMut(&Message) -> Option<u32>;

/// The state that `struct kvm_ioapic_state` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IoapicState {
    pub(crate) select: u32,
    pub(crate) id: u32,
    /// Pins whose interrupt has not ended, or has not begun for being masked.
    pub(crate) irr: u32,
    pub(crate) entries: [u64; PINS],
}

/// An I/O APIC.
#[derive(Debug)]
pub(crate) struct Ioapic {
    state: IoapicState,
    /// Edges that went out, of those in `irr`.
    delivered: u32,
    /// Who holds each pin high: a bit for each source.
    sources: [u8; PINS],
}

impl Default for Ioapic {
    /// As after reset: all pins masked.
    fn default() -> Self {
        Self {
            state: IoapicState {
                select: 0,
                id: 0,
                irr: 0,
                entries: [MASKED; PINS],
            },
            delivered: 0,
            sources: [0; PINS],
        }
    }
}

impl Ioapic {
    /// A guest's load.
    pub(crate) fn load(&self, offset: u64) -> u32 {
        match offset & !0xf {
            0 => self.state.select,
            0x10 => self.register(),
            _ => 0,
        }
    }

    fn register(&self) -> u32 {
        match self.state.select {
            0 | 2 => (self.state.id & 15) << 24,
            1 => VERSION,
            select => {
                let entry = entry_of(select).and_then(|pin| self.state.entries.get(pin));
                half(entry.copied().unwrap_or(u64::MAX), select & 1 == 1)
            }
        }
    }

    /// A guest's store; a pin that was unmasked and has something waiting.
    pub(crate) fn store(&mut self, offset: u64, value: u32) -> Option<usize> {
        match offset & !0xf {
            0 => self.state.select = value & 0xff,
            0x10 => return self.set_register(value),
            _ => {}
        }
        None
    }

    fn set_register(&mut self, value: u32) -> Option<usize> {
        let select = self.state.select;
        if select == 0 {
            self.state.id = value >> 24 & 15;
            return None;
        }
        let pin = entry_of(select).filter(|pin| *pin < PINS)?;
        let old = self.state.entries[pin];
        let written = if select & 1 == 1 {
            old & 0xffff_ffff | u64::from(value) << 32
        } else {
            old & !0xffff_ffff | u64::from(value)
        };
        let mut entry = written & !READ_ONLY | old & READ_ONLY;
        // Guests end an interrupt by making its entry edge-triggered for a moment.
        if entry & LEVEL == 0 {
            entry &= !REMOTE_IRR;
        }
        self.state.entries[pin] = entry;
        let waits = self.state.irr >> pin & 1 == 1;
        (waits && entry & (LEVEL | MASKED | REMOTE_IRR) == LEVEL).then_some(pin)
    }

    /// What waits at the pin is over.
    pub(crate) fn withdraw(&mut self, pin: usize) {
        self.state.irr &= !(1 << pin);
    }

    /// `source` changes its level of a pin. How many took the interrupt that this makes; `None` if it is masked
    /// or for nobody; 0 if the last one has not ended.
    pub(crate) fn set_line(
        &mut self,
        pin: usize,
        source: u8,
        high: bool,
        deliver: Deliver<'_>,
    ) -> Option<u32> {
        let sources = self.sources.get_mut(pin)?;
        *sources = *sources & !(1 << source) | u8::from(high) << source;
        let high = *sources != 0;
        self.set_level(pin, high, deliver)
    }

    fn set_level(&mut self, pin: usize, high: bool, deliver: Deliver<'_>) -> Option<u32> {
        let bit = 1 << pin;
        if !high {
            self.state.irr &= !bit;
            return Some(1);
        }
        let was_high = self.state.irr & bit != 0;
        self.state.irr |= bit;
        if self.state.entries[pin] & LEVEL == 0 {
            self.delivered &= !bit;
            if was_high {
                return Some(0);
            }
        }
        self.service(pin, deliver)
    }

    /// The pin interrupts, if it can.
    pub(crate) fn service(&mut self, pin: usize, deliver: Deliver<'_>) -> Option<u32> {
        let entry = self.state.entries[pin];
        let level_triggered = entry & LEVEL != 0;
        if entry & MASKED != 0 || level_triggered && entry & REMOTE_IRR != 0 {
            return None;
        }
        let takers = deliver(&Message {
            mode: DeliveryMode::of(half(entry, false)),
            vector: entry.to_le_bytes()[0],
            destination: u32::from(entry.to_le_bytes()[7]),
            logical: entry >> 11 & 1 == 1,
            level_triggered,
            assert: true,
            ..Message::default()
        });
        if !level_triggered {
            self.delivered |= 1 << pin;
        } else if takers != Some(0) {
            self.state.entries[pin] |= REMOTE_IRR;
        }
        takers
    }

    /// The pins that interrupt with `vector`: a bit for each.
    pub(crate) fn pins_of(&self, vector: u8) -> u32 {
        let pins = self.state.entries.iter().enumerate();
        let own = pins.filter(|(_, entry)| entry.to_le_bytes()[0] == vector);
        own.fold(0, |pins, (pin, _)| pins | 1 << pin)
    }

    /// A local APIC has ended a level-triggered interrupt of these pins. A line that is still high interrupts again.
    pub(crate) fn end_of_interrupt(&mut self, pins: u32, deliver: Deliver<'_>) {
        for pin in (0..PINS).filter(|pin| pins >> pin & 1 == 1) {
            if self.state.entries[pin] & LEVEL != 0 {
                self.state.entries[pin] &= !REMOTE_IRR;
                if self.state.irr >> pin & 1 == 1 {
                    self.service(pin, deliver);
                }
            }
        }
    }

    /// `KVM_GET_IRQCHIP`. Edges that went out are not pending.
    pub(crate) fn state(&self) -> IoapicState {
        IoapicState {
            irr: self.state.irr & !self.delivered,
            ..self.state
        }
    }

    /// `KVM_SET_IRQCHIP`. What is pending interrupts now.
    pub(crate) fn set_state(&mut self, state: &IoapicState, deliver: Deliver<'_>) {
        self.state = IoapicState { irr: 0, ..*state };
        self.delivered = 0;
        for pin in (0..PINS).filter(|pin| state.irr >> pin & 1 == 1) {
            self.set_level(pin, true, deliver);
        }
    }
}

/// The pin whose entry a register holds a half of.
fn entry_of(select: u32) -> Option<usize> {
    usize::try_from(select.checked_sub(0x10)? >> 1).ok()
}

fn half(entry: u64, upper: bool) -> u32 {
    let [a, b, c, d, e, f, g, h] = entry.to_le_bytes();
    u32::from_le_bytes(if upper { [e, f, g, h] } else { [a, b, c, d] })
}
