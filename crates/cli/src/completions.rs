//! `msrgate completions`: what a shell needs to complete the program's command lines.

use std::io::{self, Write};

use clap_complete::Shell;

use crate::{Status, shown_command};

/// Print a script with which a shell completes msrgate's command lines.
///
/// For bash: `msrgate completions bash > ~/.local/share/bash-completion/completions/msrgate`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which shell
    shell: Shell,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Status> {
    // The generator panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut shown_command(), "msrgate", &mut script);
    io::stdout().lock().write_all(&script)?;
    Ok(Status::Done)
}
