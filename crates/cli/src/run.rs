//! `msrgate run`: boot a guest and show what became of its MSR accesses.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use msrgate_core::{Kick, Vm};
use msrgate_machine::{Guest, Machine, Rules, StopCause, Stopper, guest_memory, tour};
use msrgate_policy::Compiled;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::Status;
use crate::backend::{self, Backend, Choice};
use crate::console::{Console, Cursor};
use crate::policy::{compile_file, compile_source};
use crate::report::{self, Report, Stats};
use crate::tally::Tally;

/// Boot a guest, and show what became of its MSR accesses.
///
/// Without GUEST it is the built-in tour: a small 64-bit guest that tries some MSRs and says what it saw.
///
/// Without --policy the tour has its own; another guest has KVM's own behaviour, and what KVM refuses is shown.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The guest: an ELF64 executable, or a flat binary (16-bit, started at 0000:7c00)
    guest: Option<PathBuf>,
    /// What MSR accesses do
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Who runs the guest
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    backend: Choice,
    /// Guest memory, such as 64M or 1G
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = parse_size)]
    mem: u64,
    /// Exit status 1 if the policy answered an access with a fault
    #[arg(long)]
    strict: bool,
    /// Count exits and instructions, and measure the time
    #[arg(long)]
    stats: bool,
    /// Print JSON instead of a table; the guest's console goes to the standard error
    #[arg(long)]
    json: bool,
    /// Print the policy that would be in force, and boot nothing
    #[arg(long)]
    print_policy: bool,
}

/// What a guest without a policy runs under.
const OBSERVE: &str = "\
# KVM's own behaviour; what KVM refuses is seen.
version = 1

[defaults]
known   = \"allow\"
unknown = \"log\"
invalid = \"log\"
";

/// More than enough for the tour on the slowest KVM.
const TOUR_LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn run(args: &Args) -> anyhow::Result<Status> {
    if args.print_policy {
        return print_policy(args);
    }
    let guest = match &args.guest {
        Some(path) => read_guest(path)?,
        None => tour::guest(),
    };
    let policies = policies(args)?;
    let memory = guest_memory(args.mem)?;
    guest.load(&memory).with_context(|| match &args.guest {
        Some(path) => format!("cannot boot {}", path.display()),
        None => "cannot boot the tour".to_owned(),
    })?;
    let (backend, why) = backend::open(args.backend, &memory)?;
    let name = backend.name();
    anstream::eprintln!("msrgate: on {name}: {why}");
    match backend {
        Backend::Kvm(vm) => boot(args, name, vm, &guest, policies),
        Backend::Soft(vm) => boot(args, name, vm, &guest, policies),
    }
}

fn boot<V: Vm>(
    args: &Args,
    backend: &'static str,
    vm: V,
    guest: &Guest,
    policies: Vec<Rules>,
) -> anyhow::Result<Status>
where
    <V::Vcpu as msrgate_core::Vcpu>::Kicker: 'static,
{
    let stream: Box<dyn Write> = if args.json {
        Box::new(io::stderr())
    } else {
        Box::new(io::stdout())
    };
    let console = Console::new(stream);
    let cursor = console.cursor();
    let mut machine = Machine::new(vm, guest, policies, Tally::default(), console)?;
    stop_on_signal(machine.stopper())?;
    if args.guest.is_none() {
        stop_in_time(machine.stopper());
    }
    let start = Instant::now();
    let end = machine.run()?;
    let stats = args.stats.then(|| Stats {
        exits: machine.exits(),
        instructions: machine.instructions(),
        time: start.elapsed(),
    });
    let tally = machine.into_recorder();
    end_console(args, cursor.get())?;
    finish(
        args,
        &Report {
            backend,
            end,
            tally: &tally,
            stats,
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

fn read_guest(path: &Path) -> anyhow::Result<Guest> {
    let file = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Guest::parse(&file).with_context(|| format!("cannot boot {}", path.display()))
}

fn policies(args: &Args) -> anyhow::Result<Vec<Rules>> {
    let compiled = match (&args.policy, &args.guest) {
        (Some(path), _) => vec![compile_file(path)?],
        (None, Some(_)) => vec![compile_source("of a guest without one", OBSERVE)?],
        (None, None) => vec![
            compile_source("of the tour", tour::POLICY)?,
            compile_source("of the tour", tour::SECOND_POLICY)?,
        ],
    };
    Ok(compiled.into_iter().map(rules).collect())
}

fn rules(compiled: Compiled) -> Rules {
    Rules {
        image: Arc::new(compiled.image),
        filter: compiled.filter,
        reasons: compiled.reasons,
    }
}

fn print_policy(args: &Args) -> anyhow::Result<Status> {
    let source = match (&args.policy, &args.guest) {
        (Some(path), _) => fs::read_to_string(path)
            .with_context(|| format!("cannot read the policy {}", path.display()))?,
        (None, Some(_)) => OBSERVE.to_owned(),
        (None, None) => tour::POLICY.to_owned(),
    };
    io::stdout().write_all(source.as_bytes())?;
    Ok(Status::Done)
}

/// Ctrl-C ends the guest, so that its table is still printed; a second one ends the program.
fn stop_on_signal<K: Kick + 'static>(stopper: Stopper<K>) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot catch Ctrl-C")?;
    thread::spawn(move || {
        let mut is_first = true;
        for signal in signals.forever() {
            if !is_first {
                // Fails only for signals that have no default.
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
            is_first = false;
            stopper.stop(StopCause::Interrupt);
        }
    });
    Ok(())
}

fn stop_in_time<K: Kick + 'static>(stopper: Stopper<K>) {
    thread::spawn(move || {
        thread::sleep(TOUR_LIMIT);
        stopper.stop(StopCause::TimeLimit);
    });
}

/// A number of bytes, with K, M or G for the powers of 1024.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        _ => return Err("the unit is K, M or G".to_owned()),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "not a number of bytes".to_owned())?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "more than 64 bits".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("64M"), Ok(64 << 20));
        assert_eq!(parse_size("1g"), Ok(1 << 30));
        assert!(parse_size("64X").is_err());
        assert!(parse_size("M").is_err());
        assert!(parse_size("99999999999999999G").is_err());
    }
}
