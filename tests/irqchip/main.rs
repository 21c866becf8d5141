//! Guests that program the in-kernel interrupt controllers: the embedded ones, and those of the real KVM.
//!
//! What must happen is written here from the manuals (SDM vol. 3 chapter 12, 8259A, 8254, 82093AA), and the real
//! KVM is held to it as well.

#![expect(
    clippy::unwrap_used,
    reason = "a test says what went wrong by panicking"
)]

mod board;
mod control;
mod eventfd;
mod split;

use std::thread;

use board::{AP_CODE, Board, NOTES, PORT, STACK_TOP, assemble_16, on_both};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use msrgate_tests::door::Door;

/// The local APIC's page, and registers in it.
const APIC: i32 = 0xfee0_0000_u32.cast_signed();
const TPR: i32 = 0x80;
const EOI: i32 = 0xb0;
const SVR: i32 = 0xf0;
const ICR: i32 = 0x300;
const ICR2: i32 = 0x310;
const LVT_TIMER: i32 = 0x320;
const TIMER_INITIAL: i32 = 0x380;
const TIMER_DIVIDE: i32 = 0x3e0;
/// The I/O APIC's select register; its window is 0x10 behind it.
const IOAPIC: i32 = 0xfec0_0000_u32.cast_signed();

fn note(number: i32) -> AsmMemoryOperand {
    dword_ptr(i32::try_from(NOTES).unwrap() + 4 * number)
}

fn apic(register: i32) -> AsmMemoryOperand {
    dword_ptr(APIC + register)
}

fn done(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(al, 1)?;
    a.mov(dx, i32::from(PORT))?;
    a.out(dx, al)
}

/// A handler that counts into a note and ends the interrupt at the local APIC.
fn count(number: i32) -> impl Fn(&mut CodeAssembler) -> Result<(), IcedError> {
    move |a| {
        a.inc(note(number))?;
        a.mov(apic(EOI), 0)?;
        a.iretq()
    }
}

/// Halts until a note has reached a number. Interrupts are on only while it halts.
fn wait_for(a: &mut CodeAssembler, number: i32, value: i32) -> Result<(), IcedError> {
    let mut again = a.create_label();
    let mut over = a.create_label();
    a.set_label(&mut again)?;
    a.cli()?;
    a.cmp(note(number), value)?;
    a.jae(over)?;
    a.sti()?;
    a.hlt()?;
    a.jmp(again)?;
    a.set_label(&mut over)?;
    a.zero_bytes()
}

/// Waits with interrupts on until a note is not 0.
fn spin_for(a: &mut CodeAssembler, number: i32) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.cmp(note(number), 0)?;
    a.je(again)
}

fn enable_apic(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(apic(SVR), 0x1ff)
}

#[test]
fn apic_timer_fires_once_and_periodically() {
    fn test<D: Door>(door: &D) {
        const PERIODIC: i32 = 1 << 17;
        let board = Board::new(door).unwrap();
        let vcpu = board.vcpu(0).unwrap();
        board
            .start(&vcpu, &[(0x40, &count(0))], |a| {
                enable_apic(a)?;
                a.mov(apic(TIMER_DIVIDE), 0xb)?;
                a.mov(apic(LVT_TIMER), 0x40)?;
                a.mov(apic(TIMER_INITIAL), 300_000)?;
                wait_for(a, 0, 1)?;
                done(a)?;
                a.mov(apic(LVT_TIMER), 0x40 | PERIODIC)?;
                a.mov(apic(TIMER_INITIAL), 1_000_000)?;
                wait_for(a, 0, 4)?;
                a.mov(apic(TIMER_INITIAL), 0)?;
                done(a)
            })
            .unwrap();
        assert_eq!(board.run(&vcpu), Ok(1), "{}", door.name());
        assert_eq!(board.note(0), 1, "{}: one shot", door.name());
        assert_eq!(board.run(&vcpu), Ok(1), "{}", door.name());
        assert!(board.note(0) >= 4, "{}: three periods", door.name());
    }
    on_both!(test);
}

#[test]
fn apic_timer_fires_at_a_tsc_deadline() {
    fn test<D: Door>(door: &D) {
        const DEADLINE_MODE: i32 = 2 << 17;
        const TSC_DEADLINE: u32 = 0x6e0;
        let board = Board::new(door).unwrap();
        let vcpu = board.vcpu(0).unwrap();
        board
            .start(&vcpu, &[(0x40, &count(0))], |a| {
                enable_apic(a)?;
                a.mov(apic(LVT_TIMER), 0x40 | DEADLINE_MODE)?;
                a.rdtsc()?;
                a.add(eax, 100_000_000)?; // in an emulator, a million pass between two instructions
                a.adc(edx, 0)?;
                a.mov(esi, eax)?;
                a.mov(edi, edx)?;
                a.mov(ecx, TSC_DEADLINE)?;
                a.wrmsr()?;
                a.rdmsr()?; // what was written, until it fires
                a.sub(eax, esi)?;
                a.mov(note(1), eax)?;
                wait_for(a, 0, 1)?;
                a.rdtsc()?;
                a.sub(eax, esi)?;
                a.sbb(edx, edi)?;
                a.mov(note(2), edx)?; // not negative: it was not early
                a.mov(ecx, TSC_DEADLINE)?;
                a.rdmsr()?;
                a.mov(note(3), eax)?;
                done(a)
            })
            .unwrap();
        assert_eq!(board.run(&vcpu), Ok(1), "{}", door.name());
        let notes = [0, 1, 2, 3].map(|number| board.note(number));
        assert_eq!(notes, [1, 0, 0, 0], "{}", door.name());
    }
    on_both!(test);
}

