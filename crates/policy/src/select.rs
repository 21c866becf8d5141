//! Which MSRs a rule names: indices, names, ranges, groups, and lists of these.

use std::slice;

use msrgate_core::{MsrGroup, MsrIndex, ParseMsrIndexError, msr_groups};

use crate::ast::{Selector, SelectorKind};
use crate::diagnostic::Diagnostic;
use crate::document::{Kind, Value};
use crate::reader::{Reader, did_you_mean};
use crate::source::Span;

impl Reader<'_> {
    /// What the rule's `msr` names.
    pub(crate) fn selectors(&mut self, value: &Value<'_>) -> Vec<Selector> {
        let items = match &value.kind {
            Kind::List(items) => &items[..],
            _ => slice::from_ref(value),
        };
        let mut selectors = Vec::with_capacity(items.len());
        if items.is_empty() {
            self.report(
                Diagnostic::error("policy::no-msr", "the rule names no MSR")
                    .at(value.span, "an empty list")
                    .help("write an MSR into the list, or remove the rule"),
            );
        }
        for item in items {
            if self.is_full() {
                break;
            }
            self.selector(item, &mut selectors);
        }
        selectors
    }

    fn selector(&mut self, value: &Value<'_>, selectors: &mut Vec<Selector>) -> Option<()> {
        let span = value.span;
        let (first, last) = match &value.kind {
            Kind::Integer { .. } => {
                let number = self.number(value, "an MSR index", 32)?;
                let index = MsrIndex(u32::try_from(number).ok()?);
                (index, index)
            }
            Kind::Text(text) => match text.strip_prefix('@') {
                Some(name) => return self.group(name, span, selectors),
                None => self.range(text, span)?,
            },
            _ => {
                let expected = "a name, an index, a range \"0x200..=0x20f\", a group \"@mtrr\", or a list of these";
                return self.wrong_type(value, "an MSR", expected);
            }
        };
        if first > last {
            self.report(
                Diagnostic::error("policy::range", "the range ends before it begins")
                    .at(span, format!("from {first} down to {last}"))
                    .help(format!("write \"{last}..={first}\"")),
            );
            return None;
        }
        selectors.push(Selector::new((first, last), span));
        Some(())
    }

    fn group(&mut self, name: &str, span: Span, selectors: &mut Vec<Selector>) -> Option<()> {
        if let Some(group) = msr_groups().iter().find(|group| group.name == name) {
            selectors.extend(neighbours(group, span));
            return Some(());
        }
        let names: Vec<String> = msr_groups()
            .iter()
            .map(|group| format!("@{}", group.name))
            .collect();
        let near = did_you_mean(&format!("@{name}"), names.iter().map(String::as_str));
        let message = format!("no group is called `@{name}`");
        self.report(
            Diagnostic::error("policy::unknown-group", message)
                .at(span, "unknown group")
                .help(near.unwrap_or_else(|| format!("there are {}", names.join(", ")))),
        );
        None
    }

    fn range(&mut self, text: &str, span: Span) -> Option<(MsrIndex, MsrIndex)> {
        if let Some((first, last)) = text.split_once("..=") {
            return self.index(first, span).zip(self.index(last, span));
        }
        if let Some((first, last)) = text.split_once("..") {
            self.report(
                Diagnostic::error("policy::range", "a range of MSRs includes its end")
                    .at(span, "`..` would leave the end out")
                    .help(format!("write \"{first}..={last}\"")),
            );
            return None;
        }
        let index = self.index(text, span)?;
        Some((index, index))
    }

    fn index(&mut self, text: &str, span: Span) -> Option<MsrIndex> {
        let text = text.trim();
        let error = match text.parse() {
            Ok(index) => return Some(index),
            Err(error) => error,
        };
        self.report(match error {
            ParseMsrIndexError::UnknownName { closest } => {
                let is_group = msr_groups().iter().any(|group| group.name == text);
                let help = match closest {
                    _ if is_group => format!("write \"@{text}\" for the group"),
                    Some(name) => format!("did you mean `{name}`?"),
                    None => "an index, such as 0x48, always works".to_owned(),
                };
                Diagnostic::error("policy::unknown-msr", format!("no MSR is called `{text}`"))
                    .at(span, "unknown name")
                    .help(help)
            }
            other => Diagnostic::error("policy::number", format!("`{text}` is no MSR index"))
                .at(span, other.to_string())
                .help("write an index such as 0x48, of at most 32 bits"),
        });
        None
    }
}

/// The members of a group, those that stand next to each other together.
fn neighbours(group: &'static MsrGroup, span: Span) -> Vec<Selector> {
    let mut selectors: Vec<Selector> = Vec::new();
    let mut count = 0;
    for MsrIndex(index) in group.members().map(|row| row.index) {
        count += 1;
        match selectors.last_mut() {
            Some(last) if last.last.0 + 1 == index => last.last.0 = index,
            _ => selectors.push(Selector {
                first: MsrIndex(index),
                last: MsrIndex(index),
                kind: SelectorKind::Single,
                span,
            }),
        }
    }
    for selector in &mut selectors {
        selector.kind = SelectorKind::Group {
            name: group.name,
            count,
        };
    }
    selectors
}
