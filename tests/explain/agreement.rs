//! [`Compiled::explain`](msrgate_policy::Compiled::explain) says what a guest sees; a guest under the same policy says
//! what it saw.
//!
//! The expected value comes from the policy as it is written and from KVM without a filter; the observed one from a
//! guest whose VM has the filter and whose gate has the image. `MSRGATE_EXPLAIN_CASES=N` makes N accesses.

use std::collections::BTreeMap;
use std::env;
use std::marker::PhantomData;
use std::sync::Arc;

use msrgate_core::{ExitReason, Gate, MsrIndex, Vcpu, VcpuId};
use msrgate_machine::{GuestSaw, Probe, ProbeError, Seen};
use msrgate_policy::{Compiled, Instruction, KvmAnswer, KvmAnswers, Sees, compile};
use msrgate_tests::machine::Backend;
use msrgate_tests::on_each_backend;
use msrgate_tests::random::Random;
use msrgate_tests::skip::say;

use crate::policies::Case;
use crate::probe;

on_each_backend!(
    explanation_is_what_the_guest_sees,
    denied_deadline_is_what_the_guest_sees
);

const SEED: u64 = 0x6d73_7267_6174_6503;
const CASES: u32 = 1000;

/// Reads whose value is another one each time: only that there is one can be compared.
const VOLATILE: [(u32, &str); 1] = [(0x10, "the time-stamp counter goes on")];

pub(crate) fn is_volatile(instruction: Instruction) -> bool {
    let index = instruction.index().0;
    VOLATILE.iter().any(|&(volatile, _)| volatile == index)
}

/// KVM without a policy, each time on a new VM.
struct Kvm<B>(PhantomData<B>);

impl<B: Backend> Kvm<B> {
    fn probe() -> Probe<B::Vm> {
        probe::<B>().expect("the backend ran a moment ago")
    }
}

impl<B: Backend> KvmAnswers for Kvm<B> {
    fn rdmsr(&mut self, index: MsrIndex) -> KvmAnswer {
        seen(Self::probe().rdmsr(index))
    }

    fn wrmsr(&mut self, index: MsrIndex, value: u64) -> KvmAnswer {
        seen(Self::probe().wrmsr(index, value))
    }

    fn get_msr(&mut self, index: MsrIndex) -> KvmAnswer {
        let value = Self::probe().vcpu().get_msr(index).unwrap();
        value.map_or(KvmAnswer::Refused(ExitReason::NONE), KvmAnswer::Value)
    }

    fn set_msr(&mut self, index: MsrIndex, value: u64) -> KvmAnswer {
        match Self::probe().vcpu().set_msr(index, value).unwrap() {
            true => KvmAnswer::Done,
            false => KvmAnswer::Refused(ExitReason::NONE),
        }
    }

    fn writes_before_filter(&self, index: MsrIndex) -> Option<bool> {
        B::writes_before_filter(index)
    }
}

fn seen(seen: Result<Seen, ProbeError>) -> KvmAnswer {
    match seen.unwrap() {
        Seen::Value(value) => KvmAnswer::Value(value),
        Seen::Done => KvmAnswer::Done,
        Seen::Gp => KvmAnswer::Gp,
        Seen::Refused(reason) => KvmAnswer::Refused(reason),
    }
}

fn explanation_is_what_the_guest_sees<B: Backend>() {
    if probe::<B>().is_none() {
        return;
    }
    let cases = env::var("MSRGATE_EXPLAIN_CASES").map_or(CASES, |count| count.parse().unwrap());
    let mut random = Random::new(SEED);
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    let mut forwarded = 0;
    for number in 0..cases {
        let case = Case::random(&mut random);
        let instruction = case.instruction(&mut random);
        let mut kvm = Kvm::<B>(PhantomData);
        let explanation = case.compiled.explain(instruction, &mut kvm);
        forwarded += u32::from(explanation.host_path.is_some());
        let expected = explanation.sees;
        let what = match agreement::<B>(&case.compiled, instruction, expected) {
            Ok(what) => what,
            Err(saw) => panic!(
                "case {number}: {instruction:x?}, explained as {expected:x?}, but the guest saw {saw:x?} under\n{}",
                case.text
            ),
        };
        *counts.entry(what).or_default() += 1;
    }
    let counts: Vec<String> = counts
        .iter()
        .map(|(what, count)| format!("{count} {what}"))
        .collect();
    say(&format!(
        "explain: {cases} accesses, {forwarded} of them by the host path: {}",
        counts.join(", ")
    ));
}

/// Some KVMs do this write before they ask the filter; all obey it in reads.
fn denied_deadline_is_what_the_guest_sees<B: Backend>() {
    if probe::<B>().is_none() {
        return;
    }
    let deadline = MsrIndex(0x6e0);
    let text = "version = 1\n[[rule]]\nmsr = 'IA32_TSC_DEADLINE'\nboth = 'fault'\n";
    let compiled = compile(text).expect("a policy");
    let explain = |instruction| {
        compiled
            .explain(instruction, &mut Kvm::<B>(PhantomData))
            .sees
    };
    let is_early = B::writes_before_filter(deadline) == Some(true);
    let written = if is_early { Sees::Written } else { Sees::Gp };
    for (instruction, sees) in [
        (Instruction::Rdmsr(deadline), Sees::Gp),
        (Instruction::Wrmsr(deadline, 0), written),
    ] {
        assert_eq!(explain(instruction), sees);
        let agreed = agreement::<B>(&compiled, instruction, sees);
        assert!(agreed.is_ok(), "{instruction:x?}: {agreed:x?}");
    }
}

/// Has a guest do it. In a word, what it was; or what the guest saw instead.
fn agreement<B: Backend>(
    compiled: &Compiled,
    instruction: Instruction,
    expected: Sees,
) -> Result<&'static str, GuestSaw> {
    let mut probe = Kvm::<B>::probe();
    probe.install(&compiled.filter, compiled.reasons).unwrap();
    let mut gate = Gate::new(VcpuId(0), Arc::new(compiled.image.clone()), ());
    let before = probe.vcpu().get_msr(instruction.index()).unwrap();
    let saw = match instruction {
        Instruction::Rdmsr(index) => probe.guest_rdmsr(index, &mut gate),
        Instruction::Wrmsr(index, value) => probe.guest_wrmsr(index, value, &mut gate),
    };
    let saw = saw.unwrap();
    let is_volatile = is_volatile(instruction);
    let (what, agrees) = match expected {
        Sees::Value(_) if is_volatile => ("volatile values", matches!(saw, GuestSaw::Value(_))),
        Sees::Value(value) => ("values", saw == GuestSaw::Value(value)),
        Sees::Gp => ("#GP", saw == GuestSaw::Gp),
        Sees::Written => ("writes by KVM", saw == GuestSaw::Done),
        Sees::Dropped => {
            let after = probe.vcpu().get_msr(instruction.index()).unwrap();
            let same = is_volatile || after == before;
            ("writes dropped", saw == GuestSaw::Done && same)
        }
        Sees::Kept(value) => {
            let again = probe.guest_rdmsr(instruction.index(), &mut gate).unwrap();
            let kept = saw == GuestSaw::Done && again == GuestSaw::Value(value);
            ("writes kept", kept)
        }
        other => panic!("{other:?} is no answer"),
    };
    if agrees { Ok(what) } else { Err(saw) }
}
