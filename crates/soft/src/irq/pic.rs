//! [`PicPair`]: the two 8259A of a PC, the second on pin 2 of the first.
//!
//! Single and level-triggered mode by ICW1 do not exist, as in KVM: a pin's trigger mode is in ELCR. Special mask mode
//! is kept and has no effect, as in KVM.

#[cfg(test)]
mod tests;

/// Pins of both.
pub(crate) const PINS: usize = 16;
/// Pins that may be level-triggered (ELCR): not the timer, keyboard, cascade, clock and coprocessor.
const LEVEL_ALLOWED: [u8; 2] = [0xf8, 0xde];
/// The pin of the first on which the second is.
const CASCADE: u8 = 2;
/// The vector of a spurious interrupt.
const SPURIOUS: u8 = 7;

/// One chip: `struct kvm_pic_state`, byte for byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pic {
    pub(crate) last_irr: u8,
    pub(crate) irr: u8,
    pub(crate) imr: u8,
    pub(crate) isr: u8,
    /// The pin that has the highest priority.
    pub(crate) priority_add: u8,
    pub(crate) irq_base: u8,
    pub(crate) read_reg_select: u8,
    pub(crate) poll: u8,
    pub(crate) special_mask: u8,
    /// The initialization word that comes next; 0: none.
    pub(crate) init_state: u8,
    pub(crate) auto_eoi: u8,
    pub(crate) rotate_on_auto_eoi: u8,
    pub(crate) special_fully_nested_mode: u8,
    /// The fourth initialization word comes too.
    pub(crate) init4: u8,
    pub(crate) elcr: u8,
    pub(crate) elcr_mask: u8,
}

/// Both chips.
#[derive(Debug)]
pub(crate) struct PicPair {
    chips: [Pic; 2],
    /// Who holds each pin high: a bit for each source.
    sources: [u8; PINS],
    /// The INTR output.
    output: bool,
    /// Pins whose interrupt has ended since [`PicPair::take_ended`].
    ended: u32,
}

impl Default for PicPair {
    fn default() -> Self {
        Self {
            chips: LEVEL_ALLOWED.map(|elcr_mask| Pic {
                elcr_mask,
                ..Pic::default()
            }),
            sources: [0; PINS],
            output: false,
            ended: 0,
        }
    }
}

impl Pic {
    /// Whether the level makes a new interrupt; `None` if it is masked.
    fn set_pin(&mut self, pin: u8, high: bool) -> Option<bool> {
        let bit = 1 << pin;
        let mut new = true;
        let rising = self.last_irr & bit == 0;
        if self.elcr & bit != 0 {
            if high {
                new = self.irr & bit == 0;
                self.irr |= bit;
            } else {
                self.irr &= !bit;
            }
        } else if high && rising {
            new = self.irr & bit == 0;
            self.irr |= bit;
        }
        self.last_irr = if high {
            self.last_irr | bit
        } else {
            self.last_irr & !bit
        };
        (self.imr & bit == 0).then_some(new)
    }

    /// How far the first pin of `pins` is from the one with the highest priority; 8 if there is none.
    fn priority(&self, pins: u8) -> u32 {
        pins.rotate_right(u32::from(self.priority_add & 7))
            .trailing_zeros()
    }

    fn pin_at(&self, priority: u32) -> u8 {
        priority.to_le_bytes()[0].wrapping_add(self.priority_add) & 7
    }

    /// The pin that wants to interrupt. `first`: in special fully nested mode the second chip may interrupt
    /// its own handler.
    fn pending(&self, first: bool) -> Option<u8> {
        let priority = self.priority(self.irr & !self.imr);
        let nested = first && self.special_fully_nested_mode != 0;
        let in_service = self.isr & if nested { !(1 << CASCADE) } else { 0xff };
        (priority < self.priority(in_service)).then(|| self.pin_at(priority))
    }

    /// The processor takes the pin's interrupt; whether it has ended with that.
    fn acknowledge(&mut self, pin: u8) -> bool {
        let bit = 1 << pin;
        self.isr |= bit;
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
        if self.auto_eoi == 0 {
            return false;
        }
        if self.rotate_on_auto_eoi != 0 {
            self.priority_add = (pin + 1) & 7;
        }
        self.isr &= !bit;
        true
    }

    /// ICW1: edges that wait are forgotten.
    fn initialize(&mut self, icw1: u8) {
        self.init4 = icw1 & 1;
        self.last_irr = 0;
        self.irr &= self.elcr;
        self.imr = 0;
        self.priority_add = 0;
        self.special_mask = 0;
        self.read_reg_select = 0;
        if self.init4 == 0 {
            self.special_fully_nested_mode = 0;
            self.auto_eoi = 0;
        }
        self.init_state = 1;
    }

    fn operate(&mut self, ocw3: u8) {
        if ocw3 & 4 != 0 {
            self.poll = 1;
        }
        if ocw3 & 2 != 0 {
            self.read_reg_select = ocw3 & 1;
        }
        if ocw3 & 0x40 != 0 {
            self.special_mask = ocw3 >> 5 & 1;
        }
    }

    /// OCW2: end of interrupt and priorities. The pin whose interrupt ends.
    fn command(&mut self, ocw2: u8) -> Option<u8> {
        let named = ocw2 & 7;
        let command = ocw2 >> 5;
        let ended = match command {
            0 | 4 => {
                self.rotate_on_auto_eoi = command >> 2;
                None
            }
            1 | 5 => {
                let priority = self.priority(self.isr);
                (priority < 8).then(|| self.pin_at(priority))
            }
            3 | 7 => Some(named),
            6 => {
                self.priority_add = (named + 1) & 7;
                None
            }
            _ => None,
        };
        if let Some(pin) = ended {
            self.isr &= !(1 << pin);
            if command & 4 != 0 {
                self.priority_add = (pin + 1) & 7;
            }
        }
        ended
    }

