//! Process-context identifiers: CR4.PCIDE, CR3 with a number, INVPCID; and RDRAND, which the bus answers.

mod support;
#[path = "support/tables.rs"]
mod tables;

use iced_x86::code_asm::*;
use msrgate_x86::{Config, SUPPORTED_FEATURES};
use support::CODE;
use tables::{kernel, step, user};

const UD: u8 = 6;
const GP: u8 = 13;
const PCIDE: u64 = 1 << 17;
const TABLES: u64 = 0x1000;
const DESCRIPTOR: u64 = 0x30_0000;

#[test]
fn pcids_begin_in_long_mode_with_number_0() {
    for (cr3_before, expected) in [(TABLES, Ok(())), (TABLES | 1, Err(GP))] {
        let mut m = kernel(|a| a.mov(cr4, rax));
        let mut system = m.cpu.system_registers();
        system.cr3 = cr3_before;
        m.cpu.set_system_registers(&system);
        m.set(|r| r.rax = system.cr4 | PCIDE);
        assert_eq!(step(&mut m), expected, "{cr3_before:#x}");
    }
}

#[test]
fn bit_63_of_cr3_is_for_pcids_and_is_not_kept() {
    for (pcide, expected) in [(PCIDE, Ok(())), (0, Err(GP))] {
        let mut m = kernel(|a| a.mov(cr3, rax));
        let mut system = m.cpu.system_registers();
        system.cr4 |= pcide;
        m.cpu.set_system_registers(&system);
        m.set(|r| r.rax = TABLES | 5 | 1 << 63);
        assert_eq!(step(&mut m), expected);
        if expected.is_ok() {
            assert_eq!(m.cpu.system_registers().cr3, TABLES | 5);
        }
    }
}

