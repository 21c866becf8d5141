//! The embedded processor against the host's: one random instruction at a time, everything compared.
//!
//! Both start from the same registers and memory. After the instruction, all of these must be equal: general
//! registers, defined flags, XMM, MXCSR and x87 registers, memory; and with a fault, its vector, error
//! code, CR2 and RIP. `MSRGATE_NATIVE_CASES` and `MSRGATE_NATIVE_SEED` change how many and which.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "registers are cut and extended all the time"
)]
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod compare;
mod generate;
mod host;
mod layout;
mod machine;
#[path = "../support/opcodes.rs"]
mod opcodes;
mod random;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use iced_x86::Code;

use compare::{Difference, compare};
use generate::{Generator, is_everywhere};
use host::Host;
use machine::Machine;
use state::{End, State};

/// Enough for every instruction to be tried.
const CASES: u64 = 1_000_000;
/// Inputs for each instruction.
const INPUTS: u64 = 8;
const MXCSR_MISALIGNED: u32 = 1 << 17;
const MAX_REPORTS: usize = 20;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |value| value.parse().expect("a number"))
}

#[derive(Default)]
struct Tally {
    cases: u64,
    faults: u64,
    codes: BTreeSet<Code>,
    unimplemented: BTreeMap<Code, u64>,
    not_on_host: BTreeMap<Code, u64>,
    wrong: BTreeMap<Code, u64>,
}

#[test]
fn random_instructions_are_equal_on_the_host() {
    let cases = number("MSRGATE_NATIVE_CASES", CASES);
    let seed = number("MSRGATE_NATIVE_SEED", 1);
    let mut bench = Bench::new(seed);
    let mut tally = Tally::default();
    while tally.cases < cases {
        bench.next_subject(&mut tally);
    }
    say(&format!(
        "native: seed {seed}, {} cases ({} faults), {} distinct instructions compared",
        tally.cases,
        tally.faults,
        tally.codes.len()
    ));
    for (code, times) in &tally.unimplemented {
        say(&format!(
            "not on the embedded processor: {code:?}, {times} times"
        ));
    }
    for (code, times) in &tally.not_on_host {
        say(&format!(
            "SKIP(host): {code:?} is not on this host, {times} times"
        ));
    }
    assert!(tally.wrong.is_empty(), "different: {:?}", tally.wrong);
    if cases >= CASES {
        let absent = tally.unimplemented.keys().chain(tally.not_on_host.keys());
        let mut missed = bench.generator.codes();
        missed.retain(|code| !tally.codes.contains(code) && absent.clone().all(|it| it != code));
        assert!(missed.is_empty(), "never compared: {missed:?}");
    }
}

/// Prints a line that is seen although the test passes: the test harness keeps back what the macros print.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

struct Bench {
    generator: Generator,
    host: Host,
    machine: Machine,
    /// What memory holds before each case.
    memory: Vec<u8>,
}

impl Bench {
    fn new(seed: u64) -> Self {
        let mut generator = Generator::new(seed);
        let (mut host, mut machine) = (Host::new(), Machine::new());
        let read_only: Vec<u8> = (0..256)
            .flat_map(|_| generator.random.vector().to_le_bytes())
            .collect();
        host.set_read_only(&read_only);
        machine.set_read_only(&read_only);
        let memory = vec![0; host.memory().len()];
        Self {
            generator,
            host,
            machine,
            memory,
        }
    }

    fn next_subject(&mut self, tally: &mut Tally) {
        let subject = self.generator.subject();
        let at = self.generator.random.below(self.memory.len() as u64 - 256) as usize / 16 * 16;
        for place in self.memory[at..at + 256].chunks_exact_mut(16) {
            place.copy_from_slice(&self.generator.random.vector().to_le_bytes());
        }
        self.host.memory().copy_from_slice(&self.memory);
        self.machine.memory().copy_from_slice(&self.memory);
        self.host.set_instruction(&subject.bytes);
        self.machine.set_instruction(&subject.bytes);
        for i in 0..INPUTS {
            let Some(input) = self.generator.input(&subject) else {
                return;
            };
            tally.cases += 1;
            let code = subject.instruction.code();
            let alone = i % 4 == 3;
            let (got, got_end) = self.machine.run(&input, alone);
            if got_end == End::Unimplemented {
                *tally.unimplemented.entry(code).or_default() += 1;
                return;
            }
            let (wanted, wanted_end) = self.host.run(&input);
            if lacks(wanted_end) && !lacks(got_end) && !is_everywhere(&subject.instruction) {
                *tally.not_on_host.entry(code).or_default() += 1;
                return;
            }
            // The host has AMD's misaligned mode, which the embedded processor has not.
            if wanted.fx.mxcsr & MXCSR_MISALIGNED != 0 {
                continue;
            }
            tally.faults += u64::from(matches!(wanted_end, End::Fault { .. }));
            tally.codes.insert(code);
            let mut differences =
                compare(&subject.instruction, (&wanted, wanted_end), (&got, got_end));
            differences.extend(self.compare_memory());
            if !differences.is_empty() {
                let count = tally.wrong.entry(code).or_default();
                *count += 1;
                if *count == 1 && tally.wrong.len() <= MAX_REPORTS {
                    report(&subject, &input, alone, &differences);
                }
            }
        }
    }

    /// Compares memory, and puts it back where it has changed.
    fn compare_memory(&mut self) -> Option<Difference> {
        let (wanted, got) = (self.host.memory(), self.machine.memory());
        let first_different = || wanted.iter().zip(&*got).position(|(a, b)| a != b);
        let place = if *wanted == *got {
            None
        } else {
            first_different()
        };
        let difference = place.map(|at| Difference {
            what: format!("memory at {:#x}", layout::WRITABLE.start + at as u64),
            wanted: format!("{:02x?}", &wanted[at..wanted.len().min(at + 16)]),
            got: format!("{:02x?}", &got[at..got.len().min(at + 16)]),
        });
        if *wanted != *self.memory {
            wanted.copy_from_slice(&self.memory);
        }
        if *got != *self.memory {
            got.copy_from_slice(&self.memory);
        }
        difference
    }
}

fn lacks(end: End) -> bool {
    matches!(end, End::Fault { vector: 6, .. })
}

fn report(subject: &generate::Subject, input: &State, alone: bool, differences: &[Difference]) {
    println!(
        "\n{:?}  {:02x?}{}",
        subject.instruction.code(),
        subject.bytes,
        if alone { "  alone" } else { "" }
    );
    println!("  gpr {:x?} rflags {:x}", input.gpr, input.rflags);
    println!(
        "  mxcsr {:x} fcw {:x} fsw {:x}",
        input.fx.mxcsr, input.fx.fcw, input.fx.fsw
    );
    for register in 0..16 {
        let uses = (0..subject.instruction.op_count()).any(|i| {
            let operand = subject.instruction.op_register(i);
            operand.is_xmm() && operand.number() == register
        });
        if uses {
            println!("  xmm{register} {:032x}", input.fx.xmm[register]);
        }
    }
    for Difference { what, wanted, got } in differences {
        println!("  {what}: host {wanted}, embedded {got}");
    }
}
