//! What a policy that can be used is warned of: each code once, with the places that it is about.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use msrgate_policy::{Compiled, Diagnostic, HostFacts, compile};

fn compiled(rules: &str) -> Compiled {
    compile(&format!("version = 1\n{rules}")).unwrap()
}

/// Its warnings and what is to be thought of.
fn told(rules: &str) -> Vec<Diagnostic> {
    let compiled = compiled(rules);
    let advice = compiled.advice(&HostFacts::default());
    compiled.warnings.into_iter().chain(advice).collect()
}

/// The codes of the warnings about one rule, in order.
fn codes(msr: &str, actions: &str) -> Vec<&'static str> {
    let told = told(&format!("[[rule]]\nmsr = {msr}\n{actions}\n"));
    let mut codes: Vec<_> = told.iter().map(|it| it.code).collect();
    codes.sort_unstable();
    codes
}

fn labels(warning: &Diagnostic) -> Vec<&str> {
    warning.labels.iter().map(|label| &*label.text).collect()
}

#[test]
fn register_that_other_instructions_reach_is_told_where_the_rule_does_something() {
    let told = "policy::unfilterable";
    assert_eq!(codes("'IA32_TSC'", "read = 'fault'"), [told]);
    assert!(codes("'IA32_TSC'", "write = 'fault'").is_empty());
    assert!(codes("'IA32_TSC'", "read = 'allow'").is_empty());
    for msr in [
        "'IA32_LSTAR'",
        "'IA32_SYSENTER_EIP'",
        "'IA32_XSS'",
        "'IA32_KERNEL_GS_BASE'",
    ] {
        assert_eq!(codes(msr, "both = 'fault'"), [told], "{msr}");
    }
}

#[test]
fn access_without_an_exit_is_told_where_it_becomes_one_again_and_again() {
    let told = "policy::slow";
    assert_eq!(codes("'IA32_SPEC_CTRL'", "both = 'ignore'"), [told]);
    assert!(codes("'IA32_SPEC_CTRL'", "both = 'fault'").is_empty());
    assert!(codes("'IA32_MTRRCAP'", "both = 'ignore'").is_empty());
}

#[test]
fn forwarded_access_is_told_where_the_host_path_differs() {
    let told = "policy::host-path";
    let differs = "write = { writable = 1, on-violation = 'fault' }";
    assert_eq!(codes("'IA32_MISC_ENABLE'", differs), [told]);
    assert!(codes("'IA32_MISC_ENABLE'", "read = { mask = '0b1' }").is_empty());
    assert_eq!(
        codes("'IA32_UMWAIT_CONTROL'", "read = { mask = '0b1' }"),
        [told]
    );
    assert_eq!(
        codes("'IA32_UMWAIT_CONTROL'", "read = 'allow'\nlog = true"),
        [told]
    );
    assert!(codes("'IA32_UMWAIT_CONTROL'", "read = 'ignore'").is_empty());
}

#[test]
fn bits_over_a_value_that_kvm_does_not_have_are_told() {
    let told = "policy::unknown-to-kvm";
    assert_eq!(codes("0x474f4f00", "read = { mask = '0b1' }"), [told]);
    assert!(codes("0x474f4f00", "read = { value = 1 }").is_empty());
    assert!(codes("0x1fc", "read = { mask = '0b1' }").is_empty());
}

#[test]
fn all_msrs_of_a_rule_are_one_label_and_the_narrower_rule_has_its_own() {
    let told = told(
        "[[rule]]\nmsr = '0xc0000080..=0xc00000ff'\nboth = 'fault'\n\
         [[rule]]\nmsr = 'IA32_LSTAR'\nwrite = 'fault'\n",
    );
    let [warning] = &told[..] else {
        panic!("{told:?}");
    };
    assert_eq!(
        labels(warning),
        [
            "0xc0000080: MOV to CR0 changes it too; and 4 more",
            "0xc0000082: SYSCALL still uses it"
        ]
    );
}

#[test]
fn many_rules_are_one_short_warning() {
    let rules: String = (0xc1..=0xc8)
        .map(|index| format!("[[rule]]\nmsr = {index:#x}\nread = 'fault'\n"))
        .collect();
    let told = told(&rules);
    let [warning] = &told[..] else {
        panic!("{told:?}");
    };
    assert_eq!(warning.labels.len(), 4);
    let help = warning.help.as_deref().unwrap();
    assert!(help.ends_with("\n4 more places name such MSRs"), "{help}");
}

#[test]
fn what_only_the_defaults_deny_is_not_told() {
    let told = told("[defaults]\nknown = 'ignore'\n");
    let codes: Vec<_> = told.iter().map(|it| it.code).collect();
    assert_eq!(codes, ["policy::x2apic"]);
}

#[test]
fn ignored_msrs_are_told_where_the_policy_speaks_of_unknown_ones() {
    let codes = |defaults: &str, ignore_msrs| -> Vec<_> {
        let compiled = compiled(&format!("[defaults]\n{defaults}\n"));
        let warnings = compiled.advice(&HostFacts { ignore_msrs });
        warnings.iter().map(|it| it.code).collect()
    };
    let told = ["policy::ignore-msrs"];
    assert_eq!(codes("unknown = 'fault'", Some(true)), told);
    assert_eq!(codes("unknown = 'log'", Some(true)), told);
    assert!(
        codes("unknown = 'ignore'", Some(true)).is_empty(),
        "it is what KVM does"
    );
    assert!(codes("unknown = 'log'", Some(false)).is_empty());
    assert!(codes("unknown = 'log'", None).is_empty());
    assert!(
        codes("known = 'fault'\nunknown = 'fault'", Some(true)).is_empty(),
        "nothing reaches KVM"
    );
    assert!(codes("", Some(true)).is_empty());
}
