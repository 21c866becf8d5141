//! Random policies as text, and accesses that are worth trying under them.

use std::fmt::Write;

use msrgate_core::MsrIndex;
use msrgate_policy::{Compiled, Instruction, compile};
use msrgate_tests::random::Random;

/// MSRs that every KVM knows, and some that one vendor's or none does.
const PLAIN: [u32; 40] = [
    0x10,
    0x17,
    0x1b,
    0x34,
    0x3a,
    0x3b,
    0x48,
    0x49,
    0x79,
    0x8b,
    0x9e,
    0xc1,
    0xce,
    0xfe,
    0x10a,
    0x140,
    0x174,
    0x175,
    0x176,
    0x179,
    0x17a,
    0x186,
    0x1a0,
    0x1d9,
    0x1fc,
    0x200,
    0x201,
    0x250,
    0x277,
    0x2ff,
    0x400,
    0x401,
    0x606,
    0x6e0,
    0xc000_0080,
    0xc000_0082,
    0xc000_0102,
    0xc000_0103,
    0xc001_0015,
    0x474f_4f00,
];

/// Where windows of MSRs begin and end.
const EDGES: [u32; 16] = [
    0,
    0x1fff,
    0x2000,
    0x2fff,
    0x3000,
    0x7ff,
    0x900,
    0x4000_0000,
    0x4b56_4d00,
    0xbfff_ffff,
    0xc000_0000,
    0xc000_1fff,
    0xc001_0000,
    0xc001_1fff,
    0xc001_2000,
    0xffff_fffe,
];

const GROUPS: [&str; 5] = ["@mtrr", "@mca", "@syscall", "@tsc", "@kvm"];

/// A policy that compiles, and what it names.
pub(crate) struct Case {
    pub(crate) text: String,
    pub(crate) compiled: Compiled,
    named: Vec<u32>,
}

impl Case {
    /// The next policy of `random` that has no mistake.
    pub(crate) fn random(random: &mut Random) -> Self {
        loop {
            let (text, named) = policy(random);
            if let Ok(compiled) = compile(&text) {
                return Self {
                    text,
                    compiled,
                    named,
                };
            }
        }
    }

    /// An access that this policy may have an opinion on.
    pub(crate) fn instruction(&self, random: &mut Random) -> Instruction {
        let index = MsrIndex(match random.below(16) {
            0..=8 if !self.named.is_empty() => random
                .pick(&self.named)
                .wrapping_add(random.pick(&[0, 0, 0, 1, u32::MAX])),
            0..=11 => random.pick(&PLAIN),
            12 => random.pick(&EDGES),
            13 => 0x800 + random.below(0x100),
            14 => u32::MAX,
            _ => random.word(),
        });
        if random.one_in(2) {
            Instruction::Rdmsr(index)
        } else {
            Instruction::Wrmsr(index, value(random, index))
        }
    }
}

/// For KVM's clocks and the like it is an address to which the kernel writes, and must be none.
fn value(random: &mut Random, index: MsrIndex) -> u64 {
    match (index.0, random.below(8)) {
        (0x11 | 0x12 | 0x4b56_4d00..=0x4b56_4dff, _) => 0,
        (_, 0) => 0,
        (_, 1) => 1,
        (_, 2) => 1 << random.below(64),
        (_, 3) => 0x7000_0000_1000,
        (_, 4) => 0x0606_0606_0606_0606,
        (_, 5) => u64::MAX,
        (_, 6) => random.word().into(),
        _ => random.bits(),
    }
}

fn policy(random: &mut Random) -> (String, Vec<u32>) {
    let mut text = "version = 1\n[defaults]\n".to_owned();
    let known = random.pick(&["allow", "allow", "allow", "fault", "ignore"]);
    if random.one_in(2) {
        writeln!(text, "known = '{known}'").unwrap();
    }
    for default in ["unknown", "invalid"] {
        if random.one_in(2) {
            let word = random.pick(&["fault", "ignore", "log"]);
            writeln!(text, "{default} = '{word}'").unwrap();
        }
    }
    let mut named = Vec::new();
    for _ in 0..random.below(9) {
        rule(random, &mut text, &mut named);
    }
    (text, named)
}

fn rule(random: &mut Random, text: &mut String, named: &mut Vec<u32>) {
    let msrs: Vec<String> = (0..=random.below(3))
        .map(|_| selector(random, named))
        .collect();
    writeln!(text, "[[rule]]\nmsr = [{}]", msrs.join(", ")).unwrap();
    match random.below(4) {
        0 => writeln!(text, "read = {}", read(random)),
        1 => writeln!(text, "write = {}", write(random)),
        2 => writeln!(text, "read = {}\nwrite = {}", read(random), write(random)),
        _ => writeln!(text, "{}", both(random)),
    }
    .unwrap();
    if random.one_in(3) {
        text.push_str("log = true\n");
    }
}

fn selector(random: &mut Random, named: &mut Vec<u32>) -> String {
    let first = match random.below(8) {
        0 => random.word(),
        1 => random.pick(&EDGES),
        2 => 0x7f0 + random.below(0x120),
        _ => random.pick(&PLAIN),
    };
    match random.below(8) {
        0 => format!("'{}'", random.pick(&GROUPS)),
        1 | 2 => {
            let last = first.saturating_add(1 + random.below(0x40));
            named.extend([first, last, first + (last - first) / 2]);
            format!("'{first:#x}..={last:#x}'")
        }
        _ => {
            named.push(first);
            match MsrIndex(first).name() {
                Some(name) => format!("'{name}'"),
                None => format!("{first:#x}"),
            }
        }
    }
}

fn read(random: &mut Random) -> String {
    match random.below(6) {
        0 => format!("{{ value = {:#x} }}", random.bits() >> 1),
        1 | 2 => format!("{{ mask = '{}' }}", tri_state(random)),
        _ => word(random),
    }
}

fn write(random: &mut Random) -> String {
    match random.below(3) {
        0 => format!("{{ {} }}", writable(random)),
        _ => word(random),
    }
}

fn both(random: &mut Random) -> String {
    match random.below(3) {
        0 => format!(
            "shadow = {{ scope = '{}', reset = {:#x}, {} }}",
            random.pick(&["vcpu", "vm"]),
            random.word(),
            writable(random)
        ),
        _ => format!("both = {}", word(random)),
    }
}

fn word(random: &mut Random) -> String {
    format!("'{}'", random.pick(&["allow", "allow", "fault", "ignore"]))
}

fn writable(random: &mut Random) -> String {
    format!(
        "writable = {:#x}, on-violation = '{}'",
        random.bits() >> 1 & random.bits(),
        random.pick(&["fault", "ignore"])
    )
}

fn tri_state(random: &mut Random) -> String {
    let bits: String = (0..64)
        .map(|_| random.pick(&['x', 'x', '0', '1']))
        .collect();
    format!("0b{bits}")
}
