//! What a client does to the controllers by ioctl, and what they show of it by ioctl. No guest runs.

use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::KVM_IRQ_ROUTING_MSI;
use msrgate_core::Errno;
use msrgate_tests::door::{Door, KernelDoor, SoftDoor};
use msrgate_tests::skip::kvm_or_skip;

use crate::board::{Board, PATIENCE};

const GET_IRQCHIP: u32 = 0xc208_ae62;
const SET_IRQCHIP: u32 = 0x8208_ae63;
const GET_PIT: u32 = 0xc048_ae65;
const SET_PIT: u32 = 0x8048_ae66;
const IRQ_LINE_STATUS: u32 = 0xc008_ae67;
const SET_GSI_ROUTING: u32 = 0x4008_ae6a;
const REINJECT_CONTROL: u32 = 0xae71;
const GET_LAPIC: u32 = 0x8400_ae8e;
const SET_LAPIC: u32 = 0x4400_ae8f;
const GET_PIT2: u32 = 0x8070_ae9f;
const SET_PIT2: u32 = 0x4070_aea0;
const SIGNAL_MSI: u32 = 0x4020_aea5;

/// `kvm_irqchip`: a number, padding, and the chip's state.
type Irqchip = [u8; 520];
const FIRST_PIC: u32 = 0;
const IOAPIC: u32 = 2;
/// `kvm_pic_state`.
const PIC_IRR: usize = 8 + 1;
const PIC_IMR: usize = 8 + 2;
const PIC_BASE: usize = 8 + 5;
/// `kvm_ioapic_state`.
const IOAPIC_IRR: usize = 8 + 16;
const IOAPIC_ENTRIES: usize = 8 + 24;
/// `kvm_pit_channel_state`, of which there are three: 24 bytes.
const PIT_RW_MODE: usize = 12;
const PIT_MODE: usize = 13;
const CHANNEL: usize = 24;

/// A VM whose only vCPU has its local APIC enabled by software.
pub(crate) struct Bench<'a, D: Door> {
    pub(crate) board: Board<'a, D>,
    pub(crate) vcpu: D::Handle,
}

impl<'a, D: Door> Bench<'a, D> {
    pub(crate) fn new(door: &'a D) -> Self {
        const SVR: usize = 0xf0;
        let board = Board::new(door).unwrap();
        let vcpu = board.vcpu(0).unwrap();
        let bench = Self { board, vcpu };
        let mut lapic = bench.lapic();
        lapic[SVR..SVR + 2].copy_from_slice(&[0xff, 1]);
        bench.board.ask(&bench.vcpu, SET_LAPIC, &mut lapic).unwrap();
        bench
    }

    pub(crate) fn ask<T>(&self, request: u32, argument: &mut T) -> Result<i32, Errno> {
        self.board.ask(&self.board.vm, request, argument)
    }

    fn lapic(&self) -> [u8; 1024] {
        let mut lapic = [0; 1024];
        self.board.ask(&self.vcpu, GET_LAPIC, &mut lapic).unwrap();
        lapic
    }

    /// Whether the local APIC's IRR has the vector.
    pub(crate) fn is_requested(&self, vector: usize) -> bool {
        let byte = 0x200 + 0x10 * (vector / 32) + vector / 8 % 4;
        self.lapic()[byte] >> (vector % 8) & 1 == 1
    }

    /// Waits until it does.
    pub(crate) fn wait_for(&self, vector: usize) -> bool {
        comes(|| self.is_requested(vector))
    }

    /// Sets the entry of a pin of the I/O APIC.
    pub(crate) fn set_pin(&self, pin: usize, entry: i32) {
        let mut ioapic = self.irqchip(IOAPIC);
        ioapic[IOAPIC_ENTRIES + 8 * pin..][..8].copy_from_slice(&i64::from(entry).to_le_bytes());
        self.ask(SET_IRQCHIP, &mut ioapic).unwrap();
    }

    /// Whether a pin of the I/O APIC waits for its line to fall.
    pub(crate) fn pin_is_high(&self, pin: usize) -> bool {
        let ioapic = self.irqchip(IOAPIC);
        ioapic[IOAPIC_IRR + pin / 8] >> (pin % 8) & 1 == 1
    }

    /// Waits until it does.
    pub(crate) fn pin_rises(&self, pin: usize) -> bool {
        comes(|| self.pin_is_high(pin))
    }

    fn irqchip(&self, chip: u32) -> Irqchip {
        let mut state = [0; 520];
        state[..4].copy_from_slice(&chip.to_le_bytes());
        self.ask(GET_IRQCHIP, &mut state).unwrap();
        state
    }

