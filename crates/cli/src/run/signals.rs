//! Who ends a guest from outside: Ctrl-C, SIGTERM and SIGHUP, and the clock.

use std::thread;
use std::time::Duration;

use anyhow::Context;
use msrgate_core::Kick;
use msrgate_machine::{StopCause, Stopper};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::Args;
use crate::console::Console;
use crate::terminal;

/// More than enough for the tour on the slowest KVM.
const TOUR_LIMIT: Duration = Duration::from_secs(60);

/// Ctrl-C ends the guest, so that its table is still printed; a second one ends the program.
pub(super) fn stop_on_signal<K: Kick + 'static>(
    args: &Args,
    stopper: Stopper<K>,
    console: Console,
) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot catch Ctrl-C")?;
    if args.top && args.policy.is_none() {
        // The terminal is to be restored; with a policy, it means something else.
        signals.add_signal(SIGHUP).context("cannot catch SIGHUP")?;
    }
    thread::spawn(move || {
        let mut is_first = true;
        for signal in signals.forever() {
            if !is_first {
                terminal::restore();
                // Fails only for signals that have no default.
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
            is_first = false;
            stopper.stop(StopCause::Interrupt);
            console.abandon();
        }
    });
    Ok(())
}

pub(super) fn stop_in_time<K: Kick + 'static>(stopper: Stopper<K>) {
    thread::spawn(move || {
        thread::sleep(TOUR_LIMIT);
        stopper.stop(StopCause::TimeLimit);
    });
}
