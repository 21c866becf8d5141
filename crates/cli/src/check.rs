//! `msrgate check`: what a policy is compiled to, as a table for people or as JSON for programs.
//!
//! What is shown is read from the filter itself, bit by bit, not from the rules that it was made of.

use std::io::{self, Write};
use std::path::PathBuf;

use anstyle::Style;
use msrgate_core::{
    Access, DefaultAction, ExitReason, FilterRange, MsrFilter, MsrIndex, RangeFlags, Verdict,
};
use msrgate_kvm::HANDLERS;
use msrgate_policy::{Compiled, Diagnostic, Msrs, Sources, compile};
use serde::Serialize;

use crate::Status;
use crate::output;
use crate::policy::{compile_file_to_check, folded};

/// Compile a policy, and show the filter that it comes to.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The policy file
    policy: PathBuf,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Status> {
    let compiled = compile_file_to_check(&args.policy)?;
    if args.json {
        write_json(&mut io::stdout().lock(), &compiled)?;
    } else {
        let mut out = anstream::AutoStream::auto(io::stdout().lock());
        write_table(&mut out, &compiled)?;
    }
    Ok(Status::Done)
}

/// Counts up when a key changes its meaning or goes away.
const JSON_VERSION: u32 = 1;

const BOLD: Style = Style::new().bold();

/// Columns of a line.
const WIDTH: usize = 80;
/// Columns before what a range excepts.
const INDENT: usize = 38;
/// Columns before what is said below the table.
const LABEL: usize = 11;
/// Lines about answers; more than these nobody reads.
const MOST_ANSWERS: usize = 20;
/// Columns of the MSRs before an answer.
const MOST_MSR_COLUMNS: usize = 36;

fn write_table(out: &mut dyn Write, compiled: &Compiled) -> io::Result<()> {
    let filter = &compiled.filter;
    let (default, excepts) = words(filter.default_action());
    if !filter.ranges().is_empty() {
        writeln!(
            out,
            "{BOLD}{:>2}  {:<10}  COUNT  BYTES  ACCESS  {}{BOLD:#}",
            "#",
            "BASE",
            excepts.to_uppercase(),
        )?;
        for (number, range) in filter.ranges().iter().enumerate() {
            let base = range.base.to_string();
            writeln!(
                out,
                "{number:>2}  {base:<10}  {:>5}  {:>5}  {:<6}  {}",
                range.nmsrs,
                bytes(range),
                access(range.flags),
                shortened(&excepted_by(range, filter.default_action()), WIDTH - INDENT),
            )?;
        }
        writeln!(out)?;
    }
    writeln!(out, "{:<LABEL$}{default}", "default")?;
    for access in Access::ALL {
        write_direction(out, filter, access)?;
    }
    let reasons: Vec<String> = reasons(compiled).map(|reason| reason.to_string()).collect();
    let deflected = match &reasons[..] {
        [] => "nothing: what KVM refuses is #GP".to_owned(),
        reasons => reasons.join(", "),
    };
    writeln!(out, "{:<LABEL$}{deflected}", "deflected")?;
    write_answers(out, &answers(compiled))
}

/// How what leaves the guest is answered, where that is more than a fault.
fn write_answers(out: &mut dyn Write, answers: &[Answer]) -> io::Result<()> {
    if answers.is_empty() {
        return Ok(());
    }
    let shown = &answers[..answers.len().min(MOST_ANSWERS)];
    let msrs: Vec<String> = shown.iter().map(|answer| narrow(&answer.msrs)).collect();
    let width = msrs.iter().map(String::len).fold("MSRS".len(), usize::max);
    writeln!(out, "\n{BOLD}{:<width$}  ACCESS  ANSWER{BOLD:#}", "MSRS")?;
    for (msrs, answer) in msrs.iter().zip(shown) {
        let indent = width + "  ACCESS  ".len();
        let action =
            folded(&answer.action, WIDTH - indent).replace('\n', &format!("\n{:indent$}", ""));
        writeln!(out, "{msrs:<width$}  {:<6}  {action}", answer.access)?;
    }
    match answers.len() - shown.len() {
        0 => Ok(()),
        more => writeln!(out, "and {more} more, which --json has"),
    }
}

/// MSRs that stand next to each other, in few columns.
fn narrow(run: &Run) -> String {
    let text = text(run);
    if text.len() <= MOST_MSR_COLUMNS {
        return text;
    }
    let first = MsrIndex(run.first);
    match run.last - run.first {
        0 => first.to_string(),
        more => format!("{} from {first}", u64::from(more) + 1),
    }
}

