//! A learned policy answers as what it was learned from, whichever way the observations came together.

use std::collections::BTreeMap;

use msrgate_core::{Access, Action, Event, ExitReason, MsrIndex, Outcome, Rule, VcpuId, Verdict};
use msrgate_policy::{
    Compiled, Diagnostic, LearnError, Observations, Options, TraceDifference, compile, compile_with,
};
use proptest::prelude::*;

fn event(index: u32, access: Access, outcome: Outcome, value: u64) -> Event {
    Event {
        vcpu: VcpuId(0),
        index: MsrIndex(index),
        access,
        reason: match outcome {
            Outcome::Native => ExitReason::NONE,
            Outcome::Ignored => ExitReason::UNKNOWN,
            Outcome::Fault => ExitReason::INVAL,
            _ => ExitReason::FILTER,
        },
        rip: None,
        value,
        outcome,
        log: false,
    }
}

fn native(index: u32, access: Access) -> Event {
    event(index, access, Outcome::Native, 0)
}

fn observed(events: &[Event]) -> Observations {
    let mut observations = Observations::default();
    for event in events {
        observations.observe(event, &[]);
    }
    observations
}

fn learned(observations: &Observations) -> (String, Compiled) {
    let text = observations.policy(&[]).expect("a policy").text;
    let compiled = compile(&text).expect("it compiles");
    let exempt = |found: &&Diagnostic| found.code == "policy::x2apic";
    assert_eq!(compiled.warnings.iter().find(exempt), None, "{text}");
    (text, compiled)
}

#[test]
fn policy_names_groups_and_counts() {
    let mut events = Vec::new();
    for index in 0x200..=0x20f {
        events.extend([native(index, Access::Read); 2]);
        events.push(native(index, Access::Write));
    }
    events.extend([native(0x10, Access::Read); 1200]);
    events.push(native(0xc000_0080, Access::Read));
    events.push(native(0xc000_0080, Access::Write));
    events.push(event(0xc000_0080, Access::Write, Outcome::Fault, 1 << 63));
    events.push(native(0x830, Access::Write));
    events.push(event(0x8b, Access::Read, Outcome::Value, 0x42));
    events.push(event(0x8b, Access::Write, Outcome::Ignored, 0));
    events.push(event(0x474f_4f00, Access::Read, Outcome::Ignored, 0));
    events.push(event(0x474f_4f00, Access::Write, Outcome::Ignored, 0));
    events.push(event(0x3a, Access::Read, Outcome::Fault, 0));
    let expected = r##"# Learned from 1,257 accesses to 22 MSRs.
version = 1

[defaults]
known = "fault"    # what no rule names is #GP

# No filter sees the x2APIC's MSRs: KVM does them.
[[rule]]
msr  = "0x800..=0x8ff"    # 1 write
both = "allow"

# What KVM did.
[[rule]]
msr = [
    "IA32_MTRR_PHYSBASE0..=IA32_MTRR_PHYSMASK7",    # 32 reads, 16 writes
    "IA32_EFER",    # 1 read, 1 write; 1 write #GP
]
both = "allow"

# What KVM did, and was only read.
[[rule]]
msr  = "IA32_TIME_STAMP_COUNTER"    # 1,200 reads
read = "allow"

# What the policy answered.
[[rule]]
msr  = 0x474f4f00    # 1 read, 1 write
both = "ignore"

[[rule]]
msr   = "IA32_BIOS_SIGN_ID"    # 1 read, 1 write
read  = { value = 0x42 }
write = "ignore"

# Refused, as before:
#   IA32_FEATURE_CONTROL          1 read #GP
"##;
    let (text, _) = learned(&observed(&events));
    assert_eq!(text, expected);
}

#[test]
fn nothing_observed_is_an_error() {
    let error = Observations::default().policy(&[]).unwrap_err();
    assert_eq!(error.to_string(), "no MSR access was observed");
}

#[test]
fn seventeen_far_windows_are_refused_with_the_policy_that_would_say_it() {
    let events: Vec<Event> = (1..=17)
        .map(|far| native(far << 20, Access::Read))
        .collect();
    let Err(LearnError::Refused {
        sources,
        diagnostics,
    }) = observed(&events).policy(&[])
    else {
        panic!("17 windows do not fit into 16 ranges");
    };
    let text = sources.text(diagnostics[0].labels[0].span);
    assert_eq!(diagnostics[0].code, "policy::too-many-ranges");
    assert_eq!(text, "0x100000");
    assert!(observed(&events[1..]).policy(&[]).is_ok());
}

