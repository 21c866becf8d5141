//! Another policy while the guest runs: on SIGHUP, and with `--watch` when a file of the policy changes.
//!
//! A policy with mistakes is drawn as ever, and the old one stays in force.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use msrgate_core::{Kick, Recorder, Vcpu, Vm};
use msrgate_machine::{Machine, Reloader, StopCause, Stopper};
use msrgate_policy::Compiled;
use msrgate_trace::Observation;
use signal_hook::consts::SIGHUP;
use signal_hook::iterator::Signals;

use super::Args;
use crate::console::Console;
use crate::policy::compile_file_with;
use crate::{host, warn};

/// How often the files are looked at.
const PERIOD: Duration = Duration::from_millis(250);

/// Begins to wait for a reason, in a thread of its own. `files`: where the policy was read from.
pub(super) fn start<V, R>(
    args: &Args,
    files: BTreeSet<PathBuf>,
    observation: Observation,
    machine: &Machine<V, R, Console>,
) -> anyhow::Result<()>
where
    V: Vm + Send + Sync + 'static,
    <V::Vcpu as Vcpu>::Kicker: Kick + 'static,
    R: Recorder,
{
    let Some(path) = args.policy.clone() else {
        return Ok(());
    };
    let reload = Reload {
        path,
        seen: Seen::of(&files),
        had_terminal: has_terminal(),
        files,
        observation,
        watch: args.watch,
        reloader: machine.reloader(),
        stopper: machine.stopper(),
    };
    let signals = Signals::new([SIGHUP]).context("cannot catch SIGHUP")?;
    thread::spawn(move || reload.wait(signals));
    Ok(())
}

/// The files that a policy was read from.
pub(super) fn files(compiled: &Compiled) -> BTreeSet<PathBuf> {
    let names = compiled.sources.iter().map(|source| source.name.as_str());
    names.map(PathBuf::from).collect()
}

/// Replaces the policy of a guest.
struct Reload<V, K> {
    /// The policy file, as it was given.
    path: PathBuf,
    /// It, and what it includes.
    files: BTreeSet<PathBuf>,
    seen: Seen,
    had_terminal: bool,
    /// Which accesses are to be seen.
    observation: Observation,
    /// Whether to look at the files.
    watch: bool,
    reloader: Reloader<V>,
    stopper: Stopper<K>,
}

impl<V: Vm, K: Kick> Reload<V, K> {
    /// For ever.
    fn wait(mut self, mut signals: Signals) {
        loop {
            let is_asked = if self.watch {
                thread::sleep(PERIOD);
                signals.pending().count() != 0
            } else {
                signals.wait().count() != 0
            };
            if is_asked && self.had_terminal && !has_terminal() {
                // Nobody is left to see the guest, or to stop it.
                self.stopper.stop(StopCause::Interrupt);
            }
            let has_changed = self.watch && self.seen.has_settled(&self.files);
            if is_asked || has_changed {
                // From before they are read, so that no change is missed.
                self.seen = Seen::of(&self.files);
                let files = self.files.clone();
                self.reload();
                if self.files != files {
                    self.seen = Seen::of(&self.files);
                }
            }
        }
    }

    fn reload(&mut self) {
        match self.replace() {
            Ok(true) => {
                let path = self.path.display();
                anstream::eprintln!("msrgate: policy replaced by {path}");
            }
            Ok(false) => {}
            Err(error) => warn(format_args!("{error:#}: the old one stays in force")),
        }
    }

    /// Whether the policy is in force; not if the guest has ended.
    fn replace(&mut self) -> anyhow::Result<bool> {
        let compiled = compile_file_with(&self.path, &super::options(self.observation))?;
        host::check(&compiled)?;
        self.files = files(&compiled);
        match self.reloader.replace(super::rules(compiled)) {
            Some(done) => done.map(|()| true).context("the policy is refused"),
            None => Ok(false),
        }
    }
}

/// After a hangup, a process has no terminal any more.
fn has_terminal() -> bool {
    File::open("/dev/tty").is_ok()
}

/// What can be told of a file without reading it; `None` where there is none. An editor that writes another file and
/// gives it the name changes the inode.
type Stat = Option<[i64; 4]>;

/// The files as they were, and as they are since they began to change.
struct Seen {
    at_first: Vec<Stat>,
    last: Vec<Stat>,
}

impl Seen {
    fn of(files: &BTreeSet<PathBuf>) -> Self {
        let stats: Vec<Stat> = files.iter().map(|path| stat(path)).collect();
        Self {
            at_first: stats.clone(),
            last: stats,
        }
    }

    /// Whether they have changed, and no longer do: nobody is in the middle of writing.
    fn has_settled(&mut self, files: &BTreeSet<PathBuf>) -> bool {
        let now: Vec<Stat> = files.iter().map(|path| stat(path)).collect();
        let is_still = now == self.last && now.iter().all(Option::is_some);
        self.last = now;
        is_still && self.last != self.at_first
    }
}

fn stat(path: &Path) -> Stat {
    let metadata = fs::metadata(path).ok()?;
    let inode = metadata.ino().cast_signed();
    let size = metadata.size().cast_signed();
    Some([inode, size, metadata.ctime(), metadata.ctime_nsec()])
}