    /// `KVM_IRQ_LINE_STATUS`.
    fn set_line(&self, gsi: u32, high: bool) -> i32 {
        let mut line = [gsi, u32::from(high)];
        self.ask(IRQ_LINE_STATUS, &mut line).unwrap();
        line[0].cast_signed()
    }

    /// Routes of type, three words, after their GSI.
    pub(crate) fn set_routes(&self, routes: &[(u32, u32, [u32; 3])]) -> Result<i32, Errno> {
        let mut words = vec![u32::try_from(routes.len()).unwrap(), 0];
        for (gsi, kind, target) in routes {
            words.extend([*gsi, *kind, 0, 0]);
            words.extend(target);
            words.extend([0; 5]);
        }
        self.ask(
            SET_GSI_ROUTING,
            words.as_mut_slice().first_chunk_mut::<2>().unwrap(),
        )
    }

    fn send_msi(&self, address: u32, data: u32, flags: u32) -> Result<i32, Errno> {
        let mut msi = [address, 0, data, flags, 0, 0, 0, 0];
        self.ask(SIGNAL_MSI, &mut msi)
    }

    fn timer_is_requested(&self) -> bool {
        self.irqchip(FIRST_PIC)[PIC_IRR] & 1 == 1
    }

    /// Whether the PIT's interrupt comes to the 8259. A tick is a millisecond.
    fn timer_ticks(&self, patience: Duration) -> bool {
        let mut pic = self.irqchip(FIRST_PIC);
        (pic[PIC_IRR], pic[PIC_IMR]) = (0, 0);
        self.ask(SET_IRQCHIP, &mut pic).unwrap();
        let end = Instant::now() + patience;
        while !self.timer_is_requested() && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
        self.timer_is_requested()
    }
}

fn comes(what: impl Fn() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    while !what() && Instant::now() < end {
        thread::sleep(Duration::from_millis(1));
    }
    what()
}

/// Channel 0 with 1193 counts, both bytes, mode 2, in a state of this size.
fn millisecond<const BYTES: usize>() -> [u8; BYTES] {
    let mut state = [0; BYTES];
    state[..2].copy_from_slice(&1193_u16.to_le_bytes());
    (state[PIT_RW_MODE], state[PIT_MODE]) = (3, 2);
    state
}

/// Runs `test` on the embedded KVM, then on the real one.
macro_rules! on_both {
    ($name:ident) => {{
        $name(&Bench::new(&SoftDoor::new()));
        if let Some(kvm) = kvm_or_skip() {
            $name(&Bench::new(&KernelDoor::new(&kvm)));
        }
    }};
}

#[test]
fn signalled_message_requests_its_vector() {
    fn test<D: Door>(bench: &Bench<'_, D>) {
        assert_eq!(bench.send_msi(0xfee0_0000, 0x45, 0), Ok(1));
        assert!(bench.is_requested(0x45));
        assert_eq!(bench.send_msi(0xfee0_0000, 0x45, 0), Ok(1), "once more");
        // Nobody has this ID; no such flag.
        assert_eq!(bench.send_msi(0xfee0_9000, 0x46, 0), Ok(0));
        assert_eq!(bench.send_msi(0xfee0_0000, 0x46, 2), Err(Errno::EINVAL));
        assert!(!bench.is_requested(0x46));
    }
    on_both!(test);
}

#[test]
fn routes_replace_the_default_ones() {
    fn test<D: Door>(bench: &Bench<'_, D>) {
        const TO_PIN: u32 = 1;
        assert_eq!(bench.set_line(4, true), 1, "the 8259");
        assert_eq!(bench.set_line(20, true), -1, "masked");
        bench.set_line(4, false);
        let mut ioapic = bench.irqchip(IOAPIC);
        ioapic[IOAPIC_ENTRIES + 8 * 3..][..8].copy_from_slice(&0x52_u64.to_le_bytes());
        bench.ask(SET_IRQCHIP, &mut ioapic).unwrap();
        let message = (40, KVM_IRQ_ROUTING_MSI, [0xfee0_0000, 0, 0x51]);
        let routes = [
            message,
            (41, TO_PIN, [IOAPIC, 3, 0]),
            (41, TO_PIN, [FIRST_PIC, 5, 0]),
        ];
        assert_eq!(bench.set_routes(&routes), Ok(0));
        assert_eq!(bench.set_line(4, true), -1, "leads nowhere now");
        assert_eq!(bench.set_line(40, true), 1);
        assert_eq!(bench.set_line(41, true), 2, "to both");
        assert!(bench.is_requested(0x51) && bench.is_requested(0x52));
        assert_eq!(bench.irqchip(FIRST_PIC)[PIC_IRR], 1 << 4 | 1 << 5);
        // No such chip, pin, type or GSI; two messages: the old table stays in force.
        let bad = [
            vec![(4, TO_PIN, [3, 0, 0])],
            vec![(4, TO_PIN, [IOAPIC, 24, 0])],
            vec![(4, 9, [0, 0, 0])],
            vec![(4096, TO_PIN, [IOAPIC, 0, 0])],
            vec![message, message],
        ];
        for routes in bad {
            assert_eq!(bench.set_routes(&routes), Err(Errno::EINVAL), "{routes:x?}");
        }
        bench.set_line(41, false);
        assert_eq!(bench.set_line(41, true), 1, "the 8259 has one waiting");
    }
    on_both!(test);
}

