//! The learned policy as a text: a rule for each way of answering, MSRs by name, counts as comments.

use std::collections::BTreeMap;

use msrgate_core::{Action, MsrIndex};

use super::Observations;
use super::action::lines;
use super::choice::{Choice, Msr};
use super::count::{Counts, counted};

/// Columns of a line.
pub(super) const WIDTH: usize = 80;
/// Columns between code and the words of its comment.
const COMMENT: usize = "    # ".len();
/// As many neighbours are written as a range. Fewer are easier to read one by one.
const RANGE: usize = 5;
/// Lines about what stays refused.
const MOST_REFUSED: usize = 100;

/// The whole policy.
pub(super) fn write(observations: &Observations, msrs: &[Msr], handlers: &[&str]) -> String {
    let mut text = String::new();
    let accesses = counted(observations.accesses(), "access", "accesses");
    let count = counted(observations.msrs() as u64, "MSR", "MSRs");
    push_comment(&mut text, &format!("Learned from {accesses} to {count}."));
    if observations.is_blind {
        push_comment(&mut text, BLIND);
    }
    text.push_str("version = 1\n\n[defaults]\n");
    text.push_str("known = \"fault\"    # what no rule names is #GP\n");
    let (x2apic, others): (Vec<&Msr>, Vec<&Msr>) =
        msrs.iter().partition(|(index, _)| index.is_x2apic());
    push_x2apic(&mut text, &x2apic);
    let mut heading = "";
    for (kind, msrs) in kinds(&others) {
        text.push('\n');
        if kind.heading() != heading {
            heading = kind.heading();
            push_comment(&mut text, heading);
        }
        push_rule(&mut text, &lines(kind.actions, handlers), &msrs);
    }
    push_refused(
        &mut text,
        msrs,
        "Answered by what no rule can say here, and refused now:",
        Choice::is_lost,
    );
    push_refused(&mut text, msrs, "Refused, as before:", Choice::is_refused);
    text
}

const BLIND: &str = "\
Some trace shows only what left the guest: what KVM did by itself is not in it, and is #GP under this \
policy.";

/// A policy that denies by default and does not have this rule is warned about.
fn push_x2apic(text: &mut String, msrs: &[&Msr]) {
    text.push('\n');
    push_comment(text, "No filter sees the x2APIC's MSRs: KVM does them.");
    text.push_str("[[rule]]\n");
    let code = "msr  = \"0x800..=0x8ff\"";
    push_line(
        text,
        code,
        code.len(),
        &Counts::of(msrs, Choice::is_decided).to_string(),
    );
    text.push_str("both = \"allow\"\n");
}

/// What one rule says; in the order of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    is_unseen: bool,
    is_answered: bool,
    is_denied: [bool; 2],
    /// By [`Access`].
    actions: [Option<Action>; 2],
}

impl Kind {
    /// `None`: what the defaults say.
    fn of(choices: &[Choice; 2]) -> Option<Self> {
        let actions = [choices[0].action, choices[1].action];
        let is_allowed = |action: &Action| *action == Action::Allow;
        (actions != [None; 2]).then(|| Self {
            is_unseen: choices.iter().any(|choice| choice.is_unseen),
            is_answered: !actions.iter().flatten().all(is_allowed),
            is_denied: actions.map(|action| action.is_none()),
            actions,
        })
    }

    fn heading(self) -> &'static str {
        match (self.is_unseen, self.is_answered, self.is_denied) {
            (true, ..) => {
                "Not observable: no trace shows whether the guest uses these. Allowed either way."
            }
            (_, true, _) => "What the policy answered.",
            (_, _, [false, false]) => "What KVM did.",
            (_, _, [false, true]) => "What KVM did, and was only read.",
            (_, _, [true, _]) => "What KVM did, and was only written.",
        }
    }
}

fn kinds<'a>(msrs: &[&'a Msr]) -> BTreeMap<Kind, Vec<&'a Msr>> {
    let mut kinds: BTreeMap<Kind, Vec<&Msr>> = BTreeMap::new();
    for &msr in msrs {
        if let Some(kind) = Kind::of(&msr.1) {
            kinds.entry(kind).or_default().push(msr);
        }
    }
    kinds
}

