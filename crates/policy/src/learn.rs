//! What guests did with their MSRs, as [`Observations`], and the policy that allows that and no more.
//!
//! Observations are added [`Event`] by event and merged: the order, and how many traces they came in, make no
//! difference. [`Observations::policy`] is a text, to be read, changed and kept. Nothing here reads a trace.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use msrgate_core::{Access, Action, Event, ExitReason, MsrIndex, Outcome, PermissionLayout, Rule};

use crate::compile::{Compiled, Options, compile_with};
use crate::diagnostic::Diagnostic;
use crate::forward::unobservable;
use crate::source::Sources;

mod action;
mod choice;
mod compare;
mod count;
mod text;

pub use compare::{Answered, TraceDifference};

/// Which accesses were made, how they were answered, and how often.
///
/// ```
/// use msrgate_core::{Access, Event, ExitReason, MsrIndex, Outcome, VcpuId};
/// use msrgate_policy::Observations;
///
/// let mut observations = Observations::default();
/// observations.observe(
///     &Event {
///         vcpu: VcpuId(0),
///         index: MsrIndex(0x48),
///         access: Access::Read,
///         reason: ExitReason::NONE,
///         rip: None,
///         value: 1,
///         outcome: Outcome::Native,
///         log: false,
///     },
///     &[],
/// );
/// let learned = observations.policy(&[]).expect("there is something to learn from");
/// assert!(learned.text.contains(r#"msr  = "IA32_SPEC_CTRL"    # 1 read"#));
/// assert!(learned.text.contains(r#"read = "allow""#));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observations {
    counts: BTreeMap<(MsrIndex, Access, Seen), u64>,
    unseen: BTreeSet<(MsrIndex, Access)>,
    is_blind: bool,
    is_full: bool,
}

/// One way in which an access was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    outcome: Outcome,
    /// What answers so again, if that is known.
    action: Option<Action>,
    /// KVM said that it does not know the MSR.
    is_unknown: bool,
}

/// More different answers than these are no guest's that anybody wants a policy of.
const MOST_ANSWERS: usize = 1 << 17;

impl Observations {
    /// Counts an access. One of `policies` was in force; there are none where it is not known.
    pub fn observe(&mut self, event: &Event, policies: &[Compiled]) {
        let seen = Seen {
            outcome: event.outcome,
            action: kept(event, policies),
            is_unknown: event.reason == ExitReason::UNKNOWN,
        };
        self.add(event.index, event.access, seen, 1);
    }

    /// Notes that these observations show nothing of what `policies` let KVM do by itself.
    pub fn miss_what_kvm_did(&mut self, policies: &[Compiled]) {
        self.is_blind |= policies.is_empty();
        for policy in policies {
            self.is_blind |= policy.image.defaults().known == Rule::ALLOW;
            for access in Access::ALL {
                let segments = policy.segments(access).iter();
                for segment in segments.filter(|segment| segment.rule == Rule::ALLOW) {
                    // What a filter allows beside a default that denies fits into its ranges.
                    let msrs = (segment.first.0..=segment.last.0).take(MOST_ANSWERS);
                    self.unseen
                        .extend(msrs.map(|index| (MsrIndex(index), access)));
                }
            }
        }
    }

    /// Notes that these observations show nothing of accesses that `policies` allow and that cannot leave the
    /// guest to be watched, because KVM's host path does something else with them.
    pub fn miss_what_cannot_be_forwarded(&mut self, policies: &[Compiled]) {
        for access in Access::ALL {
            let msrs = unobservable(access).map(|(index, _)| index);
            self.miss_where_allowed(msrs, access, policies);
        }
        for unobserved in policies.iter().flat_map(|policy| &policy.unobserved) {
            let msrs = (unobserved.first.0..=unobserved.last.0).map(MsrIndex);
            self.unseen
                .extend(msrs.map(|index| (index, unobserved.access)));
        }
    }

    /// Notes that these observations show nothing of accesses that `policies` allow and that the processor may do
    /// without KVM, whether Intel's or AMD's.
    pub fn miss_what_is_passed_through(&mut self, policies: &[Compiled]) {
        for access in Access::ALL {
            for layout in [PermissionLayout::VMX, PermissionLayout::SVM] {
                let candidates = layout.candidates.iter().map(|candidate| candidate.index);
                // No filter sees those of the x2APIC, and no policy names them.
                let msrs = candidates.filter(|index| !index.is_x2apic());
                self.miss_where_allowed(msrs, access, policies);
            }
        }
    }

    fn miss_where_allowed(
        &mut self,
        msrs: impl Iterator<Item = MsrIndex>,
        access: Access,
        policies: &[Compiled],
    ) {
        for index in msrs {
            let is_allowed = |policy: &Compiled| {
                let known = policy.image.defaults().known;
                policy.image.named(index, access).unwrap_or(known) == Rule::ALLOW
            };
            if policies.is_empty() || policies.iter().any(is_allowed) {
                self.unseen.insert((index, access));
            }
        }
    }

