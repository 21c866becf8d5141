//! Small programs: blocks, budgets, memory, MMIO, code that changes itself, repeated strings.

#![expect(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "the numbers are small, and what is assembled here is valid"
)]

mod support;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use msrgate_x86::Stop;
use support::{CODE, MMIO, Machine, STACK};

/// Assembles for [`CODE`].
fn assemble(build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    build(&mut a).unwrap();
    a.assemble(CODE).unwrap()
}

/// A program that never comes to an end by itself.
fn machine(build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Machine {
    Machine::long(&assemble(build))
}

#[test]
fn budget_counts_instructions_exactly() {
    for budget in 1..200 {
        let mut m = machine(|a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.inc(rax)?;
            a.dec(rcx)?;
            a.jne(top)?;
            a.inc(rbx)?;
            a.jmp(top)
        });
        m.set(|r| r.rcx = 5);
        assert_eq!(m.run(budget), Stop::Budget);
        assert_eq!(m.cpu.retired(), budget);
    }
}

#[test]
fn sum_of_a_loop_is_right() {
    let mut m = machine(|a| {
        let mut top = a.create_label();
        a.xor(eax, eax)?;
        a.mov(ecx, 1000)?;
        a.set_label(&mut top)?;
        a.add(rax, rcx)?;
        a.loop_(top)?;
        let mut end = a.create_label();
        a.set_label(&mut end)?;
        a.jmp(end)
    });
    assert_eq!(m.run(2003), Stop::Budget);
    assert_eq!(m.cpu.registers().rax, 500_500);
}

#[test]
fn call_push_pop_and_ret_balance() {
    let mut m = machine(|a| {
        let mut function = a.create_label();
        a.push(0x11)?;
        a.call(function)?;
        a.pop(rbx)?;
        a.nop()?;
        a.set_label(&mut function)?;
        a.push(rbp)?;
        a.mov(rbp, rsp)?;
        a.mov(rax, qword_ptr(rbp + 16))?;
        a.leave()?;
        a.ret()
    });
    m.run(8);
    let r = m.cpu.registers();
    assert_eq!((r.rax, r.rbx, r.rsp), (0x11, 0x11, STACK));
}

#[test]
fn store_across_a_page_without_the_second_page_changes_nothing() {
    let mut m = machine(|a| {
        a.mov(qword_ptr(rdi), rax)?;
        a.nop()
    });
    let edge = 64 << 20;
    m.ram.write(edge - 8, &[0x55; 8]);
    m.set(|r| (r.rax, r.rdi) = (u64::MAX, edge - 4));
    assert_eq!(
        m.run(1),
        Stop::MmioWrite {
            gpa: edge,
            len_bytes: 4,
            value: 0xffff_ffff
        }
    );
    assert_eq!(
        m.ram.bytes[edge as usize - 8..],
        [0x55, 0x55, 0x55, 0x55, 255, 255, 255, 255]
    );
    assert_eq!(m.cpu.registers().rip, CODE + 3);
}

#[test]
fn mmio_load_is_restarted_with_its_answer() {
    let mut m = machine(|a| {
        a.add(rax, qword_ptr(rdi))?;
        a.inc(rbx)
    });
    m.set(|r| (r.rax, r.rdi) = (5, MMIO));
    for _ in 0..2 {
        assert_eq!(
            m.run(2),
            Stop::MmioRead {
                gpa: MMIO,
                len_bytes: 8
            }
        );
        assert_eq!((m.cpu.registers().rip, m.cpu.retired()), (CODE, 0));
    }
    m.cpu.complete_mmio_read(37);
    assert_eq!(m.run(2), Stop::Budget);
    assert_eq!((m.cpu.registers().rax, m.cpu.registers().rbx), (42, 1));
}

