//! The collector's end of a ring in a channel: [`RingConsumer`].

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use msrgate_core::{Event, Timed, VcpuId};

use super::Claim;
use super::layout::{claim, ring};
use super::memory::Memory;
use super::producer::state;

/// The collector's end of a vCPU's ring.
pub struct RingConsumer {
    control: Arc<Memory>,
    memory: Memory,
    number: usize,
    at: usize,
    who: Claim,
    taken: u64,
    damaged: u64,
}

impl RingConsumer {
    /// For a ring whose state is or was [`state::OPEN`].
    pub(super) fn new(control: &Arc<Memory>, memory: Memory, number: usize) -> Self {
        let at = claim::at(number);
        let half = |place| control.half(at + place).load(Ordering::Relaxed);
        Self {
            who: Claim {
                pid: half(claim::PID),
                vm: half(claim::VM),
                vcpu: VcpuId(half(claim::VCPU)),
            },
            control: Arc::clone(control),
            memory,
            number,
            at,
            taken: 0,
            damaged: 0,
        }
    }

    /// Whose ring it is.
    #[must_use]
    pub const fn who(&self) -> &Claim {
        &self.who
    }

    /// Takes the oldest event, if there is one. It does not wait. What is no event is passed over, and counted.
    pub fn pop(&mut self) -> Option<Timed> {
        let recorded = self.memory.word(ring::RECORDED).load(Ordering::Acquire);
        if recorded.wrapping_sub(self.taken) > ring::EVENTS {
            self.damaged += 1;
            self.take_up_to(recorded);
        }
        let mut found = None;
        while found.is_none() && self.taken != recorded {
            let slot = ring::slot(self.taken);
            let word = |number: usize| self.memory.word(slot + number * 8).load(Ordering::Relaxed);
            let time_ns = word(0);
            let event = Event::from_words([word(1), word(2), word(3), word(4)]);
            self.take_up_to(self.taken.wrapping_add(1));
            match event {
                Some(event) => found = Some(Timed { time_ns, event }),
                None => self.damaged += 1,
            }
        }
        found
    }

    fn take_up_to(&mut self, taken: u64) {
        self.taken = taken;
        self.memory
            .word(ring::TAKEN)
            .store(taken, Ordering::Release);
    }

    /// How many events were dropped so far, as the ring was full.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.memory.word(ring::DROPPED).load(Ordering::Relaxed)
    }

    /// How often something was in the ring that no producer puts there.
    #[must_use]
    pub const fn damaged(&self) -> u64 {
        self.damaged
    }

    /// How often the gate itself has failed.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.control
            .word(self.at + claim::FAILURES)
            .load(Ordering::Relaxed)
    }

    /// Whether the producer is gone: once this was true, [`RingConsumer::pop`] gives what is left and
    /// [`RingConsumer::dropped`] is final. A producer that was killed did not say that it is.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        let state = self.control.half(self.at + claim::STATE);
        state.load(Ordering::Acquire) != state::OPEN
    }

    /// The thread on which the vCPU runs, if it says so and that is not yet known.
    #[must_use]
    pub fn new_thread(&self) -> Option<u32> {
        let half = |place| self.control.half(self.at + place).load(Ordering::Acquire);
        let thread = half(claim::THREAD);
        (thread != 0 && thread != half(claim::KNOWN_THREAD)).then_some(thread)
    }

    /// Lets the vCPU run: its thread is watched, or cannot be.
    pub fn knows(&self, thread: u32) {
        let known = self.control.half(self.at + claim::KNOWN_THREAD);
        known.store(thread, Ordering::Release);
    }

    pub(super) const fn number(&self) -> usize {
        self.number
    }
}

impl fmt::Debug for RingConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingConsumer")
            .field("who", &self.who)
            .field("taken", &self.taken)
            .finish_non_exhaustive()
    }
}
