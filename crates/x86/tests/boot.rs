//! The way of every kernel: real mode, protected mode, long mode, a user program, its system call, and a
//! page fault that maps the page.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "what fails here fails the test"
)]

mod support;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use msrgate_x86::{Bus, Config, Cpu, Stop, fixed_cpuid};
use support::{Machine, Ram};

const REAL: u64 = 0x7c00;
const PROTECTED: u64 = 0x8000;
const LONG: u64 = 0x9000;
const USER: u64 = 0x40_0000;
const SYSTEM_CALL: u64 = 0xa000;
const PAGE_FAULT: u64 = 0xb000;

const GDT: u64 = 0x6000;
const TABLE_POINTERS: u64 = 0x6800;
const IDT: u64 = 0x2_0000;
const TSS: u64 = 0x7000;
const TABLES: u64 = 0x1_0000;

/// Mapped only by the handler of the page fault, to [`FRAME`].
const HOLE: u64 = 0x80_0000_0000;
const FRAME: u64 = 0x50_0000;

const PORT: u16 = 0x3f8;
const IA32_EFER: u32 = 0xc000_0080;
const IA32_STAR: u32 = 0xc000_0081;
const IA32_LSTAR: u32 = 0xc000_0082;

fn put(
    ram: &mut Ram,
    bits: u32,
    at: u64,
    build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) {
    let mut a = CodeAssembler::new(bits).unwrap();
    build(&mut a).unwrap();
    ram.write(at, &a.assemble(at).unwrap());
}

fn pointer(ram: &mut Ram, at: u64, limit: u16, base: u64) {
    ram.write(at, &limit.to_le_bytes());
    ram.write_u64(at + 2, base);
}

/// What a boot loader leaves in memory.
fn tables(ram: &mut Ram) {
    let gdt = [
        0,
        0x00cf_9a00_0000_ffff, // 08: 32-bit kernel code
        0x00cf_9200_0000_ffff, // 10: kernel data
        0x00af_9a00_0000_ffff, // 18: 64-bit kernel code
        0x00cf_9200_0000_ffff, // 20: kernel data, above it for SYSCALL
        0x00cf_fa00_0000_ffff, // 28: 32-bit user code
        0x00cf_f200_0000_ffff, // 30: user data
        0x00af_fa00_0000_ffff, // 38: 64-bit user code
        0x0000_8900_0000_0067 | TSS << 16,
        0,
    ];
    for (i, descriptor) in gdt.into_iter().enumerate() {
        ram.write_u64(GDT + 8 * i as u64, descriptor);
    }
    pointer(ram, TABLE_POINTERS, 79, GDT);
    pointer(ram, TABLE_POINTERS + 16, 0xfff, IDT);
    ram.write_u64(TSS + 4, 0x8_0000);
    let gate = PAGE_FAULT & 0xffff | 0x18 << 16 | 0x8e00 << 32 | (PAGE_FAULT >> 16) << 48;
    ram.write_u64(IDT + 16 * 14, gate);
    // 2 MiB pages: the first for the kernel, those of USER and FRAME for everybody.
    ram.write_u64(TABLES, (TABLES + 0x1000) | 7);
    ram.write_u64(TABLES + 0x1000, (TABLES + 0x2000) | 7);
    for (i, rights) in [0x83, 0x83, 0x87].into_iter().enumerate() {
        ram.write_u64(TABLES + 0x2000 + 8 * i as u64, (i as u64) << 21 | rights);
    }
    // The path to HOLE, but for its last entry.
    ram.write_u64(TABLES + 8, (TABLES + 0x3000) | 7);
    ram.write_u64(TABLES + 0x3000, (TABLES + 0x4000) | 7);
    ram.write_u64(TABLES + 0x4000, (TABLES + 0x5000) | 7);
}

