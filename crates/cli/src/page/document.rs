//! [`Document`]: what the page's script is given, as JSON.
//!
//! Times are numbers of nanoseconds and indices are numbers; other 64-bit numbers are hexadecimal texts, as a script's
//! own lose bits. Texts of a trace are cut, and hold nothing that would change how others are shown.

use std::collections::{BTreeMap, HashMap};

use msrgate_core::{Access, Action, MsrIndex, Outcome};
use msrgate_policy::{Authority, Compiled};
use msrgate_trace::{Header, Observation, Summary};
use serde::Serialize;

use super::gather::{Answer, Answerer, Gathered, Limits, Msr};
use super::map::{self, Window};
use super::symbols::Symbols;
use super::words::{self, Anomaly};

/// All that the page shows.
#[derive(Debug, Serialize)]
pub(super) struct Document {
    program: &'static str,
    /// Who answers, by the outcome.
    answerers: BTreeMap<&'static str, &'static str>,
    traces: Vec<Trace>,
}

/// One trace.
#[derive(Debug, Serialize)]
pub(super) struct Trace {
    name: String,
    start_ms: u64,
    first_ns: u64,
    last_ns: u64,
    events: u64,
    reads: u64,
    writes: u64,
    /// Accesses that left the guest.
    left: u64,
    lost: u64,
    hidden: u64,
    /// What is not there, in words.
    gaps: Vec<String>,
    facts: Vec<(&'static str, String)>,
    summary: Vec<String>,
    policies: Vec<Policy>,
    msrs: Vec<Row>,
    rules: Vec<String>,
    bin_ns: u64,
    /// By outcome: a bin, its count, the next bin, and so on.
    timeline: Vec<(&'static str, Vec<u64>)>,
    accesses: Vec<OneAccess>,
    map: Vec<Window>,
    anomalies: Vec<Anomaly>,
}

#[derive(Debug, Serialize)]
struct Policy {
    name: String,
    text: String,
    /// Not all of it is there.
    is_cut: bool,
    is_used: bool,
}

/// An MSR.
#[derive(Debug, Serialize)]
struct Row {
    index: u32,
    name: Option<&'static str>,
    meaning: Option<&'static str>,
    reads: u64,
    writes: u64,
    first: Option<String>,
    last: Option<String>,
    first_ns: u64,
    rip: Option<String>,
    symbol: Option<String>,
    /// Direction, outcome, reason, count.
    answers: Vec<(String, &'static str, String, u64)>,
    /// Direction, and the place of the rule that decided.
    rules: Vec<(String, usize)>,
}

/// Time, vCPU, index, direction, outcome, value, RIP.
type OneAccess = (
    u64,
    u32,
    u32,
    &'static str,
    &'static str,
    String,
    Option<String>,
);

impl Document {
    pub(super) fn new(traces: Vec<Trace>) -> Self {
        let answerer = |outcome: Outcome| (outcome.word(), Answerer::of(outcome).word());
        Self {
            program: concat!("msrgate ", env!("CARGO_PKG_VERSION")),
            answerers: Outcome::ALL.map(answerer).into_iter().collect(),
            traces,
        }
    }

    /// Whether an instruction was found in a function.
    pub(super) fn has_symbols(&self) -> bool {
        let mut rows = self.traces.iter().flat_map(|trace| &trace.msrs);
        rows.any(|row| row.symbol.is_some())
    }
}

impl Trace {
    pub(super) fn new(
        name: &str,
        header: &Header,
        summary: &Summary,
        gathered: &Gathered,
        policies: &[Compiled],
        limits: &Limits,
        symbols: &Symbols,
    ) -> Self {
        let mut rules = Rules::new(policies, limits.rules);
        let rows = gathered.msrs.iter();
        let counts = |outcome: Outcome| -> Vec<u64> {
            let counts = gathered.timeline.counts(outcome);
            counts
                .flat_map(|(bin, count)| [bin as u64, count])
                .collect()
        };
        let [reads, writes] = gathered.by_access;
        Self {
            name: printable(name, 200),
            start_ms: header.start_ns / 1_000_000,
            first_ns: gathered.first_ns.min(gathered.last_ns),
            last_ns: gathered.last_ns,
            events: gathered.events,
            reads,
            writes,
            left: gathered.events - gathered.observed,
            lost: summary.lost(),
            hidden: gathered.hidden,
            gaps: words::gaps(summary, gathered),
            facts: facts(header, summary, gathered),
            summary: words::summary(header, gathered),
            policies: texts(header, policies, limits.policy_bytes),
            msrs: rows.map(|msr| row(msr, &mut rules, symbols)).collect(),
            rules: rules.texts,
            bin_ns: gathered.timeline.bin_ns(),
            timeline: Outcome::ALL
                .map(|outcome| (outcome.word(), counts(outcome)))
                .into_iter()
                .filter(|(_, counts)| !counts.is_empty())
                .collect(),
            accesses: gathered.accesses.iter().map(one_access).collect(),
            map: map::windows(&gathered.msrs, policies.first()),
            anomalies: words::anomalies(gathered, symbols),
        }
    }
}

/// What ran, as far as it is known.
fn facts(header: &Header, summary: &Summary, gathered: &Gathered) -> Vec<(&'static str, String)> {
    let facts = &header.facts;
    let policies: Vec<String> = facts
        .policies
        .iter()
        .map(|it| printable(&it.name, 200))
        .collect();
    let policies = match &policies[..] {
        [] => "none".to_owned(),
        some => some.join(", "),
    };
    let pairs = [
        ("Guest", printable(&facts.guest, 400)),
        ("Command", printable(&facts.command, 4000)),
        ("Backend", printable(&facts.backend, 40)),
        ("Policy", printable(&policies, 1000)),
        ("Host's kernel", printable(&facts.kernel, 200)),
        (
            "Observation",
            facts.observation.map_or("", Observation::word).to_owned(),
        ),
        (
            "First to last access",
            match gathered.events {
                0 => String::new(),
                _ => seconds(gathered.last_ns - gathered.first_ns),
            },
        ),
        ("vCPUs seen", gathered.vcpu_count().to_string()),
        ("Accesses lost", summary.lost().to_string()),
        ("Written by", printable(&facts.program, 100)),
    ];
    pairs
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .collect()
}

/// The policies as they were written, as far as there is room.
fn texts(header: &Header, policies: &[Compiled], mut room: usize) -> Vec<Policy> {
    let is_used = |name: &str| {
        let mut names = policies
            .iter()
            .filter_map(|policy| policy.sources.iter().next());
        names.any(|source| source.name == name)
    };
    let facts = &header.facts;
    let kept = facts.policies.iter().chain(&facts.includes).take(100);
    kept.map(|kept| {
        let text = beginning(&kept.text, room);
        room -= text.len();
        Policy {
            name: printable(&kept.name, 200),
            text: plain(text, |c| c == '\n' || c == '\t'),
            is_cut: text.len() < kept.text.len(),
            is_used: is_used(&kept.name) || facts.includes.contains(kept),
        }
    })
    .collect()
}

/// At most so many bytes, and whole characters.
fn beginning(text: &str, most: usize) -> &str {
    let ends = (0..=most.min(text.len())).rev();
    let mut ends = ends.filter(|end| text.is_char_boundary(*end));
    &text[..ends.next().unwrap_or(0)]
}

fn row(msr: &Msr, rules: &mut Rules<'_>, symbols: &Symbols) -> Row {
    let named = msr.index.named();
    let reads = msr.count(|answer| answer.access == Access::Read);
    let symbol = msr.rip.and_then(|rip| symbols.find(rip));
    Row {
        index: msr.index.0,
        name: named.map(|named| named.name),
        meaning: named.map(|named| named.meaning),
        reads,
        writes: msr.count(|_| true) - reads,
        first: msr.values.map(|[first, _]| hexadecimal(first)),
        last: msr.values.map(|[_, last]| hexadecimal(last)),
        first_ns: msr.first_ns,
        rip: msr.rip.map(hexadecimal),
        symbol: symbol.map(|symbol| printable(&symbol, 100)),
        answers: msr
            .answers
            .iter()
            .map(|answer| {
                let outcome = answer.outcome.word();
                let (access, reason) = (answer.access.to_string(), answer.reason.to_string());
                (access, outcome, reason, answer.count)
            })
            .collect(),
        rules: rules.of(msr),
    }
}

fn one_access(timed: &msrgate_core::Timed) -> OneAccess {
    let event = &timed.event;
    (
        timed.time_ns,
        event.vcpu.0,
        event.index.0,
        event.access.instruction(),
        event.outcome.word(),
        hexadecimal(event.value),
        event.rip.map(hexadecimal),
    )
}

/// The rules that decided, each text once.
struct Rules<'a> {
    policies: &'a [Compiled],
    limit: usize,
    texts: Vec<String>,
    places: HashMap<String, usize>,
}

/// Rules of one MSR that are named.
const MOST_RULES: usize = 6;

impl<'a> Rules<'a> {
    fn new(policies: &'a [Compiled], limit: usize) -> Self {
        Self {
            policies,
            limit,
            texts: Vec::new(),
            places: HashMap::new(),
        }
    }

    /// Those that decided accesses to an MSR. Where one of several policies was in force, those that answer so.
    fn of(&mut self, msr: &Msr) -> Vec<(String, usize)> {
        let mut found = Vec::new();
        for answer in &msr.answers {
            for text in self.deciders(msr.index, answer) {
                let rule = (answer.access.to_string(), self.place(text));
                if found.len() < MOST_RULES && !found.contains(&rule) {
                    found.push(rule);
                }
            }
        }
        found
    }

    fn deciders(&self, index: MsrIndex, answer: &Answer) -> Vec<String> {
        let access = answer.access;
        let authorities = self.policies.iter().map(|policy| {
            let authority = policy.authority(index, access, answer.reason);
            (policy, authority)
        });
        let deciders: Vec<_> = authorities
            .map(|it| (fit(it.1.rule().action, answer), it))
            .collect();
        let best = deciders.iter().map(|(fit, _)| *fit).max();
        let deciders = deciders.iter().filter(|(fit, _)| Some(*fit) == best);
        let texts = deciders.map(|(_, (policy, authority))| {
            let text = authority.describe(access, &policy.sources);
            let name = policy.sources.iter().next().map(|source| &source.name);
            match (authority, name) {
                (Authority::Default(..), Some(name)) if self.policies.len() > 1 => {
                    printable(&format!("{name}: {text}"), 200)
                }
                _ => printable(&text, 200),
            }
        });
        texts.collect()
    }

    fn place(&mut self, text: String) -> usize {
        let text = if self.texts.len() < self.limit || self.places.contains_key(&text) {
            text
        } else {
            "a rule beyond those that are shown".to_owned()
        };
        let next = self.texts.len();
        *self.places.entry(text).or_insert_with_key(|text| {
            self.texts.push(text.clone());
            next
        })
    }
}

/// How well an action explains an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    Never,
    /// KVM may refuse what it gets, and a handler may do anything.
    Maybe,
    Surely,
}

fn fit(action: Action, answer: &Answer) -> Fit {
    let is_forwarded = matches!(
        action,
        Action::Allow | Action::Mask(_) | Action::Writable(_)
    );
    let is_sure = match answer.outcome {
        Outcome::Native | Outcome::Forwarded | Outcome::Vmm => is_forwarded,
        Outcome::Value => matches!(action, Action::Value(_)),
        Outcome::Ignored => matches!(action, Action::Ignore | Action::Value(_)),
        Outcome::Masked => matches!(action, Action::Mask(_) | Action::Writable(_)),
        Outcome::Shadow => matches!(action, Action::Shadow(_)),
        Outcome::Handled => matches!(action, Action::Handler(_)),
        _ => action == Action::Fault,
    };
    let is_dropped = matches!(action, Action::Ignore | Action::Value(_));
    match answer.outcome {
        _ if is_sure => Fit::Surely,
        Outcome::Fault if !is_dropped => Fit::Maybe,
        _ => Fit::Never,
    }
}

/// One line of at most so many characters.
pub(super) fn printable(text: &str, most: usize) -> String {
    let mut shown: String = text.chars().take(most).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    plain(&shown, |_| false)
}

/// Without characters that control a terminal, or the direction in which others are written.
fn plain(text: &str, is_kept: impl Fn(char) -> bool) -> String {
    let is_control = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let shown = |c| if is_control(c) && !is_kept(c) { '?' } else { c };
    text.chars().map(shown).collect()
}

fn hexadecimal(value: u64) -> String {
    format!("{value:#x}")
}

/// A time in the unit that suits it.
pub(super) fn seconds(time_ns: u64) -> String {
    let (unit, whole) = match time_ns {
        1_000_000_000.. => ("s", 1_000_000_000),
        1_000_000.. => ("ms", 1_000_000),
        1000.. => ("µs", 1000),
        _ => return format!("{time_ns} ns"),
    };
    let thousandths = time_ns % whole / (whole / 1000);
    format!("{}.{thousandths:03} {unit}", time_ns / whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_trace_is_one_line_that_is_not_too_long() {
        assert_eq!(printable("a\u{1b}[31m\n\u{202e}b", 100), "a?[31m??b");
        assert_eq!(printable("äöü", 2), "äö…");
        assert_eq!(plain("a\n\tb\r", |c| c == '\n' || c == '\t'), "a\n\tb?");
    }

    #[test]
    fn time_has_the_unit_that_suits_it() {
        let times = [0, 999, 1000, 1_234_567, 61_000_000_000].map(seconds);
        assert_eq!(
            times,
            ["0 ns", "999 ns", "1.000 µs", "1.234 ms", "61.000 s"]
        );
    }
}
