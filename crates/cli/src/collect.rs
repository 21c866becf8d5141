//! `msrgate collect`: the process beside a wrapped VMM that takes its events, and makes of them what was asked for.
//!
//! [`start`] is `wrap`'s side: it starts the process and waits until everything that can fail has been tried. The
//! process has the channel as its standard input and says on its standard output whether it is ready. It is nobody's
//! child and has no terminal, and it ends by itself once the VMM has ended, however that came about. Its work is done by
//! [`Collector`], which `top` has in its own process.

mod metrics;
mod outputs;
mod processes;
mod ring;
pub(crate) mod tracepoint;
mod traces;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};
use msrgate_trace::Observation;
use msrgate_trace::channel::Channel;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGXFSZ};
use signal_hook::iterator::Signals;

use self::outputs::Outputs;
use self::processes::Processes;
use self::ring::Ring;
use self::tracepoint::Tracepoint;
use crate::Status;
use crate::pump::Pace;
use crate::seen::Shared;

/// Take the events of a wrapped VMM. `wrap` starts it.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Write each MSR access to a trace
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Print what became of the guest's accesses
    #[arg(long)]
    pub(crate) stats: bool,
    /// Keep a file of metrics up to date
    #[arg(long, value_name = "FILE")]
    pub(crate) metrics: Option<PathBuf>,
    /// Start another process that does it, and end
    #[arg(long)]
    pub(crate) detach: bool,
}

impl Args {
    fn command(&self) -> Command {
        // Even if the file was replaced meanwhile: both sides must be of one version.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("msrgate").arg("collect");
        for (name, file) in [("--trace", &self.trace), ("--metrics", &self.metrics)] {
            if let Some(file) = file {
                command.arg(name).arg(file);
            }
        }
        if self.stats {
            command.arg("--stats");
        }
        command
    }
}

/// The longest line in which a collector says why it cannot be.
const ANSWER_BYTES: u64 = 4096;

/// Starts a collector for this process, and waits until it is ready; its pid. It is not this process's child.
pub(crate) fn start(args: &Args, channel: &Channel) -> anyhow::Result<u32> {
    let (reader, writer) = io::pipe().context("cannot start the collector")?;
    let stdin = channel.file().try_clone();
    let status = args
        .command()
        .arg("--detach")
        .stdin(stdin.context("cannot start the collector")?)
        .stdout(writer)
        .status()
        .context("cannot start the collector")?;
    let mut answer = String::new();
    let mut reader = BufReader::new(reader.take(ANSWER_BYTES));
    reader
        .read_line(&mut answer)
        .context("cannot start the collector")?;
    let answer = answer.trim_end();
    match answer.strip_prefix(READY).and_then(|pid| pid.parse().ok()) {
        Some(pid) => Ok(pid),
        None if answer.is_empty() => bail!("the collector ended before it was ready ({status})"),
        None => bail!("{answer}"),
    }
}

const READY: &str = "ready ";

pub(crate) fn run(args: &Args) -> anyhow::Result<Status> {
    if args.detach {
        // What the VMM inherits must end with the VMM.
        close_fds::set_fds_cloexec_threadsafe(3, &[]);
        args.command().spawn()?;
        return Ok(Status::Done);
    }
    match detached(args) {
        Ok((mut collector, mut signals)) => {
            writeln!(io::stdout(), "{READY}{}", std::process::id())?;
            collector.run(|collector| {
                if signals.pending().any(|signal| signal == SIGUSR1) {
                    collector.outputs.report();
                }
            });
            collector.end();
        }
        Err(error) => writeln!(io::stdout(), "{error:#}")?,
    }
    Ok(Status::Done)
}

