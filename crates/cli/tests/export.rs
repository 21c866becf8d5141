//! `msrgate export` from outside: each format has what the run's own table has.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;

#[path = "support/mod.rs"]
mod support;

use support::{Elf, backends, command, file, msrgate, stderr, stdout};

const FIELDS: [&str; 10] = [
    "time_ns", "vcpu", "access", "index", "name", "reason", "value", "outcome", "rip", "log",
];

/// How many reads and writes there are of each index, reason and outcome.
type Sums = BTreeMap<[String; 3], [u64; 2]>;

fn add(sums: &mut Sums, key: [&str; 3], access: &str) {
    let counts = sums.entry(key.map(str::to_owned)).or_default();
    counts[usize::from(access == "write")] += 1;
}

/// Runs a guest with a trace: the trace, and the table.
fn traced(name: &str, arguments: &[&str]) -> (PathBuf, Sums) {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let output = command(&["run", "--json", "--trace"])
        .arg(&path)
        .args(arguments)
        .output()
        .expect("it runs");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mut sums = Sums::new();
    for row in report["msrs"].as_array().expect("a list") {
        let key = ["index", "reason", "outcome"].map(|key| row[key].as_str().expect("a text"));
        let counts = ["reads", "writes"].map(|key| row[key].as_u64().expect("a number"));
        sums.insert(key.map(str::to_owned), counts);
    }
    assert!(!sums.is_empty());
    (path, sums)
}

fn export(path: &Path, format: &str) -> String {
    let output = command(&["export", "--format", format])
        .arg(path)
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
    stdout(&output).to_owned()
}

fn sums_of_jsonl(text: &str) -> Sums {
    let mut sums = Sums::new();
    for line in text.lines() {
        let row: Value = serde_json::from_str(line).expect("JSON");
        let field = |key: &str| row[key].as_str().expect("a text");
        add(
            &mut sums,
            ["index", "reason", "outcome"].map(field),
            field("access"),
        );
        assert_eq!(row.as_object().expect("an object").len(), FIELDS.len());
    }
    sums
}

fn sums_of_csv(text: &str) -> Sums {
    let mut lines = text.lines();
    assert_eq!(lines.next().expect("names"), FIELDS.join(","));
    let mut sums = Sums::new();
    for line in lines {
        let fields: Vec<&str> = line.split(',').collect();
        let [_, _, access, index, _, reason, _, outcome, _, _] = fields[..] else {
            panic!("{line}");
        };
        add(&mut sums, [index, reason, outcome], access);
    }
    sums
}

fn sums_of_perfetto(text: &str) -> Sums {
    let trace: Value = serde_json::from_str(text).expect("JSON");
    let mut sums = Sums::new();
    let mut counted = [0; 2];
    for event in trace["traceEvents"].as_array().expect("a list") {
        let argument = |key: &str| event["args"][key].as_str().expect("a text");
        match event["ph"].as_str().expect("a text") {
            "i" => {
                let name = event["name"].as_str().expect("a text");
                let access = if name.starts_with("wrmsr ") {
                    "write"
                } else {
                    "read"
                };
                add(
                    &mut sums,
                    ["index", "reason", "outcome"].map(argument),
                    access,
                );
            }
            "C" => {
                counted[0] += event["args"]["reads"].as_u64().expect("a number");
                counted[1] += event["args"]["writes"].as_u64().expect("a number");
            }
            other => assert_eq!(other, "M"),
        }
    }
    let all = sums.values().fold([0; 2], |[reads, writes], more| {
        [reads + more[0], writes + more[1]]
    });
    assert_eq!(counted, all, "the counter counts every access once");
    sums
}

#[test]
fn every_format_has_the_sums_of_the_table() {
    // mov ecx, 0xc0000102; mov ebx, 3000; again: rdmsr; wrmsr; dec ebx; jnz again; out 0xf4, al
    let code = b"\xb9\x02\x01\x00\xc0\xbb\xb8\x0b\x00\x00\x0f\x32\x0f\x30\xff\xcb\x75\xf8\xe6\xf4";
    let guest = file("export.elf", &Elf::new(code).bytes());
    let guest = guest.to_str().expect("UTF-8");
    let policy =
        b"version = 1\n[[rule]]\nmsr = 0xc0000102\nread = { value = 7 }\nwrite = \"ignore\"\n";
    let policy = file("export.toml", policy);
    let policy = policy.to_str().expect("UTF-8");
    for backend in backends() {
        for arguments in [
            &["--backend", backend][..],
            &["--backend", backend, "--policy", policy, guest],
        ] {
            let (trace, sums) = traced(&format!("export-{backend}.trace"), arguments);
            assert_eq!(sums_of_jsonl(&export(&trace, "jsonl")), sums);
            assert_eq!(sums_of_csv(&export(&trace, "csv")), sums);
            assert_eq!(sums_of_perfetto(&export(&trace, "perfetto")), sums);
        }
    }
}

