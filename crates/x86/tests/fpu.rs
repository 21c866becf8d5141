//! x87 and SSE under the system's control: switched off, saved, restored, with pending and unmasked
//! exceptions. What single instructions compute is compared with the host in `native`.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "a guest address is an index into the test's RAM"
)]

mod support;
#[path = "support/tables.rs"]
mod tables;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use msrgate_x86::{Fpu, Stop};
use support::{CODE, Machine};

const UD: u8 = 6;
const NM: u8 = 7;
const GP: u8 = 13;
const PF: u8 = 14;
const MF: u8 = 16;
const XM: u8 = 19;

const EM: u64 = 1 << 2;
const TS: u64 = 1 << 3;
const OSFXSR: u64 = 1 << 9;
const OSXMMEXCPT: u64 = 1 << 10;

/// Where operands are.
const AREA: u64 = 0x30_0000;
/// The end of RAM that is mapped for writing: see [`fxsave_into_a_missing_page_changes_nothing`].
const RAM_END: u64 = 64 << 20;

fn machine(build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Machine {
    let mut a = CodeAssembler::new(64).unwrap();
    build(&mut a).unwrap();
    let mut m = Machine::long(&a.assemble(CODE).unwrap());
    tables::install(&mut m);
    m.set(|r| r.rdi = AREA);
    m
}

/// Runs one instruction: `Ok`, or the vector of its exception.
fn step(m: &mut Machine) -> Result<(), u8> {
    assert_eq!(m.run(1), Stop::Budget);
    match m.cpu.registers().rip.checked_sub(tables::HANDLERS) {
        Some(at) if at < 0x1000 => Err(u8::try_from(at / 16).unwrap()),
        _ => Ok(()),
    }
}

/// Sets and clears bits of CR0 and CR4.
fn control(m: &mut Machine, cr0_set: u64, cr4_clear: u64) {
    let mut system = m.cpu.system_registers();
    system.cr0 |= cr0_set;
    system.cr4 = (system.cr4 | OSFXSR | OSXMMEXCPT) & !cr4_clear;
    m.cpu.set_system_registers(&system);
}

type Build = fn(&mut CodeAssembler) -> Result<(), IcedError>;
/// Name, instruction, CR0 bits that are set, CR4 bits that are not, and what comes of it.
type Row = (&'static str, Build, u64, u64, Result<(), u8>);

#[test]
fn switched_off_units_fault() {
    let sse: Build = |a| a.addps(xmm0, xmm1);
    let integer: Build = |a| a.pxor(xmm0, xmm1);
    let csr: Build = |a| a.ldmxcsr(dword_ptr(rdi));
    let x87: Build = |a| a.fld1();
    let save: Build = |a| a.fxsave(ptr(rdi));
    let mmx: Build = |a| a.emms();
    let rows: [Row; 14] = [
        ("SSE", sse, 0, 0, Ok(())),
        ("SSE, TS", sse, TS, 0, Err(NM)),
        ("SSE, EM", sse, EM, 0, Err(UD)),
        ("SSE, EM before TS", sse, EM | TS, 0, Err(UD)),
        ("SSE, no OSFXSR", sse, 0, OSFXSR, Err(UD)),
        ("SSE2 integers, TS", integer, TS, 0, Err(NM)),
        ("LDMXCSR, TS", csr, TS, 0, Err(NM)),
        ("x87", x87, 0, 0, Ok(())),
        ("x87, TS", x87, TS, 0, Err(NM)),
        ("x87, EM", x87, EM, 0, Err(NM)),
        ("x87 needs no OSFXSR", x87, 0, OSFXSR, Ok(())),
        ("FXSAVE, TS", save, TS, 0, Err(NM)),
        ("EMMS, TS", mmx, TS, 0, Err(NM)),
        ("EMMS, EM", mmx, EM, 0, Err(UD)),
    ];
    for (name, build, set, clear, wanted) in rows {
        let mut m = machine(build);
        m.ram.write(AREA, &0x1f80_u32.to_le_bytes());
        control(&mut m, set, clear);
        assert_eq!(step(&mut m), wanted, "{name}");
    }
}

#[test]
fn wait_faults_only_with_both_mp_and_ts() {
    const MP: u64 = 1 << 1;
    for (bits, wanted) in [(TS | MP, Err(NM)), (MP, Ok(()))] {
        let mut m = machine(|a| a.wait());
        control(&mut m, bits, 0);
        assert_eq!(step(&mut m), wanted, "{bits:#x}");
    }
}

fn distinct() -> Fpu {
    let mut fpu = Fpu {
        fcw: 0x27f,
        fsw: 0x3800,
        ftw: 0x81,
        fop: 0x123,
        fip: 0x1111_2222_3333_4444,
        fdp: 0x5555_6666_7777_8888,
        mxcsr: 0x9fc0,
        ..Fpu::default()
    };
    for (i, st) in (1..).zip(&mut fpu.st) {
        st[..10].fill(i);
    }
    for (i, xmm) in (1..).zip(&mut fpu.xmm) {
        *xmm = u128::from_le_bytes([0x80 | i; 16]);
    }
    fpu
}

#[test]
fn fxsave64_has_the_manuals_layout() {
    let mut m = machine(|a| a.fxsave64(ptr(rdi)));
    control(&mut m, 0, 0);
    m.cpu.set_fpu(distinct());
    m.ram.write(AREA, &[0xee; 512]);
    assert_eq!(step(&mut m), Ok(()));
    let area = &m.ram.bytes[AREA as usize..][..512];
    assert_eq!(area[..8], [0x7f, 0x02, 0x00, 0x38, 0x81, 0, 0x23, 0x01]);
    assert_eq!(m.ram.read_u64(AREA + 8), 0x1111_2222_3333_4444);
    assert_eq!(m.ram.read_u64(AREA + 16), 0x5555_6666_7777_8888);
    assert_eq!(
        m.ram.read_u64(AREA + 24),
        0xffff_0000_9fc0,
        "MXCSR and its mask"
    );
    for i in 0..8_u8 {
        let st = &area[32 + 16 * usize::from(i)..][..16];
        assert_eq!((&st[..10], &st[10..]), (&[i + 1; 10][..], &[0; 6][..]));
    }
    for i in 0..16_u8 {
        let xmm = &area[160 + 16 * usize::from(i)..][..16];
        assert_eq!(xmm, [0x80 | (i + 1); 16]);
    }
    assert_eq!(area[416..], [0xee; 96], "not touched");
}

#[test]
fn fxrstor64_brings_back_what_fxsave64_saved() {
    let mut m = machine(|a| {
        a.fxsave64(ptr(rdi))?;
        a.fninit()?;
        a.pxor(xmm3, xmm3)?;
        a.fxrstor64(ptr(rdi))
    });
    control(&mut m, 0, 0);
    m.cpu.set_fpu(distinct());
    assert_eq!(m.run(3), Stop::Budget);
    assert_ne!(*m.cpu.fpu(), distinct());
    assert_eq!(step(&mut m), Ok(()));
    assert_eq!(*m.cpu.fpu(), distinct());
}

#[test]
fn fxrstor_refuses_reserved_mxcsr_bits_and_odd_addresses() {
    let rows = [
        (0, 0xffff_u32, Ok(())),
        (0, 0x1_0000, Err(GP)),
        (8, 0x1f80, Err(GP)),
    ];
    for (offset, mxcsr, wanted) in rows {
        let mut m = machine(|a| a.fxrstor(ptr(rdi)));
        control(&mut m, 0, 0);
        m.ram.write(AREA + 24, &mxcsr.to_le_bytes());
        m.set(|r| r.rdi = AREA + offset);
        assert_eq!(step(&mut m), wanted, "{offset} {mxcsr:#x}");
        let after = if wanted.is_ok() { mxcsr } else { 0x1f80 };
        assert_eq!(m.cpu.fpu().mxcsr, after);
    }
}

#[test]
fn ldmxcsr_refuses_reserved_bits() {
    let mut m = machine(|a| a.ldmxcsr(dword_ptr(rdi)));
    control(&mut m, 0, 0);
    m.ram.write(AREA, &0x1_1f80_u32.to_le_bytes());
    assert_eq!(step(&mut m), Err(GP));
    assert_eq!(m.cpu.fpu().mxcsr, 0x1f80);
}

#[test]
fn fxsave_into_a_missing_page_changes_nothing() {
    let mut m = machine(|a| a.fxsave64(ptr(rdi)));
    control(&mut m, 0, 0);
    // The 2 MiB page behind RAM is not mapped.
    let directory_entry = 0x3000 + (RAM_END >> 21) * 8;
    m.ram.write_u64(directory_entry, 0);
    let area = RAM_END - 256;
    m.ram.write(area, &[0xee; 256]);
    m.set(|r| r.rdi = area);
    assert_eq!(step(&mut m), Err(PF));
    assert_eq!(m.cpu.system_registers().cr2, RAM_END);
    assert!(
        m.ram.bytes[area as usize..]
            .iter()
            .all(|&byte| byte == 0xee)
    );
}

#[test]
fn unmasked_sse_exception_is_xm_or_ud_and_leaves_the_destination() {
    const ONE: u128 = 0x3f80_0000;
    for (cleared, wanted) in [(0, Err(XM)), (OSXMMEXCPT, Err(UD))] {
        let mut m = machine(|a| a.divss(xmm0, xmm1));
        control(&mut m, 0, cleared);
        let mut fpu = Fpu {
            mxcsr: 0x1d80,
            ..Fpu::default()
        };
        fpu.xmm[0] = ONE;
        m.cpu.set_fpu(fpu);
        assert_eq!(step(&mut m), wanted);
        let fpu = m.cpu.fpu();
        assert_eq!((fpu.xmm[0], fpu.mxcsr), (ONE, 0x1d84), "ZE");
    }
}

#[test]
fn unmasked_x87_exception_waits_for_the_next_instruction() {
    const ZERO_DIVIDE_UNMASKED: u16 = 0x37b;
    let mut m = machine(|a| {
        a.fld1()?;
        a.fldz()?;
        a.fdivp(st1, st0)?;
        a.fnstsw(ax)?;
        a.fld1()
    });
    control(&mut m, 0, 0);
    m.cpu.set_fpu(Fpu {
        fcw: ZERO_DIVIDE_UNMASKED,
        ..Fpu::default()
    });
    for _ in 0..4 {
        assert_eq!(step(&mut m), Ok(()));
    }
    assert_eq!(m.cpu.registers().rax & 0x84, 0x84, "ES and ZE");
    assert_eq!(step(&mut m), Err(MF));
}

#[test]
fn fninit_gives_the_default_control_word_and_an_empty_stack() {
    let mut m = machine(|a| a.fninit());
    control(&mut m, 0, 0);
    m.cpu.set_fpu(distinct());
    assert_eq!(step(&mut m), Ok(()));
    let Fpu {
        fcw,
        fsw,
        ftw,
        fip,
        fdp,
        fop,
        mxcsr,
        ..
    } = *m.cpu.fpu();
    assert_eq!((fcw, fsw, ftw), (0x37f, 0, 0));
    assert_eq!((fip, fdp, fop), (0, 0, 0));
    assert_eq!(mxcsr, 0x9fc0, "is not x87's");
}

#[test]
fn x87_pointers_name_the_instruction_and_its_operand() {
    let mut m = machine(|a| {
        a.fld(qword_ptr(rdi))?;
        a.fnstenv(ptr(rdi))
    });
    control(&mut m, 0, 0);
    assert_eq!(m.run(2), Stop::Budget);
    let fpu = m.cpu.fpu();
    assert_eq!((fpu.fip, fpu.fdp, fpu.fop), (CODE, AREA, 0x507));
    assert_eq!(m.ram.read_u64(AREA + 12), CODE | 0x507 << 48);
    assert_eq!(m.ram.read_u64(AREA + 20), AREA);
}
