//! The APIC timer: one-shot, periodic, and TSC deadline. It counts nanoseconds, as KVM's does (a bus of 1 GHz).

use super::{Lapic, reg};
use crate::clock::Tsc;

/// LVT timer: the mode's bits, and their values.
pub(super) const MODE_BITS: u32 = 3 << 17;
const PERIODIC: u32 = 1 << 17;
const TSC_DEADLINE: u32 = 2 << 17;
/// A guest does not get more ticks than this (`kvm.min_timer_period_us`).
const MIN_PERIOD: u64 = 200_000;

/// The timer's state beyond its registers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Timer {
    /// The mode bits that exist for this guest.
    pub(super) modes: u32,
    /// The mode that is in force.
    mode: u32,
    /// Nanoseconds of a whole count.
    period: u64,
    /// When it fires, or has fired.
    target: u64,
    armed: bool,
    /// IA32_TSC_DEADLINE.
    deadline: u64,
}

impl Timer {
    pub(super) fn reset(&mut self) {
        *self = Self {
            modes: self.modes,
            ..Self::default()
        };
    }
}

impl Lapic {
    /// Whether the guest's CPUID has the TSC-deadline mode.
    pub(crate) fn set_deadline_mode(&mut self, there: bool) {
        self.timer.modes = if there { MODE_BITS } else { PERIODIC };
    }

    /// When the timer fires.
    pub(crate) fn timer_target(&self) -> Option<u64> {
        self.timer.armed.then_some(self.timer.target)
    }

    /// Lets the timer fire, if it is time; whether that signalled anything.
    pub(crate) fn tick(&mut self, now: u64) -> bool {
        if !self.timer.armed || now < self.timer.target {
            return false;
        }
        let signalled = self.local(reg::LVT_TIMER);
        match self.timer.mode {
            PERIODIC => {
                // Ticks that nobody could have seen are one.
                let missed = (now - self.timer.target) / self.timer.period;
                self.timer.target += (missed + 1) * self.timer.period;
            }
            _ => {
                self.timer.armed = false;
                self.timer.deadline = 0;
            }
        }
        signalled
    }

    /// IA32_TSC_DEADLINE.
    pub(crate) fn deadline(&self) -> u64 {
        if self.is_enabled() && self.timer.mode == TSC_DEADLINE {
            self.timer.deadline
        } else {
            0
        }
    }

    /// Sets it; outside its mode nothing happens. `tsc` is the vCPU's.
    pub(crate) fn set_deadline(&mut self, deadline: u64, tsc: &Tsc, now: u64) {
        if !self.is_enabled() || self.timer.mode != TSC_DEADLINE {
            return;
        }
        self.timer.deadline = deadline;
        self.timer.armed = deadline != 0;
        self.timer.target = now.saturating_add(tsc.nanoseconds_until(deadline));
    }

    /// The mode may have changed. Into or out of TSC deadline, the timer stops.
    pub(super) fn update_mode(&mut self) {
        let mode = self.regs[reg::LVT_TIMER] & self.timer.modes;
        if mode == self.timer.mode {
            return;
        }
        if (mode == TSC_DEADLINE) != (self.timer.mode == TSC_DEADLINE) {
            self.regs[reg::TIMER_INITIAL] = 0;
            self.timer.reset();
        }
        self.timer.mode = mode;
        self.limit_period();
    }

    /// The initial count has been written.
    pub(super) fn start_timer(&mut self, now: u64) {
        self.start_timer_at(self.regs[reg::TIMER_INITIAL], now);
    }

    /// Starts a period of which `count` is left.
    pub(super) fn start_timer_at(&mut self, count: u32, now: u64) {
        let divide = self.divide();
        self.timer.armed = false;
        if self.timer.mode == TSC_DEADLINE {
            return;
        }
        let initial = u64::from(self.regs[reg::TIMER_INITIAL]) * divide;
        self.timer.period = initial;
        if initial == 0 {
            return;
        }
        self.limit_period();
        let left = match u64::from(count) * divide {
            0 if self.timer.mode == PERIODIC => self.timer.period,
            left => left.min(self.timer.period),
        };
        let whole = count == self.regs[reg::TIMER_INITIAL];
        let left = if whole { self.timer.period } else { left };
        self.timer.target = now.saturating_add(left);
        self.timer.armed = true;
    }

    /// The divider changes; what is left of the count stays.
    pub(super) fn set_divide(&mut self, value: u32, now: u64) {
        let old = self.divide();
        self.regs[reg::TIMER_DIVIDE] = value & 0xb;
        let new = self.divide();
        if new == old || self.timer.period == 0 {
            return;
        }
        self.timer.period = u64::from(self.regs[reg::TIMER_INITIAL]) * new;
        self.limit_period();
        let left = self.timer.target.saturating_sub(now);
        self.timer.target = now.saturating_add(left / old * new);
    }

    /// The current count.
    pub(super) fn current_count(&self, now: u64) -> u32 {
        let Timer {
            mode,
            period,
            target,
            ..
        } = self.timer;
        if mode == TSC_DEADLINE || self.regs[reg::TIMER_INITIAL] == 0 || period == 0 {
            return 0;
        }
        let left = target.saturating_sub(now) % period / self.divide();
        u32::try_from(left).unwrap_or(u32::MAX)
    }

    pub(super) fn stop_timer(&mut self) {
        self.timer.armed = false;
    }

    pub(super) fn is_deadline_mode(&self) -> bool {
        self.timer.mode == TSC_DEADLINE
    }

    /// By how much the timer's clock is divided: 2, 4 .. 128, 1.
    fn divide(&self) -> u64 {
        let bits = self.regs[reg::TIMER_DIVIDE];
        1 << (((bits & 3 | bits >> 1 & 4) + 1) & 7)
    }

    fn limit_period(&mut self) {
        if self.timer.mode == PERIODIC && self.timer.period != 0 {
            self.timer.period = self.timer.period.max(MIN_PERIOD);
        }
    }
}
