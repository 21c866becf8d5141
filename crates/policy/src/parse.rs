//! From one text to a [`Policy`], with every mistake on the way: the document, its defaults and its rules.
//!
//! What a rule may do is in `action`, what it may name in `select`. Nothing here knows how rules interact; that is
//! `resolve`'s part.

use msrgate_core::{Access, Action, Rule};

use crate::ast::{Policy, Word, WrittenRule};
use crate::diagnostic::Diagnostic;
use crate::document::{self, Kind, Table, Value};
use crate::reader::{Reader, quoted};
use crate::source::{SourceId, Span};

/// The version of the language that this is.
const VERSION: u64 = 1;

const POLICY_KEYS: &[&str] = &["version", "include", "defaults", "rule"];
const DEFAULTS_KEYS: &[&str] = &["known", "unknown", "invalid"];
const RULE_KEYS: &[&str] = &["msr", "read", "write", "both", "shadow", "log", "limit"];

/// What a default may be called.
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
    let document = match document::parse(source, text) {
        Ok(document) => document,
        Err(diagnostics) => return (Policy::default(), Vec::new(), diagnostics),
    };
    let mut reader = Reader {
        handlers,
        diagnostics: Vec::new(),
    };
    let start = text.find(|c: char| !c.is_whitespace()).unwrap_or(0);
    let before = Span {
        source,
        start,
        end: start,
    };
    let policy = reader.policy(&document, before);
    let includes = reader.includes(&document);
    (policy, includes, reader.diagnostics)
}

impl Reader<'_> {
    /// `before`: where nothing is written yet.
    fn policy(&mut self, document: &Table<'_>, before: Span) -> Policy {
        self.check_keys(document, POLICY_KEYS, "a policy");
        self.version(document.get("version"), before);
        let mut policy = Policy::default();
        if let Some(value) = document.get("defaults")
            && let Some(defaults) = self.table(value, "`defaults`", "a table [defaults]")
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

    fn version(&mut self, value: Option<&Value<'_>>, before: Span) {
        let Some(value) = value else {
            self.report(
                Diagnostic::error("policy::version", "the policy does not say its version")
                    .at(before, "before anything else")
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
                .at(value.span, "this program reads version 1")
                .help(format!(
                    "write `version = {VERSION}`, or use the msrgate that the policy was written for"
                )),
            );
        }
    }

    fn includes(&mut self, document: &Table<'_>) -> Vec<Include> {
        const EXPECTED: &str = "a list of files, such as [\"base.toml\"]";
        let Some(value) = document.get("include") else {
            return Vec::new();
        };
        let Kind::List(items) = &value.kind else {
            self.wrong_type::<()>(value, "`include`", EXPECTED);
            return Vec::new();
        };
        items
            .iter()
            .filter_map(|item| {
                let path = self.string(item, "an included file", EXPECTED)?;
                Some(Include {
                    path: path.to_owned(),
                    span: item.span,
                })
            })
            .collect()
    }

    fn word(&mut self, table: &Table<'_>, key: &str, words: Words) -> Option<Word> {
        let value = table.get(key)?;
        let what = format!("`{key}`");
        let text = self.string(value, &what, &quoted(words))?;
        let rule = self.lookup(words, text, key, value.span)?;
        Some(Word {
            rule,
            span: value.span,
        })
    }

    fn rules(&mut self, value: &Value<'_>) -> Vec<WrittenRule> {
        match &value.kind {
            Kind::Tables(items) | Kind::List(items) => {
                let mut rules = Vec::with_capacity(items.len());
                for item in items {
                    if self.is_full() {
                        break;
                    }
                    rules.extend(self.rule(item));
                }
                rules
            }
            _ => {
                self.wrong_type::<()>(value, "`rule`", "rules as [[rule]]");
                Vec::new()
            }
        }
    }

    fn rule(&mut self, value: &Value<'_>) -> Option<WrittenRule> {
        let table = self.table(value, "a rule", "[[rule]]")?;
        let strange_keys = self.check_keys(table, RULE_KEYS, "a rule");
        let log = table
            .get("log")
            .and_then(|value| self.boolean(value, "`log`"))
            .unwrap_or(false);
        let limit = table.get("limit").and_then(|value| self.limit(value));
        let rules = self.actions(table).map(|action| {
            Some(Rule {
                action: action?,
                log,
                limit_per_second: limit,
            })
        });
        let does_something = ["read", "write", "both", "shadow"]
            .iter()
            .any(|key| table.get(key).is_some());
        if strange_keys == 0 && !does_something {
            self.report(
                Diagnostic::error("policy::no-action", "the rule does nothing")
                    .at(value.span, "no `read`, `write`, `both` or `shadow` in here")
                    .help("write `both = \"fault\"`, for example"),
            );
        }
        let Some(msr) = table.get("msr") else {
            self.report(
                Diagnostic::error("policy::no-msr", "the rule names no MSR")
                    .at(value.span, "no `msr` in here")
                    .help("write `msr = \"IA32_SPEC_CTRL\"`, `msr = 0x48` or `msr = \"0x200..=0x20f\"`"),
            );
            return None;
        };
        Some(WrittenRule {
            msrs: self.selectors(msr),
            rules,
        })
    }

    /// What the rule does, by [`Access`].
    fn actions(&mut self, table: &Table<'_>) -> [Option<Action>; 2] {
        let present = |key: &&str| table.get(key).is_some();
        let whole = ["both", "shadow"].into_iter().find(present);
        let more = ["shadow", "read", "write"]
            .into_iter()
            .find(|key| Some(*key) != whole && present(key));
        let Some(whole) = whole else {
            let mut actions = [None; 2];
            for (access, key) in [(Access::Read, "read"), (Access::Write, "write")] {
                if let Some(value) = table.get(key) {
                    actions[access as usize] = self.action(value, key);
                }
            }
            return actions;
        };
        if let (Some(whole), Some(more)) = (table.key(whole), more.and_then(|key| table.key(key))) {
            self.report(
                Diagnostic::error("policy::both", "a direction is given twice")
                    .at(whole.span, "this speaks of reads and writes")
                    .at(more.span, "and this again")
                    .help("write `read` and `write`, or `both` or `shadow` alone"),
            );
            return [None; 2];
        }
        let action = table.get(whole).and_then(|value| match whole {
            "shadow" => self.shadow(value),
            _ => self.action(value, "both"),
        });
        [action; 2]
    }
}