/// The kind in RAX, the PCID, the address, CR4, and what becomes of it.
type Row = (&'static str, u64, u64, u64, u64, Result<(), u8>);

#[test]
fn invpcid_checks_its_operands() {
    let rows: [Row; 9] = [
        ("address", 0, 7, 0x40_0000, PCIDE, Ok(())),
        ("context", 1, 7, 0, PCIDE, Ok(())),
        ("all", 2, 0, 0, 0, Ok(())),
        ("all but global", 3, 0, 0, PCIDE, Ok(())),
        ("no such kind", 4, 0, 0, PCIDE, Err(GP)),
        ("kind has 64 bits", 1 << 32, 0, 0, PCIDE, Err(GP)),
        ("PCID of 13 bits", 1, 0x1000, 0, PCIDE, Err(GP)),
        ("PCID without PCIDE", 1, 7, 0, 0, Err(GP)),
        ("address that is none", 0, 0, 1 << 47, PCIDE, Err(GP)),
    ];
    for (what, kind, pcid, address, pcide, expected) in rows {
        let mut m = kernel(|a| a.invpcid(rax, xmmword_ptr(rdi)));
        let mut system = m.cpu.system_registers();
        system.cr4 |= pcide;
        m.cpu.set_system_registers(&system);
        m.ram.write_u64(DESCRIPTOR, pcid);
        m.ram.write_u64(DESCRIPTOR + 8, address);
        m.set(|r| (r.rax, r.rdi) = (kind, DESCRIPTOR));
        assert_eq!(step(&mut m), expected, "{what}");
    }
    let mut m = user(|a| a.invpcid(rax, xmmword_ptr(rdi)));
    assert_eq!(step(&mut m), Err(GP), "not for users");
    let mut m = kernel(|a| a.invpcid(rax, xmmword_ptr(rdi)));
    m.cpu.set_config(Config::default());
    assert_eq!(step(&mut m), Err(UD), "not in CPUID");
}

#[test]
fn invpcid_makes_a_changed_entry_visible() {
    for kind in 0..4 {
        let mut m = kernel(|a| {
            a.mov(rbx, qword_ptr(rdi))?;
            a.mov(qword_ptr(rsi), rcx)?;
            a.invpcid(rax, xmmword_ptr(r8))?;
            a.mov(rdx, qword_ptr(rdi))
        });
        // 0x60_0000 is a 2 MiB page whose entry moves to 0x80_0000.
        m.ram.write_u64(0x60_0000, 6);
        m.ram.write_u64(0x80_0000, 8);
        m.ram.write_u64(DESCRIPTOR + 8, 0x60_0000);
        m.set(|r| {
            (r.rdi, r.rsi, r.rcx) = (0x60_0000, 0x3000 + 3 * 8, 0x80_0087);
            (r.rax, r.r8) = (kind, DESCRIPTOR);
        });
        m.run(4);
        let r = m.cpu.registers();
        assert_eq!((r.rbx, r.rdx), (6, 8), "kind {kind}");
    }
}

/// SDM vol. 3, 5.10.2.2: a translation is used for the PCID that it was made for, also where CR3 is written with bit 63,
/// which keeps translations.
#[test]
fn each_pcid_has_its_own_pages() {
    const OTHER: u64 = 0x31_0000;
    const PAGE: u64 = 0x60_0000;
    let mut m = kernel(|a| {
        for to in [rbx, rcx] {
            a.mov(to, qword_ptr(rdi))?;
            a.mov(cr3, rax)?;
            a.mov(to, qword_ptr(rdi))?;
            a.mov(cr3, rdx)?;
        }
        a.mov(r8, qword_ptr(rdi))
    });
    // The other tables differ in one page of 2 MiB.
    m.ram.write_u64(OTHER, (OTHER + 0x1000) | 7);
    m.ram.write_u64(OTHER + 0x1000, (OTHER + 0x2000) | 7);
    for i in (0..512).map(|i| 8 * i) {
        let entry = m.ram.read_u64(TABLES + 0x2000 + i);
        m.ram.write_u64(OTHER + 0x2000 + i, entry);
    }
    m.ram.write_u64(OTHER + 0x2000 + 8 * 3, 0x80_0087);
    m.ram.write_u64(PAGE, 6);
    m.ram.write_u64(0x80_0000, 8);
    let mut system = m.cpu.system_registers();
    (system.cr4, system.cr3) = (system.cr4 | PCIDE, TABLES | 1);
    m.cpu.set_system_registers(&system);
    m.set(|r| (r.rdi, r.rax, r.rdx) = (PAGE, OTHER | 2 | 1 << 63, TABLES | 1 | 1 << 63));
    m.run(9);
    let r = m.cpu.registers();
    assert_eq!((r.rbx, r.rcx, r.r8), (8, 8, 6));
}

/// SDM vol. 3, 5.10.4.1: what forgets global pages too.
#[test]
fn global_page_is_forgotten_with_pcids_and_with_global_pages() {
    const GLOBAL: u64 = 1 << 8;
    const PGE: u64 = 1 << 7;
    for flipped in [PCIDE, PGE] {
        let mut m = kernel(|a| {
            a.mov(rbx, qword_ptr(rdi))?;
            a.mov(qword_ptr(rsi), rcx)?;
            a.mov(cr4, rax)?;
            a.mov(rdx, qword_ptr(rdi))
        });
        m.ram.write_u64(0x60_0000, 6);
        m.ram.write_u64(0x80_0000, 8);
        m.ram.write_u64(0x3000 + 8 * 3, 0x60_0087 | GLOBAL);
        let mut system = m.cpu.system_registers();
        system.cr4 |= PCIDE | PGE;
        m.cpu.set_system_registers(&system);
        m.set(|r| {
            (r.rdi, r.rsi, r.rcx) = (0x60_0000, 0x3000 + 8 * 3, 0x80_0087 | GLOBAL);
            r.rax = system.cr4 & !flipped;
        });
        m.run(4);
        let r = m.cpu.registers();
        assert_eq!((r.rbx, r.rdx), (6, 8), "{flipped:#x}");
    }
}

#[test]
fn code_in_the_upper_half_moves_with_its_page() {
    const UPPER: u64 = 0xffff_8000_0000_0000;
    const DIRECTORY: u64 = 0x3000;
    const GLOBAL: u64 = 1 << 8;
    const PGE: u64 = 1 << 7;
    const MOV_EAX: u8 = 0xb8;
    // The second instruction is 3 bytes behind the first.
    let rows = [
        ("MOV CR3, no global page", 0, 0, CODE),
        ("MOV CR3, global page without CR4.PGE", GLOBAL, 0, CODE),
        ("INVLPG, global page", GLOBAL, PGE, CODE + 3),
    ];
    for (what, global, pge, start) in rows {
        let mut m = kernel(|a| {
            a.mov(cr3, rbx)?;
            a.invlpg(byte_ptr(rsi))
        });
        let mut system = m.cpu.system_registers();
        system.cr4 = system.cr4 & !PGE | pge;
        m.cpu.set_system_registers(&system);
        m.ram.write_u64(TABLES + 256 * 8, (TABLES + 0x1000) | 7);
        for (page, value) in [(0x40_0000, 1), (0x60_0000, 2)] {
            m.ram.write(page, &[MOV_EAX, value, 0, 0, 0]);
        }
        for (page, value) in [(0x40_0000, 1), (0x60_0000, 2)] {
            m.ram.write_u64(DIRECTORY + 2 * 8, page | global | 0x87);
            m.set(|r| (r.rip, r.rbx, r.rsi) = (start, TABLES, UPPER + 0x40_0000));
            m.run(1);
            m.set(|r| r.rip = UPPER + 0x40_0000);
            m.run(1);
            assert_eq!(m.cpu.registers().rax, value, "{what}");
        }
    }
}

#[test]
fn rdrand_answers_what_the_bus_has() {
    const ARITHMETIC: u64 = 0x8d5;
    let offered = |f: &msrgate_x86::Feature| (f.function, f.bit) == (1, 30);
    assert!(
        !SUPPORTED_FEATURES.iter().any(offered),
        "it is the bus's to offer"
    );
    let mut m = kernel(|a| a.rdrand(rbx));
    assert_eq!(step(&mut m), Err(UD));
    for (number, carry) in [(Some(0x1234_5678_9abc_def0), 1), (None, 0)] {
        let mut m = kernel(|a| {
            a.rdrand(rbx)?;
            a.rdrand(ecx)
        });
        let mut config = m.cpu.config().clone();
        for leaf in config.cpuid.iter_mut().filter(|leaf| leaf.function == 1) {
            leaf.ecx |= 1 << 30;
        }
        m.cpu.set_config(config);
        m.ram.random = number;
        m.set(|r| (r.rbx, r.rcx, r.rflags) = (u64::MAX, u64::MAX, ARITHMETIC | 2));
        m.run(2);
        let r = m.cpu.registers();
        assert_eq!(r.rbx, number.unwrap_or(0));
        assert_eq!(r.rcx, number.unwrap_or(0) & 0xffff_ffff);
        assert_eq!(r.rflags & ARITHMETIC, carry);
    }
}
