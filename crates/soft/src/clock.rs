//! Guest time: the TSC of a vCPU, counted from the host's monotonic clock, and what the TSCs of a VM agree on.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// The TSC runs at 1 GHz unless a client asks for another frequency, so that it counts nanoseconds.
pub(crate) const TSC_KHZ: u32 = 1_000_000;

/// A vCPU's TSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
        self.at(self.since_epoch())
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

    /// What it reads when `nanoseconds` have passed since the epoch.
    pub(crate) fn at(&self, nanoseconds: u64) -> u64 {
        let ticks = match self.khz {
            TSC_KHZ => u128::from(nanoseconds),
            khz => u128::from(nanoseconds) * u128::from(khz) / 1_000_000,
        };
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the counter wraps at 2^64, as in hardware"
        )]
        {
            (ticks as u64).wrapping_add(self.offset)
        }
    }

    fn since_epoch(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// What the TSCs of a VM agree on (`kvm_synchronize_tsc`): a vCPU that comes later, and one whose TSC its client sets
/// to nearly the same, gets the offset of the one before.
#[derive(Debug, Default)]
pub(crate) struct TscSync(Mutex<Option<Written>>);

/// The TSC that a client, or the making of a vCPU, set last.
#[derive(Clone, Copy, Debug)]
struct Written {
    tsc: Tsc,
    /// A client has set one, so that a small difference is not meant.
    by_client: bool,
}

impl TscSync {
    /// A new vCPU's TSC starts at 0, or goes along with the others of its frequency.
    pub(crate) fn join(&self, tsc: &mut Tsc) {
        self.write(tsc, 0, false);
    }

    /// A client sets the TSC. 0, and what is less than a second away from the other TSCs, means: the same as they.
    pub(crate) fn set(&self, tsc: &mut Tsc, value: u64) {
        self.write(tsc, value, true);
    }

    fn write(&self, tsc: &mut Tsc, value: u64, by_client: bool) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let hz = u64::from(tsc.khz).saturating_mul(1000);
        let same = last.filter(|last| {
            let near = || {
                let expected = Tsc {
                    khz: tsc.khz,
                    ..last.tsc
                }
                .now();
                value < expected.wrapping_add(hz) && value.wrapping_add(hz) > expected
            };
            last.tsc.khz == tsc.khz && (value == 0 || last.by_client && near())
        });
        match same {
            Some(last) => tsc.offset = last.tsc.offset,
            None => {
                tsc.set(value);
            }
        }
        let by_client = by_client || last.is_some_and(|last| last.by_client);
        *last = Some(Written {
            tsc: *tsc,
            by_client,
        });
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

    #[test]
    fn new_and_nearly_equal_tscs_are_one() {
        let epoch = Instant::now();
        let sync = TscSync::default();
        let [mut first, mut second, mut other] =
            [TSC_KHZ, TSC_KHZ, 2 * TSC_KHZ].map(|khz| Tsc::new(epoch, khz));
        sync.join(&mut first);
        sync.set(&mut first, 1 << 50);
        sync.join(&mut second);
        assert_eq!(second, first, "who comes later goes along");
        sync.set(&mut second, (1 << 50) + 1_000_000);
        assert_eq!(second, first, "half a second is no difference");
        sync.set(&mut second, 1 << 51);
        assert_ne!(second, first);
        sync.join(&mut other);
        assert!(other.now() < 1 << 50, "at another frequency it is alone");
    }
}
