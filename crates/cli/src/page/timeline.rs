//! [`Timeline`]: how many accesses there were when, in a fixed number of bins that grow as time goes on.

use msrgate_core::{Outcome, Timed};

/// How many bins there are. Once a trace has outgrown them, at least half are in use.
const BINS: usize = 2048;
/// Bins are this short at first: 2^10 ns.
const FIRST_SHIFT: u32 = 10;

/// Counts by outcome, in bins of equal length. The first begins with the trace.
#[derive(Debug)]
pub(super) struct Timeline {
    /// A bin is 2^shift nanoseconds.
    shift: u32,
    bins: Vec<[u64; Outcome::ALL.len()]>,
}

impl Timeline {
    pub(super) fn new() -> Self {
        Self {
            shift: FIRST_SHIFT,
            bins: vec![[0; Outcome::ALL.len()]; BINS],
        }
    }

    pub(super) fn add(&mut self, timed: &Timed) {
        let bin = loop {
            match usize::try_from(timed.time_ns >> self.shift) {
                Ok(bin) if bin < BINS => break bin,
                _ => self.double(),
            }
        };
        self.bins[bin][usize::from(timed.event.outcome.code())] += 1;
    }

    /// Makes one bin of every two.
    fn double(&mut self) {
        for bin in 0..BINS {
            let (left, right) = (self.at(2 * bin), self.at(2 * bin + 1));
            self.bins[bin] = std::array::from_fn(|outcome| left[outcome] + right[outcome]);
        }
        self.shift += 1;
    }

    fn at(&self, bin: usize) -> [u64; Outcome::ALL.len()] {
        self.bins.get(bin).copied().unwrap_or_default()
    }

    pub(super) fn bin_ns(&self) -> u64 {
        1 << self.shift
    }

    /// The bins in which something had this outcome, with how often it had.
    pub(super) fn counts(&self, outcome: Outcome) -> impl Iterator<Item = (usize, u64)> {
        let counts = self.bins.iter().enumerate();
        counts
            .map(move |(bin, counts)| (bin, counts[usize::from(outcome.code())]))
            .filter(|(_, count)| *count != 0)
    }
}

#[cfg(test)]
mod tests {
    use msrgate_core::{Access, Event, ExitReason, MsrIndex, VcpuId};

    use super::*;

    fn at(time_ns: u64, outcome: Outcome) -> Timed {
        let event = Event {
            vcpu: VcpuId(0),
            index: MsrIndex(0x10),
            access: Access::Read,
            reason: ExitReason::NONE,
            rip: None,
            value: 0,
            outcome,
            log: false,
        };
        Timed { time_ns, event }
    }

    #[test]
    fn bins_grow_until_all_times_have_one_and_no_access_is_lost() {
        let mut timeline = Timeline::new();
        for time_ns in [0, 1023, 1024, 1 << 20, (1 << 30) + 5, u64::MAX] {
            timeline.add(&at(time_ns, Outcome::Native));
        }
        timeline.add(&at(0, Outcome::Fault));
        assert_eq!(timeline.bin_ns(), 1 << 53);
        let native: Vec<_> = timeline.counts(Outcome::Native).collect();
        assert_eq!(native, [(0, 5), (BINS - 1, 1)]);
        assert_eq!(
            timeline.counts(Outcome::Fault).collect::<Vec<_>>(),
            [(0, 1)]
        );
        assert_eq!(timeline.counts(Outcome::Vmm).count(), 0);
    }

    #[test]
    fn bin_is_where_its_time_is() {
        let mut timeline = Timeline::new();
        let times = [5_000, 700_000, 3_000_000, 2_999_000];
        for time_ns in times {
            timeline.add(&at(time_ns, Outcome::Vmm));
        }
        let mut expected = times.map(|time_ns| time_ns / timeline.bin_ns());
        expected.sort_unstable();
        let counted = timeline.counts(Outcome::Vmm);
        let mut bins = Vec::new();
        for (bin, count) in counted {
            bins.extend(vec![bin as u64; usize::try_from(count).unwrap()]);
        }
        assert_eq!(bins, expected);
    }
}
