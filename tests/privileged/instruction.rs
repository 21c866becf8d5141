//! The instructions, as a table; and what each of them needs in registers and memory.

use msrgate_tests::random::Random;

use crate::case::{CODE, CODE_BYTES, Case, DATA, GDT, Mode, STACK, TASK, selector};

/// A name, and bytes.
pub(crate) struct Instruction {
    pub(crate) name: &'static str,
    pub(crate) code: Vec<u8>,
}

/// What follows the opcode.
#[derive(Clone, Copy)]
enum Form {
    Plain,
    /// Mod R/M with this in its middle; a register, or memory at RDI.
    Group(u8),
    Memory(u8),
    /// Any register, and a register or memory.
    Pair,
    /// A register, and this in the middle.
    Register(u8),
    /// A register, and any of a special kind in the middle.
    Special,
    Byte,
    Word,
    /// A far pointer in the code.
    Pointer,
}

/// Prefixes that it may have.
const OPERAND: u8 = 1;
const WIDE: u8 = 2;

/// Name, opcode, form, prefixes, and what it needs, given the size of its operand.
type Row = (
    &'static str,
    &'static [u8],
    Form,
    u8,
    fn(&mut Random, &mut Case, usize),
);

use Form::{Byte, Group, Memory, Pair, Plain, Pointer, Register, Special, Word};

