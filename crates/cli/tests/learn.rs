//! `msrgate learn` from outside: the policy, files that are replaced, and traces with nothing in them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use msrgate_core::{Access, Event, ExitReason, MsrIndex, Outcome, Timed, VcpuId};
use msrgate_trace::{Facts, Header, Observation, PolicySource, Writer};

#[path = "support/mod.rs"]
#[expect(
    dead_code,
    reason = "no guest is made here, so that what makes guests is not used"
)]
mod support;

use support::{backends, command, file, msrgate, stderr, stdout};

fn event(index: u32, access: Access, outcome: Outcome, value: u64) -> Event {
    Event {
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
    }
}

fn trace_bytes(observation: Observation, policy: &str, events: &[Event]) -> Vec<u8> {
    let policies = match policy {
        "" => Vec::new(),
        text => vec![PolicySource {
            name: "policy.toml".to_owned(),
            text: text.to_owned(),
        }],
    };
    let header = Header {
        facts: Facts {
            observation: Some(observation),
            policies,
            ..Facts::default()
        },
        ..Header::default()
    };
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, &header).expect("memory");
    for (time_ns, &event) in (0..).zip(events) {
        writer.record(&Timed { time_ns, event });
    }
    writer.finish();
    bytes
}

fn learn(traces: &[&Path]) -> Output {
    let output = command(&["learn"]).args(traces).output();
    output.expect("msrgate runs")
}

fn native(name: &str, events: &[Event]) -> PathBuf {
    file(name, &trace_bytes(Observation::Native, "", events))
}

#[test]
fn many_traces_give_the_policy_of_one() {
    let events = [
        event(0x10, Access::Read, Outcome::Native, 1),
        event(0x48, Access::Write, Outcome::Native, 1),
        event(0x8b, Access::Read, Outcome::Value, 0x42),
        event(0x10, Access::Read, Outcome::Native, 2),
    ];
    let all = native("learn-all.msrtrace", &events);
    let parts = [0, 1, 2, 3].map(|at| native(&format!("learn-{at}.msrtrace"), &events[at..=at]));
    let [a, b, c, d] = parts.each_ref().map(PathBuf::as_path);
    let whole = learn(&[&all]);
    assert_eq!(whole.status.code(), Some(0), "{}", stderr(&whole));
    assert_eq!(stderr(&whole), "");
    assert!(stdout(&whole).contains("# 2 reads"), "{}", stdout(&whole));
    for order in [[a, b, c, d], [d, b, a, c]] {
        assert_eq!(stdout(&learn(&order)), stdout(&whole));
    }
}

#[test]
fn policy_in_a_file_is_replaced_whole() {
    let trace = native(
        "learn-o.msrtrace",
        &[event(0x10, Access::Read, Outcome::Native, 1)],
    );
    let policy = file("learn-o.toml", b"what was there before");
    let output = command(&["learn"])
        .arg(&trace)
        .arg("-o")
        .arg(&policy)
        .output();
    let output = output.expect("msrgate runs");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output), "");
    assert_eq!(
        fs::read_to_string(&policy).expect("a policy"),
        stdout(&learn(&[&trace]))
    );
    let nothing = native("learn-nothing.msrtrace", &[]);
    let output = command(&["learn"])
        .arg(&nothing)
        .arg("-o")
        .arg(&policy)
        .output();
    assert_eq!(output.expect("msrgate runs").status.code(), Some(2));
    let kept = fs::read_to_string(&policy).expect("a policy");
    assert!(
        kept.starts_with("# Learned from 1 access to 1 MSR."),
        "{kept}"
    );
}

#[test]
fn rule_of_the_traces_policy_is_carried_over() {
    let policy = "version = 1\n[[rule]]\nmsr = 0x17\nread = 'host'\n";
    let handled = [event(0x17, Access::Read, Outcome::Handled, 7)];
    let bytes = trace_bytes(Observation::Native, policy, &handled);
    let output = learn(&[&file("learn-host.msrtrace", &bytes)]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        stdout(&output).contains("\nread = \"host\"\n"),
        "{}",
        stdout(&output)
    );
    assert_eq!(stderr(&output), "");
}

