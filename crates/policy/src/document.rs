//! A TOML text as a tree that borrows from it, and knows where each part is written: [`parse`].
//!
//! The crate `toml_parser` knows what TOML looks like; here is what its tables mean. The tree is made for policies: tables
//! are small, and what is read once is kept in the order of the text.

use std::borrow::Cow;
use std::vec::Drain;

use toml_parser::decoder::{Encoding, ScalarKind};
use toml_parser::parser::{EventReceiver, RecursionGuard, ValidateWhitespace, parse_document};
use toml_parser::{ErrorSink, Expected, ParseError, Raw, Source};

use crate::diagnostic::{Diagnostic, MAX_DIAGNOSTICS};
use crate::source::{SourceId, Span};

/// How deep values may be nested.
const MAX_DEPTH: u32 = 80;
/// How many parts a dotted key may have.
const MAX_PARTS: usize = 8;
/// How many keys of one table are kept: more than any table of a policy can have without a mistake.
const MAX_KEYS: usize = 64;

/// Something with a place.
#[derive(Debug)]
pub(crate) struct Value<'t> {
    pub(crate) kind: Kind<'t>,
    pub(crate) span: Span,
}

#[derive(Debug)]
pub(crate) enum Kind<'t> {
    Text(Cow<'t, str>),
    Integer {
        digits: Cow<'t, str>,
        radix: u32,
    },
    Fraction,
    Boolean(bool),
    Date,
    List(Vec<Value<'t>>),
    /// Made of `[[headers]]`; all are tables.
    Tables(Vec<Value<'t>>),
    Table(Table<'t>),
}

#[derive(Clone, Debug)]
pub(crate) struct Key<'t> {
    pub(crate) name: Cow<'t, str>,
    pub(crate) span: Span,
}

#[derive(Debug)]
pub(crate) struct Table<'t> {
    entries: Vec<(Key<'t>, Value<'t>)>,
    written: Written,
}

/// How a table came to be: what decides whether more may be put into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    /// On the way to another's `[header]`.
    Implied,
    Header,
    /// On the way to a `dotted.key`.
    Dotted,
    Inline,
}

impl<'t> Table<'t> {
    const fn new(written: Written) -> Self {
        Self {
            entries: Vec::new(),
            written,
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Value<'t>> {
        Some(&self.entry(name)?.1)
    }

    pub(crate) fn key(&self, name: &str) -> Option<&Key<'t>> {
        Some(&self.entry(name)?.0)
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &Key<'t>> {
        self.entries.iter().map(|(key, _)| key)
    }

    fn entry(&self, name: &str) -> Option<&(Key<'t>, Value<'t>)> {
        self.entries.iter().find(|(key, _)| key.name == name)
    }

    fn position(&self, key: &Key<'_>) -> Option<usize> {
        self.entries
            .iter()
            .position(|(old, _)| old.name == key.name)
    }

    /// Whether there was room.
    fn push(&mut self, key: Key<'t>, value: Value<'t>) -> bool {
        let has_room = self.entries.len() < MAX_KEYS;
        if has_room {
            self.entries.push((key, value));
        }
        has_room
    }

    /// The table at `key`, made if there is none. `None`: there is no room; an error: something else is there.
    fn below(&mut self, key: Key<'t>, written: Written) -> Result<Option<&mut Self>, Duplicate> {
        let Some(at) = self.position(&key) else {
            let value = Value {
                span: key.span,
                kind: Kind::Table(Table::new(written)),
            };
            let has_room = self.push(key, value);
            let last = self.entries.last_mut().filter(|_| has_room);
            return Ok(last.and_then(|(_, value)| value.last_table()));
        };
        let (old, value) = &mut self.entries[at];
        let duplicate = Duplicate::of(&key, old);
        match value.last_table() {
            Some(table) if written == Written::Implied && table.written != Written::Inline => {
                Ok(Some(table))
            }
            Some(table) if table.written == written => Ok(Some(table)),
            _ => Err(duplicate),
        }
    }

    /// Puts `value` at the end of `path`.
    fn insert(&mut self, mut path: Drain<'_, Key<'t>>, value: Value<'t>) -> Result<(), Duplicate> {
        let Some(last) = path.next_back() else {
            return Ok(());
        };
        let mut table = self;
        for key in path {
            match table.below(key, Written::Dotted)? {
                Some(below) => table = below,
                None => return Ok(()),
            }
        }
        if let Some(at) = table.position(&last) {
            return Err(Duplicate::of(&last, &table.entries[at].0));
        }
        table.push(last, value);
        Ok(())
    }

