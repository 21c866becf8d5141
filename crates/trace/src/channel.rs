//! [`Channel`]: what a wrapped VMM and its collector share: facts about the run, and a ring of events for each vCPU.
//!
//! It is one file in memory, which the VMM inherits. [`RingProducer`] is a vCPU's end of a ring, [`RingConsumer`] the
//! collector's. Nothing here starts a process, or knows what becomes of the events.

mod consumer;
mod description;
mod layout;
mod memory;
mod producer;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use msrgate_core::VcpuId;
use rustix::fs::SealFlags;
use rustix::time::ClockId;

pub use self::consumer::RingConsumer;
pub use self::description::ChannelError;
use self::description::{Description, sealed};
use self::layout::{FACTS_AT, RINGS, claim, ring};
use self::memory::Memory;
pub use self::producer::RingProducer;
use self::producer::state;
use crate::header::{Facts, Header, Observation};

/// A sealed file in memory that a VMM and its collector share.
#[derive(Debug)]
pub struct Channel {
    file: Arc<File>,
    /// Which file that is: a VMM may close descriptors that it does not know, and get their numbers again.
    identity: (u64, u64),
    description: Description,
    header: Header,
    control: Arc<Memory>,
    /// Whether this process has the same pid for the collector.
    is_at_home: bool,
    /// The rings that have a consumer here.
    consumed: Vec<bool>,
}

/// Whether anybody will read events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rings {
    /// Somebody will.
    Wanted,
    /// The channel is for the facts only.
    NotWanted,
}

/// When a channel was made, and by whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Nanoseconds since 1970 (UTC).
    pub wall_ns: u64,
    /// The same moment by `CLOCK_MONOTONIC`. The times of events count from here.
    pub monotonic_ns: u64,
    /// The process that made it, which is about to become the VMM.
    pub pid: u32,
}

/// Who wants a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its process; 0 for a collector that has no pid of it.
    pub pid: u32,
    /// The number of the VM.
    pub vm: u32,
    /// Which of its vCPUs.
    pub vcpu: VcpuId,
}

