//! Whether a guest can tell that it is watched: `msrgate surface`, which tries every MSR, on the real KVM, alone and under
//! `msrgate wrap`. What the host path does otherwise than the guest's own access would show here.

use std::env;
use std::path::{Path, PathBuf};

use msrgate_trace::Observation;

#[path = "support/mod.rs"]
mod support;
#[path = "support/traced.rs"]
#[expect(dead_code, reason = "it is for more tests than this")]
mod traced;

use support::{backends, command, msrgate, stderr, stdout};
use traced::{output, read, text};

const MSRGATE: &str = env!("CARGO_BIN_EXE_msrgate");

/// What a guest sees of every MSR, with its writes, if these words are before the program's; they may be none.
fn surface(name: &str, wrapper: &[&str]) -> PathBuf {
    let path = output(name);
    let surface = ["surface", "--backend", "kvm", "--write", "-o", text(&path)];
    let words = match wrapper {
        [] => surface.to_vec(),
        _ => [wrapper, &["--", MSRGATE], &surface].concat(),
    };
    let test = env::current_exe().expect("a running program has a path");
    let mut command = command(&words);
    command.env(
        "MSRGATE_PRELOAD",
        test.with_file_name("libmsrgate_preload.so"),
    );
    let done = command.output().expect("msrgate runs");
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    path
}

fn assert_same(left: &Path, right: &Path) {
    let diff = msrgate(&["diff", text(left), text(right)]);
    assert_eq!(
        diff.status.code(),
        Some(0),
        "{}{}",
        stdout(&diff),
        stderr(&diff)
    );
}

#[test]
fn guest_that_tries_every_msr_sees_the_same_when_watched() {
    if !backends().contains(&"kvm") {
        return;
    }
    let alone = surface("observation-alone.json", &[]);
    let wrap = ["wrap", "--kvm", "real"];
    let wrapped = surface("observation-off.json", &wrap);
    assert_same(&alone, &wrapped);

    let trace = output("observation.msrtrace");
    let watch = ["--observe", "filter", "--trace", text(&trace)];
    let watched = surface("observation-filter.json", &[&wrap[..], &watch].concat());
    assert_same(&alone, &watched);
    let trace = read(&trace);
    assert_eq!(trace.facts.observation, Some(Observation::Filter));
    // It tries 24,576 MSRs in both directions, and hundreds of them are watched.
    assert!(trace.events.len() > 500, "{}", trace.events.len());
}
