//! A guest under a policy that was learned from it meets what it met before.
//!
//! Random guests under random policies on soft, which tells of all their accesses.

use std::sync::Arc;

use msrgate_core::{Event, Gate, Outcome, Vcpu, VcpuId};
use msrgate_machine::{GuestSaw, ProbeError};
use msrgate_policy::{
    Compiled, HostPath, Instruction, LearnError, Observations, compile, host_path,
};
use msrgate_tests::machine::SoftBackend;
use msrgate_tests::random::Random;
use msrgate_tests::skip::say;

use crate::policies::Case;
use crate::probe;

const SEED: u64 = 0x6d73_7267_6174_6504;
const GUESTS: u32 = 500;
const ACCESSES: u32 = 20;

/// They read another value each time: the time-stamp counter, and the difference that a write of it makes.
const VOLATILE: [u32; 2] = [0x10, 0x3b];

#[test]
fn guest_meets_under_what_was_learned_from_it_what_it_met_before() {
    let mut random = Random::new(SEED);
    let [mut compared, mut told, mut refused] = [0; 3];
    for number in 0..GUESTS {
        let case = Case::random(&mut random);
        let accesses: Vec<Instruction> = (0..ACCESSES)
            .map(|_| case.instruction(&mut random))
            .collect();
        let Ok((saw, events)) = run(&case.compiled, &accesses) else {
            continue;
        };
        let policies = [case.compiled];
        let mut observations = Observations::default();
        for event in &events {
            observations.observe(event, &policies);
        }
        let learned = match observations.policy(&[]) {
            Ok(learned) => learned,
            Err(LearnError::Refused { .. }) => {
                refused += 1;
                continue;
            }
            Err(error) => panic!("guest {number}: {error}"),
        };
        if !learned.ambiguous.is_empty() || !learned.lost.is_empty() || events.iter().any(is_served)
        {
            told += 1;
            continue;
        }
        let (again, _) = run(&compile(&learned.text).unwrap(), &accesses).unwrap();
        for ((access, before), after) in accesses.iter().zip(&saw).zip(&again) {
            assert!(
                is_same(*access, before, after),
                "guest {number}: {access:x?} saw {before:x?} and then {after:x?} under\n{}\nlearned under\n{}",
                learned.text,
                case.text
            );
        }
        compared += 1;
    }
    say(&format!(
        "learn: {compared} guests of {ACCESSES} accesses; {told} more are told to differ, {refused} fit no filter"
    ));
    assert!(compared >= GUESTS / 4);
}

/// What the guest met, and what was recorded of it.
fn run(
    compiled: &Compiled,
    accesses: &[Instruction],
) -> Result<(Vec<GuestSaw>, Vec<Event>), ProbeError> {
    let mut probe = probe::<SoftBackend>().expect("soft runs everywhere");
    probe.install(&compiled.filter, compiled.reasons)?;
    probe.vcpu().observe_msrs()?;
    let mut gate = Gate::new(VcpuId(0), Arc::new(compiled.image.clone()), Vec::new());
    let saw: Result<Vec<GuestSaw>, ProbeError> = accesses
        .iter()
        .map(|access| match *access {
            Instruction::Rdmsr(index) => probe.guest_rdmsr(index, &mut gate),
            Instruction::Wrmsr(index, value) => probe.guest_wrmsr(index, value, &mut gate),
        })
        .collect();
    Ok((saw?, gate.into_recorder()))
}

/// The host path did it, which serves some guests that KVM itself refuses.
fn is_served(event: &Event) -> bool {
    event.outcome == Outcome::Forwarded && host_path(event.index, event.access) != HostPath::Same
}

fn is_same(access: Instruction, before: &GuestSaw, after: &GuestSaw) -> bool {
    let is_volatile = VOLATILE.contains(&access.index().0);
    before == after
        || is_volatile && matches!((before, after), (GuestSaw::Value(_), GuestSaw::Value(_)))
}
