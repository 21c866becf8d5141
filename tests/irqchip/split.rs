//! Local APICs alone in KVM: the I/O APIC, the 8259s and the PIT are the client's (`KVM_CAP_SPLIT_IRQCHIP`).

use std::cell::RefCell;

use iced_x86::code_asm::*;
use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_EXIT_IO, KVM_EXIT_IOAPIC_EOI, KVM_EXIT_IRQ_WINDOW_OPEN,
    KVM_EXIT_MMIO, KVM_IRQ_ROUTING_MSI, kvm_enable_cap, kvm_pit_config,
};
use msrgate_core::Errno;
use msrgate_tests::door::{Door, Mapping};

use crate::board::{Board, PORT, on_both};
use crate::{IOAPIC, apic, count, done, enable_apic, note, spin_for};

const CREATE_IRQCHIP: u32 = 0xae60;
const GET_IRQCHIP: u32 = 0xc208_ae62;
const SET_GSI_ROUTING: u32 = 0x4008_ae6a;
const CREATE_PIT2: u32 = 0x4040_ae77;
const ENABLE_CAP: u32 = 0x4068_aea3;
const INTERRUPT: u32 = 0x4004_ae86;
/// Pins of the client's I/O APIC.
const PINS: u64 = 24;

/// Fields of `kvm_run`.
const REQUEST_INTERRUPT_WINDOW: usize = 0;
const READY_FOR_INTERRUPT: usize = 12;

impl<D: Door> Board<'_, D> {
    fn split(&self, pins: u64) -> Result<i32, Errno> {
        let mut cap = kvm_enable_cap {
            cap: KVM_CAP_SPLIT_IRQCHIP,
            args: [pins, 0, 0, 0],
            ..kvm_enable_cap::default()
        };
        self.ask(&self.vm, ENABLE_CAP, &mut cap)
    }

    /// The only route: a GSI, its type and three words.
    fn set_route(&self, gsi: u32, kind: u32, target: [u32; 3]) -> Result<i32, Errno> {
        let [a, b, c] = target;
        let mut words = [1, 0, gsi, kind, 0, 0, a, b, c, 0, 0, 0, 0, 0];
        self.ask(&self.vm, SET_GSI_ROUTING, &mut words)
    }
}

fn is_ready(page: &Mapping) -> bool {
    page.read_u32(READY_FOR_INTERRUPT) & 0xff == 1
}

#[test]
fn split_controllers_are_made_once_and_refuse_what_is_the_clients() {
    fn test<D: Door>(door: &D) {
        const TO_PIN: u32 = 1;
        const RESAMPLE: u32 = 2;
        let board = Board::without_controllers(door).unwrap();
        assert_eq!(board.split(4097), Err(Errno::EINVAL), "{}", door.name());
        assert_eq!(board.split(PINS), Ok(0), "{}", door.name());
        assert_eq!(board.split(PINS), Err(Errno::EEXIST), "{}", door.name());
        let on_vm = |request, words: &mut [u32; 130]| board.ask(&board.vm, request, words);
        let again = on_vm(CREATE_IRQCHIP, &mut [0; 130]);
        assert_eq!(again, Err(Errno::EEXIST), "{}", door.name());
        let state = on_vm(GET_IRQCHIP, &mut [0; 130]);
        assert_eq!(state, Err(Errno::ENXIO), "{}", door.name());
        let pit = board.ask(&board.vm, CREATE_PIT2, &mut kvm_pit_config::default());
        assert_eq!(pit, Err(Errno::ENOENT), "{}", door.name());
        let pin = board.set_route(4, TO_PIN, [2, 4, 0]);
        assert_eq!(pin, Err(Errno::EINVAL), "{}", door.name());
        let mut irqfd = [u32::MAX, 4, RESAMPLE, u32::MAX, 0, 0, 0, 0];
        let irqfd = board.ask(&board.vm, 0x4020_ae76, &mut irqfd);
        assert_eq!(irqfd, Err(Errno::EINVAL), "{}: resampled", door.name());

        let late = Board::without_controllers(door).unwrap();
        let _vcpu = late.vcpu(0).unwrap();
        assert_eq!(late.split(PINS), Err(Errno::EEXIST), "{}", door.name());
    }
    on_both!(test);
}

