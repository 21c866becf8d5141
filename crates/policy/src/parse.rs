//! From the text to a [`Policy`], with every mistake on the way.
//!
//! Nothing here knows how rules interact; that is `resolve`'s part.

use msrgate_core::{Access, Action, HandlerId, MsrIndex, ParseMsrIndexError, Rule};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::ast::{Policy, Selector, Word, WrittenRule};
use crate::diagnostic::Diagnostic;
use crate::reader::{Key, Reader, did_you_mean};
use crate::source::{SourceId, Span};

/// The version of the language that this is.
const VERSION: u64 = 1;

const POLICY_KEYS: &[Key] = &[
    Key::new("version"),
    Key::new("include"),
    Key::new("defaults"),
    Key::new("rule"),
];
const DEFAULTS_KEYS: &[Key] = &[Key::new("known"), Key::new("unknown"), Key::new("invalid")];
const RULE_KEYS: &[Key] = &[
    Key::new("msr"),
    Key::new("read"),
    Key::new("write"),
    Key::new("both"),
    Key::new("log"),
    Key::reserved("shadow"),
    Key::reserved("limit"),
];
const ACTION_KEYS: &[Key] = &[
    Key::new("value"),
    Key::new("handler"),
    Key::reserved("mask"),
    Key::reserved("writable"),
    Key::reserved("on-violation"),
];

/// The handler that stands for the processor's own MSRs.
const HOST: &str = "host";

/// What a default or an action may be called.
type Words = &'static [(&'static str, Rule)];

const KNOWN_WORDS: Words = &[
    ("allow", Rule::ALLOW),
    ("fault", Rule::quiet(Action::Fault)),
    ("ignore", Rule::quiet(Action::Ignore)),
];
/// `log` is libvirt's word: the guest gets its #GP, and the host a line.
const REFUSED_WORDS: Words = &[
    ("fault", Rule::quiet(Action::Fault)),
    ("ignore", Rule::quiet(Action::Ignore)),
    ("log", Rule::logged(Action::Fault)),
];

type Value<'i> = Spanned<DeValue<'i>>;

/// A text that is to be put in.
pub(crate) struct Include {
    /// As it is written.
    pub(crate) path: String,
    pub(crate) span: Span,
}

/// Reads one text. The policy is complete only where no diagnostic is an error.
pub(crate) fn parse(
    source: SourceId,
    text: &str,
    handlers: &[&str],
) -> (Policy, Vec<Include>, Vec<Diagnostic>) {
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader {
        source,
        handlers,
        diagnostics: Vec::new(),
    };
    for error in errors {
        let place = reader.place(error.span().unwrap_or(0..0));
        reader.report(
            Diagnostic::error("policy::syntax", format!("not TOML: {}", error.message()))
                .at(place, "here"),
        );
    }
    if !reader.diagnostics.is_empty() {
        return (Policy::default(), Vec::new(), reader.diagnostics);
    }
    let document = document.get_ref();
    let policy = reader.policy(document, text);
    let includes = reader.includes(document);
    (policy, includes, reader.diagnostics)
}