    /// Makes the table that a header at the end of `path` begins.
    fn begin(&mut self, path: &[Key<'t>], span: Span, is_list: bool) -> Result<(), Duplicate> {
        let Some((last, path)) = path.split_last() else {
            return Ok(());
        };
        let mut table = self;
        for key in path {
            match table.below(key.clone(), Written::Implied)? {
                Some(below) => table = below,
                None => return Ok(()),
            }
        }
        let new = Value {
            kind: Kind::Table(Table::new(Written::Header)),
            span,
        };
        let Some(at) = table.position(last) else {
            let value = if is_list {
                Value {
                    kind: Kind::Tables(vec![new]),
                    span,
                }
            } else {
                new
            };
            table.push(last.clone(), value);
            return Ok(());
        };
        let (old, value) = &mut table.entries[at];
        match &mut value.kind {
            Kind::Tables(tables) if is_list => tables.push(new),
            Kind::Table(table) if !is_list && table.written == Written::Implied => {
                table.written = Written::Header;
                value.span = span;
            }
            _ => return Err(Duplicate::of(last, old)),
        }
        Ok(())
    }
}

impl<'t> Value<'t> {
    fn last_table(&mut self) -> Option<&mut Table<'t>> {
        match &mut self.kind {
            Kind::Table(table) => Some(table),
            Kind::Tables(tables) => tables.last_mut()?.last_table(),
            _ => None,
        }
    }
}

/// A key that is there already.
struct Duplicate {
    name: String,
    new: Span,
    old: Span,
}

impl Duplicate {
    fn of(new: &Key<'_>, old: &Key<'_>) -> Self {
        Self {
            name: new.name.clone().into_owned(),
            new: new.span,
            old: old.span,
        }
    }

    fn diagnostic(self) -> Diagnostic {
        let message = format!("`{}` is given twice", self.name);
        Diagnostic::error("policy::duplicate-key", message)
            .at(self.new, "again here")
            .at(self.old, "given here")
            .help("remove one; each rule begins with its own [[rule]]")
    }
}

/// Reads `text`; where that is not TOML, says why.
pub(crate) fn parse(id: SourceId, text: &str) -> Result<Table<'_>, Vec<Diagnostic>> {
    let source = Source::new(text);
    // A policy is short words and signs: seldom are there fewer bytes than two for a token.
    let mut tokens = Vec::with_capacity(text.len() / 2 + 1);
    tokens.extend(source.lex());
    let mut builder = Builder {
        id,
        text,
        root: Table::new(Written::Header),
        path: Vec::new(),
        header_start: 0,
        keys: Vec::new(),
        open: Vec::new(),
        errors: Vec::new(),
    };
    let mut errors = Vec::new();
    let mut sink = |error: ParseError| {
        if errors.len() < MAX_DIAGNOSTICS {
            errors.push(error);
        }
    };
    let mut whole = ValidateWhitespace::new(&mut builder, source);
    let mut guarded = RecursionGuard::new(&mut whole, MAX_DEPTH);
    parse_document(&tokens, &mut guarded, &mut sink);
    let mut diagnostics = builder.errors;
    diagnostics.extend(errors.into_iter().map(|error| syntax(id, text, &error)));
    if diagnostics.is_empty() {
        Ok(builder.root)
    } else {
        Err(diagnostics)
    }
}

fn syntax(id: SourceId, text: &str, error: &ParseError) -> Diagnostic {
    let span = error.unexpected().or(error.context());
    let (start, end) = span.map_or((0, 0), |span| (span.start(), span.end()));
    let is_place = text.get(start..end).is_some();
    let expected: Vec<String> = error
        .expected()
        .unwrap_or_default()
        .iter()
        .map(|expected| match expected {
            Expected::Literal("\n") => "the end of the line".to_owned(),
            Expected::Literal(literal) => format!("`{literal}`"),
            Expected::Description(words) => (*words).to_owned(),
            _ => "something else".to_owned(),
        })
        .collect();
    let label = match &expected[..] {
        [] => "here".to_owned(),
        expected => format!("expected {}", expected.join(", ")),
    };
    let place = Span {
        source: id,
        start: if is_place { start } else { 0 },
        end: if is_place { end } else { 0 },
    };
    let message = format!("not TOML: {}", error.description());
    let diagnostic = Diagnostic::error("policy::syntax", message).at(place, label);
    let found = text.get(place.range()).unwrap_or("");
    if found.starts_with(|c: char| c.is_ascii_alphabetic() || c == '@') {
        return diagnostic.help(format!("a text stands in quotes: \"{found}\""));
    }
    diagnostic
}

/// Puts the tree together from what the parser sees.
struct Builder<'t> {
    id: SourceId,
    text: &'t str,
    root: Table<'t>,
    /// The table that keys are put into, from the root.
    path: Vec<Key<'t>>,
    header_start: usize,
    /// The dotted keys that wait for their values: one for each value that has begun, and the last.
    keys: Vec<Key<'t>>,
    /// Values that have begun, each within the one before.
    open: Vec<Open<'t>>,
    errors: Vec<Diagnostic>,
}

/// A value that has begun.
struct Open<'t> {
    value: Value<'t>,
    /// Where the keys within it begin among [`Builder::keys`].
    first_key: usize,
}

impl<'t> Builder<'t> {
    fn span(&self, span: toml_parser::Span) -> Span {
        Span {
            source: self.id,
            start: span.start(),
            end: span.end(),
        }
    }

