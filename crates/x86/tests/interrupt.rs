//! Interrupts and exceptions: what is pushed (SDM vol. 3, figure 6-9), where it goes, and the way back.

mod support;
#[path = "support/tables.rs"]
mod tables;

use iced_x86::code_asm::*;
use msrgate_core::DescriptorTable;
use msrgate_x86::{Exception, Stop};
use support::{CODE, STACK};
use tables::{
    FOR_USER, IDT, INTERRUPT_GATE, IST1, KERNEL_CODE, KERNEL_DATA, RSP0, TRAP_GATE, USER_CODE,
    USER_DATA, assemble, become_user, frame, gate, halt, handler, kernel, user,
};

const RESERVED_ONE: u64 = 2;
const TF: u64 = 1 << 8;
const IF: u64 = 1 << 9;
const NT: u64 = 1 << 14;
const RF: u64 = 1 << 16;

const UD: u8 = 6;
const DF: u8 = 8;
const NP: u8 = 11;
const SS: u8 = 12;
const GP: u8 = 13;
const PF: u8 = 14;

#[test]
fn fault_without_error_code_pushes_five_qwords_and_rf() {
    let mut m = kernel(|a| a.ud2());
    assert_eq!(halt(&mut m), UD);
    let r = m.cpu.registers();
    assert_eq!(r.rsp, STACK - 40);
    assert_eq!(
        frame(&m),
        [
            CODE,
            u64::from(KERNEL_CODE),
            RESERVED_ONE | RF,
            STACK,
            u64::from(KERNEL_DATA)
        ]
    );
    assert_eq!(r.rflags, RESERVED_ONE);
    assert_eq!(m.cpu.system_registers().cs.selector, KERNEL_CODE);
}

#[test]
fn fault_with_error_code_pushes_it_last() {
    let mut m = kernel(|a| {
        a.mov(eax, 0x1234)?;
        a.mov(ds, eax)
    });
    assert_eq!(halt(&mut m), GP);
    assert_eq!(m.cpu.registers().rsp, STACK - 48);
    assert_eq!(frame(&m), [0x1234, CODE + 5]);
}

#[test]
fn stack_is_aligned_before_the_frame() {
    let mut m = kernel(|a| a.ud2());
    m.set(|r| r.rsp = STACK - 7);
    assert_eq!(halt(&mut m), UD);
    assert_eq!(m.cpu.registers().rsp, STACK - 16 - 40);
    assert_eq!(frame::<4>(&m)[3], STACK - 7);
}

#[test]
fn ist_replaces_the_stack_at_any_level() {
    for from_user in [false, true] {
        let mut m = kernel(|a| a.ud2());
        gate(&mut m, UD, INTERRUPT_GATE, 1);
        if from_user {
            become_user(&mut m);
        }
        assert_eq!(halt(&mut m), UD);
        assert_eq!(m.cpu.registers().rsp, IST1 - 40);
        let stack_selector = if from_user { 0 } else { KERNEL_DATA };
        assert_eq!(m.cpu.system_registers().ss.selector, stack_selector);
    }
}

#[test]
fn user_fault_goes_to_rsp0_with_null_ss() {
    let mut m = user(|a| a.ud2());
    assert_eq!(halt(&mut m), UD);
    assert_eq!(m.cpu.registers().rsp, RSP0 - 40);
    assert_eq!(
        frame(&m),
        [
            CODE,
            u64::from(USER_CODE),
            RESERVED_ONE | RF,
            STACK,
            u64::from(USER_DATA)
        ]
    );
    let system = m.cpu.system_registers();
    assert_eq!(
        (system.cs.selector, system.ss.selector, system.ss.dpl),
        (KERNEL_CODE, 0, 0)
    );
}

#[test]
fn interrupt_gate_clears_if_and_trap_gate_keeps_it() {
    for (kind, kept) in [(INTERRUPT_GATE, 0), (TRAP_GATE, IF)] {
        let mut m = kernel(|a| a.ud2());
        gate(&mut m, UD, kind, 0);
        m.set(|r| r.rflags = IF | NT | RESERVED_ONE);
        assert_eq!(halt(&mut m), UD);
        assert_eq!(
            m.cpu.registers().rflags,
            kept | RESERVED_ONE,
            "gate {kind:#x}"
        );
        assert_eq!(frame::<3>(&m)[2], IF | NT | RF | RESERVED_ONE);
    }
}

