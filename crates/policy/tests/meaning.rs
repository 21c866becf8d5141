//! The filter and the image together mean what the policy says: compared with the slowest reading of it.

use std::cell::Cell;

use msrgate_core::{Access, Action, ExitReason, HostMsrs, Image, MsrIndex, Rule, Verdict, VmError};
use msrgate_policy::{Compiled, compile};
use proptest::prelude::*;

/// What a guest sees. `Native`: KVM's own doing, whether deflected and forwarded or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Native,
    Fault,
    Zero,
    Value(u64),
}

/// What KVM would do with the access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kvm {
    Handles,
    DoesNotKnow,
    Refuses,
}

#[derive(Clone, Debug)]
struct PolicyText {
    known: &'static str,
    unknown: Option<&'static str>,
    invalid: Option<&'static str>,
    rules: Vec<RuleText>,
}

#[derive(Clone, Debug)]
struct RuleText {
    first: u32,
    last: u32,
    read: Option<ActionText>,
    write: Option<&'static str>,
    log: bool,
}

#[derive(Clone, Copy, Debug)]
enum ActionText {
    Word(&'static str),
    Value(u64),
}

impl PolicyText {
    fn source(&self) -> String {
        let mut text = format!("version = 1\n[defaults]\nknown = '{}'\n", self.known);
        for (key, word) in [("unknown", self.unknown), ("invalid", self.invalid)] {
            if let Some(word) = word {
                text += &format!("{key} = '{word}'\n");
            }
        }
        for rule in &self.rules {
            let RuleText {
                first, last, log, ..
            } = rule;
            text += &format!("[[rule]]\nmsr = '{first:#x}..={last:#x}'\nlog = {log}\n");
            match rule.read {
                Some(ActionText::Word(word)) => text += &format!("read = '{word}'\n"),
                Some(ActionText::Value(value)) => {
                    text += &format!("read = {{ value = {value:#x} }}\n")
                }
                None => {}
            }
            if let Some(word) = rule.write {
                text += &format!("write = '{word}'\n");
            }
        }
        text
    }

    /// The language's own words, one access at a time.
    fn meaning(&self, index: u32, access: Access, kvm: Kvm) -> Seen {
        let action = |rule: &RuleText| match access {
            Access::Read => rule.read,
            Access::Write => rule.write.map(ActionText::Word),
        };
        let narrowest = self
            .rules
            .iter()
            .filter(|rule| (rule.first..=rule.last).contains(&index))
            .filter_map(|rule| Some((rule.last - rule.first, action(rule)?)))
            .min_by_key(|(width, _)| *width);
        let is_exempt = (0x800..=0x8ff).contains(&index);
        let decided = match narrowest {
            _ if is_exempt => ActionText::Word("allow"),
            Some((_, decided)) => decided,
            None => ActionText::Word(self.known),
        };
        let refused = if self.known == "allow" {
            "fault"
        } else {
            self.known
        };
        let word = match (decided, kvm) {
            (ActionText::Value(value), _) => return Seen::Value(value),
            (ActionText::Word("allow"), Kvm::Handles) => return Seen::Native,
            (ActionText::Word("allow"), Kvm::DoesNotKnow) => self.unknown.unwrap_or(refused),
            (ActionText::Word("allow"), Kvm::Refuses) => self.invalid.unwrap_or(refused),
            (ActionText::Word(word), _) => word,
        };
        if word == "ignore" {
            Seen::Zero
        } else {
            Seen::Fault
        }
    }
}

/// What a kernel and a gate make of the compiled policy.
fn enforced(compiled: &Compiled, index: MsrIndex, access: Access, kvm: Kvm) -> Seen {
    let denied = compiled.filter.decide(index, access).verdict == Verdict::Deny;
    let reason = match kvm {
        _ if denied => ExitReason::FILTER,
        Kvm::Handles => return Seen::Native,
        Kvm::DoesNotKnow => ExitReason::UNKNOWN,
        Kvm::Refuses => ExitReason::INVAL,
    };
    if !compiled.reasons.contains(reason) {
        return Seen::Fault;
    }
    answered(&compiled.image, index, access, reason, kvm)
}

fn answered(image: &Image, index: MsrIndex, access: Access, reason: ExitReason, kvm: Kvm) -> Seen {
    use msrgate_core::{Gate, VcpuId, VmEntry, VmExit};
    let exit = match access {
        Access::Read => VmExit::Rdmsr { index, reason },
        Access::Write => VmExit::Wrmsr {
            index,
            value: 5,
            reason,
        },
    };
    let mut gate = Gate::new(VcpuId(0), image.clone().into(), ());
    let mut host = Host {
        handles: kvm == Kvm::Handles,
        asked: Cell::new(false),
    };
    let entry = gate.service(&exit, &mut host);
    match entry.expect("an MSR exit") {
        _ if host.asked.get() && kvm == Kvm::Handles => Seen::Native,
        VmEntry::CompleteRdmsr(Err(_)) | VmEntry::CompleteWrmsr(Err(_)) => Seen::Fault,
        VmEntry::CompleteRdmsr(Ok(0)) | VmEntry::CompleteWrmsr(Ok(())) => Seen::Zero,
        VmEntry::CompleteRdmsr(Ok(value)) => Seen::Value(value),
        other => panic!("{other:?} answers no MSR access"),
    }
}

struct Host {
    handles: bool,
    asked: Cell<bool>,
}

impl HostMsrs for Host {
    fn get_msr(&self, _index: MsrIndex) -> Result<Option<u64>, VmError> {
        self.asked.set(true);
        Ok(self.handles.then_some(0x5eed))
    }

