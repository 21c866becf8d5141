//! What the author of a policy may not have meant: [`warnings`], and for who checks a policy, [`Compiled::advice`].
//! Nothing here makes a policy unusable.
//!
//! Each code is told once, with the rules that it is about. An MSR that only the defaults deny is not told of.

use msrgate_core::{Access, Action, Candidate, Defaults, MsrIndex, PermissionLayout, Rule};

use crate::ast::{Policy, Selector};
use crate::compile::Compiled;
use crate::diagnostic::Diagnostic;
use crate::forward::{HostPath, differences, is_known};
use crate::resolve::Segment;
use crate::source::Span;

/// MSRs that are looked at for one code; a policy of so many is told of no more.
const MOST_FINDINGS: usize = 64;
/// Rules that one warning points at.
const MOST_LABELS: usize = 4;

/// What is known of the host on which a policy is to be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// The module parameter `kvm.ignore_msrs`.
    pub ignore_msrs: Option<bool>,
}

impl Compiled {
    /// What to think of before a guest runs: what no rule can do by the nature of its MSR, what a rule costs, and what
    /// is doubtful on one host only.
    #[must_use]
    pub fn advice(&self, host: &HostFacts) -> Vec<Diagnostic> {
        let rules = Rules {
            policy: self.policy(),
            segments: [Access::Read, Access::Write].map(|access| self.segments(access)),
        };
        [unfilterable(&rules), slow(&rules), self.ignore_msrs(host)]
            .into_iter()
            .flatten()
            .collect()
    }

    fn ignore_msrs(&self, host: &HostFacts) -> Option<Diagnostic> {
        let hides = host.ignore_msrs == Some(true) && self.image.defaults().known == Rule::ALLOW;
        let written = self.policy().unknown;
        let word = written.filter(|word| hides && word.rule != Rule::quiet(Action::Ignore))?;
        Some(
            Diagnostic::warning(
                "policy::ignore-msrs",
                "kvm.ignore_msrs is on here: KVM hides which MSRs it does not know",
            )
            .at(word.span, "such MSRs read 0 all the same")
            .help("turn it off: echo N > /sys/module/kvm/parameters/ignore_msrs"),
        )
    }
}

