//! What CI runs, as a list that can be read; every step runs even if an earlier one failed.

use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::Args;

use crate::shell;

#[derive(Args)]
pub(crate) struct Options {
    /// Leaves a step out (by name); may be repeated
    #[arg(long, value_name = "STEP")]
    skip: Vec<String>,
}

/// A name and the words of a cargo command.
struct Step {
    name: &'static str,
    cargo: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
}

const STEPS: &[Step] = &[
    Step {
        name: "format",
        cargo: &["fmt", "--all", "--check"],
        environment: &[],
    },
    Step {
        name: "lint",
        cargo: &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ],
        environment: &[],
    },
    Step {
        name: "no-std",
        cargo: &["build", "-p", "msrgate-core", "--no-default-features"],
        environment: &[],
    },
    Step {
        name: "docs",
        cargo: &["doc", "--workspace", "--no-deps"],
        environment: &[("RUSTDOCFLAGS", "-D warnings")],
    },
    Step {
        name: "abi",
        cargo: &["xtask", "abi"],
        environment: &[],
    },
    Step {
        name: "test",
        cargo: &["test", "--workspace"],
        environment: &[],
    },
    Step {
        name: "loom",
        cargo: &["test", "--release", "-p", "msrgate-core", "--test", "loom"],
        environment: &[
            ("RUSTFLAGS", "--cfg loom"),
            // Other flags would throw away what the other steps have built.
            ("CARGO_TARGET_DIR", "target/loom"),
            ("CARGO_PROFILE_RELEASE_LTO", "off"),
            ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
        ],
    },
    Step {
        name: "deny",
        // Not the advisories: their list comes from the network, and no change of ours makes them.
        cargo: &["deny", "check", "bans", "licenses", "sources"],
        environment: &[],
    },
    Step {
        name: "selftest",
        cargo: &["xtask", "selftest"],
        environment: &[],
    },
    Step {
        name: "boot",
        cargo: &["xtask", "boot"],
        environment: &[],
    },
    Step {
        name: "package",
        cargo: &["xtask", "deb", "--try"],
        environment: &[],
    },
    Step {
        name: "lab",
        cargo: &["xtask", "lab", "--if-installed"],
        environment: &[],
    },
];

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if let Some(unknown) = options
        .skip
        .iter()
        .find(|name| STEPS.iter().all(|step| step.name != name.as_str()))
    {
        let names: Vec<_> = STEPS.iter().map(|step| step.name).collect();
        anyhow::bail!(
            "no step is named {unknown}; the steps are {}",
            names.join(", ")
        );
    }
    let mut failed = Vec::new();
    let mut passed = 0;
    for step in STEPS {
        if options.skip.iter().any(|name| name == step.name) {
            continue;
        }
        println!("== {}", step.name);
        if step.cargo.starts_with(&["deny"]) && shell::find_program("cargo-deny").is_none() {
            println!("SKIP(deny): no cargo-deny here; cargo install cargo-deny");
            continue;
        }
        match shell::run(&mut command(step)) {
            Ok(()) => passed += 1,
            Err(error) => {
                println!("{}: {error:#}", step.name);
                failed.push(step.name);
            }
        }
    }
    if !failed.is_empty() {
        println!("failed steps: {}", failed.join(", "));
    }
    println!("ci: {passed} passed, {} failed", failed.len());
    Ok(if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn command(step: &Step) -> Command {
    let mut cargo = shell::cargo();
    cargo
        .args(step.cargo)
        .envs(step.environment.iter().copied());
    cargo
}