#[test]
fn restored_ioapic_sends_what_is_pending() {
    fn test<D: Door>(bench: &Bench<'_, D>) {
        let place = IOAPIC_ENTRIES + 8 * 20;
        let mut ioapic = bench.irqchip(IOAPIC);
        assert_eq!(ioapic[place..][..8], 0x1_0000_u64.to_le_bytes(), "masked");
        ioapic[place..][..8].copy_from_slice(&0x8061_u64.to_le_bytes());
        ioapic[IOAPIC_IRR..][..4].copy_from_slice(&(1_u32 << 20).to_le_bytes());
        bench.ask(SET_IRQCHIP, &mut ioapic).unwrap();
        assert!(bench.is_requested(0x61));
        let after = bench.irqchip(IOAPIC);
        assert_eq!(after[place..][..8], 0xc061_u64.to_le_bytes(), "remote IRR");
        assert_eq!(after[IOAPIC_IRR..][..4], (1_u32 << 20).to_le_bytes());
    }
    on_both!(test);
}

#[test]
fn restored_8259_masks_and_keeps_its_words() {
    fn test<D: Door>(bench: &Bench<'_, D>) {
        let mut pic = bench.irqchip(FIRST_PIC);
        (pic[PIC_IMR], pic[PIC_BASE]) = (1 << 5, 0x30);
        bench.ask(SET_IRQCHIP, &mut pic).unwrap();
        assert_eq!((bench.set_line(5, true), bench.set_line(6, true)), (-1, 1));
        let after = bench.irqchip(FIRST_PIC);
        assert_eq!((after[PIC_IMR], after[PIC_BASE]), (1 << 5, 0x30));
        assert_eq!(after[PIC_IRR], 1 << 5 | 1 << 6);
    }
    on_both!(test);
}

#[test]
fn restored_pit_ticks() {
    fn test<D: Door>(bench: &Bench<'_, D>) {
        let patience = Duration::from_secs(5);
        assert!(!bench.timer_ticks(Duration::from_millis(20)), "no mode yet");
        let mut old: [u8; 72] = millisecond();
        old[CHANNEL + PIT_MODE] = 3;
        bench.ask(SET_PIT, &mut old).unwrap();
        assert!(bench.timer_ticks(patience));
        let mut state = [0_u8; 72];
        bench.ask(GET_PIT, &mut state).unwrap();
        assert_eq!(state[..2], 1193_u16.to_le_bytes());
        assert_eq!((state[PIT_MODE], state[CHANNEL + PIT_MODE]), (2, 3));
        // With the HPET in its place it does not tick.
        let mut state: [u8; 112] = millisecond();
        state[72] = 1;
        bench.ask(SET_PIT2, &mut state).unwrap();
        assert!(!bench.timer_ticks(Duration::from_millis(20)));
        let mut state = [0_u8; 112];
        bench.ask(GET_PIT2, &mut state).unwrap();
        assert_eq!((state[PIT_RW_MODE], state[72]), (3, 1));
        bench.ask(SET_PIT2, &mut millisecond::<112>()).unwrap();
        assert!(bench.timer_ticks(patience));
    }
    on_both!(test);
}

/// Ticks wait for the guest's acknowledgement, unless the client gives up on that.
#[test]
fn timer_without_reinjection_does_not_wait_for_its_guest() {
    fn test<D: Door>(bench: &Bench<'_, D>) {
        let patience = Duration::from_secs(5);
        bench.ask(SET_PIT2, &mut millisecond::<112>()).unwrap();
        assert!(bench.timer_ticks(patience));
        assert!(
            !bench.timer_ticks(Duration::from_millis(20)),
            "not acknowledged"
        );
        bench.ask(REINJECT_CONTROL, &mut [0_u8; 32]).unwrap();
        assert!(bench.timer_ticks(patience));
        assert!(bench.timer_ticks(patience));
    }
    on_both!(test);
}
