//! IN, OUT, INS and OUTS: the I/O permission bitmap, and one stop for each element.
#![expect(clippy::cast_possible_truncation, reason = "the numbers are small")]

mod support;
#[path = "support/tables.rs"]
mod tables;

use msrgate_x86::Stop;
use support::{CODE, MMIO};
use tables::{TSS, frame, kernel, step, user};

const GP: u8 = 13;
const PF: u8 = 14;

const IF: u64 = 1 << 9;

#[test]
fn ports_of_the_user_are_those_of_the_bitmap() {
    let at = |port: u16| TSS + 0x68 + u64::from(port / 8);
    let stop = |port, len_bytes| Stop::IoIn { port, len_bytes };
    for (size, code) in [(1, &[0xec_u8][..]), (2, &[0x66, 0xed]), (4, &[0xed])] {
        for bit in 0..8 {
            let mut m = user(|a| a.db(code));
            let port = 0x3f8 + 8 - size;
            m.set(|r| r.rdx = port.into());
            m.ram.write(at(port), &[1 << bit]);
            let forbidden = (8 - size..8).contains(&bit);
            if forbidden {
                assert_eq!(step(&mut m), Err(GP), "{size} bytes, bit {bit}");
            } else {
                assert_eq!(m.run(1), stop(port, size as u8), "{size} bytes, bit {bit}");
            }
        }
    }
}

#[test]
fn port_access_beyond_the_bitmap_faults_and_iopl_3_needs_none() {
    let mut m = user(|a| a.db(&[0xec]));
    m.set(|r| r.rdx = 0xfff0);
    assert_eq!(
        m.run(1),
        Stop::IoIn {
            port: 0xfff0,
            len_bytes: 1
        },
        "the last byte but one"
    );
    let mut system = m.cpu.system_registers();
    system.tr.limit -= 1;
    m.cpu.set_system_registers(&system);
    assert_eq!(step(&mut m), Err(GP), "two bytes are read");

    let mut m = user(|a| a.db(&[0xe5, 0x60]));
    m.ram.write(TSS + 0x68, &[0xff; 0x2000]);
    m.set(|r| r.rflags |= 3 << 12);
    assert_eq!(
        m.run(1),
        Stop::IoIn {
            port: 0x60,
            len_bytes: 4
        }
    );
}

#[test]
fn input_retires_with_its_answer_and_keeps_the_other_bits() {
    for (code, value, rax_after) in [
        (&[0xec_u8][..], 0x1234_56ab, 0x8877_6655_4433_22ab),
        (&[0x66, 0xed], 0x1234_56ab, 0x8877_6655_4433_56ab),
        (&[0xed], 0x1234_56ab, 0x1234_56ab),
    ] {
        let mut m = kernel(|a| a.db(code));
        m.set(|r| (r.rax, r.rdx) = (0x8877_6655_4433_2211, 0x60));
        assert!(matches!(m.run(1), Stop::IoIn { port: 0x60, .. }));
        assert_eq!(m.cpu.registers().rip, CODE, "not retired");
        m.cpu.complete_io_in(value);
        assert_eq!(m.run(1), Stop::Budget);
        let r = m.cpu.registers();
        assert_eq!((r.rax, r.rip), (rax_after, CODE + code.len() as u64));
    }
}

#[test]
fn answered_input_retires_before_an_interrupt() {
    let mut m = kernel(|a| a.db(&[0xec]));
    m.set(|r| (r.rdx, r.rflags) = (0x60, IF | 2));
    assert!(matches!(m.run(1), Stop::IoIn { .. }));
    m.cpu.complete_io_in(0x42);
    assert!(m.cpu.interrupt(0x40));
    m.ram.write(tables::handler(0x40), &[0xec, 0xf4]);
    assert!(
        matches!(m.run(10), Stop::IoIn { .. }),
        "the handler's own IN asks again"
    );
    assert_eq!(frame::<1>(&m), [CODE + 1]);
    assert_eq!(m.cpu.registers().rax, 0x42);
}

#[test]
fn output_has_retired_when_it_stops() {
    let mut m = kernel(|a| a.db(&[0xe7, 0x80]));
    m.set(|r| r.rax = 0x1_2345_6789);
    assert_eq!(
        m.run(1),
        Stop::IoOut {
            port: 0x80,
            len_bytes: 4,
            value: 0x2345_6789
        }
    );
    assert_eq!((m.cpu.registers().rip, m.cpu.retired()), (CODE + 2, 1));
}

#[test]
fn repeated_output_stops_at_each_element() {
    let mut m = kernel(|a| a.rep().outsw());
    m.ram.write(0x30_0000, &[1, 0, 2, 0, 3, 0]);
    m.set(|r| (r.rsi, r.rcx, r.rdx) = (0x30_0000, 3, 0x80));
    for (value, rip) in [(1, CODE), (2, CODE), (3, CODE + 3)] {
        assert_eq!(
            m.run(1),
            Stop::IoOut {
                port: 0x80,
                len_bytes: 2,
                value
            }
        );
        assert_eq!(m.cpu.registers().rip, rip);
    }
    let r = m.cpu.registers();
    assert_eq!((r.rsi, r.rcx, m.cpu.retired()), (0x30_0006, 0, 1));
}

#[test]
fn repeated_output_of_mmio_loads_each_element() {
    let mut m = kernel(|a| a.rep().outsb());
    m.set(|r| (r.rsi, r.rcx, r.rdx) = (MMIO, 2, 0x80));
    for i in 0..2 {
        assert_eq!(
            m.run(1),
            Stop::MmioRead {
                gpa: MMIO + i,
                len_bytes: 1
            }
        );
        m.cpu.complete_mmio_read(i + 7);
        let value = i as u32 + 7;
        assert_eq!(
            m.run(1),
            Stop::IoOut {
                port: 0x80,
                len_bytes: 1,
                value
            }
        );
    }
    assert_eq!(m.cpu.registers().rip, CODE + 2);
}

#[test]
fn repeated_input_stores_backwards_with_df() {
    let mut m = kernel(|a| a.rep().insd());
    m.set(|r| (r.rdi, r.rcx, r.rdx) = (0x30_0004, 2, 0x80));
    m.set(|r| r.rflags |= 1 << 10);
    for value in [7, 8] {
        // An element that is done counts as an instruction.
        assert_eq!(
            m.run(2),
            Stop::IoIn {
                port: 0x80,
                len_bytes: 4
            }
        );
        m.cpu.complete_io_in(value);
    }
    assert_eq!(m.run(1), Stop::Budget);
    assert_eq!(m.ram.read_u64(0x30_0000), 7 << 32 | 8);
    let r = m.cpu.registers();
    assert_eq!((r.rdi, r.rcx, r.rip), (0x30_0000 - 4, 0, CODE + 2));
}

#[test]
fn input_to_a_bad_address_does_not_touch_the_port() {
    let mut m = kernel(|a| a.insb());
    m.set(|r| (r.rdi, r.rdx) = (0x90_0000_0000, 0x60));
    assert_eq!(step(&mut m), Err(PF));
    assert_eq!(m.cpu.system_registers().cr2, 0x90_0000_0000);
}

#[test]
fn repetition_of_zero_elements_is_nothing() {
    let mut m = kernel(|a| a.rep().outsb());
    m.set(|r| r.rcx = 0);
    assert_eq!(step(&mut m), Ok(()));
    assert_eq!(m.cpu.registers().rip, CODE + 2);
}