#[test]
fn more_answers_than_anybody_wants_a_policy_of_are_refused_in_bounded_room() {
    let mut observations = Observations::default();
    for index in 0..200_000 {
        observations.observe(&native(index, Access::Read), &[]);
    }
    assert_eq!(observations.msrs(), 1 << 17);
    let error = observations.policy(&[]).unwrap_err();
    assert!(matches!(error, LearnError::TooMuch { limit: 0x2_0000 }));
}

#[test]
fn access_that_was_answered_in_two_ways_is_told() {
    let gs_base = MsrIndex(0xc000_0102);
    let events = [
        native(gs_base.0, Access::Read),
        event(gs_base.0, Access::Read, Outcome::Value, 7),
        event(gs_base.0, Access::Read, Outcome::Value, 7),
        native(gs_base.0, Access::Write),
        event(gs_base.0, Access::Write, Outcome::Fault, 0),
    ];
    let learned = observed(&events).policy(&[]).unwrap();
    assert_eq!(learned.ambiguous, [(gs_base, Access::Read)]);
    let compiled = compile(&learned.text).unwrap();
    for access in Access::ALL {
        let rule = compiled.image.named(gs_base, access);
        assert_eq!(rule, Some(Rule::ALLOW), "KVM did it once");
    }
    let two = [
        event(0x17, Access::Read, Outcome::Ignored, 0),
        event(0x17, Access::Read, Outcome::Fault, 0),
    ];
    let ambiguous = observed(&two).policy(&[]).unwrap().ambiguous;
    assert_eq!(ambiguous, [(MsrIndex(0x17), Access::Read)]);
    assert!(
        learned
            .text
            .contains("# 1 read, 1 write; 2 reads value, 1 write #GP"),
        "{}",
        learned.text
    );
}

#[test]
fn more_frequent_of_two_values_is_kept() {
    let value = |value| event(0x8b, Access::Read, Outcome::Value, value);
    let (_, compiled) = learned(&observed(&[value(9), value(3), value(9)]));
    let rule = compiled.image.named(MsrIndex(0x8b), Access::Read);
    assert_eq!(rule, Some(Rule::quiet(Action::Value(9))));
}

#[test]
fn answer_of_a_policy_that_is_not_known_is_told_and_denied() {
    let shadow = event(0x474f_4f00, Access::Read, Outcome::Shadow, 0);
    let learned = observed(&[shadow, native(0x10, Access::Read)])
        .policy(&[])
        .unwrap();
    assert_eq!(learned.lost, [(MsrIndex(0x474f_4f00), Access::Read)]);
    assert!(
        learned
            .text
            .contains("\n#   0x474f4f00                    1 read shadow\n"),
        "{}",
        learned.text
    );
}

#[test]
fn what_cannot_be_watched_is_allowed_unless_the_policy_decided_it() {
    let policy = compile(
        "version = 1\n[[rule]]\nmsr = 'IA32_EFER'\nwrite = 'fault'\n\
         [[rule]]\nmsr = 'IA32_BIOS_SIGN_ID'\nread = { value = 7 }\n",
    )
    .unwrap();
    let mut observations = observed(&[
        event(0x8b, Access::Read, Outcome::Value, 7),
        event(0x3b, Access::Write, Outcome::Fault, 1),
        event(0xc001_0200, Access::Read, Outcome::Ignored, 0),
    ]);
    observations.miss_what_cannot_be_forwarded(&[policy]);
    let (text, compiled) = learned(&observations);
    let rule = |index, access| compiled.image.named(MsrIndex(index), access);
    let efer = 0xc000_0080;
    assert_eq!(rule(efer, Access::Read), None, "a read is watched");
    assert_eq!(
        rule(efer, Access::Write),
        None,
        "the policy denied it, and it would be seen"
    );
    let value = Rule::quiet(Action::Value(7));
    assert_eq!(rule(0x8b, Access::Read), Some(value));
    assert_eq!(rule(0x8b, Access::Write), Some(Rule::ALLOW));
    assert_eq!(
        rule(0x3b, Access::Write),
        Some(Rule::ALLOW),
        "KVM refused one write of it"
    );
    let unknown = rule(0xc001_0200, Access::Read);
    assert_eq!(
        unknown,
        Some(Rule::quiet(Action::Ignore)),
        "KVM does not know it"
    );
    assert!(text.contains("# Not observable: "), "{text}");
}

