//! Event descriptors that raise interrupts, and that writes of the guest signal.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::Duration;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use kvm_bindings::{
    KVM_EXIT_IO, KVM_EXIT_MMIO, KVM_IRQ_ROUTING_MSI, KVM_IRQFD_FLAG_DEASSIGN as DEASSIGN,
    KVM_IRQFD_FLAG_RESAMPLE as RESAMPLE, kvm_ioeventfd, kvm_irqfd,
};
use msrgate_core::Errno;
use msrgate_tests::door::Door;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io;

use crate::board::{Board, PORT, on_both};
use crate::control::Bench;
use crate::{EOI, IOAPIC, apic, count, done, enable_apic, note, spin_for, wait_for};

const CREATE_VM: u32 = 0xae01;
const IRQFD: u32 = 0x4020_ae76;
const IOEVENTFD: u32 = 0x4040_ae79;
const CHECK_EXTENSION: u32 = 0xae03;

/// A pin of the I/O APIC that is none of the 8259s' too.
const PIN: u32 = 20;
/// An entry of it that sends vector 0x45, for an edge and for a level.
const EDGE: i32 = 0x45;
const LEVEL: i32 = 0x8045;

/// An event descriptor.
struct Event(OwnedFd);

impl Event {
    fn new() -> Self {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Self(eventfd(0, flags).unwrap())
    }

    fn signal(&self) {
        io::write(&self.0, &1_u64.to_ne_bytes()).unwrap();
    }

    /// What has been added since it was asked last.
    fn take(&self) -> u64 {
        let mut count = [0; 8];
        match io::read(&self.0, &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(error) => {
                assert_eq!(error, io::Errno::AGAIN);
                0
            }
        }
    }

