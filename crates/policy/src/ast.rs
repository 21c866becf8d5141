//! A policy as it is written, with the place of each part.

use std::ops::Range;

use msrgate_core::{Access, MsrIndex, Rule};

/// Bytes of the text.
pub(crate) type Span = Range<usize>;

/// The whole text.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    pub(crate) known: Option<Word>,
    pub(crate) unknown: Option<Word>,
    pub(crate) invalid: Option<Word>,
    pub(crate) rules: Vec<WrittenRule>,
}

/// A default that is written.
#[derive(Clone, Debug)]
pub(crate) struct Word {
    pub(crate) rule: Rule,
    pub(crate) span: Span,
}

/// One `[[rule]]`.
#[derive(Debug)]
pub(crate) struct WrittenRule {
    pub(crate) msrs: Vec<Selector>,
    /// By [`Access`]; `None`: this rule says nothing about that direction.
    pub(crate) rules: [Option<Rule>; 2],
}

impl WrittenRule {
    pub(crate) fn rule(&self, access: Access) -> Option<Rule> {
        self.rules[access as usize]
    }
}

/// One element of `msr`: `first` is at most `last`.
#[derive(Clone, Debug)]
pub(crate) struct Selector {
    pub(crate) first: MsrIndex,
    pub(crate) last: MsrIndex,
    pub(crate) span: Span,
}

impl Selector {
    /// How many MSRs, less one: the narrower selector wins.
    pub(crate) fn width(&self) -> u32 {
        self.last.0 - self.first.0
    }

    pub(crate) fn overlaps(&self, first: u32, last: u32) -> bool {
        self.first.0 <= last && first <= self.last.0
    }
}
