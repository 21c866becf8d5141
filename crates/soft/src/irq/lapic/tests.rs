//! The local APIC against the facts of SDM vol. 3, chapter 12.

use super::*;
use crate::irq::delivery::deliver;

const ENABLED: u64 = 0xfee0_0800;
const X2APIC: u64 = ENABLED | 1 << 10;

fn lapic(id: u32, base: u64) -> Lapic {
    let mut lapic = Lapic::new(id, ENABLED);
    lapic.set_base(base);
    lapic.set_deadline_mode(true);
    lapic.regs[reg::SVR] = 0x1ff;
    lapic
}

fn fixed(vector: u8) -> Message {
    Message {
        vector,
        assert: true,
        ..Message::default()
    }
}

/// SDM vol. 3, 12.8.4: the interrupt in service holds back its own class and all below.
#[test]
fn priority_class_in_service_holds_back_its_own_and_lower_ones() {
    let mut lapic = lapic(0, ENABLED);
    assert!(lapic.accept(&fixed(0x51)));
    assert_eq!(lapic.acknowledge(), Some(0x51));
    for vector in [0x31, 0x5f] {
        lapic.accept(&fixed(vector));
        assert_eq!(lapic.vector(), None, "{vector:#x}");
    }
    lapic.accept(&fixed(0x60));
    assert_eq!(lapic.acknowledge(), Some(0x60));
    assert_eq!(lapic.end_of_interrupt(), Some((0x60, false)));
    assert_eq!(lapic.vector(), None, "0x51 is in service again");
    assert_eq!(lapic.end_of_interrupt(), Some((0x51, false)));
    assert_eq!(lapic.acknowledge(), Some(0x5f));
    lapic.end_of_interrupt();
    assert_eq!(lapic.acknowledge(), Some(0x31));
    lapic.end_of_interrupt();
    assert_eq!(lapic.end_of_interrupt(), None);
}

/// 12.7: software-disabled, nothing but NMI, INIT and start-up is taken, and local entries stay masked.
#[test]
fn software_disabled_apic_takes_no_vector() {
    let mut lapic = lapic(0, ENABLED);
    assert_eq!(lapic.store(0xf0, 4, 0xff, 0), Effect::None);
    assert!(!lapic.accept(&fixed(0x51)));
    lapic.store(0x320, 4, 0x40, 0);
    assert_eq!(lapic.load(0x320, 4, 0), 0x1_0040);
    let nmi = Message {
        mode: DeliveryMode::Nmi,
        ..Message::default()
    };
    assert!(lapic.accept(&nmi));
    assert!(lapic.take_nmi());
}

/// Table 12-6: which registers there are as MSRs, and which only in the page.
#[test]
fn registers_of_the_two_modes_differ() {
    let mut page = lapic(3, ENABLED);
    let mut msrs = lapic(3, X2APIC);
    assert_eq!(page.load(0x20, 4, 0), 3 << 24);
    assert_eq!(msrs.rdmsr(reg::ID, 0), Ok(3));
    assert_eq!(msrs.rdmsr(reg::LDR, 0), Ok(1 << 3));
    assert_eq!(page.rdmsr(reg::ID, 0), Err(Invalid), "not in x2APIC mode");
    for register in [
        reg::ARBITRATION,
        reg::DFR,
        reg::ICR2,
        reg::EOI,
        reg::SELF_IPI,
        0x40,
        0xff,
    ] {
        assert_eq!(msrs.rdmsr(register, 0), Err(Invalid), "{register:#x}");
    }
    for register in [
        reg::ID,
        reg::VERSION,
        reg::PPR,
        reg::LDR,
        reg::ISR,
        reg::IRR,
        reg::TIMER_CURRENT,
    ] {
        assert_eq!(msrs.wrmsr(register, 0, 0), Err(Invalid), "{register:#x}");
    }
    assert_eq!(msrs.wrmsr(reg::TPR, 1 << 32, 0), Err(Invalid), "reserved");
    assert_eq!(msrs.wrmsr(reg::ESR, 1, 0), Err(Invalid));
    assert_eq!(msrs.wrmsr(reg::ICR, 1 << 13, 0), Err(Invalid));
    let sent = msrs.wrmsr(reg::SELF_IPI, 0x80, 0);
    assert!(matches!(
        sent,
        Ok(Effect::Send(Message { vector: 0x80, .. }))
    ));
    // 12.4.1: reads are of aligned words; parts of one are read as such.
    assert_eq!(page.load(0x32, 2, 0), 0x5);
    assert_eq!(page.load(0x32, 4, 0), 0);
}

/// 12.6.2.2: the flat model, and both cluster models.
#[test]
fn logical_destinations_are_those_of_the_model() {
    let mut flat = lapic(0, ENABLED);
    flat.store(0xd0, 4, 0x0400_0000, 0);
    assert!(flat.is_destination(0x0c, true, false));
    assert!(!flat.is_destination(0x08, true, false));
    assert!(flat.is_destination(0xff, true, false));
    let mut cluster = lapic(0, ENABLED);
    cluster.store(0xe0, 4, 0, 0);
    cluster.store(0xd0, 4, 0x2400_0000, 0);
    assert!(cluster.is_destination(0x2c, true, false));
    assert!(!cluster.is_destination(0x1c, true, false));
    // An x2APIC: cluster in the upper half, ID 0x25 is bit 5 of cluster 2.
    let x2apic = lapic(0x25, X2APIC);
    assert!(x2apic.is_destination(2 << 16 | 1 << 5, true, false));
    assert!(!x2apic.is_destination(1 << 5, true, false));
    assert!(x2apic.is_destination(u32::MAX, false, false));
    assert!(!x2apic.is_destination(0xff, false, false));
    assert!(x2apic.is_destination(0xff, false, true), "from a device");
}