#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("mov from CR0", &[0x0f, 0x20],       Register(0), 0,            nothing),
    ("mov from CR4", &[0x0f, 0x20],       Register(4), 0,            nothing),
    ("mov to CR0",   &[0x0f, 0x22],       Register(0), 0,            cr0_values),
    ("mov to CR0",   &[0x0f, 0x22],       Register(0), 0,            cr0_values),
    ("mov to CR2",   &[0x0f, 0x22],       Register(2), 0,            nothing),
    ("mov to CR3",   &[0x0f, 0x22],       Register(3), 0,            cr3_values),
    ("mov to CR4",   &[0x0f, 0x22],       Register(4), 0,            cr4_values),
    ("mov to CR4",   &[0x0f, 0x22],       Register(4), 0,            cr4_values),
    ("mov from DR",  &[0x0f, 0x21],       Special,   0,              nothing),
    ("mov to DR",    &[0x0f, 0x23],       Special,   0,              debug_values),
    ("sldt",         &[0x0f, 0x00],       Group(0),  OPERAND | WIDE, nothing),
    ("str",          &[0x0f, 0x00],       Group(1),  OPERAND | WIDE, nothing),
    ("lldt",         &[0x0f, 0x00],       Group(2),  0,              selectors),
    ("ltr",          &[0x0f, 0x00],       Group(3),  0,              tasks),
    ("verr",         &[0x0f, 0x00],       Group(4),  0,              selectors),
    ("verw",         &[0x0f, 0x00],       Group(5),  0,              selectors),
    ("sgdt",         &[0x0f, 0x01],       Memory(0), 0,              nothing),
    ("sidt",         &[0x0f, 0x01],       Memory(1), 0,              nothing),
    ("lgdt",         &[0x0f, 0x01],       Memory(2), 0,              table_pointer),
    ("lidt",         &[0x0f, 0x01],       Memory(3), 0,              table_pointer),
    ("smsw",         &[0x0f, 0x01],       Group(4),  OPERAND | WIDE, nothing),
    ("lmsw",         &[0x0f, 0x01],       Group(6),  0,              machine_status),
    ("invlpg",       &[0x0f, 0x01],       Memory(7), 0,              nothing),
    ("swapgs",       &[0x0f, 0x01, 0xf8], Plain,     0,              nothing),
    ("clts",         &[0x0f, 0x06],       Plain,     0,              nothing),
    ("wbinvd",       &[0x0f, 0x09],       Plain,     0,              nothing),
    ("lar",          &[0x0f, 0x02],       Pair,      OPERAND | WIDE, selectors),
    ("lsl",          &[0x0f, 0x03],       Pair,      OPERAND | WIDE, selectors),
    ("hlt",          &[0xf4],             Plain,     0,              nothing),
    ("cli",          &[0xfa],             Plain,     0,              nothing),
    ("sti",          &[0xfb],             Plain,     0,              nothing),
    ("pushf",        &[0x9c],             Plain,     OPERAND,        nothing),
    ("popf",         &[0x9d],             Plain,     OPERAND,        flags_on_stack),
    ("iret",         &[0xcf],             Plain,     OPERAND | WIDE, iret_frame),
    ("iret",         &[0xcf],             Plain,     OPERAND | WIDE, iret_frame),
    ("iret",         &[0xcf],             Plain,     WIDE,           iret_frame),
    ("ret far",      &[0xcb],             Plain,     OPERAND | WIDE, far_frame),
    ("ret far n",    &[0xca],             Word,      OPERAND | WIDE, far_frame_and_parameters),
    ("jmp far",      &[0xff],             Memory(5), OPERAND | WIDE, far_pointer),
    ("call far",     &[0xff],             Memory(3), OPERAND | WIDE, far_pointer),
    ("jmp pointer",  &[0xea],             Pointer,   0,              nothing),
    ("call pointer", &[0x9a],             Pointer,   0,              nothing),
    ("rdmsr",        &[0x0f, 0x32],       Plain,     0,              msr),
    ("wrmsr",        &[0x0f, 0x30],       Plain,     0,              msr),
    ("rdtsc",        &[0x0f, 0x31],       Plain,     0,              nothing),
    ("int3",         &[0xcc],             Plain,     0,              nothing),
    ("int n",        &[0xcd],             Byte,      0,              nothing),
    ("into",         &[0xce],             Plain,     0,              nothing),
    ("ud2",          &[0x0f, 0x0b],       Plain,     0,              nothing),
    ("mov to Sreg",  &[0x8e],             Special,   0,              selectors),
    ("mov to Sreg",  &[0x8e],             Special,   0,              selectors),
    ("mov from Sreg", &[0x8c],            Special,   OPERAND | WIDE, nothing),
    ("push fs",      &[0x0f, 0xa0],       Plain,     OPERAND,        nothing),
    ("pop fs",       &[0x0f, 0xa1],       Plain,     OPERAND,        selector_on_stack),
    ("pop ds",       &[0x1f],             Plain,     OPERAND,        selector_on_stack),
    ("pop ss",       &[0x17],             Plain,     OPERAND,        selector_on_stack),
    ("lss",          &[0x0f, 0xb2],       Memory(0), OPERAND,        far_pointer),
    ("lgs",          &[0x0f, 0xb5],       Memory(2), OPERAND,        far_pointer),
    ("arpl",         &[0x63],             Pair,      0,              selectors),
    ("syscall",      &[0x0f, 0x05],       Plain,     0,              nothing),
    ("sysret",       &[0x0f, 0x07],       Plain,     WIDE,           sysret_target),
    ("xgetbv",       &[0x0f, 0x01, 0xd0], Plain,     0,              nothing),
    ("rdfsbase",     &[0xf3, 0x0f, 0xae], Register(0), 0,            nothing),
    ("wrgsbase",     &[0xf3, 0x0f, 0xae], Register(3), 0,            nothing),
];

/// Registers that an instruction may be given: not RSP, RBP and RDI.
const REGISTERS: [u8; 5] = [0, 1, 2, 3, 6];

/// What RET far n releases.
const PARAMETER_BYTES: usize = 8;
/// The stack of who is returned to.
const OUTER_STACK: u64 = STACK as u64 + 0x1000;

