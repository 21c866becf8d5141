//! `msrgate run --trace` from outside: what is in the file, whatever becomes of the program and the disk.

use std::fs::{self};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use msrgate_core::{ExitReason, MsrIndex, Outcome};
use msrgate_trace::Observation;
use serde_json::Value;

#[path = "support/mod.rs"]
mod support;

#[path = "support/traced.rs"]
mod traced;

use support::{backends, command, file, msrgate, say, stderr, stdout};
use traced::{output, read, reader, text};

/// Under it, MSR 0x474f4f00 reads as 0.
fn ignoring(name: &str) -> PathBuf {
    let policy = b"version = 1\n[defaults]\nunknown = \"ignore\"\n";
    file(name, policy)
}

#[test]
fn tour_has_the_same_trace_on_every_backend() {
    tour_has("off", Observation::Deflected, 9);
    tour_has("filter", Observation::Filter, 12);
}

fn tour_has(observe: &str, observation: Observation, count: usize) {
    let mut traces = Vec::new();
    for backend in backends() {
        let path = output(&format!("tour-{observe}-{backend}.trace"));
        let arguments = ["run", "--observe", observe, "--backend", backend, "--trace"];
        let output = command(&arguments).arg(&path).output().expect("it runs");
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let trace = read(&path);
        assert_eq!(trace.facts.backend, backend);
        assert_eq!(trace.facts.observation, Some(observation));
        assert!(trace.times.is_sorted());
        assert!(!trace.summary.is_torn);
        assert_eq!(trace.events.len(), count);
        assert!(trace.events.iter().all(|event| event.rip.is_some()));
        traces.push(trace.events);
    }
    assert!(traces.iter().all(|events| events == &traces[0]));
}

#[test]
fn native_trace_of_the_tour_has_what_the_policy_allows_too() {
    let path = output("tour-native.trace");
    let output = msrgate(&["run", "--backend", "soft", "--json", "--trace", text(&path)]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["trace"]["events"], 12);
    let trace = read(&path);
    let native: Vec<_> = trace
        .events
        .iter()
        .filter(|event| event.reason == ExitReason::NONE)
        .map(|event| (event.index, event.access.instruction(), event.value))
        .collect();
    let gs = MsrIndex(0xc000_0102);
    assert_eq!(
        native,
        [
            (gs, "wrmsr", 0x1234),
            (gs, "rdmsr", 0x1234),
            (gs, "rdmsr", 0x1234)
        ]
    );
    let facts = trace.facts;
    assert_eq!(facts.observation, Some(Observation::Native));
    assert!(facts.command.contains("--trace"), "{}", facts.command);
    assert_eq!(facts.policies[0].text, msrgate_machine::tour::POLICY);
    assert_eq!(facts.policies[1].text, msrgate_machine::tour::SECOND_POLICY);
}

#[test]
fn trace_has_the_policy_with_what_it_includes() {
    let included = "version = 1\n[[rule]]\nmsr = 0x8b\nboth = \"fault\"\n";
    file("trace-included.toml", included.as_bytes());
    let source = "version = 1\ninclude = [\"trace-included.toml\"]\n";
    let policy = file("trace-including.toml", source.as_bytes());
    let path = output("included.trace");
    let guest = reader("trace-one.elf", Some(1));
    let output = command(&["run", "--backend", "soft", "--policy", text(&policy)])
        .args(["--trace", text(&path), text(&guest)])
        .output()
        .expect("it runs");
    let facts = read(&path).facts;
    assert_eq!(facts.policies[0].name, text(&policy), "{}", stderr(&output));
    assert_eq!(facts.policies[0].text, source);
    assert_eq!(facts.includes[0].text, included);
}

/// A guest that reads for ever, and its trace, which has some events already.
fn endless(backend: &str, name: &str) -> (Child, PathBuf) {
    let path = output(&format!("{name}-{backend}.trace"));
    let guest = reader(&format!("{name}-{backend}.elf"), None);
    let policy = ignoring(&format!("{name}-{backend}.toml"));
    let child = command(&["run", "--backend", backend, "--policy", text(&policy)])
        .args(["--trace", text(&path), text(&guest)])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    let start = Instant::now();
    while fs::metadata(&path).map_or(0, |file| file.len()) < 100_000 {
        assert!(start.elapsed() < Duration::from_secs(20), "no events");
        thread::sleep(Duration::from_millis(10));
    }
    (child, path)
}

#[test]
fn killed_program_leaves_a_trace_that_reads() {
    for backend in backends() {
        let (mut child, path) = endless(backend, "killed");
        child.kill().expect("a child");
        child.wait().expect("a child");
        let length = fs::metadata(&path).expect("a file").len();
        let trace = read(&path);
        assert_eq!(trace.summary.damaged, 0);
        let records = trace.events.len() as u64;
        assert!(
            records * 64 + 64 * 64 > length - 64 * 100,
            "nearly all are events"
        );
        assert!(trace.times.is_sorted());
        for event in trace.events {
            assert_eq!(event.index, MsrIndex(0x474f_4f00));
            assert_eq!(event.outcome, Outcome::Ignored);
        }
    }
}

