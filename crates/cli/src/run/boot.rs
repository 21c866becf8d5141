//! A guest from its first instruction to the report of its end.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use msrgate_core::{Event, Kick, Recorder, Vcpu, Vm};
use msrgate_machine::{End, Loaded, Machine, Rules, StopCause, Stopper};
use msrgate_trace::Observation;

use super::Args;
use super::args::Place;
use super::keyboard::{TypedTo, type_input};
use super::reload;
use super::signals::{stop_in_time, stop_on_signal};
use super::status::Status as StatusLine;
use crate::Status;
use crate::console::{Console, Cursor};
use crate::log::Log;
use crate::report::{self, Report, Stats};
use crate::seen::{Seen, Shared};
use crate::tally::Tally;
use crate::terminal::Raw;
use crate::trace::{Producer, Trace};
use crate::view::{Subject, View, Window};

/// How long the end waits for who reads the console.
const CONSOLE_LIMIT: Duration = Duration::from_secs(2);

/// What a run is made of, but for the VM.
pub(super) struct Setup<'a> {
    pub(super) args: &'a Args,
    pub(super) backend: &'static str,
    pub(super) guest: &'a Loaded,
    pub(super) policies: Vec<Rules>,
    /// Where the policies were read from.
    pub(super) files: BTreeSet<PathBuf>,
    /// Which accesses are to be seen.
    pub(super) observation: Observation,
    /// With a producer for each vCPU.
    pub(super) trace: Option<(Trace, Vec<Producer>)>,
    /// For who wants to see it live.
    pub(super) window: Option<Window>,
}

/// Where the events of a vCPU go. The RIP costs a system call on KVM: it is asked for where a trace keeps it.
struct Events<const WITH_RIP: bool> {
    seen: Shared,
    trace: Option<Producer>,
}

impl<const WITH_RIP: bool> Recorder for Events<WITH_RIP> {
    const WANTS_RIP: bool = WITH_RIP;

    fn record(&mut self, event: &Event) {
        self.trace.record(event);
        self.seen.lock().record(event);
    }
}

