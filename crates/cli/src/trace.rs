//! Events on their way into a trace file: a ring from each vCPU, and one thread that empties them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use msrgate_core::{EventConsumer, EventProducer, EventRing, VcpuId};
use msrgate_trace::{Facts, Header, Loss, LossCause, Writer, Written};
use serde::Serialize;

/// Events that a vCPU may be ahead of the file: some milliseconds of the fastest guest.
const RING_EVENTS: usize = 1 << 16;
/// Nothing stays in memory for longer.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);
/// Between two looks at the rings, by how much there was to do.
const SHORTEST_NAP: Duration = Duration::from_micros(100);
const LONGEST_NAP: Duration = Duration::from_millis(10);

/// The end of a vCPU.
pub(crate) type Producer = EventProducer<Box<dyn FnMut() -> u64 + Send>>;

/// A trace that is being written.
pub(crate) struct Trace {
    path: PathBuf,
    thread: JoinHandle<Written>,
}

impl Trace {
    /// Begins the file, which must be writable before the guest starts. The producer is vCPU 0's.
    pub(crate) fn create(path: &Path, facts: Facts) -> anyhow::Result<(Self, Producer)> {
        let cannot = || format!("cannot write the trace {}", path.display());
        let file = File::create(path).with_context(cannot)?;
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        let header = Header {
            start_ns: nanoseconds(since_1970.unwrap_or_default()),
            facts,
        };
        let start = Instant::now();
        let writer = Writer::new(file, &header).with_context(cannot)?;
        let clock: Box<dyn FnMut() -> u64 + Send> = Box::new(move || nanoseconds(start.elapsed()));
        let (producer, consumer) = EventRing::new(RING_EVENTS).split(clock);
        let mut pump = Pump {
            writer,
            start,
            rings: vec![Ring {
                vcpu: VcpuId(0),
                consumer,
                dropped: 0,
            }],
        };
        let thread = thread::Builder::new().name("trace".to_owned());
        let trace = Self {
            path: path.to_owned(),
            thread: thread
                .spawn(move || {
                    pump.run();
                    pump.writer.finish()
                })
                .with_context(cannot)?,
        };
        Ok((trace, producer))
    }

    /// Waits until all is written. The producers must be gone.
    pub(crate) fn finish(self) -> TraceEnd {
        let written = self.thread.join();
        TraceEnd::of(
            &self.path,
            &written.expect("the trace's thread does not panic"),
        )
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

/// What the thread works on.
struct Pump {
    writer: Writer<File>,
    start: Instant,
    rings: Vec<Ring>,
}

struct Ring {
    vcpu: VcpuId,
    consumer: EventConsumer,
    /// Of the dropped events, those that the file knows of.
    dropped: u64,
}

impl Pump {
    /// Empties the rings until all producers are gone.
    fn run(&mut self) {
        let mut flushed = Instant::now();
        let mut nap = SHORTEST_NAP;
        loop {
            let is_end = self.rings.iter().all(|ring| ring.consumer.is_closed());
            let count = self.empty();
            if is_end && count == 0 {
                break;
            }
            if flushed.elapsed() >= FLUSH_INTERVAL {
                self.writer.flush();
                flushed = Instant::now();
            }
            nap = if count == 0 { nap * 2 } else { SHORTEST_NAP };
            nap = nap.min(LONGEST_NAP);
            if count < RING_EVENTS / 4 {
                thread::sleep(nap);
            }
        }
    }

    /// Takes what is there, but not for ever from one ring; says how much it was.
    fn empty(&mut self) -> usize {
        let mut count = 0;
        for ring in &mut self.rings {
            for _ in 0..RING_EVENTS {
                let Some(event) = ring.consumer.pop() else {
                    break;
                };
                self.writer.record(&event);
                count += 1;
            }
            let dropped = ring.consumer.dropped();
            self.writer.record_loss(Loss {
                time_ns: nanoseconds(self.start.elapsed()),
                cause: LossCause::Ring(ring.vcpu),
                count: dropped - ring.dropped,
            });
            ring.dropped = dropped;
        }
        count
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
