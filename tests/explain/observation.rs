//! A guest that is observed by filter sees what it sees otherwise, and nothing that can be observed is missed.

use std::sync::Arc;

use msrgate_core::{Gate, Vcpu, VcpuId};
use msrgate_machine::GuestSaw;
use msrgate_policy::{Compiled, HostPath, Instruction, Options, compile_with, host_path};
use msrgate_tests::machine::Backend;
use msrgate_tests::on_each_backend;
use msrgate_tests::random::Random;
use msrgate_tests::skip::say;

use crate::agreement::is_volatile;
use crate::policies::Case;
use crate::probe;

on_each_backend!(observed_guest_sees_the_same_and_is_seen);

const SEED: u64 = 0x6f62_7365_7276_6531;
const CASES: u32 = 500;

/// What came of an access under a policy.
#[derive(Debug, PartialEq, Eq)]
struct Came {
    saw: GuestSaw,
    /// What KVM has for the MSR afterwards.
    after: Option<u64>,
}

fn observed_guest_sees_the_same_and_is_seen<B: Backend>() {
    if probe::<B>().is_none() {
        return;
    }
    let mut random = Random::new(SEED);
    let (mut events, mut quiet) = (0, 0);
    for _ in 0..CASES {
        let case = Case::random(&mut random);
        let options = Options {
            observe: true,
            ..Options::default()
        };
        let observing = compile_with("policy", &case.text, &options).1.unwrap();
        let instruction = case.instruction(&mut random);
        let (came, _) = guest::<B>(&case.compiled, instruction);
        let (watched, is_seen) = guest::<B>(&observing, instruction);
        let place = || format!("{instruction:x?} under\n{}", case.text);
        assert_eq!(watched, came, "{}", place());
        if is_seen {
            events += 1;
        } else {
            quiet += 1;
            assert!(is_excused(&observing, instruction), "{}", place());
        }
    }
    say(&format!(
        "observation: {events} accesses seen, {quiet} said to be unseen"
    ));
}

/// Has a guest do it under a policy: what came of it, and whether the gate knows.
fn guest<B: Backend>(compiled: &Compiled, instruction: Instruction) -> (Came, bool) {
    let mut probe = probe::<B>().expect("the backend ran a moment ago");
    probe.install(&compiled.filter, compiled.reasons).unwrap();
    let mut gate = Gate::new(VcpuId(0), Arc::new(compiled.image.clone()), Vec::new());
    let saw = match instruction {
        Instruction::Rdmsr(index) => probe.guest_rdmsr(index, &mut gate),
        Instruction::Wrmsr(index, value) => probe.guest_wrmsr(index, value, &mut gate),
    };
    let saw = saw.unwrap();
    let after = probe.vcpu().get_msr(instruction.index()).unwrap();
    let came = match saw {
        GuestSaw::Value(_) if is_volatile(instruction) => Came {
            saw: GuestSaw::Done,
            after: None,
        },
        saw => Came {
            saw,
            after: after.filter(|_| !is_volatile(instruction)),
        },
    };
    (came, !gate.recorder().is_empty())
}

/// Whether the policy says that nobody will see this.
fn is_excused(compiled: &Compiled, instruction: Instruction) -> bool {
    let (index, access) = (instruction.index(), instruction.access());
    let is_unobserved = compiled.unobserved.iter().any(|unobserved| {
        unobserved.access == access && (unobserved.first..=unobserved.last).contains(&index)
    });
    is_unobserved || index.is_x2apic() || host_path(index, access) == HostPath::Unknown
}
