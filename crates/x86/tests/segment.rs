//! Segment registers and far transfers: which descriptor may go where, and the error code if it may not.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "what fails here fails the test"
)]

mod support;
#[path = "support/tables.rs"]
mod tables;

use iced_x86::code_asm::*;
use msrgate_x86::Stop;
use support::{CODE, Machine, STACK};
use tables::{
    FREE, GDT, KERNEL_CODE, KERNEL_DATA, RSP0, TASK, TSS, USER_CODE, USER_CODE_32, USER_DATA,
    become_user, frame, kernel,
};

const UD: u8 = 6;
const NP: u8 = 11;
const SS: u8 = 12;
const GP: u8 = 13;

const PRESENT: u64 = 1 << 47;

/// Runs to a HLT: `Ok` if it is the program's own, else the vector and the error code.
fn outcome(m: &mut Machine) -> Result<(), (u8, u64)> {
    assert_eq!(m.run(1000), Stop::Hlt);
    let rip = m.cpu.registers().rip;
    if !(tables::HANDLERS..tables::HANDLERS + 0x1000).contains(&rip) {
        return Ok(());
    }
    let vector = u8::try_from((rip - 1 - tables::HANDLERS) / 16).unwrap();
    Err((vector, if vector == UD { 0 } else { frame::<1>(m)[0] }))
}

/// What MOV to a segment register says to `selector`, with `raw` at FREE.
fn load(register: AsmRegisterSegment, cpl: u8, raw: u64, selector: u16) -> Result<(), (u8, u64)> {
    // HLT would fault for the user: INT1 ends both.
    let mut m = kernel(|a| {
        a.mov(register, eax)?;
        a.int1()
    });
    tables::descriptor(&mut m, 0, raw);
    m.set(|r| r.rax = u64::from(selector));
    if cpl == 3 {
        become_user(&mut m);
    }
    match outcome(&mut m) {
        Err((1, _)) => Ok(()),
        other => other,
    }
}

#[test]
fn data_segment_registers_take_what_may_be_read() {
    let data = 0x00cf_9200_0000_ffff;
    let user = 0x00cf_f200_0000_ffff;
    let code = 0x00af_9a00_0000_ffff;
    let execute_only = 0x00af_9800_0000_ffff;
    let conforming = 0x00af_9e00_0000_ffff;
    let error = u64::from(FREE);
    let rows = [
        ("data", 0, data, FREE, Ok(())),
        ("data with a low RPL", 0, data, FREE | 3, Err((GP, error))),
        (
            "data of the kernel for the user",
            3,
            data,
            FREE | 3,
            Err((GP, error)),
        ),
        ("data of the user", 3, user, FREE | 3, Ok(())),
        ("data of the user for the kernel", 0, user, FREE, Ok(())),
        ("readable code", 0, code, FREE, Ok(())),
        (
            "code that cannot be read",
            0,
            execute_only,
            FREE,
            Err((GP, error)),
        ),
        (
            "conforming code of the kernel for the user",
            3,
            conforming,
            FREE | 3,
            Ok(()),
        ),
        ("absent data", 0, data & !PRESENT, FREE, Err((NP, error))),
        (
            "a system segment",
            0,
            0x0000_8200_0000_ffff,
            FREE,
            Err((GP, error)),
        ),
        ("null", 0, data, 0, Ok(())),
        ("null with an RPL", 3, data, 3, Ok(())),
        ("outside the table", 0, data, 0x60, Err((GP, 0x60))),
        ("the LDT, without one", 0, data, 4, Err((GP, 4))),
    ];
    for (what, cpl, raw, selector, expected) in rows {
        for register in [ds, es, fs, gs] {
            assert_eq!(load(register, cpl, raw, selector), expected, "{what}");
        }
    }
}

