//! Two filters at once: [`merge`] makes the one that denies what either of them denies.
//!
//! KVM has one filter for a VM, and each call replaces it whole. Where a policy is put around a program that has a
//! filter of its own, both must be in force. Who of the two answers an access is not decided here.

use std::error::Error;
use std::fmt;

use msrgate_core::{Access, DefaultAction, MAX_RANGES, MsrFilter, MsrIndex, Verdict};

use crate::plan::{Exceptions, Interval, PlanError, plan};

/// The filter that denies what `a` or `b` denies, with the fewest ranges that mean it. Where one of them denies
/// nothing, it is the other as it stands.
///
/// ```
/// use msrgate_core::{Access, MsrFilter, MsrIndex, Verdict};
///
/// # let compile = |msr: &str| {
/// #     let text = format!("version = 1\n[[rule]]\nmsr = '{msr}'\nboth = 'fault'\n");
/// #     msrgate_policy::compile(&text).expect("no mistakes").filter
/// # };
/// let (policy, program): (MsrFilter, MsrFilter) = (compile("0x611"), compile("0x35"));
/// let both = msrgate_policy::merge(&policy, &program)?;
/// for index in [0x611, 0x35].map(MsrIndex) {
///     assert_eq!(both.decide(index, Access::Read).verdict, Verdict::Deny);
/// }
/// # Ok::<(), msrgate_policy::MergeError>(())
/// ```
///
/// # Errors
/// KVM's 16 ranges do not suffice for both.
pub fn merge(a: &MsrFilter, b: &MsrFilter) -> Result<MsrFilter, MergeError> {
    let [a_denies, b_denies] = [a, b].map(|filter| Access::ALL.map(|it| denied(filter, it)));
    let is_nothing = |denies: &[Vec<Interval>; 2]| denies.iter().all(Vec::is_empty);
    if is_nothing(&a_denies) {
        return Ok(b.clone());
    }
    if is_nothing(&b_denies) {
        return Ok(a.clone());
    }
    let by_default = [a, b].map(MsrFilter::default_action);
    let default = if by_default.contains(&DefaultAction::Deny) {
        DefaultAction::Deny
    } else {
        DefaultAction::Allow
    };
    let intervals = Access::ALL.map(|access| {
        let access = access as usize;
        let denied = union(a_denies[access].iter().chain(&b_denies[access]).copied());
        match default {
            DefaultAction::Allow => denied,
            DefaultAction::Deny => complement(&denied),
        }
    });
    plan(&Exceptions { default, intervals }).map_err(|error| match error {
        PlanError::TooManyRanges { windows } => MergeError::TooManyRanges {
            needed: Some(windows.len()),
        },
        // A filter that excepts the last MSR is none that either could have been.
        PlanError::FarTooManyRanges | PlanError::LastMsr => {
            MergeError::TooManyRanges { needed: None }
        }
    })
}

/// Two filters do not fit into one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MergeError {
    /// More ranges than KVM has.
    TooManyRanges {
        /// How many it would take, where that is known.
        needed: Option<usize>,
    },
}

impl fmt::Display for MergeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::TooManyRanges { needed } = self;
        match needed {
            Some(needed) => write!(f, "together they need {needed} filter ranges")?,
            None => write!(f, "together they need many more filter ranges")?,
        }
        write!(f, ", but KVM has {MAX_RANGES}")
    }
}

impl Error for MergeError {}

/// What `filter` denies.
fn denied(filter: &MsrFilter, access: Access) -> Vec<Interval> {
    let mut starts = vec![0];
    for range in filter.ranges() {
        // One whose end wraps around matches nothing.
        let Some(end) = range.base.0.checked_add(range.nmsrs) else {
            continue;
        };
        if range.flags.contains(access) {
            let turns = (1..range.nmsrs).filter(|&at| range.verdict(at) != range.verdict(at - 1));
            starts.extend(turns.map(|at| range.base.0 + at));
            starts.extend([range.base.0, end]);
        }
    }
    // The x2APIC's MSRs are exempt.
    starts.extend([0x800, 0x900]);
    starts.sort_unstable();
    starts.dedup();
    let ends = starts[1..].iter().map(|next| next - 1).chain([u32::MAX]);
    let pieces = starts.iter().copied().zip(ends);
    let is_denied =
        |&(first, _): &Interval| filter.decide(MsrIndex(first), access).verdict == Verdict::Deny;
    union(pieces.filter(is_denied))
}

