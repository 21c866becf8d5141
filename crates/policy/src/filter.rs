//! From resolved rules to the filter: [`filter`], or what to leave out so that there is one.

use std::fmt::Write;

use msrgate_core::{Access, DefaultAction, Defaults, MAX_RANGES, MsrFilter, MsrIndex, Rule};

use crate::ast::{Policy, Selector};
use crate::diagnostic::Diagnostic;
use crate::plan::{Exceptions, Interval, MOST_NAMED, PlanError, Window, plan};
use crate::resolve::Segment;

/// What is allowed and not logged, or all but that: what the filter has to say otherwise than its default.
pub(crate) fn exceptions(segments: &[Vec<Segment>; 2], defaults: &Defaults) -> Exceptions {
    let allows_by_default = defaults.known == Rule::ALLOW;
    Exceptions {
        default: if allows_by_default {
            DefaultAction::Allow
        } else {
            DefaultAction::Deny
        },
        intervals: Access::ALL.map(|access| {
            let differs = |segment: &&Segment| (segment.rule == Rule::ALLOW) != allows_by_default;
            merged(segments[access as usize].iter().filter(differs))
        }),
    }
}

/// The filter that allows what is allowed and not logged, and denies the rest.
pub(crate) fn filter(policy: &Policy, exceptions: &Exceptions) -> Result<MsrFilter, Diagnostic> {
    plan(exceptions).map_err(|error| match error {
        PlanError::LastMsr => last_msr(policy),
        PlanError::FarTooManyRanges => far_too_many(policy, exceptions),
        PlanError::TooManyRanges { windows } => crowded(policy, exceptions, windows),
    })
}

fn merged<'a>(segments: impl Iterator<Item = &'a Segment>) -> Vec<Interval> {
    let mut intervals: Vec<Interval> = Vec::new();
    for segment in segments {
        match intervals.last_mut() {
            Some(before) if before.1.checked_add(1) == Some(segment.first.0) => {
                before.1 = segment.last.0
            }
            _ => intervals.push((segment.first.0, segment.last.0)),
        }
    }
    intervals
}

fn last_msr(policy: &Policy) -> Diagnostic {
    let diagnostic = Diagnostic::error(
        "policy::last-msr",
        "no filter range can hold MSR 0xffffffff",
    )
    .help("end the range at 0xfffffffe: only the default governs the last MSR");
    match selectors(policy).find(|selector| selector.last.0 == u32::MAX) {
        Some(selector) => diagnostic.at(selector.span, "holds MSR 0xffffffff"),
        None => diagnostic,
    }
}

fn far_too_many(policy: &Policy, exceptions: &Exceptions) -> Diagnostic {
    let diagnostic = too_many(&format!("more than {MOST_NAMED}"))
        .help(format!("a range holds 12,288 MSRs; {}", advice(exceptions)));
    match selectors(policy).max_by_key(|selector| selector.last.0 - selector.first.0) {
        Some(longest) => {
            let count = u64::from(longest.last.0 - longest.first.0) + 1;
            diagnostic.at(
                longest.span,
                format!("{count} MSRs, more than any other part"),
            )
        }
        None => diagnostic,
    }
}

fn too_many(needed: &str) -> Diagnostic {
    Diagnostic::error(
        "policy::too-many-ranges",
        format!("the policy needs {needed} filter ranges, but KVM has {MAX_RANGES}"),
    )
}

fn advice(exceptions: &Exceptions) -> &'static str {
    match exceptions.default {
        DefaultAction::Allow => "name fewer MSRs that lie far from others",
        DefaultAction::Deny => "allow fewer MSRs that lie far from others",
    }
}

/// Names every window, the emptiest first, and points at the rules in as many as are too many.
fn crowded(
    policy: &Policy,
    exceptions: &Exceptions,
    mut windows: Vec<(Window, u32)>,
) -> Diagnostic {
    windows.sort_by_key(|&(window, count)| (count, window.first));
    let surplus = windows.len() - MAX_RANGES;
    let mut diagnostic = too_many(&windows.len().to_string());
    for &(window, _) in &windows[..surplus] {
        let inside = selectors(policy).filter(|found| found.overlaps(window.first, window.last));
        if let Some(selector) = inside.min_by_key(|selector| selector.rank()) {
            diagnostic = diagnostic.at(selector.span, format!("in {}", interval(window)));
        }
    }
    let advice = advice(exceptions);
    let mut help = format!("{advice}; it fits without any {surplus} of these:");
    for &(window, count) in &windows {
        let (interval, content) = (interval(window), content(window, count));
        write!(help, "\n{interval}: {content}").expect("a String takes it");
    }
    diagnostic.help(help)
}

fn interval(window: Window) -> String {
    format!("{}..={}", MsrIndex(window.first), MsrIndex(window.last))
}

/// The first MSR of a window is always one that the policy names.
fn content(window: Window, count: u32) -> String {
    let name = MsrIndex(window.first)
        .name()
        .unwrap_or("one without a name");
    match count {
        1 => name.to_owned(),
        count => format!("{name} and {} more", count - 1),
    }
}

fn selectors(policy: &Policy) -> impl Iterator<Item = &Selector> {
    policy.rules.iter().flat_map(|written| &written.msrs)
}
