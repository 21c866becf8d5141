//! System instructions: control registers, system calls, ports, CPUID, and the privilege that each needs.

mod support;
#[path = "support/tables.rs"]
mod tables;

use iced_x86::code_asm::*;
use msrgate_core::Segment;
use msrgate_x86::{Config, CpuidLeaf, CpuidRegister, Stop, supported_mask};
use support::{CODE, Machine, STACK};
use tables::{RSP0, TSS, USER_CODE, frame, kernel, step, user};

const DB: u8 = 1;
const UD: u8 = 6;
const GP: u8 = 13;

const IF: u64 = 1 << 9;

const PE: u64 = 1;
const WP: u64 = 1 << 16;
const NW: u64 = 1 << 29;
const CD: u64 = 1 << 30;
const PG: u64 = 1 << 31;
const PAE: u64 = 1 << 5;

#[test]
fn cr0_takes_only_what_the_manual_allows() {
    let rows = [
        ("as it was", PG | PE | 0x10, Ok(PG | PE | 0x10)),
        ("WP and CD", PG | PE | WP | CD, Ok(PG | PE | WP | CD | 0x10)),
        (
            "undefined bits are dropped",
            PG | PE | 1 << 17 | 1 << 28,
            Ok(PG | PE | 0x10),
        ),
        ("upper half", PG | PE | 1 << 32, Err(GP)),
        ("paging without protection", PG, Err(GP)),
        ("NW without CD", PG | PE | NW, Err(GP)),
        ("paging off in 64-bit mode", PE, Err(GP)),
    ];
    for (what, value, expected) in rows {
        let mut m = kernel(|a| a.mov(cr0, rax));
        m.set(|r| r.rax = value);
        let before = m.cpu.system_registers().cr0;
        assert_eq!(step(&mut m).err(), expected.err(), "{what}");
        assert_eq!(
            m.cpu.system_registers().cr0,
            expected.unwrap_or(before),
            "{what}"
        );
    }
}

#[test]
fn cr3_cr4_and_cr8_refuse_reserved_bits() {
    const SMAP: u64 = 1 << 21;
    const FSGSBASE: u64 = 1 << 16;
    let rows: [(&str, AsmRegisterCr, u64, Result<(), u8>); 10] = [
        ("CR3 up to MAXPHYADDR", cr3, 0x1000, Ok(())),
        ("CR3 above MAXPHYADDR", cr3, 1 << 40 | 0x1000, Err(GP)),
        ("CR4 with everything plain", cr4, 0x7ff | PAE, Ok(())),
        ("CR4.FSGSBASE, advertised", cr4, PAE | FSGSBASE, Ok(())),
        ("CR4.SMAP, not advertised", cr4, PAE | SMAP, Err(GP)),
        ("CR4.LA57", cr4, PAE | 1 << 12, Err(GP)),
        ("CR4, upper half", cr4, PAE | 1 << 32, Err(GP)),
        ("CR4 without PAE in long mode", cr4, 0, Err(GP)),
        ("CR8 of 15", cr8, 15, Ok(())),
        ("CR8 of 16", cr8, 16, Err(GP)),
    ];
    for (what, register, value, expected) in rows {
        let mut m = kernel(|a| a.mov(register, rax));
        m.set(|r| r.rax = value);
        assert_eq!(step(&mut m), expected, "{what}");
    }
}

#[test]
fn cr1_does_not_exist() {
    let mut m = Machine::long(&[0x0f, 0x20, 0xc8]);
    tables::install(&mut m);
    assert_eq!(step(&mut m), Err(UD));
}

#[test]
fn long_mode_begins_with_paging() {
    let real = |lme: u64, pae: u64| {
        let mut m = Machine::real(&[0x0f, 0x22, 0xc0]); // MOV CR0, EAX
        let mut system = m.cpu.system_registers();
        (system.cr0, system.cr4, system.efer) = (0x11, pae, lme);
        m.cpu.set_system_registers(&system);
        m.set(|r| r.rax = PG | PE);
        m.run(1);
        m.cpu.system_registers()
    };
    let long = real(0x100, PAE);
    assert_eq!((long.cr0, long.efer), (PG | PE | 0x10, 0x500));
    let legacy = real(0, PAE);
    assert_eq!((legacy.cr0, legacy.efer), (PG | PE | 0x10, 0));
    let refused = real(0x100, 0);
    assert_eq!((refused.cr0, refused.efer), (0x11, 0x100), "LME needs PAE");
}

