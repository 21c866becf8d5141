//! `msrgate`: decide what every MSR access of a virtual machine does.
//!
//! Here are the command line, the exit status and how an error is printed; each verb has a module.
#![forbid(unsafe_code)]

mod backend;
mod check;
mod console;
mod output;
mod policy;
mod report;
mod run;
mod surface;
mod tally;
mod wrap;

use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Decide what every MSR access of a virtual machine does.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 80, after_help = EXIT_STATUS)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_STATUS: &str = "\
Exit status: 0 done; 1 with --strict, the guest did what the policy forbids;
2 a usage or operating error. `wrap`: the program's own.";

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Check(check::Args),
    Wrap(wrap::Args),
    Surface(surface::Args),
}

/// How a verb ended, where nothing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Exit status 0.
    Done,
    /// The guest did what the policy forbids: exit status 1.
    Forbidden,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Wrap(args) => wrap::run(&args),
        Command::Surface(args) => surface::run(&args),
    };
    match result {
        Ok(Status::Done) => ExitCode::SUCCESS,
        Ok(Status::Forbidden) => ExitCode::from(1),
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            anstream::eprintln!("{ERROR}error:{ERROR:#} {error:#}");
            ExitCode::from(2)
        }
    }
}

/// The colour of clap's own "error:".
const ERROR: clap::builder::styling::Style =
    clap::builder::styling::AnsiColor::Red.on_default().bold();

/// Whoever read the output has gone away: nothing is wrong.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}
