//! The 8259A pair against the facts of the data sheet (order number 231468), wired as in a PC.

use super::*;

/// After a PC's four initialization words: vectors from 0x20 and 0x28, nothing masked.
fn pair() -> PicPair {
    pair_with(1, 1)
}

/// With these fourth words.
fn pair_with(first: u8, second: u8) -> PicPair {
    let mut pics = PicPair::default();
    for (port, words) in [
        (0x20, [0x11, 0x20, 4, first]),
        (0xa0, [0x11, 0x28, 2, second]),
    ] {
        pics.write(port, words[0]);
        for word in &words[1..] {
            pics.write(port + 1, *word);
        }
    }
    pics
}

fn pulse(pics: &mut PicPair, pin: usize) -> Option<u32> {
    let taken = pics.set_line(pin, 0, true);
    pics.set_line(pin, 0, false);
    taken
}

/// What the processor gets, if INTR is high.
fn take(pics: &mut PicPair) -> Option<u8> {
    pics.output().then(|| pics.acknowledge())
}

/// ISR (`register` 1) or IRR (0), by OCW3.
fn read(pics: &mut PicPair, port: u16, register: u8) -> u8 {
    pics.write(port, 0x0a | register);
    pics.read(port)
}

#[test]
fn vectors_begin_at_the_second_word() {
    let mut pics = pair();
    for pin in (0..16).filter(|pin| *pin != 2) {
        assert_eq!(pulse(&mut pics, pin), Some(1));
        let vector = 0x20 + u8::try_from(pin).unwrap();
        assert_eq!(take(&mut pics), Some(vector));
        if pin >= 8 {
            assert_eq!(read(&mut pics, 0x20, 1), 1 << 2, "the cascade's");
            pics.write(0xa0, 0x20);
        }
        pics.write(0x20, 0x20);
        let service = [0x20, 0xa0].map(|port| read(&mut pics, port, 1));
        assert_eq!(service, [0, 0]);
    }
}

/// A new first word masks nothing, gives pin 7 the lowest priority, selects IRR, and forgets edges.
#[test]
fn initialization_forgets_edges_masks_and_priorities() {
    let mut pics = pair();
    pics.write(0x21, 0xff);
    pulse(&mut pics, 4);
    pics.write(0x20, 0xc2);
    pics.write(0x20, 0x0b);
    for (port, word) in [(0x20, 0x11), (0x21, 0x40), (0x21, 4), (0x21, 1)] {
        pics.write(port, word);
    }
    assert_eq!((pics.read(0x20), pics.read(0x21)), (0, 0), "IRR, mask");
    assert_eq!(take(&mut pics), None);
    pulse(&mut pics, 7);
    pulse(&mut pics, 0);
    assert_eq!(take(&mut pics), Some(0x40), "the highest priority again");
}

/// Without IC4 in the first word there is no fourth one.
#[test]
fn fourth_word_is_only_there_if_announced() {
    let mut pics = pair_with(3, 1);
    for (port, word) in [(0x20, 0x10), (0x21, 0x20), (0x21, 4)] {
        pics.write(port, word);
    }
    pics.write(0x21, 0xfe);
    assert_eq!(pics.read(0x21), 0xfe, "that was a mask");
    pulse(&mut pics, 0);
    take(&mut pics);
    assert_eq!(read(&mut pics, 0x20, 1), 1, "no automatic end any more");
}

#[test]
fn mask_holds_a_pin_back_and_keeps_its_edge() {
    let mut pics = pair();
    pics.write(0x21, 1 << 3);
    assert_eq!(pulse(&mut pics, 3), None);
    assert_eq!(take(&mut pics), None);
    assert_eq!(read(&mut pics, 0x20, 0), 1 << 3);
    pics.write(0x21, 0);
    assert_eq!(take(&mut pics), Some(0x23));
}

/// Fully nested: what is in service holds back its own priority and lower ones until its end.
#[test]
fn pin_in_service_holds_back_lower_ones() {
    let mut pics = pair();
    pulse(&mut pics, 3);
    assert_eq!(take(&mut pics), Some(0x23));
    pulse(&mut pics, 5);
    pulse(&mut pics, 3);
    assert_eq!(take(&mut pics), None);
    pulse(&mut pics, 1);
    assert_eq!(take(&mut pics), Some(0x21));
    assert_eq!(read(&mut pics, 0x20, 1), 0b1010);
    pics.write(0x20, 0x20);
    assert_eq!(
        read(&mut pics, 0x20, 1),
        0b1000,
        "of the highest in service"
    );
    pics.write(0x20, 0x63);
    assert_eq!(read(&mut pics, 0x20, 1), 0, "of the pin that is named");
    assert_eq!(take(&mut pics), Some(0x23));
    pics.write(0x20, 0x20);
    assert_eq!(take(&mut pics), Some(0x25));
}