#[test]
fn policy_that_the_traces_policy_includes_is_read_from_the_trace() {
    let source = |name: &str, text: &str| PolicySource {
        name: name.to_owned(),
        text: text.to_owned(),
    };
    let mut header = Header::default();
    header.facts.observation = Some(Observation::Native);
    header.facts.policies = vec![source(
        "dir/a.toml",
        "version = 1\ninclude = ['../b.toml']\n",
    )];
    let rule = "version = 1\n[[rule]]\nmsr = 0x17\nshadow = { reset = 7 }\n";
    header.facts.includes = vec![source("b.toml", rule)];
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, &header).expect("memory");
    let event = event(0x17, Access::Read, Outcome::Shadow, 7);
    writer.record(&Timed { time_ns: 0, event });
    writer.finish();
    let output = learn(&[&file("learn-include.msrtrace", &bytes)]);
    assert_eq!(stderr(&output), "");
    assert!(
        stdout(&output).contains("reset = 0x7"),
        "{}",
        stdout(&output)
    );
}

#[test]
fn answer_of_a_rule_that_is_not_in_the_trace_is_warned_of() {
    let handled = [event(0x17, Access::Read, Outcome::Handled, 7)];
    let without = file(
        "learn-lost.msrtrace",
        &trace_bytes(Observation::Native, "", &handled),
    );
    let policy = "version = 1\n[[rule]]\nmsr = 0x17\nread = { handler = 'x' }\n";
    let bytes = trace_bytes(Observation::Native, policy, &handled);
    let strange = file("learn-strange.msrtrace", &bytes);
    for (trace, expected) in [
        (
            without,
            "reads of IA32_PLATFORM_ID were answered by what no rule can say here",
        ),
        (strange, "its policy policy.toml is passed over: "),
    ] {
        let output = learn(&[&trace]);
        assert_eq!(output.status.code(), Some(0));
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    }
}

#[test]
fn torn_trace_is_used_as_far_as_it_goes() {
    let events = [
        event(0x10, Access::Read, Outcome::Native, 1),
        event(0x48, Access::Read, Outcome::Native, 1),
    ];
    let bytes = trace_bytes(Observation::Native, "", &events);
    let output = learn(&[&file("learn-torn.msrtrace", &bytes[..bytes.len() - 1])]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("is torn: it is used as far as it goes"));
    assert!(stdout(&output).contains("IA32_TIME_STAMP_COUNTER"));
    assert!(!stdout(&output).contains("IA32_SPEC_CTRL"));
}

