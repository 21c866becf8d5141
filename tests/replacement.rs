//! Replacing the filter under a spinning vCPU: each access sees entirely the old or entirely the new one.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use msrgate_core::{
    Access, DefaultAction, ExitReason, ExitReasons, FilterRange, MsrFilter, MsrIndex, RangeFlags,
    Verdict, Vm, VmEntry,
};
use msrgate_tests::guest::{Request, Routine};
use msrgate_tests::machine::{Backend, Machine, run_list};
use msrgate_tests::on_each_backend;

on_each_backend!(
    replacement_is_atomic_for_every_access,
    filter_set_before_a_vcpu_exists_holds_for_it,
);

/// Denied by both filters, allowed by both, and denied by one of them.
const BOTH_DENY: MsrIndex = MsrIndex(0x474f_4f00);
const BOTH_ALLOW: MsrIndex = MsrIndex(0xc000_0102);
const ONE_DENIES: [MsrIndex; 2] = [MsrIndex(0xc000_0081), MsrIndex(0xc000_0083)];

/// Accesses in a list, and lists that must run while filters are replaced.
const LIST: usize = 1000;
const LISTS: usize = 50;
/// Replacements that must happen meanwhile.
const REPLACEMENTS: usize = 100;

/// The same meaning for `BOTH_DENY` and `BOTH_ALLOW`, said in different shapes.
fn filters() -> [MsrFilter; 2] {
    let range =
        |index, nmsrs, verdict| FilterRange::uniform(RangeFlags::READ_WRITE, index, nmsrs, verdict);
    let allowing = vec![
        range(BOTH_DENY, 1, Verdict::Deny),
        range(ONE_DENIES[0], 1, Verdict::Deny),
    ];
    let denying = vec![
        range(BOTH_ALLOW, 1, Verdict::Allow),
        range(ONE_DENIES[0], 1, Verdict::Allow),
    ];
    [
        MsrFilter::new(DefaultAction::Allow, allowing).unwrap(),
        MsrFilter::new(DefaultAction::Deny, denying).unwrap(),
    ]
}

fn replacement_is_atomic_for_every_access<B: Backend>() {
    let Some(mut machine) = Machine::on::<B>() else {
        return;
    };
    let cycle = [BOTH_DENY, BOTH_ALLOW, ONE_DENIES[0], ONE_DENIES[1]];
    let requests: Vec<Request> = cycle
        .iter()
        .cycle()
        .take(LIST)
        .map(|index| Request {
            routine: Routine::Rdmsr,
            rcx: index.0.into(),
            rax: 0,
            rdx: 0,
        })
        .collect();
    machine.set_list(&requests);
    let filters = filters();
    let (vm, vcpu) = (&machine.vm, &mut machine.vcpu);
    vm.set_exit_reasons(ExitReasons::ALL).unwrap();
    vm.set_msr_filter(&filters[0]).unwrap();
    let replacements = AtomicUsize::new(0);
    let done = AtomicBool::new(false);
    let mut seen = BTreeMap::new();
    let mut lists = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                let n = replacements.fetch_add(1, Ordering::Relaxed);
                vm.set_msr_filter(&filters[n % 2]).unwrap();
            }
        });
        while lists < LISTS || replacements.load(Ordering::Relaxed) < REPLACEMENTS {
            let run = run_list(vcpu, |exit| {
                let (index, _, reason) = exit.msr_access().expect("an MSR exit");
                assert_eq!(reason, ExitReason::FILTER, "{index}: all others are known");
                *seen.entry(index).or_insert(0) += 1;
                VmEntry::CompleteRdmsr(Ok(0))
            });
            run.unwrap();
            lists += 1;
        }
        done.store(true, Ordering::Release);
    });
    let each = LIST / cycle.len() * lists;
    assert_eq!(
        seen.get(&BOTH_DENY),
        Some(&each),
        "one exit for each access, none leaked"
    );
    assert_eq!(seen.get(&BOTH_ALLOW), None, "allowed by both");
    let by_one: usize = ONE_DENIES.iter().filter_map(|index| seen.get(index)).sum();
    let replacements = replacements.into_inner();
    println!("{replacements} replacements, {lists} lists, {by_one} exits by one of the filters");
    assert!(by_one > 0, "the filters were seen at work");
}

fn filter_set_before_a_vcpu_exists_holds_for_it<B: Backend>() {
    let prepare = |vm: &B::Vm| {
        vm.set_exit_reasons(ExitReasons::ALL).unwrap();
        vm.set_msr_filter(&filters()[0]).unwrap();
    };
    let Some(mut machine) = Machine::prepared::<B>(prepare) else {
        return;
    };
    machine.set_list(&[Request {
        routine: Routine::Rdmsr,
        rcx: ONE_DENIES[0].0.into(),
        rax: 0,
        rdx: 0,
    }]);
    let mut exits = Vec::new();
    let run = machine.run_list(|exit| {
        exits.push(exit.msr_access());
        VmEntry::CompleteRdmsr(Ok(0))
    });
    run.unwrap();
    assert_eq!(
        exits,
        [Some((ONE_DENIES[0], Access::Read, ExitReason::FILTER))]
    );
}
