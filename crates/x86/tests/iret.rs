//! IRET, in every mode, and the frames of the modes other than 64-bit.
#![expect(clippy::cast_possible_truncation, reason = "the numbers are small")]

mod support;
#[path = "support/tables.rs"]
mod tables;

use iced_x86::code_asm::*;
use msrgate_core::Segment;
use msrgate_x86::Stop;
use support::{CODE, Machine, STACK};
use tables::{
    IDT, KERNEL_CODE, KERNEL_DATA, RSP0, USER_CODE, USER_CODE_32, USER_DATA, assemble, frame, halt,
    handler, kernel, user,
};

const RESERVED_ONE: u64 = 2;
const IF: u64 = 1 << 9;
const NT: u64 = 1 << 14;
const RF: u64 = 1 << 16;

const UD: u8 = 6;
const GP: u8 = 13;

#[test]
fn iretq_undoes_an_exception_of_the_user() {
    let mut m = user(|a| {
        a.ud2()?;
        a.nop()?;
        a.ud2()
    });
    let code = assemble(64, handler(UD), |a| {
        a.add(qword_ptr(rsp), 2)?;
        a.iretq()
    });
    m.ram.write(handler(UD), &code);
    m.set(|r| r.rflags = IF | RESERVED_ONE | 1);
    assert_eq!(m.run(3), Stop::Budget);
    let (r, system) = (m.cpu.registers(), m.cpu.system_registers());
    assert_eq!(
        (r.rip, r.rsp, r.rflags & !RF),
        (CODE + 2, STACK, IF | RESERVED_ONE | 1)
    );
    assert_eq!(
        (system.cs.selector, system.ss.selector),
        (USER_CODE, USER_DATA)
    );
    assert_eq!((system.cs.dpl, system.ss.dpl), (3, 3));
}

#[test]
fn iretq_enters_compatibility_mode() {
    let mut m = kernel(|a| a.iretq());
    // In 32-bit code 0x40 is INC EAX; in 64-bit code it is a prefix.
    m.ram.write(0x30_0000, &[0x40, 0x40, 0xf4]);
    push_frame(
        &mut m,
        [
            0x30_0000,
            USER_CODE_32.into(),
            2,
            0x31_0000,
            USER_DATA.into(),
        ],
    );
    assert_eq!(halt(&mut m), GP);
    let r = m.cpu.registers();
    assert_eq!((r.rax, r.rsp), (2, RSP0 - 48));
    assert_eq!(frame::<2>(&m), [0, 0x30_0002]);
    assert_eq!(frame::<3>(&m)[2], u64::from(USER_CODE_32));
}

fn push_frame(m: &mut Machine, qwords: [u64; 5]) {
    for (i, qword) in qwords.into_iter().enumerate() {
        m.ram.write_u64(STACK - 40 + 8 * i as u64, qword);
    }
    m.set(|r| r.rsp = STACK - 40);
}

#[test]
fn iretq_checks_what_it_loads() {
    let user = |to, code: u16, stack: u16| [to, u64::from(code), 2, STACK, u64::from(stack)];
    let rows = [
        ("null CS", user(CODE, 0, USER_DATA), 0),
        ("data as CS", user(CODE, KERNEL_DATA, KERNEL_DATA), 0x10),
        (
            "CS outside the table",
            user(CODE, 0x1003, USER_DATA),
            0x1000,
        ),
        ("RPL unlike DPL", user(CODE, KERNEL_CODE | 3, USER_DATA), 8),
        (
            "SS with a wrong RPL",
            user(CODE, USER_CODE, KERNEL_DATA),
            0x10,
        ),
        ("code as SS", user(CODE, USER_CODE, USER_CODE), 0x28),
        ("null SS for CPL 3", user(CODE, USER_CODE, 3), 0),
        ("non-canonical RIP", user(1 << 47, USER_CODE, USER_DATA), 0),
    ];
    for (what, qwords, error) in rows {
        let mut m = kernel(|a| a.iretq());
        push_frame(&mut m, qwords);
        assert_eq!(halt(&mut m), GP, "{what}");
        assert_eq!(frame(&m), [error, CODE, u64::from(KERNEL_CODE)], "{what}");
    }
}

#[test]
fn iretq_with_nt_is_refused_in_long_mode() {
    let mut m = kernel(|a| a.iretq());
    push_frame(
        &mut m,
        [CODE, KERNEL_CODE.into(), 2, STACK, KERNEL_DATA.into()],
    );
    m.set(|r| r.rflags |= NT);
    assert_eq!(halt(&mut m), GP);
}

#[test]
fn iretq_in_ring_0_may_load_a_null_ss() {
    let mut m = kernel(|a| a.iretq());
    push_frame(&mut m, [handler(0), KERNEL_CODE.into(), 2, STACK - 800, 0]);
    assert_eq!(halt(&mut m), 0);
    assert_eq!(m.cpu.registers().rsp, STACK - 800);
}

