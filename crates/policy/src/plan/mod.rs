//! Fitting what the filter must except from its default into the fewest ranges: [`plan`].
//!
//! A filter has 16 ranges of 12,288 neighbouring MSRs; gaps between exceptions are bridged by the bitmap,
//! which repeats the default there. A range for both directions has one bitmap for both. The kernel asks the
//! ranges in order, so that a range for one direction may decide what a later one for both would get wrong.
//!
//! # Why no filter has fewer ranges
//! A range for one direction can be right about every MSR that it holds. It then harms nothing by coming
//! first; so in some filter with the fewest ranges those for one direction come first, and are right. What
//! is left to choose is which MSRs are held by a range for reads, for writes, and for both. An MSR is decided
//! rightly where it is held so:
//!
//! | excepted | by one that is for | or by two that are for |
//! |---|---|---|
//! | reads | reads | both, and writes |
//! | writes | writes | both, and reads |
//! | both | both | reads, and writes |
//! | nothing, or x2APIC | (needs none) | |
//!
//! Holding more MSRs never makes this false. So a range that begins left of the first MSR that needs it can
//! move to the right until it begins there, and a search from left to right need only place ranges on the
//! first MSR that is not decided yet: [`cover`] does that.
//!
//! The order among ranges of one kind is that of their MSRs: the kernel's walk is short, and nobody knows
//! here which MSR a guest uses most.

use msrgate_core::{
    Access, DefaultAction, FilterRange, MAX_MSRS, MAX_RANGES, MsrFilter, MsrIndex, RangeFlags,
    Verdict,
};

mod cover;

/// From the first to the last MSR. Lists of these are sorted, disjoint and do not touch.
pub(crate) type Interval = (u32, u32);

/// What the filter does otherwise than by default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exceptions {
    pub(crate) default: DefaultAction,
    /// By [`Access`]. What they say about the x2APIC's MSRs is not looked at.
    pub(crate) intervals: [Vec<Interval>; 2],
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PlanError {
    /// More ranges than a filter has: these, each with the number of MSRs that are excepted in it.
    TooManyRanges { windows: Vec<(Window, u32)> },
    /// More than [`MOST_NAMED`] ranges.
    FarTooManyRanges,
    /// The end of a range is computed modulo 2^32, so that none holds the last MSR.
    LastMsr,
}

/// A plan of more ranges than these is not looked for: it would fit no screen either.
pub(crate) const MOST_NAMED: usize = 64;

/// A filter that excepts exactly `exceptions` from its default, with as few ranges as can be.
pub(crate) fn plan(exceptions: &Exceptions) -> Result<MsrFilter, PlanError> {
    let exceptions = Exceptions {
        default: exceptions.default,
        intervals: [0, 1].map(|access| without_x2apic(&exceptions.intervals[access])),
    };
    let intervals = exceptions.intervals.iter().flatten();
    if { intervals }.any(|&(_, last)| last == u32::MAX) {
        return Err(PlanError::LastMsr);
    }
    let cells = cells(&exceptions.intervals);
    let windows = cover::cover(&cells, MAX_MSRS, MOST_NAMED).ok_or(PlanError::FarTooManyRanges)?;
    if windows.len() > MAX_RANGES {
        let counted = windows
            .iter()
            .map(|&window| (window, count(window, &cells)));
        return Err(PlanError::TooManyRanges {
            windows: counted.collect(),
        });
    }
    Ok(filter(&exceptions, windows))
}

/// One range to be: the directions that it decides, its first and its last MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) layer: Layer,
    pub(crate) first: u32,
    pub(crate) last: u32,
}

impl Window {
    pub(crate) fn holds(&self, index: u32) -> bool {
        (self.first..=self.last).contains(&index)
    }
}

/// What a range is for, in the order of the filter: a range for both speaks last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Layer {
    Reads,
    Writes,
    Both,
}

impl Layer {
    const ALL: [Self; 3] = [Self::Reads, Self::Writes, Self::Both];