/// A busy guest that never halts, and one whose interrupts are off for a while.
#[test]
fn apic_timer_interrupts_a_guest_that_spins() {
    fn test<D: Door>(door: &D) {
        let board = Board::new(door).unwrap();
        let vcpu = board.vcpu(0).unwrap();
        board
            .start(&vcpu, &[(0x40, &count(0))], |a| {
                let mut masked = a.create_label();
                enable_apic(a)?;
                a.mov(apic(TIMER_DIVIDE), 0xb)?;
                a.mov(apic(LVT_TIMER), 0x40)?;
                a.mov(apic(TIMER_INITIAL), 100_000)?;
                // The current count reaches 0 with interrupts off; nothing is delivered.
                a.set_label(&mut masked)?;
                a.cmp(apic(0x390), 0)?;
                a.jne(masked)?;
                a.mov(eax, note(0))?;
                a.mov(note(1), eax)?;
                a.sti()?;
                spin_for(a, 0)?;
                done(a)
            })
            .unwrap();
        assert_eq!(board.run(&vcpu), Ok(1), "{}", door.name());
        assert_eq!((board.note(0), board.note(1)), (1, 0), "{}", door.name());
    }
    on_both!(test);
}

/// SDM vol. 3, 7.14.2: the handler's stack is aligned to 16 bytes before five words are pushed, and IRET gives the
/// old one back.
#[test]
fn interrupt_in_long_mode_aligns_the_stack() {
    fn test<D: Door>(door: &D) {
        let note_stack = |a: &mut CodeAssembler| {
            a.mov(note(1), esp)?;
            count(0)(a)
        };
        let board = Board::new(door).unwrap();
        let vcpu = board.vcpu(0).unwrap();
        board
            .start(&vcpu, &[(0x40, &note_stack)], |a| {
                a.sub(rsp, 4)?;
                enable_apic(a)?;
                a.mov(apic(ICR), 1 << 18 | 0x40)?;
                wait_for(a, 0, 1)?;
                a.mov(note(2), esp)?;
                done(a)
            })
            .unwrap();
        assert_eq!(board.run(&vcpu), Ok(1), "{}", door.name());
        let stack = u32::try_from(STACK_TOP).unwrap() - 4;
        let notes = [1, 2].map(|number| board.note(number));
        assert_eq!(notes, [(stack & !15) - 40, stack], "{}", door.name());
    }
    on_both!(test);
}

#[test]
fn task_priority_holds_an_interrupt_back() {
    fn test<D: Door>(door: &D) {
        const SELF: i32 = 1 << 18;
        let board = Board::new(door).unwrap();
        let vcpu = board.vcpu(0).unwrap();
        board
            .start(&vcpu, &[(0x51, &count(0)), (0x61, &count(1))], |a| {
                enable_apic(a)?;
                a.sti()?;
                a.mov(apic(TPR), 0x50)?;
                a.mov(apic(ICR), SELF | 0x51)?;
                a.mov(apic(ICR), SELF | 0x61)?;
                spin_for(a, 1)?; // of a higher class
                a.mov(eax, note(0))?; // still held
                a.mov(note(2), eax)?;
                a.mov(apic(TPR), 0)?;
                spin_for(a, 0)?;
                done(a)
            })
            .unwrap();
        assert_eq!(board.run(&vcpu), Ok(1), "{}", door.name());
        let notes = [0, 1, 2].map(|number| board.note(number));
        assert_eq!(notes, [1, 1, 0], "{}", door.name());
    }
    on_both!(test);
}

#[test]
fn pit_interrupts_through_the_8259() {
    fn test<D: Door>(door: &D) {
        let out = |a: &mut CodeAssembler, port: i32, value: i32| {
            a.mov(al, value)?;
            a.out(port, al)
        };
        let tick = |a: &mut CodeAssembler| {
            a.inc(note(0))?;
            a.push(rax)?;
            a.mov(al, 0x20)?; // end of interrupt
            a.out(0x20, al)?;
            a.pop(rax)?;
            a.iretq()
        };
        let board = Board::new(door).unwrap();
        let vcpu = board.vcpu(0).unwrap();
        board
            .start(&vcpu, &[(0x20, &tick)], |a| {
                for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1)] {
                    out(a, port, value)?;
                }
                out(a, 0x21, 0xfe)?; // only the timer
                out(a, 0x43, 0x34)?; // channel 0, both bytes, rate generator
                out(a, 0x40, 0xa9)?; // 1193: a millisecond
                out(a, 0x40, 0x04)?;
                wait_for(a, 0, 3)?;
                done(a)
            })
            .unwrap();
        assert_eq!(board.run(&vcpu), Ok(1), "{}", door.name());
        // More, if the host was slow: missed ticks are made up for.
        assert!(board.note(0) >= 3, "{}", door.name());
    }
    on_both!(test);
}