/// The collector in a process of its own. Tries all that can fail.
fn detached(args: &Args) -> anyhow::Result<(Collector, Signals)> {
    // Signals of the terminal are for the VMM. It fails only where there is no terminal to leave.
    let _ = rustix::process::setsid();
    // Caught, so that none of them ends us; the last is what a file gets that is longer than it may be.
    let signals = Signals::new([SIGINT, SIGQUIT, SIGHUP, SIGTERM, SIGUSR1, SIGXFSZ])
        .context("the collector cannot catch signals")?;
    let channel = io::stdin().as_fd().try_clone_to_owned().map(File::from);
    let channel = Channel::open(channel.context("the collector has no channel")?)
        .context("the collector has no channel")?;
    let vmm = channel.start().pid;
    let mut collector = Collector::new(args, channel)?;
    collector.watch(vmm)?;
    collector.channel.promise_report();
    Ok((collector, signals))
}

/// Takes what the processes of a channel record.
pub(crate) struct Collector {
    channel: Channel,
    rings: Vec<Ring>,
    processes: Processes,
    /// Where KVM itself is watched.
    tracepoint: Option<Tracepoint>,
    outputs: Outputs,
}

impl Collector {
    /// Tries all that can fail without the VMM.
    pub(crate) fn new(args: &Args, channel: Channel) -> anyhow::Result<Self> {
        let is_watched = channel.facts().observation == Some(Observation::Tracepoint);
        Ok(Self {
            processes: Processes::default(),
            rings: Vec::new(),
            tracepoint: is_watched.then(Tracepoint::find).transpose()?,
            outputs: Outputs::create(args, &channel)?,
            channel,
        })
    }

    /// The VMM has this pid, and lives.
    pub(crate) fn watch(&mut self, vmm: u32) -> anyhow::Result<()> {
        self.processes = Processes::of(vmm).context("the collector cannot watch the VMM")?;
        Ok(())
    }

    /// What it sees, also while it runs.
    pub(crate) fn seen(&self) -> Shared {
        self.outputs.seen()
    }

    /// Waits for nobody but the VMM any more.
    pub(crate) fn forget_others(&mut self) {
        self.processes.forget_others();
    }

    /// Until the VMM has ended; `between` two looks, there may be more to do.
    pub(crate) fn run(&mut self, mut between: impl FnMut(&mut Self)) {
        let mut pace = Pace::new();
        loop {
            // What is recorded by now is seen by the look that follows.
            let is_left = self.is_left();
            let has_ended = !self.processes.any_live();
            let count = self.look();
            if is_left && count == 0 {
                self.outputs.end();
                self.channel.report_is_done();
            }
            if has_ended && count == 0 {
                break;
            }
            between(self);
            self.outputs.keep_up(self.rings.len());
            pace.rest(count);
        }
    }

    /// Writes what is left, and shows it if somebody wants to see it.
    pub(crate) fn end(&mut self) {
        self.outputs.end();
    }

    /// Whether the VMM waits for the table, and nobody else is still at work.
    fn is_left(&self) -> bool {
        self.channel.is_left() && !self.processes.others_live()
    }

    /// Takes what there is, and says how much it was.
    fn look(&mut self) -> usize {
        match self.channel.claimed() {
            Ok(claimed) => {
                for ring in claimed {
                    self.processes.watch(ring.who().pid);
                    let start_ns = self.channel.start().monotonic_ns;
                    self.rings.push(Ring::new(ring, start_ns));
                }
            }
            Err(error) => {
                let message = format!("a vCPU's accesses cannot be seen: {error}");
                self.outputs.complain(message);
            }
        }
        let mut count = 0;
        let mut at = 0;
        while let Some(ring) = self.rings.get_mut(at) {
            if let Some(tracepoint) = &self.tracepoint
                && let Err(error) = ring.follow(tracepoint)
            {
                let vcpu = ring.who().vcpu;
                let message = format!("what KVM does for vCPU {vcpu} cannot be seen: {error}");
                self.outputs.complain(message);
            }
            let is_gone = ring.is_closed() || !self.processes.lives(ring.who().pid);
            let taken = self.outputs.take(ring, self.channel.now_ns());
            count += taken;
            if is_gone && taken == 0 {
                let ring = self.rings.swap_remove(at);
                self.channel.release(ring.into_consumer());
            } else {
                at += 1;
            }
        }
        self.outputs.note_refused(self.channel.refused());
        count
    }
}
