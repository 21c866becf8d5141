//! The I/O APIC against the facts of the 82093AA data sheet (chapter 3).

use super::*;

const PIN: usize = 9;

/// An I/O APIC, and the messages that it has sent.
#[derive(Default)]
struct Bench {
    ioapic: Ioapic,
    sent: Vec<Message>,
}

impl Bench {
    /// With `low` as the lower half of [`PIN`]'s entry.
    fn with_entry(low: u32) -> Self {
        let mut bench = Self::default();
        bench.write(register(PIN), low);
        bench
    }

    fn write(&mut self, register: u32, value: u32) {
        let sent = &mut self.sent;
        let deliver = &mut |message: &Message| {
            sent.push(*message);
            Some(1)
        };
        self.ioapic.store(0, register);
        if let Some(pin) = self.ioapic.store(0x10, value) {
            self.ioapic.service(pin, deliver);
        }
    }

    fn read(&mut self, register: u32) -> u32 {
        self.ioapic.store(0, register);
        self.ioapic.load(0x10)
    }

    fn set(&mut self, high: bool) -> Option<u32> {
        self.set_from(0, high)
    }

    fn set_from(&mut self, source: u8, high: bool) -> Option<u32> {
        let sent = &mut self.sent;
        self.ioapic.set_line(PIN, source, high, &mut |message| {
            sent.push(*message);
            Some(1)
        })
    }

    fn end(&mut self, vector: u8, level_triggered: bool) -> u32 {
        let sent = &mut self.sent;
        let deliver = &mut |message: &Message| {
            sent.push(*message);
            Some(1)
        };
        let pins = self.ioapic.pins_of(vector);
        if level_triggered {
            self.ioapic.end_of_interrupt(pins, deliver);
        }
        pins
    }

    fn remote_irr(&mut self) -> bool {
        self.read(register(PIN)) >> 14 & 1 == 1
    }
}

/// The register of the lower half of a pin's entry.
fn register(pin: usize) -> u32 {
    0x10 + 2 * u32::try_from(pin).unwrap()
}

/// 3.2.1 to 3.2.4: ID in bits 27:24, version 0x11 with the last entry in bits 23:16, all entries masked.
#[test]
fn registers_after_reset_are_those_of_the_data_sheet() {
    let mut bench = Bench::default();
    assert_eq!(bench.read(1), 0x0017_0011);
    bench.write(1, 0xffff_ffff);
    assert_eq!(bench.read(1), 0x0017_0011, "read only");
    bench.write(0, 0xffff_ffff);
    assert_eq!((bench.read(0), bench.read(2)), (0x0f00_0000, 0x0f00_0000));
    for pin in 0..24 {
        let low = register(pin);
        assert_eq!((bench.read(low), bench.read(low + 1)), (0x1_0000, 0));
    }
    assert_eq!(
        bench.ioapic.load(0),
        register(23) + 1,
        "the select register"
    );
}

/// 3.2.4: delivery status and remote IRR are read only.
#[test]
fn status_bits_of_an_entry_cannot_be_written() {
    let mut bench = Bench::with_entry(0x1_d945);
    assert_eq!(bench.read(register(PIN)), 0x1_8945);
}

#[test]
fn entry_says_what_is_sent() {
    // Level-triggered, logical destination, NMI.
    let mut bench = Bench::with_entry(0x8c45);
    bench.write(register(PIN) + 1, 0x5a00_0000);
    assert_eq!(bench.set(true), Some(1));
    let expected = Message {
        mode: DeliveryMode::Nmi,
        vector: 0x45,
        destination: 0x5a,
        logical: true,
        level_triggered: true,
        assert: true,
        ..Message::default()
    };
    assert_eq!(bench.sent, [expected]);
}

