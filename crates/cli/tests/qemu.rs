//! `msrgate-qemu` from outside, with the arguments that libvirt 9.0 makes of `testdata/libvirt/domain.xml`, and with
//! those by which it asks what a QEMU can do. The QEMU is a script that tells what it got.

use std::env;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "it is for more tests than these")]
mod support;

use support::{backends, stderr, stdout};

/// `virsh domxml-to-native qemu-argv`.
const DOMAIN: &str = include_str!("../../../testdata/libvirt/domain.args");
/// The first of the two QEMUs that libvirt asks.
const PROBE: &str = include_str!("../../../testdata/libvirt/probe.args");
const UUID: &str = "2c8a4b6e-5d1f-4c3a-9e77-0123456789ab";

const GOOD: &str = "version = 1\n[defaults]\nunknown = \"ignore\"\n";
const BAD: &str = "version = 1\nno = \"such key\"\n";

fn words(line: &str) -> Vec<String> {
    shlex::split(line).expect("as a shell reads it")
}

/// The folder of policies, with these files.
fn folder(name: &str, files: &[(&str, &str)]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).expect("the test's folder can be written");
    for (name, text) in files {
        fs::write(folder.join(name), text).expect("it is ours");
    }
    folder
}

/// Runs it with the script for QEMU. What the script prints is in lines: each argument, then what else it got.
fn msrgate_qemu(folder: &Path, arguments: &[String]) -> Output {
    let script = "#!/bin/sh\nprintf '%s\\n' \"$@\" \"kvm=$MSRGATE_KVM channel=$MSRGATE_CHANNEL\"\n";
    let qemu = folder.join("stand-in");
    fs::write(&qemu, script).expect("the folder is ours");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&qemu, executable).expect("it is ours");
    let test = env::current_exe().expect("a running program has a path");
    let mut command = Command::new(env!("CARGO_BIN_EXE_msrgate"));
    command
        .arg0("/usr/local/bin/msrgate-qemu")
        .args(arguments)
        .env("NO_COLOR", "1")
        .env("MSRGATE_QEMU", qemu)
        .env("MSRGATE_QEMU_POLICIES", folder)
        .env(
            "MSRGATE_PRELOAD",
            test.with_file_name("libmsrgate_preload.so"),
        );
    command.output().expect("msrgate runs")
}

/// What the script prints.
fn printed(arguments: &[String], kvm: &str, channel: &str) -> String {
    let last = format!("kvm={kvm} channel={channel}");
    let lines = arguments.iter().map(String::as_str).chain([last.as_str()]);
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn qemu_that_libvirt_asks_is_left_alone() {
    let folder = folder("qemu-probe", &[("default.toml", BAD)]);
    let tcg = DOMAIN.replace("-accel kvm", "-accel tcg");
    for line in [PROBE, &tcg, "--version"] {
        let arguments = words(line);
        let output = msrgate_qemu(&folder, &arguments);
        assert_eq!(stdout(&output), printed(&arguments, "", ""));
        assert_eq!(stderr(&output), "");
    }
}

#[test]
fn domain_runs_under_the_policy_of_its_name_or_uuid_or_of_all() {
    if !backends().contains(&"kvm") {
        return;
    }
    let arguments = words(DOMAIN);
    let uuid = format!("{UUID}.toml");
    for files in [
        &[("web.toml", GOOD), (&uuid, BAD), ("default.toml", BAD)][..],
        &[(uuid.as_str(), GOOD), ("default.toml", BAD)],
        &[("other.toml", BAD), ("default.toml", GOOD)],
    ] {
        let output = msrgate_qemu(&folder("qemu-found", files), &arguments);
        assert_eq!(
            stdout(&output),
            printed(&arguments, "real", "300"),
            "{}",
            stderr(&output)
        );
        assert_eq!(output.status.code(), Some(0));
    }
}

#[test]
fn options_beside_the_policy_say_what_is_seen() {
    if !backends().contains(&"kvm") {
        return;
    }
    let trace = Path::new(env!("CARGO_TARGET_TMPDIR")).join("qemu-web.trace");
    let options = trace.display().to_string().replace("web", "{name}");
    let folder = folder(
        "qemu-options",
        &[("default.options", &format!("--trace {options}"))],
    );
    let _ = fs::remove_file(&trace);
    let output = msrgate_qemu(&folder, &words(DOMAIN));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let trace = msrgate_trace::Reader::new(fs::File::open(trace).expect("a trace")).expect("whole");
    assert_eq!(trace.header().facts.guest, "web");
}

#[test]
fn mistake_keeps_the_domain_from_starting() {
    if !backends().contains(&"kvm") {
        return;
    }
    for (files, why) in [
        (&[("web.toml", BAD)][..], "web.toml has 1 mistake"),
        (
            &[("web.options", "--no-such")],
            "unexpected argument '--no-such'",
        ),
        (
            &[("web.options", "--policy 'x")],
            "a quotation mark has no other",
        ),
    ] {
        let output = msrgate_qemu(&folder("qemu-mistake", files), &words(DOMAIN));
        assert_eq!(
            (output.status.code(), stdout(&output)),
            (Some(2), ""),
            "{why}"
        );
        assert!(stderr(&output).contains(why), "{}", stderr(&output));
    }
}

#[test]
fn domain_without_a_policy_runs_as_it_is_and_says_so() {
    let arguments = words(DOMAIN);
    let output = msrgate_qemu(&folder("qemu-none", &[]), &arguments);
    assert_eq!(stdout(&output), printed(&arguments, "", ""));
    assert!(stderr(&output).contains("is for the VM web: QEMU runs as it is"));
}
