//! The texts that a policy is made of, and places in them: [`Sources`], [`Span`].
//!
//! Nothing here knows what the texts say, or where they came from.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// One text of [`Sources`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub u16);

/// A place in one of the texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// Which text.
    pub source: SourceId,
    /// Its first byte.
    pub start: usize,
    /// The byte after its last.
    pub end: usize,
}

impl Span {
    /// The bytes, without the text that they are of.
    #[must_use]
    pub const fn range(self) -> Range<usize> {
        self.start..self.end
    }
}

/// The texts of one policy: the one that was compiled, then those that it includes. A clone is cheap.
#[derive(Clone, Debug, Default)]
pub struct Sources(Arc<Vec<Source>>);

/// One text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// What it is called, such as the path of its file.
    pub name: String,
    /// All of it.
    pub text: String,
}

impl Sources {
    /// The text that `id` means.
    ///
    /// # Panics
    /// `id` is of other sources.
    #[must_use]
    pub fn get(&self, id: SourceId) -> &Source {
        &self.0[usize::from(id.0)]
    }

    /// All texts, the one that was compiled first.
    pub fn iter(&self) -> impl Iterator<Item = &Source> {
        self.0.iter()
    }

    /// What is written at `span`.
    ///
    /// # Panics
    /// `span` is of other sources.
    #[must_use]
    pub fn text(&self, span: Span) -> &str {
        &self.get(span.source).text[span.range()]
    }

    /// Where `span` begins, as people say it.
    ///
    /// # Panics
    /// `span` is of other sources.
    #[must_use]
    pub fn place(&self, span: Span) -> Place<'_> {
        let source = self.get(span.source);
        let before = &source.text[..span.start];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Place {
            name: &source.name,
            line: before.bytes().filter(|&byte| byte == b'\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }

    /// The text that is called `name`.
    pub(crate) fn find(&self, name: &str) -> Option<SourceId> {
        let at = self.iter().position(|source| source.name == name)?;
        Some(SourceId(u16::try_from(at).ok()?))
    }

    /// Adds a text; `None` where there are as many as there may be.
    pub(crate) fn push(&mut self, source: Source) -> Option<SourceId> {
        let id = u16::try_from(self.0.len()).ok()?;
        Arc::make_mut(&mut self.0).push(source);
        Some(SourceId(id))
    }
}

/// The beginning of a [`Span`]; displayed as `name:line`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// The name of the text.
    pub name: &'a str,
    /// Counted from 1.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.line)
    }
}
