//! Every mistake has a code, a place and a way out.

use msrgate_policy::{Diagnostic, Severity, compile};
use proptest::prelude::*;

/// The mistakes of a policy whose version is in order.
fn mistakes(body: &str) -> (String, Vec<Diagnostic>) {
    let source = format!("version = 1\n{body}");
    let diagnostics = compile(&source).expect_err("the policy has a mistake");
    (source, diagnostics)
}

/// A body, and its only mistake: code, the text that is pointed at, and a part of the help.
const CASES: &[(&str, &str, &str, &str)] = &[
    ("[[rule]\nmsr = 1\n", "policy::syntax", "", ""),
    (
        "colour = 1",
        "policy::unknown-key",
        "colour",
        "version, include, defaults, rule",
    ),
    (
        "[defaults]\nunknwon = 'fault'",
        "policy::unknown-key",
        "unknwon",
        "did you mean `unknown`?",
    ),
    (
        "[[rule]]\nmsr = 1\nraed = 'fault'",
        "policy::unknown-key",
        "raed",
        "did you mean `read`?",
    ),
    (
        "[[rule]]\nmsr = 1\nboth = 'fault'\nlimit = 1000",
        "policy::type",
        "1000",
        "\"1000/s\"",
    ),
    (
        "[[rule]]\nmsr = 1\nboth = 'fault'\nlimit = '0/s'",
        "policy::limit",
        "'0/s'",
        "\"1000/s\"",
    ),
    (
        "[[rule]]\nmsr = 1\nboth = 'fault'\nlimit = '60/min'",
        "policy::limit",
        "'60/min'",
        "\"1000/s\"",
    ),
    (
        "[[rule]]\nmsr = '@mtr'\nboth = 'fault'",
        "policy::unknown-group",
        "'@mtr'",
        "did you mean `@mtrr`?",
    ),
    (
        "[[rule]]\nmsr = '@everything'\nboth = 'fault'",
        "policy::unknown-group",
        "'@everything'",
        "@mca, @microcode",
    ),
    (
        "[[rule]]\nmsr = 'mtrr'\nboth = 'fault'",
        "policy::unknown-msr",
        "'mtrr'",
        "\"@mtrr\"",
    ),
    (
        "[[rule]]\nmsr = 1\nboth = 'log'",
        "policy::action",
        "'log'",
        "log = true",
    ),
    (
        "[[rule]]\nmsr = 1\nread = {}",
        "policy::action",
        "{}",
        "one thing",
    ),
    (
        "[[rule]]\nmsr = 1\nread = { value = 1, mask = '0b1' }",
        "policy::action",
        "{ value = 1, mask = '0b1' }",
        "one thing",
    ),
    (
        "[[rule]]\nmsr = 1\nread = { value = 1, on-violation = 'fault' }",
        "policy::action",
        "on-violation",
        "leave it out",
    ),
    (
        "[[rule]]\nmsr = 1\nwrite = { writable = 1, on-violation = 'falt' }",
        "policy::action",
        "'falt'",
        "did you mean `fault`?",
    ),
    (
        "[[rule]]\nmsr = 1\nread = { mask = '0b12' }",
        "policy::mask",
        "'0b12'",
        "0, 1, and x",
    ),
    (
        "[[rule]]\nmsr = 1\nread = { mask = 3 }",
        "policy::type",
        "3",
        "0bx…x1xx",
    ),
    (
        "[[rule]]\nmsr = 1\nwrite = { mask = '0b1' }",
        "policy::direction",
        "{ mask = '0b1' }",
        "writable",
    ),
    (
        "[[rule]]\nmsr = 1\nboth = { mask = '0b1' }",
        "policy::direction",
        "{ mask = '0b1' }",
        "writable",
    ),
    (
        "[[rule]]\nmsr = 1\nread = { writable = 1 }",
        "policy::direction",
        "{ writable = 1 }",
        "mask",
    ),
    (
        "[[rule]]\nmsr = 1\nwrite = 'host'",
        "policy::direction",
        "'host'",
        "drop writes",
    ),
    (
        "[[rule]]\nmsr = 1\nread = 'host'",
        "policy::handler",
        "'host'",
        "no handlers",
    ),
    (
        "[[rule]]\nmsr = 1\nshadow = 1",
        "policy::type",
        "1",
        "{ reset = 0",
    ),
    (
        "[[rule]]\nmsr = 1\nshadow = { scope = 'cpu' }",
        "policy::action",
        "'cpu'",
        "did you mean `vcpu`?",
    ),
    (
        "[[rule]]\nmsr = 1\nshadow = { rset = 1 }",
        "policy::unknown-key",
        "rset",
        "did you mean `reset`?",
    ),
    (
        "[[rule]]\nmsr = 1\nread = 'fault'\n[rule.shadow]\nreset = 1",
        "policy::both",
        "shadow",
        "alone",
    ),
    (
        "[[rule]]\nmsr = 1\nmsr = 2\nboth = 'fault'",
        "policy::duplicate-key",
        "msr",
        "[[rule]]",
    ),
    (
        "include = 'base.toml'",
        "policy::type",
        "'base.toml'",
        "[\"base.toml\"]",
    ),
    (
        "include = ['base.toml']",
        "policy::include",
        "'base.toml'",
        "",
    ),
    (
        "[defaults]\nunknown = 'ignore'\n[[rule]]\nmsr = 0xc3\nread = 'allow'\nlog = true",
        "policy::one-refusal",
        "0xc3",
        "do the same",
    ),
    (
        "[defaults]\nunknown = 'ignore'\n[[rule]]\nmsr = 0xdead\nread = { mask = '0b1' }",
        "policy::one-refusal",
        "0xdead",
        "do the same",
    ),
    (
        "[defaults]\nknown = 'alow'",
        "policy::action",
        "'alow'",
        "did you mean `allow`?",
    ),
    (
        "[defaults]\nknown = 'log'",
        "policy::action",
        "'log'",
        "\"allow\", \"fault\" or \"ignore\"",
    ),
    (
        "[defaults]\nknown = true",
        "policy::type",
        "true",
        "\"allow\", \"fault\" or \"ignore\"",
    ),
    ("[rule]\nmsr = 1", "policy::type", "[rule]", "[[rule]]"),
    (
        "[[rule]]\nmsr = 'IA32_SPEC_CTL'\nboth = 'fault'",
        "policy::unknown-msr",
        "'IA32_SPEC_CTL'",
        "did you mean `IA32_SPEC_CTRL`?",
    ),
    (
        "[[rule]]\nmsr = 'XYZZY_PLUGH_FROTZ'\nboth = 'fault'",
        "policy::unknown-msr",
        "'XYZZY_PLUGH_FROTZ'",
        "an index",
    ),
    (
        "[[rule]]\nmsr = 0x1_0000_0000\nboth = 'fault'",
        "policy::number",
        "0x1_0000_0000",
        "0xffffffff",
    ),
    (
        "[[rule]]\nmsr = 1\nread = { value = 0x1_0000_0000_0000_0000 }",
        "policy::number",
        "0x1_0000_0000_0000_0000",
        "0xffffffffffffffff",
    ),
    (
        "[[rule]]\nmsr = 1\nread = { value = -1 }",
        "policy::number",
        "-1",
        "from 0 to",
    ),
    (
        "[[rule]]\nmsr = '0x20..=0x10'\nboth = 'fault'",
        "policy::range",
        "'0x20..=0x10'",
        "\"0x10..=0x20\"",
    ),
    (
        "[[rule]]\nmsr = '0x20..0x30'\nboth = 'fault'",
        "policy::range",
        "'0x20..0x30'",
        "\"0x20..=0x30\"",
    ),
    (
        "[[rule]]\nboth = 'fault'",
        "policy::no-msr",
        "[[rule]]",
        "msr = ",
    ),
    (
        "[[rule]]\nmsr = []\nboth = 'fault'",
        "policy::no-msr",
        "[]",
        "",
    ),
    ("[[rule]]\nmsr = 1", "policy::no-action", "[[rule]]", "both"),
    (
        "[[rule]]\nmsr = 1\nboth = 'fault'\nread = 'allow'",
        "policy::both",
        "both",
        "alone",
    ),
    (
        "[[rule]]\nmsr = 1\nwrite = { value = 1 }",
        "policy::direction",
        "{ value = 1 }",
        "drop writes",
    ),
    (
        "[[rule]]\nmsr = '0x700..=0x800'\nread = 'fault'",
        "policy::x2apic",
        "'0x700..=0x800'",
        "KVM answers them itself",
    ),
    (
        "[[rule]]\nmsr = 0x10\nwrite = 'allow'\nlog = true",
        "policy::log-allow",
        "0x10",
        "leave out `log`",
    ),
    (
        "[[rule]]\nmsr = '0xfffffff0..=0xffffffff'\nread = 'fault'",
        "policy::last-msr",
        "'0xfffffff0..=0xffffffff'",
        "0xfffffffe",
    ),
];

