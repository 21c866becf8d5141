//! [`Draft`]: the rules and notes of an import as they are found, and the text that they come to.

use std::collections::BTreeMap;
use std::fmt::Write;

use msrgate_core::MsrIndex;

use super::{ImportError, Imported, Note, on_one_line};

/// Characters of a peer's own words that a comment repeats.
const QUOTE: usize = 60;
/// Columns of a comment.
const WIDTH: usize = 100;
/// Columns before the comment of an MSR.
const COLUMN: usize = 40;

/// KVM's own behaviour.
const ALLOW: &str = "\"allow\"";
/// KVM answers these itself.
const X2APIC: (u32, u32) = (0x800, 0x8ff);

/// A policy that is being written.
#[derive(Debug)]
pub(super) struct Draft {
    /// The first comment: where the policy comes from, and how it is to be read.
    about: &'static str,
    /// What there must be something of.
    subject: &'static str,
    defaults: Vec<(&'static str, &'static str)>,
    rules: Vec<Rule>,
    /// By the first MSR: the last, and where they were given.
    given: BTreeMap<u32, (u32, String)>,
    notes: Vec<Note>,
}

#[derive(Debug)]
struct Rule {
    msrs: Vec<(u32, u32, String)>,
    says: Vec<Said>,
}

/// A key of a rule and its value, as it is written.
pub(super) type Said = (&'static str, String);

/// Where something stands in the peer's text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin<'a> {
    /// Such as `line 3`.
    pub(super) place: &'a str,
    /// The peer's own words.
    pub(super) words: &'a str,
}

impl Draft {
    pub(super) fn new(about: &'static str, subject: &'static str) -> Self {
        Self {
            about,
            subject,
            defaults: Vec::new(),
            rules: Vec::new(),
            given: BTreeMap::new(),
            notes: Vec::new(),
        }
    }

    /// Whether nothing was said of any MSR.
    pub(super) fn is_empty(&self) -> bool {
        self.given.is_empty()
    }

    /// Says that the x2APIC's MSRs stay KVM's, for a policy that denies everything else.
    pub(super) fn allow_x2apic(&mut self) {
        self.rules.push(Rule {
            msrs: vec![(
                X2APIC.0,
                X2APIC.1,
                "the x2APIC, which no filter sees".to_owned(),
            )],
            says: vec![("both", ALLOW.to_owned())],
        });
    }

    /// A line of `[defaults]`.
    pub(super) fn default(&mut self, key: &'static str, word: &'static str) {
        self.defaults.push((key, word));
    }

    /// What the policy says of the MSRs from `first` to `last`.
    pub(super) fn rule(
        &mut self,
        origin: Origin<'_>,
        first: u32,
        last: u32,
        says: Vec<Said>,
    ) -> Result<(), ImportError> {
        let place = origin.place;
        if let Some((&other, (_, there))) = self
            .given
            .range(..=last)
            .next_back()
            .filter(|(_, (end, _))| *end >= first)
        {
            let index = MsrIndex(other.max(first));
            let why = format!("MSR {index} is given twice, here and in {there}");
            return Err(ImportError::malformed(place, why));
        }
        self.given.insert(first, (last, place.to_owned()));
        let comment = format!("{place}: {}", on_one_line(origin.words, QUOTE));
        for (first, last) in self.filterable(origin, first, last, &says) {
            let msr = (first, last, comment.clone());
            match self.rules.last_mut() {
                Some(rule) if rule.says == says => rule.msrs.push(msr),
                _ => self.rules.push(Rule {
                    msrs: vec![msr],
                    says: says.clone(),
                }),
            }
        }
        Ok(())
    }

    /// Something that a policy cannot say.
    pub(super) fn note(&mut self, place: &str, what: &str, why: impl Into<String>) {
        self.notes.push(Note {
            place: place.to_owned(),
            what: on_one_line(what, QUOTE),
            why: why.into(),
        });
    }

    /// Leaves out the MSRs that no filter holds.
    fn filterable(
        &mut self,
        origin: Origin<'_>,
        first: u32,
        last: u32,
        says: &[Said],
    ) -> Vec<(u32, u32)> {
        if says.iter().all(|(_, value)| value == ALLOW) {
            return vec![(first, last)];
        }
        let mut left = vec![(first, last)];
        if first <= X2APIC.1 && last >= X2APIC.0 {
            left = [(first, X2APIC.0 - 1), (X2APIC.1 + 1, last)].into();
            left.retain(|(first, last)| first <= last);
            let why = "KVM never filters the x2APIC's MSRs, it answers them itself";
            self.note(origin.place, origin.words, why);
        }
        if last == u32::MAX {
            left.iter_mut()
                .filter(|range| range.1 == u32::MAX)
                .for_each(|range| range.1 -= 1);
            left.retain(|(first, last)| first <= last);
            let why = "no filter of KVM can hold MSR 0xffffffff, which stays KVM's";
            self.note(origin.place, origin.words, why);
        }
        left
    }

    /// The text.
    pub(super) fn finish(self) -> Result<Imported, ImportError> {
        if self.given.is_empty() && self.defaults.is_empty() {
            return Err(ImportError::Nothing { what: self.subject });
        }
        let mut text = String::new();
        self.write(&mut text).expect("a String takes any text");
        Ok(Imported {
            policy: text,
            inexpressible: self.notes,
        })
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        write_comment(text, "", self.about)?;
        if !self.notes.is_empty() {
            writeln!(text, "#\n# Not expressed:")?;
            for note in &self.notes {
                write_comment(text, "* ", &note.to_string())?;
            }
        }
        writeln!(text, "version = 1")?;
        if !self.defaults.is_empty() {
            writeln!(text, "\n[defaults]")?;
            for (key, word) in &self.defaults {
                writeln!(text, "{key} = \"{word}\"")?;
            }
        }
        self.rules.iter().try_for_each(|rule| rule.write(text))
    }
}

impl Rule {
    fn write(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "\n[[rule]]")?;
        if let [(first, last, comment)] = &self.msrs[..] {
            let msr = format!("msr = {}", selector(*first, *last));
            writeln!(text, "{msr:COLUMN$}# {comment}")?;
        } else {
            writeln!(text, "msr = [")?;
            for (first, last, comment) in &self.msrs {
                let msr = format!("    {},", selector(*first, *last));
                writeln!(text, "{msr:COLUMN$}# {comment}")?;
            }
            writeln!(text, "]")?;
        }
        for (key, value) in &self.says {
            writeln!(text, "{key} = {value}")?;
        }
        Ok(())
    }
}

/// Comment lines of at most [`WIDTH`] columns, where the words allow it.
fn write_comment(text: &mut String, bullet: &str, words: &str) -> std::fmt::Result {
    let mut line = format!("# {bullet}");
    let indent = line.len();
    for word in words.split(' ') {
        if line.len() > indent && line.chars().count() + 1 + word.chars().count() > WIDTH {
            writeln!(text, "{line}")?;
            line = format!("#{:1$}", "", indent - 1);
        }
        if line.len() > indent {
            line.push(' ');
        }
        line.push_str(word);
    }
    writeln!(text, "{line}")
}

/// MSRs as a policy names them.
fn selector(first: u32, last: u32) -> String {
    let index = MsrIndex(first);
    match index.name() {
        _ if first != last => format!("\"{first:#x}..={last:#x}\""),
        Some(name) => format!("\"{name}\""),
        None => index.to_string(),
    }
}
