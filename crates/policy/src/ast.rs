//! A policy as it is written, with the place of each part.

use msrgate_core::{Access, MsrIndex, Rule};

use crate::source::Span;

/// The whole policy; what it includes has been put in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policy {
    pub(crate) known: Option<Word>,
    pub(crate) unknown: Option<Word>,
    pub(crate) invalid: Option<Word>,
    pub(crate) rules: Vec<WrittenRule>,
}

impl Policy {
    /// What all rules say of one direction.
    pub(crate) fn pieces(&self, access: Access) -> impl Iterator<Item = (&Selector, Rule)> {
        self.rules.iter().flat_map(move |written| {
            let rule = written.rules[access as usize];
            let msrs = written.msrs.iter();
            msrs.filter_map(move |selector| Some((selector, rule?)))
        })
    }

    /// What decides an access, if a rule names it.
    pub(crate) fn decider(&self, index: MsrIndex, access: Access) -> Option<(&Selector, Rule)> {
        self.pieces(access)
            .filter(|(selector, _)| selector.overlaps(index.0, index.0))
            .min_by_key(|(selector, _)| selector.rank())
    }
}

/// A default that is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Word {
    pub(crate) rule: Rule,
    pub(crate) span: Span,
}

/// One `[[rule]]`.
#[derive(Clone, Debug)]
pub(crate) struct WrittenRule {
    pub(crate) msrs: Vec<Selector>,
    /// By [`Access`]; `None`: this rule says nothing about that direction.
    pub(crate) rules: [Option<Rule>; 2],
}

/// Neighbours that one element of a rule's `msr` names: `first` is at most `last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selector {
    /// The first MSR.
    pub first: MsrIndex,
    /// The last MSR.
    pub last: MsrIndex,
    /// What it is a part of.
    pub kind: SelectorKind,
    /// Where the element is written.
    pub span: Span,
}

/// How a rule's `msr` names MSRs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SelectorKind {
    /// One MSR.
    Single,
    /// All from one to another.
    Range,
    /// The members of a group; the selector is some of them that stand next to each other.
    Group {
        /// The name behind the `@`.
        name: &'static str,
        /// How many members it has.
        count: u32,
    },
}

impl SelectorKind {
    /// The name of the group.
    #[must_use]
    pub const fn group(self) -> Option<&'static str> {
        match self {
            Self::Group { name, .. } => Some(name),
            _ => None,
        }
    }
}

impl Selector {
    pub(crate) fn new((first, last): (MsrIndex, MsrIndex), span: Span) -> Self {
        let kind = if first == last {
            SelectorKind::Single
        } else {
            SelectorKind::Range
        };
        Self {
            first,
            last,
            kind,
            span,
        }
    }

    /// The rule of the lesser rank wins: a single MSR over a range over a group, and the shorter of two.
    pub(crate) fn rank(&self) -> u64 {
        let (class, width) = match self.kind {
            SelectorKind::Single => (0, 0),
            SelectorKind::Range => (1, self.last.0 - self.first.0),
            SelectorKind::Group { count, .. } => (2, count),
        };
        class << 32 | u64::from(width)
    }

    pub(crate) fn overlaps(&self, first: u32, last: u32) -> bool {
        self.first.0 <= last && first <= self.last.0
    }
}
