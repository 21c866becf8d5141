//! Instructions that 64-bit code does not have: ARPL, BOUND, SALC. The values are the manual's.

mod support;

use msrgate_core::Registers;
use support::Machine;

const AT: u64 = 0xc000;
const DATA: u64 = 0xd000;
const ZF: u64 = 1 << 6;

/// 32-bit code in protected mode, which has run one instruction with EDI at [`DATA`].
fn run(bytes: &[u8], registers: Registers, data: u64) -> Machine {
    let mut m = Machine::long(&[]);
    let mut system = m.cpu.system_registers();
    (system.cs.l, system.cs.db) = (false, true);
    m.cpu.set_system_registers(&system);
    m.cpu.set_registers(&Registers {
        rip: AT,
        rdi: DATA,
        rflags: registers.rflags | 2,
        ..registers
    });
    m.ram.write(AT, bytes);
    m.ram.write_u64(DATA, data);
    m.run(1);
    m
}

#[test]
fn arpl_raises_the_privilege_level_of_a_selector() {
    // The selector, the other one, what becomes of it.
    let rows = [
        (0x10, 0x0b, 0x13),
        (0x12, 0x0b, 0x13),
        (0x13, 0x0b, 0x13),
        (0x13, 0x08, 0x13),
    ];
    for (selector, other, expected) in rows {
        let raised = if selector == expected { 0 } else { ZF };
        let registers = Registers {
            rax: 0xdead_0000 | selector,
            rcx: other,
            rflags: ZF ^ raised,
            ..Registers::default()
        };
        let r = run(&[0x63, 0xc8], registers, 0).cpu.registers(); // arpl ax, cx
        assert_eq!(r.rax, 0xdead_0000 | expected);
        assert_eq!(r.rflags & ZF, raised, "{selector:#x} {other:#x}");
        let m = run(&[0x63, 0x0f], registers, 0xbeef_0000 | selector); // arpl [edi], cx
        assert_eq!(m.ram.read_u64(DATA), 0xbeef_0000 | expected);
        assert_eq!(m.cpu.registers().rflags & ZF, raised);
    }
}

#[test]
fn bound_faults_outside_its_two_numbers() {
    // 32 bits: -2 to 5; 16 bits in the same bytes: -2 to -1.
    let bounds = 0x0000_0005_ffff_fffe;
    let rows: [(&[u8], u64, bool); 8] = [
        (&[0x62, 0x07], 0xffff_fffe, true), // bound eax, [edi]
        (&[0x62, 0x07], 5, true),
        (&[0x62, 0x07], 6, false),
        (&[0x62, 0x07], 0xffff_fffd, false),
        (&[0x66, 0x62, 0x07], 0xfffe, true), // bound ax, [edi]
        (&[0x66, 0x62, 0x07], 0xffff, true),
        (&[0x66, 0x62, 0x07], 0, false),
        (&[0x66, 0x62, 0x07], 0xfffd, false),
    ];
    for (bytes, rax, inside) in rows {
        let registers = Registers {
            rax,
            ..Registers::default()
        };
        let m = run(bytes, registers, bounds);
        // Without a table of handlers, #BR is the first of three faults.
        assert_eq!(m.cpu.retired() == 1, inside, "{bytes:x?} {rax:#x}");
        assert!(m.cpu.unimplemented().is_empty());
    }
}

#[test]
fn salc_spreads_the_carry() {
    for (rflags, expected) in [(1, 0x12ff), (0, 0x1200)] {
        let registers = Registers {
            rax: 0x1234,
            rflags,
            ..Registers::default()
        };
        let r = run(&[0xd6], registers, 0).cpu.registers();
        assert_eq!((r.rax, r.rflags & 1), (expected, rflags));
    }
}
