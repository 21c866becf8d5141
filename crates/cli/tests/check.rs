//! `msrgate check` from outside: the table, the JSON, and what it says of a policy that cannot be used.

use std::fmt::Write;
use std::fs;

use serde_json::{Value, json};

#[path = "support/mod.rs"]
#[expect(
    dead_code,
    reason = "no guest is run here, so that what makes guests is not used"
)]
mod support;

use support::{command, file, msrgate, stderr, stdout};

const DOCUMENT: &str = include_str!("../../../docs/check.md");

/// The policy of the document.
fn sample() -> &'static str {
    let (_, rest) = DOCUMENT
        .split_once("```toml file=policy.toml\n")
        .expect("a policy");
    rest.split("```").next().expect("its end")
}

fn check(name: &str, policy: &str) -> std::process::Output {
    let policy = file(name, policy.as_bytes());
    command(&["check"])
        .arg(policy)
        .output()
        .expect("msrgate runs")
}

fn check_json(name: &str, policy: &str) -> Value {
    let policy = file(name, policy.as_bytes());
    let output = command(&["check", "--json"]).arg(policy).output();
    let output = output.expect("msrgate runs");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn document_has_every_key() {
    let report = check_json("check-document.toml", sample());
    let parts = [
        &report,
        &report["ranges"][0],
        &report["reads"][0],
        &report["answers"][0],
    ];
    for part in parts {
        for key in part.as_object().expect("an object").keys() {
            assert!(DOCUMENT.contains(&format!("`{key}`")), "{key}");
        }
    }
}

#[test]
fn json_tells_every_msr() {
    let report = check_json("check-json.toml", sample());
    let run =
        |first: &str, last: &str, name: &str| json!({"first": first, "last": last, "name": name});
    let gs_base = run("0xc0000102", "0xc0000102", "IA32_KERNEL_GS_BASE");
    let both = [
        run("0x3a", "0x3a", "IA32_FEATURE_CONTROL"),
        run("0x8b", "0x8b", "IA32_BIOS_SIGN_ID"),
        run("0x200", "0x20f", "IA32_MTRR_PHYSBASE0"),
    ];
    let expected = json!({
        "version": 1,
        "default": "allow",
        "deflected": ["unknown", "filter"],
        "ranges": [
            {"base": "0xc0000102", "count": 1, "bytes": 8, "access": "write", "excepts": [gs_base]},
            {"base": "0x3a", "count": 0x1d6, "bytes": 64, "access": "both", "excepts": both},
        ],
        "reads": both,
        "writes": [both[0], both[1], both[2], gs_base],
        "answers": [
            {"first": "0x8b", "last": "0x8b", "name": "IA32_BIOS_SIGN_ID", "access": "read",
             "action": "= 0x100006500000000"},
            {"first": "0x8b", "last": "0x8b", "name": "IA32_BIOS_SIGN_ID", "access": "write", "action": "ignore"},
        ],
        "warnings": [{
            "code": "policy::unfilterable",
            "message": "a filter sees RDMSR and WRMSR only, and these MSRs are reached in other ways",
            "help": "the rule holds for RDMSR and WRMSR; where that is meant, nothing is wrong",
            "file": report["warnings"][0]["file"],
            "line": 16,
            "column": 9,
        }],
    });
    assert_eq!(report, expected);
}

#[test]
fn empty_policy_has_no_table() {
    let output = check("check-empty.toml", "version = 1\n");
    let expected = "\
default    allow
reads      no MSR leaves the guest
writes     no MSR leaves the guest
deflected  nothing: what KVM refuses is #GP
";
    assert_eq!(stdout(&output), expected);
}

#[test]
fn denied_default_tells_what_is_allowed_and_warns() {
    let policy = "version = 1\n[defaults]\nknown = 'fault'\n[[rule]]\nmsr = 0x10\nread = 'allow'\n";
    let output = check("check-deny.toml", policy);
    let expected = " #  BASE        COUNT  BYTES  ACCESS  ALLOWS
 0  0x10            1      8  read    IA32_TIME_STAMP_COUNTER

default    deny
reads      all MSRs leave the guest but the x2APIC's and 1:
           IA32_TIME_STAMP_COUNTER
writes     all MSRs leave the guest but the x2APIC's
deflected  filter
";
    assert_eq!(stdout(&output), expected);
    assert_eq!(output.status.code(), Some(0));
    assert!(
        stderr(&output).contains("policy::x2apic"),
        "{}",
        stderr(&output)
    );
    let report = check_json("check-deny.toml", policy);
    assert_eq!(report["default"], "deny");
    let warning = report["warnings"][0].as_object().expect("a warning");
    assert_eq!(warning["code"], "policy::x2apic");
    for key in warning.keys() {
        assert!(DOCUMENT.contains(&format!("`{key}`")), "{key}");
    }
}

#[test]
fn deny_everything_is_shown_as_a_range_that_allows_nothing() {
    let output = check(
        "check-all.toml",
        "version = 1\n[defaults]\nknown = 'fault'\n",
    );
    let row = stdout(&output).lines().nth(1).expect("a row").to_owned();
    assert_eq!(row, " 0  0x0             1      8  both    nothing");
}

#[test]
fn no_line_is_wider_than_80_columns() {
    let mut policy = "version = 1\n".to_owned();
    for number in 0..16 * 400u32 {
        let index = 0x100_0000 * (number / 400) + 0x1000 + 2 * (number % 400);
        writeln!(policy, "[[rule]]\nmsr = {index:#x}\nread = 'fault'").expect("a String");
    }
    let output = check("check-wide.toml", &policy);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    assert_eq!(
        text.lines()
            .filter(|line| line.contains("  read  "))
            .count(),
        16
    );
    assert!(
        text.lines().all(|line| line.chars().count() <= 80),
        "{text}"
    );
}

#[test]
fn answers_are_folded_and_at_most_20() {
    let mut policy =
        "version = 1\n[[rule]]\nmsr = 'IA32_MISC_ENABLE'\nlog = true\nlimit = '1000/s'\n\
        shadow = { scope = 'vm', reset = 0xffffffffffffffff, writable = 0xffffffffffffff00 }\n\
        [[rule]]\nmsr = '0x4000..=0x4100'\nread = 'host'\n"
            .to_owned();
    for index in 0..20 {
        writeln!(
            policy,
            "[[rule]]\nmsr = {}\nread = {{ value = {index} }}",
            0x5000 + 2 * index
        )
        .expect("a String");
    }
    let output = check("check-answers.toml", &policy);
    let text = stdout(&output);
    let (_, answers) = text.split_once("MSRS").expect("the second table");
    let expected = "              ACCESS  ANSWER
IA32_MISC_ENABLE  both    shadow of the VM from 0xffffffffffffffff, writable
                          0xffffffffffffff00, else fault, at most 1000/s, logged
257 from 0x4000   read    host
0x5000            read    ignore
0x5002            read    = 0x1
";
    assert!(answers.starts_with(expected), "{text}");
    assert!(
        answers.ends_with("\nand 2 more, which --json has\n"),
        "{text}"
    );
    assert!(
        text.lines().all(|line| line.chars().count() <= 80),
        "{text}"
    );
    let report = check_json("check-answers.toml", &policy);
    assert_eq!(report["answers"].as_array().map(Vec::len), Some(22));
}

#[test]
fn policy_that_does_not_fit_is_told_its_windows() {
    let mut policy = "version = 1\n".to_owned();
    for number in 1..=17 {
        writeln!(
            policy,
            "[[rule]]\nmsr = {:#x}\nboth = 'fault'",
            number << 20
        )
        .expect("a String");
    }
    let output = check("check-far.toml", &policy);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stdout(&output), "");
    let text = stderr(&output);
    assert!(text.contains("needs 17 filter ranges"), "{text}");
    for number in 1..=17 {
        let window = format!("{0:#x}..={0:#x}", number << 20);
        assert!(text.contains(&window), "{window}\n{text}");
    }
}

