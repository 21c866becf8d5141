//! `msrgate top`: somebody else's VMM, and what its guests' MSR accesses come to, live.
//!
//! Unlike `wrap`, msrgate stays: the VMM is its child, it is the collector, and it has the terminal. The VMM reads
//! nothing, and what it writes goes to the view.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::Status;
use crate::collect::Collector;
use crate::view::{Subject, Window};
use crate::wrap::{Vmm, Wrapped, cannot_run};

/// Run a VMM as `wrap` does, and show what becomes of its guests' accesses while it runs.
///
/// The VMM has no standard input; what it prints is below the table. `q` sends it SIGTERM, `q` again SIGKILL. When it has
/// ended, the last lines and the table are printed. The exit status is the VMM's own, or 0 if you ended it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    vmm: Vmm,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Status> {
    let window = Window::find()?;
    let mut wrapped = Wrapped::new(&args.vmm, true)?;
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot catch Ctrl-C")?;
    wrapped
        .command
        .stdin(Stdio::null())
        .stdout(window.writer()?)
        .stderr(window.writer()?)
        // Its own, to which alone signals go: what it says of its processes' pids is not to be trusted.
        .process_group(0);
    let lent = wrapped.lend_channel()?;
    let Wrapped {
        mut command,
        plan,
        channel,
    } = wrapped;
    let (collector, channel) = plan
        .collector
        .as_ref()
        .zip(channel)
        .expect("somebody sees it");
    let mut collector = Collector::new(collector, channel)?;
    plan.announce(None);
    let (quit, quits) = mpsc::channel();
    let view = window.begin(Subject {
        title: format!("msrgate: {} on {}", plan.facts.guest, plan.facts.backend),
        seen: collector.seen(),
        quit: move || {
            // Nobody to tell is a VMM that has ended.
            let _ = quit.send(());
        },
        ending: "SIGTERM was sent to the VMM. q again: SIGKILL",
    })?;
    let mut vmm = command.spawn().with_context(|| cannot_run(&command))?;
    drop((command, lent));
    collector.watch(vmm.id())?;
    let signal = |signal| {
        // Fails only if all of them have ended.
        let _ = kill_process_group(Pid::from_child(&vmm), signal);
    };
    let mut has_asked = false;
    collector.run(|collector| {
        for () in quits.try_iter() {
            if std::mem::replace(&mut has_asked, true) {
                signal(Signal::KILL);
                collector.forget_others();
            } else {
                signal(Signal::TERM);
            }
        }
        if signals.pending().count() != 0 {
            has_asked = true;
            signal(Signal::TERM);
        }
    });
    view.end()?;
    collector.end();
    let status = vmm.wait().context("the VMM is not ours any more")?;
    Ok(if has_asked { Status::Done } else { own(status) })
}

/// As shells have it.
fn own(status: ExitStatus) -> Status {
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    Status::Program(
        code.and_then(|code| u8::try_from(code).ok())
            .unwrap_or(u8::MAX),
    )
}