#[test]
fn int_n_pushes_the_next_instruction_and_no_rf() {
    let mut m = kernel(|a| a.int(0x80));
    assert_eq!(halt(&mut m), 0x80);
    assert_eq!(frame(&m), [CODE + 2, u64::from(KERNEL_CODE), RESERVED_ONE]);
}

#[test]
fn int_n_from_user_needs_a_gate_for_users() {
    let mut m = user(|a| a.int(0x80));
    assert_eq!(halt(&mut m), GP);
    // The selector names the IDT entry; EXT is clear.
    assert_eq!(frame(&m), [0x80 << 3 | 2, CODE]);

    let mut m = user(|a| a.int(0x80));
    gate(&mut m, 0x80, INTERRUPT_GATE + FOR_USER, 0);
    assert_eq!(halt(&mut m), 0x80);
}

#[test]
fn int3_and_int1_differ_in_privilege() {
    let mut m = user(|a| a.int3());
    assert_eq!(halt(&mut m), GP);
    assert_eq!(frame::<1>(&m), [3 << 3 | 2]);
    let mut m = user(|a| a.int1());
    assert_eq!(halt(&mut m), 1);
    assert_eq!(frame::<1>(&m), [CODE + 1]);
}

#[test]
fn missing_gate_names_the_vector_with_ext() {
    let mut m = kernel(|a| a.ud2());
    m.ram.write_u64(IDT + 16 * u64::from(UD), 0);
    assert_eq!(halt(&mut m), GP);
    assert_eq!(frame(&m), [u64::from(UD) << 3 | 3, CODE]);
    let mut m = kernel(|a| a.ud2());
    gate(&mut m, UD, INTERRUPT_GATE & !0x80, 0);
    assert_eq!(halt(&mut m), NP);
    assert_eq!(frame(&m), [u64::from(UD) << 3 | 3, CODE]);
}

#[test]
fn handler_must_be_64_bit_code() {
    let mut m = kernel(|a| a.ud2());
    for (selector, vector, code) in [
        (0, GP, 1),
        (KERNEL_DATA, GP, 0x11),
        (0x4000, GP, 0x4001),
        (USER_CODE, GP, 0x29),
    ] {
        m.set(|r| (r.rip, r.rsp) = (CODE, STACK));
        let entry = IDT + 16 * u64::from(UD);
        m.ram.write(entry + 2, &selector.to_le_bytes());
        assert_eq!(halt(&mut m), vector, "{selector:#x}");
        assert_eq!(frame::<1>(&m), [code], "{selector:#x}");
    }
}

#[test]
fn second_contributory_exception_is_a_double_fault() {
    let mut m = kernel(|a| {
        a.mov(eax, 0x1234)?;
        a.mov(ds, eax)
    });
    gate(&mut m, GP, INTERRUPT_GATE & !0x80, 0);
    assert_eq!(halt(&mut m), DF);
    // The error code is 0, the address the first fault's.
    assert_eq!(frame(&m), [0, CODE + 5]);
    let last = Exception {
        vector: GP,
        error_code: Some(0x1234),
    };
    assert_eq!(m.cpu.last_exception(), Some(last));
}

#[test]
fn page_fault_on_the_way_to_a_page_fault_is_a_double_fault() {
    let bad_stack = 0x80_0000_0000;
    let mut m = kernel(|a| a.mov(rax, qword_ptr(0x90_0000_0000_u64)));
    m.set(|r| r.rsp = bad_stack);
    gate(&mut m, DF, INTERRUPT_GATE, 1);
    assert_eq!(halt(&mut m), DF);
    assert_eq!(m.cpu.system_registers().cr2, bad_stack - 8);
    assert_eq!(
        frame(&m),
        [0, CODE, u64::from(KERNEL_CODE), RESERVED_ONE, bad_stack]
    );
}

#[test]
fn page_fault_on_the_way_to_a_benign_exception_is_a_page_fault() {
    let mut m = kernel(|a| a.ud2());
    m.set(|r| r.rsp = 0x80_0000_0000);
    gate(&mut m, PF, INTERRUPT_GATE, 1);
    assert_eq!(halt(&mut m), PF);
    // A write by the supervisor to a page that is not there.
    assert_eq!(frame(&m), [2, CODE]);
}

