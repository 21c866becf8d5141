//! What differs between two surfaces: [`Surface::compare`], [`Difference`].

use std::collections::BTreeSet;
use std::fmt;

use msrgate_core::{Access, MsrIndex};

use super::{Surface, SurfaceMsr, Tried, Window};

/// Consecutive MSRs of which two surfaces tell differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The first one.
    pub first: MsrIndex,
    /// The last one.
    pub last: MsrIndex,
    /// Of which access; `None` where only one of them tried the MSRs at all.
    pub access: Option<Access>,
    /// What the two surfaces tell, in the order in which they were given.
    pub sides: [Side; 2],
}

/// What a surface tells of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It was not tried there.
    Untried,
    /// It was tried there; what came of it cannot be compared.
    Tried,
    /// It read this value.
    Value(u64),
    /// This came of it. A read that was done stands here where neighbours of unlike values are told together.
    Outcome(Tried),
}

impl Surface {
    /// What differs, in the order of indices: MSRs that only one of them tried, MSRs that only one knows, other
    /// outcomes, other values. A value that is volatile on one side is equal to every other, and a write that
    /// only one of them tried is not compared.
    #[must_use]
    pub fn compare(one: &Self, other: &Self) -> Vec<Difference> {
        let mut differences = Vec::new();
        for (window, sides) in untried(one, other) {
            differences.push(Difference {
                first: window.first,
                last: window.last,
                access: None,
                sides,
            });
        }
        let indices: BTreeSet<MsrIndex> = [one, other]
            .iter()
            .flat_map(|surface| surface.msrs.iter().map(|msr| msr.index))
            .filter(|&index| one.has_tried(index) && other.has_tried(index))
            .collect();
        for access in Access::ALL {
            let mut last: Option<Difference> = None;
            for &index in &indices {
                let Some(sides) = differing(one.msr(index), other.msr(index), access) else {
                    continue;
                };
                let next = Difference {
                    first: index,
                    last: index,
                    access: Some(access),
                    sides,
                };
                last = match last {
                    Some(before) => before.with(&next).or_else(|| {
                        differences.push(before);
                        Some(next)
                    }),
                    None => Some(next),
                };
            }
            differences.extend(last);
        }
        differences.sort_by_key(|difference| (difference.first, difference.access));
        differences
    }
}

/// The windows that only one of two surfaces tried.
fn untried(one: &Surface, other: &Surface) -> Vec<(Window, [Side; 2])> {
    let only_one = without(&one.windows, &other.windows);
    let only_other = without(&other.windows, &one.windows);
    let only_one = only_one.map(|window| (window, [Side::Tried, Side::Untried]));
    let only_other = only_other.map(|window| (window, [Side::Untried, Side::Tried]));
    only_one.chain(only_other).collect()
}

/// What `windows` have and `others` have not. Both are in order and do not touch.
fn without(windows: &[Window], others: &[Window]) -> impl Iterator<Item = Window> {
    windows.iter().flat_map(|window| {
        let mut left = Vec::new();
        let mut first = Some(window.first);
        let start = others.partition_point(|other| other.last < window.first);
        for other in &others[start..] {
            let Some(from) = first.filter(|_| other.first <= window.last) else {
                break;
            };
            if from < other.first {
                left.push(Window {
                    first: from,
                    last: MsrIndex(other.first.0 - 1),
                });
            }
            first = other.last.0.checked_add(1).map(MsrIndex);
        }
        if let Some(first) = first.filter(|&first| first <= window.last) {
            left.push(Window {
                first,
                last: window.last,
            });
        }
        left
    })
}

/// What is told of one MSR, where it is not the same. Without an entry it is unknown.
fn differing(
    one: Option<&SurfaceMsr>,
    other: Option<&SurfaceMsr>,
    access: Access,
) -> Option<[Side; 2]> {
    let volatile = [one, other]
        .iter()
        .any(|msr| msr.is_some_and(|msr| msr.volatile));
    let side = |msr: Option<&SurfaceMsr>| match (msr, access) {
        (Some(msr), Access::Write) => msr.write.map(Side::Outcome),
        (None, Access::Write) => None,
        (None, Access::Read) => Some(Side::Outcome(Tried::Unknown)),
        (Some(msr), Access::Read) => Some(match msr.value {
            Some(value) if !volatile => Side::Value(value),
            _ => Side::Outcome(msr.read),
        }),
    };
    let sides = [side(one)?, side(other)?];
    (sides[0] != sides[1]).then_some(sides)
}

impl Difference {
    /// How many MSRs it tells of.
    #[must_use]
    pub const fn count(&self) -> u64 {
        let Self { first, last, .. } = *self;
        Window { first, last }.count()
    }

    /// Both as one, if `next` is the next MSR and the same can be said of it.
    fn with(&self, next: &Self) -> Option<Self> {
        let neighbours = self.last.0.checked_add(1) == Some(next.first.0);
        let sides = if self.sides == next.sides {
            self.sides
        } else {
            let both_know = [self, next].iter().any(|difference| {
                difference
                    .sides
                    .iter()
                    .all(|side| matches!(side, Side::Value(_)))
            });
            let sides = self.sides.map(Side::without_value);
            if both_know || sides != next.sides.map(Side::without_value) {
                return None;
            }
            sides
        };
        neighbours.then_some(Self {
            last: next.last,
            sides,
            ..*self
        })
    }
}

impl Side {
    const fn without_value(self) -> Self {
        match self {
            Self::Value(_) => Self::Outcome(Tried::Done),
            side => side,
        }
    }
}

/// The columns that one line may take.
const WIDTH: usize = 80;

/// One line of at most 80 columns, such as `0xc0000080 IA32_EFER read: 0x500 | 0xd01`.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            first,
            last,
            access,
            sides: [one, other],
        } = self;
        let (msrs, from) = if first == last {
            (first.to_string(), " ")
        } else {
            (format!("{first}..={last}"), " from ")
        };
        let told = match access {
            Some(access) => format!(" {access}: {one} | {other}"),
            None => format!(": {one} | {other}"),
        };
        f.write_str(&msrs)?;
        if let Some(name) = first.name()
            && msrs.len() + from.len() + name.len() + told.len() <= WIDTH
        {
            write!(f, "{from}{name}")?;
        }
        f.write_str(&told)
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Untried => f.pad("not tried"),
            Self::Tried => f.pad("tried"),
            Self::Value(value) => write!(f, "{value:#x}"),
            Self::Outcome(tried) => fmt::Display::fmt(tried, f),
        }
    }
}
