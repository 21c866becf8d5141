//! [`Case`]: one instruction with the state that it meets.
//!
//! A vector's handler is HLT, and so is everything else that can be jumped to: a case ends where it leads to.

use kvm_bindings::{kvm_debugregs, kvm_regs, kvm_segment, kvm_sregs};
use msrgate_tests::random::Random;

use crate::cpuid::Cpuid;
use crate::instruction::{self, Instruction};
use crate::machine::table;

/// What the guest has, identity-mapped.
pub(crate) const MEMORY_BYTES: usize = 0x4_0000;
const PML4: usize = 0x1000;
const PDPT: usize = 0x2000;
pub(crate) const PD: usize = 0x3000;
pub(crate) const GDT: usize = 0x5000;
const IDT: usize = 0x6000;
const TSS: usize = 0x7000;
pub(crate) const LDT: usize = 0x9800;
/// The handler of vector `v` is at 16 * `v`.
pub(crate) const HANDLERS: usize = 0xa000;
/// The instruction, and HLT all around.
pub(crate) const CODE: usize = 0xc000;
pub(crate) const CODE_BYTES: u32 = 0x4000;
const RSP0: u64 = 0x2_8000;
pub(crate) const STACK: usize = 0x3_0000;
/// Where RDI points.
pub(crate) const DATA: usize = 0x3_8000;
const HLT: u8 = 0xf4;

/// Selectors.
const KERNEL_CODE: u16 = 0x08;
const DATA_0: u16 = 0x10;
const USER_CODE_32: u16 = 0x18 | 3;
const DATA_3: u16 = 0x20 | 3;
const USER_CODE: u16 = 0x28 | 3;
pub(crate) const TASK: u16 = 0x30;
const KERNEL_CODE_32: u16 = 0x40;
const LOCAL: u16 = 0x48;
/// From here on descriptors are random.
const FREE: usize = 11;
const DESCRIPTORS: usize = 32;

/// How the processor runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// 64-bit mode.
    Long,
    /// 32-bit code in long mode.
    Compatibility,
}

/// An instruction and its state.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) mode: Mode,
    pub(crate) cpl: u8,
    pub(crate) code: Vec<u8>,
    pub(crate) regs: kvm_regs,
    pub(crate) sregs: kvm_sregs,
    pub(crate) debug: kvm_debugregs,
    pub(crate) memory: Vec<u8>,
}

impl Case {
    pub(crate) fn random(random: &mut Random, cpuid: &Cpuid) -> Self {
        let mode = random.pick(&[Mode::Long, Mode::Long, Mode::Compatibility]);
        let cpl = if random.one_in(3) { 3 } else { 0 };
        let mut case = Self {
            name: "",
            mode,
            cpl,
            code: Vec::new(),
            regs: registers(random, mode),
            sregs: system_registers(random, mode, cpl, cpuid),
            debug: kvm_debugregs {
                db: std::array::from_fn(|_| random.bits() & 0x7fff_ffff),
                dr6: 0xffff_0ff0,
                dr7: 0x400,
                ..kvm_debugregs::default()
            },
            memory: memory(random),
        };
        let Instruction { name, code } = instruction::random(random, &mut case);
        case.put(CODE, &code);
        (case.name, case.code) = (name, code);
        case
    }

