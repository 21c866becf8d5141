//! What compiling a policy costs, by its number of rules.

use std::fmt::Write;
use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use msrgate_policy::compile;

fn compile_policies(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compile");
    for rules in [10u32, 1000, 10_000] {
        let source = source(rules);
        group.throughput(Throughput::Elements(rules.into()));
        group.bench_with_input(
            BenchmarkId::from_parameter(rules),
            &source,
            |bencher, source| {
                bencher.iter(|| compile(black_box(source)).expect("no mistakes"));
            },
        );
    }
}

/// Each rule has a value of its own; every tenth is a range under the others.
fn source(rules: u32) -> String {
    let mut source = "version = 1\n".to_owned();
    for number in 0..rules {
        let index = 0xc000_0000 + number;
        let msr = match number % 10 {
            0 => format!("\"{index:#x}..={:#x}\"", index + 9),
            _ => format!("{index:#x}"),
        };
        writeln!(
            source,
            "[[rule]]\nmsr = {msr}\nread = {{ value = {number} }}\nwrite = \"ignore\""
        )
        .expect("a String takes it");
    }
    source
}

criterion_group!(benches, compile_policies);
criterion_main!(benches);
