//! A line on the standard error for each event that the policy wants logged, and no more than can be read.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use msrgate_core::{Event, Recorder};

use crate::console::{Console, Cursor};

/// Lines in a period; the others are only counted.
const LINES_LIMIT: u32 = 20;
const PERIOD: Duration = Duration::from_secs(1);
/// How long a line waits for the console.
const SETTLE_LIMIT: Duration = Duration::from_millis(100);

/// Prints the events that are marked.
#[derive(Debug)]
pub(crate) struct Log {
    /// The guest's console, where it is on the same screen.
    console: Option<Console>,
    /// The status line, if there is one.
    status: Option<ProgressBar>,
    period: Instant,
    lines: u32,
    suppressed: u64,
}

impl Log {
    /// Leaves the line of the console that is on the same screen, if there is one.
    pub(crate) fn new(console: Option<Console>) -> Self {
        Self {
            console,
            status: None,
            period: Instant::now(),
            lines: 0,
            suppressed: 0,
        }
    }

    /// Prints above this line from now on.
    pub(crate) fn print_above(&mut self, status: ProgressBar) {
        self.status = Some(status);
    }

    /// Says how many lines there would have been.
    pub(crate) fn end(&mut self) {
        if self.suppressed != 0 {
            let accesses = if self.suppressed == 1 {
                "access that is to be logged is"
            } else {
                "accesses that are to be logged are"
            };
            let line = format!("{} more {accesses} not shown", self.suppressed);
            self.print(&line);
            self.suppressed = 0;
        }
    }

    /// Whether there may be a line now.
    fn has_room(&mut self) -> bool {
        if self.period.elapsed() >= PERIOD {
            self.end();
            self.period = Instant::now();
            self.lines = 0;
        }
        self.lines < LINES_LIMIT
    }

    fn print(&self, line: &str) {
        let left = self.console.as_ref().map(|console| {
            // What the guest said before comes first. If it cannot be written, that is told elsewhere.
            let _ = console.settle(SETTLE_LIMIT);
            console.begin_line()
        });
        let start = if left == Some(Cursor::InLine) {
            "\n"
        } else {
            ""
        };
        let print = || {
            // Nobody to tell is no reason to stop the guest.
            let _ = writeln!(io::stderr(), "{start}msrgate: {line}");
        };
        match &self.status {
            Some(status) => status.suspend(print),
            None => print(),
        }
    }
}

impl Recorder for Log {
    fn record(&mut self, event: &Event) {
        if !event.log {
            return;
        }
        if self.has_room() {
            self.lines += 1;
            self.print(&event.to_string());
        } else {
            self.suppressed += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use msrgate_core::{Access, ExitReason, MsrIndex, Outcome, VcpuId};

    use super::*;

    #[test]
    fn flood_is_counted_and_quiet_events_are_nothing() {
        let mut log = Log::new(None);
        let event = Event {
            vcpu: VcpuId(0),
            index: MsrIndex(0x10),
            access: Access::Read,
            reason: ExitReason::UNKNOWN,
            rip: None,
            value: 0,
            outcome: Outcome::Fault,
            log: true,
        };
        for log_it in [true, false] {
            for _ in 0..1000 {
                log.record(&Event {
                    log: log_it,
                    ..event
                });
            }
        }
        assert_eq!(log.suppressed, 1000 - u64::from(LINES_LIMIT));
        log.period -= PERIOD;
        log.record(&event);
        assert_eq!((log.lines, log.suppressed), (1, 0));
    }
}