#[test]
fn shorthands_and_lowest_priority_choose_receivers() {
    let mut lapics = [0, 1, 2].map(|id| lapic(id, ENABLED));
    let to = |low: u32| Message::of_icr(low, 0);
    assert_eq!(deliver(&mut lapics, Some(1), &to(1 << 18 | 0x50)), Some(1));
    assert_eq!(lapics[1].acknowledge(), Some(0x50));
    assert_eq!(deliver(&mut lapics, Some(1), &to(3 << 18 | 0x61)), Some(2));
    let taken = [0, 1, 2].map(|id: usize| lapics[id].acknowledge());
    assert_eq!(taken, [Some(0x61), None, Some(0x61)]);
    let lowest = Message {
        mode: DeliveryMode::LowestPriority,
        destination: 0xff,
        ..fixed(0x71)
    };
    assert_eq!(deliver(&mut lapics, None, &lowest), Some(1), "one of them");
    let nobody = Message {
        destination: 9,
        ..fixed(0x71)
    };
    assert_eq!(deliver(&mut lapics, None, &nobody), Some(0));
    let alone = &mut lapics[..1];
    assert_eq!(deliver(alone, Some(0), &to(3 << 18 | 0x71)), None);
}

/// 12.5.4: the divider's encoding, and what the three modes do.
#[test]
fn timer_counts_by_its_divider() {
    let divisors = [
        (0, 2),
        (1, 4),
        (2, 8),
        (3, 16),
        (8, 32),
        (9, 64),
        (0xa, 128),
        (0xb, 1),
    ];
    for (bits, divisor) in divisors {
        let mut lapic = lapic(0, ENABLED);
        lapic.store(0x3e0, 4, bits, 0);
        lapic.store(0x320, 4, 0x40, 0);
        lapic.store(0x380, 4, 1000, 50);
        assert_eq!(lapic.timer_target(), Some(50 + 1000 * divisor), "{bits:#x}");
        assert_eq!(lapic.load(0x390, 4, 50 + 400 * divisor), 600);
        assert!(!lapic.tick(49 + 1000 * divisor));
        assert!(lapic.tick(50 + 1000 * divisor));
        assert_eq!(lapic.vector(), Some(0x40));
        assert_eq!(
            (lapic.timer_target(), lapic.load(0x390, 4, 1 << 40)),
            (None, 0)
        );
    }
}

#[test]
fn periodic_timer_goes_on_and_missed_ticks_are_one() {
    let mut lapic = lapic(0, ENABLED);
    lapic.store(0x3e0, 4, 0xb, 0);
    lapic.store(0x320, 4, 0x2_0040, 0);
    lapic.store(0x380, 4, 1_000_000, 0);
    assert!(lapic.tick(1_000_000));
    assert_eq!(lapic.timer_target(), Some(2_000_000));
    assert!(lapic.tick(5_500_000));
    assert_eq!(lapic.timer_target(), Some(6_000_000));
    lapic.store(0x380, 4, 0, 5_500_000);
    assert_eq!(lapic.timer_target(), None, "0 stops it");
}

/// 12.4.7.1, and what `KVM_SET_LAPIC` gives back.
#[test]
fn registers_are_saved_and_restored() {
    let mut first = lapic(5, X2APIC);
    first.accept(&fixed(0x80));
    first.wrmsr(reg::TPR, 0x20, 0).unwrap();
    let saved = first.state(false, 0);
    assert_eq!(
        saved[0x20..0x24],
        [0, 0, 0, 5],
        "an ID in the xAPIC's place"
    );
    assert_eq!(first.state(true, 0)[0x20..0x24], [5, 0, 0, 0]);
    let mut second = lapic(5, X2APIC);
    second.set_state(&saved, false, 0).unwrap();
    assert_eq!(second.state(false, 0), saved);
    assert_eq!(second.acknowledge(), Some(0x80));
    assert_eq!(second.set_state(&saved, true, 0), Err(Invalid));
}

#[test]
fn init_leaves_the_base_and_the_id() {
    let mut lapic = lapic(2, ENABLED);
    lapic.store(0x20, 4, 7 << 24, 0);
    lapic.accept(&fixed(0x80));
    let init = Message {
        mode: DeliveryMode::Init,
        ..Message::default()
    };
    lapic.accept(&init);
    lapic.accept(&Message {
        mode: DeliveryMode::StartUp,
        ..fixed(0x12)
    });
    let start_up = lapic.take_start_up();
    assert!(start_up.init);
    assert_eq!(start_up.sipi, Some(0x12));
    lapic.init();
    assert_eq!(lapic.load(0x20, 4, 0), 7 << 24);
    assert_eq!(lapic.load(0xf0, 4, 0), 0xff);
    assert_eq!(lapic.load(0x350, 4, 0), u64::from(LVT_MASKED));
    assert_eq!(lapic.vector(), None);
}