    /// What memory holds in the beginning.
    pub(crate) fn words(&self, at: usize, count: usize) -> Vec<u64> {
        let words = self.memory[at..at + 8 * count].chunks_exact(8);
        words
            .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
            .collect()
    }

    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) {
        self.memory[at..][..bytes.len()].copy_from_slice(bytes);
    }

    /// `struct kvm_msrs`: where system calls lead to, and the other GS.
    pub(crate) fn msrs(&self) -> [u64; 1 + 2 * 10] {
        let code = CODE as u64;
        let star = u64::from(USER_CODE_32) << 48 | u64::from(KERNEL_CODE) << 32;
        let msrs = [
            (0xc000_0081, star),
            (0xc000_0082, code + 0x800),
            (0xc000_0083, code + 0x900),
            (0xc000_0084, 0x4_7700),
            (0xc000_0102, 0x1234_5000),
            (0x174, KERNEL_CODE.into()),
            (0x175, RSP0),
            (0x176, code + 0xa00),
            (0x277, 0x0007_0406_0007_0406),
            (0x2ff, 0xc06),
        ];
        let mut words = [0; 1 + 2 * 10];
        words[0] = 10;
        for (place, (index, value)) in words[1..].chunks_exact_mut(2).zip(msrs) {
            place.copy_from_slice(&[index, value]);
        }
        words
    }
}

/// A selector of any kind, but of no task.
pub(crate) fn selector(random: &mut Random) -> u16 {
    let index = random.pick(&[
        0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 40,
    ]);
    if index == 0 {
        return 0;
    }
    let ti = u16::from(random.one_in(8)) << 2;
    index << 3 | ti | random.pick(&[0, 0, 3, 3, 1])
}

fn registers(random: &mut Random, mode: Mode) -> kvm_regs {
    const ARITHMETIC: u64 = 0x8d5;
    const IF_DF: u64 = 0x600;
    const IOPL: u64 = 0x3000;
    const NT: u64 = 1 << 14;
    const AC: u64 = 1 << 18;
    let mut value = || match random.below(4) {
        0 => u64::from(random.below(0x100)),
        1 if mode == Mode::Long => random.bits(),
        2 => u64::from(random.word()),
        _ => u64::from(selector(random)),
    };
    let mut regs = kvm_regs {
        rax: value(),
        rbx: value(),
        rcx: value(),
        rdx: value(),
        rsi: value(),
        rbp: value(),
        r8: value(),
        r9: value(),
        r10: value(),
        r11: value(),
        r12: value(),
        r13: value(),
        r14: value(),
        r15: value(),
        rdi: DATA as u64,
        rsp: STACK as u64,
        rip: CODE as u64,
        rflags: 0,
    };
    regs.rflags = 2 | random.bits() & (ARITHMETIC | IF_DF | IOPL | NT | AC);
    regs
}

fn system_registers(random: &mut Random, mode: Mode, cpl: u8, cpuid: &Cpuid) -> kvm_sregs {
    const CR0: u64 = 0x8000_0031;
    const CR0_RANDOM: u64 = 0x5_000e; // MP, EM, TS, WP, AM
    const EFER: u64 = 0xd01;
    const CR4_PAE: u64 = 1 << 5;
    const CR4_RANDOM: u64 = 0x18c; // TSD, DE, PGE, PCE
    let mut cr4 = CR4_PAE | random.bits() & CR4_RANDOM;
    for (bit, leaf, register, feature) in [(16, 7, 1, 0), (11, 7, 2, 2)] {
        if cpuid.has(leaf, register, feature) && random.one_in(2) {
            cr4 |= 1 << bit; // FSGSBASE, UMIP
        }
    }
    let data = data_segment(cpl);
    let with_base = |base| kvm_segment { base, ..data };
    kvm_sregs {
        cs: code_segment(mode, cpl),
        ds: data,
        es: data,
        fs: with_base(random.word().into()),
        gs: with_base(random.word().into()),
        ss: data,
        tr: system_segment(TASK, 0xb, TSS, 0x67),
        ldt: system_segment(LOCAL, 2, LDT, 0x3f),
        gdt: table(GDT, 8 * DESCRIPTORS as u16 - 1),
        idt: table(IDT, 0xfff),
        cr0: CR0 | random.bits() & CR0_RANDOM,
        cr3: PML4 as u64,
        cr4,
        efer: EFER,
        apic_base: 0xfee0_0900,
        ..kvm_sregs::default()
    }
}