    fn raw(&self, span: toml_parser::Span, encoding: Option<Encoding>) -> Raw<'t> {
        let raw = self.text.get(span.start()..span.end()).unwrap_or("");
        Raw::new_unchecked(raw, encoding, span)
    }

    fn begin(&mut self, span: toml_parser::Span, kind: Kind<'t>) {
        let value = Value {
            kind,
            span: self.span(span),
        };
        let first_key = self.keys.len();
        self.open.push(Open { value, first_key });
    }

    fn end(&mut self, span: toml_parser::Span) {
        if let Some(mut open) = self.open.pop() {
            open.value.span.end = span.end();
            self.keys.truncate(open.first_key);
            self.put(open.value);
        }
    }

    fn first_key(&self) -> usize {
        self.open.last().map_or(0, |open| open.first_key)
    }

    /// A value is complete.
    fn put(&mut self, value: Value<'t>) {
        let first_key = self.first_key();
        let table = match self.open.last_mut().map(|open| &mut open.value.kind) {
            Some(Kind::List(items)) => {
                items.push(value);
                return;
            }
            Some(Kind::Table(table)) => Some(table),
            Some(_) => None,
            None => table_at(&mut self.root, &self.path),
        };
        if let Some(table) = table {
            let put = table.insert(self.keys.drain(first_key..), value);
            self.check(put);
        }
    }

    fn header(&mut self, end: toml_parser::Span, is_list: bool) {
        std::mem::swap(&mut self.path, &mut self.keys);
        self.keys.clear();
        let span = Span {
            source: self.id,
            start: self.header_start,
            end: end.end(),
        };
        let begun = self.root.begin(&self.path, span, is_list);
        self.check(begun);
    }

    fn check(&mut self, result: Result<(), Duplicate>) {
        if let Err(duplicate) = result
            && self.errors.len() < MAX_DIAGNOSTICS
        {
            self.errors.push(duplicate.diagnostic());
        }
    }
}

/// The table that the header of `path` began.
fn table_at<'a, 't>(root: &'a mut Table<'t>, path: &[Key<'t>]) -> Option<&'a mut Table<'t>> {
    let mut table = root;
    for key in path {
        let at = table.position(key)?;
        table = table.entries[at].1.last_table()?;
    }
    Some(table)
}

impl EventReceiver for Builder<'_> {
    fn std_table_open(&mut self, span: toml_parser::Span, _: &mut dyn ErrorSink) {
        self.header_start = span.start();
        self.keys.clear();
    }

    fn std_table_close(&mut self, span: toml_parser::Span, _: &mut dyn ErrorSink) {
        self.header(span, false);
    }

    fn array_table_open(&mut self, span: toml_parser::Span, _: &mut dyn ErrorSink) {
        self.header_start = span.start();
        self.keys.clear();
    }

    fn array_table_close(&mut self, span: toml_parser::Span, _: &mut dyn ErrorSink) {
        self.header(span, true);
    }

    fn inline_table_open(&mut self, span: toml_parser::Span, _: &mut dyn ErrorSink) -> bool {
        self.begin(span, Kind::Table(Table::new(Written::Inline)));
        true
    }

    fn inline_table_close(&mut self, span: toml_parser::Span, _: &mut dyn ErrorSink) {
        self.end(span);
    }

    fn array_open(&mut self, span: toml_parser::Span, _: &mut dyn ErrorSink) -> bool {
        self.begin(span, Kind::List(Vec::new()));
        true
    }

    fn array_close(&mut self, span: toml_parser::Span, _: &mut dyn ErrorSink) {
        self.end(span);
    }

    fn simple_key(
        &mut self,
        span: toml_parser::Span,
        encoding: Option<Encoding>,
        error: &mut dyn ErrorSink,
    ) {
        if self.keys.len() - self.first_key() == MAX_PARTS {
            let text = format!("a key has more than {MAX_PARTS} parts");
            error.report_error(ParseError::new(text).with_unexpected(span));
            return;
        }
        let mut name = Cow::Borrowed("");
        self.raw(span, encoding).decode_key(&mut name, error);
        let span = self.span(span);
        self.keys.push(Key { name, span });
    }

    fn scalar(
        &mut self,
        span: toml_parser::Span,
        encoding: Option<Encoding>,
        error: &mut dyn ErrorSink,
    ) {
        let mut decoded = Cow::Borrowed("");
        let kind = match self.raw(span, encoding).decode_scalar(&mut decoded, error) {
            ScalarKind::String => Kind::Text(decoded),
            ScalarKind::Boolean(flag) => Kind::Boolean(flag),
            ScalarKind::DateTime => Kind::Date,
            ScalarKind::Float => Kind::Fraction,
            ScalarKind::Integer(radix) => Kind::Integer {
                digits: decoded,
                radix: radix.value(),
            },
        };
        let span = self.span(span);
        self.put(Value { kind, span });
    }
}

#[cfg(test)]
mod tests;
