//! Observation by filter: what is allowed silently is denied too, so that the gate sees it and has KVM do it.
//!
//! Only accesses that the host path does as the guest's own are watched, so that the guest notices nothing; what
//! KVM refuses is seen anyway, by its reason. [`Unobserved`] is what is left to KVM.

use msrgate_core::{Access, DefaultAction, MsrFilter, MsrIndex};

use crate::forward::{same, unobservable};
use crate::merge::union;
use crate::plan::{Exceptions, Interval, plan};

/// MSRs that a policy allows and that cannot be watched by filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unobserved {
    /// The first MSR.
    pub first: MsrIndex,
    /// The last MSR.
    pub last: MsrIndex,
    /// In which direction.
    pub access: Access,
    /// Why; it goes on after "the host path", but where it begins with "no".
    pub why: &'static str,
}

/// Where MSRs are that can be watched. Where ranges are short, the last window is given up first.
const WINDOWS: [Interval; 3] = [
    (0, 0x1fff),
    (0xc000_0000, 0xc000_1fff),
    (0xc001_0000, 0xc001_1fff),
];

const NO_RANGE: &str = "no filter range is left";

/// The filter that also denies what can be watched, and what cannot. `None`: there is no room for any of it.
pub(crate) fn observe(exceptions: &Exceptions) -> (Option<MsrFilter>, Vec<Unobserved>) {
    let all = (1..=WINDOWS.len()).rev();
    let found = all
        .map(|count| watched(&WINDOWS[..count]))
        .find_map(|watched| Some((plan(&excepting(exceptions, &watched)).ok()?, watched)));
    match found {
        Some((filter, watched)) => (Some(filter), unobserved(exceptions, &watched)),
        None => (None, unobserved(exceptions, &[Vec::new(), Vec::new()])),
    }
}

/// By [`Access`], the MSRs of the windows whose accesses can be watched; sorted.
fn watched(windows: &[Interval]) -> [Vec<u32>; 2] {
    Access::ALL.map(|access| {
        let is_inside = |index: &u32| {
            windows
                .iter()
                .any(|&(first, last)| (first..=last).contains(index))
        };
        let mut msrs: Vec<u32> = same(access)
            .map(|index| index.0)
            .filter(is_inside)
            .collect();
        msrs.sort_unstable();
        msrs
    })
}

fn excepting(exceptions: &Exceptions, watched: &[Vec<u32>; 2]) -> Exceptions {
    Exceptions {
        default: exceptions.default,
        intervals: [0, 1].map(|access| match exceptions.default {
            DefaultAction::Allow => with(&exceptions.intervals[access], &watched[access]),
            DefaultAction::Deny => without(&exceptions.intervals[access], &watched[access]),
        }),
    }
}

/// `intervals` and `points`, merged.
fn with(intervals: &[Interval], points: &[u32]) -> Vec<Interval> {
    let points = points.iter().map(|&point| (point, point));
    union(intervals.iter().copied().chain(points))
}

/// `intervals` but for `points`.
fn without(intervals: &[Interval], points: &[u32]) -> Vec<Interval> {
    let mut left = Vec::with_capacity(intervals.len());
    for &(mut first, last) in intervals {
        let start = points.partition_point(|&point| point < first);
        let mut is_open = true;
        for &point in points[start..].iter().take_while(|&&point| point <= last) {
            if first < point {
                left.push((first, point - 1));
            }
            match point.checked_add(1).filter(|&next| next <= last) {
                Some(next) => first = next,
                None => is_open = false,
            }
        }
        if is_open {
            left.push((first, last));
        }
    }
    left
}

/// What the policy allows, KVM knows, and is not watched.
fn unobserved(exceptions: &Exceptions, watched: &[Vec<u32>; 2]) -> Vec<Unobserved> {
    let mut found: Vec<Unobserved> = Vec::new();
    for access in Access::ALL {
        let intervals = &exceptions.intervals[access as usize];
        let is_allowed = |index: u32| {
            let next = intervals.partition_point(|&(_, last)| last < index);
            let is_excepted = intervals
                .get(next)
                .is_some_and(|&(first, _)| first <= index);
            is_excepted == (exceptions.default == DefaultAction::Deny)
        };
        let is_watched = |index: u32| watched[access as usize].binary_search(&index).is_ok();
        let crowded = same(access).filter(|index| !is_watched(index.0));
        let crowded = crowded.map(|index| (index, NO_RANGE));
        let mut msrs: Vec<(MsrIndex, &str)> = unobservable(access).chain(crowded).collect();
        msrs.retain(|(index, _)| is_allowed(index.0));
        msrs.sort_unstable();
        for (index, why) in msrs {
            match found.last_mut() {
                Some(before)
                    if before.access == access
                        && before.why == why
                        && before.last.0 + 1 == index.0 =>
                {
                    before.last = index;
                }
                _ => found.push(Unobserved {
                    first: index,
                    last: index,
                    access,
                    why,
                }),
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_put_into_and_cut_out_of_intervals() {
        let intervals = [(10, 20), (30, 30)];
        assert_eq!(
            with(&intervals, &[9, 15, 25]),
            [(9, 20), (25, 25), (30, 30)]
        );
        assert_eq!(
            without(&intervals, &[9, 10, 15, 16, 20, 30]),
            [(11, 14), (17, 19)]
        );
        assert_eq!(without(&[(5, u32::MAX)], &[u32::MAX]), [(5, u32::MAX - 1)]);
        assert_eq!(without(&intervals, &[]), intervals);
    }

    #[test]
    fn everything_that_can_be_watched_takes_a_few_ranges() {
        let nothing = Exceptions {
            default: DefaultAction::Allow,
            intervals: [Vec::new(), Vec::new()],
        };
        let (filter, unobserved) = observe(&nothing);
        assert!(filter.unwrap().ranges().len() <= 6);
        assert!(unobserved.iter().all(|it| it.why != NO_RANGE));
    }

    #[test]
    fn last_window_is_given_up_where_ranges_are_short() {
        let far: Vec<Interval> = (1..=13).map(|n| (n * 0x100_0000, n * 0x100_0000)).collect();
        let crowded = Exceptions {
            default: DefaultAction::Allow,
            intervals: [far.clone(), far],
        };
        let (filter, unobserved) = observe(&crowded);
        assert!(filter.is_some());
        let given_up = unobserved.iter().filter(|it| it.why == NO_RANGE);
        assert!(given_up.clone().count() > 0);
        assert!(given_up.clone().all(|it| it.first.0 >= 0xc000_0000));
    }
}