/// What leaves the guest of one direction's accesses.
fn write_direction(out: &mut dyn Write, filter: &MsrFilter, access: Access) -> io::Result<()> {
    let excepted = excepted(filter, access);
    let leaving = match (filter.default_action(), count(&excepted)) {
        (DefaultAction::Allow, 0) => "no MSR leaves the guest".to_owned(),
        (DefaultAction::Allow, 1) => "1 MSR leaves the guest:".to_owned(),
        (DefaultAction::Allow, count) => format!("{count} MSRs leave the guest:"),
        (DefaultAction::Deny, 0) => "all MSRs leave the guest but the x2APIC's".to_owned(),
        (DefaultAction::Deny, count) => {
            format!("all MSRs leave the guest but the x2APIC's and {count}:")
        }
    };
    writeln!(out, "{:<LABEL$}{leaving}", format!("{access}s"))?;
    if !excepted.is_empty() {
        let msrs = shortened(&excepted, WIDTH - LABEL);
        writeln!(out, "{:LABEL$}{msrs}", "")?;
    }
    Ok(())
}

/// What the filter does by default, and what its ranges then do.
fn words(default: DefaultAction) -> (&'static str, &'static str) {
    match default {
        DefaultAction::Allow => ("allow", "denies"),
        DefaultAction::Deny => ("deny", "allows"),
    }
}

fn access(flags: RangeFlags) -> &'static str {
    match flags {
        RangeFlags::READ => "read",
        RangeFlags::WRITE => "write",
        _ => "both",
    }
}

/// What the kernel copies: whole 64-bit words.
fn bytes(range: &FilterRange) -> usize {
    range.bitmap.len() * 8
}

fn reasons(compiled: &Compiled) -> impl Iterator<Item = ExitReason> {
    let deflected = compiled.reasons;
    ExitReason::ALL
        .into_iter()
        .filter(move |&reason| deflected.contains(reason))
}

/// What a rule makes of an access.
struct Answer {
    msrs: Run,
    access: &'static str,
    action: String,
}

/// What the rules say that a policy without rules does not, but for a mere fault.
fn answers(compiled: &Compiled) -> Vec<Answer> {
    let allowed = compile("version = 1\n").expect("a policy without rules has no mistakes");
    let differences = Compiled::compare(&allowed, compiled);
    let answers = differences.iter().filter_map(|difference| {
        let Msrs::Range { first, last } = difference.msrs else {
            return None;
        };
        let [_, action] = difference.describe(HANDLERS);
        Some(Answer {
            msrs: Run {
                first: first.0,
                last: last.0,
            },
            access: match difference.access {
                Some(Access::Read) => "read",
                Some(Access::Write) => "write",
                None => "both",
            },
            action,
        })
    });
    answers.filter(|answer| answer.action != "fault").collect()
}

/// MSRs that stand next to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: u32,
    last: u32,
}

/// What the bits of one range say otherwise than the default.
fn excepted_by(range: &FilterRange, default: DefaultAction) -> Vec<Run> {
    let differs = |position: &u32| is_exception(range.verdict(*position), default);
    runs(
        (0..range.nmsrs)
            .filter(differs)
            .map(|position| range.base.0 + position),
    )
}

/// What the whole filter does otherwise than by default.
fn excepted(filter: &MsrFilter, access: Access) -> Vec<Run> {
    let default = filter.default_action();
    let mut indices: Vec<u32> = filter
        .ranges()
        .iter()
        .flat_map(|range| (0..range.nmsrs).map(|position| range.base.0 + position))
        .filter(|&index| {
            let index = MsrIndex(index);
            !index.is_x2apic() && is_exception(filter.decide(index, access).verdict, default)
        })
        .collect();
    indices.sort_unstable();
    indices.dedup();
    runs(indices.into_iter())
}

fn is_exception(verdict: Verdict, default: DefaultAction) -> bool {
    (verdict == Verdict::Allow) != (default == DefaultAction::Allow)
}

fn runs(indices: impl Iterator<Item = u32>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for index in indices {
        match runs.last_mut() {
            Some(run) if run.last + 1 == index => run.last = index,
            _ => runs.push(Run {
                first: index,
                last: index,
            }),
        }
    }
    runs
}

fn count(runs: &[Run]) -> u32 {
    runs.iter().map(|run| run.last - run.first + 1).sum()
}

