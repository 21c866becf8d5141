//! The storm guard: how long a vCPU must wait that makes more accesses than a rule lets it.
//!
//! Each limit is metered as a GCRA: the meter knows when the next access would be due if the vCPU went at exactly its
//! limit, and an access may come before that by a burst. Time is the caller's; nothing here waits.

use alloc::boxed::Box;
use core::num::NonZeroU32;
use core::time::Duration;

use crate::Image;
use crate::tree::Number;

/// What may come at once: this part of a second's accesses, and at least one.
const BURSTS_PER_SECOND: u32 = 10;
const SECOND_NS: u64 = 1_000_000_000;
/// A vCPU never waits longer than this for one access.
const LONGEST_NS: u64 = SECOND_NS;

/// One vCPU's meters.
#[derive(Debug)]
pub(crate) struct StormGuard {
    /// By the places of the image's limits.
    meters: Box<[Meter]>,
    /// The limit of the access that was served last.
    served: Option<Number>,
    throttled: u64,
}

impl StormGuard {
    pub(crate) fn new(image: &Image) -> Self {
        Self {
            meters: image.limits().iter().copied().map(Meter::new).collect(),
            served: None,
            throttled: 0,
        }
    }

    /// The meters of another image begin anew.
    pub(crate) fn set_image(&mut self, image: &Image) {
        *self = Self {
            throttled: self.throttled,
            ..Self::new(image)
        };
    }

    #[inline]
    pub(crate) fn served(&mut self, limit: Option<Number>) {
        self.served = limit;
    }

    pub(crate) fn throttle(&mut self, now_ns: impl FnOnce() -> u64) -> Option<Duration> {
        let meter = self.meters.get_mut(usize::from(self.served.take()?))?;
        let wait = meter.access(now_ns())?;
        self.throttled = self.throttled.saturating_add(1);
        Some(wait)
    }

    pub(crate) const fn throttled(&self) -> u64 {
        self.throttled
    }
}

#[derive(Clone, Copy, Debug)]
struct Meter {
    /// Between two accesses at exactly the limit.
    interval_ns: u64,
    /// How long before it is due an access may come.
    burst_ns: u64,
    due_ns: u64,
}

impl Meter {
    fn new(limit_per_second: NonZeroU32) -> Self {
        let limit = limit_per_second.get();
        let interval_ns = SECOND_NS / u64::from(limit);
        let burst = (limit / BURSTS_PER_SECOND).max(1);
        Self {
            interval_ns,
            burst_ns: interval_ns * u64::from(burst),
            due_ns: 0,
        }
    }

    /// Counts an access; how long to wait before the next.
    fn access(&mut self, now_ns: u64) -> Option<Duration> {
        // No debt is ever longer than the longest wait, so a clock that was set back is no matter.
        let latest = now_ns.saturating_add(self.burst_ns + LONGEST_NS);
        let due_ns = self.due_ns.max(now_ns).saturating_add(self.interval_ns);
        self.due_ns = due_ns.min(latest);
        let wait_ns = self
            .due_ns
            .saturating_sub(now_ns.saturating_add(self.burst_ns));
        (wait_ns > 0).then(|| Duration::from_nanos(wait_ns))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn meter(limit: u32) -> Meter {
        Meter::new(NonZeroU32::new(limit).unwrap())
    }

    /// How many accesses a vCPU makes in `seconds` that is slowed as the meter says, and else takes `pause_ns` for each.
    fn accesses(limit: u32, seconds: u64, pause_ns: u64) -> u64 {
        let mut meter = meter(limit);
        let mut now = 5 * SECOND_NS;
        let end = now + seconds * SECOND_NS;
        let mut count = 0;
        while now < end {
            count += 1;
            let wait = meter.access(now).unwrap_or_default();
            now += u64::try_from(wait.as_nanos()).unwrap() + pause_ns;
        }
        count
    }

    #[test]
    fn storm_is_slowed_to_the_limit_after_a_burst() {
        for limit in [1, 7, 100, 1000] {
            let count = accesses(limit, 10, 1);
            let expected = u64::from(limit) * 10 + u64::from(limit / 10).max(1);
            assert!(count.abs_diff(expected) <= 1, "{limit}/s: {count}");
        }
    }

    #[test]
    fn vcpu_below_its_limit_never_waits() {
        let mut meter = meter(1000);
        for access in 0..10_000 {
            assert_eq!(meter.access(access * 1_000_000), None);
        }
    }

    #[test]
    fn burst_is_a_tenth_of_a_second_and_at_least_one() {
        for (limit, burst) in [(1, 1), (5, 1), (20, 2), (1000, 100)] {
            let mut meter = meter(limit);
            for _ in 0..burst {
                assert_eq!(meter.access(1), None, "{limit}/s");
            }
            let interval = Duration::from_secs(1) / limit;
            assert_eq!(meter.access(1), Some(interval), "{limit}/s");
        }
    }

    #[test]
    fn clock_that_was_set_back_costs_no_more_than_a_second() {
        let mut meter = meter(10);
        let _ = meter.access(u64::MAX - 1);
        let wait = meter.access(0).unwrap();
        assert_eq!(wait, Duration::from_secs(1));
        let after = u64::try_from(wait.as_nanos()).unwrap();
        assert_eq!(meter.access(after), Some(Duration::from_millis(100)));
    }

    proptest! {
        #[test]
        fn no_clock_makes_a_wait_longer_than_a_second(limit in 1u32.., times: Vec<u64>) {
            let mut meter = meter(limit);
            for now in times {
                let wait = meter.access(now);
                prop_assert!(wait.is_none_or(|wait| wait <= Duration::from_secs(1)));
                prop_assert_ne!(wait, Some(Duration::ZERO));
            }
        }
    }
}
