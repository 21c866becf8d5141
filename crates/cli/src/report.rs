//! The end of a run as a table for people or as JSON for programs.

use std::io::{self, Write};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use msrgate_core::{ExitReason, Outcome, Unimplemented, VmExit};
use msrgate_machine::{End, StopCause};
use serde::Serialize;

use crate::output;
use crate::pump::TraceEnd;
use crate::tally::{Count, Key, Tally};

/// All that is to be told.
pub(crate) struct Report<'a> {
    pub(crate) backend: &'static str,
    pub(crate) end: End,
    pub(crate) tally: &'a Tally,
    /// How often the vCPU had to wait because of a limit.
    pub(crate) throttled: u64,
    pub(crate) stats: Option<Stats>,
    pub(crate) trace: Option<&'a TraceEnd>,
}

/// What `--stats` adds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Stats {
    pub(crate) exits: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) instructions: Option<u64>,
    /// Those that the backend lacks.
    #[serde(
        serialize_with = "unimplemented",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(crate) unimplemented: Vec<Unimplemented>,
    #[serde(rename = "time_ns", serialize_with = "nanoseconds")]
    pub(crate) time: Duration,
}

/// Counts up when a key changes its meaning or goes away.
const JSON_VERSION: u32 = 1;

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

/// The table, how the guest ended, and what `--stats` adds.
pub(crate) fn write_table(out: &mut dyn Write, report: &Report<'_>) -> io::Result<()> {
    write_tally(out, report.tally)?;
    writeln!(out, " {}", sentence(&report.end))?;
    match report.throttled {
        0 => {}
        1 => writeln!(out, "A limit of the policy made it wait once.")?,
        count => writeln!(out, "Limits of the policy made it wait {count} times.")?,
    }
    if let Some(trace) = report.trace {
        write_trace(out, trace)?;
    }
    if let Some(stats) = &report.stats {
        let milliseconds = stats.time.as_secs_f64() * 1e3;
        write!(out, "{DIM}{} exits", stats.exits)?;
        if let Some(instructions) = stats.instructions {
            write!(out, ", {instructions} instructions")?;
        }
        writeln!(out, ", {milliseconds:.1} ms on {}{DIM:#}", report.backend)?;
        for missing in &stats.unimplemented {
            let Unimplemented {
                name, rip, count, ..
            } = missing;
            let bytes = hexadecimal_bytes(&missing.bytes);
            writeln!(
                out,
                "{DIM}#UD {count} times: this backend has no {name} ({bytes}), first at RIP {rip:#x}{DIM:#}"
            )?;
        }
    }
    Ok(())
}

/// A row for each MSR, reason and outcome, and a sentence about all of them, in whose line more may follow.
pub(crate) fn write_tally(out: &mut dyn Write, tally: &Tally) -> io::Result<()> {
    let rows: Vec<Row> = tally.rows().map(Row::of).collect();
    if !rows.is_empty() {
        let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
        let width = width.max("MSR".len());
        writeln!(
            out,
            "{BOLD}{:width$}  {:<10}  READS  WRITES  REASON   OUTCOME{BOLD:#}",
            "MSR", "INDEX",
        )?;
        for row in &rows {
            row.write(out, width)?;
        }
        writeln!(out)?;
    }
    if tally.rows_dropped != 0 {
        let count = tally.rows_dropped;
        writeln!(out, "{count} accesses to still other MSRs are not shown.")?;
    }
    let left = tally.event_count() - tally.observed;
    write!(out, "{} left the guest", accesses(left))?;
    if tally.observed != 0 {
        write!(out, ", and {} did not", tally.observed)?;
    }
    write!(out, ".")
}

fn accesses(count: u64) -> String {
    match count {
        0 => "No MSR access".to_owned(),
        1 => "1 MSR access".to_owned(),
        count => format!("{count} MSR accesses"),
    }
}

