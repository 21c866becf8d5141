//! Which rule decides each MSR: the narrowest that holds it. Rules of one width must not overlap.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use msrgate_core::{Access, MsrIndex, Rule};

use crate::ast::{Policy, Selector};
use crate::diagnostic::{Diagnostic, MAX_DIAGNOSTICS};
use crate::source::Span;

/// MSRs that stand next to each other and have one rule for one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The first MSR.
    pub first: MsrIndex,
    /// The last MSR.
    pub last: MsrIndex,
    /// What the direction does.
    pub rule: Rule,
}

/// The rules of one direction as segments: sorted, disjoint, and as long as they can be.
pub(crate) fn resolve(policy: &Policy, access: Access) -> Vec<Segment> {
    let pieces = sorted(policy, access);
    let mut segments: Vec<Segment> = Vec::with_capacity(pieces.len());
    // Those that have begun, the narrowest on top. One that has ended may stay below it.
    let mut open = BinaryHeap::new();
    let mut waiting = pieces.iter().enumerate().peekable();
    let mut at = 0;
    loop {
        while let Some((number, (selector, _))) =
            waiting.next_if(|(_, (selector, _))| selector.first.0 <= at)
        {
            open.push(Reverse((selector.rank(), number)));
        }
        let next = waiting.peek().map(|(_, (selector, _))| selector.first.0);
        let Some(&Reverse((_, narrowest))) = open.peek() else {
            match next {
                Some(first) => at = first,
                None => return segments,
            }
            continue;
        };
        let (selector, rule) = pieces[narrowest];
        if selector.last.0 < at {
            open.pop();
            continue;
        }
        let last = next.map_or(selector.last.0, |next| selector.last.0.min(next - 1));
        append(&mut segments, at, last, rule);
        match last.checked_add(1) {
            Some(behind) => at = behind,
            None => return segments,
        }
    }
}

/// Every two selectors that are equally narrow, overlap, and speak of the same direction.
pub(crate) fn overlaps(policy: &Policy) -> Vec<Diagnostic> {
    let mut seen: Vec<(Span, Span)> = Vec::new();
    for access in Access::ALL {
        // By rank, the one that reaches furthest so far.
        let mut furthest: BTreeMap<u64, &Selector> = BTreeMap::new();
        for (selector, _) in sorted(policy, access) {
            let Some(other) = furthest.insert(selector.rank(), selector) else {
                continue;
            };
            if other.overlaps(selector.first.0, selector.last.0) {
                seen.push((selector.span.max(other.span), selector.span.min(other.span)));
            }
            if other.last >= selector.last {
                furthest.insert(other.rank(), other);
            }
        }
    }
    seen.sort_unstable();
    seen.dedup();
    seen.truncate(MAX_DIAGNOSTICS);
    seen.into_iter()
        .map(|(later, earlier)| {
            Diagnostic::error(
                "policy::overlap",
                "two rules that are equally narrow decide an MSR",
            )
            .at(later, "this rule")
            .at(earlier, "and this one")
            .help("remove one, or narrow it: a narrower rule wins over a wider one")
        })
        .collect()
}

/// What the rules say of one direction, by the first MSR.
fn sorted(policy: &Policy, access: Access) -> Vec<(&Selector, Rule)> {
    let mut pieces: Vec<_> = policy.pieces(access).collect();
    pieces.sort_by_key(|(selector, _)| selector.first);
    pieces
}

fn append(segments: &mut Vec<Segment>, first: u32, last: u32, rule: Rule) {
    let (first, last) = (MsrIndex(first), MsrIndex(last));
    if let Some(before) = segments.last_mut()
        && before.rule == rule
        && before.last.0.checked_add(1) == Some(first.0)
    {
        before.last = last;
        return;
    }
    segments.push(Segment { first, last, rule });
}

#[cfg(test)]
mod tests {
    use msrgate_core::Action;

    use super::*;
    use crate::SourceId;
    use crate::parse::parse;

    fn policy(source: &str) -> Policy {
        let text = format!("version = 1\n{source}");
        let (policy, _, diagnostics) = parse(SourceId(0), &text, &[]);
        assert_eq!(diagnostics, []);
        policy
    }

    #[test]
    fn narrower_rule_cuts_a_hole_into_the_wider() {
        let policy = policy(
            "[[rule]]\nmsr = '0x10..=0x1f'\nread = 'fault'\n[[rule]]\nmsr = 0x18\nread = 'ignore'\n",
        );
        let segment = |first, last, action| Segment {
            first: MsrIndex(first),
            last: MsrIndex(last),
            rule: Rule::quiet(action),
        };
        assert_eq!(
            resolve(&policy, Access::Read),
            [
                segment(0x10, 0x17, Action::Fault),
                segment(0x18, 0x18, Action::Ignore),
                segment(0x19, 0x1f, Action::Fault),
            ]
        );
        assert_eq!(resolve(&policy, Access::Write), []);
        assert_eq!(overlaps(&policy), []);
    }

    #[test]
    fn whole_index_space_is_one_segment() {
        let policy = policy("[[rule]]\nmsr = '0x0..=0xffffffff'\nboth = 'ignore'\n");
        let segments = resolve(&policy, Access::Write);
        assert_eq!((segments[0].first.0, segments[0].last.0), (0, u32::MAX));
        assert_eq!(segments.len(), 1);
    }

    #[test]
    fn equally_wide_rules_that_overlap_are_shown_once_for_both_directions() {
        let policy = policy(
            "[[rule]]\nmsr = '0x10..=0x1f'\nboth = 'fault'\n[[rule]]\nmsr = '0x18..=0x27'\nboth = 'ignore'\n",
        );
        assert_eq!(overlaps(&policy).len(), 1);
    }

    #[test]
    fn rules_for_different_directions_do_not_overlap() {
        let policy =
            policy("[[rule]]\nmsr = 1\nread = 'fault'\n[[rule]]\nmsr = 1\nwrite = 'ignore'\n");
        assert_eq!(overlaps(&policy), []);
    }
}