    /// Adds what others observed.
    pub fn merge(&mut self, other: Self) {
        self.unseen.extend(other.unseen);
        self.is_blind |= other.is_blind;
        self.is_full |= other.is_full;
        for ((index, access, seen), count) in other.counts {
            self.add(index, access, seen, count);
        }
    }

    /// How many accesses were observed.
    #[must_use]
    pub fn accesses(&self) -> u64 {
        self.counts
            .values()
            .fold(0, |sum, count| count.saturating_add(sum))
    }

    /// How many MSRs were accessed.
    #[must_use]
    pub fn msrs(&self) -> usize {
        let indices: BTreeSet<MsrIndex> = self.counts.keys().map(|&(index, ..)| index).collect();
        indices.len()
    }

    /// The default-deny policy under which the same accesses are answered in the same way. `handlers`: what
    /// those are called that answered.
    ///
    /// # Errors
    /// Nothing was observed, or no policy can say it.
    pub fn policy(&self, handlers: &[&str]) -> Result<Learned, LearnError> {
        if self.is_full {
            return Err(LearnError::TooMuch {
                limit: MOST_ANSWERS,
            });
        }
        if self.counts.is_empty() {
            return Err(LearnError::Nothing);
        }
        let msrs = choice::choose(self);
        let text = text::write(self, &msrs, handlers);
        let options = Options {
            handlers,
            ..Options::default()
        };
        let (sources, compiled) = compile_with("the learned policy", &text, &options);
        match compiled {
            Ok(_) => Ok(Learned {
                text,
                is_blind: self.is_blind,
                ambiguous: choice::accesses(&msrs, choice::Choice::is_ambiguous),
                lost: choice::accesses(&msrs, choice::Choice::is_lost),
            }),
            Err(diagnostics) => Err(LearnError::Refused {
                sources,
                diagnostics,
            }),
        }
    }

    fn add(&mut self, index: MsrIndex, access: Access, seen: Seen, count: u64) {
        let is_full = self.counts.len() >= MOST_ANSWERS;
        match self.counts.get_mut(&(index, access, seen)) {
            Some(sum) => *sum = sum.saturating_add(count),
            None if is_full => self.is_full = true,
            None => {
                self.counts.insert((index, access, seen), count);
            }
        }
    }
}

/// What answers in the same way again.
fn kept(event: &Event, policies: &[Compiled]) -> Option<Action> {
    let rule = |policy: &Compiled| policy.image.rule(event.index, event.access, event.reason);
    let mut kept = policies.iter().map(|policy| rule(policy).action);
    // A register that a policy keeps has its own #GP, such as for a bit that is not writable.
    let kept = kept.find(|action| {
        matches!(
            (event.outcome, action),
            (Outcome::Masked, Action::Mask(_))
                | (Outcome::Masked | Outcome::Fault, Action::Writable(_))
                | (Outcome::Shadow | Outcome::Fault, Action::Shadow(_))
                | (Outcome::Handled | Outcome::Fault, Action::Handler(_))
        )
    });
    match event.outcome {
        Outcome::Native | Outcome::Forwarded | Outcome::Vmm => Some(Action::Allow),
        Outcome::Ignored => Some(Action::Ignore),
        Outcome::Value => Some(Action::Value(event.value)),
        Outcome::Fault if event.reason == ExitReason::NONE => Some(Action::Fault),
        Outcome::Fault => kept.or(Some(Action::Fault)),
        _ => kept,
    }
}

/// A policy that was learned, and what whoever uses it ought to know.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Learned {
    /// The policy. It compiles.
    pub text: String,
    /// Some trace shows only what left the guest: what KVM did by itself is missing here, and denied.
    pub is_blind: bool,
    /// Accesses that were answered in several ways, of which the policy has one.
    pub ambiguous: Vec<(MsrIndex, Access)>,
    /// Accesses that were answered by what no rule can say here, and are denied: a rule that no policy of the
    /// trace has, or the default for an MSR that no filter sees.
    pub lost: Vec<(MsrIndex, Access)>,
}

/// Why nothing can be learned.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LearnError {
    /// No access was observed.
    Nothing,
    /// More different answers than a policy can be made of.
    TooMuch {
        /// How many there may be.
        limit: usize,
    },
    /// No filter does what was observed.
    Refused {
        /// The policy that would say it.
        sources: Sources,
        /// What is wrong with it.
        diagnostics: Vec<Diagnostic>,
    },
}

impl fmt::Display for LearnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("no MSR access was observed"),
            Self::TooMuch { limit } => write!(
                f,
                "more than {limit} different accesses and answers were observed"
            ),
            Self::Refused { .. } => {
                f.write_str("no filter of KVM allows what was observed and no more")
            }
        }
    }
}

impl std::error::Error for LearnError {}