#[test]
fn what_the_processor_may_let_through_is_allowed_unless_the_policy_decided_it() {
    let policy = compile("version = 1\n[[rule]]\nmsr = 'IA32_SPEC_CTRL'\nwrite = 'fault'\n");
    let mut observations = observed(&[native(0x1a0, Access::Read)]);
    observations.miss_what_is_passed_through(&[policy.unwrap()]);
    let (text, compiled) = learned(&observations);
    let rule = |index, access| compiled.image.named(MsrIndex(index), access);
    assert_eq!(rule(0x48, Access::Read), Some(Rule::ALLOW));
    assert_eq!(rule(0x48, Access::Write), None, "the policy denied it");
    // kvm-intel's alone, and kvm-amd's alone.
    for index in [0x1c4, 0xc000_0082] {
        assert_eq!(rule(index, Access::Write), Some(Rule::ALLOW), "{index:#x}");
    }
    assert_eq!(
        rule(0x1a0, Access::Write),
        None,
        "KVM would have told of it"
    );
    assert!(text.contains("# Not observable: "), "{text}");
}

#[test]
fn trace_without_what_kvm_did_says_so() {
    let mut observations = observed(&[event(0x8b, Access::Read, Outcome::Value, 7)]);
    observations.miss_what_kvm_did(&[]);
    let learned = observations.policy(&[]).unwrap();
    assert!(learned.is_blind);
    assert!(
        learned
            .text
            .contains("# Some trace shows only what left the guest:")
    );
}

/// As a line: MSRs, direction, both sides.
fn differences(one: &Observations, other: &Observations) -> Vec<String> {
    let line = |difference: &TraceDifference| {
        let TraceDifference {
            first,
            last,
            access,
            sides,
            ..
        } = difference;
        let sides = sides.clone().map(|side| {
            let words: Vec<String> = side.iter().map(ToString::to_string).collect();
            words.join(", ")
        });
        format!("{first}..={last} {access}: {} | {}", sides[0], sides[1])
    };
    let all = Observations::compare(one, other);
    all.iter().map(line).collect()
}

#[test]
fn x2apic_that_a_default_answered_for_is_told_and_left_to_kvm() {
    let id = event(0x802, Access::Read, Outcome::Ignored, 0);
    let learned = observed(&[id, native(0x830, Access::Write)])
        .policy(&[])
        .unwrap();
    assert_eq!(learned.lost, [(MsrIndex(0x802), Access::Read)]);
    let text = learned.text;
    assert!(
        text.contains("msr  = \"0x800..=0x8ff\"    # 1 write\n"),
        "{text}"
    );
    assert!(text.contains("1 read ignored\n"), "{text}");
}

#[test]
fn kept_register_that_only_one_direction_wants_is_given_up() {
    let source = "version = 1\n[[rule]]\nmsr = 0x17\nshadow = { reset = 5 }\n";
    let policies = [compile(source).unwrap()];
    let mut observations = observed(&[native(0x17, Access::Write)]);
    observations.observe(&event(0x17, Access::Read, Outcome::Shadow, 5), &policies);
    let learned = observations.policy(&[]).unwrap();
    assert_eq!(learned.lost, [(MsrIndex(0x17), Access::Read)]);
    assert!(learned.text.contains("1 write"), "{}", learned.text);
}

#[test]
fn traces_differ_in_accesses_and_answers_and_not_in_counts_or_kvms_values() {
    let value = |value| event(0x8b, Access::Read, Outcome::Value, value);
    let one = observed(&[
        native(0x10, Access::Read),
        native(0x200, Access::Read),
        native(0x201, Access::Read),
        event(0x3a, Access::Write, Outcome::Ignored, 1),
        value(1),
    ]);
    let other = observed(&[
        event(0x10, Access::Read, Outcome::Forwarded, 7),
        native(0x10, Access::Read),
        event(0x3a, Access::Write, Outcome::Fault, 1),
        native(0x3a, Access::Write),
        value(2),
    ]);
    assert_eq!(
        differences(&one, &other),
        [
            "0x3a..=0x3a write: ignored | allowed, #GP",
            "0x8b..=0x8b read: = 0x1 | = 0x2",
            "0x200..=0x201 read: allowed | ",
        ]
    );
    assert!(differences(&one, &one).is_empty());
    assert!(!one.sees_otherwise(&other));
}

#[test]
fn what_one_of_two_traces_cannot_show_is_not_compared() {
    let value = event(0x8b, Access::Read, Outcome::Value, 1);
    let whole = observed(&[native(0x10, Access::Read), value]);
    let mut blind = observed(&[event(0x3a, Access::Read, Outcome::Fault, 0), value]);
    blind.miss_what_kvm_did(&[]);
    assert!(whole.sees_otherwise(&blind));
    assert_eq!(differences(&whole, &blind), ["0x3a..=0x3a read:  | #GP"]);
    let mut filtered = observed(&[value]);
    filtered.miss_what_cannot_be_forwarded(&[]);
    assert!(differences(&whole, &filtered).is_empty());
}