    const fn of(access: Access) -> Self {
        match access {
            Access::Read => Self::Reads,
            Access::Write => Self::Writes,
        }
    }

    const fn others(self) -> [Self; 2] {
        match self {
            Self::Reads => [Self::Both, Self::Writes],
            Self::Writes => [Self::Both, Self::Reads],
            Self::Both => [Self::Reads, Self::Writes],
        }
    }

    const fn flags(self) -> RangeFlags {
        match self {
            Self::Reads => RangeFlags::READ,
            Self::Writes => RangeFlags::WRITE,
            Self::Both => RangeFlags::READ_WRITE,
        }
    }
}

/// Neighbours that are excepted for the same directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell {
    first: u32,
    last: u32,
    /// What it must be held by, if it is not by the two others.
    alone: Layer,
}

/// All MSRs that are excepted, by index. None is the last MSR of all.
fn cells([reads, writes]: &[Vec<Interval>; 2]) -> Vec<Cell> {
    let mut bounds: Vec<u32> = reads
        .iter()
        .chain(writes)
        .flat_map(|&(first, last)| [first, last + 1])
        .collect();
    bounds.sort_unstable();
    bounds.dedup();
    let cell = |bounds: &[u32]| {
        let (first, last) = (bounds[0], bounds[1] - 1);
        let alone = match (holds(reads, first), holds(writes, first)) {
            (true, true) => Layer::Both,
            (true, false) => Layer::Reads,
            (false, true) => Layer::Writes,
            (false, false) => return None,
        };
        Some(Cell { first, last, alone })
    };
    bounds.windows(2).filter_map(cell).collect()
}

/// How many MSRs of `window` are excepted, for whatever direction.
fn count(window: Window, cells: &[Cell]) -> u32 {
    let intervals: Vec<Interval> = cells.iter().map(|cell| (cell.first, cell.last)).collect();
    let inside = clip(&intervals, window.first, window.last);
    inside.map(|(first, last)| last - first + 1).sum()
}

fn holds(intervals: &[Interval], index: u32) -> bool {
    let at = intervals.partition_point(|&(_, last)| last < index);
    intervals.get(at).is_some_and(|&(first, _)| first <= index)
}

fn without_x2apic(intervals: &[Interval]) -> Vec<Interval> {
    let below = clip(intervals, 0, 0x7ff);
    below.chain(clip(intervals, 0x900, u32::MAX)).collect()
}

/// The parts of `intervals` from `first` to `last`.
fn clip(intervals: &[Interval], first: u32, last: u32) -> impl Iterator<Item = Interval> {
    let start = intervals.partition_point(|interval| interval.1 < first);
    intervals[start..]
        .iter()
        .take_while(move |interval| interval.0 <= last)
        .map(move |interval| (interval.0.max(first), interval.1.min(last)))
}

fn filter(exceptions: &Exceptions, mut windows: Vec<Window>) -> MsrFilter {
    windows.sort_unstable_by_key(|window| (window.layer, window.first));
    let mut ranges: Vec<FilterRange> = windows
        .iter()
        .map(|&window| range(exceptions, window, &windows))
        .collect();
    if ranges.is_empty() && exceptions.default == DefaultAction::Deny {
        // The kernel takes "deny everything" only with a range in use.
        let denied = FilterRange::uniform(RangeFlags::READ_WRITE, MsrIndex(0), 1, Verdict::Deny);
        ranges.push(denied);
    }
    MsrFilter::new(exceptions.default, ranges).expect("a window is 1 to 12,288 MSRs long")
}