#[test]
fn privileged_instructions_fault_for_the_user() {
    let rows: [(&str, &[u8]); 21] = [
        ("MOV RAX, CR0", &[0x0f, 0x20, 0xc0]),
        ("MOV CR3, RAX", &[0x0f, 0x22, 0xd8]),
        ("MOV RAX, DR7", &[0x0f, 0x21, 0xf8]),
        ("MOV DR7, RAX", &[0x0f, 0x23, 0xf8]),
        ("CLTS", &[0x0f, 0x06]),
        ("LMSW AX", &[0x0f, 0x01, 0xf0]),
        ("LGDT", &[0x0f, 0x01, 0x17]),
        ("LIDT", &[0x0f, 0x01, 0x1f]),
        ("LLDT AX", &[0x0f, 0x00, 0xd0]),
        ("LTR AX", &[0x0f, 0x00, 0xd8]),
        ("INVLPG", &[0x0f, 0x01, 0x3f]),
        ("WBINVD", &[0x0f, 0x09]),
        ("INVD", &[0x0f, 0x08]),
        ("HLT", &[0xf4]),
        ("CLI", &[0xfa]),
        ("STI", &[0xfb]),
        ("SWAPGS", &[0x0f, 0x01, 0xf8]),
        ("SYSRETQ", &[0x48, 0x0f, 0x07]),
        ("SYSEXITQ", &[0x48, 0x0f, 0x35]),
        ("RDMSR", &[0x0f, 0x32]),
        ("IN AL, DX", &[0xec]),
    ];
    for (what, code) in rows {
        let mut m = user(|a| a.db(code));
        let mut system = m.cpu.system_registers();
        system.efer |= 1;
        m.cpu.set_system_registers(&system);
        m.set(|r| (r.rdi, r.rdx) = (0x30_0000, 0x1000));
        // The bitmap forbids every port.
        m.ram.write(TSS + 0x68, &[0xff; 0x2000]);
        assert_eq!(step(&mut m), Err(GP), "{what}");
        assert_eq!(frame(&m), [0, CODE], "{what}");
    }
}

#[test]
fn umip_hides_the_tables_from_the_user() {
    for (umip, expected) in [(0, Ok(())), (1 << 11, Err(GP))] {
        for code in [
            [0x0f_u8, 0x01, 0x07],
            [0x0f, 0x01, 0x0f],
            [0x0f, 0x01, 0xe0],
            [0x0f, 0, 0xc0],
        ] {
            let mut m = user(|a| a.db(&code));
            let mut system = m.cpu.system_registers();
            system.cr4 |= umip;
            m.cpu.set_system_registers(&system);
            m.set(|r| r.rdi = 0x30_0000);
            assert_eq!(step(&mut m), expected, "{code:x?}");
        }
    }
}

#[test]
fn lgdt_and_sgdt_move_ten_bytes() {
    let mut m = kernel(|a| {
        a.db(&[0x0f, 0x01, 0x17])?; // LGDT [RDI]
        a.db(&[0x0f, 0x01, 0x06]) // SGDT [RSI]
    });
    let bytes = [0x34, 0x12, 1, 2, 3, 4, 5, 0x80, 0xff, 0xff];
    m.ram.write(0x30_0000, &bytes);
    m.set(|r| (r.rdi, r.rsi) = (0x30_0000, 0x30_0100));
    m.run(2);
    assert_eq!(m.ram.bytes[0x30_0100..0x30_010a], bytes);
    assert_eq!(m.cpu.system_registers().gdt.base, 0xffff_8005_0403_0201);
    m.ram.write(0x30_0000, &[0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0]);
    let mut m2 = kernel(|a| a.db(&[0x0f, 0x01, 0x17]));
    m2.ram.write(0x30_0000, &[0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0]);
    m2.set(|r| r.rdi = 0x30_0000);
    assert_eq!(step(&mut m2), Err(GP), "a base that is not canonical");
}