#[test]
fn client_hears_of_the_end_of_its_level_triggered_interrupts() {
    fn test<D: Door>(door: &D) {
        const LEVEL: u32 = 1 << 15;
        const ASSERT: u32 = 1 << 14;
        let board = Board::without_controllers(door).unwrap();
        board.split(PINS).unwrap();
        let vcpu = board.vcpu(0).unwrap();
        board
            .start(&vcpu, &[(0x45, &count(0)), (0x46, &count(1))], |a| {
                enable_apic(a)?;
                a.mov(eax, dword_ptr(IOAPIC))?; // leaves: it is not KVM's
                a.in_(al, 0x21)?; // likewise
                a.sti()?;
                spin_for(a, 0)?;
                done(a)?;
                spin_for(a, 1)?;
                done(a)?;
                done(a)
            })
            .unwrap();
        let page = door.map_run_page(&vcpu).unwrap();
        let exit = || board.exit(&vcpu, &page).unwrap();
        let port = (KVM_EXIT_IO, u32::from(PORT));
        assert_eq!(exit(), (KVM_EXIT_MMIO, 0xfec0_0000), "{}", door.name());
        assert_eq!(exit(), (KVM_EXIT_IO, 0x21), "{}", door.name());
        let level = [0xfee0_0000, 0, LEVEL | ASSERT | 0x45];
        board.set_route(4, KVM_IRQ_ROUTING_MSI, level).unwrap();
        board.set_line(4, true);
        // A KVM that interprets the guest may tell of the end some instructions later.
        let ended = RefCell::new(Vec::new());
        let exit = || {
            loop {
                let exit = exit();
                if exit.0 != KVM_EXIT_IOAPIC_EOI {
                    return exit;
                }
                ended.borrow_mut().push(exit.1 & 0xff);
            }
        };
        assert_eq!(exit(), port, "{}", door.name());
        // Of an edge, or of a GSI that is no pin, nobody needs to hear.
        let edge = [0xfee0_0000, 0, 0x46];
        board.set_route(4, KVM_IRQ_ROUTING_MSI, edge).unwrap();
        board.set_line(4, true);
        assert_eq!(exit(), port, "{}", door.name());
        assert_eq!(exit(), port, "{}", door.name());
        assert_eq!((board.note(0), board.note(1)), (1, 1), "{}", door.name());
        assert_eq!(ended.into_inner(), [0x45], "{}", door.name());
    }
    on_both!(test);
}

#[test]
fn client_s_8259_interrupts_through_lint0() {
    fn test<D: Door>(door: &D) {
        const EXTINT: i32 = 7 << 8;
        const LVT_LINT0: i32 = 0x350;
        let board = Board::without_controllers(door).unwrap();
        board.split(PINS).unwrap();
        let vcpu = board.vcpu(0).unwrap();
        let note_it = |a: &mut CodeAssembler| {
            a.inc(note(0))?;
            a.iretq()
        };
        board
            .start(&vcpu, &[(0x50, &note_it)], |a| {
                enable_apic(a)?;
                a.mov(apic(LVT_LINT0), EXTINT)?;
                done(a)?;
                a.sti()?;
                spin_for(a, 0)?;
                done(a)
            })
            .unwrap();
        let page = door.map_run_page(&vcpu).unwrap();
        let exit = || board.exit(&vcpu, &page).unwrap();
        let port = (KVM_EXIT_IO, u32::from(PORT));
        let interrupt = || board.ask(&vcpu, INTERRUPT, &mut 0x50_u32);
        assert_eq!(exit(), port, "{}", door.name());
        assert!(!is_ready(&page), "{}: interrupts are off", door.name());
        page.write(REQUEST_INTERRUPT_WINDOW, &[1]);
        assert_eq!(exit().0, KVM_EXIT_IRQ_WINDOW_OPEN, "{}", door.name());
        assert!(is_ready(&page), "{}", door.name());
        page.write(REQUEST_INTERRUPT_WINDOW, &[0]);
        assert_eq!(interrupt(), Ok(0), "{}", door.name());
        assert_eq!(interrupt(), Err(Errno::EEXIST), "{}", door.name());
        assert_eq!(exit(), port, "{}", door.name());
        assert_eq!(board.note(0), 1, "{}", door.name());
    }
    on_both!(test);
}
