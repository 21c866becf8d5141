//! Guest time: the TSC of a vCPU and the clock of a VM, both counted from the host's monotonic clock.

use std::time::Instant;

/// The TSC runs at 1 GHz unless a client asks for another frequency, so that it counts nanoseconds.
pub(crate) const TSC_KHZ: u32 = 1_000_000;

/// A vCPU's TSC.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tsc {
    epoch: Instant,
    khz: u32,
    offset: u64,
}

impl Tsc {
    /// A TSC that was 0 at `epoch`.
    pub(crate) fn new(epoch: Instant, khz: u32) -> Self {
        Self {
            epoch,
            khz,
            offset: 0,
        }
    }

    /// What RDTSC reads.
    pub(crate) fn now(&self) -> u64 {
        self.ticks().wrapping_add(self.offset)
    }

    /// Makes it read `value` now; by how much it jumps.
    pub(crate) fn set(&mut self, value: u64) -> u64 {
        let jump = value.wrapping_sub(self.now());
        self.adjust(jump);
        jump
    }

    /// Makes it jump.
    pub(crate) fn adjust(&mut self, jump: u64) {
        self.offset = self.offset.wrapping_add(jump);
    }

    /// Its frequency.
    pub(crate) fn khz(&self) -> u32 {
        self.khz
    }

    /// Changes the frequency; the count goes on from where it is.
    pub(crate) fn set_khz(&mut self, khz: u32) {
        let now = self.now();
        self.khz = khz;
        self.set(now);
    }

    /// Nanoseconds until it reads `value`; 0 if it has.
    pub(crate) fn nanoseconds_until(&self, value: u64) -> u64 {
        let left = value.saturating_sub(self.now());
        let nanoseconds = u128::from(left) * 1_000_000 / u128::from(self.khz.max(1));
        u64::try_from(nanoseconds).unwrap_or(u64::MAX)
    }

    fn ticks(&self) -> u64 {
        let nanoseconds = self.epoch.elapsed().as_nanos();
        let ticks = match self.khz {
            TSC_KHZ => nanoseconds,
            khz => nanoseconds * u128::from(khz) / 1_000_000,
        };
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the counter wraps at 2^64, as in hardware"
        )]
        {
            ticks as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_value_is_read_back_and_grows() {
        let mut tsc = Tsc::new(Instant::now(), TSC_KHZ);
        let jump = tsc.set(1 << 40);
        assert!(jump <= 1 << 40);
        let first = tsc.now();
        assert!(first >= 1 << 40);
        assert!(tsc.now() >= first);
        tsc.adjust(0_u64.wrapping_sub(1 << 39));
        assert!(tsc.now() < 1 << 40);
    }

    #[test]
    fn frequency_change_goes_on_from_the_count() {
        let mut tsc = Tsc::new(Instant::now(), TSC_KHZ);
        tsc.set(1 << 50);
        tsc.set_khz(2_500_000);
        assert_eq!(tsc.khz(), 2_500_000);
        assert!((1 << 50..1 << 51).contains(&tsc.now()));
    }
}
