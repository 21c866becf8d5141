//! `msrgate explain` as a user sees it.

#[path = "support/mod.rs"]
#[expect(
    dead_code,
    reason = "no guest is run here, so that what makes guests is not used"
)]
mod support;

use serde_json::{Value, json};

use support::{file, msrgate, stderr, stdout};

const DOCUMENT: &str = include_str!("../../../docs/explain.md");

fn explain(name: &str, policy: &str, arguments: &[&str]) -> std::process::Output {
    let path = file(name, policy.as_bytes());
    let mut all = vec!["explain", path.to_str().expect("UTF-8")];
    all.extend(arguments);
    msrgate(&all)
}

#[test]
fn json_says_what_the_guest_sees() {
    let policy = "version = 1\n[[rule]]\nmsr = 0x8b\nread = { value = 7 }\nwrite = 'fault'\n";
    let output = explain(
        "explain-json.toml",
        policy,
        &["--backend", "soft", "--json", "bios_sign_id"],
    );
    let report: Value = serde_json::from_str(stdout(&output)).expect("JSON");
    assert_eq!(report["msr"], "0x8b");
    assert_eq!(report["name"], "IA32_BIOS_SIGN_ID");
    assert_eq!(report["backend"], "soft");
    assert_eq!(report["rdmsr"]["sees"], "value");
    assert_eq!(report["rdmsr"]["value"], "0x7");
    assert_eq!(report["wrmsr"]["written"], "0x7");
    assert_eq!(report["wrmsr"]["sees"], "gp");
    let last = report["wrmsr"]["steps"].as_array().expect("steps").last();
    assert_eq!(last, Some(&json!({"stage": "result", "text": "#GP(0)"})));
    for object in [
        &report,
        &report["rdmsr"],
        &report["wrmsr"],
        &report["rdmsr"]["steps"][0],
    ] {
        for key in object.as_object().expect("an object").keys() {
            assert!(DOCUMENT.contains(&format!("`{key}`")), "{key}");
        }
    }
}

#[test]
fn value_decides_what_becomes_of_a_write() {
    let sees = |value: &str| {
        let arguments = ["0x2ff", "--backend", "soft", "--json", "--value", value];
        let output = explain("explain-value.toml", "version = 1\n", &arguments);
        let report: Value = serde_json::from_str(stdout(&output)).expect("JSON");
        report["wrmsr"]["sees"].clone()
    };
    assert_eq!(sees("0xc06"), "written");
    assert_eq!(sees("3"), "gp", "no memory type");
}

#[test]
fn no_line_is_wider_than_80_columns() {
    let policy = format!(
        "version = 1\n{}",
        "[[rule]]\nmsr = ['0x200..=0x24f',     'IA32_MTRR_DEF_TYPE']\nboth = 'fault'\n"
    );
    let folder = "a-folder-with-a-name-that-is-rather-long-and-goes-on-for-a-while";
    let path = file("explain-wide.toml", policy.as_bytes());
    let long = path.parent().expect("a folder").join(folder);
    std::fs::create_dir_all(&long).expect("the test's folder can be written");
    let long = long.join("policy.toml");
    std::fs::copy(&path, &long).expect("a copy");
    let long = long.to_str().expect("UTF-8");
    let output = msrgate(&["explain", "--backend", "soft", long, "0x200"]);
    for line in stdout(&output).lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn what_is_no_msr_or_value_is_refused() {
    for (arguments, why) in [
        (&["ia32_spec_ctl"][..], "IA32_SPEC_CTRL is near"),
        (
            &["0x48", "--value", "0x1_0000_0000_0000_0000"],
            "at most 64 bits",
        ),
    ] {
        let output = explain("explain-bad.toml", "version = 1\n", arguments);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(why), "{}", stderr(&output));
    }
    let output = explain("explain-mistake.toml", "version = 2\n", &["0x48"]);
    assert!(stderr(&output).contains("policy::version"));
    assert_eq!(output.status.code(), Some(2));
}