/// What is in the trace, and what is not.
pub(crate) fn write_trace(out: &mut dyn Write, trace: &TraceEnd) -> io::Result<()> {
    writeln!(
        out,
        "{} in the trace {}.",
        accesses(trace.events),
        trace.file
    )?;
    if trace.lost_in_rings != 0 {
        let lost = trace.lost_in_rings;
        writeln!(
            out,
            "{lost} more came faster than they could be written, and are lost."
        )?;
    }
    if let Some(error) = &trace.error {
        let lost = trace.lost_in_file;
        writeln!(
            out,
            "{lost} more could not be written, and are lost: {error}."
        )?;
    }
    Ok(())
}

/// One line of the table.
struct Row {
    name: String,
    index: String,
    count: Count,
    reason: ExitReason,
    outcome: String,
    style: Style,
}

impl Row {
    fn of((key, count): (&Key, &Count)) -> Self {
        Self {
            name: key.index.name().unwrap_or("-").to_owned(),
            index: key.index.to_string(),
            count: *count,
            reason: key.reason,
            outcome: match (key.outcome, count.answered) {
                (Outcome::Fault, _) => "#GP".to_owned(),
                (Outcome::Value, Some(value)) => format!("= {value:#x}"),
                (outcome, _) => outcome.to_string(),
            },
            style: color(key.outcome).on_default(),
        }
    }

    fn write(&self, out: &mut dyn Write, width: usize) -> io::Result<()> {
        let Self {
            name,
            index,
            count,
            reason,
            outcome,
            style,
        } = self;
        let Count { reads, writes, .. } = count;
        writeln!(
            out,
            "{name:width$}  {index:<10}  {reads:>5}  {writes:>6}  {reason:<7}  {style}{outcome}{style:#}"
        )
    }
}

/// Whether the guest got what KVM would have given it, something else, or #GP.
pub(crate) const fn color(outcome: Outcome) -> AnsiColor {
    match outcome {
        Outcome::Fault => AnsiColor::Red,
        Outcome::Forwarded | Outcome::Native | Outcome::Vmm => AnsiColor::Green,
        _ => AnsiColor::Yellow,
    }
}

/// How the guest ended, where that is no error.
fn sentence(end: &End) -> String {
    match end {
        End::Exit { code: 0 } => "The guest ended by itself.".to_owned(),
        End::Exit { code } => format!("The guest ended with code {code:#x}."),
        End::PowerOff => "The guest switched itself off.".to_owned(),
        End::Reset => "The guest asked for a reset.".to_owned(),
        End::Panic => "The guest's kernel panicked.".to_owned(),
        End::Halted { waits: false } => "The guest halted.".to_owned(),
        End::Halted { waits: true } => {
            "The guest waits for an interrupt, and no device here raises one.".to_owned()
        }
        End::Stopped {
            cause: StopCause::Interrupt,
        } => "You stopped the guest.".to_owned(),
        _ => "The guest could not go on.".to_owned(),
    }
}

/// Why a guest that ended so is an operating error, if it is.
pub(crate) fn error(end: &End) -> Option<String> {
    match end {
        End::TripleFault { rip, exception } => {
            let mut text = format!("the guest triple-faulted at RIP {rip:#x}");
            match exception {
                Some(exception) => text.push_str(&format!("; its last exception was {exception}")),
                None => text.push_str("; this backend does not tell its last exception"),
            }
            Some(text)
        }
        End::NoHandler => Some(
            "the guest called an interrupt, or met an exception, that it has no handler for; \
             there is no BIOS here"
                .to_owned(),
        ),
        End::Stopped {
            cause: StopCause::TimeLimit,
        } => Some("the guest took longer than it may and was stopped".to_owned()),
        End::Failed { rip, exit } => Some(match exit {
            VmExit::Failed { code } => {
                format!("the backend cannot run the guest's code at RIP {rip:#x} (code {code:#x})")
            }
            other => {
                format!("the guest was left for {other:?} at RIP {rip:#x}: nobody handles that")
            }
        }),
        _ => None,
    }
}

