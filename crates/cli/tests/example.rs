//! The examples as programs: what they print on /dev/kvm, and on the embedded KVM under `msrgate wrap`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "the guests here are the examples' own")]
mod support;

use support::{backends, command, file, stderr, stdout};

/// The high half of IA32_BIOS_SIGN_ID, as OUT of EAX gives it away, and the event.
const UCODE_REVISION: &str = "\
the guest has seen [65, 00, 00, 01]
vCPU 0: rdmsr 0x8b (IA32_BIOS_SIGN_ID), filter: = 0x100006500000000
";

/// A file that cargo builds for this test, below the folder of its profile.
fn built(name: &str) -> PathBuf {
    let test = env::current_exe().expect("a running program has a path");
    let folder = test.ancestors().nth(2).expect("target/PROFILE/deps/TEST");
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is not there: `cargo test` without --test makes it",
        path.display()
    );
    path
}

/// An example's run on the backend.
fn example(name: &str, argument: &Path, backend: &str) -> Output {
    let program = built("examples").join(name);
    let mut command = if backend == "soft" {
        let mut wrap = command(&["wrap", "--kvm", "soft", "--"]);
        wrap.env("MSRGATE_PRELOAD", built("deps/libmsrgate_preload.so"))
            .arg(program);
        wrap
    } else {
        Command::new(program)
    };
    command.arg(argument).output().expect("the example runs")
}

fn policy(name: &str) -> PathBuf {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/policies");
    Path::new(folder).join(name)
}

#[test]
fn minimal_vmm_puts_a_policy_into_force_on_every_backend() {
    for backend in backends() {
        let output = example("minimal_vmm", &policy("ucode-revision.toml"), backend);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert_eq!(stdout(&output), UCODE_REVISION, "on {backend}");
    }
}

#[test]
fn minimal_vmm_reads_kvms_own_value_where_bits_are_replaced() {
    let bits = format!("0b{}{}", "1".repeat(32), "x".repeat(32));
    let text = format!("version = 1\n[[rule]]\nmsr = 0x8b\nread = {{ mask = '{bits}' }}\n");
    let policy = file("minimal-vmm-mask.toml", text.as_bytes());
    for backend in backends() {
        let output = example("minimal_vmm", &policy, backend);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let text = stdout(&output);
        assert!(text.contains("[ff, ff, ff, ff]"), "{backend}: {text}");
        assert!(text.contains(": = 0xffffffff"), "{backend}: {text}");
    }
}

#[test]
fn minimal_vmm_says_what_is_wrong_with_a_policy() {
    let policy = file("minimal-vmm-bad.toml", b"version = 2\n");
    let output = example("minimal_vmm", &policy, "soft");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("version"), "{}", stderr(&output));
}
