//! Taking TOML values apart, with a diagnostic wherever something else is found than what is asked for.

use crate::diagnostic::{Diagnostic, MAX_DIAGNOSTICS};
use crate::document::{Kind, Table, Value};
use crate::source::Span;

/// Collects what is wrong with one text.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    /// What a policy may call handlers.
    pub(crate) handlers: &'a [&'a str],
    pub(crate) diagnostics: Vec<Diagnostic>,
}

impl Reader<'_> {
    pub(crate) fn report(&mut self, diagnostic: Diagnostic) {
        self.diagnostics.push(diagnostic);
    }

    /// Whether so much is wrong that nobody would read more.
    pub(crate) fn is_full(&self) -> bool {
        self.diagnostics.len() >= MAX_DIAGNOSTICS
    }

    /// Complains about every key of `table` that is not in `keys`; answers how many there are.
    pub(crate) fn check_keys(&mut self, table: &Table<'_>, keys: &[&str], what: &str) -> usize {
        let before = self.diagnostics.len();
        for key in table.keys().filter(|key| !keys.contains(&&*key.name)) {
            self.report(
                Diagnostic::error("policy::unknown-key", format!("unknown key `{}`", key.name))
                    .at(key.span, format!("{what} has no such key"))
                    .help(
                        did_you_mean(&key.name, keys.iter().copied())
                            .unwrap_or_else(|| format!("{what} has the keys {}", keys.join(", "))),
                    ),
            );
        }
        self.diagnostics.len() - before
    }

    /// `value` as a table.
    pub(crate) fn table<'v, 't>(
        &mut self,
        value: &'v Value<'t>,
        what: &str,
        expected: &str,
    ) -> Option<&'v Table<'t>> {
        match &value.kind {
            Kind::Table(table) => Some(table),
            _ => self.wrong_type(value, what, expected),
        }
    }

    /// `value` as a text.
    pub(crate) fn string<'v>(
        &mut self,
        value: &'v Value<'_>,
        what: &str,
        expected: &str,
    ) -> Option<&'v str> {
        match &value.kind {
            Kind::Text(text) => Some(text),
            _ => self.wrong_type(value, what, expected),
        }
    }

    /// `value` as true or false.
    pub(crate) fn boolean(&mut self, value: &Value<'_>, what: &str) -> Option<bool> {
        match value.kind {
            Kind::Boolean(flag) => Some(flag),
            _ => self.wrong_type(value, what, "true or false"),
        }
    }

    /// An integer of at most `bits` bits. TOML's own limit of 63 bits does not count.
    pub(crate) fn number(&mut self, value: &Value<'_>, what: &str, bits: u32) -> Option<u64> {
        let Kind::Integer { digits, radix } = &value.kind else {
            return self.wrong_type(value, what, "a number");
        };
        let number = u64::from_str_radix(digits, *radix)
            .ok()
            .filter(|number| number.checked_shr(bits).unwrap_or(0) == 0);
        if number.is_none() {
            let limit = u64::MAX >> (64 - bits);
            let side = if digits.starts_with('-') {
                "is negative"
            } else {
                "is too big"
            };
            self.report(
                Diagnostic::error("policy::number", format!("{what} {side}"))
                    .at(value.span, format!("not a number of {bits} bits"))
                    .help(format!("write a number from 0 to {limit:#x}")),
            );
        }
        number
    }

    /// The meaning of `text`, which is written at `key`, among `words`.
    pub(crate) fn lookup<T: Copy>(
        &mut self,
        words: &[(&str, T)],
        text: &str,
        key: &str,
        span: Span,
    ) -> Option<T> {
        if let Some(&(_, meaning)) = words.iter().find(|(word, _)| *word == text) {
            return Some(meaning);
        }
        let near = did_you_mean(text, words.iter().map(|(word, _)| *word));
        self.report(
            Diagnostic::error("policy::action", format!("`{key}` cannot be \"{text}\""))
                .at(span, "no such word")
                .help(near.unwrap_or_else(|| format!("write {}", quoted(words)))),
        );
        None
    }

    /// Says that `value` is not what `what` takes.
    pub(crate) fn wrong_type<T>(
        &mut self,
        value: &Value<'_>,
        what: &str,
        expected: &str,
    ) -> Option<T> {
        let found = match value.kind {
            Kind::Text(_) => "a text",
            Kind::Integer { .. } => "a number",
            Kind::Fraction => "a fraction",
            Kind::Boolean(_) => "true or false",
            Kind::Date => "a date",
            Kind::List(_) | Kind::Tables(_) => "a list",
            Kind::Table(_) => "a table",
        };
        self.report(
            Diagnostic::error("policy::type", format!("{what} is {found}"))
                .at(value.span, format!("this is {found}"))
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
    let length = word.chars().count();
    candidates
        .filter(|candidate| candidate.len().abs_diff(length) <= candidate.len().div_ceil(3))
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|&(distance, candidate)| distance <= candidate.len().div_ceil(3))
        .min()
        .map(|(_, candidate)| format!("did you mean `{candidate}`?"))
}

/// The words, as a sentence has them.
pub(crate) fn quoted<T>(words: &[(&str, T)]) -> String {
    let words: Vec<String> = words
        .iter()
        .map(|(word, _)| format!("\"{word}\""))
        .collect();
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => words.concat(),
    }
}
