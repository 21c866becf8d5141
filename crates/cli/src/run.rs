//! `msrgate run`: boot a guest and show what became of its MSR accesses.

use std::path::PathBuf;

use anyhow::bail;

use crate::Status;

/// Boot a guest, and show what became of its MSR accesses.
///
/// Without GUEST it is the built-in tour: a small 64-bit guest that shows an access being allowed, denied,
/// answered and refused, and what it saw each time.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The guest: an ELF64 executable, or a flat binary (16-bit, started at 0000:7c00).
    guest: Option<PathBuf>,
}

pub(crate) fn run(_args: &Args) -> anyhow::Result<Status> {
    bail!("no backend is built in");
}