#[test]
fn syscall_and_sysret_build_their_segments_from_star() {
    let mut m = user(|a| {
        a.syscall()?;
        a.nop()
    });
    let mut system = m.cpu.system_registers();
    system.efer |= 1;
    m.cpu.set_system_registers(&system);
    m.cpu.msrs.star = 0x001b_0008_0000_0000;
    m.cpu.msrs.lstar = 0x31_0000;
    m.cpu.msrs.fmask = IF | 0x400;
    m.ram.write(0x31_0000, &[0x48, 0x0f, 0x07]);
    let rflags = IF | 0x400 | 0x41 | 2;
    m.set(|r| r.rflags = rflags);

    m.run(1);
    let (r, system) = (m.cpu.registers(), m.cpu.system_registers());
    assert_eq!((r.rip, r.rcx, r.r11), (0x31_0000, CODE + 2, rflags));
    assert_eq!((r.rsp, r.rflags), (STACK, 0x43));
    let flat = Segment {
        limit: u32::MAX,
        present: true,
        s: true,
        g: true,
        ..Segment::default()
    };
    assert_eq!(
        system.cs,
        Segment {
            selector: 8,
            type_: 0xb,
            l: true,
            ..flat
        }
    );
    assert_eq!(
        system.ss,
        Segment {
            selector: 0x10,
            type_: 3,
            db: true,
            ..flat
        }
    );

    m.run(1);
    let (r, system) = (m.cpu.registers(), m.cpu.system_registers());
    assert_eq!((r.rip, r.rflags), (CODE + 2, rflags));
    assert_eq!(
        system.cs,
        Segment {
            selector: 0x2b,
            type_: 0xb,
            l: true,
            dpl: 3,
            ..flat
        }
    );
    assert_eq!(
        system.ss,
        Segment {
            selector: 0x23,
            type_: 3,
            db: true,
            dpl: 3,
            ..flat
        }
    );
}

#[test]
fn sysretd_returns_to_32_bit_code() {
    let mut m = kernel(|a| a.db(&[0x0f, 0x07]));
    let mut system = m.cpu.system_registers();
    system.efer |= 1;
    m.cpu.set_system_registers(&system);
    m.cpu.msrs.star = 0x001b_0008_0000_0000;
    m.set(|r| (r.rcx, r.r11) = (0xffff_ffff_0030_0000, 2));
    m.run(1);
    let code = m.cpu.system_registers().cs;
    assert_eq!((code.selector, code.l, code.db), (0x1b, false, true));
    assert_eq!(m.cpu.registers().rip, 0x30_0000);
}

#[test]
fn syscall_needs_sce_and_sysret_a_canonical_rip() {
    let mut m = user(|a| a.syscall());
    let mut system = m.cpu.system_registers();
    system.efer &= !1;
    m.cpu.set_system_registers(&system);
    assert_eq!(step(&mut m), Err(UD));
    let mut m = kernel(|a| a.sysretq());
    let mut system = m.cpu.system_registers();
    system.efer |= 1;
    m.cpu.set_system_registers(&system);
    m.set(|r| r.rcx = 1 << 47);
    assert_eq!(step(&mut m), Err(GP));
}

#[test]
fn sysenter_and_sysexit_use_their_msrs() {
    let mut m = user(|a| a.sysenter());
    assert_eq!(step(&mut m), Err(GP), "without a selector");
    let mut m = user(|a| a.sysenter());
    (m.cpu.msrs.sysenter_cs, m.cpu.msrs.sysenter_eip) = (8, 0x31_0000);
    m.cpu.msrs.sysenter_esp = 0x18_0000;
    m.ram.write(0x31_0000, &[0x48, 0x0f, 0x35]);
    m.set(|r| (r.rcx, r.rdx, r.rflags) = (STACK, CODE + 2, IF | 2));
    m.run(1);
    let (r, system) = (m.cpu.registers(), m.cpu.system_registers());
    assert_eq!((r.rip, r.rsp, r.rflags), (0x31_0000, 0x18_0000, 2));
    assert_eq!(
        (system.cs.selector, system.ss.selector, system.ss.dpl),
        (8, 0x10, 0)
    );
    m.run(1);
    let (r, system) = (m.cpu.registers(), m.cpu.system_registers());
    assert_eq!((r.rip, r.rsp), (CODE + 2, STACK));
    assert_eq!((system.cs.selector, system.ss.selector), (0x2b, 0x33));
    assert!(system.cs.l);
}