#[test]
fn edge_interrupts_once_for_each_rise() {
    let mut bench = Bench::with_entry(0x45);
    assert_eq!(bench.set(true), Some(1));
    assert_eq!(bench.set(true), Some(0), "no rise");
    assert_eq!(bench.end(0x45, false), 1 << PIN);
    assert_eq!(bench.sent.len(), 1, "high after its end is no rise");
    assert!(!bench.remote_irr(), "undefined for edges");
    bench.set(false);
    assert_eq!(bench.set(true), Some(1));
    assert_eq!(bench.sent.len(), 2);
}

/// Remote IRR is set while a local APIC has the interrupt, and reset by an EOI with its vector.
#[test]
fn level_interrupts_again_after_the_end_while_it_is_high() {
    let mut bench = Bench::with_entry(0x8045);
    bench.set(true);
    assert!(bench.remote_irr());
    assert_eq!(bench.set(true), None, "the last one has not ended");
    assert_eq!(bench.end(0x46, true), 0, "another vector");
    assert_eq!((bench.sent.len(), bench.remote_irr()), (1, true));
    bench.end(0x45, true);
    assert_eq!((bench.sent.len(), bench.remote_irr()), (2, true));
    bench.set(false);
    assert!(bench.remote_irr(), "the processor has it still");
    bench.end(0x45, true);
    assert_eq!((bench.sent.len(), bench.remote_irr()), (2, false));
}

#[test]
fn level_on_a_masked_pin_interrupts_when_it_is_unmasked() {
    let mut bench = Bench::with_entry(0x1_8045);
    assert_eq!(bench.set(true), None);
    bench.write(register(PIN), 0x8045);
    assert_eq!(bench.sent.len(), 1);
    bench.write(register(PIN), 0x1_8045);
    bench.end(0x45, true);
    assert_eq!(bench.sent.len(), 1, "masked again");
    bench.set(false);
    bench.write(register(PIN), 0x8045);
    assert_eq!(bench.sent.len(), 1, "low again");
}

/// 3.2.4: edges on a masked pin are not held pending.
#[test]
fn edge_on_a_masked_pin_is_lost() {
    let mut bench = Bench::with_entry(0x1_0045);
    assert_eq!(bench.set(true), None);
    bench.set(false);
    bench.write(register(PIN), 0x45);
    assert_eq!(bench.sent, []);
    assert_eq!(bench.set(true), Some(1));
}

/// How Linux ends an interrupt of a version 0x11 without its vector.
#[test]
fn change_to_edge_and_back_ends_a_level_interrupt() {
    let mut bench = Bench::with_entry(0x8045);
    bench.set(true);
    bench.set(false);
    bench.write(register(PIN), 0x1_0045);
    bench.write(register(PIN), 0x8045);
    assert!(!bench.remote_irr());
    assert_eq!(bench.set(true), Some(1));
}

#[test]
fn line_is_high_while_any_source_holds_it() {
    let mut bench = Bench::with_entry(0x8045);
    bench.set_from(0, true);
    bench.set_from(1, true);
    bench.set_from(0, false);
    bench.end(0x45, true);
    assert_eq!(bench.sent.len(), 2);
    bench.set_from(1, false);
    bench.end(0x45, true);
    assert_eq!(bench.sent.len(), 2);
}

/// What goes into `KVM_GET_IRQCHIP` comes to life by `KVM_SET_IRQCHIP`; an edge that went out does not.
#[test]
fn pending_interrupts_go_out_when_the_state_is_set() {
    let mut bench = Bench::with_entry(0x45);
    bench.set(true);
    assert_eq!(bench.ioapic.state().irr, 0);
    let mut state = bench.ioapic.state();
    (state.irr, state.entries[PIN]) = (1 << PIN, 0x8046);
    let mut sent = Vec::new();
    let mut restored = Ioapic::default();
    restored.set_state(&state, &mut |message| {
        sent.push(message.vector);
        Some(1)
    });
    assert_eq!(sent, [0x46]);
    let after = restored.state();
    assert_eq!((after.irr, after.entries[PIN]), (1 << PIN, 0xc046));
}
