//! Instructions of the kernel, one at a time and at random, on the embedded KVM and on a real one: what becomes of them
//! must be the same, faults and error codes included.
//!
//! The real one is the lab's kvm-amd, on which QEMU's TCG executes a guest's kernel. What TCG is known to get wrong is not
//! tried, or left out ([`machine`]); 32-bit code without long mode ends it. Elsewhere the test skips: a KVM that
//! interprets the kernel is no processor. `MSRGATE_PRIVILEGED_CASES=N` tries so many, `MSRGATE_PRIVILEGED_SEED=S` others.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test says what went wrong by panicking, and its numbers are small"
)]

mod case;
mod cpuid;
mod instruction;
mod machine;

use std::collections::BTreeMap;
use std::env;

use case::{Case, DATA, GDT, LDT, STACK};
use cpuid::Cpuid;
use kvm_bindings::KVM_EXIT_HLT;
use machine::{Machine, Outcome};
use msrgate_tests::door::{Door, KernelDoor, SoftDoor};
use msrgate_tests::host::HostFlaws;
use msrgate_tests::random::Random;
use msrgate_tests::skip::{kvm_or_skip, say};

/// Differences that are shown of one instruction.
const SHOWN: usize = 2;

#[test]
fn privileged_instructions_do_the_same_on_kvm() {
    if HostFlaws::of_this_host() == HostFlaws::default() {
        say("SKIP(privileged): the oracle is the lab's KVM: cargo xtask lab --only privileged");
        return;
    }
    let Some(kvm) = kvm_or_skip() else { return };
    let seed = number("MSRGATE_PRIVILEGED_SEED", 2026);
    let count = number("MSRGATE_PRIVILEGED_CASES", 10_000);
    let (soft, kvm) = (SoftDoor::new(), KernelDoor::new(&kvm));
    let cpuid = Cpuid::of(&kvm).unwrap().and(&Cpuid::of(&soft).unwrap());
    let (mut soft, mut kvm) = (Bench::new(&soft, &cpuid), Bench::new(&kvm, &cpuid));
    let mut differences: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for n in 0..count {
        let case = Case::random(&mut Random::new(seed << 32 | n), &cpuid);
        let (ours, theirs) = (soft.run(&case), kvm.run(&case));
        if ours != theirs {
            let what = format!("{} in {:?}", case.name, case.mode);
            let text = format!("case {n}: {}", describe(&case, &ours, &theirs));
            differences.entry(what).or_default().push(text);
        }
    }
    for (what, texts) in &differences {
        say(&format!("== {what}: {}", texts.len()));
        texts.iter().take(SHOWN).for_each(|text| say(text));
    }
    let total: usize = differences.values().map(Vec::len).sum();
    assert_eq!(total, 0, "of {count} differ, seed {seed}");
}

fn number(name: &str, default: u64) -> u64 {
    let given = env::var(name).ok();
    given.map_or(default, |text| text.parse().unwrap())
}

/// A machine that is made anew after what it does not survive.
struct Bench<'d, D: Door> {
    door: &'d D,
    cpuid: &'d Cpuid,
    machine: Machine<'d, D>,
}

impl<'d, D: Door> Bench<'d, D> {
    fn new(door: &'d D, cpuid: &'d Cpuid) -> Self {
        Self {
            door,
            cpuid,
            machine: Machine::new(door, cpuid).unwrap(),
        }
    }

    fn run(&mut self, case: &Case) -> Outcome {
        let outcome = self.machine.run(case).unwrap();
        if outcome.exit_reason != KVM_EXIT_HLT {
            self.machine = Machine::new(self.door, self.cpuid).unwrap();
        }
        outcome
    }
}

/// The case, and the lines in which the outcomes differ: ours, then the real KVM's.
fn describe(case: &Case, ours: &Outcome, theirs: &Outcome) -> String {
    let mut text = format!(
        "{} {:x?} in {:?} at CPL {}\n  RAX {:x}, CR0 {:x}, CR4 {:x}, data {:x?}, stack {:x?}\n  GDT {:x?}\n  LDT {:x?}\n",
        case.name,
        case.code,
        case.mode,
        case.cpl,
        case.regs.rax,
        case.sregs.cr0,
        case.sregs.cr4,
        case.words(DATA, 2),
        case.words(STACK, 5),
        case.words(GDT, 32),
        case.words(LDT, 8),
    );
    if ours.exit_reason != theirs.exit_reason {
        let [ours, theirs] = [ours, theirs].map(|outcome| (outcome.exit_reason, outcome.regs.rip));
        return text + &format!("  exit and RIP {ours:x?} / {theirs:x?}\n");
    }
    for (a, b) in ours.lines().iter().zip(theirs.lines()) {
        if *a != b {
            text += &format!("  {a} / {b}\n");
        }
    }
    let mut memory = ours.memory.iter().zip(&theirs.memory);
    if let Some(at) = memory.position(|(a, b)| a != b) {
        let [ours, theirs] = [ours, theirs].map(|outcome| outcome.memory[at]);
        text += &format!("  [{at:#x}]: {ours:#x} / {theirs:#x}\n");
    }
    text
}