#[test]
fn each_mistake_is_told_once_with_its_place_and_its_fix() {
    for &(body, code, place, help) in CASES {
        let (source, diagnostics) = mistakes(body);
        let codes: Vec<_> = diagnostics.iter().map(|found| found.code).collect();
        assert_eq!(codes, [code], "{body}");
        let found = &diagnostics[0];
        assert_eq!(found.severity, Severity::Error);
        let span = found.span().expect("a place");
        if !place.is_empty() {
            assert_eq!(&source[span.range()], place, "{body}");
        }
        let given = found.help.as_deref().unwrap_or("");
        assert!(given.contains(help), "{body}\n{given}");
    }
}

#[test]
fn version_is_asked_for_and_checked() {
    for (source, place) in [("", ""), ("version = 2", "2")] {
        let diagnostics = compile(source).expect_err("no version that is known");
        assert_eq!(diagnostics[0].code, "policy::version");
        assert_eq!(
            &source[diagnostics[0].span().expect("a place").range()],
            place
        );
    }
}

#[test]
fn overlap_shows_both_places() {
    let (source, diagnostics) = mistakes(
        "[[rule]]\nmsr = [7, '0x10..=0x1f']\nread = 'fault'\n[[rule]]\nmsr = ['0x1f..=0x2e', 7]\nboth = 'allow'",
    );
    let places: Vec<Vec<&str>> = diagnostics
        .iter()
        .map(|found| {
            assert_eq!(found.code, "policy::overlap");
            let labels = found.labels.iter();
            labels.map(|label| &source[label.span.range()]).collect()
        })
        .collect();
    assert_eq!(places, [["'0x1f..=0x2e'", "'0x10..=0x1f'"], ["7", "7"]]);
}

