//! A surface as a table of at most 80 columns.

use std::fmt::Write as _;
use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use msrgate_policy::{Surface, SurfaceMsr, Tried};

const BOLD: Style = Style::new().bold();
/// Columns of a name: with index, a value and what came of the write there are 80.
const NAME_WIDTH: usize = 39;

/// The table, why some MSRs were not written, and how many there are.
pub(super) fn write(out: &mut dyn Write, surface: &Surface) -> io::Result<()> {
    let runs: Vec<&[SurfaceMsr]> = surface.msrs.chunk_by(are_alike).collect();
    let names: Vec<String> = runs.iter().map(|run| name(run)).collect();
    let width = names.iter().map(String::len).max().unwrap_or(0);
    let width = width.max("MSR".len());
    let has_writes = surface.msrs.iter().any(|msr| msr.write.is_some());
    let titles = if has_writes {
        "READ                WRITE"
    } else {
        "READ"
    };
    if !runs.is_empty() {
        writeln!(
            out,
            "{BOLD}{:width$}  {:<10}  {titles}{BOLD:#}",
            "MSR", "INDEX"
        )?;
    }
    for (run, name) in runs.iter().zip(&names) {
        let msr = &run[0];
        let style = style(msr.read);
        write!(out, "{name:width$}  {:<10}  ", msr.index.to_string())?;
        if has_writes {
            let write = msr.write.map_or("-", Tried::word);
            writeln!(out, "{style}{:<18}{style:#}  {write}", read(msr))?;
        } else {
            writeln!(out, "{style}{}{style:#}", read(msr))?;
        }
    }
    if !runs.is_empty() {
        writeln!(out)?;
    }
    for msr in &surface.msrs {
        if let Some(why) = &msr.not_written {
            writeln!(out, "{} is not written: it {why}.", msr.index)?;
        }
    }
    writeln!(out, "{}", summary(surface))
}

/// How many MSRs there are of each kind.
pub(super) fn summary(surface: &Surface) -> String {
    let tried: u64 = surface.windows.iter().map(|window| window.count()).sum();
    let unknown = tried.saturating_sub(surface.msrs.len() as u64);
    let msrs = if tried == 1 { "MSR" } else { "MSRs" };
    let mut text = format!("{tried} {msrs} tried on {}: ", surface.backend);
    for (kind, word) in [
        (Tried::Done, "read"),
        (Tried::Invalid, "invalid"),
        (Tried::Gp, "#GP"),
        (Tried::Failed, "failed"),
    ] {
        let count = surface.msrs.iter().filter(|msr| msr.read == kind).count();
        if count != 0 {
            let _ = write!(text, "{count} {word}, ");
        }
    }
    text + &format!("{unknown} unknown.")
}

/// Whether two MSRs are neighbours of which the same is to be told.
fn are_alike(one: &SurfaceMsr, next: &SurfaceMsr) -> bool {
    one.index.0.checked_add(1) == Some(next.index.0)
        && (one.read, one.value, one.volatile) == (next.read, next.value, next.volatile)
        && (one.write, &one.not_written) == (next.write, &next.not_written)
}

fn name(run: &[SurfaceMsr]) -> String {
    let name = run[0].index.name();
    match (run.len(), name) {
        (1, name) => name.unwrap_or("-").to_owned(),
        (count, Some(name)) if format!("{count} from {name}").len() <= NAME_WIDTH => {
            format!("{count} from {name}")
        }
        (count, _) => format!("{count} MSRs"),
    }
}

fn read(msr: &SurfaceMsr) -> String {
    match msr.value {
        Some(_) if msr.volatile => "varies".to_owned(),
        Some(value) => format!("{value:#x}"),
        None if msr.read == Tried::Gp => "#GP".to_owned(),
        None => msr.read.word().to_owned(),
    }
}

const fn style(read: Tried) -> Style {
    let colour = match read {
        Tried::Done => AnsiColor::Green,
        Tried::Failed => AnsiColor::Red,
        _ => AnsiColor::Yellow,
    };
    colour.on_default()
}
