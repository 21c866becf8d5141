//! `cargo xtask VERB`: the chores of this workspace, one verb for each.
//!
//! The verbs run the same commands that a person would type, and print them; what a product needs at run
//! time does not belong here.
#![forbid(unsafe_code)]

mod abi;
mod boot;
mod ci;
mod fuzz;
mod lab;
mod package;
mod picture;
mod selftest;
mod shell;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "The chores of this workspace", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Compares the structures of kvm-bindings with the machine's <linux/kvm.h>
    Abi,
    /// Boots Debian's kernels on the embedded KVM, and looks at what they touch
    Boot(boot::Options),
    /// Everything that CI runs, in CI's order; stops at nothing and counts what failed
    Ci(ci::Options),
    /// Builds the Debian package
    Deb(package::Options),
    /// Tries a reader of files with bytes that are made up, until it fails or is ended
    Fuzz(fuzz::Options),
    /// Runs the tests on a real kvm-amd or kvm-intel in an emulator; needs no /dev/kvm
    Lab(lab::Options),
    /// Makes the README's pictures of a real boot, with Chromium
    Picture,
    /// Builds the KVM selftests of Linux 6.12 and runs them on the real and on the embedded KVM
    Selftest(selftest::Options),
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().verb {
        Verb::Abi => abi::run(),
        Verb::Boot(options) => boot::run(&options),
        Verb::Ci(options) => ci::run(&options),
        Verb::Deb(options) => package::run(&options),
        Verb::Fuzz(options) => fuzz::run(&options),
        Verb::Lab(options) => lab::run(&options),
        Verb::Picture => picture::run(),
        Verb::Selftest(options) => selftest::run(&options),
    }
}