#[test]
fn default_deny_cannot_tell_known_from_unknown() {
    let (source, diagnostics) = mistakes(
        "[defaults]\nknown = 'fault'\nunknown = 'ignore'\n[[rule]]\nmsr='0x800..=0x8ff'\nboth='allow'",
    );
    assert_eq!(diagnostics.len(), 1);
    assert_eq!(diagnostics[0].code, "policy::default-deny");
    assert_eq!(
        &source[diagnostics[0].span().expect("a place").range()],
        "'ignore'"
    );
}

#[test]
fn default_deny_warns_that_x2apic_is_not_denied() {
    let compiled = compile("version = 1\n[defaults]\nknown = 'fault'").expect("a warning only");
    assert_eq!(compiled.warnings.len(), 1);
    assert_eq!(compiled.warnings[0].severity, Severity::Warning);
    assert_eq!(compiled.warnings[0].code, "policy::x2apic");
}

#[test]
fn saying_that_x2apic_is_allowed_costs_no_range() {
    let compiled = compile(
        "version = 1\n[defaults]\nknown = 'fault'\n[[rule]]\nmsr = '0x800..=0x8ff'\nboth = 'allow'\n\
         [[rule]]\nmsr = 0xc0000080\nboth = 'allow'",
    )
    .expect("no mistakes");
    assert_eq!(compiled.warnings, []);
    assert_eq!(compiled.filter.ranges().len(), 1);
}

#[test]
fn seventeen_far_msrs_do_not_fit() {
    use std::fmt::Write;
    let mut body = String::new();
    for number in 0..17 {
        let msrs = match number {
            5 => "0x50010".to_owned(),
            _ => format!("'{0:#x}0000..={0:#x}0001'", number),
        };
        writeln!(body, "[[rule]]\nmsr = {msrs}\nboth = 'fault'").expect("a String");
    }
    let (source, diagnostics) = mistakes(&body);
    assert_eq!(diagnostics[0].code, "policy::too-many-ranges");
    assert_eq!(
        diagnostics[0].message,
        "the policy needs 17 filter ranges, but KVM has 16"
    );
    let [label] = &diagnostics[0].labels[..] else {
        panic!("{diagnostics:?}")
    };
    assert_eq!(
        &source[label.span.range()],
        "0x50010",
        "the emptiest window"
    );
    assert_eq!(label.text, "in 0x50010..=0x50010");
    let help: Vec<&str> = diagnostics[0]
        .help
        .as_deref()
        .expect("a way out")
        .lines()
        .collect();
    assert_eq!(
        help[..3],
        [
            "name fewer MSRs that lie far from others; it fits without any 1 of these:",
            "0x50010..=0x50010: one without a name",
            "0x0..=0x1: IA32_P5_MC_ADDR and 1 more",
        ]
    );
    assert_eq!(help.len(), 18, "all windows");
}

