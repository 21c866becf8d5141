//! Chrome's trace events, which Perfetto shows: a process for the guest, a track for each vCPU, and a counter.

use std::collections::BTreeSet;
use std::io::{self, Write};

use msrgate_core::{Access, Timed, VcpuId};
use msrgate_trace::Header;
use serde_json::{Value, json};

use super::hexadecimal;

/// The guest is the only process.
const PROCESS: u32 = 1;
/// What the counter counts in.
const INTERVAL_NS: u64 = 1_000_000;
/// So many vCPUs get a name for their track.
const NAMED_VCPUS: usize = 4096;

/// Writes trace events.
pub(super) struct Perfetto<W> {
    out: W,
    named: BTreeSet<VcpuId>,
    /// The interval that is being counted, its reads and its writes.
    interval: u64,
    counts: [u64; 2],
}

impl<W: Write> Perfetto<W> {
    /// Writes what comes before the first access.
    pub(super) fn begin(mut out: W, header: &Header) -> io::Result<Self> {
        let facts = &header.facts;
        let name = if facts.guest.is_empty() {
            "guest"
        } else {
            &facts.guest
        };
        let process = json!({
            "ph": "M", "name": "process_name", "pid": PROCESS, "args": { "name": name },
        });
        write!(
            out,
            "{{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n{process}"
        )?;
        Ok(Self {
            out,
            named: BTreeSet::new(),
            interval: 0,
            counts: [0; 2],
        })
    }

    /// Writes an access.
    pub(super) fn event(&mut self, timed: &Timed) -> io::Result<()> {
        let event = &timed.event;
        let vcpu = event.vcpu;
        if self.named.len() < NAMED_VCPUS && self.named.insert(vcpu) {
            self.write(&json!({
                "ph": "M", "name": "thread_name", "pid": PROCESS, "tid": vcpu.0,
                "args": { "name": format!("vCPU {vcpu}") },
            }))?;
        }
        self.count(timed.time_ns, event.access)?;
        let instruction = event.access.instruction();
        let name = match event.index.name() {
            Some(name) => format!("{instruction} {name}"),
            None => format!("{instruction} {}", event.index),
        };
        self.write(&json!({
            "ph": "i", "s": "t", "name": name, "cat": event.outcome.word(),
            "ts": microseconds(timed.time_ns), "pid": PROCESS, "tid": vcpu.0,
            "args": {
                "index": event.index.to_string(),
                "reason": event.reason.to_string(),
                "value": hexadecimal(event.value),
                "outcome": event.outcome.word(),
                "rip": event.rip.map(hexadecimal),
            },
        }))
    }

    /// Writes what comes behind the last access.
    pub(super) fn end(mut self) -> io::Result<()> {
        self.write_counts()?;
        self.out.write_all(b"\n]}\n")
    }

    /// Counts an access. One of another vCPU that comes late counts in the interval that is under way.
    fn count(&mut self, time_ns: u64, access: Access) -> io::Result<()> {
        let interval = time_ns / INTERVAL_NS;
        if interval > self.interval {
            self.write_counts()?;
            if interval > self.interval + 1 {
                self.interval += 1;
                self.counts = [0; 2];
                self.write_counts()?;
            }
            self.interval = interval;
            self.counts = [0; 2];
        }
        self.counts[access as usize] += 1;
        Ok(())
    }

    fn write_counts(&mut self) -> io::Result<()> {
        let [reads, writes] = self.counts;
        self.write(&json!({
            "ph": "C", "name": "MSR accesses per ms", "pid": PROCESS,
            "ts": self.interval.saturating_mul(INTERVAL_NS / 1000),
            "args": { "reads": reads, "writes": writes },
        }))
    }

    fn write(&mut self, event: &Value) -> io::Result<()> {
        write!(self.out, ",\n{event}")
    }
}

/// With the nanoseconds behind the point.
#[expect(
    clippy::cast_precision_loss,
    reason = "a trace of 52 days has its nanoseconds still"
)]
fn microseconds(time_ns: u64) -> f64 {
    time_ns as f64 / 1000.0
}
