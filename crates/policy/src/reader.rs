//! Taking TOML values apart, with a diagnostic wherever something else is found than what is asked for.

use std::borrow::Borrow;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use crate::diagnostic::Diagnostic;
use crate::source::{SourceId, Span};

/// A key that a table may have: its name, and whether this version can read it.
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) available: bool,
}

impl Key {
    pub(crate) const fn new(name: &'static str) -> Self {
        Self {
            name,
            available: true,
        }
    }

    pub(crate) const fn reserved(name: &'static str) -> Self {
        Self {
            name,
            available: false,
        }
    }
}

/// Collects what is wrong with one text.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    pub(crate) source: SourceId,
    /// What a policy may call handlers.
    pub(crate) handlers: &'a [&'a str],
    pub(crate) diagnostics: Vec<Diagnostic>,
}

impl Reader<'_> {
    pub(crate) fn report(&mut self, diagnostic: Diagnostic) {
        self.diagnostics.push(diagnostic);
    }

    /// Where `item` is written.
    pub(crate) fn span<T>(&self, item: &Spanned<T>) -> Span {
        self.place(item.span())
    }

    /// These bytes of the text.
    pub(crate) fn place(&self, range: Range<usize>) -> Span {
        Span {
            source: self.source,
            start: range.start,
            end: range.end,
        }
    }

    /// Complains about every key of `table` that is not in `keys`; answers how many there are.
    pub(crate) fn check_keys(&mut self, table: &DeTable<'_>, keys: &[Key], what: &str) -> usize {
        let before = self.diagnostics.len();
        for key in table.keys() {
            let name: &str = key.get_ref().borrow();
            match keys.iter().find(|known| known.name == name) {
                Some(known) if known.available => {}
                Some(_) => self.report(
                    Diagnostic::error(
                        "policy::not-available",
                        format!("`{name}` is not available in this version"),
                    )
                    .at(self.span(key), "reserved for a later version")
                    .help(one_of(keys, what)),
                ),
                None => self.report(
                    Diagnostic::error("policy::unknown-key", format!("unknown key `{name}`"))
                        .at(self.span(key), format!("{what} has no such key"))
                        .help(
                            did_you_mean(name, keys.iter().map(|key| key.name))
                                .unwrap_or_else(|| one_of(keys, what)),
                        ),
                ),
            }
        }
        self.diagnostics.len() - before
    }

    /// `value` as a table.
    pub(crate) fn table<'v, 'i>(
        &mut self,
        value: &'v Spanned<DeValue<'i>>,
        what: &str,
    ) -> Option<&'v DeTable<'i>> {
        match value.get_ref() {
            DeValue::Table(table) => Some(table),
            other => self.wrong_type(other, self.span(value), what, "a table"),
        }
    }

    /// `value` as a text.
    pub(crate) fn string<'v>(
        &mut self,
        value: &'v Spanned<DeValue<'_>>,
        what: &str,
        expected: &str,
    ) -> Option<&'v str> {
        match value.get_ref() {
            DeValue::String(text) => Some(text),
            other => self.wrong_type(other, self.span(value), what, expected),
        }
    }

    /// `value` as true or false.
    pub(crate) fn boolean(&mut self, value: &Spanned<DeValue<'_>>, what: &str) -> Option<bool> {
        match value.get_ref() {
            DeValue::Boolean(flag) => Some(*flag),
            other => self.wrong_type(other, self.span(value), what, "true or false"),
        }
    }

    /// An integer of at most `bits` bits. TOML's own limit of 63 bits does not count.
    pub(crate) fn number(
        &mut self,
        value: &Spanned<DeValue<'_>>,
        what: &str,
        bits: u32,
    ) -> Option<u64> {
        let DeValue::Integer(integer) = value.get_ref() else {
            return self.wrong_type(value.get_ref(), self.span(value), what, "a number");
        };
        let number =
            parse_integer(integer).filter(|number| number.checked_shr(bits).unwrap_or(0) == 0);
        if number.is_none() {
            let limit = u64::MAX >> (64 - bits);
            let side = if integer.as_str().starts_with('-') {
                "is negative"
            } else {
                "is too big"
            };
            self.report(
                Diagnostic::error("policy::number", format!("{what} {side}"))
                    .at(self.span(value), format!("not a number of {bits} bits"))
                    .help(format!("write a number from 0 to {limit:#x}")),
            );
        }
        number
    }

    /// Says that `found` is not what `what` takes.
    pub(crate) fn wrong_type<T>(
        &mut self,
        found: &DeValue<'_>,
        span: Span,
        what: &str,
        expected: &str,
    ) -> Option<T> {
        let found = match found {
            DeValue::String(_) => "a text",
            DeValue::Integer(_) => "a number",
            DeValue::Float(_) => "a fraction",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.report(
            Diagnostic::error("policy::type", format!("{what} is {found}"))
                .at(span, format!("this is {found}"))
                .help(format!("write {expected}")),
        );
        None
    }
}

/// The candidate that was probably meant.
pub(crate) fn did_you_mean<'a>(
    word: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<String> {
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|&(distance, candidate)| distance <= candidate.len().div_ceil(3))
        .min()
        .map(|(_, candidate)| format!("did you mean `{candidate}`?"))
}

fn one_of(keys: &[Key], what: &str) -> String {
    let names: Vec<&str> = keys
        .iter()
        .filter(|key| key.available)
        .map(|key| key.name)
        .collect();
    format!("{what} has the keys {}", names.join(", "))
}

fn parse_integer(integer: &DeInteger<'_>) -> Option<u64> {
    u64::from_str_radix(integer.as_str(), integer.radix()).ok()
}
