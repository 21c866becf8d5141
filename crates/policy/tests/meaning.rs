//! The filter and the image together mean what the policy says: compared with the slowest reading of it.

#[path = "support/enforce.rs"]
mod enforce;
#[path = "support/language.rs"]
mod language;

use std::sync::Arc;

use enforce::{HANDLERS, enforced};
use language::{Kvm, PolicyText, policy};
use msrgate_core::{Access, Action, MsrIndex, Rule};
use msrgate_policy::{Compiled, Diagnostic, Options, Severity, compile, compile_with};
use proptest::prelude::*;

fn compiled(policy: &PolicyText) -> Result<Compiled, Vec<Diagnostic>> {
    let options = Options {
        handlers: &HANDLERS,
        ..Options::default()
    };
    compile_with("random", &policy.source(), &options).1
}

/// What a random policy may be refused for.
const REFUSALS: [&str; 6] = [
    "policy::overlap",
    "policy::x2apic",
    "policy::log-allow",
    "policy::one-refusal",
    "policy::too-many-ranges",
    "policy::too-big",
];

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 600,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn compiled_policy_means_what_its_text_says(policy in policy()) {
        let compiled = match compiled(&policy) {
            Ok(compiled) => compiled,
            Err(diagnostics) => {
                let errors = diagnostics.iter().filter(|found| found.severity == Severity::Error);
                for found in errors {
                    prop_assert!(REFUSALS.contains(&found.code), "{:?}\n{}", found, policy.source());
                }
                return Ok(());
            }
        };
        let image = Arc::new(compiled.image.clone());
        for index in policy.probes() {
            for access in Access::ALL {
                for kvm in Kvm::ALL {
                    if !policy.is_possible(index, access, kvm) {
                        continue;
                    }
                    let expected = policy.meaning(index, access, kvm);
                    let found = enforced(&compiled, &image, MsrIndex(index), access, kvm);
                    prop_assert_eq!(
                        found, expected,
                        "{} {:#x} that KVM {:?} in\n{}", access, index, kvm, policy.source()
                    );
                }
            }
        }
    }

    #[test]
    fn deciders_begin_with_the_rule_that_decides(policy in policy()) {
        let Ok(compiled) = compiled(&policy) else { return Ok(()) };
        for index in policy.probes() {
            for access in Access::ALL {
                let deciders = compiled.deciders(MsrIndex(index), access);
                let segment = compiled
                    .segments(access)
                    .iter()
                    .find(|segment| (segment.first.0..=segment.last.0).contains(&index));
                prop_assert_eq!(
                    deciders.first().map(|decider| decider.rule),
                    segment.map(|segment| segment.rule)
                );
                prop_assert_eq!(deciders.len(), policy.naming_count(index, access));
            }
        }
    }
}

/// The property is about nothing if hardly any policy compiles, or hardly any says something.
#[test]
fn most_random_policies_compile_and_every_action_is_among_them() {
    use proptest::strategy::{Strategy, ValueTree};
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut sources = String::new();
    let mut count = 0;
    for _ in 0..400 {
        let policy = policy().new_tree(&mut runner).expect("a policy").current();
        if compiled(&policy).is_ok() {
            count += 1;
            sources += &policy.source();
        }
    }
    assert!(count >= 120, "only {count} of 400 compile");
    for word in [
        "'allow'", "value", "mask", "writable", "shadow", "handler", "limit", "'@",
    ] {
        assert!(sources.contains(word), "no policy with {word} compiles");
    }
}

#[test]
fn ten_thousand_rules_compile() {
    let mut source = "version = 1\n".to_owned();
    for number in 0..10_000 {
        source += &format!(
            "[[rule]]\nmsr = {:#x}\nread = {{ value = {number} }}\n",
            0xc000_0000u32 + number
        );
    }
    let compiled = compile(&source).expect("they fit into one range");
    assert_eq!(compiled.filter.ranges().len(), 1);
    assert_eq!(
        compiled.image.named(MsrIndex(0xc000_0007), Access::Read),
        Some(Rule::quiet(Action::Value(7)))
    );
}