impl Reader<'_> {
    fn policy(&mut self, document: &DeTable<'_>, text: &str) -> Policy {
        self.check_keys(document, POLICY_KEYS, "a policy");
        self.version(document.get("version"), text);
        let mut policy = Policy::default();
        if let Some(value) = document.get("defaults")
            && let Some(defaults) = self.table(value, "`defaults`")
        {
            self.check_keys(defaults, DEFAULTS_KEYS, "`defaults`");
            policy.known = self.word(defaults, "known", KNOWN_WORDS);
            policy.unknown = self.word(defaults, "unknown", REFUSED_WORDS);
            policy.invalid = self.word(defaults, "invalid", REFUSED_WORDS);
        }
        if let Some(value) = document.get("rule") {
            policy.rules = self.rules(value);
        }
        policy
    }

    fn includes(&mut self, document: &DeTable<'_>) -> Vec<Include> {
        const EXPECTED: &str = "a list of files, such as [\"base.toml\"]";
        let Some(value) = document.get("include") else {
            return Vec::new();
        };
        let DeValue::Array(items) = value.get_ref() else {
            let span = self.span(value);
            self.wrong_type::<()>(value.get_ref(), span, "`include`", EXPECTED);
            return Vec::new();
        };
        items
            .iter()
            .filter_map(|item| {
                let path = self.string(item, "an included file", EXPECTED)?;
                Some(Include {
                    path: path.to_owned(),
                    span: self.span(item),
                })
            })
            .collect()
    }

    fn version(&mut self, value: Option<&Value<'_>>, text: &str) {
        let Some(value) = value else {
            let start = text.find(|c: char| !c.is_whitespace()).unwrap_or(0);
            self.report(
                Diagnostic::error("policy::version", "the policy does not say its version")
                    .at(self.place(start..start), "before anything else")
                    .help(format!("write `version = {VERSION}` in the first line")),
            );
            return;
        };
        let Some(version) = self.number(value, "`version`", 32) else {
            return;
        };
        if version != VERSION {
            self.report(
                Diagnostic::error(
                    "policy::version",
                    format!("version {version} of the policy language is not known here"),
                )
                .at(self.span(value), "this program reads version 1")
                .help(format!(
                    "write `version = {VERSION}`, or use the msrgate that the policy was written for"
                )),
            );
        }
    }

    fn word(&mut self, table: &DeTable<'_>, key: &str, words: Words) -> Option<Word> {
        let value = table.get(key)?;
        let text = self.string(value, &format!("`{key}`"), &quoted(words))?;
        let rule = self.lookup(words, text, &format!("`{key}`"), self.span(value))?;
        Some(Word {
            rule,
            span: self.span(value),
        })
    }

    fn lookup(&mut self, words: Words, text: &str, what: &str, span: Span) -> Option<Rule> {
        if let Some(&(_, rule)) = words.iter().find(|(word, _)| *word == text) {
            return Some(rule);
        }
        let near = did_you_mean(text, words.iter().map(|(word, _)| *word));
        self.report(
            Diagnostic::error("policy::action", format!("{what} cannot be \"{text}\""))
                .at(span, "no such action")
                .help(near.unwrap_or_else(|| format!("write {}", quoted(words)))),
        );
        None
    }

    fn rules(&mut self, value: &Value<'_>) -> Vec<WrittenRule> {
        let DeValue::Array(items) = value.get_ref() else {
            let found = value.get_ref();
            self.wrong_type::<()>(found, self.span(value), "`rule`", "rules as [[rule]]");
            return Vec::new();
        };
        items.iter().filter_map(|item| self.rule(item)).collect()
    }

    fn rule(&mut self, value: &Value<'_>) -> Option<WrittenRule> {
        let table = self.table(value, "a rule")?;
        let strange_keys = self.check_keys(table, RULE_KEYS, "a rule");
        let log = table
            .get("log")
            .and_then(|value| self.boolean(value, "`log`"))
            .unwrap_or(false);
        let rules = self.directions(table, log);
        if strange_keys == 0
            && !["read", "write", "both"]
                .iter()
                .any(|key| table.contains_key(*key))
        {
            self.report(
                Diagnostic::error("policy::no-action", "the rule does nothing")
                    .at(self.span(value), "no `read`, `write` or `both` in here")
                    .help("write `both = \"fault\"`, for example"),
            );
        }
        let Some(msr) = table.get("msr") else {
            self.report(
                Diagnostic::error("policy::no-msr", "the rule names no MSR")
                    .at(self.span(value), "no `msr` in here")
                    .help("write `msr = \"IA32_SPEC_CTRL\"`, `msr = 0x48` or `msr = \"0x200..=0x20f\"`"),
            );
            return None;
        };
        Some(WrittenRule {
            msrs: self.selectors(msr),
            rules,
        })
    }

    fn directions(&mut self, table: &DeTable<'_>, log: bool) -> [Option<Rule>; 2] {
        let mut rules = [None; 2];
        for (access, key) in [(Access::Read, "read"), (Access::Write, "write")] {
            if let Some(value) = table.get(key) {
                rules[access as usize] = self.action(value, key, log);
            }
        }
        let one = table.get_key_value("read").or(table.get_key_value("write"));
        match (table.get_key_value("both"), one) {
            (Some((both, _)), Some((one, _))) => self.report(
                Diagnostic::error("policy::both", "a direction is given twice")
                    .at(self.span(both), "this speaks of reads and writes")
                    .at(self.span(one), "and this of one of them")
                    .help("write `read` and `write`, or `both` alone"),
            ),
            (Some((_, value)), None) => rules = [self.action(value, "both", log); 2],
            (None, _) => {}
        }
        rules
    }

    fn action(&mut self, value: &Value<'_>, key: &str, log: bool) -> Option<Rule> {
        let what = format!("`{key}`");
        let action = match value.get_ref() {
            DeValue::String(text) if text == HOST => self.host(self.span(value), key)?,
            DeValue::String(text) => {
                self.lookup(KNOWN_WORDS, text, &what, self.span(value))?
                    .action
            }
            DeValue::Table(table) => self.table_action(table, self.span(value), key)?,
            other => {
                let expected = format!("{}, or {{ value = 0x1 }}", quoted(KNOWN_WORDS));
                return self.wrong_type(other, self.span(value), &what, &expected);
            }
        };
        Some(Rule {
            log,
            ..Rule::quiet(action)
        })
    }

    fn table_action(&mut self, table: &DeTable<'_>, span: Span, key: &str) -> Option<Action> {
        self.check_keys(table, ACTION_KEYS, "an action");
        if let Some(value) = table.get("handler") {
            let name = self.string(value, "`handler`", "the name of a handler")?;
            return self.handler(name, self.span(value));
        }
        let value = table.get("value")?;
        if key != "read" {
            self.report(
                Diagnostic::error("policy::direction", "a write is not answered with a value")
                    .at(span, format!("`{key}` is about writes"))
                    .help("write `read = { value = … }`, and `write = \"ignore\"` to drop writes"),
            );
            return None;
        }
        Some(Action::Value(self.number(value, "`value`", 64)?))
    }

    /// The value of the processor that the guest runs on: a handler that only reads.
    fn host(&mut self, span: Span, key: &str) -> Option<Action> {
        if key == "read" {
            return self.handler(HOST, span);
        }
        self.report(
            Diagnostic::error("policy::direction", "the host's MSRs are only read")
                .at(span, format!("`{key}` is about writes"))
                .help("write `read = \"host\"`, and `write = \"ignore\"` to drop writes"),
        );
        None
    }

    fn handler(&mut self, name: &str, span: Span) -> Option<Action> {
        let at = self.handlers.iter().position(|known| *known == name);
        if let Some(id) = at.and_then(|at| u16::try_from(at).ok()) {
            return Some(Action::Handler(HandlerId(id)));
        }
        let message = match name {
            HOST => "this program does not read the host's MSRs".to_owned(),
            name => format!("this program has no handler called \"{name}\""),
        };
        let handlers = self.handlers.iter().copied();
        let help = match did_you_mean(name, handlers) {
            Some(near) => near,
            None if self.handlers.is_empty() => "it has no handlers: use another action".to_owned(),
            None => format!("it has: {}", self.handlers.join(", ")),
        };
        self.report(
            Diagnostic::error("policy::handler", message)
                .at(span, "not there")
                .help(help),
        );
        None
    }

    fn selectors(&mut self, value: &Value<'_>) -> Vec<Selector> {
        match value.get_ref() {
            DeValue::Array(items) => {
                if items.is_empty() {
                    self.report(
                        Diagnostic::error("policy::no-msr", "the rule names no MSR")
                            .at(self.span(value), "an empty list"),
                    );
                }
                items
                    .iter()
                    .filter_map(|item| self.selector(item))
                    .collect()
            }
            _ => self.selector(value).into_iter().collect(),
        }
    }

    fn selector(&mut self, value: &Value<'_>) -> Option<Selector> {
        let span = self.span(value);
        let (first, last) = match value.get_ref() {
            DeValue::Integer(_) => {
                let number = self.number(value, "an MSR index", 32)?;
                let index = MsrIndex(u32::try_from(number).ok()?);
                (index, index)
            }
            DeValue::String(text) => self.named_selector(text, &span)?,
            other => {
                let expected = "a name, an index, a range \"0x200..=0x20f\", or a list of these";
                return self.wrong_type(other, span, "an MSR", expected);
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
        Some(Selector::new((first, last), span))
    }

    fn named_selector(&mut self, text: &str, span: &Span) -> Option<(MsrIndex, MsrIndex)> {
        if let Some(group) = text.strip_prefix('@') {
            self.report(
                Diagnostic::error(
                    "policy::not-available",
                    format!("the group `@{group}` is not available in this version"),
                )
                .at(*span, "a group")
                .help("name its MSRs in a list, or write ranges"),
            );
            return None;
        }
        if let Some((first, last)) = text.split_once("..=") {
            return self.index(first, span).zip(self.index(last, span));
        }
        if let Some((first, last)) = text.split_once("..") {
            self.report(
                Diagnostic::error("policy::range", "a range of MSRs includes its end")
                    .at(*span, "`..` would leave the end out")
                    .help(format!("write \"{first}..={last}\"")),
            );
            return None;
        }
        let index = self.index(text, span)?;
        Some((index, index))
    }

    fn index(&mut self, text: &str, span: &Span) -> Option<MsrIndex> {
        let text = text.trim();
        let error = match text.parse() {
            Ok(index) => return Some(index),
            Err(error) => error,
        };
        self.report(match error {
            ParseMsrIndexError::UnknownName { closest } => {
                let diagnostic =
                    Diagnostic::error("policy::unknown-msr", format!("no MSR is called `{text}`"))
                        .at(*span, "unknown name");
                match closest {
                    Some(name) => diagnostic.help(format!("did you mean `{name}`?")),
                    None => diagnostic.help("an index, such as 0x48, always works"),
                }
            }
            other => Diagnostic::error("policy::number", format!("`{text}` is no MSR index"))
                .at(*span, other.to_string()),
        });
        None
    }
}

fn quoted(words: Words) -> String {
    let words: Vec<String> = words
        .iter()
        .map(|(word, _)| format!("\"{word}\""))
        .collect();
    match words.split_last() {
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => String::new(),
    }
}
