//! `msrgate export`: a trace in the form that another program reads.

mod perfetto;

use std::io::{self, BufWriter, Read, Write};
use std::path::PathBuf;

use anyhow::Context;
use msrgate_core::Timed;
use msrgate_trace::Reader;
use serde::Serialize;

use self::perfetto::Perfetto;
use crate::Status;
use crate::observe::{open_trace, warn_of_gaps};
use crate::output::write_file_with;

/// Turn a trace into JSON Lines, CSV, or a timeline for Perfetto.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A trace, as `msrgate run --trace` writes it; `-` for the standard input
    trace: PathBuf,
    /// What it is turned into
    #[arg(long, value_enum)]
    format: Format,
    /// Write to a file, in place of what is there
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// A JSON object on each line
    Jsonl,
    /// Comma-separated values, behind a line with their names
    Csv,
    /// JSON for ui.perfetto.dev and chrome://tracing: a track for each vCPU
    Perfetto,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Status> {
    let (name, input) = open_trace(&args.trace)?;
    let mut reader = Reader::new(input).with_context(|| name.clone())?;
    match &args.output {
        Some(path) => write_file_with(path, |out| export(&mut reader, args.format, out))?,
        None => export(&mut reader, args.format, io::stdout().lock())?,
    }
    warn_of_gaps(&name, reader.summary());
    Ok(Status::Done)
}

/// Writes one event after another; nothing is kept.
fn export(reader: &mut Reader<impl Read>, format: Format, out: impl Write) -> anyhow::Result<()> {
    let mut out = BufWriter::new(out);
    match format {
        Format::Jsonl => {
            for timed in reader {
                serde_json::to_writer(&mut out, &Row::of(&timed?)).map_err(io::Error::from)?;
                out.write_all(b"\n")?;
            }
        }
        Format::Csv => {
            writeln!(out, "{}", Row::NAMES)?;
            for timed in reader {
                Row::of(&timed?).write_csv(&mut out)?;
            }
        }
        Format::Perfetto => {
            let mut perfetto = Perfetto::begin(&mut out, reader.header())?;
            for timed in reader {
                perfetto.event(&timed?)?;
            }
            perfetto.end()?;
        }
    }
    out.flush()?;
    Ok(())
}

/// An event as programs like to read it. 64-bit numbers are hexadecimal texts: JSON's own lose bits in many readers.
#[derive(Serialize)]
struct Row {
    time_ns: u64,
    vcpu: u32,
    access: String,
    index: String,
    name: Option<&'static str>,
    reason: String,
    value: String,
    outcome: &'static str,
    rip: Option<String>,
    log: bool,
}

impl Row {
    /// The fields, in their order.
    const NAMES: &str = "time_ns,vcpu,access,index,name,reason,value,outcome,rip,log";

    fn of(timed: &Timed) -> Self {
        let event = &timed.event;
        Self {
            time_ns: timed.time_ns,
            vcpu: event.vcpu.0,
            access: event.access.to_string(),
            index: event.index.to_string(),
            name: event.index.name(),
            reason: event.reason.to_string(),
            value: hexadecimal(event.value),
            outcome: event.outcome.word(),
            rip: event.rip.map(hexadecimal),
            log: event.log,
        }
    }

    /// No field has a comma, a quote or a line's end in it.
    fn write_csv(&self, out: &mut impl Write) -> io::Result<()> {
        let Self {
            time_ns,
            vcpu,
            access,
            index,
            name,
            reason,
            value,
            outcome,
            rip,
            log,
        } = self;
        let name = name.unwrap_or_default();
        let rip = rip.as_deref().unwrap_or_default();
        writeln!(
            out,
            "{time_ns},{vcpu},{access},{index},{name},{reason},{value},{outcome},{rip},{log}"
        )
    }
}

fn hexadecimal(value: u64) -> String {
    format!("{value:#x}")
}