/// A random one, with what it needs in the case.
pub(crate) fn random(random: &mut Random, case: &mut Case) -> Instruction {
    let (name, opcode, form, prefixes, prepare) = loop {
        let row = random.pick(ROWS);
        // What SYSRET does elsewhere, if anything, is the vendor's.
        if row.0 != "sysret" || case.mode == Mode::Long {
            break row;
        }
    };
    let mut code = Vec::new();
    let mut size = 4;
    if prefixes & OPERAND != 0 && random.one_in(4) {
        code.push(0x66);
        size = 2;
    }
    if prefixes & WIDE != 0 && case.mode == Mode::Long && random.one_in(3) {
        code.push(0x48);
        size = 8;
    }
    prepare(random, case, size);
    code.extend(opcode);
    let register = random.pick(&REGISTERS);
    let register_or_memory = |random: &mut Random| {
        if random.one_in(3) { 7 } else { 0xc0 | register }
    };
    match form {
        Plain => {}
        Group(middle) => code.push(register_or_memory(random) | middle << 3),
        Memory(middle) => code.push(7 | middle << 3),
        Pair => code.push(register_or_memory(random) | random.pick(&REGISTERS) << 3),
        Register(middle) => code.push(0xc0 | register | middle << 3),
        Special => code.push(0xc0 | register | (random.below(8) as u8) << 3),
        Byte => code.push(random.pick(&[0x20, 0x21, 0x80, 3, 4, 13, 14, 8])),
        Word => code.extend([PARAMETER_BYTES as u8, 0]),
        Pointer => {
            code.extend(target(random).to_le_bytes()[..4].iter());
            code.extend(selector(random).to_le_bytes());
        }
    }
    Instruction { name, code }
}

/// Somewhere in the code. (TCG also goes to where there can be none.)
fn target(random: &mut Random) -> u64 {
    CODE as u64 + u64::from(random.below(CODE_BYTES / 2))
}

fn nothing(_: &mut Random, _: &mut Case, _: usize) {}

fn all(case: &mut Case, value: u64) {
    let regs = &mut case.regs;
    (regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi) = (value, value, value, value, value);
}

/// Its value with one bit changed, most often.
fn changed(random: &mut Random, value: u64, bits: &[u32]) -> u64 {
    if random.one_in(8) {
        value
    } else {
        value ^ 1 << random.pick(bits)
    }
}

fn cr0_values(random: &mut Random, case: &mut Case, _: usize) {
    let bits = [0, 1, 2, 3, 4, 5, 6, 16, 18, 28, 29, 30, 31];
    let value = changed(random, case.sregs.cr0, &bits);
    all(case, value);
}

/// The address stays: there is nothing elsewhere.
fn cr3_values(random: &mut Random, case: &mut Case, _: usize) {
    let value = changed(random, case.sregs.cr3, &[0, 3, 4, 11]);
    all(case, value);
}

fn cr4_values(random: &mut Random, case: &mut Case, _: usize) {
    let bits = [
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 16, 17, 19, 24, 31,
    ];
    let value = changed(random, case.sregs.cr4, &bits);
    all(case, value);
}

fn debug_values(random: &mut Random, case: &mut Case, _: usize) {
    let value = match random.below(3) {
        0 => random.bits() & 0xffff_ff00,
        1 => random.bits() & !0xff,
        _ => u64::from(random.word()) & 0xf00f,
    };
    if case.mode == Mode::Long {
        all(case, value & !0xd0ff);
    } else {
        all(case, value & 0xffff_2f00); // TCG looks at the upper half
    }
}

fn selectors(random: &mut Random, case: &mut Case, _: usize) {
    let regs = &mut case.regs;
    for register in [
        &mut regs.rax,
        &mut regs.rbx,
        &mut regs.rcx,
        &mut regs.rdx,
        &mut regs.rsi,
    ] {
        *register = *register & !0xffff | u64::from(selector(random));
    }
    let bytes = selector(random).to_le_bytes();
    case.put(DATA, &bytes);
}

/// A task, or something else. TCG would take the null selector.
fn tasks(random: &mut Random, case: &mut Case, _: usize) {
    let selector = random.pick(&[TASK, TASK, TASK, 0x10, 0x48, 0x100]);
    all(case, selector.into());
    case.put(DATA, &selector.to_le_bytes());
    if random.one_in(2) {
        case.put(GDT + usize::from(TASK) + 5, &[0x89]); // not busy
    }
}

