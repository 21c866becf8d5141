//! Instructions per second: C programs, two loops, and stops at RDMSR.
#![expect(missing_docs, reason = "criterion's macros make public items")]

#[path = "../tests/support/programs.rs"]
mod programs;
#[path = "../tests/support/mod.rs"]
mod support;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use iced_x86::code_asm::*;
use msrgate_x86::Stop;
use support::{CODE, Machine, STACK};

/// Runs program `number` to its end; answers how many instructions that took.
fn run(m: &mut Machine, number: u64) -> u64 {
    let before = m.cpu.retired();
    m.set(|r| (r.rip, r.rdi, r.rsp) = (CODE, number, 0x300_0000));
    assert_eq!(m.run(u64::MAX), Stop::Hlt);
    m.cpu.retired() - before
}

fn compiled(c: &mut Criterion) {
    let code = match programs::guest() {
        Ok(code) => code,
        Err(why) => {
            eprintln!("SKIP(cc): {why}");
            return;
        }
    };
    let mut group = c.benchmark_group("gcc -O2");
    for (number, name) in programs::NAMES.into_iter().enumerate() {
        let mut m = Machine::long(&code);
        group.throughput(Throughput::Elements(run(&mut m, number as u64)));
        group.bench_function(name, |b| b.iter(|| run(&mut m, number as u64)));
    }
    let mut m = Machine::long(&code);
    let mut all = || {
        (0..programs::NAMES.len() as u64)
            .map(|number| run(&mut m, number))
            .sum()
    };
    group.throughput(Throughput::Elements(all()));
    group.bench_function("all", |b| b.iter(&mut all));
}

fn loops(c: &mut Criterion) {
    const TURNS: u64 = 1 << 16;
    let mut group = c.benchmark_group("loop");
    let mut bench =
        |name: &str, build: fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>| {
            let mut a = CodeAssembler::new(64).unwrap();
            build(&mut a).unwrap();
            let mut m = Machine::long(&a.assemble(CODE).unwrap());
            m.set(|r| r.rdi = STACK);
            group.throughput(Throughput::Elements(TURNS));
            group.bench_function(name, |b| b.iter(|| m.run(TURNS)));
        };
    bench("integer", |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.add(rax, rbx)?;
        a.xor(rdx, rax)?;
        a.lea(rsi, qword_ptr(rdx + rax * 2 + 5))?;
        a.shr(rdx, 3)?;
        a.inc(rcx)?;
        a.cmp(rcx, rax)?;
        a.jne(top)?;
        a.jmp(top)
    });
    bench("load and store", |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.mov(rax, qword_ptr(rdi))?;
        a.add(rax, qword_ptr(rdi + 8))?;
        a.mov(qword_ptr(rdi + 16), rax)?;
        a.inc(dword_ptr(rdi + 24))?;
        a.movzx(ecx, byte_ptr(rdi + 3))?;
        a.jmp(top)
    });
}

fn stops(c: &mut Criterion) {
    const STOPS: u64 = 1000;
    let mut a = CodeAssembler::new(64).unwrap();
    let mut top = a.create_label();
    a.set_label(&mut top).unwrap();
    a.rdmsr().unwrap();
    a.jmp(top).unwrap();
    let mut m = Machine::long(&a.assemble(CODE).unwrap());
    let mut group = c.benchmark_group("stop");
    group.throughput(Throughput::Elements(STOPS));
    group.bench_function("rdmsr", |b| {
        b.iter(|| {
            for _ in 0..STOPS {
                let Stop::Rdmsr { index } = m.run(u64::MAX) else {
                    unreachable!()
                };
                m.cpu.complete_rdmsr(Ok(u64::from(index)));
            }
        });
    });
}

criterion_group!(benches, compiled, loops, stops);
criterion_main!(benches);
