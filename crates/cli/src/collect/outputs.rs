//! All that is made of a VMM's events: [`Outputs`].

use std::fmt::Display;
use std::io::{self, Write};

use msrgate_core::Recorder;
use msrgate_trace::Header;
use msrgate_trace::channel::{Channel, Claim};

use super::Args;
use super::metrics::{Metrics, Numbers};
use super::ring::Ring;
use super::traces::Traces;
use crate::log::Log;
use crate::seen::{Seen, Shared};
use crate::tally::Tally;
use crate::{report, warn};

/// Rows of the table, and twice as many series of metrics: more MSRs than any system has, fewer than a hostile guest.
const ROWS_LIMIT: usize = 1024;

/// Traces, table, metrics and log, as far as they were asked for.
pub(super) struct Outputs {
    traces: Option<Traces>,
    metrics: Option<Metrics>,
    has_stats: bool,
    seen: Shared,
    numbers: Numbers,
    has_complained: bool,
    is_shown: bool,
}

impl Outputs {
    /// Begins all files.
    pub(super) fn create(args: &Args, channel: &Channel) -> anyhow::Result<Self> {
        let header = Header {
            start_ns: channel.start().wall_ns,
            facts: channel.facts().clone(),
        };
        let guest = &channel.facts().guest;
        let numbers = Numbers {
            is_running: true,
            ..Numbers::default()
        };
        let seen = Seen::new(Tally::of_rows(ROWS_LIMIT), Log::new(None));
        let seen = Shared::new(seen);
        let metrics = args.metrics.as_ref().map(|path| {
            let metrics = Metrics::new(path, guest, channel.start().pid);
            metrics
                .write(&seen.lock().tally, &numbers)
                .map(|()| metrics)
        });
        let traces = args.trace.as_ref();
        Ok(Self {
            metrics: metrics.transpose()?,
            traces: traces
                .map(|path| Traces::create(path, header))
                .transpose()?,
            has_stats: args.stats,
            seen,
            numbers,
            has_complained: false,
            is_shown: false,
        })
    }

    pub(super) fn seen(&self) -> Shared {
        self.seen.clone()
    }

    /// Takes what a vCPU has done; how much that was.
    pub(super) fn take(&mut self, ring: &mut Ring, now_ns: u64) -> usize {
        let Claim { vm, vcpu, .. } = *ring.who();
        let mut file = self.traces.as_mut().and_then(|traces| traces.of(vm));
        let mut seen = self.seen.lock();
        let count = ring.empty(now_ns, |timed| {
            if let Some(file) = &mut file {
                file.record(timed);
            }
            seen.record(&timed.event);
        });
        let loss = ring.loss(now_ns);
        // What a hostile VMM counts has no bound.
        seen.lost = seen.lost.saturating_add(loss.count);
        let numbers = &mut self.numbers;
        numbers.lost_in_rings = seen.lost;
        drop(seen);
        if let Some(file) = &mut file {
            file.record_loss(loss);
        }
        let failures = ring.new_failures();
        if numbers.failures == 0 && failures != 0 {
            warn(format_args!(
                "the gate of vCPU {vcpu} of VM {vm} failed, which is a mistake in msrgate; \
                 --on-failure said what the access got"
            ));
        }
        numbers.failures = numbers.failures.saturating_add(failures);
        numbers.damaged += ring.new_damage();
        count
    }

    /// Takes note of how many vCPUs have no ring.
    pub(super) fn note_refused(&mut self, count: u32) {
        if self.numbers.refused == 0 && count != 0 {
            warn("more vCPUs than there is room for: the accesses of some are not seen");
        }
        self.numbers.refused = count;
    }

    /// Writes what is due.
    pub(super) fn keep_up(&mut self, vcpus: usize) {
        self.numbers.vcpus = vcpus;
        if let Some(traces) = &mut self.traces {
            traces.keep_up();
        }
        if self.metrics.as_mut().is_some_and(Metrics::is_due) {
            self.write_metrics();
        }
    }

    /// Shows what became of everything so far.
    pub(super) fn report(&mut self) {
        let mut text = Vec::new();
        // Memory takes all.
        let _ = self.write_report(&mut text);
        let _ = anstream::AutoStream::auto(io::stderr().lock()).write_all(&text);
    }

    fn write_report(&mut self, out: &mut dyn Write) -> io::Result<()> {
        report::write_tally(out, &self.seen.lock().tally)?;
        writeln!(out)?;
        let traces = self.traces.as_mut().map_or_else(Vec::new, Traces::flush);
        for trace in &traces {
            report::write_trace(out, trace)?;
        }
        Ok(())
    }

    /// The VMM has ended, or is about to: everything is written, and shown if it was not yet.
    pub(super) fn end(&mut self) {
        self.numbers.is_running = false;
        self.numbers.vcpus = 0;
        if self.metrics.is_some() {
            self.write_metrics();
        }
        if let Some(traces) = &mut self.traces {
            traces.flush();
            traces.keep_up();
        }
        if std::mem::replace(&mut self.is_shown, true) {
            return;
        }
        self.seen.lock().log.end();
        if self.has_stats {
            self.report();
        }
        let lost = self.numbers.lost_in_rings;
        if lost != 0 && !(self.has_stats && self.traces.is_some()) {
            warn(format_args!(
                "{lost} MSR accesses came faster than they could be taken, and are lost"
            ));
        }
        if let damaged @ 1.. = self.numbers.damaged {
            warn(format_args!(
                "{damaged} times, the VMM left something else than an access"
            ));
        }
    }

    fn write_metrics(&mut self) {
        self.numbers.lost_in_file = self.traces.as_ref().map_or(0, Traces::lost);
        let metrics = self.metrics.as_ref();
        let written = metrics.map(|metrics| metrics.write(&self.seen.lock().tally, &self.numbers));
        if let Some(Err(error)) = written {
            self.complain(format_args!("{error:#}"));
        }
    }

    /// Says what goes wrong, the first time.
    pub(super) fn complain(&mut self, message: impl Display) {
        if !std::mem::replace(&mut self.has_complained, true) {
            warn(format_args!("{message}: the guest runs on"));
        }
    }
}
