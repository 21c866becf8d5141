//! CMP, TEST, INC or DEC with the conditional jump behind it: run as one, the two do what they do one by one.

#![expect(
    clippy::unwrap_used,
    reason = "the bytes of a machine are there, and what is assembled here is valid"
)]

mod support;

use iced_x86::code_asm::*;
use iced_x86::{Code, Encoder, IcedError, Instruction, MemoryOperand, Register};
use msrgate_core::Registers;
use msrgate_x86::Stop;
use support::{CODE, MMIO, Machine, STACK};

/// Where the jumps lead.
const TARGETS: [u64; 2] = [CODE + 0x100, CODE - 0x100];
/// Values for which the flags are different.
const VALUES: [u64; 8] = [
    0,
    1,
    0x7f,
    0x80,
    0xffff_ffff,
    0x8000_0000,
    u64::MAX,
    1 << 63,
];

/// What there is for an operand size.
struct Size {
    registers: [Register; 2],
    with_register: [Code; 2],
    with_memory: Code,
    with_immediate: [Code; 2],
    alone: [Code; 2],
}

const SIZES: [Size; 4] = [
    Size {
        registers: [Register::AL, Register::BL],
        with_register: [Code::Cmp_rm8_r8, Code::Test_rm8_r8],
        with_memory: Code::Cmp_r8_rm8,
        with_immediate: [Code::Cmp_rm8_imm8, Code::Test_rm8_imm8],
        alone: [Code::Inc_rm8, Code::Dec_rm8],
    },
    Size {
        registers: [Register::AX, Register::BX],
        with_register: [Code::Cmp_rm16_r16, Code::Test_rm16_r16],
        with_memory: Code::Cmp_r16_rm16,
        with_immediate: [Code::Cmp_rm16_imm8, Code::Test_rm16_imm16],
        alone: [Code::Inc_rm16, Code::Dec_rm16],
    },
    Size {
        registers: [Register::EAX, Register::EBX],
        with_register: [Code::Cmp_rm32_r32, Code::Test_rm32_r32],
        with_memory: Code::Cmp_r32_rm32,
        with_immediate: [Code::Cmp_rm32_imm8, Code::Test_rm32_imm32],
        alone: [Code::Inc_rm32, Code::Dec_rm32],
    },
    Size {
        registers: [Register::RAX, Register::RBX],
        with_register: [Code::Cmp_rm64_r64, Code::Test_rm64_r64],
        with_memory: Code::Cmp_r64_rm64,
        with_immediate: [Code::Cmp_rm64_imm32, Code::Test_rm64_imm32],
        alone: [Code::Inc_rm64, Code::Dec_rm64],
    },
];

/// All in all forms and sizes: of RAX or the memory at RSI, with RBX, an immediate or memory.
fn firsts() -> Vec<Instruction> {
    let memory = MemoryOperand::with_base(Register::RSI);
    let mut all = Vec::new();
    for size in SIZES {
        let [a, b] = size.registers;
        all.push(Instruction::with2(size.with_memory, a, memory));
        for code in size.with_register {
            all.push(Instruction::with2(code, a, b));
            all.push(Instruction::with2(code, memory, b));
        }
        for code in size.alone {
            all.push(Instruction::with1(code, a));
            all.push(Instruction::with1(code, memory));
        }
        for code in size.with_immediate {
            for immediate in [-1, 0, 0x7f] {
                all.push(Instruction::with2(code, a, immediate));
                all.push(Instruction::with2(code, memory, immediate));
            }
        }
    }
    all.into_iter().map(Result::unwrap).collect()
}

/// JMP to itself.
const END: [u8; 2] = [0xeb, 0xfe];

