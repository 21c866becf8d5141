//! `msrgate diff` from outside: policies, traces, surfaces, what is not one kind, and the widths of its lines.

use std::fmt::Write;
use std::path::Path;
use std::process::Output;

use msrgate_core::{Access, Event, ExitReason, MsrIndex, Outcome, Timed, VcpuId};
use msrgate_trace::{Facts, Header, Observation, Writer};
use serde_json::{Value, json};

#[path = "support/mod.rs"]
#[expect(
    dead_code,
    reason = "no guest is run here, so that what makes guests is not used"
)]
mod support;

use support::{command, file, stderr, stdout};

const DOCUMENT: &str = include_str!("../../../docs/diff.md");

/// The policy of the document that is called so.
fn sample(name: &str) -> &'static str {
    let fence = format!("```toml file={name}\n");
    let (_, rest) = DOCUMENT.split_once(&fence).expect("a policy");
    rest.split("```").next().expect("its end")
}

fn diff(options: &[&str], a: &Path, b: &Path) -> Output {
    let output = command(&["diff"]).args(options).arg(a).arg(b).output();
    output.expect("msrgate runs")
}

fn trace(
    name: &str,
    observation: Observation,
    accesses: &[(u32, Access, Outcome, u64)],
) -> std::path::PathBuf {
    let header = Header {
        facts: Facts {
            observation: Some(observation),
            ..Facts::default()
        },
        ..Header::default()
    };
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, &header).expect("memory");
    for (time_ns, &(index, access, outcome, value)) in (0..).zip(accesses) {
        let event = Event {
            vcpu: VcpuId(0),
            index: MsrIndex(index),
            access,
            reason: match outcome {
                Outcome::Native => ExitReason::NONE,
                _ => ExitReason::FILTER,
            },
            rip: None,
            value,
            outcome,
            log: false,
        };
        writer.record(&Timed { time_ns, event });
    }
    writer.finish();
    file(name, &bytes)
}

#[test]
fn document_has_every_key() {
    let old = file("diff-old.toml", sample("old.toml").as_bytes());
    let new = file("diff-new.toml", sample("new.toml").as_bytes());
    let output = diff(&["--json"], &old, &new);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for part in [&report, &report["differences"][0]] {
        for key in part.as_object().expect("an object").keys() {
            assert!(DOCUMENT.contains(&format!("`{key}`")), "{key}");
        }
    }
    let default = json!({
        "default": "unknown", "first": null, "last": null, "name": null,
        "access": "both", "a": "ignore", "b": "fault, logged",
    });
    let mtrrs = json!({
        "default": null, "first": "0x200", "last": "0x20f", "name": "IA32_MTRR_PHYSBASE0",
        "access": "read", "a": "allow", "b": "fault",
    });
    assert_eq!(report["differences"][0], default);
    assert_eq!(report["differences"][2], mtrrs);
}

#[test]
fn policies_that_mean_the_same_have_exit_status_0() {
    let one = file(
        "diff-one.toml",
        b"version = 1\n[[rule]]\nmsr = 0x48\nboth = 'fault'\n",
    );
    let other = b"version = 1\n[defaults]\nknown = 'allow'\n[[rule]]\n\
        msr = 'IA32_SPEC_CTRL'\nread = 'fault'\nwrite = 'fault'\n";
    let output = diff(&[], &one, &file("diff-other.toml", other));
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(stdout(&output), "The policies do not differ.\n");
    assert_eq!(stderr(&output), "");
}

#[test]
fn traces_differ_in_accesses_and_answers() {
    let one = trace(
        "diff-one.msrtrace",
        Observation::Native,
        &[
            (0x10, Access::Read, Outcome::Native, 1),
            (0x10, Access::Read, Outcome::Native, 2),
            (0x8b, Access::Read, Outcome::Value, 5),
        ],
    );
    let other = trace(
        "diff-other.msrtrace",
        Observation::Native,
        &[
            (0x10, Access::Read, Outcome::Native, 3),
            (0x8b, Access::Read, Outcome::Value, 6),
            (0x8b, Access::Write, Outcome::Ignored, 0),
        ],
    );
    let expected = "\
A  native
B  native

MSR                INDEX       ACCESS  A → B
IA32_BIOS_SIGN_ID  0x8b        read    = 0x5 → = 0x6
IA32_BIOS_SIGN_ID  0x8b        write   not made → ignored

The traces differ in 2 places.
";
    let output = diff(&[], &one, &other);
    assert_eq!(stdout(&output), expected);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), "");
    assert_eq!(diff(&[], &one, &one).status.code(), Some(0));
}