#[test]
fn trace_under_a_policy_that_denies_by_default_shows_all_but_what_that_allows() {
    let source =
        "version = 1\n[defaults]\nknown = 'fault'\n[[rule]]\nmsr = '0x10..=0x13'\nread = 'allow'\n";
    let policies = [compile(source).unwrap()];
    let mut observations = observed(&[event(0x3a, Access::Read, Outcome::Fault, 0)]);
    observations.miss_what_kvm_did(&policies);
    assert!(!observations.policy(&[]).unwrap().is_blind);
    let (text, compiled) = learned(&observations);
    assert_eq!(Compiled::compare(&policies[0], &compiled), [], "{text}");
}

fn outcome() -> impl Strategy<Value = (Outcome, u64)> {
    prop_oneof![
        4 => Just((Outcome::Native, 0)),
        1 => Just((Outcome::Forwarded, 0)),
        1 => Just((Outcome::Ignored, 0)),
        1 => Just((Outcome::Fault, 0)),
        1 => (1u64..4).prop_map(|value| (Outcome::Value, value)),
    ]
}

/// Near each other, so that there are neighbours; not in the x2APIC's window.
fn index() -> impl Strategy<Value = u32> {
    let bases = prop::sample::select(vec![0x10u32, 0x200, 0x7fb, 0x900, 0x474f_4f00, 0xc000_0080]);
    (bases, 0u32..5).prop_map(|(base, offset)| base + offset)
}

fn access() -> impl Strategy<Value = Access> {
    prop::sample::select(Access::ALL.to_vec())
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let one = (index(), access(), outcome()).prop_map(|(index, access, (outcome, value))| {
        let outcome = match (outcome, access) {
            (Outcome::Value, Access::Write) => Outcome::Ignored,
            (outcome, _) => outcome,
        };
        event(index, access, outcome, value)
    });
    prop::collection::vec(one, 1..60)
}

/// What a guest meets under `compiled` where KVM knows every MSR: its own doing, or an answer.
fn answered(compiled: &Compiled, index: MsrIndex, access: Access) -> Rule {
    match compiled.filter.decide(index, access).verdict {
        Verdict::Allow => Rule::ALLOW,
        Verdict::Deny => compiled.image.rule(index, access, ExitReason::FILTER),
    }
}

fn expected(event: &Event) -> Action {
    match event.outcome {
        Outcome::Ignored => Action::Ignore,
        Outcome::Value => Action::Value(event.value),
        Outcome::Fault => Action::Fault,
        _ => Action::Allow,
    }
}

/// What one rule of the trace's policy says, in the longest form, and what its accesses came to.
fn kept() -> impl Strategy<Value = (String, Vec<(Access, Outcome)>)> {
    let bits = prop_oneof![
        Just(0u64),
        Just(u64::MAX),
        any::<u64>(),
        (0u32..64).prop_map(|bit| 1 << bit)
    ];
    let violation = prop::sample::select(vec!["fault", "ignore"]);
    let scope = prop::sample::select(vec!["vcpu", "vm"]);
    (0usize..6, bits.clone(), bits, violation, scope).prop_map(
        |(kind, one, other, violation, scope)| {
            use Access::{Read, Write};
            let writable = format!("writable = {other:#x}, on-violation = '{violation}'");
            match kind {
                0 => (
                    format!("read = {{ mask = '{}' }}", mask(one, other)),
                    vec![(Read, Outcome::Masked)],
                ),
                1 => (
                    format!("write = {{ {writable} }}"),
                    vec![(Write, Outcome::Masked)],
                ),
                2 => (
                    format!("shadow = {{ scope = '{scope}', reset = {one:#x}, {writable} }}"),
                    vec![(Read, Outcome::Shadow)],
                ),
                3 => (
                    format!("shadow = {{ reset = {one:#x}, {writable} }}"),
                    vec![(Read, Outcome::Shadow), (Write, Outcome::Fault)],
                ),
                4 => ("read = 'host'".to_owned(), vec![(Read, Outcome::Handled)]),
                _ => (
                    "both = { handler = 'its own' }".to_owned(),
                    vec![(Read, Outcome::Handled), (Write, Outcome::Handled)],
                ),
            }
        },
    )
}

