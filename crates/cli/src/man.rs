//! `msrgate man`: the manual pages, made of what the command line says of itself.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::Command;
use clap_mangen::Man;

use crate::output::write_file;
use crate::{Status, shown_command};

/// Print the manual page, or write those of all verbs into a folder.
///
/// `msrgate man ~/.local/share/man/man1` is where `man msrgate` looks.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Write msrgate.1, msrgate-run.1 and so on into this folder, which is made if it is not there
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Status> {
    let mut command = shown_command().disable_help_subcommand(true);
    command.build();
    let Some(folder) = &args.folder else {
        io::stdout().lock().write_all(&page(&command)?.1)?;
        return Ok(Status::Done);
    };
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for verb in [&command].into_iter().chain(command.get_subcommands()) {
        let (name, page) = page(verb)?;
        write_file(&folder.join(name), &page)?;
    }
    Ok(Status::Done)
}

/// The name of a page's file, and the page.
fn page(command: &Command) -> io::Result<(String, Vec<u8>)> {
    let man = Man::new(command.clone())
        .source(concat!("msrgate ", env!("CARGO_PKG_VERSION")))
        .manual("msrgate");
    let mut page = Vec::new();
    man.render(&mut page)?;
    Ok((man.get_filename(), page))
}