/// All of them, sorted and joined.
pub(crate) fn union(intervals: impl Iterator<Item = Interval>) -> Vec<Interval> {
    let mut all: Vec<Interval> = intervals.collect();
    all.sort_unstable();
    let mut joined: Vec<Interval> = Vec::with_capacity(all.len());
    for (first, last) in all {
        match joined.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => joined.push((first, last)),
        }
    }
    joined
}

/// What lies between them.
fn complement(intervals: &[Interval]) -> Vec<Interval> {
    let mut between = Vec::with_capacity(intervals.len() + 1);
    let mut next = Some(0);
    for &(first, last) in intervals {
        if let Some(next) = next.filter(|&next| next < first) {
            between.push((next, first - 1));
        }
        next = last.checked_add(1);
    }
    between.extend(next.map(|next| (next, u32::MAX)));
    between
}

#[cfg(test)]
mod tests {
    use msrgate_core::{FilterRange, RangeFlags};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn filter_that_denies_nothing_leaves_the_other_as_it_stands() {
        let one = FilterRange::uniform(RangeFlags::READ, MsrIndex(0x35), 1, Verdict::Deny);
        let filter = MsrFilter::new(DefaultAction::Allow, vec![one.clone(), one]).unwrap();
        assert_eq!(
            merge(&MsrFilter::allow_all(), &filter).as_ref(),
            Ok(&filter)
        );
        assert_eq!(
            merge(&filter, &MsrFilter::allow_all()).as_ref(),
            Ok(&filter)
        );
    }

    #[test]
    fn more_than_sixteen_far_ranges_are_refused_by_name() {
        let far = |from: u32, count: u32| {
            let ranges = (0..count).map(|n| {
                let base = MsrIndex((from + n) << 16);
                FilterRange::uniform(RangeFlags::READ_WRITE, base, 1, Verdict::Deny)
            });
            MsrFilter::new(DefaultAction::Allow, ranges.collect()).unwrap()
        };
        assert!(merge(&far(0, 8), &far(8, 8)).is_ok());
        let error = merge(&far(0, 9), &far(9, 8)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "together they need 17 filter ranges, but KVM has 16"
        );
    }

    #[test]
    fn complement_has_what_lies_between() {
        assert_eq!(complement(&[]), [(0, u32::MAX)]);
        assert_eq!(complement(&[(0, 4), (6, u32::MAX)]), [(5, 5)]);
        assert_eq!(complement(&[(3, 4)]), [(0, 2), (5, u32::MAX)]);
    }

    /// Ranges near each other, at both ends of the space and around the x2APIC's MSRs.
    fn filters() -> impl Strategy<Value = MsrFilter> {
        let base = prop_oneof![0u32..200, 0x7c0u32..0x940, u32::MAX - 100..=u32::MAX];
        let bits = prop::collection::vec(any::<u64>(), 2);
        let range = (1u32..=3, base, 1u32..=128, bits).prop_map(|(flags, base, nmsrs, bits)| {
            let words = FilterRange::bitmap_words(nmsrs);
            FilterRange {
                flags: RangeFlags(flags),
                base: MsrIndex(base),
                nmsrs,
                bitmap: bits[..words].into(),
            }
        });
        let default = prop_oneof![Just(DefaultAction::Allow), Just(DefaultAction::Deny)];
        (default, prop::collection::vec(range, 1..5))
            .prop_map(|(default, ranges)| MsrFilter::new(default, ranges).unwrap())
    }

    proptest! {
        #[test]
        fn merged_filter_denies_what_either_denies(a in filters(), b in filters()) {
            let merged = match merge(&a, &b) {
                Ok(merged) => merged,
                Err(_) => return Err(TestCaseError::reject("too many ranges")),
            };
            let near = (0..400).chain(0x780..0x980).chain(u32::MAX - 300..=u32::MAX);
            for index in near.map(MsrIndex) {
                for access in Access::ALL {
                    let denies = |filter: &MsrFilter| {
                        filter.decide(index, access).verdict == Verdict::Deny
                    };
                    prop_assert_eq!(denies(&merged), denies(&a) || denies(&b), "{} {}", access, index);
                }
            }
        }
    }
}