/// Boots the guest, runs it to its end, and reports.
pub(super) fn boot<V>(setup: Setup<'_>, vm: V) -> anyhow::Result<Status>
where
    V: Vm + Send + Sync + 'static,
    V::Vcpu: Send,
    <V::Vcpu as Vcpu>::Kicker: Kick + 'static,
{
    if setup.trace.is_some() {
        boot_with::<V, true>(setup, vm)
    } else {
        boot_with::<V, false>(setup, vm)
    }
}

fn boot_with<V, const WITH_RIP: bool>(setup: Setup<'_>, vm: V) -> anyhow::Result<Status>
where
    V: Vm + Send + Sync + 'static,
    V::Vcpu: Send,
    <V::Vcpu as Vcpu>::Kicker: Kick + 'static,
{
    let args = setup.args;
    let stream = stream(args, setup.window.as_ref())?;
    let console = Console::new(stream).context("cannot start the console's thread")?;
    let one_screen = args.console == Place::On
        && (args.json || args.top || (io::stdout().is_terminal() && io::stderr().is_terminal()));
    let log = Log::new(one_screen.then(|| console.clone()));
    let seen = Shared::new(Seen::new(Tally::default(), log));
    let (trace, producers) = setup.trace.unzip();
    let mut producers = producers.into_iter().flatten();
    let recorders = (0..args.cpus)
        .map(|_| Events::<WITH_RIP> {
            seen: seen.clone(),
            trace: producers.next(),
        })
        .collect();
    drop(producers);
    let mut machine = Machine::new(vm, setup.guest, setup.policies, recorders, console.clone())?
        .with_handlers(msrgate_kvm::handlers());
    if setup.observation == Observation::Native {
        machine.observe_msrs()?;
    }
    let surroundings = surround(args, setup.guest.is_linux(), &machine, &seen, &console)?;
    let title = format!("msrgate: {} on {}", args.guest_name(), setup.backend);
    let view = setup
        .window
        .map(|window| begin_view(window, title, &seen, machine.stopper(), &console));
    let view = view.transpose()?;
    reload::start(args, setup.files, setup.observation, &machine)?;
    let start = Instant::now();
    let end = machine.run();
    let time = start.elapsed();
    drop(surroundings);
    let stats = args.stats.then(|| Stats {
        exits: machine.exits(),
        instructions: machine.instructions(),
        unimplemented: machine.unimplemented(),
        time,
    });
    let throttled = machine.throttled();
    // The trace ends when its producers are gone.
    drop(machine.into_recorders());
    let trace = trace.map(Trace::finish);
    let has_settled = console.settle(CONSOLE_LIMIT);
    view.map(View::end).transpose()?;
    let mut seen = seen.lock();
    seen.log.end();
    if !has_settled? {
        bail!(
            "nobody reads the guest's console: what it wrote last is lost, and the table not shown"
        );
    }
    end_console(args, console.cursor())?;
    finish(
        args,
        &Report {
            backend: setup.backend,
            end: end?,
            tally: &seen.tally,
            throttled,
            stats,
            trace: trace.as_ref(),
        },
    )
}

/// What goes on around a guest until it is dropped.
struct Surroundings {
    _terminal: Option<Raw>,
    _status: Option<StatusLine>,
}

/// Lets signals, the clock and the keyboard reach the guest, and the user see how it is.
fn surround<V, R: Recorder>(
    args: &Args,
    is_linux: bool,
    machine: &Machine<V, R, Console>,
    seen: &Shared,
    console: &Console,
) -> anyhow::Result<Surroundings>
where
    V: Vm + Send + Sync + 'static,
    <V::Vcpu as Vcpu>::Kicker: Kick + 'static,
{
    stop_on_signal(args, machine.stopper(), console.clone())?;
    if args.guest.is_none() {
        stop_in_time(machine.stopper());
    }
    let mut terminal = None;
    if is_linux && args.console == Place::On && !args.top {
        terminal = Raw::take();
        if terminal.is_some() {
            anstream::eprintln!("msrgate: Ctrl-A X ends the guest");
        }
        // Somebody else's terminal is left alone.
        if terminal.is_some() || !io::stdin().is_terminal() {
            let guest = TypedTo {
                keyboard: machine.keyboard(),
                stopper: machine.stopper(),
                console: console.clone(),
            };
            type_input(guest, terminal.is_some());
        }
    }
    let status = || StatusLine::start(machine.meter(), seen.clone());
    Ok(Surroundings {
        _terminal: terminal,
        _status: (args.console != Place::On && !args.top).then(status),
    })
}

/// Shows what is seen of the guest; to quit is to stop it.
fn begin_view<K: Kick + 'static>(
    window: Window,
    title: String,
    seen: &Shared,
    stopper: Stopper<K>,
    console: &Console,
) -> anyhow::Result<View> {
    let console = console.clone();
    window.begin(Subject {
        title,
        seen: seen.clone(),
        quit: move || {
            stopper.stop(StopCause::Interrupt);
            console.abandon();
        },
        ending: "The guest is being stopped.",
    })
}

/// Where the guest's console goes.
fn stream(args: &Args, window: Option<&Window>) -> anyhow::Result<Box<dyn Write + Send>> {
    Ok(match (&args.console, window) {
        (Place::On, Some(window)) => Box::new(window.writer()?),
        (Place::On, None) if args.json => Box::new(io::stderr()),
        (Place::On, None) => Box::new(io::stdout()),
        (Place::Off, _) => Box::new(io::sink()),
        (Place::File(path), _) => {
            let file = File::create(path);
            Box::new(file.with_context(|| format!("cannot write {}", path.display()))?)
        }
    })
}

/// Leaves the guest's last line, and a blank one between it and the table.
fn end_console(args: &Args, cursor: Cursor) -> io::Result<()> {
    if args.console != Place::On {
        return Ok(());
    }
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
    if report.end == End::Panic {
        return Ok(Status::Panicked);
    }
    if args.strict && report.tally.faults != 0 {
        return Ok(Status::Forbidden);
    }
    Ok(Status::Done)
}
