//! A vCPU's end of a ring in a channel: [`RingProducer`].
//!
//! The protocol is that of [`msrgate_core::EventRing`], where a model checker has been over it. Here the two sides are
//! processes that do not trust each other: each keeps its own count, and what it reads of the other's can at most make
//! it drop or pass over events.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use msrgate_core::{Event, Recorder};

use super::layout::{claim, ring};
use super::memory::Memory;
use super::{Claim, monotonic_ns};

/// What a claim's state says of its ring.
pub(super) mod state {
    /// Nobody's.
    pub(crate) const FREE: u32 = 0;
    /// Being claimed.
    pub(crate) const TAKEN: u32 = 1;
    /// A vCPU's.
    pub(crate) const OPEN: u32 = 2;
    /// The vCPU is gone; the consumer is to take what is left.
    pub(crate) const CLOSED: u32 = 3;
}

/// How long a vCPU waits, over its whole life, for somebody to watch its thread.
const PATIENCE: Duration = Duration::from_millis(500);
const NAP: Duration = Duration::from_micros(200);

/// The end of a vCPU. To record is to store: no system call, no lock, nothing that seccomp could forbid.
///
/// After `fork`, the child has it too, but is not the vCPU: it must neither record nor close (or drop) it.
pub struct RingProducer {
    control: Arc<Memory>,
    memory: Memory,
    /// Where the claim is in the control part.
    at: usize,
    start_ns: u64,
    recorded: u64,
    /// At least so many were taken.
    taken: u64,
    dropped: u64,
    is_closed: bool,
    /// How long it may still wait; `None` where nobody watches threads.
    patience: Option<Duration>,
}

impl RingProducer {
    /// For whoever has just set the state to [`state::TAKEN`].
    pub(super) fn new(
        control: &Arc<Memory>,
        memory: Memory,
        at: usize,
        who: &Claim,
        start_ns: u64,
        is_watched: bool,
    ) -> Self {
        for count in [ring::RECORDED, ring::DROPPED, ring::TAKEN] {
            memory.word(count).store(0, Ordering::Relaxed);
        }
        for (place, half) in [
            (claim::PID, who.pid),
            (claim::VM, who.vm),
            (claim::VCPU, who.vcpu.0),
            (claim::THREAD, 0),
            (claim::KNOWN_THREAD, 0),
        ] {
            control.half(at + place).store(half, Ordering::Relaxed);
        }
        control
            .word(at + claim::FAILURES)
            .store(0, Ordering::Relaxed);
        // Whoever sees this state sees all of that.
        control
            .half(at + claim::STATE)
            .store(state::OPEN, Ordering::Release);
        Self {
            control: Arc::clone(control),
            memory,
            at,
            start_ns,
            recorded: 0,
            taken: 0,
            dropped: 0,
            is_closed: false,
            patience: is_watched.then_some(PATIENCE),
        }
    }

    /// The vCPU is gone. What is recorded later is lost.
    pub fn close(&mut self) {
        // Once only: later the ring may be another vCPU's.
        if !self.is_closed {
            self.is_closed = true;
            let state = self.control.half(self.at + claim::STATE);
            state.store(state::CLOSED, Ordering::Release);
        }
    }

    /// Says on which thread the vCPU runs, and waits a little until that thread is watched, where the channel's
    /// observation is [`Tracepoint`](crate::Observation::Tracepoint). To be called on it before its first run.
    pub fn runs_on(&mut self, thread: u32) {
        let Some(patience) = &mut self.patience else {
            return;
        };
        let known = self.control.half(self.at + claim::KNOWN_THREAD);
        self.control
            .half(self.at + claim::THREAD)
            .store(thread, Ordering::Release);
        while known.load(Ordering::Acquire) != thread && !patience.is_zero() {
            thread::sleep(NAP);
            *patience = patience.saturating_sub(NAP);
        }
    }

    /// Counts that the gate itself failed while it served an access.
    pub fn gate_failed(&self) {
        self.control
            .word(self.at + claim::FAILURES)
            .fetch_add(1, Ordering::Relaxed);
    }

    /// How many events were dropped.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    fn is_full(&mut self) -> bool {
        if self.recorded.wrapping_sub(self.taken) >= ring::EVENTS {
            // Whoever sees this number knows that its slots are read.
            self.taken = self.memory.word(ring::TAKEN).load(Ordering::Acquire);
        }
        self.recorded.wrapping_sub(self.taken) >= ring::EVENTS
    }
}

impl Recorder for RingProducer {
    const WANTS_RIP: bool = true;

    /// Records `event`, or drops and counts it where the ring is full.
    fn record(&mut self, event: &Event) {
        if self.is_closed || self.is_full() {
            self.dropped += 1;
            if !self.is_closed {
                let dropped = self.memory.word(ring::DROPPED);
                dropped.store(self.dropped, Ordering::Relaxed);
            }
            return;
        }
        let slot = ring::slot(self.recorded);
        let time_ns = monotonic_ns().saturating_sub(self.start_ns);
        self.memory.word(slot).store(time_ns, Ordering::Relaxed);
        for (number, word) in (1..).zip(event.to_words()) {
            let place = self.memory.word(slot + number * 8);
            place.store(word, Ordering::Relaxed);
        }
        self.recorded = self.recorded.wrapping_add(1);
        // Whoever sees this number sees the words.
        let recorded = self.memory.word(ring::RECORDED);
        recorded.store(self.recorded, Ordering::Release);
    }
}

impl Drop for RingProducer {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for RingProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingProducer")
            .field("recorded", &self.recorded)
            .field("dropped", &self.dropped)
            .finish_non_exhaustive()
    }
}
