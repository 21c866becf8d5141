//! An explanation on a KVM that writes before it asks its filter.

use msrgate_core::{Disposition, ExitReason, MsrIndex};
use msrgate_policy::{
    Instruction, KvmAnswer, KvmAnswers, NotTried, Options, Sees, Stage, compile_with,
};

const TSC_DEADLINE: MsrIndex = MsrIndex(0x6e0);
const POLICY: &str = "version = 1\n[[rule]]\nmsr = 'IA32_TSC_DEADLINE'\nboth = 'fault'\n";

/// Takes every write of one MSR at once.
struct Early;

impl KvmAnswers for Early {
    fn rdmsr(&mut self, _index: MsrIndex) -> KvmAnswer {
        KvmAnswer::Value(0)
    }

    fn wrmsr(&mut self, _index: MsrIndex, _value: u64) -> KvmAnswer {
        KvmAnswer::Done
    }

    fn get_msr(&mut self, _index: MsrIndex) -> KvmAnswer {
        KvmAnswer::NotTried
    }

    fn set_msr(&mut self, _index: MsrIndex, _value: u64) -> KvmAnswer {
        KvmAnswer::NotTried
    }

    fn writes_before_filter(&self, index: MsrIndex) -> Option<bool> {
        Some(index == TSC_DEADLINE)
    }
}

#[test]
fn denied_write_that_skips_the_filter_is_done_by_kvm() {
    let (sources, compiled) = compile_with("policy.toml", POLICY, &Options::default());
    let compiled = compiled.expect("a policy");
    let write = compiled.explain(Instruction::Wrmsr(TSC_DEADLINE, 5), &mut Early);
    assert_eq!(write.sees, Sees::Written);
    assert_eq!(write.disposition, Some(Disposition::Native));
    let steps = write.steps(&compiled, &sources);
    let of_filter = steps.iter().filter(|step| step.stage == Stage::Filter);
    let of_filter: Vec<_> = of_filter.map(|step| step.text.as_str()).collect();
    assert_eq!(of_filter.len(), 2, "{of_filter:?}");
    assert!(of_filter[0].ends_with("denies"));
    assert!(of_filter[1].contains("before it asks"));
}

#[test]
fn reads_other_msrs_and_other_kvms_obey_the_filter() {
    let compiled = compile_with("policy.toml", POLICY, &Options::default()).1;
    let compiled = compiled.expect("a policy");
    let filtered = Some(Disposition::Exit(ExitReason::FILTER));
    let read = compiled.explain(Instruction::Rdmsr(TSC_DEADLINE), &mut Early);
    let write = compiled.explain(Instruction::Wrmsr(TSC_DEADLINE, 5), &mut NotTried);
    for explanation in [read, write] {
        assert_eq!(explanation.disposition, filtered);
        assert_eq!(explanation.sees, Sees::Gp);
    }
}