impl Channel {
    /// Makes one, which begins now. Its descriptor is closed on `exec`.
    ///
    /// # Errors
    /// There is no memory, or the facts are longer than [`FACTS_LIMIT_BYTES`](crate::FACTS_LIMIT_BYTES).
    pub fn create(facts: &Facts, rings: Rings) -> Result<Self, ChannelError> {
        let since_1970 = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let header = Header {
            start_ns: u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX),
            facts: facts.clone(),
        };
        let header = header.encode().map_err(ChannelError::Create)?;
        let description = Description {
            rings: match rings {
                Rings::Wanted => RINGS,
                Rings::NotWanted => 0,
            },
            monotonic_ns: monotonic_ns(),
            facts_bytes: header.len(),
            pid_namespace: pid_namespace().unwrap_or(0),
            pid: std::process::id(),
        };
        Self::open(sealed(&description, &header).map_err(ChannelError::Create)?)
    }

    /// The same one in another process.
    ///
    /// # Errors
    /// `file` is not one that [`Channel::create`] of this version made, or it cannot be mapped.
    pub fn open(file: File) -> Result<Self, ChannelError> {
        let seals = rustix::fs::fcntl_get_seals(&file).map_err(|_| ChannelError::NotAChannel)?;
        if !seals.contains(SealFlags::SHRINK | SealFlags::GROW) {
            return Err(ChannelError::NotAChannel);
        }
        let description = Description::read(&file)?;
        let stat = rustix::fs::fstat(&file).map_err(io::Error::from)?;
        if u64::try_from(stat.st_size) != Ok(description.file_bytes()) {
            return Err(ChannelError::Size);
        }
        let mut header = vec![0; description.facts_bytes];
        file.read_exact_at(&mut header, FACTS_AT as u64)?;
        let file = Arc::new(file);
        Ok(Self {
            control: Arc::new(Memory::map(&file, 0, layout::CONTROL_BYTES)?),
            file,
            identity: (stat.st_dev, stat.st_ino),
            header: Header::read(&mut &header[..])?,
            is_at_home: pid_namespace() == Some(description.pid_namespace),
            consumed: vec![false; description.rings],
            description,
        })
    }

    /// To be inherited.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What the VMM is to do, and what a trace of it says.
    #[must_use]
    pub const fn facts(&self) -> &Facts {
        &self.header.facts
    }

    /// When and by whom it was made.
    #[must_use]
    pub const fn start(&self) -> Start {
        Start {
            wall_ns: self.header.start_ns,
            monotonic_ns: self.description.monotonic_ns,
            pid: self.description.pid,
        }
    }

    /// The number of a new VM: 1, 2 and so on over all processes.
    #[must_use]
    pub fn next_vm(&self) -> u32 {
        let vms = self.control.half(layout::VMS);
        vms.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    /// A ring for a vCPU of this process. `None` where nobody wants events, and where none is free or can be mapped,
    /// which is counted.
    #[must_use]
    pub fn claim(&self, who: Claim) -> Option<RingProducer> {
        let free = (0..self.description.rings).find(|&number| {
            let (from, to) = (state::FREE, state::TAKEN);
            let state = self.state(number);
            state
                .compare_exchange(from, to, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
        });
        let claimed = free.and_then(|number| {
            let memory = self.map(number);
            if memory.is_err() {
                self.state(number).store(state::FREE, Ordering::Relaxed);
            }
            Some((number, memory.ok()?))
        });
        let Some((number, memory)) = claimed else {
            if self.description.rings != 0 {
                self.control
                    .half(layout::REFUSED)
                    .fetch_add(1, Ordering::Relaxed);
            }
            return None;
        };
        let who = Claim {
            pid: if self.is_at_home { who.pid } else { 0 },
            ..who
        };
        let start_ns = self.description.monotonic_ns;
        let is_watched = self.header.facts.observation == Some(Observation::Tracepoint);
        let at = claim::at(number);
        Some(RingProducer::new(
            &self.control,
            memory,
            at,
            &who,
            start_ns,
            is_watched,
        ))
    }

    /// The VMM is about to exit: where a collector has promised so, waits until all is written and shown, but no longer
    /// than `limit`. Other processes do not wait.
    pub fn leave(&self, limit: Duration) {
        let start = Instant::now();
        let report = self.control.half(layout::REPORT);
        let (from, to) = (report::PROMISED, report::VMM_LEAVES);
        if self.description.pid != std::process::id()
            || report
                .compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed)
                .is_err()
        {
            return;
        }
        while report.load(Ordering::Acquire) == report::VMM_LEAVES && start.elapsed() < limit {
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn state(&self, number: usize) -> &AtomicU32 {
        self.control.half(claim::at(number) + claim::STATE)
    }

    fn map(&self, number: usize) -> io::Result<Memory> {
        let stat = rustix::fs::fstat(&self.file)?;
        if (stat.st_dev, stat.st_ino) != self.identity {
            return Err(io::ErrorKind::NotFound.into());
        }
        let rings_at = layout::rings_at(self.description.facts_bytes);
        let at = rings_at + number * ring::BYTES;
        Memory::map(&self.file, at as u64, ring::BYTES)
    }
}

/// The collector's side.
impl Channel {
    /// The consumers of rings that were claimed since this was asked last.
    ///
    /// # Errors
    /// A ring cannot be mapped; it is tried again next time.
    pub fn claimed(&mut self) -> io::Result<Vec<RingConsumer>> {
        let mut consumers = Vec::new();
        for number in 0..self.description.rings {
            let state = self.state(number).load(Ordering::Acquire);
            if !self.consumed[number] && matches!(state, state::OPEN | state::CLOSED) {
                consumers.push(RingConsumer::new(&self.control, self.map(number)?, number));
                self.consumed[number] = true;
            }
        }
        Ok(consumers)
    }

    /// Gives a ring back whose producer is closed, or dead, and from which all is taken.
    pub fn release(&mut self, consumer: RingConsumer) {
        let number = consumer.number();
        drop(consumer);
        self.consumed[number] = false;
        self.state(number).store(state::FREE, Ordering::Release);
    }

    /// How many vCPUs got no ring.
    #[must_use]
    pub fn refused(&self) -> u32 {
        self.control.half(layout::REFUSED).load(Ordering::Relaxed)
    }

    /// Nanoseconds since the channel began.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        monotonic_ns().saturating_sub(self.description.monotonic_ns)
    }

    /// Has a VMM that exits wait until [`Channel::report_is_done`].
    pub fn promise_report(&self) {
        self.control
            .half(layout::REPORT)
            .store(report::PROMISED, Ordering::Release);
    }

    /// Whether the VMM waits for that.
    #[must_use]
    pub fn is_left(&self) -> bool {
        self.control.half(layout::REPORT).load(Ordering::Acquire) == report::VMM_LEAVES
    }

    /// All is written and shown, or will never be.
    pub fn report_is_done(&self) {
        self.control
            .half(layout::REPORT)
            .store(report::DONE, Ordering::Release);
    }
}

/// What the word at [`layout::REPORT`] says; at first, that nobody is to be waited for.
mod report {
    pub(super) const PROMISED: u32 = 1;
    pub(super) const VMM_LEAVES: u32 = 2;
    pub(super) const DONE: u32 = 3;
}

fn pid_namespace() -> Option<u64> {
    Some(rustix::fs::stat("/proc/self/ns/pid").ok()?.st_ino)
}

fn monotonic_ns() -> u64 {
    let time = rustix::time::clock_gettime(ClockId::Monotonic);
    let (seconds, rest) = (time.tv_sec.cast_unsigned(), time.tv_nsec.cast_unsigned());
    seconds.wrapping_mul(1_000_000_000).wrapping_add(rest)
}

#[cfg(test)]
mod tests;
