//! What differs between two policies, compared with the slowest reading: every access, one by one.

use msrgate_core::{Access, Action, ExitReason, MsrIndex, Rule, Verdict};
use msrgate_policy::{Compiled, Msrs, PolicyDifference, compile};
use proptest::prelude::*;

fn policy(source: &str) -> Compiled {
    compile(&format!("version = 1\n{source}")).expect("a policy")
}

fn compare(one: &str, other: &str) -> Vec<PolicyDifference> {
    Compiled::compare(&policy(one), &policy(other))
}

/// As a line: MSRs, direction, both sides.
fn lines(differences: &[PolicyDifference]) -> Vec<String> {
    let line = |difference: &PolicyDifference| {
        let msrs = match difference.msrs {
            Msrs::Range { first, last } if first == last => first.to_string(),
            Msrs::Range { first, last } => format!("{first}..={last}"),
            others => format!("{others:?}"),
        };
        let access = difference
            .access
            .map_or("both".to_owned(), |it| it.to_string());
        let [one, other] = difference.describe(&[]);
        format!("{msrs} {access}: {one} -> {other}")
    };
    differences.iter().map(line).collect()
}

#[test]
fn policies_that_are_written_differently_and_mean_the_same_do_not_differ() {
    let one = "[[rule]]\nmsr = '0x10..=0x1f'\nboth = 'fault'\n[[rule]]\nmsr = 0x18\nread = { value = 0 }\n";
    let other = "[defaults]\nknown = 'allow'\nunknown = 'fault'\n\
        [[rule]]\nmsr = ['0x19..=0x1f', '0x10..=0x17']\nread = 'fault'\nwrite = 'fault'\n\
        [[rule]]\nmsr = 0x18\nread = 'ignore'\nwrite = 'fault'\n[[rule]]\nmsr = 0x40\nboth = 'allow'\n";
    assert_eq!(compare(one, other), []);
}

#[test]
fn differences_are_told_as_ranges_and_directions() {
    let one = "[defaults]\nunknown = 'ignore'\n[[rule]]\nmsr = '0x200..=0x20f'\nread = 'fault'\n\
        [[rule]]\nmsr = 'IA32_BIOS_SIGN_ID'\nread = { value = 0x42 }\nwrite = 'ignore'\n";
    let other = "[defaults]\nunknown = 'log'\n[[rule]]\nmsr = '0x208..=0x21f'\nboth = 'fault'\n\
        [[rule]]\nmsr = 0x8b\nread = { value = 0x43 }\nwrite = 'ignore'\nlog = true\n";
    assert_eq!(
        lines(&compare(one, other)),
        [
            "Unknown both: ignore -> fault, logged",
            "0x8b read: = 0x42 -> = 0x43, logged",
            "0x8b write: ignore -> ignore, logged",
            "0x200..=0x207 read: fault -> allow",
            "0x208..=0x20f write: allow -> fault",
            "0x210..=0x21f both: allow -> fault",
        ]
    );
}

#[test]
fn every_action_has_its_words() {
    let cases = [
        (
            "read = { mask = '0b1x0' }",
            "0x17 read: mask 0x5 = 0x4 -> allow",
        ),
        (
            "write = { writable = 0xff }",
            "0x17 write: writable 0xff, else fault -> allow",
        ),
        (
            "shadow = { scope = 'vm', reset = 7, writable = 1, on-violation = 'ignore' }",
            "0x17 both: shadow of the VM from 0x7, writable 0x1, else kept -> allow",
        ),
        (
            "both = 'fault'\nlog = true\nlimit = '9/s'",
            "0x17 both: fault, at most 9/s, logged -> allow",
        ),
    ];
    for (rule, expected) in cases {
        let differences = compare(&format!("[[rule]]\nmsr = 0x17\n{rule}\n"), "");
        assert_eq!(lines(&differences), [expected]);
    }
}

#[test]
fn x2apic_differs_in_nothing_that_is_written_about_it() {
    let one = "[defaults]\nknown = 'fault'\n[[rule]]\nmsr = '0x800..=0x8ff'\nboth = 'allow'\n";
    let other = "[defaults]\nknown = 'fault'\n";
    assert_eq!(compare(one, other), []);
}

#[test]
fn rules_for_all_msrs_are_compared_without_walking_them() {
    let differences = compare(
        "[[rule]]\nmsr = '0x0..=0x7ff'\nboth = 'ignore'\n",
        "[defaults]\nknown = 'ignore'\n[[rule]]\nmsr = '0xc0000000..=0xc0001fff'\nboth = 'fault'\n",
    );
    assert_eq!(
        lines(&differences),
        [
            "Unnamed both: allow -> ignore",
            "Unknown both: fault -> ignore",
            "Invalid both: fault -> ignore",
            "0xc0000000..=0xc0001fff both: allow -> fault",
        ]
    );
}