#[test]
fn read_modify_write_of_mmio_reads_once_and_writes_once() {
    let mut m = machine(|a| a.lock().xadd(dword_ptr(rdi), eax));
    m.set(|r| (r.rax, r.rdi) = (2, MMIO));
    assert_eq!(
        m.run(1),
        Stop::MmioRead {
            gpa: MMIO,
            len_bytes: 4
        }
    );
    m.cpu.complete_mmio_read(40);
    assert_eq!(
        m.run(1),
        Stop::MmioWrite {
            gpa: MMIO,
            len_bytes: 4,
            value: 42
        }
    );
    assert_eq!((m.cpu.registers().rax, m.cpu.retired()), (40, 1));
}

#[test]
fn repeated_move_out_of_mmio_asks_for_each_element() {
    let mut m = machine(|a| a.rep().movsd());
    m.set(|r| (r.rsi, r.rdi, r.rcx) = (MMIO, STACK, 3));
    for i in 0..3 {
        assert_eq!(
            m.run(2),
            Stop::MmioRead {
                gpa: MMIO + 4 * i,
                len_bytes: 4
            }
        );
        m.cpu.complete_mmio_read(i + 1);
    }
    assert_eq!(m.run(1), Stop::Budget);
    assert_eq!(m.ram.read_u64(STACK), 2 << 32 | 1);
    assert_eq!((m.cpu.registers().rcx, m.cpu.retired()), (0, 1));
}

#[test]
fn repeated_store_and_move_do_all_elements() {
    let mut m = machine(|a| {
        a.rep().stosq()?;
        a.mov(rsi, STACK)?;
        a.mov(rcx, 20_000_u64)?;
        a.rep().movsb()?;
        let mut end = a.create_label();
        a.set_label(&mut end)?;
        a.jmp(end)
    });
    m.set(|r| (r.rax, r.rdi, r.rcx) = (0x0102_0304_0506_0708, STACK, 2000));
    m.run(1000);
    let r = m.cpu.registers();
    assert_eq!((r.rcx, r.rdi), (0, STACK + 36_000));
    for i in 0..36_000 {
        assert_eq!(m.ram.bytes[STACK as usize + i], 8 - (i % 8) as u8, "{i}");
    }
}

#[test]
fn overlapping_move_repeats_its_own_output() {
    let mut m = machine(|a| a.rep().movsb());
    m.ram.bytes[STACK as usize] = 7;
    m.set(|r| (r.rsi, r.rdi, r.rcx) = (STACK, STACK + 1, 100));
    m.run(3);
    assert_eq!(
        m.ram.bytes[STACK as usize..][..102],
        *[[7; 101].as_slice(), &[0]].concat()
    );
}

#[test]
fn repeated_comparison_stops_at_the_difference() {
    let mut m = machine(|a| a.repne().scasb());
    m.ram.write(STACK, b"hello, world\0");
    m.set(|r| (r.rax, r.rdi, r.rcx) = (0, STACK, u64::MAX));
    m.run(1);
    assert_eq!(!m.cpu.registers().rcx - 1, 12);
}

#[test]
fn code_that_changes_itself_runs_as_changed() {
    // The immediate of `add eax, 1` counts up in each turn.
    let mut m = machine(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.add(eax, 0x0000_1000)?;
        a.inc(byte_ptr(rdi))?;
        a.jmp(top)
    });
    assert_eq!(
        m.ram.bytes[CODE as usize], 5,
        "add eax, imm32 without ModRM"
    );
    m.set(|r| r.rdi = CODE + 1);
    m.run(3 * 10);
    assert_eq!(m.cpu.registers().rax, 10 * 0x1000 + (0..10).sum::<u64>());
}

#[test]
fn store_beside_code_in_its_page_is_seen_and_harmless() {
    let mut m = machine(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.inc(qword_ptr(rdi))?;
        a.jmp(top)
    });
    m.set(|r| r.rdi = CODE + 0x800);
    m.run(200);
    assert_eq!(m.ram.read_u64(CODE + 0x800), 100);
}