fn table_pointer(random: &mut Random, case: &mut Case, _: usize) {
    let limit = random.pick(&[0xff_u16, 0xfff, 0xffff]);
    case.put(DATA, &limit.to_le_bytes());
    let base = random.pick(&[GDT as u64, 0xff00_5000, 0xffff_8000_0000_5000]);
    case.put(DATA + 2, &base.to_le_bytes());
}

fn machine_status(random: &mut Random, case: &mut Case, _: usize) {
    let value = u64::from(random.below(16));
    all(case, value | 0xffff_fff0);
    case.put(DATA, &value.to_le_bytes());
}

/// Without TF and RF, which the host's own tests are about, and VM, VIF and VIP, which TCG does not know.
fn flags(random: &mut Random) -> u64 {
    random.bits() & 0x24_7ed7
}

fn flags_on_stack(random: &mut Random, case: &mut Case, _: usize) {
    let flags = flags(random);
    case.put(STACK, &flags.to_le_bytes());
}

fn selector_on_stack(random: &mut Random, case: &mut Case, _: usize) {
    let selector = u64::from(selector(random));
    case.put(STACK, &selector.to_le_bytes());
}

/// The words of a frame.
fn frame(case: &mut Case, size: usize, words: &[u64]) {
    for (i, word) in words.iter().enumerate() {
        case.put(STACK + size * i, &word.to_le_bytes()[..size]);
    }
}

/// What SS may be. TCG takes the null selector for 32-bit code too.
fn stack_selector(random: &mut Random) -> u64 {
    match selector(random) {
        0 => 0x10,
        other => other.into(),
    }
}

fn iret_frame(random: &mut Random, case: &mut Case, size: usize) {
    let words = [
        target(random),
        selector(random).into(),
        flags(random),
        OUTER_STACK,
        stack_selector(random),
    ];
    frame(case, size, &words);
}

fn far_frame(random: &mut Random, case: &mut Case, size: usize) {
    let (target, selector) = (target(random), selector(random).into());
    let words = [target, selector, OUTER_STACK, stack_selector(random)];
    frame(case, size, &words);
}

/// With the parameters that [`Form::Word`] releases.
fn far_frame_and_parameters(random: &mut Random, case: &mut Case, size: usize) {
    frame(case, size, &[target(random), selector(random).into()]);
    let stack = [OUTER_STACK, stack_selector(random)];
    for (i, word) in stack.iter().enumerate() {
        let at = STACK + PARAMETER_BYTES + size * (2 + i);
        case.put(at, &word.to_le_bytes()[..size]);
    }
}

fn far_pointer(random: &mut Random, case: &mut Case, size: usize) {
    let (target, selector) = (target(random), selector(random));
    case.put(DATA, &target.to_le_bytes());
    case.put(DATA + size, &selector.to_le_bytes());
}

fn msr(random: &mut Random, case: &mut Case, _: usize) {
    const INDICES: [u64; 12] = [
        0xc000_0080,
        0xc000_0081,
        0xc000_0082,
        0xc000_0084,
        0xc000_0100,
        0xc000_0101,
        0xc000_0102,
        0x174,
        0x176,
        0x277,
        0x474f_4f00,
        0x2ff,
    ];
    case.regs.rcx = random.pick(&INDICES);
    // Small ones: TCG takes any address.
    (case.regs.rdx, case.regs.rax) = (0, random.pick(&[0xd01, 0x501, 0xc01, 0x0007_0406]));
}

fn sysret_target(random: &mut Random, case: &mut Case, _: usize) {
    let target = CODE as u64 + u64::from(random.below(CODE_BYTES / 2));
    (case.regs.rcx, case.regs.rdx) = (target, target);
    case.regs.r11 &= 0x24_7ed7;
    if random.one_in(5) {
        case.regs.rcx = random.bits();
    }
}