fn data_segment(cpl: u8) -> kvm_segment {
    kvm_segment {
        limit: 0xffff_ffff,
        selector: if cpl == 0 { DATA_0 } else { DATA_3 },
        type_: 3,
        present: 1,
        dpl: cpl,
        db: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    }
}

fn code_segment(mode: Mode, cpl: u8) -> kvm_segment {
    kvm_segment {
        selector: match (mode, cpl) {
            (Mode::Long, 0) => KERNEL_CODE,
            (Mode::Long, _) => USER_CODE,
            (Mode::Compatibility, 0) => KERNEL_CODE_32,
            (Mode::Compatibility, _) => USER_CODE_32,
        },
        type_: 0xb,
        db: u8::from(mode != Mode::Long),
        l: u8::from(mode == Mode::Long),
        ..data_segment(cpl)
    }
}

fn system_segment(selector: u16, type_: u8, base: usize, limit: u32) -> kvm_segment {
    kvm_segment {
        base: base as u64,
        limit,
        selector,
        type_,
        present: 1,
        ..kvm_segment::default()
    }
}

fn memory(random: &mut Random) -> Vec<u8> {
    let mut memory = vec![0; MEMORY_BYTES];
    let mut put = |at: usize, bytes: &[u8]| memory[at..][..bytes.len()].copy_from_slice(bytes);
    put(PML4, &(PDPT as u64 | 7).to_le_bytes());
    put(PDPT, &(PD as u64 | 7).to_le_bytes());
    put(PD, &0x87_u64.to_le_bytes());
    let tss = 0x0000_8b00_0000_0067 | (TSS as u64) << 16;
    let fixed: [u64; FREE] = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        tss,
        0,
        0x00cf_9b00_0000_ffff,
        0x0000_8200_0000_003f | (LDT as u64) << 16,
        0,
    ];
    let free: [u64; DESCRIPTORS - FREE] = std::array::from_fn(|_| descriptor(random));
    put(GDT, fixed.map(u64::to_le_bytes).as_flattened());
    put(GDT + 8 * FREE, free.map(u64::to_le_bytes).as_flattened());
    let local: [u64; 8] = std::array::from_fn(|_| descriptor(random));
    put(LDT, local.map(u64::to_le_bytes).as_flattened());
    for vector in 0..256 {
        let handler = (HANDLERS + 16 * vector) as u64;
        let dpl = random.pick(&[0, 3]);
        let low = 0x0000_8e00_0008_0000 | dpl << 45 | handler & 0xffff;
        put(IDT + 16 * vector, &low.to_le_bytes());
    }
    put(TSS + 4, &RSP0.to_le_bytes());
    put(HANDLERS, &[HLT; 0x1000]);
    put(CODE, &[HLT; CODE_BYTES as usize]);
    memory
}

/// A flat descriptor of any type, but of no task; a call gate leads into the code.
fn descriptor(random: &mut Random) -> u64 {
    const CALL_GATE: u64 = 0xc;
    const SYSTEM: u64 = 1 << 44;
    let access = random.pick(&[0_u64, 3, 3, 1]) << 45 | u64::from(!random.one_in(6)) << 47;
    if random.one_in(6) {
        let offset = CODE as u64 + u64::from(random.below(CODE_BYTES / 2));
        let target = u64::from(random.pick(&[KERNEL_CODE, USER_CODE, KERNEL_CODE_32]));
        let split = offset & 0xffff | offset >> 16 << 48;
        return split | target << 16 | CALL_GATE << 40 | access;
    }
    let kind = if random.one_in(8) {
        // Types that are reserved.
        u64::from(random.pick(&[8_u8, 10, 13])) << 40
    } else {
        SYSTEM | u64::from(random.below(16)) << 40
    };
    let limit = random.pick(&[
        0x000f_0000_0000_ffff,
        0x000f_0000_0000_ffff,
        0x0000_0000_0000_0fff,
    ]);
    let size = random.pick(&[0b1010_u64, 0b1000, 0b1100]); // 64, 16 or 32 bits
    limit | kind | access | size << 52
}
