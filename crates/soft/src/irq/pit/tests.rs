//! The 8254 against the facts of the data sheet (order number 231164), at a PC's 1.193182 MHz.

use super::*;

/// Mode 2 of channel 0, both bytes.
const RATE: u8 = 0x34;
/// Mode 3 of channel 2, both bytes.
const SQUARE_2: u8 = 0xb6;
const SECOND: u64 = 1_000_000_000;
/// Channels are started here.
const START: u64 = 5 * SECOND;

fn pit(control: u8, count: u16) -> Pit {
    let mut pit = Pit::new(true, 0);
    // The gate of channel 2.
    pit.write(0x61, 1, 0);
    load(&mut pit, control, count);
    pit
}

fn load(pit: &mut Pit, control: u8, count: u16) {
    pit.write(0x43, control, START);
    for byte in count.to_le_bytes() {
        pit.write(0x40 + u16::from(control >> 6), byte, START);
    }
}

/// A time at which `counts` have passed since the start, and half a count more.
fn after(counts: u64) -> u64 {
    START + (2 * counts + 1) * SECOND / (2 * 1_193_182)
}

/// Both bytes of a counter.
fn read(pit: &mut Pit, port: u16, now: u64) -> u16 {
    u16::from_le_bytes([pit.read(port, now), pit.read(port, now)])
}

/// The status byte, by a read-back of it alone.
fn status(pit: &mut Pit, channel: u8, now: u64) -> u8 {
    pit.write(0x43, 0xe0 | 2 << channel, now);
    pit.read(0x40 + u16::from(channel), now)
}

/// How often IRQ 0 pulses until `counts` have passed, if each is acknowledged at once.
fn pulses(pit: &mut Pit, counts: u64) -> u32 {
    let mut pulses = 0;
    while pit.target().is_some_and(|target| target <= after(counts)) {
        let now = pit.target().unwrap();
        pulses += u32::from(pit.tick(now));
        pit.acknowledge();
    }
    pulses
}

#[test]
fn mode_0_interrupts_once_and_its_output_stays_high() {
    let mut pit = pit(0x30, 1000);
    assert_eq!(status(&mut pit, 0, after(500)), 0x30, "low");
    assert_eq!(read(&mut pit, 0x40, after(400)), 600);
    assert_eq!(status(&mut pit, 0, after(1001)), 0xb0, "high");
    assert_eq!(pulses(&mut pit, 998), 0);
    assert_eq!(pulses(&mut pit, 10_000), 1);
}

#[test]
fn modes_2_and_3_interrupt_each_period() {
    for control in [RATE, 0x36, 0x3c, 0x3e] {
        let mut pit = pit(control, 1000);
        assert_eq!(pulses(&mut pit, 998), 0, "{control:#x}");
        assert_eq!(pulses(&mut pit, 10_010), 10, "{control:#x}");
    }
}

/// Mode 2 counts by one, down to 1, and begins anew.
#[test]
fn mode_2_counts_down_and_reloads() {
    let mut pit = pit(0xb4, 1000);
    for (counts, left) in [(0, 1000), (1, 999), (999, 1), (1000, 1000), (2300, 700)] {
        assert_eq!(read(&mut pit, 0x42, after(counts)), left, "{counts}");
    }
    let high = [500, 1000].map(|counts| status(&mut pit, 2, after(counts)) >> 7);
    assert_eq!(
        high,
        [0, 1],
        "the opposite of the data sheet, as Linux's pit_get_out"
    );
}

/// Mode 3 counts by two; the output is high in the first half.
#[test]
fn mode_3_counts_by_two_and_halves_the_period() {
    let mut pit = pit(SQUARE_2, 1000);
    for (counts, left, high) in [
        (0, 1000, true),
        (100, 800, true),
        (499, 2, true),
        (600, 800, false),
    ] {
        assert_eq!(read(&mut pit, 0x42, after(counts)), left, "{counts}");
        assert_eq!(
            status(&mut pit, 2, after(counts)) >> 7 == 1,
            high,
            "{counts}"
        );
        assert_eq!(
            pit.read(0x61, after(counts)) >> 5 & 1 == 1,
            high,
            "{counts}"
        );
    }
    assert!(status(&mut pit, 2, after(1000)) >> 7 == 1);
}

