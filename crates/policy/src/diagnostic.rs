//! What is wrong with a policy, as values: [`Diagnostic`] with a code, spans and a way out.

use std::fmt;

use crate::source::Span;

/// How many mistakes of one kind, or of one text, are told.
pub(crate) const MAX_DIAGNOSTICS: usize = 100;

/// One thing that is wrong with a policy, or doubtful.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Whether the policy can be used all the same.
    pub severity: Severity,
    /// A stable word, such as `policy::unknown-key`.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// Where, the most important place first. Empty only where the text is missing something as a whole.
    pub labels: Vec<Label>,
    /// What to write instead.
    pub help: Option<String>,
}

/// A place in a text, and what is to be said about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Where.
    pub span: Span,
    /// A few words.
    pub text: String,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The policy does what it says; the author may have meant something else.
    Warning,
    /// The policy cannot be used.
    Error,
}

impl Diagnostic {
    /// The place that matters most.
    #[must_use]
    pub fn span(&self) -> Option<Span> {
        Some(self.labels.first()?.span)
    }

    pub(crate) fn error(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            code,
            message: message.into(),
            labels: Vec::new(),
            help: None,
        }
    }

    pub(crate) fn warning(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(code, message)
        }
    }

    pub(crate) fn at(mut self, span: Span, text: impl Into<String>) -> Self {
        self.labels.push(Label {
            span,
            text: text.into(),
        });
        self
    }

    pub(crate) fn help(mut self, text: impl Into<String>) -> Self {
        self.help = Some(text.into());
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Diagnostic {}