#[test]
fn trace_of_what_left_the_guest_is_warned_of() {
    let value = [event(0x8b, Access::Read, Outcome::Value, 5)];
    let bytes = trace_bytes(Observation::Deflected, "version = 1\n", &value);
    let output = learn(&[&file("learn-blind.msrtrace", &bytes)]);
    assert_eq!(output.status.code(), Some(0));
    assert!(
        stderr(&output).starts_with("warning: a trace shows only what left the guest"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn trace_with_more_policies_than_a_guest_has_is_refused() {
    let policy = |number: usize| PolicySource {
        name: number.to_string(),
        text: "version = 1\n".to_owned(),
    };
    let mut header = Header::default();
    header.facts.policies = (0..65).map(policy).collect();
    let mut bytes = Vec::new();
    Writer::new(&mut bytes, &header).expect("memory").finish();
    let output = learn(&[&file("learn-policies.msrtrace", &bytes)]);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(
        text.contains("has 65 policies: at most 64 may be"),
        "{text}"
    );
}

#[test]
fn nothing_to_learn_from_is_an_error_of_one_line() {
    let nothing = native("learn-empty.msrtrace", &[]);
    let nothing = nothing.to_str().expect("UTF-8");
    let policy = file(
        "learn-policy.toml",
        b"version = 1\n# longer than a header would be, if it were one\n",
    );
    let none = file("learn-none", b"");
    let cases = [
        (nothing, "has no MSR access: there is nothing to learn from"),
        (policy.to_str().expect("UTF-8"), "not a trace"),
        (none.to_str().expect("UTF-8"), "is empty"),
        ("no-such-trace", "cannot read the trace no-such-trace"),
    ];
    for (trace, expected) in cases {
        let output = msrgate(&["learn", trace]);
        assert_eq!(output.status.code(), Some(2));
        let text = stderr(&output);
        assert!(text.contains(expected), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert_eq!(stdout(&output), "");
    }
}

#[test]
fn accesses_that_no_filter_allows_are_drawn() {
    let far: Vec<Event> = (1..=17)
        .map(|number| event(number << 20, Access::Read, Outcome::Native, 0))
        .collect();
    let output = learn(&[&native("learn-far.msrtrace", &far)]);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(text.contains("policy::too-many-ranges"), "{text}");
    assert!(
        text.contains("no filter of KVM allows what was observed"),
        "{text}"
    );
}

/// Runs the tour; gives its console back, which is what is before the table.
fn tour(backend: &str, arguments: &[&str]) -> String {
    let output = command(&["run", "--backend", backend])
        .args(arguments)
        .output();
    let output = output.expect("msrgate runs");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let (console, _) = stdout(&output).split_once("\nMSR ").expect("a table");
    console.to_owned()
}

fn tour_policy(name: &str) -> PathBuf {
    file(name, msrgate(&["run", "--print-policy"]).stdout.as_slice())
}

fn path(name: &str) -> String {
    file(name, b"").to_str().expect("UTF-8").to_owned()
}

#[test]
fn tour_behaves_the_same_under_what_was_learned_from_it() {
    let policy = tour_policy("learn-tour.toml");
    let policy = policy.to_str().expect("UTF-8");
    let (before, after) = (path("learn-before.msrtrace"), path("learn-after.msrtrace"));
    tour("soft", &["--policy", policy, "--trace", &before]);
    let learned = path("learn-learned.toml");
    let output = msrgate(&["learn", &before, "-o", &learned]);
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""));
    for backend in backends() {
        let expected = tour(backend, &["--policy", policy]);
        assert!(expected.contains("caught #GP"), "{expected}");
        let console = tour(backend, &["--policy", &learned, "--trace", &after]);
        assert_eq!(console, expected, "on {backend}");
        let output = msrgate(&["diff", &before, &after]);
        assert_eq!(
            output.status.code(),
            Some(0),
            "on {backend}: {}",
            stdout(&output)
        );
    }
}

#[test]
fn tour_under_two_policies_differs_only_in_what_learn_told_of() {
    let (trace, learned) = (path("learn-two.msrtrace"), path("learn-two.toml"));
    let expected = tour("soft", &["--trace", &trace]);
    let output = msrgate(&["learn", &trace, "-o", &learned]);
    let warning = "reads of 0x474f4f00 and 2 more were answered in several ways";
    assert!(stderr(&output).contains(warning), "{}", stderr(&output));
    let console = tour("soft", &["--policy", &learned]);
    let differing: Vec<&str> = expected
        .lines()
        .zip(console.lines())
        .filter(|(expected, found)| expected != found)
        .map(|(expected, _)| expected)
        .collect();
    assert_eq!(
        differing,
        [
            "   I read IA32_KERNEL_GS_BASE again and saw 0x6d737267617465.",
            "   I read MSR 0x474f4f00 again and caught #GP.",
            "   I read IA32_KERNEL_GS_BASE once more and saw 0x1234.",
        ]
    );
    assert_eq!(console.lines().count(), expected.lines().count());
}