/// `window` as a range: the default, but for what it excepts and no earlier one of `windows` decides.
fn range(exceptions: &Exceptions, window: Window, windows: &[Window]) -> FilterRange {
    let Window { layer, first, last } = window;
    let default = match exceptions.default {
        DefaultAction::Allow => Verdict::Allow,
        DefaultAction::Deny => Verdict::Deny,
    };
    let mut range = FilterRange::uniform(layer.flags(), MsrIndex(first), last - first + 1, default);
    for access in Access::ALL {
        if !layer.flags().contains(access) {
            continue;
        }
        let is_earlier = |other: &&Window| layer == Layer::Both && other.layer == Layer::of(access);
        let decided: Vec<Interval> = windows
            .iter()
            .filter(is_earlier)
            .map(|other| (other.first, other.last))
            .collect();
        for (first, last) in clip(&exceptions.intervals[access as usize], first, last) {
            for index in (first..=last).filter(|&index| !holds(&decided, index)) {
                let position = index - window.first;
                let bit = 1 << (position % 64);
                let word = &mut range.bitmap[position as usize / 64];
                match default {
                    Verdict::Allow => *word &= !bit,
                    Verdict::Deny => *word |= bit,
                }
            }
        }
    }
    range
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn exceptions(default: DefaultAction, reads: &[Interval], writes: &[Interval]) -> Exceptions {
        Exceptions {
            default,
            intervals: [reads.to_vec(), writes.to_vec()],
        }
    }

    /// The filter excepts what it should, at the ends of everything and next to them.
    fn check(exceptions: &Exceptions) -> MsrFilter {
        let filter = plan(exceptions).unwrap();
        for access in Access::ALL {
            let excepted = &exceptions.intervals[access as usize];
            for &(first, last) in exceptions.intervals.iter().flatten() {
                for index in [first.wrapping_sub(1), first, last, last.wrapping_add(1)] {
                    let inside = excepted.iter().any(|i| (i.0..=i.1).contains(&index));
                    let default = exceptions.default == DefaultAction::Allow;
                    let verdict = filter.decide(MsrIndex(index), access).verdict;
                    assert_eq!(
                        verdict == Verdict::Allow,
                        default != inside || MsrIndex(index).is_x2apic(),
                        "{access} {index:#x} in {filter:?}"
                    );
                }
            }
        }
        filter
    }

    #[test]
    fn near_exceptions_share_a_range_and_far_ones_do_not() {
        let near = exceptions(DefaultAction::Allow, &[(0x10, 0x10), (0x1000, 0x1fff)], &[]);
        assert_eq!(check(&near).ranges().len(), 1);
        let far = exceptions(DefaultAction::Allow, &[(0, 0), (0x3000, 0x3000)], &[]);
        assert_eq!(check(&far).ranges().len(), 2, "12,289 MSRs from end to end");
    }

    #[test]
    fn long_exception_is_cut() {
        let long = exceptions(DefaultAction::Deny, &[(5, 5 + 3 * 12288)], &[]);
        assert_eq!(check(&long).ranges().len(), 4);
    }

    #[test]
    fn directions_that_agree_share_a_range() {
        let both = exceptions(DefaultAction::Deny, &[(1, 9)], &[(1, 9)]);
        assert_eq!(check(&both).ranges()[0].flags, RangeFlags::READ_WRITE);
        let apart = exceptions(DefaultAction::Deny, &[(1, 9)], &[(2, 9)]);
        assert_eq!(check(&apart).ranges().len(), 2);
    }

    /// Two full windows for both directions, each with one MSR in its middle that is for writes alone.
    #[test]
    fn one_range_for_one_direction_corrects_two_for_both() {
        let writes = [(0x1000, 0x1000 + 2 * MAX_MSRS - 1)];
        let [left, right] = [0x1000 + 0x2000, 0x1000 + MAX_MSRS + 0x1000];
        let reads = [
            (0x1000, left - 1),
            (left + 1, right - 1),
            (right + 1, writes[0].1),
        ];
        let filter = check(&exceptions(DefaultAction::Allow, &reads, &writes));
        let flags: Vec<_> = filter.ranges().iter().map(|range| range.flags).collect();
        assert_eq!(flags[1..], [RangeFlags::READ_WRITE; 2]);
    }

    #[test]
    fn x2apic_needs_no_range() {
        let x2apic = exceptions(DefaultAction::Allow, &[(0x800, 0x8ff)], &[(0x830, 0x830)]);
        assert_eq!(plan(&x2apic), Ok(MsrFilter::allow_all()));
        let around = exceptions(DefaultAction::Deny, &[(0x7ff, 0x900)], &[(0x7ff, 0x900)]);
        let filter = check(&around);
        let [range] = filter.ranges() else {
            panic!("{filter:?}")
        };
        assert_eq!((range.base, range.nmsrs), (MsrIndex(0x7ff), 0x102));
        assert_eq!(range.verdict(1), Verdict::Deny, "the default");
    }

    #[test]
    fn no_range_ends_at_the_top() {
        let top = exceptions(DefaultAction::Allow, &[(u32::MAX - 1, u32::MAX - 1)], &[]);
        check(&top);
        let last = exceptions(DefaultAction::Allow, &[], &[(u32::MAX, u32::MAX)]);
        assert_eq!(plan(&last), Err(PlanError::LastMsr));
    }

    #[test]
    fn seventeen_far_exceptions_are_refused_by_name() {
        let far: Vec<Interval> = (0..17).map(|i| (i << 16, i << 16)).collect();
        let refused = exceptions(DefaultAction::Allow, &far, &far);
        let windows = far.iter().map(|&(first, last)| {
            let layer = Layer::Both;
            (Window { layer, first, last }, 1)
        });
        let windows = windows.collect();
        assert_eq!(plan(&refused), Err(PlanError::TooManyRanges { windows }));
        let taken = exceptions(DefaultAction::Allow, &far[1..], &far[1..]);
        assert_eq!(check(&taken).ranges().len(), 16);
    }

    #[test]
    fn deny_everything_has_a_range() {
        let nothing = exceptions(DefaultAction::Deny, &[], &[]);
        assert_eq!(check(&nothing).ranges().len(), 1);
    }

    #[test]
    fn whole_index_space_is_refused_quickly() {
        let all = exceptions(DefaultAction::Allow, &[(0, u32::MAX - 1)], &[]);
        assert_eq!(plan(&all), Err(PlanError::FarTooManyRanges));
    }

    /// What a filter excepts among `msrs` MSRs: bit `access * msrs + index`.
    type Meaning = usize;

    /// By meaning, the fewest ranges of at most `max_msrs` MSRs that a kernel with `msrs` MSRs needs: found by
    /// putting each range there is in front of each filter there is.
    fn fewest_ranges(msrs: u32, max_msrs: u32) -> Vec<Option<usize>> {
        let mut ranges: Vec<(Meaning, Meaning)> = Vec::new();
        for length in 1..=max_msrs {
            for base in 0..=msrs - length {
                for bits in 0..1 << length {
                    let reads = (((1 << length) - 1) << base, bits << base);
                    let writes = (reads.0 << msrs, reads.1 << msrs);
                    let both = (reads.0 | writes.0, reads.1 | writes.1);
                    ranges.extend([reads, writes, both]);
                }
            }
        }
        let mut fewest = vec![None; 1 << (2 * msrs)];
        fewest[0] = Some(0);
        let mut front = vec![0];
        for count in 1.. {
            let mut next = Vec::new();
            for &meaning in &front {
                for (decided, bits) in &ranges {
                    let meaning: Meaning = meaning & !decided | bits;
                    if fewest[meaning].is_none() {
                        fewest[meaning] = Some(count);
                        next.push(meaning);
                    }
                }
            }
            if next.is_empty() {
                break;
            }
            front = next;
        }
        fewest
    }

    fn intervals(meaning: Meaning, access: Access, msrs: u32) -> Vec<Interval> {
        let bits = meaning >> (access as u32 * msrs);
        let excepted = (0..msrs).filter(|index| bits >> index & 1 == 1);
        let mut intervals: Vec<Interval> = Vec::new();
        for index in excepted {
            match intervals.last_mut() {
                Some(before) if before.1 + 1 == index => before.1 = index,
                _ => intervals.push((index, index)),
            }
        }
        intervals
    }

    fn meaning(filter: &MsrFilter, msrs: u32) -> Meaning {
        let mut meaning = 0;
        for access in Access::ALL {
            for index in 0..msrs {
                let excepted = filter.decide(MsrIndex(index), access).verdict == Verdict::Deny;
                meaning |= Meaning::from(excepted) << (access as u32 * msrs + index);
            }
        }
        meaning
    }

    /// Every filter of small models: the plan means it, and no filter of the kernel's has fewer ranges.
    #[test]
    fn no_filter_of_a_small_model_has_fewer_ranges() {
        for (msrs, max_msrs) in [(6, 1), (6, 2), (7, 3), (8, 4)] {
            let fewest = fewest_ranges(msrs, max_msrs);
            for (wanted, &fewest) in fewest.iter().enumerate() {
                let intervals = Access::ALL.map(|access| intervals(wanted, access, msrs));
                let windows = cover::cover(&cells(&intervals), max_msrs, MOST_NAMED)
                    .expect("no model has so many MSRs");
                assert_eq!(Some(windows.len()), fewest, "{intervals:?} by {max_msrs}");
                assert!({ &windows }.iter().all(|w| w.last - w.first < max_msrs));
                let exceptions = Exceptions {
                    default: DefaultAction::Allow,
                    intervals,
                };
                let filter = filter(&exceptions, windows);
                assert_eq!(meaning(&filter, msrs), wanted, "{exceptions:?}");
            }
        }
    }

    /// An exempt MSR may have any verdict; none of them saves a range that leaving it out does not.
    #[test]
    fn no_verdict_for_an_exempt_msr_saves_a_range() {
        let (msrs, max_msrs) = (7, 3);
        let exempt: Meaning = 1 << 3 | 1 << (3 + msrs);
        let fewest = fewest_ranges(msrs, max_msrs);
        for wanted in (0..fewest.len()).filter(|wanted| wanted & exempt == 0) {
            let verdicts = [0, 1 << 3, 1 << (3 + msrs), exempt];
            let best = verdicts
                .iter()
                .filter_map(|bits| fewest[wanted | bits])
                .min();
            let cells = cells(&Access::ALL.map(|access| intervals(wanted, access, msrs)));
            let windows = cover::cover(&cells, max_msrs, MOST_NAMED);
            assert_eq!(windows.map(|windows| windows.len()), best, "{wanted:#b}");
        }
    }

    fn interval_lists() -> impl Strategy<Value = Vec<Interval>> {
        let bases = prop::sample::select(vec![0u32, 0x7f0, 0x3000, 0x4000_0000, 0xc000_0080]);
        let widths = prop_oneof![0u32..4, 0u32..0x40, 0x2000u32..0x5000];
        let interval = (bases, 0u32..0x3000, widths);
        prop::collection::vec(interval, 0..8).prop_map(|intervals| {
            let mut sorted: Vec<Interval> = intervals
                .into_iter()
                .map(|(base, offset, width)| (base + offset, base + offset + width))
                .collect();
            sorted.sort_unstable();
            let mut merged: Vec<Interval> = Vec::new();
            for (first, last) in sorted {
                match merged.last_mut() {
                    Some(before) if first <= before.1 + 1 => before.1 = before.1.max(last),
                    _ => merged.push((first, last)),
                }
            }
            merged
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 64,
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// At every MSR of every window, and next to it.
        #[test]
        fn plan_means_its_exceptions(
            reads in interval_lists(),
            writes in interval_lists(),
            denies in any::<bool>(),
        ) {
            let default = if denies { DefaultAction::Deny } else { DefaultAction::Allow };
            let exceptions = exceptions(default, &reads, &writes);
            let filter = check(&exceptions);
            for range in filter.ranges() {
                for index in range.base.0.saturating_sub(1)..=range.base.0 + range.nmsrs {
                    for access in Access::ALL {
                        let excepted = holds(&exceptions.intervals[access as usize], index);
                        let denied = filter.decide(MsrIndex(index), access).verdict == Verdict::Deny;
                        let exempt = MsrIndex(index).is_x2apic();
                        prop_assert_eq!(denied, (denies != excepted) && !exempt, "{:#x}", index);
                    }
                }
            }
        }
    }
}