#[test]
fn what_a_trace_cannot_show_is_not_compared_and_told() {
    let seen = [(0x8b, Access::Read, Outcome::Value, 5)];
    let all = [seen[0], (0x10, Access::Read, Outcome::Native, 1)];
    let one = trace("diff-native.msrtrace", Observation::Native, &all);
    let other = trace("diff-deflected.msrtrace", Observation::Deflected, &seen);
    let output = diff(&[], &one, &other);
    let expected = "A  native\nB  deflected\n\nThe traces do not differ.\n";
    assert_eq!(stdout(&output), expected);
    assert!(
        stderr(&output).contains("what the other cannot (native and deflected)"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn surfaces_are_compared_by_their_own_rules() {
    let surface = |name, value| {
        let text = format!(
            r#"{{"format": "msrgate-surface", "version": 1, "backend": "soft", "host": {{}},
            "windows": [{{"first": "0x10", "last": "0x20"}}],
            "msrs": [{{"index": "0x17", "read": "done", "value": "{value}"}}]}}"#
        );
        file(name, text.as_bytes())
    };
    let (one, other) = (surface("one.json", "0x1"), surface("other.json", "0x2"));
    let output = diff(&[], &one, &other);
    assert_eq!(
        stdout(&output),
        "A  soft\nB  soft\n\n\
         MSR               INDEX       ACCESS  A → B\n\
         IA32_PLATFORM_ID  0x17        read    0x1 → 0x2\n\n\
         The surfaces differ in 1 place.\n"
    );
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(diff(&[], &one, &one).status.code(), Some(0));
}

#[test]
fn files_of_different_kinds_and_of_no_kind_are_errors() {
    let policy = file("diff-kind.toml", b"version = 1\n");
    let trace = trace("diff-kind.msrtrace", Observation::Native, &[]);
    let other = file("diff-kind.json", b"{\"some\": \"JSON\"}");
    let empty = file("diff-empty", b"");
    let binary = file("diff-binary", b"\x7fELF\xff\xff");
    let cases = [
        (&trace, "is a trace: they cannot be compared"),
        (&other, "cannot read"),
        (&empty, "is empty: it is no policy, trace or surface"),
        (&binary, "not a text (UTF-8)"),
    ];
    for (b, expected) in cases {
        let output = diff(&[], &policy, b);
        assert_eq!(output.status.code(), Some(2), "{}", b.display());
        assert_eq!(stdout(&output), "");
        let text = stderr(&output);
        assert!(text.contains(expected), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

#[test]
fn no_line_is_wider_than_80_columns_and_many_are_counted() {
    let mut policy = "version = 1\n".to_owned();
    for number in 0..300u64 {
        let index = 0x4000_0000 + 2 * number;
        let value = u64::MAX - number;
        writeln!(
            policy,
            "[[rule]]\nmsr = {index:#x}\nread = {{ value = {value:#x} }}"
        )
        .expect("a String");
    }
    let policy = file("diff-wide.toml", policy.as_bytes());
    let empty = file("diff-none.toml", b"version = 1\n");
    let output = diff(&[], &policy, &empty);
    let text = stdout(&output);
    assert!(
        text.lines().all(|line| line.chars().count() <= 80),
        "{text}"
    );
    let summary = "The policies differ in 300 places; --all shows the other 100 too.";
    assert_eq!(text.lines().last(), Some(summary));
    let output = diff(&["--all"], &policy, &empty);
    let text = stdout(&output);
    let rows = text.lines().filter(|line| line.contains("read")).count();
    assert_eq!(rows, 300);
}
