//! `msrgate run` from outside: what it prints, what it refuses, and its exit status.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

#[path = "support/mod.rs"]
mod support;

use support::{Elf, backends, command, file, msrgate, stderr, stdout};

/// What the tour must come to, by the words of its policies and of its steps: access, index, reason, value,
/// outcome.
const TOUR: &[(&str, &str, &str, &str, &str)] = &[
    ("read", "0x8b", "filter", "0x100006500000000", "value"),
    ("write", "0x8b", "filter", "0x0", "ignored"),
    ("read", "0x3a", "filter", "0x0", "fault"),
    ("read", "0x474f4f00", "unknown", "0x0", "ignored"),
    ("write", "0x474f4f00", "unknown", "0x1", "ignored"),
    (
        "write",
        "0xc0000080",
        "invalid",
        "0x8000000000000d00",
        "fault",
    ),
    ("read", "0xc0000102", "filter", "0x6d737267617465", "value"),
    ("write", "0xc0000102", "filter", "0x5678", "ignored"),
    ("read", "0x474f4f00", "unknown", "0x0", "fault"),
];

#[test]
fn tour_gives_the_same_events_on_every_backend() {
    let mut consoles = Vec::new();
    for backend in backends() {
        let output = msrgate(&["run", "--json", "--backend", backend]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(report["backend"], backend);
        assert_eq!(report["end"]["kind"], "exit");
        let text = |event: &Value, key: &str| event[key].as_str().expect("a text").to_owned();
        let events: Vec<_> = report["events"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|event| {
                ["access", "index", "reason", "value", "outcome"].map(|key| text(event, key))
            })
            .collect();
        let expected: Vec<_> = TOUR
            .iter()
            .map(|row| [row.0, row.1, row.2, row.3, row.4].map(str::to_owned))
            .collect();
        assert_eq!(events, expected, "on {backend}");
        let (_, console) = stderr(&output).split_once('\n').expect("more than a line");
        consoles.push(console.to_owned());
    }
    assert!(consoles.iter().all(|console| console == &consoles[0]));
    for seen in [
        "I read it back and saw 0x1234.",
        "I read IA32_BIOS_SIGN_ID and saw 0x100006500000000.",
        "I read IA32_FEATURE_CONTROL and caught #GP.",
        "I read MSR 0x474f4f00 and saw 0x0.",
        "I set a reserved bit of IA32_EFER and caught #GP.",
        "I read IA32_KERNEL_GS_BASE again and saw 0x6d737267617465.",
        "I read IA32_KERNEL_GS_BASE once more and saw 0x1234.",
    ] {
        assert!(consoles[0].contains(seen), "{seen}\n{}", consoles[0]);
    }
}

#[test]
fn tour_ends_with_a_table_of_80_columns() {
    for backend in backends() {
        let output = msrgate(&["run", "--backend", backend]);
        let text = stdout(&output);
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
        let table = text
            .split("That was all. Good bye.\n\n")
            .nth(1)
            .expect("a table");
        assert_eq!(table, TABLE);
    }
}

const TABLE: &str = "\
MSR                   INDEX       READS  WRITES  REASON   OUTCOME
IA32_FEATURE_CONTROL  0x3a            1       0  filter   #GP
IA32_BIOS_SIGN_ID     0x8b            1       0  filter   = 0x100006500000000
IA32_BIOS_SIGN_ID     0x8b            0       1  filter   ignored
-                     0x474f4f00      1       1  unknown  ignored
-                     0x474f4f00      1       0  unknown  #GP
IA32_EFER             0xc0000080      0       1  invalid  #GP
IA32_KERNEL_GS_BASE   0xc0000102      1       0  filter   = 0x6d737267617465
IA32_KERNEL_GS_BASE   0xc0000102      0       1  filter   ignored

9 MSR accesses left the guest. The guest ended by itself.
";

#[test]
fn document_has_every_key_and_option() {
    let document = include_str!("../../../docs/run.md");
    let output = msrgate(&["run", "--backend", "soft", "--json", "--stats"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let parts = [
        &report,
        &report["msrs"][0],
        &report["events"][0],
        &report["stats"],
    ];
    for part in parts {
        for key in part.as_object().expect("an object").keys() {
            assert!(document.contains(&format!("`{key}`")), "{key}");
        }
    }
    for option in stdout(&msrgate(&["run", "--help"])).split_whitespace() {
        if option.starts_with("--") && option != "--help" {
            assert!(document.contains(&format!("`{option}")), "{option}");
        }
    }
}

#[test]
fn auto_says_which_backend_it_took_and_why() {
    let output = msrgate(&["run"]);
    let line = stderr(&output).lines().next().expect("a line").to_owned();
    let best = *backends().last().expect("soft at least");
    assert!(line.starts_with(&format!("msrgate: on {best}: ")), "{line}");
}

#[test]
fn stats_count_what_happened() {
    let output = msrgate(&["run", "--backend", "soft", "--json", "--stats"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let stats = &report["stats"];
    assert!(stats["exits"].as_u64() > Some(TOUR.len() as u64));
    assert!(stats["instructions"].as_u64() > stats["exits"].as_u64());
    assert!(stats["time_ns"].as_u64() > Some(0));
}

#[test]
fn strict_tells_a_fault_by_the_exit_status() {
    let output = msrgate(&["run", "--backend", "soft", "--strict"]);
    assert_eq!(output.status.code(), Some(1));
    let guest = file("strict-hlt.elf", &Elf::new(&[0xf4]).bytes());
    let guest = guest.to_str().expect("UTF-8");
    let output = msrgate(&["run", "--backend", "soft", "--strict", guest]);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn policy_of_the_tour_can_be_printed_and_used() {
    let printed = msrgate(&["run", "--print-policy"]);
    let policy = file("printed.toml", &printed.stdout);
    let policy = policy.to_str().expect("UTF-8");
    let output = msrgate(&["run", "--backend", "soft", "--policy", policy]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("= 0x100006500000000"));
}

#[test]
fn flat_binary_runs_in_real_mode() {
    // mov dx, 0x3f8; mov al, 'A'; out dx, al; mov ecx, 0x474f4f00; rdmsr
    let code = b"\xba\xf8\x03\xb0A\xee\x66\xb9\x00\x4f\x4f\x47\x0f\x32\xf4";
    let guest = file("flat.bin", code);
    for backend in backends() {
        let output = msrgate(&["run", "--backend", backend, guest.to_str().expect("UTF-8")]);
        assert!(
            stdout(&output).starts_with("A\n\nMSR "),
            "{}",
            stdout(&output)
        );
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains("there is no BIOS here"));
    }
}

#[test]
fn guest_that_a_limit_slowed_is_told_so() {
    // mov ecx, 0x8b; rdmsr; rdmsr; out 0xf4, al
    let code = b"\x66\xb9\x8b\0\0\0\x0f\x32\x0f\x32\xe6\xf4";
    let guest = file("storm.bin", code);
    let rule = "[[rule]]\nmsr = 0x8b\nread = { value = 0 }\nlimit = '1/s'\n";
    let policy = file("storm.toml", format!("version = 1\n{rule}").as_bytes());
    let [guest, policy] = [&guest, &policy].map(|path| path.to_str().expect("UTF-8"));
    for backend in backends() {
        let output = msrgate(&["run", "--backend", backend, "--policy", policy, guest]);
        let end = "2 MSR accesses left the guest. The guest ended by itself.\n\
            A limit of the policy made it wait once.\n";
        assert!(stdout(&output).ends_with(end), "{}", stdout(&output));
    }
}

#[test]
fn halt_ends_a_guest_in_peace() {
    let guest = file("hlt.elf", &Elf::new(&[0xf4]).bytes());
    for backend in backends() {
        let output = msrgate(&["run", "--backend", backend, guest.to_str().expect("UTF-8")]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert_eq!(
            stdout(&output),
            "No MSR access left the guest. The guest halted.\n"
        );
    }
}

#[test]
fn triple_fault_is_one_line_with_rip() {
    let guest = file("ud2.elf", &Elf::new(&[0x0f, 0x0b]).bytes());
    for backend in backends() {
        let output = msrgate(&["run", "--backend", backend, guest.to_str().expect("UTF-8")]);
        assert_eq!(output.status.code(), Some(2));
        let line = stderr(&output).lines().last().expect("a line").to_owned();
        assert!(
            line.starts_with("error: the guest triple-faulted at RIP 0x100000; "),
            "{line}"
        );
        if backend == "soft" {
            assert!(line.ends_with("its last exception was #UD"), "{line}");
        }
    }
}

#[test]
fn guest_that_never_ends_is_stopped_by_a_signal_and_still_reported() {
    // A jump to itself never leaves the guest by itself.
    let guest = file("loop.elf", &Elf::new(&[0xeb, 0xfe]).bytes());
    for backend in backends() {
        for signal in ["INT", "TERM"] {
            let arguments = ["run", "--backend", backend, guest.to_str().expect("UTF-8")];
            let mut child = command(&arguments)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("msrgate runs");
            let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
            let first = lines.next().expect("a line").expect("UTF-8");
            assert!(first.starts_with("msrgate: on "), "{first}");
            thread::sleep(Duration::from_millis(200));
            let sent = Command::new("kill")
                .args([&format!("-{signal}"), &child.id().to_string()])
                .status();
            assert!(sent.expect("kill runs").success());
            let start = Instant::now();
            let status = loop {
                if let Some(status) = child.try_wait().expect("a child") {
                    break status;
                }
                if start.elapsed() > Duration::from_secs(10) {
                    child.kill().expect("a child");
                    panic!("SIG{signal} does not stop a guest on {backend}");
                }
                thread::sleep(Duration::from_millis(10));
            };
            let mut text = String::new();
            let mut pipe = child.stdout.take().expect("a pipe");
            pipe.read_to_string(&mut text).expect("UTF-8");
            assert_eq!(status.code(), Some(0));
            assert_eq!(
                text,
                "No MSR access left the guest. You stopped the guest.\n"
            );
        }
    }
}

#[test]
fn guest_file_that_cannot_be_booted_is_one_line() {
    let halt: &[u8] = &[0xf4];
    let elf = |change: fn(&mut Elf<'_>)| {
        let mut elf = Elf::new(halt);
        change(&mut elf);
        elf.bytes()
    };
    let mut kernel = vec![0; 0x1000];
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    let cases: &[(&str, Vec<u8>, &str)] = &[
        ("empty", Vec::new(), "the file is empty"),
        ("text", b"#!/bin/sh\n".to_vec(), "a text, not a program"),
        ("kernel", kernel, "the bzImage has no 64-bit entry point"),
        ("long.bin", vec![0x90; 0x7_0001], "at most 458752 fit"),
        ("arm.elf", elf(|elf| elf.machine = 183), "(e_machine 0xb7)"),
        ("small.elf", elf(|elf| elf.class = 1), "a 32-bit ELF"),
        ("shared.elf", elf(|elf| elf.kind = 3), "an ELF of type 0x3"),
        (
            "low.elf",
            elf(|elf| elf.address = 0x8000),
            "lies on the page tables",
        ),
        (
            "far.elf",
            elf(|elf| elf.address = 1 << 31),
            "lies outside of 0x4000000 bytes",
        ),
        (
            "cut.elf",
            Elf::new(halt).bytes()[..100].to_vec(),
            "the ELF is cut off",
        ),
    ];
    for (name, bytes, expected) in cases {
        let path = file(name, bytes);
        let output = msrgate(&["run", "--backend", "soft", path.to_str().expect("UTF-8")]);
        assert_eq!(output.status.code(), Some(2), "{name}");
        let text = stderr(&output);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.starts_with("error: cannot boot "), "{text}");
        assert!(text.contains(expected), "{name}: {text}");
    }
}

#[test]
fn missing_files_are_named() {
    for arguments in [
        ["run", "no-such-guest"].as_slice(),
        &["run", "--policy", "no-such-policy"],
    ] {
        let output = msrgate(arguments);
        assert_eq!(output.status.code(), Some(2));
        let text = stderr(&output);
        assert!(text.starts_with("error: cannot read "), "{text}");
        assert!(text.contains("no-such-"), "{text}");
    }
}

#[test]
fn mistakes_in_a_policy_are_drawn_with_their_fix() {
    let source = "version = 1\n\n[[rule]]\nmsr = \"IA32_SPEC_CTL\"\nraed = \"fault\"\n";
    let policy = file("mistakes.toml", source.as_bytes());
    let mut command = command(&["run", "--policy", "mistakes.toml"]);
    command.current_dir(policy.parent().expect("a folder"));
    let output = command.output().expect("msrgate runs");
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stderr(&output), DRAWN);
}

const DRAWN: &str = r#"policy::unknown-msr

  × no MSR is called `IA32_SPEC_CTL`
   ╭─[mistakes.toml:4:7]
 3 │ [[rule]]
 4 │ msr = "IA32_SPEC_CTL"
   ·       ───────┬───────
   ·              ╰── unknown name
 5 │ raed = "fault"
   ╰────
  help: did you mean `IA32_SPEC_CTRL`?

policy::unknown-key

  × unknown key `raed`
   ╭─[mistakes.toml:5:1]
 4 │ msr = "IA32_SPEC_CTL"
 5 │ raed = "fault"
   · ──┬─
   ·   ╰── a rule has no such key
   ╰────
  help: did you mean `read`?

error: the policy mistakes.toml has 2 mistakes
"#;

#[test]
fn smallest_example_prints_its_event() {
    let this = std::env::current_exe().expect("a path");
    let example = this
        .ancestors()
        .nth(2)
        .expect("a folder")
        .join("examples/first");
    if !example.exists() {
        support::say(&format!(
            "SKIP(example): {} is built by a full `cargo test`",
            example.display()
        ));
        return;
    }
    let output = Command::new(example).output().expect("the example runs");
    assert_eq!(
        stdout(&output),
        "vCPU 0: rdmsr 0x8b (IA32_BIOS_SIGN_ID), filter: = 0x42\n"
    );
}

#[test]
fn usage_errors_have_status_2() {
    for arguments in [
        &["rnu"][..],
        &["run", "--backend", "xen"],
        &["run", "--mem", "64X"],
        &["run", "--mem", "1"],
        &["run", "--mem", "4G"],
    ] {
        let output = msrgate(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(
            stderr(&output).starts_with("error: "),
            "{}",
            stderr(&output)
        );
    }
}

#[test]
fn broken_pipe_is_no_error() {
    let mut child = command(&["run", "--backend", "soft"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("msrgate runs");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("a child").code(), Some(0));
}

#[test]
fn policy_that_asks_for_the_hosts_msrs_is_refused_where_they_cannot_be_read() {
    let policy = file(
        "host.toml",
        b"version = 1\n[[rule]]\nmsr = 0x8b\nread = 'host'\n",
    );
    let policy = policy.to_str().expect("UTF-8");
    let output = msrgate(&["run", "--backend", "soft", "--policy", policy]);
    if let Err(error) = std::fs::File::open("/dev/cpu/0/msr") {
        assert_eq!(output.status.code(), Some(2));
        let text = stderr(&output);
        assert!(text.contains("the policy reads the host's MSRs"), "{text}");
        assert!(text.contains(&error.to_string()), "{text}");
    } else {
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(stdout(&output).contains("handled"), "{}", stdout(&output));
    }
}