#[test]
fn non_canonical_stack_is_a_stack_fault() {
    let mut m = kernel(|a| a.ud2());
    m.set(|r| r.rsp = 1 << 47);
    gate(&mut m, SS, INTERRUPT_GATE, 1);
    m.set(|r| r.rsp = (1 << 47) + 32);
    assert_eq!(halt(&mut m), SS);
    assert_eq!(frame(&m), [1, CODE]);
}

#[test]
fn triple_fault_stops_for_good() {
    let mut m = kernel(|a| a.ud2());
    let mut system = m.cpu.system_registers();
    system.idt = DescriptorTable {
        base: IDT,
        limit: 0,
    };
    m.cpu.set_system_registers(&system);
    let before = m.cpu.registers();
    for _ in 0..2 {
        assert_eq!(m.run(10), Stop::TripleFault);
    }
    assert_eq!(m.cpu.registers(), before);
    assert_eq!(
        m.cpu.last_exception(),
        Some(Exception {
            vector: UD,
            error_code: None
        })
    );
}

#[test]
fn external_interrupt_waits_for_if_and_the_sti_shadow() {
    let mut m = kernel(|a| {
        a.sti()?;
        a.nop()?;
        a.nop()
    });
    assert!(!m.cpu.interrupt(0x40));
    assert_eq!(m.run(1), Stop::Budget);
    assert!(!m.cpu.can_interrupt(), "in the shadow of STI");
    assert_eq!(m.run(1), Stop::Budget);
    assert!(m.cpu.interrupt(0x40));
    assert_eq!(halt(&mut m), 0x40);
    assert_eq!(
        frame(&m),
        [CODE + 2, u64::from(KERNEL_CODE), RESERVED_ONE | IF]
    );
}

#[test]
fn mov_ss_keeps_an_nmi_away_from_the_next_instruction() {
    let mut m = kernel(|a| {
        a.mov(ss, eax)?;
        a.mov(rsp, rbx)?;
        a.nop()
    });
    m.set(|r| (r.rax, r.rbx) = (u64::from(KERNEL_DATA), STACK - 0x100));
    assert_eq!(m.run(1), Stop::Budget);
    m.cpu.nmi();
    assert_eq!(halt(&mut m), 2);
    assert_eq!(frame::<4>(&m)[3], STACK - 0x100);
}

#[test]
fn nmi_is_blocked_until_iret() {
    let mut m = kernel(|a| {
        a.nop()?;
        a.nop()?;
        a.nop()
    });
    let code = assemble(64, handler(2), |a| {
        a.inc(rcx)?;
        a.nop()?;
        a.iretq()
    });
    m.ram.write(handler(2), &code);
    m.cpu.nmi();
    // The delivery counts as one, INC as another.
    m.run(2);
    assert_eq!(m.cpu.registers().rcx, 1);
    m.cpu.nmi();
    m.run(1);
    assert_eq!(
        m.cpu.registers().rip,
        handler(2) + 4,
        "the second one waits"
    );
    m.run(1);
    assert_eq!(m.cpu.registers().rip, CODE);
    m.run(2);
    assert_eq!(m.cpu.registers().rcx, 2);
}

#[test]
fn single_step_of_int_n_goes_on_in_its_handler() {
    let mut m = kernel(|a| a.int(0x80));
    m.set(|r| r.rflags = TF | RESERVED_ONE);
    assert_eq!(halt(&mut m), 0x80);
    assert_eq!(frame::<3>(&m)[2], TF | RESERVED_ONE);
}

#[test]
fn single_step_traps_after_the_instruction_and_stops_in_the_handler() {
    let mut m = kernel(|a| {
        a.nop()?;
        a.nop()
    });
    m.set(|r| r.rflags = TF | RESERVED_ONE);
    assert_eq!(halt(&mut m), 1);
    assert_eq!(
        frame(&m),
        [CODE + 1, u64::from(KERNEL_CODE), TF | RESERVED_ONE]
    );
    assert_eq!(m.cpu.debug_registers().dr6, 0xffff_4ff0);
}
