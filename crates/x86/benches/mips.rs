//! Instructions per second: C programs, two loops, and stops at RDMSR.
//!
//! Time is what the thread spent on a CPU, from `/proc`, so that a busy machine tells the same story as an idle
//! one; the best of several runs counts.

#[path = "../tests/support/programs.rs"]
mod programs;
#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Instant;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use msrgate_x86::Stop;
use support::{CODE, Machine, STACK};

fn main() {
    compiled();
    integer_loop();
    memory_loop();
    vector_loop();
    float_loop();
    stops();
}

/// Seconds on a CPU so far; wall time where there is no `/proc`.
fn seconds(start: Instant) -> f64 {
    std::fs::read_to_string("/proc/thread-self/schedstat")
        .ok()
        .and_then(|text| text.split(' ').next()?.parse::<f64>().ok())
        .map_or_else(|| start.elapsed().as_secs_f64(), |ns| ns / 1e9)
}

/// Prints how many million of what `work` counts are done in a second.
fn measure(name: &str, what: &str, mut work: impl FnMut() -> u64) {
    let start = Instant::now();
    work();
    let mut best = 0.0_f64;
    for _ in 0..7 {
        let before = seconds(start);
        let mut count = 0;
        while seconds(start) - before < 0.1 {
            count += work();
        }
        best = best.max(count as f64 / (seconds(start) - before) / 1e6);
    }
    println!("{name:<24} {best:8.1} M {what}/s");
}

/// Runs program `number` to its end; answers how many instructions that took.
fn run(m: &mut Machine, number: usize) -> u64 {
    let before = m.cpu.retired();
    m.set(|r| (r.rip, r.rdi, r.rsp) = (CODE, number as u64, 0x300_0000));
    assert_eq!(m.run(u64::MAX), Stop::Hlt);
    m.cpu.retired() - before
}

fn compiled() {
    let code = match programs::guest() {
        Ok(code) => code,
        Err(why) => {
            println!("SKIP(cc): {why}");
            return;
        }
    };
    let mut m = Machine::long(&code);
    for (number, name) in programs::NAMES.into_iter().enumerate() {
        measure(&format!("gcc -O2, {name}"), "instructions", || {
            run(&mut m, number)
        });
    }
    measure("gcc -O2, all", "instructions", || {
        (0..programs::NAMES.len())
            .map(|number| run(&mut m, number))
            .sum()
    });
}

fn looping(build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> impl FnMut() -> u64 {
    const TURNS: u64 = 1 << 20;
    let mut a = CodeAssembler::new(64).expect("64 is a bitness");
    let mut top = a.create_label();
    a.set_label(&mut top).expect("the label is new");
    build(&mut a).expect("the operands are valid");
    a.jmp(top).expect("the label is set");
    let mut m = Machine::long(&a.assemble(CODE).expect("the code is near its labels"));
    m.set(|r| r.rdi = STACK);
    move || {
        m.run(TURNS);
        TURNS
    }
}

fn integer_loop() {
    let work = looping(|a| {
        a.add(rax, rbx)?;
        a.xor(rdx, rax)?;
        a.lea(rsi, qword_ptr(rdx + rax * 2 + 5))?;
        a.shr(rdx, 3)?;
        a.inc(rcx)?;
        a.cmp(rcx, rax)
    });
    measure("integer loop", "instructions", work);
}

fn memory_loop() {
    let work = looping(|a| {
        a.mov(rax, qword_ptr(rdi))?;
        a.add(rax, qword_ptr(rdi + 8))?;
        a.mov(qword_ptr(rdi + 16), rax)?;
        a.inc(dword_ptr(rdi + 24))?;
        a.movzx(ecx, byte_ptr(rdi + 3))
    });
    measure("load and store loop", "instructions", work);
}

fn vector_loop() {
    let work = looping(|a| {
        a.movdqu(xmm0, xmmword_ptr(rdi))?;
        a.paddd(xmm0, xmm1)?;
        a.pshufd(xmm1, xmm0, 0x1b)?;
        a.pxor(xmm1, xmm0)?;
        a.movups(xmmword_ptr(rdi + 16), xmm1)
    });
    measure("SSE2 integer loop", "instructions", work);
}

fn float_loop() {
    let work = looping(|a| {
        a.cvtsi2sd(xmm0, rax)?;
        a.addsd(xmm0, xmm1)?;
        a.mulsd(xmm1, xmm0)?;
        a.comisd(xmm0, xmm1)?;
        a.cvttsd2si(rcx, xmm0)
    });
    measure("SSE2 double loop", "instructions", work);
}

fn stops() {
    let mut m = Machine::long(b"\x0f\x32\xeb\xfc"); // rdmsr; jmp back
    measure("rdmsr", "stops", || {
        for _ in 0..10_000 {
            match m.run(u64::MAX) {
                Stop::Rdmsr { index } => m.cpu.complete_rdmsr(Ok(u64::from(index))),
                stop => panic!("{stop:?}: {:?}", m.cpu),
            }
        }
        10_000
    });
}