#[test]
fn code_written_by_somebody_else_is_seen_after_verify() {
    let mut m = machine(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.inc(eax)?;
        a.jmp(top)
    });
    m.run(4);
    m.ram.write(CODE, &assemble(|a| a.dec(eax)));
    m.cpu.verify_code();
    m.run(2);
    assert_eq!(m.cpu.registers().rax, 1);
}

#[test]
fn instruction_across_pages_follows_both() {
    let mut m = machine(|a| a.nop());
    let start = CODE + 0xffe;
    m.ram.write(start, &[0xb8, 1, 2, 3, 4, 0xeb, 0xf9]); // mov eax, imm32; jmp back
    m.set(|r| r.rip = start);
    m.run(2);
    assert_eq!(m.cpu.registers().rax, 0x0403_0201);
    m.ram.bytes[start as usize + 2] = 0x99;
    m.cpu.verify_code();
    m.run(2);
    assert_eq!(m.cpu.registers().rax, 0x0403_9901);
}

#[test]
fn real_mode_wraps_and_uses_segments() {
    let mut m = Machine::real(&[
        0xb8, 0x34, 0x12, // mov ax, 0x1234
        0xbb, 0xff, 0xff, // mov bx, 0xffff
        0x43, // inc bx
        0x89, 0x07, // mov [bx], ax
        0x50, // push ax
        0x5a, // pop dx
    ]);
    assert_eq!(m.run(6), Stop::Budget);
    assert_eq!(m.ram.bytes[..2], [0x34, 0x12]);
    let r = m.cpu.registers();
    assert_eq!((r.rdx, r.rip), (0x1234, 0x7c0b));
}

#[test]
fn unknown_instruction_is_counted() {
    let mut m = Machine::long(&[0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc2]); // vaddps zmm0, zmm0, zmm2
    m.run(1);
    let unknown = &m.cpu.unimplemented()[0];
    assert_eq!(
        (unknown.rip, unknown.count, unknown.bytes.len()),
        (CODE, 1, 6)
    );
    assert!(unknown.name.contains("Vaddps"), "{}", unknown.name);
}

#[test]
fn random_bytes_never_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..3000 {
        let code: Vec<u8> = (0..64).map(|_| random() as u8).collect();
        let mut m = if round % 3 == 0 {
            Machine::real(&code)
        } else {
            Machine::long(&code)
        };
        m.set(|r| {
            r.rax = random();
            r.rcx = random() % 8192;
            r.rdx = random() % (64 << 20);
            r.rbx = random() % (64 << 20);
            r.rsi = CODE + random() % 64;
            r.rdi = MMIO + random() % 64;
        });
        let mut stops = 0;
        while stops < 20 {
            match m.run(50) {
                Stop::MmioRead { .. } => m.cpu.complete_mmio_read(random()),
                Stop::IoIn { .. } => m.cpu.complete_io_in(random() as u32),
                Stop::Rdmsr { .. } => m.cpu.complete_rdmsr(Ok(random())),
                Stop::Wrmsr { .. } => m.cpu.complete_wrmsr(Ok(())),
                Stop::TripleFault | Stop::Hlt => break,
                _ => {}
            }
            stops += 1;
        }
    }
}

#[test]
fn double_shifts_take_bits_from_the_second_operand() {
    let mut m = machine(|a| {
        a.shld(eax, edx, 8)?;
        a.shrd(ebx, edx, 8)?;
        a.shld(rsi, rdi, 63)?;
        a.shld(r8w, r9w, 4)
    });
    m.set(|r| {
        (r.rax, r.rbx, r.rdx) = (0x1122_3344, 0x1122_3344, 0xaabb_ccdd);
        (r.rsi, r.rdi) = (1, 0x8000_0000_0000_0002);
        (r.r8, r.r9) = (0x1234, 0xabcd);
    });
    m.run(4);
    let r = m.cpu.registers();
    assert_eq!((r.rax, r.rbx), (0x2233_44aa, 0xdd11_2233));
    assert_eq!((r.rsi, r.r8), (0xc000_0000_0000_0001, 0x234a));
}