#[test]
fn count_of_0_is_the_largest() {
    let mut pit = pit(RATE, 0);
    assert_eq!(pulses(&mut pit, 65_530), 0);
    assert_eq!(pulses(&mut pit, 65_540), 1);
}

/// `kvm.min_timer_period_us` is 200 unless somebody changes it.
#[test]
fn period_is_not_shorter_than_the_limit() {
    let mut pit = pit(RATE, 12);
    let tenth_of_a_second = 119_318;
    let pulses = pulses(&mut pit, tenth_of_a_second);
    assert!((499..=501).contains(&pulses), "{pulses}");
}

#[test]
fn latch_holds_a_count_until_it_is_read() {
    let mut pit = pit(RATE, 10_000);
    pit.write(0x43, 0x00, after(1000));
    pit.write(0x43, 0x00, after(2000));
    let later = after(3000);
    assert_eq!(read(&mut pit, 0x40, later), 9000, "the first latch");
    assert_eq!(read(&mut pit, 0x40, later), 7000);
}

/// Read-back: count and status of several channels; the status is read first.
#[test]
fn read_back_latches_status_and_count_of_channels() {
    let mut pit = pit(RATE, 10_000);
    load(&mut pit, SQUARE_2, 2000);
    pit.write(0x43, 0xc0 | 0b1010, after(100));
    let later = after(1500);
    assert_eq!(pit.read(0x40, later) & 0x3f, RATE);
    assert_eq!(read(&mut pit, 0x40, later), 9900);
    assert_eq!(pit.read(0x42, later), 0x80 | SQUARE_2 & 0x3f);
    assert_eq!(read(&mut pit, 0x42, later), 1800);
    pit.write(0x43, 0xd0 | 0b1000, after(200));
    assert_eq!(read(&mut pit, 0x42, later), 1600, "the count alone");
}

#[test]
fn single_bytes_are_written_and_read() {
    let mut pit = pit(RATE, 10_000);
    pit.write(0x43, 0x94, START); // channel 2, mode 2, low byte
    pit.write(0x42, 200, START);
    assert_eq!(pit.read(0x42, after(50)), 150);
    pit.write(0x43, 0xa4, START); // high byte
    pit.write(0x42, 0x12, START);
    assert_eq!(pit.read(0x42, after(0x112)), 0x10, "of 0x10ee");
}

/// Ticks that come before the last one is acknowledged: made up for one by one, or lost.
#[test]
fn missed_ticks_are_made_up_for_unless_the_client_says_no() {
    for (reinject, made_up) in [(true, 3), (false, 0)] {
        let mut pit = pit(RATE, 1000);
        pit.set_reinject(reinject);
        assert!(pit.tick(after(1001)));
        assert_eq!(pit.tick(after(4001)), !reinject, "not acknowledged yet");
        let more = (0..10).filter(|_| pit.acknowledge()).count();
        assert_eq!(more, made_up, "reinject: {reinject}");
    }
}

/// `KVM_SET_PIT2` starts the saved counts.
#[test]
fn saved_channels_go_on() {
    let mut first = pit(RATE, 1000);
    load(&mut first, SQUARE_2, 500);
    let (channels, flags) = first.state();
    assert_eq!(channels.map(|channel| channel.count), [1000, 0x1_0000, 500]);
    let mut second = Pit::new(true, START);
    second.set_state(channels, flags, START);
    assert_eq!(pulses(&mut second, 3010), 3);
    assert_eq!(read(&mut second, 0x42, after(100)), 300);
    second.set_state(channels, FLAG_HPET_LEGACY, START);
    assert_eq!(second.target(), None, "the HPET ticks instead");
}