/// APM vol. 3: SYSEXIT is not for users, and not for long mode; SYSRET does not look at RCX, so that the user's fetch
/// faults.
#[test]
fn sysexit_and_sysret_of_amd_are_its_own() {
    let on_amd = |m: &mut Machine| {
        let mut config = m.cpu.config().clone();
        for leaf in config.cpuid.iter_mut().filter(|leaf| leaf.function == 0) {
            let vendor = [b"Auth", b"enti", b"cAMD"].map(|part| u32::from_le_bytes(*part));
            [leaf.ebx, leaf.edx, leaf.ecx] = vendor;
        }
        m.cpu.set_config(config);
    };
    let mut m = user(|a| a.sysexit());
    on_amd(&mut m);
    assert_eq!(step(&mut m), Err(GP));
    let mut m = kernel(|a| a.sysexit());
    on_amd(&mut m);
    assert_eq!(step(&mut m), Err(UD));

    let mut m = kernel(|a| a.sysretq());
    on_amd(&mut m);
    let mut system = m.cpu.system_registers();
    system.efer |= 1;
    m.cpu.set_system_registers(&system);
    m.cpu.msrs.star = 0x001b_0008_0000_0000;
    m.set(|r| (r.rcx, r.r11) = (1 << 47, 2));
    assert_eq!(step(&mut m), Ok(()));
    assert_eq!(m.cpu.cpl(), 3);
    assert_eq!(step(&mut m), Err(GP));
    assert_eq!(frame(&m), [0, 1 << 47, u64::from(USER_CODE)]);
}

#[test]
fn swapgs_exchanges_the_bases() {
    let mut m = kernel(|a| a.swapgs());
    m.cpu.msrs.kernel_gs_base = 0xffff_8000_0000_1000;
    m.run(1);
    assert_eq!(m.cpu.system_registers().gs.base, 0xffff_8000_0000_1000);
    assert_eq!(m.cpu.msrs.kernel_gs_base, 0);
}

#[test]
fn wrfsbase_needs_cr4_and_a_canonical_base() {
    let run = |cr4_bit: u64, base: u64| {
        let mut m = user(|a| {
            a.wrfsbase(rax)?;
            a.rdfsbase(rbx)
        });
        let mut system = m.cpu.system_registers();
        system.cr4 |= cr4_bit;
        m.cpu.set_system_registers(&system);
        m.set(|r| r.rax = base);
        let outcome = step(&mut m);
        m.run(1);
        outcome.map(|()| m.cpu.registers().rbx)
    };
    assert_eq!(run(0, 0x1000), Err(UD));
    assert_eq!(run(1 << 16, 0x7fff_0000_1000), Ok(0x7fff_0000_1000));
    assert_eq!(run(1 << 16, 1 << 47), Err(GP));
}

#[test]
fn debug_registers_have_aliases_and_a_guard() {
    let mut m = kernel(|a| {
        a.mov(dr4, rax)?;
        a.mov(rbx, dr6)
    });
    m.set(|r| r.rax = 0);
    m.run(2);
    assert_eq!(
        m.cpu.registers().rbx,
        0xffff_0ff0,
        "DR4 is DR6 without CR4.DE"
    );
    let aliases: [&[u8]; 4] = [
        &[0x0f, 0x23, 0xe0], // mov dr4, rax
        &[0x0f, 0x21, 0xe0], // mov rax, dr4
        &[0x0f, 0x23, 0xe8], // mov dr5, rax
        &[0x0f, 0x21, 0xe8], // mov rax, dr5
    ];
    for code in aliases {
        let mut m = kernel(|a| a.db(code));
        let mut system = m.cpu.system_registers();
        system.cr4 |= 1 << 3;
        m.cpu.set_system_registers(&system);
        assert_eq!(step(&mut m), Err(UD), "{code:x?}");
    }
    let mut m = kernel(|a| a.mov(dr7, rax));
    m.set(|r| r.rax = 1 << 32);
    assert_eq!(step(&mut m), Err(GP));

    let mut m = kernel(|a| a.mov(rax, dr0));
    let mut debug = m.cpu.debug_registers();
    debug.dr7 |= 1 << 13;
    m.cpu.set_debug_registers(debug);
    assert_eq!(step(&mut m), Err(DB));
    let debug = m.cpu.debug_registers();
    assert_eq!((debug.dr6, debug.dr7), (0xffff_2ff0, 0x400));
    assert_eq!(frame::<1>(&m), [CODE], "a fault: RIP is the instruction's");
}

#[test]
fn hlt_and_hypercalls_have_retired_when_they_stop() {
    for (code, stop) in [
        (&[0xf4_u8][..], Stop::Hlt),
        (&[0x0f, 0x01, 0xc1], Stop::Hypercall),
        (&[0x0f, 0x01, 0xd9], Stop::Hypercall),
    ] {
        let mut m = kernel(|a| a.db(code));
        assert_eq!(m.run(1), stop);
        assert_eq!(m.cpu.registers().rip, CODE + code.len() as u64);
    }
}