/// One digit for each of the 64 bits.
fn mask(replaced: u64, ones: u64) -> String {
    let digit = |bit: u32| match (replaced >> bit & 1, ones >> bit & 1) {
        (0, _) => 'x',
        (_, 0) => '0',
        _ => '1',
    };
    format!("0b{}", (0..64).rev().map(digit).collect::<String>())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn merging_in_any_order_and_grouping_gives_the_same_text(
        events in events(),
        parts in prop::collection::vec(0usize..4, 60),
        order in Just([0usize, 1, 2, 3]).prop_shuffle(),
        is_left in any::<bool>(),
    ) {
        let mut traces = vec![Observations::default(); 4];
        for (event, part) in events.iter().zip(parts) {
            traces[part].observe(event, &[]);
        }
        traces[1].miss_what_cannot_be_forwarded(&[]);
        let mut all = observed(&events);
        all.miss_what_cannot_be_forwarded(&[]);
        let mut ordered = order.map(|trace| traces[trace].clone()).into_iter();
        let merged = if is_left {
            ordered.fold(Observations::default(), |mut merged, next| {
                merged.merge(next);
                merged
            })
        } else {
            let mut pair = || {
                let mut one = ordered.next().expect("four");
                one.merge(ordered.next().expect("four"));
                one
            };
            let (mut left, right) = (pair(), pair());
            left.merge(right);
            left
        };
        prop_assert_eq!(merged.policy(&[]).unwrap().text, all.policy(&[]).unwrap().text);
    }

    #[test]
    fn learned_policy_allows_exactly_what_kvm_did(accesses in prop::collection::btree_set((index(), access()), 1..40)) {
        let events: Vec<Event> = accesses.iter().map(|&(index, access)| native(index, access)).collect();
        let (_, compiled) = learned(&observed(&events));
        let near = accesses.iter().flat_map(|&(index, _)| index.saturating_sub(3)..index + 3);
        for index in near.chain([0, 0x7ff, 0x900, u32::MAX]) {
            for access in Access::ALL {
                let allowed = compiled.filter.decide(MsrIndex(index), access).verdict == Verdict::Allow;
                let is_exempt = MsrIndex(index).is_x2apic();
                prop_assert_eq!(allowed, is_exempt || accesses.contains(&(index, access)), "{} {:#x}", access, index);
            }
        }
    }

    #[test]
    fn access_that_was_answered_in_one_way_is_answered_so_again(events in events()) {
        let mut answers: BTreeMap<(MsrIndex, Access), Action> = BTreeMap::new();
        let events: Vec<Event> = events
            .into_iter()
            .filter(|event| {
                let action = expected(event);
                *answers.entry((event.index, event.access)).or_insert(action) == action
            })
            .collect();
        let observations = observed(&events);
        let (text, compiled) = learned(&observations);
        for ((index, access), action) in answers {
            prop_assert_eq!(answered(&compiled, index, access).action, action, "{} {}\n{}", access, index, text);
        }
        prop_assert!(text.lines().all(|line| line.len() <= 80), "{}", text);
        prop_assert!(observations.policy(&[]).unwrap().ambiguous.is_empty());
    }

    #[test]
    fn what_a_policy_kept_is_carried_over_in_lines_of_80_columns(rules in prop::collection::vec(kept(), 1..6)) {
        let handlers = ["host", "its own"];
        let mut source = "version = 1\n[defaults]\nknown = 'fault'\n".to_owned();
        for (number, (rule, _)) in rules.iter().enumerate() {
            source += &format!("[[rule]]\nmsr = {:#x}\n{rule}\n", 0xc001_1020 + 2 * number);
        }
        let options = Options { handlers: &handlers, ..Options::default() };
        let policy = compile_with("its policy", &source, &options).1.expect("it compiles");
        let policies = [policy];
        let mut observations = Observations::default();
        for (number, (_, accesses)) in (0..).zip(&rules) {
            for &(access, outcome) in accesses {
                let event = Event {
                    reason: ExitReason::FILTER,
                    ..event(0xc001_1020 + 2 * number, access, outcome, 0)
                };
                observations.observe(&event, &policies);
            }
        }
        let learned = observations.policy(&handlers).unwrap();
        prop_assert!(learned.lost.is_empty() && learned.ambiguous.is_empty());
        let compiled = compile_with("learned", &learned.text, &options).1.expect("it compiles");
        prop_assert_eq!(Compiled::compare(&policies[0], &compiled), [], "{}\n{}", source, learned.text);
        prop_assert!(learned.text.lines().all(|line| line.len() <= 80), "{}", learned.text);
    }
}