#[test]
fn signal_ends_the_trace_with_the_guest() {
    for backend in backends() {
        let (mut child, path) = endless(backend, "stopped");
        let sent = Command::new("kill").arg(child.id().to_string()).status();
        assert!(sent.expect("kill runs").success());
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let lines: Vec<String> = output.lines().map_while(Result::ok).collect();
        assert_eq!(child.wait().expect("a child").code(), Some(0));
        let summary = read(&path).summary;
        assert!(!summary.is_torn);
        let reads: u64 = lines[1]
            .split_whitespace()
            .nth(2)
            .expect("READS")
            .parse()
            .expect("a number");
        assert_eq!(summary.events + summary.lost_in_rings, reads, "{lines:?}");
    }
}

#[test]
fn full_disk_loses_events_and_says_how_many() {
    const READS: u32 = 20_000;
    let guest = reader("full.elf", Some(READS));
    let policy = ignoring("full.toml");
    let folder = output("full");
    let copy = output("full.trace");
    let _ = fs::create_dir(&folder);
    let script = "mount -t tmpfs -o size=64k none $0 || exit 77; \
        \"$1\" run --backend soft --json --policy \"$2\" --trace $0/t \"$3\" && cp $0/t \"$4\"";
    let output = Command::new("unshare")
        .args(["-rm", "sh", "-c", script, text(&folder)])
        .args([
            env!("CARGO_BIN_EXE_msrgate"),
            text(&policy),
            text(&guest),
            text(&copy),
        ])
        .output();
    let Ok(output) = output else {
        return say("SKIP(unshare): there is no unshare");
    };
    if matches!(output.status.code(), Some(1 | 77)) {
        return say(&format!("SKIP(tmpfs): {}", stderr(&output)));
    }
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["msrs"][0]["reads"], READS, "the table is exact");
    let count = |key: &str| report["trace"][key].as_u64().expect("a number");
    let sum = count("events") + count("lost_in_rings") + count("lost_in_file");
    assert_eq!(sum, u64::from(READS));
    assert!(count("lost_in_file") > 10_000);
    let error = report["trace"]["error"].as_str().expect("a text");
    assert!(error.starts_with("No space left on device"), "{error}");
    let trace = read(&copy);
    assert_eq!(trace.events.len() as u64, count("events"));
    assert_eq!(trace.summary.damaged, 0);
}

#[test]
fn trace_that_cannot_be_written_is_refused_before_the_guest_starts() {
    for (path, why) in [
        ("/dev/full", "No space left"),
        ("/no-such-folder/t", "No such file"),
    ] {
        let output = msrgate(&["run", "--backend", "soft", "--trace", path]);
        assert_eq!(output.status.code(), Some(2));
        let line = stderr(&output).lines().last().expect("a line").to_owned();
        let start = format!("error: cannot write the trace {path}: {why}");
        assert!(line.starts_with(&start), "{line}");
        assert_eq!(stdout(&output), "");
    }
}

#[test]
fn means_that_a_backend_has_not_is_refused_and_leaves_an_old_trace_alone() {
    let path = file("old.trace", b"old");
    for backend in backends() {
        let output = command(&[
            "run",
            "--backend",
            backend,
            "--observe",
            "native",
            "--trace",
        ])
        .arg(&path)
        .output()
        .expect("it runs");
        if backend == "kvm" {
            assert_eq!(output.status.code(), Some(2));
            assert!(stderr(&output).contains("`--backend soft` does"));
            assert_eq!(fs::read(&path).expect("a file"), b"old");
        } else {
            assert_eq!(output.status.code(), Some(0));
            fs::write(&path, b"old").expect("a file");
        }
    }
}

#[test]
fn events_to_be_logged_are_lines_and_a_flood_is_counted() {
    let output = msrgate(&["run", "--backend", "soft"]);
    let lines: Vec<&str> = stderr(&output).lines().skip(1).collect();
    assert_eq!(
        lines,
        [
            "msrgate: vCPU 0: wrmsr 0xc0000080 (IA32_EFER), 0x8000000000000d00, invalid: #GP(0)",
            "msrgate: vCPU 0: rdmsr 0x474f4f00, unknown: #GP(0)",
        ]
    );
    let policy = "version = 1\n[[rule]]\nmsr = 0x474f4f00\nread = { value = 1 }\nlog = true\n";
    let policy = file("logging.toml", policy.as_bytes());
    let guest = reader("logging.elf", Some(1000));
    let arguments = [
        "run",
        "--backend",
        "soft",
        "--policy",
        text(&policy),
        text(&guest),
    ];
    let output = msrgate(&arguments);
    let lines: Vec<&str> = stderr(&output).lines().skip(1).collect();
    let (last, shown) = lines.split_last().expect("lines");
    assert!(!shown.is_empty() && shown.len() < 100, "{}", shown.len());
    assert!(shown.iter().all(|line| line.contains("rdmsr 0x474f4f00")));
    let more = 1000 - shown.len();
    let expected = format!("msrgate: {more} more accesses that are to be logged are not shown");
    assert_eq!(*last, expected);
}