/// A level-triggered line that stays high interrupts again after each end of interrupt.
#[test]
fn level_triggered_line_interrupts_until_it_is_low() {
    fn test<D: Door>(door: &D) {
        const LEVEL: i32 = 1 << 15;
        const PIN: u16 = 20; // not one of the 8259s' too
        const ENTRY: i32 = 0x10 + 2 * PIN as i32;
        let level = |a: &mut CodeAssembler| {
            a.inc(note(0))?;
            a.push(rax)?;
            a.push(rdx)?;
            done(a)?; // the host decides
            a.pop(rdx)?;
            a.pop(rax)?;
            a.mov(apic(EOI), 0)?;
            a.iretq()
        };
        let board = Board::new(door).unwrap();
        let vcpu = board.vcpu(0).unwrap();
        board
            .start(&vcpu, &[(0x45, &level)], |a| {
                enable_apic(a)?;
                for (register, value) in [(ENTRY + 1, 0), (ENTRY, LEVEL | 0x45)] {
                    a.mov(dword_ptr(IOAPIC), register)?;
                    a.mov(dword_ptr(IOAPIC + 0x10), value)?;
                }
                wait_for(a, 0, 2)?;
                a.mov(al, 2)?;
                a.mov(dx, i32::from(PORT))?;
                a.out(dx, al)
            })
            .unwrap();
        board.set_line(PIN.into(), true);
        assert_eq!(board.run(&vcpu), Ok(1), "{}: raised", door.name());
        assert_eq!(board.run(&vcpu), Ok(1), "{}: still high", door.name());
        board.set_line(PIN.into(), false);
        assert_eq!(board.run(&vcpu), Ok(2), "{}: low", door.name());
        assert_eq!(board.note(0), 2, "{}", door.name());
    }
    on_both!(test);
}

/// INIT and start-up bring the second processor up; it takes an IPI and sends one back.
#[test]
fn second_processor_starts_and_talks_by_ipi() {
    fn test<D: Door + Sync>(door: &D)
    where
        D::Handle: Sync,
    {
        const INIT: i32 = 0x4500;
        const START_UP: i32 = 0x4600;
        const X2APIC: u32 = 1 << 10;
        const HANDLER: u16 = 0x100;
        let board = Board::new(door).unwrap();
        let bsp = board.vcpu(0).unwrap();
        let ap = board.vcpu(1).unwrap();
        let wrmsr = |a: &mut CodeAssembler, index: u32, low: u32| {
            a.mov(ecx, index)?;
            a.mov(eax, low)?;
            a.xor(edx, edx)?;
            a.wrmsr()
        };
        // In real mode, CS:IP is AP_CODE:0, and the vector table is at 0.
        let code = assemble_16(0, |a| {
            a.xor(ax, ax)?;
            a.mov(ds, ax)?;
            a.mov(ss, ax)?;
            a.mov(sp, 0x3000)?;
            a.mov(word_ptr(4 * 0x50), i32::from(HANDLER))?;
            a.mov(word_ptr(4 * 0x50 + 2), cs)?;
            wrmsr(a, 0x1b, 0xfee0_0800 | X2APIC)?;
            wrmsr(a, 0x80f, 0x1ff)?;
            wrmsr(a, 0x830, 0x41)?; // to APIC 0: here I am
            a.sti()?;
            a.hlt()?;
            a.mov(al, 3)?;
            a.mov(dx, i32::from(PORT))?;
            a.out(dx, al)
        });
        board.write(AP_CODE, &code);
        let handler = assemble_16(HANDLER.into(), |a| {
            wrmsr(a, 0x80b, 0)?;
            wrmsr(a, 0x830, 0x42)?;
            a.iret()
        });
        board.write(AP_CODE + usize::from(HANDLER), &handler);
        board
            .start(&bsp, &[(0x41, &count(0)), (0x42, &count(1))], |a| {
                let startup = START_UP | i32::try_from(AP_CODE >> 12).unwrap();
                enable_apic(a)?;
                a.mov(apic(ICR2), 1 << 24)?;
                a.mov(apic(ICR), INIT)?;
                a.mov(apic(ICR), startup)?;
                wait_for(a, 0, 1)?;
                a.mov(apic(ICR), 0x4050)?;
                wait_for(a, 1, 1)?;
                done(a)
            })
            .unwrap();
        thread::scope(|scope| {
            let second = scope.spawn(|| board.run(&ap));
            assert_eq!(board.run(&bsp), Ok(1), "{}", door.name());
            assert_eq!(second.join().unwrap(), Ok(3), "{}", door.name());
        });
        assert_eq!((board.note(0), board.note(1)), (1, 1), "{}", door.name());
    }
    on_both!(test);
}