    fn set_msr(&mut self, _index: MsrIndex, _value: u64) -> Result<bool, VmError> {
        self.asked.set(true);
        Ok(self.handles)
    }
}

fn words(words: &'static [&'static str]) -> impl Strategy<Value = &'static str> {
    prop::sample::select(words)
}

fn rule() -> impl Strategy<Value = RuleText> {
    let bases = prop::sample::select(vec![0x0u32, 0x7c0, 0x8f0, 0x2fe0, 0x474f_4f00, 0xc000_0080]);
    let action = prop_oneof![
        words(&["allow", "fault", "ignore"]).prop_map(ActionText::Word),
        (1u64..).prop_map(ActionText::Value),
    ];
    let msrs = (
        bases,
        0u32..0x60,
        prop_oneof![0u32..3, 0u32..0x60, 0x2000u32..0x8000],
    );
    let write = prop::option::of(words(&["allow", "fault", "ignore"]));
    (
        msrs,
        prop::option::of(action),
        write,
        prop::bool::weighted(0.2),
    )
        .prop_filter("a rule does something", |(_, read, write, _)| {
            read.is_some() || write.is_some()
        })
        .prop_map(|((base, offset, width), read, write, log)| RuleText {
            first: base + offset,
            last: base + offset + width,
            read,
            write,
            log,
        })
}

fn policy() -> impl Strategy<Value = PolicyText> {
    let refused = || prop::option::of(words(&["fault", "ignore", "log"]));
    let defaults = prop_oneof![
        3 => (Just("allow"), refused(), refused()),
        1 => (words(&["fault", "ignore"]), Just(None), Just(None)),
    ];
    (defaults, prop::collection::vec(rule(), 0..6)).prop_map(
        |((known, unknown, invalid), rules)| PolicyText {
            known,
            unknown,
            invalid,
            rules,
        },
    )
}

/// Where something may change: at the ends of every rule, and next to them.
fn probes(policy: &PolicyText) -> Vec<u32> {
    let ends = policy.rules.iter().flat_map(|rule| [rule.first, rule.last]);
    ends.flat_map(|end| [end.wrapping_sub(1), end, end.wrapping_add(1), end ^ 0x40])
        .chain([0, 0x7ff, 0x800, 0x8ff, 0x900, u32::MAX])
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn compiled_policy_means_what_its_text_says(policy in policy()) {
        let compiled = match compile(&policy.source()) {
            Ok(compiled) => compiled,
            Err(diagnostics) => {
                for found in diagnostics {
                    let refusals = ["policy::overlap", "policy::x2apic", "policy::log-allow"];
                    prop_assert!(refusals.contains(&found.code), "{found:?}");
                }
                return Ok(());
            }
        };
        for index in probes(&policy) {
            for access in Access::ALL {
                for kvm in [Kvm::Handles, Kvm::DoesNotKnow, Kvm::Refuses] {
                    let expected = policy.meaning(index, access, kvm);
                    let found = enforced(&compiled, MsrIndex(index), access, kvm);
                    prop_assert_eq!(
                        found, expected,
                        "{} {:#x} that KVM {:?} in\n{}", access, index, kvm, policy.source()
                    );
                }
            }
        }
    }
}

/// The property is about nothing if hardly any policy compiles.
#[test]
fn most_random_policies_compile() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let compiled = (0..200)
        .filter(|_| {
            let policy = policy().new_tree(&mut runner).expect("a policy").current();
            compile(&policy.source()).is_ok()
        })
        .count();
    assert!(compiled >= 60, "only {compiled} of 200 compile");
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
