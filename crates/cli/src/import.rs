//! `msrgate import`: a policy from what somebody has written for another program.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::ValueEnum;
use msrgate_policy::{ImportError, import};

use crate::output::write_file;
use crate::policy::{draw, read};
use crate::{Status, warn};

/// Make a policy of what was written for another program.
///
/// What a policy cannot say is told here and in the policy's comments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Whose it is
    #[arg(value_enum)]
    peer: Peer,
    /// The file to read; `-`: the standard input
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// Write the policy to a file, in place of what is there
    #[arg(short, long, value_name = "POLICY")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Peer {
    /// Command lines with --userspace-msr
    Crosvm,
    /// A custom CPU template (JSON)
    Firecracker,
    /// An allowlist
    MsrSafe,
    /// A domain (XML)
    Libvirt,
    /// VBoxManage setextradata commands, getextradata's list, or a .vbox file
    Virtualbox,
}

impl From<Peer> for msrgate_policy::Peer {
    fn from(peer: Peer) -> Self {
        match peer {
            Peer::Crosvm => Self::Crosvm,
            Peer::Firecracker => Self::Firecracker,
            Peer::MsrSafe => Self::MsrSafe,
            Peer::Libvirt => Self::Libvirt,
            Peer::Virtualbox => Self::VirtualBox,
        }
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Status> {
    let (name, text) = if args.input == Path::new("-") {
        ("the standard input".to_owned(), read(io::stdin().lock()))
    } else {
        let text = File::open(&args.input).and_then(read);
        (args.input.display().to_string(), text)
    };
    let text = text.with_context(|| format!("cannot read {name}"))?;
    let imported = import(args.peer.into(), &text)
        .inspect_err(|error| {
            if let ImportError::Refused {
                sources,
                diagnostics,
                ..
            } = error
            {
                draw(sources, diagnostics);
            }
        })
        .with_context(|| format!("cannot import {name}"))?;
    for note in &imported.inexpressible {
        warn(format_args!("not expressed: {note}"));
    }
    match &args.output {
        Some(path) => write_file(path, imported.policy.as_bytes())?,
        None => io::stdout().write_all(imported.policy.as_bytes())?,
    }
    match imported.inexpressible.len() {
        0 => {}
        1 => warn("1 thing is not expressed: see the policy's comments"),
        count => warn(format_args!(
            "{count} things are not expressed: see the policy's comments"
        )),
    }
    Ok(Status::Done)
}
