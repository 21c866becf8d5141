//! `msrgate wrap`: run somebody else's program with a /dev/kvm that msrgate watches or answers.
//!
//! [`run`] tries all that could go wrong ([`Wrapped::new`]), and only then becomes the program: pid, terminal, signals and
//! exit status are the program's own. What stays of msrgate is the preload library in the program, and, where somebody wants to see
//! something, the collector beside it ([`crate::collect`]).

mod library;
mod plan;
mod program;

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use clap::ValueEnum;
use msrgate_trace::channel::Channel;
use rustix::io::FdFlags;

use self::plan::Plan;
use crate::{Status, collect, warn};

/// Run a VMM under a policy, or with a /dev/kvm that msrgate answers.
///
/// The program is not changed: a library takes the place of the few libc functions with which it would open
/// and use /dev/kvm. The exit status is the program's own.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) vmm: Vmm,
    /// Print what became of the guest's accesses when the VMM ends, and when the collector gets SIGUSR1
    #[arg(long)]
    stats: bool,
}

/// A VMM, and what is done to it.
#[derive(Debug, clap::Args)]
pub(crate) struct Vmm {
    /// What MSR accesses do [default: what KVM and the VMM make of them]
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// What stands behind /dev/kvm.
    #[arg(long, value_enum, default_value = "auto")]
    kvm: Kvm,
    /// Which accesses are seen [default: auto where somebody sees them, else off]
    #[arg(long, value_enum)]
    observe: Option<Observe>,
    /// Write each MSR access to a trace; of a second VM to FILE.2, and so on
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Keep a file of metrics up to date, for node_exporter's textfile collector
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
    /// What an access gets if msrgate itself fails
    #[arg(long, value_enum, default_value = "deny")]
    on_failure: OnFailure,
    /// What the guest is called, if that is known
    #[arg(skip)]
    pub(crate) guest: Option<String>,
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kvm {
    /// The machine's KVM where there is one, else the embedded one
    Auto,
    /// The machine's KVM
    Real,
    /// The embedded KVM: needs no /dev/kvm and no privileges
    Soft,
}

/// Which accesses are seen, beyond those that leave the guest because of the policy or because KVM refuses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Observe {
    /// As many as can be without a change for the guest
    Auto,
    /// Those too that can leave the guest and be done by KVM all the same
    Filter,
    /// Those too that KVM does, as the kernel's tracepoint tells (on the machine's KVM)
    Tracepoint,
    /// No others
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnFailure {
    /// #GP
    Deny,
    /// What KVM makes of it
    Pass,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Status> {
    let mut wrapped = Wrapped::new(&args.vmm, args.stats)?;
    let Wrapped { plan, channel, .. } = &wrapped;
    let collector = plan.collector.as_ref().zip(channel.as_ref());
    let collector = collector.map(|(args, channel)| collect::start(args, channel));
    plan.announce(collector.transpose()?);
    // Lives until the program has it.
    let _channel = wrapped.lend_channel()?;
    let error = wrapped.command.exec();
    Err(error).with_context(|| cannot_run(&wrapped.command))
}

/// A VMM that is ready to be started.
pub(crate) struct Wrapped {
    pub(crate) command: Command,
    pub(crate) plan: Plan,
    /// What the library, and who collects, are told.
    pub(crate) channel: Option<Channel>,
}

impl Wrapped {
    /// Tries all that could go wrong. `has_stats`: somebody sees the table.
    pub(crate) fn new(vmm: &Vmm, has_stats: bool) -> anyhow::Result<Self> {
        let (name, arguments) = vmm
            .program
            .split_first()
            .expect("clap asks for at least one word");
        let program = program::find(name)?;
        let plan = Plan::of(vmm, has_stats)?;
        let mut command = Command::new(&program.path);
        command.arg0(name).args(arguments);
        if plan.needs_library() {
            let on_failure = vmm.on_failure.to_possible_value();
            command
                .env("LD_PRELOAD", library::preload_list()?)
                .env("MSRGATE_KVM", plan.kvm.word())
                .env_remove(CHANNEL)
                .env(
                    "MSRGATE_ON_FAILURE",
                    on_failure.expect("no value is hidden").get_name(),
                );
            if program.is_go {
                warn(format_args!(
                    "{} is a Go program: what it does with /dev/kvm itself is not seen, only what programs do that \
                     it starts",
                    program.path.display()
                ));
            }
        }
        Ok(Self {
            command,
            channel: plan.channel()?,
            plan,
        })
    }

    /// Lets the program inherit the channel, as long as the descriptor lives.
    pub(crate) fn lend_channel(&mut self) -> anyhow::Result<Option<OwnedFd>> {
        let lent = self.channel.as_ref().map(inheritable).transpose()?;
        if let Some(lent) = &lent {
            self.command.env(CHANNEL, lent.as_raw_fd().to_string());
        }
        Ok(lent)
    }
}

pub(crate) fn cannot_run(command: &Command) -> String {
    format!("cannot run {}", command.get_program().display())
}

/// Where the library finds the channel.
const CHANNEL: &str = "MSRGATE_CHANNEL";

/// Scripts choose small numbers for descriptors of their own; shells keep theirs at 10 and 255.
const LOWEST_FD: i32 = 300;

/// A descriptor of the channel that `exec` leaves open.
fn inheritable(channel: &Channel) -> anyhow::Result<OwnedFd> {
    let duplicate = rustix::io::fcntl_dupfd_cloexec(channel.file(), LOWEST_FD)
        // A limit that is lower than that.
        .or_else(|_| rustix::io::fcntl_dupfd_cloexec(channel.file(), 3));
    let duplicate = duplicate.context("no descriptor is left for the channel")?;
    rustix::io::fcntl_setfd(&duplicate, FdFlags::empty())
        .context("the channel cannot be inherited")?;
    Ok(duplicate)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn words_behind_the_program_are_the_programs() {
        let line =
            Line::try_parse_from(["wrap", "--kvm", "soft", "vmm", "--kvm", "real", "--", "-x"]);
        let args = line.map(|line| line.args).expect("a valid command line");
        assert_eq!(args.vmm.kvm, Kvm::Soft);
        assert_eq!(args.vmm.program, ["vmm", "--kvm", "real", "--", "-x"]);
    }
}
