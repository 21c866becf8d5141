//! The in-kernel interrupt controllers: [`IrqChip`], all of them behind one lock, and the one place where vCPUs
//! sleep and timers fire.
//!
//! Nobody ticks: who looks at the controllers first lets time pass for all of them. A running vCPU looks when
//! something has been raised or the next timer is due; a halted one sleeps until then.

mod chips;
mod delivery;
mod ioapic;
mod irqfd;
mod lapic;
mod pic;
mod pit;
mod routing;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(crate) use chips::Chips;
pub(crate) use ioapic::{
    BASE as IOAPIC_BASE, BYTES as IOAPIC_BYTES, IoapicState, PINS as IOAPIC_PINS,
};
pub(crate) use irqfd::{Irqfd, Irqfds};
pub(crate) use lapic::{Lapic, REGISTER_BYTES, StartUp};
pub(crate) use pic::{PINS as PIC_PINS, Pic};
pub(crate) use pit::{Channel, Pit};
pub(crate) use routing::{MAX_ROUTES, Route, Target};

/// The controllers of a VM.
#[derive(Debug)]
pub(crate) struct IrqChip {
    state: Mutex<State>,
    /// Somebody has something to look at.
    raised: Condvar,
    /// How often something was raised.
    generation: AtomicU64,
    /// When the next timer fires; [`NEVER`] if none will.
    next_timer: AtomicU64,
    /// When the VM was made: the controllers' time counts from here.
    epoch: Instant,
    /// The I/O APIC, the 8259s and the PIT are the client's (`KVM_CAP_SPLIT_IRQCHIP`).
    is_split: bool,
}

#[derive(Debug)]
struct State {
    chips: Chips,
    sleepers: u32,
}

const NEVER: u64 = u64::MAX;

impl IrqChip {
    /// All controllers as after reset; or, with the number of `client_pins`, local APICs alone.
    pub(crate) fn new(epoch: Instant, client_pins: Option<u32>) -> Self {
        Self {
            state: Mutex::new(State {
                chips: Chips::new(client_pins),
                sleepers: 0,
            }),
            raised: Condvar::new(),
            generation: AtomicU64::new(0),
            next_timer: AtomicU64::new(NEVER),
            epoch,
            is_split: client_pins.is_some(),
        }
    }

    /// Whether there are only local APICs.
    pub(crate) fn is_split(&self) -> bool {
        self.is_split
    }

    /// Works on the controllers, at this moment's time.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut Chips, u64) -> R) -> R {
        let mut state = self.lock();
        let now = self.now();
        state.chips.advance(now);
        let result = work(&mut state.chips, now);
        let next = state.chips.next_timer().unwrap_or(NEVER);
        self.next_timer.store(next, Ordering::Relaxed);
        if state.chips.take_raised() {
            self.generation.fetch_add(1, Ordering::Release);
            if state.sleepers > 0 {
                self.raised.notify_all();
            }
        }
        result
    }

    /// Whether there may be something to look at that was not there when this was called last with `seen`.
    #[inline]
    pub(crate) fn has_news(&self, seen: &mut u64) -> bool {
        let generation = self.generation.load(Ordering::Acquire);
        let raised = *seen != generation;
        *seen = generation;
        raised || self.timer_is_due()
    }

    #[inline]
    fn timer_is_due(&self) -> bool {
        let next = self.next_timer.load(Ordering::Relaxed);
        next != NEVER && self.now() >= next
    }

    /// Nanoseconds until the next timer.
    pub(crate) fn until_timer(&self) -> Option<u64> {
        let next = self.next_timer.load(Ordering::Relaxed);
        (next != NEVER).then(|| next.saturating_sub(self.now()))
    }

    /// Sleeps until something is raised that `seen` has not, a timer is due, or `limit` has passed.
    pub(crate) fn sleep(&self, seen: u64, limit: Duration) {
        let mut state = self.lock();
        if self.generation.load(Ordering::Acquire) != seen {
            return;
        }
        let timer = self.until_timer().map(Duration::from_nanos);
        state.sleepers += 1;
        let limit = timer.map_or(limit, |timer| timer.min(limit));
        let woken = self.raised.wait_timeout(state, limit);
        woken.unwrap_or_else(PoisonError::into_inner).0.sleepers -= 1;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}
