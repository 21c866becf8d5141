//! A policy and what it includes as one: [`read`].
//!
//! Files are read by the caller ([`Load`]). One that is included in two places is put in once.

use crate::ast::{Policy, Word};
use crate::compile::Options;
use crate::diagnostic::Diagnostic;
use crate::parse::{Include, parse};
use crate::source::{Source, SourceId, Sources};

/// Reads what a policy includes: from the name of the including text and the path that is written there to the text, and
/// the name by which it is known if it is included again. An error says in a few words why it cannot be read.
pub type Load<'a> = dyn Fn(&str, &str) -> Result<Source, String> + 'a;

/// How deep includes may be nested.
const MAX_DEPTH: usize = 16;
/// How many texts a policy may be made of.
const MAX_SOURCES: usize = 256;

/// Reads `source` and what it includes. The policy is complete only where no diagnostic is an error.
pub(crate) fn read(source: Source, options: &Options<'_>) -> (Sources, Policy, Vec<Diagnostic>) {
    let mut reading = Reading {
        options,
        sources: Sources::default(),
        open: Vec::new(),
        diagnostics: Vec::new(),
    };
    let policy = match reading.sources.push(source) {
        Some(id) => reading.text(id),
        None => Policy::default(),
    };
    (reading.sources, policy, reading.diagnostics)
}

struct Reading<'a> {
    options: &'a Options<'a>,
    sources: Sources,
    /// The texts that are being read, each including the next.
    open: Vec<SourceId>,
    diagnostics: Vec<Diagnostic>,
}

impl Reading<'_> {
    fn text(&mut self, id: SourceId) -> Policy {
        let text = &self.sources.get(id).text;
        let (mut policy, includes, diagnostics) = parse(id, text, self.options.handlers);
        self.diagnostics.extend(diagnostics);
        self.open.push(id);
        let mut included = Policy::default();
        for include in &includes {
            if let Some(more) = self.include(include) {
                self.add(&mut included, more, &policy);
            }
        }
        self.open.pop();
        policy.known = policy.known.or(included.known);
        policy.unknown = policy.unknown.or(included.unknown);
        policy.invalid = policy.invalid.or(included.invalid);
        policy.rules.extend(included.rules);
        policy
    }

    /// What `include` puts in; `None` where it is in already, or cannot be.
    fn include(&mut self, include: &Include) -> Option<Policy> {
        let from = &self.sources.get(include.span.source).name;
        let loaded = match self.options.load {
            Some(load) => load(from, &include.path),
            None => Err("nothing can be included here".to_owned()),
        };
        let source = match loaded {
            Ok(source) => source,
            Err(why) => {
                let message = format!("cannot include {}", include.path);
                let diagnostic = Diagnostic::error("policy::include", message);
                self.diagnostics.push(
                    diagnostic
                        .at(include.span, why)
                        .help("a path begins at the file that includes it"),
                );
                return None;
            }
        };
        if let Some(id) = self.sources.find(&source.name) {
            if self.open.contains(&id) {
                self.diagnostics.push(
                    Diagnostic::error("policy::include-loop", "a policy includes itself")
                        .at(include.span, "this is being read already")
                        .help("remove this line, or move what both need into a third file"),
                );
            }
            return None;
        }
        let limit = if self.open.len() >= MAX_DEPTH {
            format!("includes are nested more than {MAX_DEPTH} deep")
        } else if self.sources.iter().count() >= MAX_SOURCES {
            format!("the policy is made of more than {MAX_SOURCES} files")
        } else {
            let id = self.sources.push(source)?;
            return Some(self.text(id));
        };
        self.diagnostics.push(
            Diagnostic::error("policy::include-limit", limit)
                .at(include.span, "this one is too many")
                .help("put rules that belong together into one file"),
        );
        None
    }

    /// Puts `more` to what the text that says `own` includes. Where the text has its own default, what it includes
    /// may differ.
    fn add(&mut self, included: &mut Policy, more: Policy, own: &Policy) {
        let mut default = |word: &mut Option<Word>, more: Option<Word>, own: Option<Word>| {
            if let (Some(one), Some(other), None) = (*word, more, own)
                && one.rule != other.rule
            {
                self.diagnostics.push(
                    Diagnostic::error(
                        "policy::default-conflict",
                        "two included policies have different defaults",
                    )
                    .at(other.span, "this default")
                    .at(one.span, "and this one")
                    .help("say in the including policy what holds"),
                );
            }
            *word = word.or(more);
        };
        default(&mut included.known, more.known, own.known);
        default(&mut included.unknown, more.unknown, own.unknown);
        default(&mut included.invalid, more.invalid, own.invalid);
        included.rules.extend(more.rules);
    }
}