/// `first`, and the jump of a condition. All ways lead to [`END`], so that the budget is not what parts the two.
fn machine(first: &Instruction, condition: u8, target: u64) -> Machine {
    let mut encoder = Encoder::new(64);
    let len = encoder.encode(first, CODE).unwrap();
    let mut code = encoder.take_buffer();
    let distance = target.wrapping_sub(CODE + len as u64 + 6);
    code.extend([0x0f, 0x80 | condition]);
    code.extend(&distance.to_le_bytes()[..4]);
    code.extend(END);
    let mut m = Machine::long(&code);
    m.ram.write(target, &END);
    m
}

/// Runs the two and [`END`] with these budgets.
fn run(m: &mut Machine, a: u64, b: u64, budgets: &[u64]) -> Registers {
    let before = m.cpu.retired();
    m.ram.write_u64(STACK, a);
    m.set(|r| (r.rip, r.rax, r.rbx, r.rsi) = (CODE, a, b, STACK));
    for &budget in budgets {
        assert_eq!(m.run(budget), Stop::Budget);
    }
    assert_eq!(m.cpu.retired() - before, 3);
    m.cpu.registers()
}

#[test]
fn two_as_one_are_as_two() {
    let mut taken = 0;
    let mut cases = 0;
    for first in firsts() {
        for (condition, target) in (0..16).flat_map(|it| TARGETS.map(|target| (it, target))) {
            let mut m = machine(&first, condition, target);
            for (a, b) in VALUES.into_iter().flat_map(|a| VALUES.map(|b| (a, b))) {
                let together = run(&mut m, a, b, &[3]);
                let apart = run(&mut m, a, b, &[1, 1, 1]);
                assert_eq!(together, apart, "{first:?} {condition:x} {a:#x} {b:#x}");
                taken += u32::from(together.rip == target);
                cases += 1;
            }
        }
    }
    assert!(
        taken > cases / 4 && taken < cases * 3 / 4,
        "{taken} of {cases}"
    );
}

/// Assembles for [`CODE`].
fn program(build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Machine {
    let mut a = CodeAssembler::new(64).unwrap();
    build(&mut a).unwrap();
    Machine::long(&a.assemble(CODE).unwrap())
}

#[test]
fn memory_that_a_device_answers_for_stops_the_first_and_the_second_still_runs() {
    let mut m = program(|a| {
        let mut end = a.create_label();
        a.inc(rbx)?;
        a.cmp(dword_ptr(rsi), 5)?;
        a.je(end)?;
        a.inc(rbx)?;
        a.set_label(&mut end)?;
        a.jmp(end)
    });
    m.set(|r| r.rsi = MMIO);
    let stop = m.run(100);
    assert!(matches!(stop, Stop::MmioRead { gpa: MMIO, .. }), "{stop:?}");
    assert_eq!(m.cpu.retired(), 1);
    m.cpu.complete_mmio_read(5);
    assert_eq!(m.run(2), Stop::Budget);
    assert_eq!((m.cpu.registers().rbx, m.cpu.retired()), (1, 3));
}

#[test]
fn debugger_stops_between_the_two() {
    let mut m = program(|a| {
        let mut end = a.create_label();
        a.set_label(&mut end)?;
        a.cmp(rax, rbx)?;
        a.je(end)?;
        a.jmp(end)
    });
    assert_eq!(m.run(4), Stop::Budget); // twice as one
    let mut config = m.cpu.config().clone();
    config.single_step = true;
    m.cpu.set_config(config);
    for rip in [CODE + 3, CODE, CODE + 3] {
        assert!(matches!(m.run(10), Stop::Debug { .. }));
        assert_eq!(m.cpu.registers().rip, rip);
    }
}

#[test]
fn jump_back_in_16_bit_code_goes_back() {
    // inc al; cmp al, 5; jne to the beginning; jmp to itself
    let mut m = Machine::real(b"\xfe\xc0\x3c\x05\x75\xfa\xeb\xfe");
    assert_eq!(m.run(20), Stop::Budget);
    let r = m.cpu.registers();
    assert_eq!((r.rax & 0xff, r.rip), (5, 0x7c06));
}