#[test]
fn edge_interrupts_once_and_level_until_it_is_low() {
    let mut pics = pair();
    pics.write(0x4d0, 1 << 5);
    for (pin, again) in [(4, None), (5, Some(0x25))] {
        pics.set_line(pin, 0, true);
        assert!(take(&mut pics).is_some());
        pics.write(0x20, 0x20);
        assert_eq!(take(&mut pics), again, "pin {pin}");
        pics.write(0x20, 0x20);
        pics.set_line(pin, 0, false);
        assert_eq!(take(&mut pics), None, "pin {pin}");
    }
}

/// The pins of the timer, keyboard, cascade, clock and coprocessor are edge-triggered for good.
#[test]
fn trigger_mode_of_five_pins_is_fixed() {
    let mut pics = pair();
    pics.write(0x4d0, 0xff);
    pics.write(0x4d1, 0xff);
    assert_eq!((pics.read(0x4d0), pics.read(0x4d1)), (0xf8, 0xde));
}

/// A request that is gone by INTA: vector 7, and no bit in ISR.
#[test]
fn request_that_is_gone_is_spurious() {
    let mut pics = pair();
    pics.write(0x4d0, 1 << 5);
    pics.set_line(5, 0, true);
    pics.set_line(5, 0, false);
    assert!(!pics.output());
    assert_eq!(pics.acknowledge(), 0x27);
    assert_eq!(read(&mut pics, 0x20, 1), 0);
}

#[test]
fn automatic_end_leaves_nothing_in_service() {
    let mut pics = pair_with(3, 1);
    pulse(&mut pics, 3);
    pulse(&mut pics, 5);
    assert_eq!(take(&mut pics), Some(0x23));
    assert_eq!(read(&mut pics, 0x20, 1), 0);
    assert_eq!(pics.take_ended(), 1 << 3);
    assert_eq!(take(&mut pics), Some(0x25));
}

/// Rotation: the pin that has been served is the lowest one from then on.
#[test]
fn rotation_makes_the_served_pin_the_lowest() {
    for (name, fourth, before, after) in [
        ("unspecific end", 1, None, Some(0xa0)),
        ("specific end", 1, None, Some(0xe3)),
        ("automatic end", 3, Some(0x80), None),
        ("set priority", 1, Some(0xc3), Some(0x20)),
    ] {
        let mut pics = pair_with(fourth, 1);
        before.into_iter().for_each(|word| pics.write(0x20, word));
        pulse(&mut pics, 3);
        assert_eq!(take(&mut pics), Some(0x23), "{name}");
        after.into_iter().for_each(|word| pics.write(0x20, word));
        for pin in [3, 1, 4] {
            pulse(&mut pics, pin);
        }
        for vector in [0x24, 0x21, 0x23] {
            assert_eq!(take(&mut pics), Some(vector), "{name}");
            pics.write(0x20, 0x60 | vector & 7);
        }
    }
}

/// Special fully nested: a higher pin of the second chip interrupts a lower one's handler.
#[test]
fn second_chip_nests_only_in_special_fully_nested_mode() {
    for (fourth, nested) in [(0x01, None), (0x11, Some(0x29))] {
        let mut pics = pair_with(fourth, 1);
        pulse(&mut pics, 12);
        assert_eq!(take(&mut pics), Some(0x2c));
        pulse(&mut pics, 9);
        assert_eq!(take(&mut pics), nested, "ICW4 {fourth:#x}");
    }
}

/// OCW3's poll command: the next read acknowledges, and has bit 7 and the pin.
#[test]
fn poll_acknowledges_and_names_the_pin() {
    let mut pics = pair();
    pulse(&mut pics, 3);
    pics.write(0x20, 0x0c);
    assert_eq!(pics.read(0x20), 0x83);
    assert!(!pics.output());
    pics.write(0x20, 0x0c);
    assert_eq!(pics.read(0x20) & 0x80, 0, "nobody");
    pulse(&mut pics, 10);
    pics.write(0xa0, 0x0c);
    assert_eq!(pics.read(0xa0), 0x82);
    assert!(!pics.output());
}
