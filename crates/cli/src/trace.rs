//! The trace of a `run`: a ring from each vCPU, and one thread that empties them.

use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use msrgate_core::{EventConsumer, EventProducer, EventRing, VcpuId};
use msrgate_trace::{Facts, Header};

use crate::pump::{Inlet, Pace, TraceEnd, TraceFile};

/// Events that a vCPU may be ahead of the file: some milliseconds of the fastest guest.
const RING_EVENTS: usize = 1 << 16;

/// The end of a vCPU.
pub(crate) type Producer = EventProducer<Box<dyn FnMut() -> u64 + Send>>;

/// A trace that is being written.
pub(crate) struct Trace {
    thread: JoinHandle<TraceEnd>,
}

impl Trace {
    /// Begins the file, which must be writable before the guest starts, and makes a producer for each vCPU.
    pub(crate) fn create(
        path: &Path,
        facts: Facts,
        vcpus: u32,
    ) -> anyhow::Result<(Self, Vec<Producer>)> {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        let header = Header {
            start_ns: nanoseconds(since_1970.unwrap_or_default()),
            facts,
        };
        let start = Instant::now();
        let file = TraceFile::create(path, &header)?;
        let (producers, rings) = (0..vcpus).map(|id| ring(VcpuId(id), start)).unzip();
        let thread = thread::Builder::new().name("trace".to_owned());
        let thread = thread
            .spawn(move || write(file, rings, start))
            .with_context(|| format!("cannot write the trace {}", path.display()))?;
        Ok((Self { thread }, producers))
    }

    /// Waits until all is written. The producers must be gone.
    pub(crate) fn finish(self) -> TraceEnd {
        let end = self.thread.join();
        end.expect("the trace's thread does not panic")
    }
}

type Ring = Inlet<EventConsumer>;

fn ring(vcpu: VcpuId, start: Instant) -> (Producer, Ring) {
    let clock: Box<dyn FnMut() -> u64 + Send> = Box::new(move || nanoseconds(start.elapsed()));
    let (producer, consumer) = EventRing::new(RING_EVENTS).split(clock);
    (producer, Inlet::new(vcpu, consumer))
}

/// Empties the rings until all producers are gone.
fn write(mut file: TraceFile, mut rings: Vec<Ring>, start: Instant) -> TraceEnd {
    let mut pace = Pace::new();
    loop {
        let is_end = rings.iter().all(|ring| ring.source.is_closed());
        let mut count = 0;
        for ring in &mut rings {
            count += ring.empty(|event| file.record(event));
            file.record_loss(ring.loss(nanoseconds(start.elapsed())));
        }
        if is_end && count == 0 {
            return file.finish();
        }
        file.flush_in_time();
        pace.rest(count);
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