#[expect(clippy::too_many_lines, reason = "the programs of one boot")]
fn code(ram: &mut Ram) {
    put(ram, 16, REAL, |a| {
        a.cli()?;
        a.xor(ax, ax)?;
        a.mov(ds, ax)?;
        a.lgdt(fword_ptr(TABLE_POINTERS))?;
        a.mov(eax, cr0)?;
        a.or(eax, 1)?;
        a.mov(cr0, eax)?;
        // JMP 08:PROTECTED, with a 32-bit offset.
        a.db(&[0x66, 0xea, 0x00, 0x80, 0x00, 0x00, 0x08, 0x00])
    });
    put(ram, 32, PROTECTED, |a| {
        a.mov(eax, 0x10)?;
        a.mov(ds, eax)?;
        a.mov(ss, eax)?;
        a.mov(esp, 0x7_0000)?;
        a.mov(eax, cr4)?;
        a.or(eax, 1 << 5)?;
        a.mov(cr4, eax)?;
        a.mov(eax, TABLES as u32)?;
        a.mov(cr3, eax)?;
        a.mov(ecx, IA32_EFER)?;
        a.rdmsr()?;
        a.or(eax, 0x101)?;
        a.wrmsr()?;
        a.mov(eax, cr0)?;
        a.or(eax, 0x8000_0000_u32)?;
        a.mov(cr0, eax)?;
        // JMP 18:LONG
        a.db(&[0xea, 0x00, 0x90, 0x00, 0x00, 0x18, 0x00])
    });
    put(ram, 64, LONG, |a| {
        a.lidt(ptr(TABLE_POINTERS + 16))?;
        a.mov(eax, 0x40)?;
        a.ltr(ax)?;
        a.mov(ecx, IA32_STAR)?;
        a.xor(eax, eax)?;
        a.mov(edx, 0x002b_0018)?;
        a.wrmsr()?;
        a.inc(ecx)?;
        a.mov(eax, SYSTEM_CALL as u32)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.mov(rcx, USER)?;
        a.mov(r11d, 0x202)?;
        a.mov(rsp, 0x5f_0000_u64)?;
        a.sysretq()
    });
    put(ram, 64, USER, |a| {
        a.mov(edi, 'u' as u32)?;
        a.syscall()?;
        a.mov(rbx, HOLE + 0x123)?;
        a.mov(byte_ptr(rbx), 'p' as u32)?;
        a.movzx(edi, byte_ptr(rbx))?;
        a.syscall()?;
        a.xor(edi, edi)?;
        a.syscall()
    });
    // Writes DIL to the port; 0 ends.
    put(ram, 64, SYSTEM_CALL, |a| {
        let mut end = a.create_label();
        a.test(edi, edi)?;
        a.jz(end)?;
        a.mov(eax, edi)?;
        a.mov(dx, u32::from(PORT))?;
        a.out(dx, al)?;
        a.sysretq()?;
        a.set_label(&mut end)?;
        a.hlt()
    });
    put(ram, 64, PAGE_FAULT, |a| {
        a.push(rax)?;
        a.mov(rax, cr2)?;
        a.mov(r12, rax)?;
        a.mov(r13, qword_ptr(rsp + 8))?;
        a.mov(rax, FRAME | 7)?;
        a.mov(qword_ptr(TABLES + 0x5000), rax)?;
        a.pop(rax)?;
        a.add(rsp, 8)?;
        a.iretq()
    });
}

/// Plays KVM: keeps the MSRs that this program uses.
fn run(cpu: &mut Cpu, bus: &mut impl Bus) -> (Vec<u8>, Stop) {
    let mut written = Vec::new();
    loop {
        match cpu.run(bus, 1000) {
            Stop::Rdmsr { index: IA32_EFER } => {
                let efer = cpu.system_registers().efer;
                cpu.complete_rdmsr(Ok(efer));
            }
            Stop::Wrmsr { index, value } => {
                match index {
                    IA32_EFER => {
                        let mut system = cpu.system_registers();
                        system.efer = value;
                        cpu.set_system_registers(&system);
                    }
                    IA32_STAR => cpu.msrs.star = value,
                    IA32_LSTAR => cpu.msrs.lstar = value,
                    _ => panic!("{index:#x}"),
                }
                cpu.complete_wrmsr(Ok(()));
            }
            Stop::IoOut {
                port: PORT, value, ..
            } => written.push(value as u8),
            stop => return (written, stop),
        }
    }
}

#[test]
fn kernel_boots_and_its_user_program_calls_and_faults() {
    let Machine { mut ram, mut cpu } = Machine::real(&[]);
    ram.bytes.resize(8 << 20, 0);
    cpu.set_config(Config {
        cpuid: fixed_cpuid(),
        ..Config::default()
    });
    tables(&mut ram);
    code(&mut ram);
    let (written, stop) = run(&mut cpu, &mut ram);
    assert_eq!(
        (written.as_slice(), stop),
        (&b"up"[..], Stop::Hlt),
        "{cpu:?}"
    );
    let (r, system) = (cpu.registers(), cpu.system_registers());
    assert_eq!(r.r12, HOLE + 0x123, "CR2");
    assert_eq!(r.r13, 0b110, "a user's write to a page that is not there");
    assert_eq!(ram.bytes[FRAME as usize + 0x123], b'p');
    // Accessed and dirty.
    assert_eq!(ram.read_u64(TABLES + 0x5000), FRAME | 0x67);
    assert_eq!(system.cs.selector, 0x18);
    assert!(cpu.unimplemented().is_empty());
}
