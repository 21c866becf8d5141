//! Fitting what the filter must except from its default into at most 16 ranges of 12,288 MSRs.
//!
//! Gaps between exceptions are bridged by the bitmap, which repeats the default there. The plan is
//! correct and small, not always the smallest.

use msrgate_core::{
    Access, DefaultAction, FilterRange, MAX_MSRS, MAX_RANGES, MsrFilter, MsrIndex, RangeFlags,
    Verdict,
};

/// From the first to the last MSR. Lists of these are sorted, disjoint and do not touch.
pub(crate) type Interval = (u32, u32);

/// What the filter does otherwise than by default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exceptions {
    pub(crate) default: DefaultAction,
    /// By [`Access`].
    pub(crate) intervals: [Vec<Interval>; 2],
}

/// Why there is no plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PlanError {
    /// More ranges than a filter has.
    TooManyRanges { needed: usize },
    /// The end of a range is computed modulo 2^32, so that none holds the last MSR.
    LastMsr,
}

/// A filter that excepts exactly `exceptions` from its default.
pub(crate) fn plan(exceptions: &Exceptions) -> Result<MsrFilter, PlanError> {
    let [reads, writes] = &exceptions.intervals;
    if reads
        .iter()
        .chain(writes)
        .any(|&(_, last)| last == u32::MAX)
    {
        return Err(PlanError::LastMsr);
    }
    let joint = joint_windows(reads, writes);
    let apart = windows(reads, RangeFlags::READ)
        .into_iter()
        .chain(windows(writes, RangeFlags::WRITE))
        .collect();
    let plans: [Vec<Window>; 2] = [joint, apart];
    let [joint, apart] = plans;
    let chosen = if apart.len() < joint.len() {
        apart
    } else {
        joint
    };
    if chosen.len() > MAX_RANGES {
        return Err(PlanError::TooManyRanges {
            needed: chosen.len(),
        });
    }
    let mut ranges: Vec<FilterRange> = chosen
        .iter()
        .map(|window| window.range(exceptions))
        .collect();
    if ranges.is_empty() && exceptions.default == DefaultAction::Deny {
        // The kernel takes "deny everything" only with a range in use.
        ranges.push(FilterRange::uniform(
            RangeFlags::READ_WRITE,
            MsrIndex(0),
            1,
            Verdict::Deny,
        ));
    }
    Ok(MsrFilter::new(exceptions.default, ranges).expect("a window is 1 to 12,288 MSRs long"))
}

/// One range to be: the directions that it decides, its first and its last MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    flags: RangeFlags,
    first: u32,
    last: u32,
}

impl Window {
    fn range(&self, exceptions: &Exceptions) -> FilterRange {
        let access = if self.flags.contains(Access::Read) {
            Access::Read
        } else {
            Access::Write
        };
        let verdict = match exceptions.default {
            DefaultAction::Allow => Verdict::Allow,
            DefaultAction::Deny => Verdict::Deny,
        };
        let nmsrs = self.last - self.first + 1;
        let mut range = FilterRange::uniform(self.flags, MsrIndex(self.first), nmsrs, verdict);
        for (first, last) in clip(&exceptions.intervals[access as usize], *self) {
            for position in first - self.first..=last - self.first {
                range.bitmap[position as usize / 64] ^= 1 << (position % 64);
            }
        }
        range
    }
}

/// The fewest windows that cover `intervals`: each begins where the one before could not reach.
fn windows(intervals: &[Interval], flags: RangeFlags) -> Vec<Window> {
    let mut windows: Vec<Window> = Vec::new();
    for &(first, last) in intervals {
        let mut first = first;
        if let Some(window) = windows.last_mut() {
            let reach = window.first.saturating_add(MAX_MSRS - 1);
            if first <= reach {
                window.last = last.min(reach);
                if last <= reach {
                    continue;
                }
                first = reach + 1;
            }
        }
        loop {
            let end = first.saturating_add(MAX_MSRS - 1).min(last);
            windows.push(Window {
                flags,
                first,
                last: end,
            });
            if end == last {
                break;
            }
            first = end + 1;
        }
    }
    windows
}

/// Windows for both directions at once, split by direction only where the directions differ.
fn joint_windows(reads: &[Interval], writes: &[Interval]) -> Vec<Window> {
    let mut joint = Vec::new();
    for window in windows(&union(reads, writes), RangeFlags::READ_WRITE) {
        let inside = [reads, writes].map(|intervals| clip(intervals, window).collect::<Vec<_>>());
        if inside[0] == inside[1] {
            joint.push(window);
            continue;
        }
        for (flags, intervals) in [RangeFlags::READ, RangeFlags::WRITE]
            .into_iter()
            .zip(inside)
        {
            if let (Some(&(first, _)), Some(&(_, last))) = (intervals.first(), intervals.last()) {
                joint.push(Window { flags, first, last });
            }
        }
    }
    joint
}

/// The parts of `intervals` that lie in `window`.
fn clip(intervals: &[Interval], window: Window) -> impl Iterator<Item = Interval> {
    let start = intervals.partition_point(|&(_, last)| last < window.first);
    intervals[start..]
        .iter()
        .take_while(move |&&(first, _)| first <= window.last)
        .map(move |&(first, last)| (first.max(window.first), last.min(window.last)))
}

fn union(one: &[Interval], other: &[Interval]) -> Vec<Interval> {
    let mut all: Vec<Interval> = one.iter().chain(other).copied().collect();
    all.sort_unstable();
    let mut union: Vec<Interval> = Vec::with_capacity(all.len());
    for (first, last) in all {
        match union.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => union.push((first, last)),
        }
    }
    union
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn no_range_ends_at_the_top() {
        let top = exceptions(DefaultAction::Allow, &[(u32::MAX - 1, u32::MAX - 1)], &[]);
        check(&top);
        let last = exceptions(DefaultAction::Allow, &[], &[(u32::MAX, u32::MAX)]);
        assert_eq!(plan(&last), Err(PlanError::LastMsr));
    }

    #[test]
    fn seventeen_far_exceptions_are_refused_with_their_number() {
        let far: Vec<Interval> = (0..17).map(|i| (i << 16, i << 16)).collect();
        let refused = exceptions(DefaultAction::Allow, &far, &far);
        assert_eq!(plan(&refused), Err(PlanError::TooManyRanges { needed: 17 }));
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
        assert!(matches!(plan(&all), Err(PlanError::TooManyRanges { .. })));
    }
}