#[test]
fn mistakes_are_drawn_as_run_draws_them() {
    let policy = file(
        "check-bad.toml",
        b"version = 1\n[[rule]]\nmsr = 'IA32_SPEC_CTL'\nboth = 'flaut'\n",
    );
    let policy = policy.to_str().expect("UTF-8");
    let checked = msrgate(&["check", policy]);
    let run = msrgate(&["run", "--backend", "soft", "--policy", policy]);
    assert_eq!(checked.status.code(), Some(2));
    assert_eq!(stdout(&checked), "");
    assert!(stderr(&checked).contains("has 2 mistakes"));
    assert_eq!(stderr(&checked), stderr(&run));
}

#[test]
fn included_file_is_found_from_the_including_one_and_drawn_as_itself() {
    fs::create_dir_all(file("check-main.toml", b"").with_file_name("below")).expect("a folder");
    let policy = file(
        "check-main.toml",
        b"version = 1\ninclude = ['below/part.toml']\n[[rule]]\nmsr = 0x48\nread = 'fault'\n",
    );
    let part = file(
        "below/part.toml",
        b"version = 1\ninclude = ['../check-main.toml']\n[[rule]]\nmsr = 72\nread = 'ignore'\n",
    );
    let output = msrgate(&["check", policy.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    for expected in [
        "policy::include-loop",
        "policy::overlap",
        &format!("{}:2:12", part.display()),
        &format!("{}:4:7", policy.display()),
        "has 2 mistakes",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
}

#[test]
fn file_that_never_ends_is_refused() {
    let output = msrgate(&["check", "/dev/zero"]);
    assert_eq!(output.status.code(), Some(2));
    let text = "error: cannot read the policy /dev/zero: longer than 16 MiB\n";
    assert_eq!(stderr(&output), text);
}

#[test]
fn file_that_is_not_there_is_an_error_of_one_line() {
    let output = msrgate(&["check", "no-such-policy.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stderr(&output).lines().count(), 1);
}