/// What is doubtful about a policy that can be used. `segments`: by [`Access`].
pub(crate) fn warnings(
    policy: &Policy,
    segments: &[Vec<Segment>; 2],
    defaults: &Defaults,
) -> Vec<Diagnostic> {
    let rules = Rules {
        policy,
        segments: [&segments[0], &segments[1]],
    };
    [
        x2apic(policy, defaults),
        host_path(&rules),
        unknown_to_kvm(&rules),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// With everything denied, somebody may believe that x2APIC MSRs are denied too.
fn x2apic(policy: &Policy, defaults: &Defaults) -> Option<Diagnostic> {
    let known = policy.known?;
    let is_named = policy
        .rules
        .iter()
        .flat_map(|written| &written.msrs)
        .any(|selector| selector.overlaps(0x800, 0x8ff));
    (defaults.known != Rule::ALLOW && !is_named).then(|| {
        Diagnostic::warning("policy::x2apic", "KVM never filters the x2APIC's MSRs")
            .at(known.span, "holds for all MSRs but 0x800..=0x8ff")
            .help("to say that you know: [[rule]] msr = \"0x800..=0x8ff\", both = \"allow\"")
    })
}

const BOTH: &[Access] = &Access::ALL;
const READ: &[Access] = &[Access::Read];
const WRITE: &[Access] = &[Access::Write];

/// MSRs that a guest reaches without RDMSR and WRMSR: first, last, in which direction, and how.
#[rustfmt::skip]
const UNFILTERABLE: &[(u32, u32, &[Access], &str)] = &[
    (0x10, 0x10, READ, "RDTSC reads it too"),
    (0xc1, 0xc8, READ, "RDPMC reads it too"),
    (0x174, 0x176, BOTH, "SYSENTER still uses it"),
    (0x1d9, 0x1d9, WRITE, "a nested VM entry loads it"),
    (0x277, 0x277, WRITE, "a nested VM entry loads it"),
    (0x309, 0x30c, READ, "RDPMC reads it too"),
    (0x38f, 0x38f, WRITE, "a nested VM entry loads it"),
    (0x6e0, 0x6e0, WRITE, "KVM may be faster than its filter"),
    (0xd90, 0xd90, WRITE, "a nested VM entry loads it"),
    (0xda0, 0xda0, BOTH, "XSAVES still uses it"),
    (0xc000_0080, 0xc000_0080, WRITE, "MOV to CR0 changes it too"),
    (0xc000_0081, 0xc000_0084, BOTH, "SYSCALL still uses it"),
    (0xc000_0100, 0xc000_0101, BOTH, "WRFSBASE and segment loads reach it too"),
    (0xc000_0102, 0xc000_0102, BOTH, "SWAPGS exchanges it"),
    (0xc000_0103, 0xc000_0103, READ, "RDTSCP and RDPID read it too"),
    (0xc001_0004, 0xc001_0007, READ, "RDPMC reads it too"),
];

/// Denied MSRs that the guest reaches by other instructions.
fn unfilterable(rules: &Rules<'_>) -> Option<Diagnostic> {
    let rows = UNFILTERABLE
        .iter()
        .flat_map(|&(first, last, accesses, how)| {
            let accesses = accesses.iter().map(move |&access| (access, how));
            accesses.flat_map(move |pair| (first..=last).map(move |index| (MsrIndex(index), pair)))
        });
    let findings = rows.filter_map(|(index, (access, how))| {
        let (span, rule) = rules.decider(index, access)?;
        (rule != Rule::ALLOW).then_some(Finding { span, index, how })
    });
    told(
        "policy::unfilterable",
        "a filter sees RDMSR and WRMSR only, and these MSRs are reached in other ways",
        "the rule holds for RDMSR and WRMSR; where that is meant, nothing is wrong",
        findings,
    )
}

/// MSRs that the processor does without an exit, and now not any more. One that faults is not tried again and again.
fn slow(rules: &Rules<'_>) -> Option<Diagnostic> {
    let layouts = [PermissionLayout::VMX, PermissionLayout::SVM];
    let candidates = layouts.into_iter().flat_map(|layout| layout.candidates);
    let accesses = candidates.flat_map(|candidate: &Candidate| {
        let accesses = match candidate.initial {
            [] => BOTH,
            accesses => accesses,
        };
        accesses
            .iter()
            .map(move |&access| (candidate.index, access))
    });
    let findings = accesses.filter_map(|(index, access)| {
        let (span, rule) = rules.decider(index, access)?;
        let is_slow = rule != Rule::ALLOW && rule.action != Action::Fault;
        let how = "without a rule, there is no exit";
        is_slow.then_some(Finding { span, index, how })
    });
    told(
        "policy::slow",
        "the processor does these accesses by itself, but now each one is an exit",
        "a guest that uses such an MSR often becomes slow",
        findings,
    )
}

/// Accesses that the gate has KVM do, and that KVM does not do quite as it does the guest's own.
fn host_path(rules: &Rules<'_>) -> Option<Diagnostic> {
    let findings = Access::ALL.into_iter().flat_map(|access| {
        let forwarded = rules.forwarded(access);
        let differences = forwarded.flat_map(move |(segment, steps)| {
            let (first, last) = (segment.first.0, segment.last.0);
            steps
                .iter()
                .flat_map(move |&step| differences(first, last, step))
        });
        differences.filter_map(move |(index, path)| {
            let (span, _) = rules.decider(index, access)?;
            let (HostPath::Nearly(how) | HostPath::Differs(how)) = path else {
                return None;
            };
            Some(Finding { span, index, how })
        })
    });
    told(
        "policy::host-path",
        "KVM is asked on the host path, which is not quite the guest's own",
        "see that this does not matter to your guest",
        findings,
    )
}

/// Bits over KVM's own value, where KVM has none.
fn unknown_to_kvm(rules: &Rules<'_>) -> Option<Diagnostic> {
    let findings = Access::ALL.into_iter().flat_map(|access| {
        let masked = rules.segments[access as usize]
            .iter()
            .filter(|segment| matches!(segment.rule.action, Action::Mask(_) | Action::Writable(_)));
        masked.filter_map(move |segment| {
            let mut msrs = (segment.first.0..=segment.last.0).map(MsrIndex);
            let index = msrs.find(|&index| !is_known(index))?;
            let (span, _) = rules.decider(index, access)?;
            let how = "has no value there";
            Some(Finding { span, index, how })
        })
    });
    told(
        "policy::unknown-to-kvm",
        "bits are put over KVM's own value, and Linux 6.12's KVM does not know these MSRs",
        "`shadow` keeps a register without KVM; `value` answers reads",
        findings,
    )
}

/// The rules of a policy, by direction.
#[derive(Clone, Copy)]
struct Rules<'a> {
    policy: &'a Policy,
    segments: [&'a [Segment]; 2],
}

impl<'a> Rules<'a> {
    /// Where the rule for an access is written, and what it says.
    fn decider(&self, index: MsrIndex, access: Access) -> Option<(Span, Rule)> {
        let holding = self
            .policy
            .pieces(access)
            .filter(|(selector, _)| selector.overlaps(index.0, index.0));
        let narrowest = holding.min_by_key(|(selector, _)| Selector::rank(selector));
        narrowest.map(|(selector, rule)| (selector.span, rule))
    }

    /// What the gate has KVM do, and what it asks of the host path for that.
    fn forwarded(&self, access: Access) -> impl Iterator<Item = (&'a Segment, &'static [Access])> {
        let segments = self.segments[access as usize].iter();
        segments.filter_map(move |segment| match segment.rule.action {
            Action::Writable(_) if access == Access::Write => Some((segment, BOTH)),
            Action::Allow if segment.rule == Rule::ALLOW => None,
            Action::Allow | Action::Mask(_) | Action::Writable(_) => Some((
                segment,
                match access {
                    Access::Read => READ,
                    Access::Write => WRITE,
                },
            )),
            _ => None,
        })
    }
}

/// An MSR that a rule decides about, and what is to be said of it.
struct Finding {
    span: Span,
    index: MsrIndex,
    how: &'static str,
}

/// One warning for all findings, with a label for each of the first rules.
fn told(
    code: &'static str,
    message: &str,
    help: &str,
    findings: impl Iterator<Item = Finding>,
) -> Option<Diagnostic> {
    let mut rules: Vec<(Span, Vec<Finding>)> = Vec::new();
    for finding in findings.take(MOST_FINDINGS) {
        match rules.iter_mut().find(|(span, _)| *span == finding.span) {
            Some((_, found)) if found.iter().any(|it| it.index == finding.index) => {}
            Some((_, found)) => found.push(finding),
            None => rules.push((finding.span, vec![finding])),
        }
    }
    rules.sort_by_key(|(span, _)| *span);
    let more = rules.len().saturating_sub(MOST_LABELS);
    let mut diagnostic = Diagnostic::warning(code, message);
    for (span, findings) in rules.iter().take(MOST_LABELS) {
        diagnostic = diagnostic.at(*span, label(findings));
    }
    let help = match more {
        0 => help.to_owned(),
        1 => format!("{help}\none more place names such an MSR"),
        more => format!("{help}\n{more} more places name such MSRs"),
    };
    (!rules.is_empty()).then(|| diagnostic.help(help))
}

/// What is written at the label need not be repeated where it is one MSR.
fn label(findings: &[Finding]) -> String {
    let Finding { index, how, .. } = &findings[0];
    match findings.len() - 1 {
        0 => format!("{index}: {how}"),
        more => format!("{index}: {how}; and {more} more"),
    }
}