#[test]
fn long_range_does_not_fit_and_is_not_listed() {
    let (_, diagnostics) = mistakes("[[rule]]\nmsr = '0x900..=0xffffff'\nboth = 'fault'");
    assert_eq!(diagnostics[0].code, "policy::too-many-ranges");
    assert_eq!(
        diagnostics[0].message,
        "the policy needs more than 64 filter ranges, but KVM has 16"
    );
}

#[test]
fn allowed_range_across_the_x2apic_is_one_filter_range() {
    let compiled = compile(
        "version = 1\n[defaults]\nknown = 'fault'\n[[rule]]\nmsr = '0x0..=0x1fff'\nboth = 'allow'",
    )
    .expect("no mistakes");
    assert_eq!(compiled.filter.ranges().len(), 1);
}

#[test]
fn more_msrs_than_an_image_holds_are_refused() {
    let (_, diagnostics) = mistakes(
        "[defaults]\nknown = 'fault'\n[[rule]]\nmsr = '0x900..=0xfffffffe'\nread = { value = 1 }",
    );
    let errors = diagnostics
        .iter()
        .filter(|found| found.severity == Severity::Error);
    let codes: Vec<_> = errors.map(|found| found.code).collect();
    assert_eq!(codes, ["policy::too-big"]);
}

#[test]
fn more_shadows_than_a_gate_keeps_are_refused_by_name() {
    let (_, diagnostics) =
        mistakes("[[rule]]\nmsr = '0x10000..=0x12000'\nshadow = { scope = 'vm' }");
    assert_eq!(diagnostics[0].code, "policy::too-big");
    assert_eq!(
        diagnostics[0].message,
        "the policy names more than 8192 registers to keep"
    );
}

#[test]
fn mistakes_come_in_the_order_of_the_text() {
    let (_, diagnostics) = mistakes(
        "[[rule]]\nmsr = 0x830\nread = 'fault'\n[[rule]]\nmsr = 'NO_SUCH'\nread = 'flaut'",
    );
    let codes: Vec<_> = diagnostics.iter().map(|found| found.code).collect();
    assert_eq!(
        codes,
        ["policy::x2apic", "policy::unknown-msr", "policy::action"]
    );
}

#[test]
fn any_text_gives_a_policy_or_a_mistake() {
    let whole = "version = 1\n[defaults]\nknown = 'allow'\n[[rule]]\nmsr = ['0x10..=0x20', 7]\nread = { value = 0xff }\nlog = true\n";
    for end in 0..whole.len() {
        let _ = compile(&whole[..end]);
        let mut torn = whole.to_owned();
        torn.remove(end);
        let _ = compile(&torn);
    }
    let deep = "[".repeat(10_000);
    assert!(compile(&format!("version = 1\nrule = {deep}")).is_err());
}

/// Words of the language, in no order at all.
const TOKENS: &[&str] = &[
    "version",
    "=",
    "1",
    "2",
    "\n",
    "\n",
    "[",
    "]",
    "[[rule]]",
    "[defaults]",
    "known",
    "unknown",
    "msr",
    "read",
    "write",
    "both",
    "log",
    "value",
    "{",
    "}",
    ",",
    "true",
    "'allow'",
    "'fault'",
    "'ignore'",
    "'0x10..=0x1f'",
    "'0x20..'",
    "'..='",
    "'@'",
    "'IA32_TSC'",
    "0xffffffff",
    "-1",
    "1e9",
    "1979-05-27",
    "'''",
    "\"",
    "#",
    "é",
    "\0",
];

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn words_in_any_order_give_a_policy_or_a_mistake(
        words in prop::collection::vec(prop::sample::select(TOKENS), 0..40),
        is_versioned: bool,
    ) {
        let head = if is_versioned { "version = 1\n" } else { "" };
        let source = format!("{head}{}", words.join(" "));
        if let Err(diagnostics) = compile(&source) {
            prop_assert!(!diagnostics.is_empty());
            for label in diagnostics.iter().flat_map(|found| &found.labels) {
                prop_assert!(source.get(label.span.range()).is_some(), "{label:?}");
            }
        }
    }
}