#[test]
fn stack_segment_register_takes_what_the_level_may_write() {
    let data = 0x00cf_9200_0000_ffff;
    let error = u64::from(FREE);
    let rows = [
        ("data", 0, data, FREE, Ok(())),
        (
            "read-only data",
            0,
            0x00cf_9000_0000_ffff,
            FREE,
            Err((GP, error)),
        ),
        ("code", 0, 0x00af_9a00_0000_ffff, FREE, Err((GP, error))),
        (
            "a DPL of 3 for the kernel",
            0,
            0x00cf_f200_0000_ffff,
            FREE,
            Err((GP, error)),
        ),
        (
            "an RPL of 3 for the kernel",
            0,
            data,
            FREE | 3,
            Err((GP, error)),
        ),
        ("absent data", 0, data & !PRESENT, FREE, Err((SS, error))),
        ("null for the kernel", 0, data, 0, Ok(())),
        ("null with another RPL", 0, data, 1, Err((GP, 0))),
        ("null for the user", 3, data, 3, Err((GP, 0))),
        (
            "data of the user",
            3,
            0x00cf_f200_0000_ffff,
            FREE | 3,
            Ok(()),
        ),
    ];
    for (what, cpl, raw, selector, expected) in rows {
        assert_eq!(load(ss, cpl, raw, selector), expected, "{what}");
    }
}

#[test]
fn load_sets_the_accessed_bit_and_takes_the_base() {
    let mut m = kernel(|a| {
        a.mov(fs, eax)?;
        a.mov(rbx, qword_ptr(8).fs())?;
        a.hlt()
    });
    tables::descriptor(&mut m, 0, 0x0000_9230_0000_ffff);
    m.ram.write_u64(0x30_0008, 0x1234);
    m.set(|r| r.rax = FREE.into());
    assert_eq!(outcome(&mut m), Ok(()));
    assert_eq!(m.cpu.registers().rbx, 0x1234);
    assert_eq!(m.ram.read_u64(GDT + u64::from(FREE)), 0x0000_9330_0000_ffff);
}

#[test]
fn mov_to_cs_does_not_exist() {
    let mut m = Machine::long(&[0x8e, 0xc8]);
    tables::install(&mut m);
    assert_eq!(outcome(&mut m), Err((UD, 0)));
}

#[test]
fn far_jump_changes_the_code_segment() {
    let to = |selector: u16| {
        let mut m = kernel(|a| {
            a.db(&[0x48, 0xff, 0x2f])?; // JMP FAR m16:64 at RDI
            a.nop()
        });
        m.ram.write_u64(0x30_0000, 0x31_0000);
        m.ram.write(0x30_0008, &selector.to_le_bytes());
        m.ram.write(0x31_0000, &[0x40, 0x40, 0xf4]);
        m.set(|r| r.rdi = 0x30_0000);
        m
    };
    // To compatibility mode, where 0x40 is INC EAX.
    let mut m = to(FREE);
    tables::descriptor(&mut m, 0, 0x00cf_9a00_0000_ffff);
    assert_eq!(outcome(&mut m), Ok(()));
    assert_eq!(m.cpu.registers().rax, 2);
    assert_eq!(m.cpu.system_registers().cs.selector, FREE);
    for (what, raw, selector, expected) in [
        ("null", 0, 0, (GP, 0)),
        ("data", 0x00cf_9200_0000_ffff, FREE, (GP, 0x40)),
        ("user code", 0x00af_fa00_0000_ffff, FREE, (GP, 0x40)),
        ("absent code", 0x00af_1a00_0000_ffff, FREE, (NP, 0x40)),
        ("both L and D", 0x00ef_9a00_0000_ffff, FREE, (GP, 0x40)),
        ("a TSS", 0x0000_8900_0000_ffff, FREE, (GP, 0x40)),
        ("beyond a small limit", 0x0040_9a00_0000_ffff, FREE, (GP, 0)),
    ] {
        let mut m = to(selector);
        tables::descriptor(&mut m, 0, raw);
        assert_eq!(outcome(&mut m), Err(expected), "{what}");
    }
}

#[test]
fn far_return_goes_to_the_user_and_drops_kernel_segments() {
    let mut m = kernel(|a| a.db(&[0x48, 0xca, 16, 0]));
    m.ram.write(0x30_0000, &[0xf1]); // INT1
    for (i, qword) in [
        0x30_0000,
        USER_CODE.into(),
        0,
        0,
        0x38_0000,
        USER_DATA.into(),
    ]
    .into_iter()
    .enumerate()
    {
        m.ram.write_u64(STACK - 48 + 8 * i as u64, qword);
    }
    m.set(|r| r.rsp = STACK - 48);
    assert_eq!(outcome(&mut m).unwrap_err().0, 1);
    assert_eq!(
        frame(&m),
        [
            0x30_0001,
            u64::from(USER_CODE),
            2,
            0x38_0010,
            u64::from(USER_DATA)
        ]
    );
    assert!(m.cpu.system_registers().ds.unusable, "DS had DPL 0");
}

