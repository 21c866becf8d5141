//! `cargo xtask fuzz TARGET`: hostile bytes for what reads files, by cargo-fuzz and a nightly compiler.
//!
//! The targets are the files of `fuzz/fuzz_targets`. What they find is replayed by `tests/fuzz.rs`, which needs neither.

use std::fs;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::shell;

/// What the targets begin with, besides what was found before.
const SEEDS: [(&str, &[&str]); 3] = [
    (
        "policy_parse",
        &["testdata/policy/good", "testdata/policy/bad"],
    ),
    ("trace_read", &[]),
    ("import", &["testdata/import"]),
];

#[derive(Args)]
pub(crate) struct Options {
    /// What is fuzzed
    #[arg(value_parser = SEEDS.map(|(target, _)| target))]
    target: String,
    /// For libFuzzer, such as -max_total_time=300
    #[arg(last = true)]
    libfuzzer: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    ensure!(
        shell::find_program("cargo-fuzz").is_some(),
        "fuzzing needs cargo-fuzz: cargo install cargo-fuzz"
    );
    ensure!(
        has_nightly(),
        "fuzzing needs a nightly compiler: rustup toolchain install nightly"
    );
    let target = options.target.as_str();
    let corpus = format!("fuzz/corpus/{target}");
    fs::create_dir_all(shell::root().join(&corpus)).context("cannot make the corpus's folder")?;
    let seeds = SEEDS.iter().find(|(name, _)| *name == target);
    let (_, seeds) = seeds.context("the target has its seeds")?;
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(shell::root())
        .args(["+nightly", "fuzz", "run", target, &corpus])
        .arg(format!("fuzz/regressions/{target}"))
        .args(*seeds)
        .arg("--");
    let dictionary = format!("fuzz/{target}.dict");
    if shell::root().join(&dictionary).is_file() {
        cargo.arg(format!("-dict={dictionary}"));
    }
    shell::run(cargo.args(&options.libfuzzer))?;
    Ok(ExitCode::SUCCESS)
}

fn has_nightly() -> bool {
    Command::new("rustc")
        .args(["+nightly", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