/// The same as JSON. 64-bit numbers are hexadecimal texts: JSON's own lose bits in many readers.
pub(crate) fn write_json(out: &mut dyn Write, report: &Report<'_>) -> anyhow::Result<()> {
    let json = Json {
        version: JSON_VERSION,
        backend: report.backend,
        end: JsonEnd::of(&report.end),
        msrs: report.tally.rows().map(JsonRow::of).collect(),
        events: report.tally.events().iter().map(JsonEvent::of).collect(),
        events_dropped: report.tally.events_dropped,
        throttled: report.throttled,
        stats: report.stats.as_ref(),
        trace: report.trace,
    };
    output::write_json(out, &json)
}

#[derive(Serialize)]
struct Json<'a> {
    version: u32,
    backend: &'static str,
    end: JsonEnd,
    msrs: Vec<JsonRow>,
    events: Vec<JsonEvent>,
    events_dropped: u64,
    throttled: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    stats: Option<&'a Stats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<&'a TraceEnd>,
}

#[derive(Serialize)]
struct JsonEnd {
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rip: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exception: Option<String>,
}

impl JsonEnd {
    fn of(end: &End) -> Self {
        let (kind, rip) = match end {
            End::Exit { .. } => ("exit", None),
            End::PowerOff => ("power-off", None),
            End::Reset => ("reset", None),
            End::Panic => ("panic", None),
            End::Halted { .. } => ("halt", None),
            End::NoHandler => ("no-handler", None),
            End::TripleFault { rip, .. } => ("triple-fault", Some(*rip)),
            End::Stopped {
                cause: StopCause::Interrupt,
            } => ("interrupt", None),
            End::Stopped {
                cause: StopCause::TimeLimit,
            } => ("time-limit", None),
            End::Failed { rip, .. } => ("failed", Some(*rip)),
            _ => ("other", None),
        };
        Self {
            kind,
            code: match end {
                End::Exit { code } => Some(*code),
                _ => None,
            },
            rip: rip.map(hexadecimal),
            exception: match end {
                End::TripleFault { exception, .. } => exception.map(|found| found.to_string()),
                _ => None,
            },
        }
    }
}

#[derive(Serialize)]
struct JsonRow {
    name: Option<&'static str>,
    index: String,
    reads: u64,
    writes: u64,
    reason: String,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
}

impl JsonRow {
    fn of((key, count): (&Key, &Count)) -> Self {
        Self {
            name: key.index.name(),
            index: key.index.to_string(),
            reads: count.reads,
            writes: count.writes,
            reason: key.reason.to_string(),
            outcome: key.outcome.word(),
            value: match key.outcome {
                Outcome::Value => count.answered.map(hexadecimal),
                _ => None,
            },
        }
    }
}

#[derive(Serialize)]
struct JsonEvent {
    vcpu: u32,
    access: String,
    index: String,
    reason: String,
    value: String,
    outcome: &'static str,
    log: bool,
}

impl JsonEvent {
    fn of(event: &msrgate_core::Event) -> Self {
        Self {
            vcpu: event.vcpu.0,
            access: event.access.to_string(),
            index: event.index.to_string(),
            reason: event.reason.to_string(),
            value: hexadecimal(event.value),
            outcome: event.outcome.word(),
            log: event.log,
        }
    }
}

fn hexadecimal(value: u64) -> String {
    format!("{value:#x}")
}

fn hexadecimal_bytes(bytes: &[u8]) -> String {
    let bytes: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(" ")
}

fn unimplemented<S: serde::Serializer>(
    missing: &[Unimplemented],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(missing.iter().map(|it| {
        serde_json::json!({
            "name": it.name,
            "bytes": hexadecimal_bytes(&it.bytes),
            "rip": hexadecimal(it.rip),
            "count": it.count,
        })
    }))
}

fn nanoseconds<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}