#[test]
fn rdtsc_obeys_tsd_and_rdtscp_adds_tsc_aux() {
    let mut m = user(|a| a.rdtscp());
    m.cpu.msrs.tsc_aux = 0x1234;
    m.ram.clock = 5 << 32;
    assert_eq!(step(&mut m), Ok(()));
    let r = m.cpu.registers();
    assert_eq!((r.rax, r.rdx, r.rcx), (1, 5, 0x1234));
    let mut m = user(|a| a.rdtsc());
    let mut system = m.cpu.system_registers();
    system.cr4 |= 1 << 2;
    m.cpu.set_system_registers(&system);
    assert_eq!(step(&mut m), Err(GP));
}

#[test]
fn instructions_that_cpuid_does_not_advertise_are_undefined() {
    let mut m = kernel(|a| a.rdtscp());
    m.cpu.set_config(Config::default());
    assert_eq!(step(&mut m), Err(UD));
    for code in [
        &[0x0f, 0x01, 0xca][..], // CLAC
        &[0x0f, 0x01, 0xd0],     // XGETBV
        &[0x0f, 0x01, 0xc8],     // MONITOR
        &[0x0f, 0xaa],           // RSM
        &[0x0f, 0x0b],           // UD2
    ] {
        let mut m = kernel(|a| a.db(code));
        assert_eq!(step(&mut m), Err(UD), "{code:x?}");
        assert!(m.cpu.unimplemented().is_empty(), "{code:x?}");
    }
}

#[test]
fn cpuid_answers_from_the_table() {
    let mut m = kernel(|a| a.cpuid());
    m.set(|r| (r.rax, r.rcx) = (0xdead_0000_0000_0001, 77));
    m.run(1);
    let r = m.cpu.registers();
    assert_eq!(r.rax, 0x1_06a3);
    assert_eq!(r.rdx, u64::from(supported_mask(1, CpuidRegister::Edx)));

    let mut m = kernel(|a| a.cpuid());
    let row = CpuidLeaf {
        edx: 1 << 9,
        ..CpuidLeaf {
            function: 1,
            ..CpuidLeaf::default()
        }
    };
    m.cpu.set_config(Config {
        cpuid: vec![row],
        ..Config::default()
    });
    m.cpu.msrs.apic_base = 0xfee0_0000;
    m.set(|r| r.rax = 1);
    m.run(1);
    assert_eq!(m.cpu.registers().rdx, 0, "the APIC is disabled");
}

#[test]
fn fault_of_a_user_leaves_rsp0_aligned() {
    let mut m = user(|a| a.hlt());
    assert_eq!(step(&mut m), Err(GP));
    assert_eq!(m.cpu.registers().rsp, RSP0 - 48);
    assert_eq!(frame::<3>(&m)[2], u64::from(USER_CODE));
}

#[test]
fn invlpg_makes_a_changed_entry_visible() {
    let mut m = kernel(|a| {
        a.mov(rax, qword_ptr(rdi))?;
        a.mov(qword_ptr(rsi), rcx)?;
        a.mov(rbx, qword_ptr(rdi))?;
        a.invlpg(qword_ptr(rdi))?;
        a.mov(rdx, qword_ptr(rdi))
    });
    // 0x60_0000 is a 2 MiB page whose entry moves to 0x80_0000.
    m.ram.write_u64(0x60_0000, 6);
    m.ram.write_u64(0x80_0000, 8);
    let entry = 0x3000 + 3 * 8;
    assert_eq!(m.ram.read_u64(entry) & !0xfff, 0x60_0000);
    m.set(|r| (r.rdi, r.rsi, r.rcx) = (0x60_0000, entry, 0x80_0087));
    m.run(5);
    let r = m.cpu.registers();
    assert_eq!((r.rax, r.rbx, r.rdx), (6, 6, 8));
}

#[test]
fn program_that_pauses_often_lets_others_run() {
    let mut m = kernel(|a| {
        for _ in 0..40 {
            a.pause()?;
        }
        a.hlt()
    });
    for rip in [16, 32] {
        assert_eq!(m.run(100), Stop::Pause);
        assert_eq!(m.cpu.registers().rip, CODE + 2 * rip);
    }
    assert_eq!(m.run(100), Stop::Hlt);
}
