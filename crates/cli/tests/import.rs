//! `msrgate import` from outside: what it prints where, and what it refuses.

use std::fs;
use std::io::Write;
use std::process::Stdio;

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "no guest is run here")]
mod support;

use support::{command, file, msrgate, stderr, stdout};

fn example(name: &str) -> String {
    format!("{}/../../{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn what_is_not_expressed_is_warned_of() {
    let list = file("import-x2apic.txt", b"0x00000802 0x0000000000000000\n");
    let output = msrgate(&["import", "msr-safe", list.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let warnings: Vec<&str> = stderr(&output).lines().collect();
    assert_eq!(
        warnings,
        [
            "warning: not expressed: line 1: 0x00000802 0x0000000000000000: KVM never filters the \
             x2APIC's MSRs, it answers them itself",
            "warning: 1 thing is not expressed: see the policy's comments",
        ]
    );
}

#[test]
fn each_peer_is_read_and_its_policy_passes_check() {
    for (peer, name) in [
        ("crosvm", "testdata/import/crosvm/command-line.txt"),
        ("firecracker", "testdata/import/firecracker/template.json"),
        ("msr-safe", "testdata/import/msr-safe/allowlist.txt"),
        ("libvirt", "testdata/import/libvirt/ignore.xml"),
        ("virtualbox", "testdata/import/virtualbox/machine.vbox"),
    ] {
        let policy = file(&format!("import-{peer}.toml"), b"in the way");
        let policy = policy.to_str().expect("UTF-8");
        let output = msrgate(&["import", peer, &example(name), "-o", policy]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert_eq!(stdout(&output), "");
        let output = msrgate(&["check", policy]);
        assert_eq!(output.status.code(), Some(0), "{peer}: {}", stderr(&output));
    }
}

#[test]
fn standard_input_is_read_for_a_dash() {
    let mut child = command(&["import", "libvirt", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("msrgate runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin
        .write_all(b"<msrs unknown='ignore'/>")
        .expect("it is read");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout(&output).contains("unknown = \"ignore\""));
    assert_eq!(stderr(&output), "");
}

#[test]
fn text_that_is_no_policy_leaves_the_file_alone() {
    let policy = file("import-kept.toml", b"version = 1\n");
    let text = file("import-bad.txt", b"0x10\n");
    let output = command(&["import", "msr-safe"])
        .arg(&text)
        .arg("-o")
        .arg(&policy)
        .output()
        .expect("msrgate runs");
    assert_eq!(output.status.code(), Some(2));
    let expected = format!(
        "error: cannot import {}: line 1: 0x10 has no write mask\n",
        text.display()
    );
    assert_eq!(stderr(&output), expected);
    assert_eq!(fs::read(&policy).expect("it is there"), b"version = 1\n");
}

#[test]
fn what_cannot_be_read_is_named() {
    let binary = file("import-binary.txt", b"0x10 0\xff\n");
    let binary = binary.to_str().expect("UTF-8");
    for (path, why) in [
        ("no-such-file", "No such file"),
        ("/", "directory"),
        (binary, "not a text"),
        ("/dev/zero", "16 MiB"),
    ] {
        let output = msrgate(&["import", "msr-safe", path]);
        assert_eq!(output.status.code(), Some(2), "{path}");
        let text = stderr(&output);
        assert!(text.contains(&format!("cannot read {path}: ")), "{text}");
        assert!(text.contains(why), "{text}");
    }
}

#[test]
fn list_that_is_too_far_apart_is_drawn() {
    let list: String = (0..17u32).map(|n| format!("{:#x} 1\n", n << 20)).collect();
    let list = file("import-far.txt", list.as_bytes());
    let output = command(&["import", "msr-safe"]).arg(list).output();
    let output = output.expect("msrgate runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("needs 17 filter ranges"),
        "{}",
        stderr(&output)
    );
}