#[test]
fn document_has_every_field() {
    let document = include_str!("../../../docs/export.md");
    for field in FIELDS {
        assert!(document.contains(&format!("`{field}`")), "{field}");
    }
}

#[test]
fn times_of_a_timeline_are_microseconds_on_a_track_for_each_vcpu() {
    let (trace, _) = traced("export-times.trace", &["--backend", "soft"]);
    let first = export(&trace, "jsonl");
    let first: Value = serde_json::from_str(first.lines().next().expect("a line")).expect("JSON");
    let text = export(&trace, "perfetto");
    let timeline: Value = serde_json::from_str(&text).expect("JSON");
    let events = timeline["traceEvents"].as_array().expect("a list");
    let name = |event: &Value| event["args"]["name"].as_str().map(str::to_owned);
    assert_eq!(name(&events[0]).as_deref(), Some("the tour"));
    assert_eq!(name(&events[1]).as_deref(), Some("vCPU 0"));
    let instant = events
        .iter()
        .find(|event| event["ph"] == "i")
        .expect("an access");
    assert_eq!(instant["tid"], 0);
    let ts = instant["ts"].as_f64().expect("a number");
    let ns = first["time_ns"].as_f64().expect("a number");
    assert!((ts * 1000.0 - ns).abs() < 0.5, "{ts} {ns}");
}

#[test]
fn output_goes_to_a_file_and_input_comes_from_a_pipe() {
    let (trace, _) = traced("export-pipe.trace", &["--backend", "soft"]);
    let expected = export(&trace, "csv");
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("export.csv");
    let mut child = command(&["export", "-", "--format", "csv", "-o"])
        .arg(&path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("it runs");
    let bytes = fs::read(&trace).expect("a file");
    let mut pipe = child.stdin.take().expect("a pipe");
    pipe.write_all(&bytes).expect("it reads");
    drop(pipe);
    assert_eq!(child.wait().expect("a child").code(), Some(0));
    assert_eq!(fs::read_to_string(&path).expect("a file"), expected);
}

#[test]
fn torn_trace_is_exported_as_far_as_it_goes_with_a_warning() {
    let (trace, _) = traced("export-torn.trace", &["--backend", "soft"]);
    let expected = export(&trace, "csv");
    let mut bytes = fs::read(&trace).expect("a file");
    bytes.truncate(bytes.len() - 10);
    let torn = file("torn.trace", &bytes);
    let output = msrgate(&["export", torn.to_str().expect("UTF-8"), "--format", "csv"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stderr(&output).contains("torn"), "{}", stderr(&output));
    assert_eq!(
        stdout(&output).lines().count() + 1,
        expected.lines().count()
    );
    assert!(expected.starts_with(stdout(&output)));
}

#[test]
fn what_is_no_trace_is_one_line() {
    let text = file("no.trace", b"version = 1\n");
    let empty = file("empty.trace", b"");
    for (path, expected) in [
        (
            text.to_str(),
            "not a trace: it does not begin with MSRTRACE",
        ),
        (
            empty.to_str(),
            "the file is empty: a trace begins with a header",
        ),
        (Some("no-such-trace"), "No such file"),
    ] {
        let path = path.expect("UTF-8");
        let output = msrgate(&["export", path, "--format", "jsonl"]);
        assert_eq!(output.status.code(), Some(2));
        let text = stderr(&output);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.starts_with("error: ") && text.contains(path), "{text}");
        assert!(text.contains(expected), "{text}");
        assert_eq!(stdout(&output), "");
    }
}

#[test]
fn reader_that_goes_away_is_no_error() {
    let (trace, _) = traced("export-broken.trace", &["--backend", "soft"]);
    for format in ["jsonl", "csv", "perfetto"] {
        let mut child = command(&["export", "--format", format])
            .arg(&trace)
            .stdout(Stdio::piped())
            .spawn()
            .expect("it runs");
        drop(child.stdout.take());
        assert_eq!(child.wait().expect("a child").code(), Some(0));
    }
}
