//! `msrgate`: decide what every MSR access of a virtual machine does.
//!
//! Here are the command line, the exit status and how an error is printed; each verb has a module.
#![forbid(unsafe_code)]

mod backend;
mod check;
mod collect;
mod completions;
mod console;
mod diff;
mod explain;
mod export;
mod host;
mod import;
mod learn;
mod log;
mod man;
mod observe;
mod output;
mod page;
mod policy;
mod pump;
mod qemu;
mod report;
mod run;
mod schema;
mod seen;
mod surface;
mod tally;
mod terminal;
mod top;
mod trace;
mod view;
mod wrap;

use std::fmt::Display;
use std::io;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::{CommandFactory, Parser, Subcommand};

/// Decide what every MSR access of a virtual machine does.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 80, after_help = EXIT_STATUS)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_STATUS: &str = "\
Exit status: 0 done; 1 with --strict, the guest did what the policy forbids, or
its kernel panicked, or what was compared differs; 2 a usage or operating error.
`wrap`, `top`: the program's own.";

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Check(check::Args),
    Explain(explain::Args),
    Wrap(wrap::Args),
    Top(top::Args),
    Learn(learn::Args),
    Export(export::Args),
    Report(page::Args),
    Surface(surface::Args),
    Diff(diff::Args),
    Import(import::Args),
    Schema(schema::Args),
    Completions(completions::Args),
    Man(man::Args),
    #[command(hide = true)]
    Collect(collect::Args),
}

/// How a verb ended, where nothing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Exit status 0.
    Done,
    /// The guest did what the policy forbids: exit status 1.
    Forbidden,
    /// What was compared differs: exit status 1.
    Different,
    /// The guest's kernel panicked: exit status 1.
    Panicked,
    /// Somebody else's program ended with this exit status.
    Program(u8),
}

fn main() -> ExitCode {
    if qemu::is_meant() {
        return exit(qemu::run());
    }
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Wrap(args) => wrap::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Learn(args) => learn::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Report(args) => page::run(&args),
        Command::Surface(args) => surface::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Schema(args) => schema::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
        Command::Collect(args) => collect::run(&args),
    };
    exit(result)
}

fn exit(result: anyhow::Result<Status>) -> ExitCode {
    match result {
        Ok(Status::Done) => ExitCode::SUCCESS,
        Ok(Status::Forbidden | Status::Different | Status::Panicked) => ExitCode::from(1),
        Ok(Status::Program(status)) => ExitCode::from(status),
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            anstream::eprintln!("{ERROR}error:{ERROR:#} {error:#}");
            ExitCode::from(2)
        }
    }
}

/// The command line without what only the program itself uses.
pub(crate) fn shown_command() -> clap::Command {
    let whole = Cli::command();
    let verbs = whole.get_subcommands().filter(|verb| !verb.is_hide_set());
    let verbs: Vec<clap::Command> = verbs.cloned().collect();
    clap::Command::new("msrgate")
        .version(env!("CARGO_PKG_VERSION"))
        .about(env!("CARGO_PKG_DESCRIPTION"))
        .after_help(EXIT_STATUS)
        .subcommand_required(true)
        .subcommands(verbs)
}

/// The colour of clap's own "error:".
const ERROR: Style = AnsiColor::Red.on_default().bold();

/// Something that whoever uses the result ought to know.
pub(crate) fn warn(message: impl Display) {
    const WARNING: Style = AnsiColor::Yellow.on_default().bold();
    anstream::eprintln!("{WARNING}warning:{WARNING:#} {message}");
}

/// Whoever read the output has gone away: nothing is wrong.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}