    /// The second port: the mask, or what ICW1 has announced.
    fn write_data(&mut self, value: u8) {
        match self.init_state {
            1 => {
                self.irq_base = value & 0xf8;
                self.init_state = 2;
            }
            2 => self.init_state = if self.init4 != 0 { 3 } else { 0 },
            3 => {
                self.special_fully_nested_mode = value >> 4 & 1;
                self.auto_eoi = value >> 1 & 1;
                self.init_state = 0;
            }
            0 => self.imr = value,
            _ => {}
        }
    }
}

impl PicPair {
    /// Whether the port is one of theirs.
    pub(crate) fn has_port(port: u16) -> bool {
        matches!(port, 0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1)
    }

    /// IN of one byte.
    pub(crate) fn read(&mut self, port: u16) -> u8 {
        if port & 0x400 != 0 {
            return self.chips[usize::from(port & 1)].elcr;
        }
        let second = port & 0x80 != 0;
        let chip = &mut self.chips[usize::from(second)];
        if std::mem::take(&mut chip.poll) != 0 {
            return self.poll(second);
        }
        match (port & 1, chip.read_reg_select) {
            (1, _) => chip.imr,
            (_, 0) => chip.irr,
            _ => chip.isr,
        }
    }

    /// The poll command: the read acknowledges, and says which pin it was.
    fn poll(&mut self, second: bool) -> u8 {
        let chip = &mut self.chips[usize::from(second)];
        let pending = chip.pending(!second);
        if let Some(pin) = pending {
            chip.irr &= !(1 << pin);
            self.end(second, pin);
            if second {
                self.chips[0].isr &= !(1 << CASCADE);
                self.chips[0].irr &= !(1 << CASCADE);
            }
        }
        self.update();
        pending.map_or(SPURIOUS, |pin| 0x80 | pin)
    }

    /// OUT of one byte.
    pub(crate) fn write(&mut self, port: u16, value: u8) {
        if port & 0x400 != 0 {
            let chip = &mut self.chips[usize::from(port & 1)];
            chip.elcr = value & chip.elcr_mask;
            return;
        }
        let second = port & 0x80 != 0;
        let chip = &mut self.chips[usize::from(second)];
        if port & 1 == 1 {
            let masks = chip.init_state == 0;
            chip.write_data(value);
            if masks {
                self.update();
            }
        } else if value & 0x10 != 0 {
            let edges = chip.irr & !chip.elcr;
            chip.initialize(value);
            for pin in (0..8).filter(|pin| edges >> pin & 1 == 1) {
                self.end(second, pin);
            }
        } else if value & 8 != 0 {
            chip.operate(value);
        } else if let Some(pin) = chip.command(value) {
            self.end(second, pin);
            self.update();
        } else {
            self.update();
        }
    }

    fn end(&mut self, second: bool, pin: u8) {
        self.chips[usize::from(second)].isr &= !(1 << pin);
        self.ended |= 1 << (8 * u32::from(second) + u32::from(pin));
    }

    /// `source` changes its level of a pin: 1 if that makes an interrupt, 0 if one waits already, `None` if
    /// the pin is masked.
    pub(crate) fn set_line(&mut self, pin: usize, source: u8, high: bool) -> Option<u32> {
        let sources = self.sources.get_mut(pin)?;
        *sources = *sources & !(1 << source) | u8::from(high) << source;
        let high = *sources != 0;
        let pin = u8::try_from(pin).ok()?;
        let new = self.chips[usize::from(pin >> 3)].set_pin(pin & 7, high);
        self.update();
        new.map(u32::from)
    }

    /// The second chip's request is an edge on the first, whose request is the output.
    fn update(&mut self) {
        if self.chips[1].pending(false).is_some() {
            self.chips[0].set_pin(CASCADE, true);
            self.chips[0].set_pin(CASCADE, false);
        }
        self.output = self.chips[0].pending(true).is_some();
    }

    /// INTR.
    pub(crate) fn output(&self) -> bool {
        self.output
    }

    /// INTA: the vector.
    pub(crate) fn acknowledge(&mut self) -> u8 {
        let vector = match self.chips[0].pending(true) {
            None => self.chips[0].irq_base.wrapping_add(SPURIOUS),
            Some(CASCADE) => {
                self.acknowledge_pin(false, CASCADE);
                let pin = self.chips[1].pending(false);
                if let Some(pin) = pin {
                    self.acknowledge_pin(true, pin);
                }
                self.chips[1].irq_base.wrapping_add(pin.unwrap_or(SPURIOUS))
            }
            Some(pin) => {
                self.acknowledge_pin(false, pin);
                self.chips[0].irq_base.wrapping_add(pin)
            }
        };
        self.update();
        vector
    }

    fn acknowledge_pin(&mut self, second: bool, pin: u8) {
        if self.chips[usize::from(second)].acknowledge(pin) {
            self.end(second, pin);
        }
    }

    /// The pins whose interrupts have ended since the last call.
    pub(crate) fn take_ended(&mut self) -> u32 {
        std::mem::take(&mut self.ended)
    }

    /// `KVM_GET_IRQCHIP`.
    pub(crate) fn chip(&self, second: bool) -> Pic {
        self.chips[usize::from(second)]
    }

    /// `KVM_SET_IRQCHIP`.
    pub(crate) fn set_chip(&mut self, second: bool, state: Pic) {
        self.chips[usize::from(second)] = state;
        self.update();
    }
}