#[test]
fn call_gate_switches_to_the_stack_of_its_level() {
    let mut m = kernel(|a| {
        a.db(&[0xff, 0x1f])?; // CALL FAR m16:32 at RDI
        a.nop()
    });
    // A 64-bit call gate of DPL 3 to 0x31_0000, which the user may call.
    tables::descriptor(&mut m, 0, 0x0031_ec00_0008_0000);
    tables::descriptor(&mut m, 1, 0);
    m.ram.write(0x30_0004, &(FREE | 3).to_le_bytes());
    m.ram.write(0x31_0000, &[0xf4]);
    become_user(&mut m);
    m.set(|r| r.rdi = 0x30_0000);
    assert_eq!(outcome(&mut m), Ok(()));
    assert_eq!(m.cpu.registers().rip, 0x31_0001);
    assert_eq!(m.cpu.registers().rsp, RSP0 - 32);
    assert_eq!(
        frame(&m),
        [CODE + 2, u64::from(USER_CODE), STACK, u64::from(USER_DATA)]
    );
    let system = m.cpu.system_registers();
    assert_eq!((system.cs.selector, system.ss.selector), (KERNEL_CODE, 0));
}

#[test]
fn call_gate_of_the_kernel_is_closed_to_the_user() {
    let mut m = kernel(|a| a.db(&[0xff, 0x1f]));
    tables::descriptor(&mut m, 0, 0x0031_8c00_0008_0000);
    m.ram.write(0x30_0004, &(FREE | 3).to_le_bytes());
    become_user(&mut m);
    m.set(|r| r.rdi = 0x30_0000);
    assert_eq!(outcome(&mut m), Err((GP, FREE.into())));
}

/// SDM vol. 2, CALL: the gate's level, then whether it is present, then what it leads to.
#[test]
fn call_gate_that_is_not_present_is_told_of_before_its_upper_half() {
    for (gate, expected) in [
        (0x0031_6c00_0008_0000, (NP, FREE.into())),
        (0x0031_ec00_0008_0000, (GP, FREE.into())),
    ] {
        let mut m = kernel(|a| a.db(&[0xff, 0x1f]));
        tables::descriptor(&mut m, 0, gate);
        tables::descriptor(&mut m, 1, 0x1f00 << 32);
        m.ram.write(0x30_0004, &(FREE | 3).to_le_bytes());
        become_user(&mut m);
        m.set(|r| r.rdi = 0x30_0000);
        assert_eq!(outcome(&mut m), Err(expected));
    }
}

/// The size of a code segment is that of its operands; where it runs, EIP has 32 bits.
#[test]
fn code_of_16_bits_runs_above_64_kib() {
    let mut m = kernel(|a| a.db(&[0xff, 0x2f])); // JMP FAR m16:32 at RDI
    tables::descriptor(&mut m, 0, 0x008f_9b00_0000_ffff);
    m.ram.write(0x30_0000, &0x31_0000_u32.to_le_bytes());
    m.ram.write(0x30_0004, &FREE.to_le_bytes());
    m.ram.write(0x31_0000, &[0x90, 0x90]);
    m.set(|r| r.rdi = 0x30_0000);
    m.run(3);
    let system = m.cpu.system_registers();
    assert_eq!((system.cs.db, system.cs.l), (false, false));
    assert_eq!(m.cpu.registers().rip, 0x31_0002);
}