/// As many of `runs` as fit into `width` columns, and how many MSRs there are more.
fn shortened(runs: &[Run], width: usize) -> String {
    if runs.is_empty() {
        return "nothing".to_owned();
    }
    let most = runs.len().min(width);
    let texts: Vec<String> = runs[..most].iter().map(text).collect();
    (1..=most)
        .rev()
        .map(|shown| match count(&runs[shown..]) {
            0 => texts[..shown].join(", "),
            more => format!("{}, {more} more", texts[..shown].join(", ")),
        })
        .find(|text| text.len() <= width)
        .unwrap_or_else(|| format!("{} MSRs", count(runs)))
}

fn text(run: &Run) -> String {
    let first = MsrIndex(run.first);
    let name = first
        .name()
        .map_or_else(|| first.to_string(), str::to_owned);
    match run.last - run.first + 1 {
        1 => name,
        count => format!("{count} from {name}"),
    }
}

/// The same as JSON, nothing shortened.
fn write_json(out: &mut dyn Write, compiled: &Compiled) -> anyhow::Result<()> {
    let filter = &compiled.filter;
    let json = Json {
        version: JSON_VERSION,
        default: words(filter.default_action()).0,
        deflected: reasons(compiled).map(|reason| reason.to_string()).collect(),
        ranges: filter
            .ranges()
            .iter()
            .map(|range| JsonRange::of(range, filter.default_action()))
            .collect(),
        reads: json_runs(&excepted(filter, Access::Read)),
        writes: json_runs(&excepted(filter, Access::Write)),
        answers: answers(compiled).iter().map(JsonAnswer::of).collect(),
        warnings: compiled
            .warnings
            .iter()
            .map(|warning| JsonWarning::of(warning, &compiled.sources))
            .collect(),
    };
    output::write_json(out, &json)
}

#[derive(Serialize)]
struct Json<'a> {
    version: u32,
    default: &'static str,
    deflected: Vec<String>,
    ranges: Vec<JsonRange>,
    reads: Vec<JsonRun>,
    writes: Vec<JsonRun>,
    answers: Vec<JsonAnswer>,
    warnings: Vec<JsonWarning<'a>>,
}

#[derive(Serialize)]
struct JsonRange {
    base: String,
    count: u32,
    bytes: usize,
    access: &'static str,
    excepts: Vec<JsonRun>,
}

impl JsonRange {
    fn of(range: &FilterRange, default: DefaultAction) -> Self {
        Self {
            base: range.base.to_string(),
            count: range.nmsrs,
            bytes: bytes(range),
            access: access(range.flags),
            excepts: json_runs(&excepted_by(range, default)),
        }
    }
}

#[derive(Serialize)]
struct JsonRun {
    first: String,
    last: String,
    name: Option<&'static str>,
}

fn json_runs(runs: &[Run]) -> Vec<JsonRun> {
    runs.iter().map(JsonRun::of).collect()
}

impl JsonRun {
    fn of(run: &Run) -> Self {
        Self {
            first: MsrIndex(run.first).to_string(),
            last: MsrIndex(run.last).to_string(),
            name: MsrIndex(run.first).name(),
        }
    }
}

#[derive(Serialize)]
struct JsonAnswer {
    #[serde(flatten)]
    msrs: JsonRun,
    access: &'static str,
    action: String,
}

impl JsonAnswer {
    fn of(answer: &Answer) -> Self {
        Self {
            msrs: JsonRun::of(&answer.msrs),
            access: answer.access,
            action: answer.action.clone(),
        }
    }
}

#[derive(Serialize)]
struct JsonWarning<'a> {
    code: &'static str,
    message: &'a str,
    help: Option<&'a str>,
    file: Option<&'a str>,
    line: Option<usize>,
    column: Option<usize>,
}

impl<'a> JsonWarning<'a> {
    fn of(warning: &'a Diagnostic, sources: &'a Sources) -> Self {
        let place = warning.span().map(|span| sources.place(span));
        Self {
            code: warning.code,
            message: &warning.message,
            help: warning.help.as_deref(),
            file: place.map(|place| place.name),
            line: place.map(|place| place.line),
            column: place.map(|place| place.column),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_is_cut_where_it_would_be_too_wide() {
        let runs = runs([0x3a, 0x48, 0x49, 0x4fff_0000].into_iter());
        let all = "IA32_FEATURE_CONTROL, 2 from IA32_SPEC_CTRL, 0x4fff0000";
        assert_eq!(shortened(&runs, all.len()), all);
        assert_eq!(
            shortened(&runs, all.len() - 1),
            "IA32_FEATURE_CONTROL, 2 from IA32_SPEC_CTRL, 1 more"
        );
        assert_eq!(shortened(&runs, 28), "IA32_FEATURE_CONTROL, 3 more");
        assert_eq!(shortened(&runs, 27), "4 MSRs");
        assert_eq!(shortened(&[], 7), "nothing");
    }
}
