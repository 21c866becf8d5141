//! A C program that knows nothing of us (`client.c`), with the library loaded into it, and on the real KVM.
//!
//! The client is compiled when the test runs; `SKIP(cc)` where there is no compiler. Its expectations are
//! facts about KVM: each chapter also runs on /dev/kvm where that opens.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use support::{library, real_kvm_opens};

#[test]
fn system_descriptor_answers_as_kvm() {
    both("system");
}

#[test]
fn vm_descriptor_answers_as_kvm() {
    both("vm");
}

#[test]
fn guest_runs_to_port_exits_and_halts() {
    both("vcpu");
}

#[test]
fn unknown_msr_reaches_the_client() {
    both("msr");
}

#[test]
fn duplicates_lead_to_the_same_and_closed_numbers_to_nothing() {
    both("descriptors");
}

#[test]
fn child_after_fork_has_its_own_vms_only() {
    both("fork");
}

#[test]
fn events_raise_lines_and_are_signalled_by_writes() {
    both("events");
}

#[test]
fn threads_make_run_and_close_vms_at_the_same_time() {
    both("threads");
}

#[test]
fn closing_a_running_vcpu_lets_it_finish() {
    both("close");
}

#[test]
fn handled_signal_ends_a_run() {
    both("signal");
}

#[test]
fn any_request_with_any_pointer_is_answered() {
    soft("hostile");
}

#[test]
fn module_parameters_are_those_of_the_embedded_kvm() {
    soft("files");
}

#[test]
fn library_without_its_variable_changes_nothing() {
    let Some(client) = client() else { return };
    if !real_kvm_opens() {
        return;
    }
    let mut command = Command::new(client);
    command
        .arg("vm")
        .env("LD_PRELOAD", library())
        .env_remove("MSRGATE_KVM");
    judge("vm, inert", &output(&mut command));
}

/// One chapter on the embedded KVM, and on the real one where there is one.
fn both(chapter: &str) {
    soft(chapter);
    let Some(client) = client() else { return };
    if real_kvm_opens() {
        judge(
            &format!("{chapter} on kvm"),
            &output(Command::new(client).arg(chapter)),
        );
    }
}

fn soft(chapter: &str) {
    let Some(client) = client() else { return };
    let mut command = Command::new(client);
    command
        .arg(chapter)
        .env("LD_PRELOAD", library())
        .env("MSRGATE_KVM", "soft");
    judge(&format!("{chapter} on soft"), &output(&mut command));
}

fn output(command: &mut Command) -> Output {
    command.output().expect("the client can be started")
}

/// Every check that the client made has held, and it made all of them.
fn judge(what: &str, output: &Output) {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let wrong: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("not ok"))
        .collect();
    assert!(
        output.status.success() && wrong.is_empty(),
        "{what}: {}\n{}\n{errors}",
        output.status,
        wrong.join("\n")
    );
    let checks = text.lines().filter(|line| line.starts_with("ok ")).count();
    assert!(
        text.lines().any(|line| line == format!("1..{checks}")),
        "{what} ended early:\n{text}"
    );
}

/// The compiled client.
fn client() -> Option<&'static Path> {
    static CLIENT: OnceLock<Option<PathBuf>> = OnceLock::new();
    CLIENT.get_or_init(|| support::compile("client")).as_deref()
}
