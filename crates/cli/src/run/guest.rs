//! The guest's files, read before anything starts.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail};
use msrgate_machine::{Boot, Guest, tour};

use super::Args;
use crate::backend::Need;

/// No kernel is so long; a device file has no end.
const GUEST_LIMIT_BYTES: u64 = 1 << 30;
/// Guest memory has an end before this.
const INITRD_LIMIT_BYTES: u64 = 4 << 30;

/// The guest, and what it needs of a backend.
pub(super) fn read(args: &Args) -> anyhow::Result<(Guest, Need)> {
    let Some(path) = &args.guest else {
        return Ok((tour::guest(), Need::Bare));
    };
    let file = read_file(path, GUEST_LIMIT_BYTES)?;
    let guest = Guest::parse(&file).with_context(|| format!("cannot boot {}", path.display()))?;
    if !guest.is_linux() {
        let options = [
            ("--cpus", args.cpus != 1),
            ("--initrd", args.initrd.is_some()),
            ("--append", args.append.is_some()),
        ];
        if let Some((option, _)) = options.into_iter().find(|(_, is_given)| *is_given) {
            bail!(
                "{option} is for Linux, and {} is no Linux kernel",
                path.display()
            );
        }
        return Ok((guest, Need::Bare));
    }
    let mut boot = Boot {
        cpus: args.cpus,
        ..Boot::default()
    };
    if let Some(line) = &args.append {
        boot.command_line.clone_from(line);
    }
    if let Some(path) = &args.initrd {
        boot.initrd = Some(read_file(path, INITRD_LIMIT_BYTES)?);
    }
    Ok((guest.with_boot(boot), Need::Linux))
}

/// How much memory it gets.
pub(super) fn memory_bytes(args: &Args, need: Need) -> u64 {
    args.mem.unwrap_or(match need {
        Need::Bare => 64 << 20,
        Need::Linux => 512 << 20,
    })
}

fn read_file(path: &Path, limit: u64) -> anyhow::Result<Vec<u8>> {
    let cannot = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(cannot)?;
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .with_context(cannot)?;
    if bytes.len() as u64 > limit {
        bail!("{} is longer than {limit:#x} bytes", path.display());
    }
    Ok(bytes)
}