fn push_rule(text: &mut String, lines: &[String], msrs: &[&Msr]) {
    let key = lines[0].find(" =").unwrap_or(0);
    text.push_str("[[rule]]\n");
    let elements = elements(msrs, Choice::is_decided);
    if let [(element, counts)] = &elements[..] {
        let code = format!("{:<key$} = {element}", "msr");
        push_line(text, &code, code.len(), &counts.to_string());
    } else {
        text.push_str("msr = [\n");
        let rows: Vec<(String, String)> = elements
            .iter()
            .map(|(element, counts)| (format!("    {element},"), counts.to_string()))
            .collect();
        let longest = rows
            .iter()
            .map(|(_, counts)| counts.len())
            .max()
            .unwrap_or(0);
        let room = (WIDTH - COMMENT).saturating_sub(longest);
        let lengths = rows.iter().map(|(code, _)| code.len());
        let column = lengths.filter(|&length| length <= room).max().unwrap_or(0);
        for (code, counts) in &rows {
            push_line(text, code, column, counts);
        }
        text.push_str("]\n");
    }
    for line in lines {
        text.push_str(&format!("{line}\n"));
    }
}

/// Elements of `msr`, as TOML, with what was counted of the accesses of which `is` is true.
fn elements(msrs: &[&Msr], is: fn(&Choice) -> bool) -> Vec<(String, Counts)> {
    let mut elements = Vec::new();
    for run in msrs.chunk_by(|one, next| one.0.0.checked_add(1) == Some(next.0.0)) {
        if run.len() >= RANGE {
            let range = range(run[0].0, run[run.len() - 1].0);
            elements.push((format!("\"{range}\""), Counts::of(run, is)));
            continue;
        }
        elements.extend(run.iter().map(|&msr| {
            let element = match msr.0.name() {
                Some(name) => format!("\"{name}\""),
                None => msr.0.to_string(),
            };
            (element, Counts::of(&[msr], is))
        }));
    }
    elements
}

fn range(first: MsrIndex, last: MsrIndex) -> String {
    match (first.name(), last.name()) {
        (Some(first), Some(last)) => format!("{first}..={last}"),
        _ => format!("{first}..={last}"),
    }
}

/// Lists the accesses of which `is` is true.
fn push_refused(text: &mut String, msrs: &[Msr], heading: &str, is: fn(&Choice) -> bool) {
    let is_told = |msr: &&Msr| msr.1.iter().any(is);
    let refused: Vec<&Msr> = msrs.iter().filter(is_told).collect();
    if refused.is_empty() {
        return;
    }
    let elements = elements(&refused, is);
    text.push('\n');
    push_comment(text, heading);
    for (element, counts) in elements.iter().take(MOST_REFUSED) {
        let name = element.trim_matches('"');
        let line = format!("#   {name:<28}  {counts}");
        if line.len() <= WIDTH {
            text.push_str(&format!("{line}\n"));
        } else {
            text.push_str(&format!("#   {name}\n"));
            push_wrapped(text, "#       ", &counts.to_string());
        }
    }
    if let Some(more) = elements
        .len()
        .checked_sub(MOST_REFUSED)
        .filter(|&more| more > 0)
    {
        text.push_str(&format!("#   and {more} more\n"));
    }
}

/// `code`, and the comment behind it, in `column` if there is room, or above it if there is none at all.
fn push_line(text: &mut String, code: &str, column: usize, comment: &str) {
    let fits = |column| code.len() <= column && column + COMMENT + comment.len() <= WIDTH;
    if comment.is_empty() {
        text.push_str(code);
    } else if let Some(column) = [column, code.len()]
        .into_iter()
        .find(|&column| fits(column))
    {
        text.push_str(&format!("{code:<column$}    # {comment}"));
    } else {
        let indent = code.len() - code.trim_start().len();
        push_wrapped(text, &format!("{:indent$}# ", ""), comment);
        text.push_str(code);
    }
    text.push('\n');
}

fn push_comment(text: &mut String, comment: &str) {
    push_wrapped(text, "# ", comment);
}

fn push_wrapped(text: &mut String, start: &str, words: &str) {
    let mut line = String::new();
    for word in words.split(' ') {
        if !line.is_empty() && start.len() + line.len() + 1 + word.len() > WIDTH {
            text.push_str(&format!("{start}{line}\n"));
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    text.push_str(&format!("{start}{line}\n"));
}
