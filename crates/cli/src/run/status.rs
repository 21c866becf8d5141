//! The status line: how fast the guest is, while its console is not on the terminal.

use std::thread;
use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use msrgate_core::Kick;
use msrgate_machine::Meter;

use crate::seen::Shared;

const PERIOD: Duration = Duration::from_millis(500);
/// What the vCPUs have to tell how far they are.
const ANSWER: Duration = Duration::from_millis(20);

/// A line at the bottom of the standard error, where that is a terminal, until this is dropped.
pub(super) struct Status(ProgressBar);

impl Status {
    /// Begins to show how far the guest is.
    pub(super) fn start<K: Kick + 'static>(meter: Meter<K>, seen: Shared) -> Self {
        let bar = ProgressBar::new_spinner();
        if bar.is_hidden() {
            return Self(bar);
        }
        bar.set_style(ProgressStyle::with_template("{msg}").expect("this is a template"));
        seen.lock().log.print_above(bar.clone());
        let shown = bar.clone();
        thread::spawn(move || {
            let start = Instant::now();
            let mut last = meter.read();
            while !shown.is_finished() {
                thread::sleep(PERIOD - ANSWER);
                meter.ask();
                thread::sleep(ANSWER);
                let now = meter.read();
                let (count, unit) = match now.instructions {
                    0 => (now.exits - last.exits, "exits"),
                    instructions => (instructions - last.instructions, "instructions"),
                };
                last = now;
                let rate = u128::from(count) * 1000 / PERIOD.as_millis();
                let rate = HumanCount(u64::try_from(rate).unwrap_or(u64::MAX));
                let accesses = HumanCount(seen.lock().tally.event_count());
                let seconds = start.elapsed().as_secs_f64();
                shown.set_message(format!(
                    "msrgate: {seconds:.1} s, {rate} {unit} a second, MSR accesses: {accesses}"
                ));
            }
        });
        Self(bar)
    }
}

impl Drop for Status {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
