//! `msrgate surface`: what KVM makes of every MSR here, as a table for people or as a document to compare.

mod host;
mod sweep;
mod table;

use std::io::{self, Write};
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};
use msrgate_core::{MsrIndex, msr_names};
use msrgate_machine::{Probe, guest_memory};
use msrgate_policy::{Surface, SurfaceHost, Window};

use crate::Status;
use crate::backend::{self, Backend, Choice, Need, Processor};
use crate::output::write_file;
use sweep::{Prober, Writes, sweep};

/// Try every MSR in a guest of its own, and show what came of it.
///
/// Tried are the windows in which processors and hypervisors have MSRs, and all MSRs that have a name.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Who runs the guest
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    backend: Choice,
    /// Write back what was read, and show what came of that too
    #[arg(long)]
    write: bool,
    /// Try these MSRs instead: names or indices, such as 0x200..=0x20f (may be repeated)
    #[arg(long, value_name = "FIRST..=LAST", value_parser = parse_window)]
    range: Vec<Window>,
    /// Print JSON instead of a table
    #[arg(long, conflicts_with = "output")]
    json: bool,
    /// Write the JSON to a file, for `msrgate diff`
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Status> {
    let (backend, why) = backend::open(
        args.backend,
        Need::Bare,
        Processor::Host,
        &guest_memory(MEMORY_BYTES)?,
    )?;
    let name = backend.name();
    anstream::eprintln!("msrgate: on {name}: {why}");
    let (choice, ignore_msrs) = match backend {
        Backend::Kvm(_) => (Choice::Kvm, msrgate_kvm::ignore_msrs()),
        Backend::Soft(_) => (Choice::Soft, None),
    };
    let windows = match &args.range[..] {
        [] => all_windows(),
        windows => Window::merge(windows.to_vec()),
    };
    let progress = progress(&windows);
    let msrs = sweep(&windows, args.writes(), &progress, || make_probe(choice))?;
    progress.finish_and_clear();
    show(
        args,
        &Surface {
            backend: name.to_owned(),
            host: SurfaceHost {
                ignore_msrs,
                ..host::describe()
            },
            windows,
            msrs,
        },
    )?;
    Ok(Status::Done)
}

/// Enough for the probe's guest.
const MEMORY_BYTES: u64 = 2 << 20;

impl Args {
    fn writes(&self) -> Writes {
        if self.write {
            Writes::SameValue
        } else {
            Writes::No
        }
    }
}

fn show(args: &Args, surface: &Surface) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    if let Some(path) = &args.output {
        write_file(path, surface.to_json().as_bytes())?;
        writeln!(out, "{}", table::summary(surface))?;
    } else if args.json {
        out.write_all(surface.to_json().as_bytes())?;
    } else {
        table::write(&mut anstream::AutoStream::auto(out), surface)?;
    }
    Ok(())
}

fn make_probe(choice: Choice) -> anyhow::Result<Box<dyn Prober>> {
    let memory = guest_memory(MEMORY_BYTES)?;
    let (backend, _) = backend::open(choice, Need::Bare, Processor::Host, &memory)?;
    Ok(match backend {
        Backend::Kvm(vm) => Box::new(Probe::new(vm, &memory)?),
        Backend::Soft(vm) => Box::new(Probe::new(vm, &memory)?),
    })
}

/// Where processors, KVM and Hyper-V have MSRs, and what else has a name.
fn all_windows() -> Vec<Window> {
    const WINDOWS: [(u32, u32); 5] = [
        (0, 0x1fff),
        (0x4000_0000, 0x4000_1fff),
        (0x4b56_4d00, 0x4b56_4dff),
        (0xc000_0000, 0xc000_1fff),
        (0xc001_0000, 0xc001_1fff),
    ];
    let named = msr_names().iter().map(|row| (row.index.0, row.index.0));
    let windows = WINDOWS.into_iter().chain(named);
    let window = |(first, last)| Window {
        first: MsrIndex(first),
        last: MsrIndex(last),
    };
    Window::merge(windows.map(window).collect())
}

/// One MSR, or the first and the last of some.
fn parse_window(text: &str) -> Result<Window, String> {
    let (first, last) = text.split_once("..=").unwrap_or((text, text));
    let index = |part: &str| {
        let part = part.trim();
        part.parse::<MsrIndex>()
            .map_err(|error| format!("{part}: {error}"))
    };
    let window = Window {
        first: index(first)?,
        last: index(last)?,
    };
    if window.first > window.last {
        return Err(format!("{} is after {}", window.first, window.last));
    }
    Ok(window)
}

/// A bar on the standard error, where that is a terminal.
fn progress(windows: &[Window]) -> ProgressBar {
    let count = windows.iter().map(|window| window.count()).sum();
    let style =
        ProgressStyle::with_template("{bar:40} {percent:>3} %, {pos} of {len} MSRs, {eta} left");
    ProgressBar::new(count).with_style(style.expect("the template is well-formed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_is_names_or_indices() {
        let window = |first, last| Window {
            first: MsrIndex(first),
            last: MsrIndex(last),
        };
        assert_eq!(parse_window("0x200..=0x20f"), Ok(window(0x200, 0x20f)));
        assert_eq!(
            parse_window("IA32_STAR ..= fmask"),
            Ok(window(0xc000_0081, 0xc000_0084))
        );
        assert_eq!(parse_window("efer"), Ok(window(0xc000_0080, 0xc000_0080)));
        let error = |text| parse_window(text).expect_err("not a window");
        assert_eq!(error("0x20..=0x10"), "0x20 is after 0x10");
        assert_eq!(
            error("0x10..0x20"),
            "0x10..0x20: not a hexadecimal number of at most 32 bits"
        );
        assert_eq!(
            error("16..=0x20"),
            "16: an MSR index is hexadecimal and begins with 0x"
        );
        assert_eq!(error("0x10..="), ": no MSR has this name");
    }

    #[test]
    fn every_msr_with_a_name_is_tried() {
        let windows = all_windows();
        for row in msr_names() {
            let is_in = |window: &Window| (window.first..=window.last).contains(&row.index);
            assert!(windows.iter().any(is_in), "{}", row.name);
        }
    }
}