#[test]
fn user_iretq_changes_neither_iopl_nor_if() {
    let mut m = user(|a| a.iretq());
    push_frame(
        &mut m,
        [
            CODE + 0x100,
            USER_CODE.into(),
            0x3202,
            STACK,
            USER_DATA.into(),
        ],
    );
    assert_eq!(m.run(1), Stop::Budget);
    assert_eq!(m.cpu.registers().rflags, RESERVED_ONE);
}

#[test]
fn real_mode_interrupt_pushes_three_words_and_iret_pops_them() {
    let code = assemble(16, 0x7c00, |a| {
        a.int(0x21)?;
        a.hlt()
    });
    let mut m = Machine::real(&code);
    m.ram.write(4 * 0x21, &[0x10, 0x00, 0x00, 0x20]);
    m.ram.write(0x2_0010, &[0x40, 0xcf]); // INC AX; IRET
    m.set(|r| r.rflags = IF | RESERVED_ONE | 1);
    assert_eq!(m.run(1), Stop::Budget);
    let r = m.cpu.registers();
    assert_eq!(
        (r.rip, r.rsp, r.rflags),
        (0x10, 0x7000 - 6, RESERVED_ONE | 1)
    );
    assert_eq!(m.cpu.system_registers().cs.base, 0x2_0000);
    assert_eq!(
        m.ram.bytes[0x7000 - 6..0x7000],
        [0x02, 0x7c, 0, 0, 0x03, 0x02]
    );
    assert_eq!(m.run(10), Stop::Hlt);
    let r = m.cpu.registers();
    assert_eq!((r.rip, r.rsp, r.rax), (0x7c03, 0x7000, 1));
    assert_eq!(r.rflags & (IF | 1), IF | 1);
}

/// 32-bit protected mode without paging.
fn protected(code: &[u8]) -> Machine {
    let mut m = Machine::long(code);
    tables::install(&mut m);
    let mut system = m.cpu.system_registers();
    system.cr0 = 0x11;
    system.cr4 = 0;
    system.efer = 0;
    system.cs = Segment {
        l: false,
        db: true,
        ..system.cs
    };
    m.cpu.set_system_registers(&system);
    // 32-bit kernel code, and 8-byte gates.
    m.ram.write_u64(tables::GDT + 8, 0x00cf_9b00_0000_ffff);
    for vector in 0..=255_u8 {
        let offset = handler(vector);
        let low = offset & 0xffff | 8 << 16 | 0x8e00 << 32 | (offset & 0xffff_0000) << 32;
        m.ram.write_u64(IDT + 8 * u64::from(vector), low);
    }
    m.ram.write(tables::TSS + 4, &0x18_0000_u32.to_le_bytes());
    m.ram
        .write(tables::TSS + 8, &u64::from(KERNEL_DATA).to_le_bytes());
    m
}

fn words<const N: usize>(m: &Machine) -> [u32; N] {
    let top = m.cpu.registers().rsp;
    std::array::from_fn(|i| m.ram.read_u64(top + 4 * i as u64) as u32)
}

#[test]
fn protected_mode_fault_in_ring_0_pushes_three_dwords() {
    let mut m = protected(&assemble(32, CODE, |a| a.ud2()));
    assert_eq!(halt(&mut m), UD);
    assert_eq!(m.cpu.registers().rsp, STACK - 12);
    assert_eq!(
        words(&m),
        [
            CODE as u32,
            u32::from(KERNEL_CODE),
            (RF | RESERVED_ONE) as u32
        ]
    );
}

#[test]
fn protected_mode_fault_of_the_user_switches_to_ss0_esp0_and_iretd_returns() {
    let mut m = protected(&assemble(32, CODE, |a| {
        a.ud2()?;
        a.nop()
    }));
    let mut system = m.cpu.system_registers();
    system.cs = Segment {
        selector: USER_CODE_32,
        dpl: 3,
        ..system.cs
    };
    system.ss = Segment {
        selector: USER_DATA,
        dpl: 3,
        ..system.ss
    };
    m.cpu.set_system_registers(&system);
    let code = assemble(32, handler(UD), |a| {
        a.hlt()?;
        a.add(dword_ptr(esp), 2)?;
        a.iretd()
    });
    m.ram.write(handler(UD), &code);
    assert_eq!(halt(&mut m), UD);
    assert_eq!(m.cpu.registers().rsp, 0x18_0000 - 20);
    assert_eq!(
        words(&m),
        [
            CODE as u32,
            u32::from(USER_CODE_32),
            (RF | RESERVED_ONE) as u32,
            STACK as u32,
            u32::from(USER_DATA)
        ]
    );
    assert_eq!(m.cpu.system_registers().ss.selector, KERNEL_DATA);
    m.run(2);
    assert_eq!(
        (m.cpu.registers().rip, m.cpu.registers().rsp),
        (CODE + 2, STACK)
    );
    assert_eq!(m.cpu.system_registers().cs.selector, USER_CODE_32);
}
