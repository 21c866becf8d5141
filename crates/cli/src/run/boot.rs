//! A guest from its first instruction to the report of its end.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::bail;
use msrgate_core::{Event, Kick, Recorder, Vcpu, Vm};
use msrgate_machine::{Guest, Machine, Rules};
use msrgate_trace::Observation;

use super::Args;
use super::reload::Reload;
use super::signals::{stop_in_time, stop_on_signal};
use crate::Status;
use crate::console::{Console, Cursor};
use crate::log::Log;
use crate::report::{self, Report, Stats};
use crate::tally::Tally;
use crate::trace::{Producer, Trace};

/// What a run is made of, but for the VM.
pub(super) struct Setup<'a> {
    pub(super) args: &'a Args,
    pub(super) backend: &'static str,
    pub(super) guest: &'a Guest,
    pub(super) policies: Vec<Rules>,
    /// Where the policies were read from.
    pub(super) files: BTreeSet<PathBuf>,
    /// Which accesses are to be seen.
    pub(super) observation: Observation,
    pub(super) trace: Option<(Trace, Producer)>,
}

/// Where the events of a vCPU go. The RIP costs a system call on KVM: it is asked for where a trace keeps it.
struct Events<const WITH_RIP: bool> {
    tally: Tally,
    log: Log,
    trace: Option<Producer>,
}

impl<const WITH_RIP: bool> Recorder for Events<WITH_RIP> {
    const WANTS_RIP: bool = WITH_RIP;

    fn record(&mut self, event: &Event) {
        self.trace.record(event);
        self.tally.record(event);
        self.log.record(event);
    }
}

/// Boots the guest, runs it to its end, and reports.
pub(super) fn boot<V: Vm>(setup: Setup<'_>, vm: V) -> anyhow::Result<Status>
where
    <V::Vcpu as Vcpu>::Kicker: Kick + 'static,
{
    if setup.trace.is_some() {
        boot_with::<V, true>(setup, vm)
    } else {
        boot_with::<V, false>(setup, vm)
    }
}

fn boot_with<V: Vm, const WITH_RIP: bool>(setup: Setup<'_>, vm: V) -> anyhow::Result<Status>
where
    <V::Vcpu as Vcpu>::Kicker: Kick + 'static,
{
    let args = setup.args;
    let stream: Box<dyn Write> = if args.json {
        Box::new(io::stderr())
    } else {
        Box::new(io::stdout())
    };
    let console = Console::new(stream);
    let cursor = console.cursor();
    let one_screen = args.json || (io::stdout().is_terminal() && io::stderr().is_terminal());
    let (trace, producer) = setup.trace.unzip();
    let events = Events::<WITH_RIP> {
        tally: Tally::default(),
        log: Log::new(one_screen.then(|| console.cursor())),
        trace: producer,
    };
    let mut machine = Machine::new(vm, setup.guest, setup.policies, events, console)?
        .with_handlers(msrgate_kvm::handlers());
    if setup.observation == Observation::Native {
        machine.observe_msrs()?;
    }
    stop_on_signal(machine.stopper())?;
    if args.guest.is_none() {
        stop_in_time(machine.stopper());
    }
    if let Some(path) = &args.policy {
        let reload = Reload {
            path: path.clone(),
            files: setup.files,
            observation: setup.observation,
            watch: args.watch,
            reloader: machine.reloader(),
            stopper: machine.stopper(),
        };
        reload.start()?;
    }
    let start = Instant::now();
    let end = machine.run();
    let stats = args.stats.then(|| Stats {
        exits: machine.exits(),
        instructions: machine.instructions(),
        time: start.elapsed(),
    });
    let throttled = machine.throttled();
    let Events {
        tally,
        mut log,
        trace: producer,
    } = machine.into_recorder();
    drop(producer);
    log.end();
    let trace = trace.map(Trace::finish);
    end_console(args, cursor.get())?;
    finish(
        args,
        &Report {
            backend: setup.backend,
            end: end?,
            tally: &tally,
            throttled,
            stats,
            trace: trace.as_ref(),
        },
    )
}

/// Leaves the guest's last line, and a blank one between it and the table.
fn end_console(args: &Args, cursor: Cursor) -> io::Result<()> {
    let text = match (args.json, cursor) {
        (_, Cursor::Untouched) | (true, Cursor::NewLine) => return Ok(()),
        (true, Cursor::InLine) => return io::stderr().write_all(b"\n"),
        (false, Cursor::NewLine) => "\n",
        (false, Cursor::InLine) => "\n\n",
    };
    io::stdout().write_all(text.as_bytes())
}

fn finish(args: &Args, report: &Report<'_>) -> anyhow::Result<Status> {
    if args.json {
        report::write_json(&mut io::stdout().lock(), report)?;
    } else {
        let mut out = anstream::AutoStream::auto(io::stdout().lock());
        report::write_table(&mut out, report)?;
    }
    if let Some(error) = report::error(&report.end) {
        bail!(error);
    }
    if args.strict && report.tally.faults != 0 {
        return Ok(Status::Forbidden);
    }
    Ok(Status::Done)
}
