//! A GDT, an IDT and a TSS for a [`Machine`]: what an operating system builds before anything else.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "each test uses a part of it"
)]

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use msrgate_core::{DescriptorTable, Segment};
use msrgate_x86::{Config, Stop, fixed_cpuid};

use super::support::{CODE, Machine};

pub const GDT: u64 = 0x8000;
pub const IDT: u64 = 0x9000;
pub const TSS: u64 = 0xb000;
/// Stack pointer 0 of the TSS.
pub const RSP0: u64 = 0x18_0000;
/// Stack 1 of the interrupt stack table.
pub const IST1: u64 = 0x19_0000;
/// Handler of vector `v`: [`HANDLERS`] + 16 * `v`.
pub const HANDLERS: u64 = 0x12_0000;

pub const KERNEL_CODE: u16 = 0x08;
pub const KERNEL_DATA: u16 = 0x10;
pub const USER_CODE_32: u16 = 0x18 | 3;
pub const USER_DATA: u16 = 0x20 | 3;
pub const USER_CODE: u16 = 0x28 | 3;
pub const TASK: u16 = 0x30;
/// The first selector whose descriptor a test may choose; there are four, of 8 bytes.
pub const FREE: u16 = 0x40;

pub const INTERRUPT_GATE: u8 = 0x8e;
pub const TRAP_GATE: u8 = 0x8f;
/// Added to a gate's type: user programs may name it in INT n.
pub const FOR_USER: u8 = 0x60;

const DESCRIPTORS: [u64; 8] = [
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    // A busy TSS of 0x68 bytes and a bitmap.
    0x0000_8b00_0000_0000 | (TSS & 0xff_ffff) << 16 | 0x2067,
    0,
];

type Build = Result<(), IcedError>;

/// Assembles for address `at`.
pub fn assemble(bits: u32, at: u64, build: impl FnOnce(&mut CodeAssembler) -> Build) -> Vec<u8> {
    let mut a = CodeAssembler::new(bits).unwrap();
    build(&mut a).unwrap();
    a.assemble(at).unwrap()
}

/// Code at [`CODE`], in 64-bit ring 0 with all tables.
pub fn kernel(build: impl FnOnce(&mut CodeAssembler) -> Build) -> Machine {
    let config = Config {
        cpuid: fixed_cpuid(),
        ..Config::default()
    };
    let mut m = Machine::long_with(&assemble(64, CODE, build), config);
    install(&mut m);
    m
}

/// As [`kernel`], at CPL 3.
pub fn user(build: impl FnOnce(&mut CodeAssembler) -> Build) -> Machine {
    let mut m = kernel(build);
    become_user(&mut m);
    m
}

/// Writes the tables and points the processor at them. Every vector has an interrupt gate to its handler; a
/// handler is HLT.
pub fn install(m: &mut Machine) {
    for (i, descriptor) in DESCRIPTORS.into_iter().enumerate() {
        m.ram.write_u64(GDT + 8 * i as u64, descriptor);
    }
    m.ram.write_u64(TSS + 4, RSP0);
    m.ram.write_u64(TSS + 0x24, IST1);
    m.ram.write(TSS + 102, &0x68_u16.to_le_bytes());
    for vector in 0..=255 {
        gate(m, vector, INTERRUPT_GATE, 0);
        m.ram.write(handler(vector), &[0xf4]);
    }
    let mut system = m.cpu.system_registers();
    system.gdt = DescriptorTable {
        base: GDT,
        limit: 0x5f,
    };
    system.idt = DescriptorTable {
        base: IDT,
        limit: 0xfff,
    };
    system.tr = Segment {
        base: TSS,
        limit: 0x2067,
        selector: TASK,
        type_: 0xb,
        present: true,
        ..Segment::default()
    };
    m.cpu.set_system_registers(&system);
}

pub fn handler(vector: u8) -> u64 {
    HANDLERS + 16 * u64::from(vector)
}

/// Writes a 64-bit gate: `kind` is its type byte.
pub fn gate(m: &mut Machine, vector: u8, kind: u8, ist: u8) {
    let offset = handler(vector);
    let low = offset & 0xffff
        | u64::from(KERNEL_CODE) << 16
        | u64::from(ist) << 32
        | u64::from(kind) << 40
        | (offset & 0xffff_0000) << 32;
    m.ram.write_u64(IDT + 16 * u64::from(vector), low);
    m.ram
        .write_u64(IDT + 16 * u64::from(vector) + 8, offset >> 32);
}

/// Chooses the descriptor at [`FREE`] + 8 * `index`.
pub fn descriptor(m: &mut Machine, index: u64, raw: u64) {
    m.ram.write_u64(GDT + u64::from(FREE) + 8 * index, raw);
}

/// Continues at CPL 3, in 64-bit code.
pub fn become_user(m: &mut Machine) {
    let mut system = m.cpu.system_registers();
    system.cs = Segment {
        selector: USER_CODE,
        dpl: 3,
        ..system.cs
    };
    system.ss = Segment {
        selector: USER_DATA,
        dpl: 3,
        ..system.ss
    };
    m.cpu.set_system_registers(&system);
}

/// Runs to the HLT of a handler, and says whose.
pub fn halt(m: &mut Machine) -> u8 {
    assert_eq!(m.run(1000), Stop::Hlt);
    let rip = m.cpu.registers().rip - 1;
    in_handler(rip).expect("a handler")
}

/// Runs one instruction: `Ok`, or the vector of its exception.
pub fn step(m: &mut Machine) -> Result<(), u8> {
    assert_eq!(m.run(1), Stop::Budget);
    in_handler(m.cpu.registers().rip).map_or(Ok(()), Err)
}

fn in_handler(rip: u64) -> Option<u8> {
    u8::try_from(rip.checked_sub(HANDLERS)? / 16).ok()
}

/// The qwords from RSP up.
pub fn frame<const N: usize>(m: &Machine) -> [u64; N] {
    let rsp = m.cpu.registers().rsp;
    std::array::from_fn(|i| m.ram.read_u64(rsp + 8 * i as u64))
}