/// What a guest meets, by what KVM would do: nothing of how the policy is written is looked at.
fn met(compiled: &Compiled, index: MsrIndex, access: Access) -> [Option<Rule>; 3] {
    let denied = compiled.filter.decide(index, access).verdict == Verdict::Deny;
    let meet = |reason| {
        let reason = if denied { ExitReason::FILTER } else { reason };
        if reason == ExitReason::NONE {
            return None;
        }
        if !compiled.reasons.contains(reason) {
            return Some(Rule::quiet(Action::Fault));
        }
        let rule = compiled.image.rule(index, access, reason);
        Some(match (rule.action, access) {
            (Action::Value(0), _) | (Action::Value(_), Access::Write) => Rule {
                action: Action::Ignore,
                ..rule
            },
            _ => rule,
        })
    };
    [ExitReason::NONE, ExitReason::UNKNOWN, ExitReason::INVAL].map(meet)
}

fn word() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "'allow'",
        "'fault'",
        "'ignore'",
        "{ value = 0 }",
        "{ value = 5 }",
        "{ mask = '0b1x' }",
        "{ mask = '0b0x' }",
    ])
}

fn write_word() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "'allow'",
        "'fault'",
        "'ignore'",
        "{ writable = 0x3 }",
        "{ writable = 0x3, on-violation = 'ignore' }",
    ])
}

/// What makes a rule more than its actions.
fn more() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["", "", "log = true", "limit = '9/s'", "limit = '7/s'"])
}

/// One rule, as text. Widths differ, so that no two tie.
fn rule(width: u32) -> impl Strategy<Value = String> {
    let bases = prop::sample::select(vec![0x10u32, 0x7e0, 0x8f8, 0xc000_0080]);
    (
        bases,
        0u32..24,
        prop::option::of(word()),
        write_word(),
        more(),
    )
        .prop_map(move |(base, offset, read, write, more)| {
            let (first, last) = (base + offset, base + offset + width);
            let read = read.map_or(String::new(), |read| format!("read = {read}\n"));
            format!("[[rule]]\nmsr = '{first:#x}..={last:#x}'\n{read}write = {write}\n{more}\n")
        })
}

fn defaults() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "",
        "unknown = 'ignore'\n",
        "unknown = 'log'\ninvalid = 'log'\n",
        "known = 'fault'\n",
        "known = 'ignore'\n",
    ])
}

#[derive(Clone, Debug)]
struct Text {
    defaults: &'static str,
    rules: Vec<String>,
}

impl Text {
    fn compile(&self) -> Option<Compiled> {
        let rules = self.rules.concat();
        compile(&format!(
            "version = 1\n[defaults]\n{}{rules}",
            self.defaults
        ))
        .ok()
    }
}

fn text() -> impl Strategy<Value = Text> {
    let rules = (rule(0), rule(1), rule(7), rule(20)).prop_map(|(a, b, c, d)| vec![a, b, c, d]);
    (defaults(), rules).prop_map(|(defaults, rules)| Text { defaults, rules })
}

/// Another policy that differs in one rule, or in its defaults.
fn mutated() -> impl Strategy<Value = (Text, Text)> {
    let other = (0usize..5, rule(0), rule(1), rule(7), rule(20), defaults());
    (text(), other).prop_map(|(one, (at, a, b, c, d, defaults))| {
        let mut other = one.clone();
        match at {
            4 => other.defaults = defaults,
            at => other.rules[at] = [a, b, c, d][at].clone(),
        }
        (one, other)
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn policy_does_not_differ_from_itself(text in text()) {
        if let Some(compiled) = text.compile() {
            prop_assert_eq!(Compiled::compare(&compiled, &compiled), []);
        }
    }

    #[test]
    fn policies_differ_exactly_where_a_guest_meets_something_else((one, other) in mutated()) {
        let (Some(a), Some(b)) = (one.compile(), other.compile()) else { return Ok(()) };
        let differences = Compiled::compare(&a, &b);
        let is = |msrs: Msrs| differences.iter().any(|difference| difference.msrs == msrs);
        let windows = [0x0..0x60, 0x7d0..0x940, 0xc000_0070..0xc000_00d0, u32::MAX - 1..u32::MAX];
        for index in windows.into_iter().flatten().map(MsrIndex) {
            for access in Access::ALL {
                let [known, unknown, invalid] = [0, 1, 2].map(|case| {
                    met(&a, index, access)[case] != met(&b, index, access)[case]
                });
                let named = differences.iter().any(|difference| match difference.msrs {
                    Msrs::Range { first, last } => {
                        (first..=last).contains(&index) && difference.access.is_none_or(|it| it == access)
                    }
                    _ => false,
                });
                let is_unnamed = a.deciders(index, access).is_empty() && b.deciders(index, access).is_empty();
                let told = named || is_unnamed && !index.is_x2apic() && is(Msrs::Unnamed);
                prop_assert_eq!(told, known, "{} {}\n{:?}\n{:?}\n{:?}", access, index, one, other, differences);
                prop_assert!(!unknown || told || is(Msrs::Unknown));
                prop_assert!(!invalid || told || is(Msrs::Invalid));
            }
        }
    }
}

/// The property is about nothing if hardly any two policies can be compared and differ.
#[test]
fn most_random_pairs_compile_and_many_differ() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut counts = [0; 2];
    for _ in 0..300 {
        let (one, other) = mutated().new_tree(&mut runner).expect("a pair").current();
        if let (Some(one), Some(other)) = (one.compile(), other.compile()) {
            counts[0] += 1;
            counts[1] += u32::from(!Compiled::compare(&one, &other).is_empty());
        }
    }
    assert!(counts[0] >= 60 && counts[1] >= 40, "{counts:?}");
}
