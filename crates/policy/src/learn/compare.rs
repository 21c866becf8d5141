//! What differs between two guests' accesses: [`Observations::compare`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use msrgate_core::{Access, Action, MsrIndex, Outcome};

use super::{Observations, Seen};

/// How an access was answered, as far as answers are compared: the value only where it is the policy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answered {
    /// KVM did it, watched or not.
    Allowed,
    /// The read was answered with this value.
    Value(u64),
    /// In another way.
    Other(Outcome),
}

/// Neighbours of which two guests' accesses differ.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TraceDifference {
    /// The first MSR.
    pub first: MsrIndex,
    /// The last one.
    pub last: MsrIndex,
    /// In which direction.
    pub access: Access,
    /// How these accesses were answered, in the order in which the observations were given; empty where there
    /// were none.
    pub sides: [BTreeSet<Answered>; 2],
}

impl Observations {
    /// Which accesses only one of them has, and which were answered otherwise. How often, and what KVM's values
    /// were, makes no difference; what KVM did is not compared where one of the two could not see it.
    #[must_use]
    pub fn compare(one: &Self, other: &Self) -> Vec<TraceDifference> {
        let sees_less = one.is_blind != other.is_blind;
        let is_comparable = |access: &(MsrIndex, Access), answered: Answered| {
            let is_unseen = one.unseen.contains(access) || other.unseen.contains(access);
            answered != Answered::Allowed || !(sees_less || is_unseen)
        };
        let mut all: BTreeMap<(Access, MsrIndex), [BTreeSet<Answered>; 2]> = BTreeMap::new();
        for (side, observations) in [one, other].into_iter().enumerate() {
            for &(index, access, seen) in observations.counts.keys() {
                let answered = Answered::of(seen);
                if is_comparable(&(index, access), answered) {
                    all.entry((access, index)).or_default()[side].insert(answered);
                }
            }
        }
        let mut differences: Vec<TraceDifference> = Vec::new();
        for ((access, index), sides) in all {
            if sides[0] == sides[1] {
                continue;
            }
            match differences.last_mut() {
                Some(before)
                    if before.last.0.checked_add(1) == Some(index.0)
                        && (before.access, &before.sides) == (access, &sides) =>
                {
                    before.last = index;
                }
                _ => differences.push(TraceDifference {
                    first: index,
                    last: index,
                    access,
                    sides,
                }),
            }
        }
        differences.sort_by_key(|difference| (difference.first, difference.access));
        differences
    }

    /// Whether one of the two shows what the other could not.
    #[must_use]
    pub fn sees_otherwise(&self, other: &Self) -> bool {
        (self.is_blind, &self.unseen) != (other.is_blind, &other.unseen)
    }
}

impl Answered {
    fn of(seen: Seen) -> Self {
        match (seen.outcome, seen.action) {
            (Outcome::Native | Outcome::Forwarded | Outcome::Vmm, _) => Self::Allowed,
            (Outcome::Value, Some(Action::Value(value))) => Self::Value(value),
            (outcome, _) => Self::Other(outcome),
        }
    }
}

impl fmt::Display for Answered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allowed => f.write_str("allowed"),
            Self::Value(value) => write!(f, "= {value:#x}"),
            Self::Other(Outcome::Fault) => f.write_str("#GP"),
            Self::Other(outcome) => f.write_str(outcome.word()),
        }
    }
}
