//! Events from rings into trace files: [`Inlet`], [`TraceFile`], and [`Pace`], how often one looks.
//!
//! `run` has it in a thread of its own, the collector of `wrap` in a process of its own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use msrgate_core::{EventConsumer, Timed, VcpuId};
use msrgate_trace::channel::RingConsumer;
use msrgate_trace::{Header, Loss, LossCause, Writer, Written};
use serde::Serialize;

/// As many are taken from a ring before the next one has its turn.
const TURN: usize = 1 << 14;
/// Nothing stays in memory for longer.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);
/// Between two looks at the rings, by how much there was to do.
const SHORTEST_NAP: Duration = Duration::from_micros(100);
const LONGEST_NAP: Duration = Duration::from_millis(10);

/// The end of a ring that is read.
pub(crate) trait Source {
    fn pop(&mut self) -> Option<Timed>;
    fn dropped(&self) -> u64;
}

impl Source for EventConsumer {
    fn pop(&mut self) -> Option<Timed> {
        self.pop()
    }

    fn dropped(&self) -> u64 {
        self.dropped()
    }
}

impl Source for RingConsumer {
    fn pop(&mut self) -> Option<Timed> {
        self.pop()
    }

    fn dropped(&self) -> u64 {
        self.dropped()
    }
}

/// A ring, and what is known of its losses.
#[derive(Debug)]
pub(crate) struct Inlet<S> {
    vcpu: VcpuId,
    pub(crate) source: S,
    /// Of the dropped events, those that were told.
    dropped: u64,
}

impl<S: Source> Inlet<S> {
    pub(crate) const fn new(vcpu: VcpuId, source: S) -> Self {
        Self {
            vcpu,
            source,
            dropped: 0,
        }
    }

    /// Takes what is there, but not for ever; says how much it was.
    pub(crate) fn empty(&mut self, mut take: impl FnMut(&Timed)) -> usize {
        let mut count = 0;
        while count < TURN
            && let Some(event) = self.source.pop()
        {
            take(&event);
            count += 1;
        }
        count
    }

    /// What was dropped since this was asked last.
    pub(crate) fn loss(&mut self, time_ns: u64) -> Loss {
        let dropped = self.source.dropped().max(self.dropped);
        let count = dropped - self.dropped;
        self.dropped = dropped;
        Loss {
            time_ns,
            cause: LossCause::Ring(self.vcpu),
            count,
        }
    }
}

/// A trace that is being written.
#[derive(Debug)]
pub(crate) struct TraceFile {
    path: PathBuf,
    writer: Writer<File>,
    flushed: Instant,
}

impl TraceFile {
    /// Begins the file.
    pub(crate) fn create(path: &Path, header: &Header) -> anyhow::Result<Self> {
        let cannot = || format!("cannot write the trace {}", path.display());
        let file = File::create(path).with_context(cannot)?;
        Ok(Self {
            path: path.to_owned(),
            writer: Writer::new(file, header).with_context(cannot)?,
            flushed: Instant::now(),
        })
    }

    pub(crate) fn record(&mut self, event: &Timed) {
        self.writer.record(event);
    }

    pub(crate) fn record_loss(&mut self, loss: Loss) {
        self.writer.record_loss(loss);
    }

    /// Writes what was kept for long enough.
    pub(crate) fn flush_in_time(&mut self) {
        if self.flushed.elapsed() >= FLUSH_INTERVAL {
            self.flush();
        }
    }

    pub(crate) fn flush(&mut self) {
        self.writer.flush();
        self.flushed = Instant::now();
    }

    /// What became of all that was recorded, up to the last flush.
    pub(crate) fn end_so_far(&self) -> TraceEnd {
        TraceEnd::of(&self.path, self.writer.written())
    }

    /// Writes all that is left.
    pub(crate) fn finish(self) -> TraceEnd {
        TraceEnd::of(&self.path, &self.writer.finish())
    }
}

/// What became of a trace.
#[derive(Debug, Serialize)]
pub(crate) struct TraceEnd {
    pub(crate) file: String,
    pub(crate) events: u64,
    pub(crate) lost_in_rings: u64,
    pub(crate) lost_in_file: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

impl TraceEnd {
    fn of(path: &Path, written: &Written) -> Self {
        Self {
            file: path.display().to_string(),
            events: written.events,
            lost_in_rings: written.lost_in_rings,
            lost_in_file: written.lost_in_file,
            error: written.error.as_ref().map(ToString::to_string),
        }
    }
}

/// How long to rest between two looks at the rings.
#[derive(Debug)]
pub(crate) struct Pace {
    nap: Duration,
}

impl Pace {
    pub(crate) const fn new() -> Self {
        Self { nap: SHORTEST_NAP }
    }

    /// Rests, after a look that found so many events.
    pub(crate) fn rest(&mut self, count: usize) {
        self.nap = if count == 0 {
            LONGEST_NAP.min(self.nap * 2)
        } else {
            SHORTEST_NAP
        };
        if count < TURN {
            thread::sleep(self.nap);
        }
    }
}