#[test]
fn ltr_marks_the_tss_busy_and_lldt_takes_16_bytes() {
    let mut m = kernel(|a| {
        a.ltr(ax)?;
        a.lldt(bx)?;
        a.str(ecx)?;
        a.sldt(edx)?;
        a.hlt()
    });
    let at = GDT + u64::from(TASK);
    let available = m.ram.read_u64(at) & !(2 << 40);
    m.ram.write_u64(at, available);
    m.ram.write_u64(at + 8, 0xffff_8000);
    tables::descriptor(&mut m, 0, 0x0000_8230_0000_0fff);
    tables::descriptor(&mut m, 1, 0xffff_9000);
    m.set(|r| (r.rax, r.rbx) = (TASK.into(), FREE.into()));
    assert_eq!(outcome(&mut m), Ok(()));
    assert_eq!(m.ram.read_u64(at), available | 2 << 40);
    let system = m.cpu.system_registers();
    assert_eq!(
        (system.tr.base, system.tr.type_),
        (0xffff_8000_0000_0000 | TSS, 0xb)
    );
    assert_eq!(
        (system.ldt.base, system.ldt.limit),
        (0xffff_9000_0030_0000, 0xfff)
    );
    assert_eq!(
        (m.cpu.registers().rcx, m.cpu.registers().rdx),
        (TASK.into(), FREE.into())
    );
}

#[test]
fn ltr_refuses_what_is_no_available_tss() {
    for (what, selector, raw, expected) in [
        ("busy", TASK, 0x0000_8b00_b000_2067, (GP, 0x30)),
        ("null", 0, 0, (GP, 0)),
        ("in the LDT", 4, 0, (GP, 4)),
        ("a data segment", KERNEL_DATA, 0, (GP, 0x10)),
        ("absent", TASK, 0x0000_0900_b000_2067, (NP, 0x30)),
        (
            "a 16-bit TSS in long mode",
            TASK,
            0x0000_8100_b000_2067,
            (GP, 0x30),
        ),
    ] {
        let mut m = kernel(|a| a.ltr(ax));
        m.ram.write_u64(GDT + u64::from(TASK), raw);
        m.set(|r| r.rax = selector.into());
        assert_eq!(outcome(&mut m), Err(expected), "{what}");
    }
}

#[test]
fn lar_lsl_verr_and_verw_answer_in_zf() {
    const ABSENT: (u64, u64) = (0x5555, 0x5555);
    let rows = [
        // selector, rights and limit, readable, writable
        (
            KERNEL_CODE,
            (0x00af_9b00 & 0x00f0_ff00, 0xffff_ffff),
            true,
            false,
        ),
        (KERNEL_DATA, (0x00c0_9300, 0xffff_ffff), true, true),
        (USER_CODE_32, (0x00c0_fb00, 0xffff_ffff), true, false),
        (TASK, (0x0000_8b00, 0x2067), false, false),
        (0, ABSENT, false, false),
        (0x60, ABSENT, false, false),
        (KERNEL_DATA | 3, ABSENT, false, false),
    ];
    for (selector, (rights, limit), readable, writable) in rows {
        let mut m = kernel(|a| {
            a.lar(ebx, eax)?;
            a.setz(r8b)?;
            a.lsl(ecx, eax)?;
            a.setz(r9b)?;
            a.verr(ax)?;
            a.setz(r10b)?;
            a.verw(ax)?;
            a.setz(r11b)?;
            a.hlt()
        });
        m.set(|r| (r.rax, r.rbx, r.rcx) = (selector.into(), 0x5555, 0x5555));
        assert_eq!(outcome(&mut m), Ok(()));
        let r = m.cpu.registers();
        assert_eq!((r.rbx, r.rcx), (rights, limit), "{selector:#x}");
        let found = u64::from((rights, limit) != ABSENT);
        assert_eq!((r.r8, r.r9), (found, found), "{selector:#x}");
        assert_eq!(
            (r.r10, r.r11),
            (readable.into(), writable.into()),
            "{selector:#x}"
        );
    }
}

#[test]
fn far_pointer_load_has_no_interrupt_shadow() {
    let mut m = kernel(|a| a.db(&[0x0f, 0xb2, 0x27])); // LSS ESP, m16:32 at RDI
    m.ram
        .write(0x30_0000, &[0, 0, 0x1c, 0, KERNEL_DATA as u8, 0]);
    m.set(|r| (r.rdi, r.rflags) = (0x30_0000, 0x202));
    assert_eq!(m.run(1), Stop::Budget);
    assert_eq!(m.cpu.registers().rsp, 0x1c_0000);
    assert!(m.cpu.can_interrupt());
}