    fn number(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

impl<D: Door> Board<'_, D> {
    fn irqfd(&self, event: i32, gsi: u32, flags: u32, ended: i32) -> Result<i32, Errno> {
        let mut irqfd = kvm_irqfd {
            fd: event.cast_unsigned(),
            gsi,
            flags,
            resamplefd: ended.cast_unsigned(),
            ..kvm_irqfd::default()
        };
        self.ask(&self.vm, IRQFD, &mut irqfd)
    }

    fn ioeventfd(&self, event: i32, (flags, addr, len, datamatch): Place) -> Result<i32, Errno> {
        let mut ioeventfd = kvm_ioeventfd {
            datamatch,
            addr,
            len,
            fd: event,
            flags,
            ..kvm_ioeventfd::default()
        };
        self.ask(&self.vm, IOEVENTFD, &mut ioeventfd)
    }
}

/// Flags, address, length and value.
type Place = (u32, u64, u32, u64);
const MATCH: u32 = 1;
const PIO: u32 = 2;
const GIVE_BACK: u32 = 4;
const CCW: u32 = 8;

#[test]
fn capabilities_say_that_they_are_there() {
    fn test<D: Door>(door: &D) {
        // IRQFD, IOEVENTFD, IRQFD_RESAMPLE, IOEVENTFD_NO_LENGTH, IOEVENTFD_ANY_LENGTH
        for capability in [32, 36, 82, 100, 122] {
            let answer = door.ioctl(door.system(), CHECK_EXTENSION, capability);
            assert_eq!(answer, Ok(1), "{}: {capability}", door.name());
        }
    }
    on_both!(test);
}

#[test]
fn irqfd_refuses_as_the_kernel_does() {
    fn test<D: Door>(door: &D) {
        let board = Board::new(door).unwrap();
        let [event, other] = [Event::new(), Event::new()];
        let (a, b) = (event.number(), other.number());
        let no_event = File::open("/dev/null").unwrap();
        let no_event = no_event.as_raw_fd();
        let calls = [
            ((a, PIN, 4, 0), Err(Errno::EINVAL), "no such flag"),
            ((-1, PIN, 0, 0), Err(Errno::EBADF), "no descriptor"),
            ((no_event, PIN, 0, 0), Err(Errno::EINVAL), "no event"),
            ((a, PIN, RESAMPLE, -1), Err(Errno::EBADF), "for the end"),
            ((a, PIN, RESAMPLE, no_event), Err(Errno::EINVAL), "likewise"),
            ((-1, PIN, DEASSIGN, 0), Err(Errno::EBADF), "to give back"),
            ((no_event, PIN, DEASSIGN, 0), Err(Errno::EINVAL), "likewise"),
            ((a, PIN, DEASSIGN, 0), Ok(0), "it need not be there"),
            ((a, PIN, 0, 0), Ok(0), "taken"),
            ((a, PIN, 0, 0), Err(Errno::EBUSY), "twice"),
            ((a, 5, 0, 0), Err(Errno::EBUSY), "for another GSI"),
            ((b, PIN, RESAMPLE, a), Ok(0), "another event for the GSI"),
            ((a, 5, DEASSIGN, 0), Ok(0), "of another GSI"),
            ((a, PIN, 0, 0), Err(Errno::EBUSY), "still there"),
            ((a, PIN, DEASSIGN | RESAMPLE, -1), Ok(0), "given back"),
            ((a, 5000, 0, 0), Ok(0), "a GSI that leads nowhere"),
        ];
        for ((event, gsi, flags, ended), expected, what) in calls {
            let answer = board.irqfd(event, gsi, flags, ended);
            assert_eq!(answer, expected, "{}: {what}", door.name());
        }
        // A duplicate is the same event.
        let duplicate = event.0.try_clone().unwrap();
        let answer = board.irqfd(duplicate.as_raw_fd(), PIN, 0, 0);
        assert_eq!(answer, Err(Errno::EBUSY), "{}", door.name());
        // Without controllers there is nothing to raise.
        let vm = door.create(door.system(), CREATE_VM, 0).unwrap();
        let mut irqfd = kvm_irqfd {
            fd: a.cast_unsigned(),
            ..kvm_irqfd::default()
        };
        let answer = board.ask(&vm, IRQFD, &mut irqfd);
        assert_eq!(answer, Err(Errno::EINVAL), "{}", door.name());
    }
    on_both!(test);
}

#[test]
fn event_raises_its_gsi_until_it_is_given_back() {
    fn test<D: Door>(door: &D) {
        const MESSAGE: u32 = 40;
        const TO_PIN: u32 = 1;
        let bench = Bench::new(door);
        let board = &bench.board;
        let events: [Event; 3] = std::array::from_fn(|_| Event::new());
        let [pin, message, early] = events.each_ref().map(Event::number);
        bench.set_pin(20, EDGE);
        bench.set_pin(21, 0x51);
        let routes = [
            (PIN, TO_PIN, [2, 20, 0]),
            (PIN + 1, TO_PIN, [2, 21, 0]),
            (MESSAGE, KVM_IRQ_ROUTING_MSI, [0xfee0_0000, 0, 0x61]),
        ];
        bench.set_routes(&routes).unwrap();
        board.irqfd(pin, PIN, 0, 0).unwrap();
        board.irqfd(message, MESSAGE, 0, 0).unwrap();
        events[0].signal();
        assert!(bench.wait_for(0x45), "{}: by a pin", door.name());
        events[1].signal();
        assert!(bench.wait_for(0x61), "{}: by a message", door.name());
        assert_eq!(events[1].take(), 0, "{}: KVM has taken it", door.name());
        events[2].signal();
        board.irqfd(early, PIN + 1, 0, 0).unwrap();
        assert!(bench.wait_for(0x51), "{}: signalled before", door.name());
        // The route changes under the event.
        let routes = [(MESSAGE, KVM_IRQ_ROUTING_MSI, [0xfee0_0000, 0, 0x62])];
        bench.set_routes(&routes).unwrap();
        events[1].signal();
        assert!(bench.wait_for(0x62), "{}: another message", door.name());
        // What is given back belongs to the client alone.
        board.irqfd(message, MESSAGE, DEASSIGN, 0).unwrap();
        let routes = [(MESSAGE, KVM_IRQ_ROUTING_MSI, [0xfee0_0000, 0, 0x63])];
        bench.set_routes(&routes).unwrap();
        events[1].signal();
        thread::sleep(Duration::from_millis(20));
        assert_eq!(events[1].take(), 1, "{}", door.name());
        assert!(!bench.is_requested(0x63), "{}", door.name());
    }
    on_both!(test);
}

#[test]
fn irqfds_end_with_the_vm() {
    fn test<D: Door>(door: &D) {
        let event = Event::new();
        let board = Board::new(door).unwrap();
        let vcpu = board.vcpu(0).unwrap();
        board.irqfd(event.number(), PIN, 0, 0).unwrap();
        drop(board);
        event.signal();
        thread::sleep(Duration::from_millis(20));
        assert_eq!(event.take(), 1, "{}: nobody waits", door.name());
        drop(vcpu);
    }
    on_both!(test);
}

#[test]
fn client_may_close_its_descriptors() {
    fn test<D: Door>(door: &D) {
        let bench = Bench::new(door);
        let board = &bench.board;
        bench.set_pin(20, EDGE);
        for _ in 0..100 {
            let [event, ended, write] = [Event::new(), Event::new(), Event::new()];
            let (number, ended) = (event.number(), ended.number());
            board.irqfd(number, PIN, RESAMPLE, ended).unwrap();
            let place = (PIO, 0x510, 1, 0);
            board.ioeventfd(write.number(), place).unwrap();
            event.signal();
            let (flags, address, len, value) = place;
            let back = (flags | GIVE_BACK, address, len, value);
            board.ioeventfd(write.number(), back).unwrap();
        }
        let event = Event::new();
        board.irqfd(event.number(), PIN, 0, 0).unwrap();
        event.signal();
        assert!(bench.wait_for(0x45), "{}", door.name());
    }
    on_both!(test);
}

/// Sets the lower half of an entry, which has the vector, the mode and the mask.
fn set_pin(a: &mut CodeAssembler, entry: i32) -> Result<(), IcedError> {
    const REGISTER: i32 = 0x10 + 2 * PIN.cast_signed();
    a.mov(dword_ptr(IOAPIC), REGISTER)?;
    a.mov(dword_ptr(IOAPIC + 0x10), entry)
}

fn tell(a: &mut CodeAssembler, what: i32) -> Result<(), IcedError> {
    a.mov(al, what)?;
    a.mov(dx, i32::from(PORT))?;
    a.out(dx, al)
}

/// A processor that halts, and one that spins.
#[test]
fn event_wakes_a_halted_vcpu() {
    fn test<D: Door>(door: &D) {
        let event = Event::new();
        let board = Board::new(door).unwrap();
        let vcpu = board.vcpu(0).unwrap();
        board.irqfd(event.number(), PIN, 0, 0).unwrap();
        board
            .start(&vcpu, &[(0x45, &count(0))], |a| {
                enable_apic(a)?;
                set_pin(a, EDGE)?;
                tell(a, 1)?;
                wait_for(a, 0, 1)?;
                tell(a, 2)?;
                a.sti()?;
                a.mov(note(0), 0)?;
                spin_for(a, 0)?;
                tell(a, 3)
            })
            .unwrap();
        assert_eq!(board.run(&vcpu), Ok(1), "{}: ready", door.name());
        for expected in [2, 3] {
            thread::scope(|scope| {
                scope.spawn(|| {
                    thread::sleep(Duration::from_millis(20));
                    event.signal();
                });
                assert_eq!(board.run(&vcpu), Ok(expected), "{}", door.name());
            });
        }
    }
    on_both!(test);
}

/// The line is high until the guest ends the interrupt; the client hears of that, and signals again if its device
/// still wants to.
#[test]
fn resampled_line_falls_when_the_guest_ends_the_interrupt() {
    fn test<D: Door>(door: &D) {
        let [event, ended, other, shared] = std::array::from_fn(|_| Event::new());
        let board = Board::new(door).unwrap();
        let vcpu = board.vcpu(0).unwrap();
        let handler = |a: &mut CodeAssembler| {
            a.inc(note(0))?;
            a.push(rax)?;
            a.push(rdx)?;
            tell(a, 1)?;
            a.mov(apic(EOI), 0)?;
            tell(a, 2)?;
            a.pop(rdx)?;
            a.pop(rax)?;
            a.iretq()
        };
        board
            .start(&vcpu, &[(0x45, &handler)], |a| {
                enable_apic(a)?;
                set_pin(a, LEVEL)?;
                tell(a, 3)?;
                wait_for(a, 0, 2)?;
                tell(a, 4)
            })
            .unwrap();
        for (event, ended) in [(&event, &ended), (&other, &shared)] {
            let answer = board.irqfd(event.number(), PIN, RESAMPLE, ended.number());
            assert_eq!(answer, Ok(0), "{}", door.name());
        }
        assert_eq!(board.run(&vcpu), Ok(3), "{}: ready", door.name());
        for _ in 0..2 {
            event.signal();
            assert_eq!(board.run(&vcpu), Ok(1), "{}: raised", door.name());
            // A para-virtual KVM (6.18) takes the interrupt for ended when the guest has got it.
            let early = [&ended, &shared].map(Event::take);
            assert!(early == [0, 0] || door.name() == "kvm", "not ended");
            assert_eq!(board.run(&vcpu), Ok(2), "{}: ended", door.name());
            let heard = [&ended, &shared].map(Event::take);
            let heard = [heard[0] + early[0], heard[1] + early[1]];
            assert_eq!(heard, [1, 1], "{}", door.name());
        }
        assert_eq!(board.run(&vcpu), Ok(4), "{}", door.name());
        assert_eq!(board.note(0), 2, "{}", door.name());
    }
    on_both!(test);
}

/// What a masked pin has waiting may be over when it is unmasked: the client is asked first.
#[test]
fn unmasked_pin_asks_the_resampler_whether_its_line_is_still_high() {
    fn test<D: Door>(door: &D) {
        const MASKED: i32 = 1 << 16;
        let [event, ended] = [Event::new(), Event::new()];
        let bench = Bench::new(door);
        let (board, vcpu) = (&bench.board, &bench.vcpu);
        board
            .start(vcpu, &[(0x45, &count(0))], |a| {
                enable_apic(a)?;
                set_pin(a, MASKED | LEVEL)?;
                tell(a, 1)?;
                set_pin(a, LEVEL)?;
                tell(a, 2)?;
                wait_for(a, 0, 1)?;
                tell(a, 3)
            })
            .unwrap();
        board
            .irqfd(event.number(), PIN, RESAMPLE, ended.number())
            .unwrap();
        assert_eq!(board.run(vcpu), Ok(1), "{}: masked", door.name());
        event.signal();
        assert!(bench.pin_rises(20), "{}", door.name());
        assert_eq!(board.run(vcpu), Ok(2), "{}: unmasked", door.name());
        assert_eq!(ended.take(), 1, "{}: asked", door.name());
        assert!(!bench.is_requested(0x45), "{}", door.name());
        event.signal();
        assert_eq!(board.run(vcpu), Ok(3), "{}: still high", door.name());
        assert_eq!(ended.take(), 1, "{}", door.name());
    }
    on_both!(test);
}

/// With the last resampler of a GSI, what it raised is gone.
#[test]
fn line_falls_when_its_resampler_is_given_back() {
    fn test<D: Door>(door: &D) {
        let bench = Bench::new(door);
        let board = &bench.board;
        let [event, ended] = [Event::new(), Event::new()];
        let (a, b) = (event.number(), ended.number());
        bench.set_pin(20, LEVEL);
        board.irqfd(a, PIN, RESAMPLE, b).unwrap();
        assert!(!bench.pin_is_high(20), "{}", door.name());
        event.signal();
        assert!(bench.pin_rises(20), "{}", door.name());
        board.irqfd(a, PIN, DEASSIGN | RESAMPLE, b).unwrap();
        assert!(!bench.pin_is_high(20), "{}", door.name());
        assert_eq!(ended.take(), 0, "{}: nothing has ended", door.name());
    }
    on_both!(test);
}

/// Which of the test's descriptors.
const FIRST: usize = 0;
const SECOND: usize = 1;
const NO_EVENT: usize = 2;
const CLOSED: usize = 3;

#[rustfmt::skip]
const IOEVENTFD_CALLS: [(usize, Place, Result<i32, Errno>, &str); 27] = [
    (FIRST, (PIO, 0x510, 3, 0), Err(Errno::EINVAL), "length 3"),
    (FIRST, (PIO, 0x510, 16, 0), Err(Errno::EINVAL), "length 16"),
    (FIRST, (0, u64::MAX, 1, 0), Err(Errno::EINVAL), "beyond the end"),
    (FIRST, (32, 0, 1, 0), Err(Errno::EINVAL), "no such flag"),
    (FIRST, (MATCH, 0, 0, 0), Err(Errno::EINVAL), "value of no length"),
    (CLOSED, (PIO, 0x510, 1, 0), Err(Errno::EBADF), "no descriptor"),
    (NO_EVENT, (PIO, 0x510, 1, 0), Err(Errno::EINVAL), "no event"),
    (CLOSED, (PIO, 0x510, 3, 0), Err(Errno::EINVAL), "length first"),
    (FIRST, (PIO, 0x510, 2, 0), Ok(0), "a port"),
    (FIRST, (PIO, 0x510, 2, 0), Err(Errno::EEXIST), "twice"),
    (SECOND, (PIO, 0x510, 2, 0), Err(Errno::EEXIST), "another event"),
    (SECOND, (PIO | MATCH, 0x510, 2, 7), Err(Errno::EEXIST), "one value"),
    (SECOND, (PIO, 0x510, 0, 0), Err(Errno::EEXIST), "any length"),
    (SECOND, (PIO, 0x510, 1, 0), Ok(0), "another length"),
    (SECOND, (0, 0x510, 2, 0), Ok(0), "in memory"),
    (SECOND, (CCW, 0x510, 2, 0), Ok(0), "on nobody's bus"),
    (SECOND, (PIO | CCW, 0x510, 2, 0), Err(Errno::EEXIST), "a port first"),
    (FIRST, (MATCH, 0x520, 4, 1), Ok(0), "one value"),
    (FIRST, (MATCH, 0x520, 4, 2), Ok(0), "and another"),
    (FIRST, (MATCH, 0x520, 4, 2), Err(Errno::EEXIST), "the same"),
    (SECOND, (0, 0x530, 0, 0), Ok(0), "any length"),
    (SECOND, (0, 0x530, 8, 0), Err(Errno::EEXIST), "no other then"),
    (SECOND, (PIO | GIVE_BACK, 0x510, 2, 0), Err(Errno::ENOENT), "not its own"),
    (FIRST, (PIO | GIVE_BACK, 0x510, 4, 0), Err(Errno::ENOENT), "not this length"),
    (FIRST, (GIVE_BACK | MATCH, 0x520, 4, 3), Err(Errno::ENOENT), "not this value"),
    (CLOSED, (PIO | GIVE_BACK, 0x510, 2, 0), Err(Errno::EBADF), "no descriptor"),
    (FIRST, (PIO | GIVE_BACK, 0x510, 3, 0), Err(Errno::ENOENT), "no such length"),
];

#[test]
fn ioeventfd_refuses_as_the_kernel_does() {
    fn test<D: Door>(door: &D) {
        let board = Board::new(door).unwrap();
        let [event, other] = [Event::new(), Event::new()];
        let (a, b) = (event.number(), other.number());
        let no_event = File::open("/dev/null").unwrap();
        let descriptors = [a, b, no_event.as_raw_fd(), -1];
        for (which, place, expected, what) in IOEVENTFD_CALLS {
            let answer = board.ioeventfd(descriptors[which], place);
            assert_eq!(answer, expected, "{}: {place:x?}: {what}", door.name());
        }
        let given_back = [
            (a, (PIO | GIVE_BACK, 0x510, 2, 99)),
            (a, (GIVE_BACK | MATCH, 0x520, 4, 2)),
            (b, (GIVE_BACK, 0x530, 0, 0)),
        ];
        for (event, place) in given_back {
            assert_eq!(board.ioeventfd(event, place), Ok(0), "{}", door.name());
            let gone = board.ioeventfd(event, place);
            assert_eq!(gone, Err(Errno::ENOENT), "{}", door.name());
        }
    }
    on_both!(test);
}

#[test]
fn writes_signal_and_what_is_no_such_write_leaves() {
    fn test<D: Door>(door: &D) {
        let board = Board::new(door).unwrap();
        let vcpu = board.vcpu(0).unwrap();
        let places: [Place; 5] = [
            (PIO | MATCH, 0x510, 2, 7),
            (PIO, 0x520, 0, 0),
            (0, 0x2_0000, 4, 0),
            (MATCH, 0x2_1000, 8, 0x1122_3344_5566_7788),
            (0, 0x2_2000, 0, 0),
        ];
        let events = places.map(|place| {
            let event = Event::new();
            board.ioeventfd(event.number(), place).unwrap();
            event
        });
        board
            .start(&vcpu, &[], |a| {
                a.mov(dx, 0x510)?;
                a.mov(ax, 7)?;
                a.out(dx, ax)?;
                a.out(dx, al)?; // leaves: the length
                a.mov(ax, 8)?;
                a.out(dx, ax)?; // leaves: the value
                a.mov(dx, 0x520)?;
                a.out(dx, al)?;
                a.out(dx, eax)?;
                a.in_(al, dx)?; // leaves: a read
                a.mov(dword_ptr(0x2_0000), eax)?;
                a.mov(word_ptr(0x2_0000), ax)?; // leaves: the length
                a.mov(dword_ptr(0x2_0004), eax)?; // leaves: the address
                a.mov(rax, 0x1122_3344_5566_7788_u64)?;
                a.mov(qword_ptr(0x2_1000), rax)?;
                a.inc(rax)?;
                a.mov(qword_ptr(0x2_1000), rax)?; // leaves: the value
                a.mov(byte_ptr(0x2_2000), al)?;
                a.mov(qword_ptr(0x2_2000), rax)?;
                a.mov(rsi, 0x4000_u64)?;
                a.mov(ecx, 3)?;
                a.mov(dx, 0x520)?;
                a.rep().outsb()?;
                done(a)?;
                a.mov(dx, 0x520)?;
                a.out(dx, al)?; // leaves: given back
                done(a)
            })
            .unwrap();
        let page = door.map_run_page(&vcpu).unwrap();
        let exits = || board.exit(&vcpu, &page).unwrap();
        let port = (KVM_EXIT_IO, u32::from(PORT));
        let expected = [
            (KVM_EXIT_IO, 0x510),
            (KVM_EXIT_IO, 0x510),
            (KVM_EXIT_IO, 0x520),
            (KVM_EXIT_MMIO, 0x2_0000),
            (KVM_EXIT_MMIO, 0x2_0004),
            (KVM_EXIT_MMIO, 0x2_1000),
            port,
        ];
        assert_eq!(expected.map(|_| exits()), expected, "{}", door.name());
        let counts = events.each_ref().map(Event::take);
        assert_eq!(counts, [1, 5, 1, 1, 2], "{}", door.name());
        let (flags, address, len, value) = places[1];
        let back = (flags | GIVE_BACK, address, len, value);
        board.ioeventfd(events[1].number(), back).unwrap();
        assert_eq!(exits(), (KVM_EXIT_IO, 0x520), "{}", door.name());
        assert_eq!(exits(), port, "{}", door.name());
        assert_eq!(events[1].take(), 0, "{}", door.name());
    }
    on_both!(test);
}
