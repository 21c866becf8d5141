//! An [`Explanation`] in words: [`Explanation::steps`], in the order in which things happen.

use std::fmt;

use msrgate_core::{
    Access, Action, DecisionSource, DefaultAction, Disposition, ExitReason, OnViolation,
    RangeFlags, Rule, Scope, Verdict,
};

use super::{Authority, Explanation, HostSteps, Instruction, KvmAnswer, Sees};
use crate::compile::{Compiled, Decider};
use crate::forward::{HostPath, host_path as host_path_of};
use crate::source::Sources;

/// One station on the way of an access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which.
    pub stage: Stage,
    /// What happens there: a line without its end.
    pub text: String,
}

/// The stations, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// The processor's own checks.
    Privilege,
    /// Whether the filter is asked at all.
    Exempt,
    /// What the filter says.
    Filter,
    /// What KVM makes of it.
    Kvm,
    /// Whether KVM hides that it does not know the MSR.
    IgnoreMsrs,
    /// Why the access leaves the guest, if it does.
    Reason,
    /// Who in the policy decides.
    Rule,
    /// Who was beaten.
    Beats,
    /// What is decided.
    Action,
    /// What KVM's host path answers.
    HostPath,
    /// What the guest sees.
    Result,
}

impl Stage {
    /// One word, or two.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Privilege => "privilege",
            Self::Exempt => "exempt",
            Self::Filter => "filter",
            Self::Kvm => "kvm",
            Self::IgnoreMsrs => "ignore_msrs",
            Self::Reason => "reason",
            Self::Rule => "rule",
            Self::Beats => "beats",
            Self::Action => "action",
            Self::HostPath => "host path",
            Self::Result => "result",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl Explanation {
    /// The way of the access in words. `compiled` and `sources` are those of the policy that was asked.
    #[must_use]
    pub fn steps(&self, compiled: &Compiled, sources: &Sources) -> Vec<Step> {
        let mut steps = vec![
            step(
                Stage::Privilege,
                "ring 0; in other rings the processor itself raises #GP(0)",
            ),
            step(Stage::Exempt, self.exempt()),
            step(Stage::Filter, self.filter(compiled)),
        ];
        if self.skips_filter && self.decision.verdict == Verdict::Deny {
            let text =
                "but KVM writes this MSR before it asks: it has a timer of the hardware for it";
            steps.push(step(Stage::Filter, text));
        }
        steps.push(step(Stage::Kvm, self.kvm()));
        if self.ignore_msrs == Some(true) && self.decision.verdict == Verdict::Allow {
            let text = "on: an MSR that KVM does not know reads 0, and its writes are dropped";
            steps.push(step(Stage::IgnoreMsrs, text));
        }
        if let Some(text) = self.reason() {
            steps.push(step(Stage::Reason, text));
        }
        self.rule(compiled, sources, &mut steps);
        self.forwarded(&mut steps);
        steps.push(step(Stage::Result, self.result()));
        steps
    }

    fn exempt(&self) -> &'static str {
        match self.decision.source {
            DecisionSource::Exempt => "yes: the x2APIC's MSRs, 0x800..=0x8ff, are never filtered",
            _ => "no: the filter is asked",
        }
    }

    fn filter(&self, compiled: &Compiled) -> String {
        let verdict = match self.decision.verdict {
            Verdict::Allow => "allows",
            Verdict::Deny => "denies",
        };
        let ranges = compiled.filter.ranges();
        let range = match self.decision.source {
            DecisionSource::Exempt | DecisionSource::NoFilter => return "is not asked".to_owned(),
            DecisionSource::Range(number) => ranges.get(usize::from(number)).map(|it| (number, it)),
            DecisionSource::Default => None,
        };
        let Some((number, range)) = range else {
            let default = match compiled.filter.default_action() {
                DefaultAction::Allow => "allows",
                DefaultAction::Deny => "denies",
            };
            let access = self.instruction.access();
            return match ranges.len() {
                0 => format!("has no range; its default {default}"),
                _ => format!("no range decides {access}s of it; its default {default}"),
            };
        };
        let directions = match range.flags {
            RangeFlags::READ => "reads",
            RangeFlags::WRITE => "writes",
            _ => "reads and writes",
        };
        let last = range.base.0 + (range.nmsrs - 1);
        format!(
            "range {number} ({}..={last:#x}, {directions}) {verdict}",
            range.base
        )
    }

    fn kvm(&self) -> String {
        match self.kvm {
            None => "is not asked".to_owned(),
            Some(KvmAnswer::Value(value)) => format!("knows it, and reads {value:#x}"),
            Some(KvmAnswer::Done) => "knows it, and takes the value".to_owned(),
            Some(KvmAnswer::Refused(ExitReason::UNKNOWN)) => "does not know it".to_owned(),
            Some(KvmAnswer::Refused(_)) => match self.instruction {
                Instruction::Rdmsr(_) => "knows it, and refuses to read it".to_owned(),
                Instruction::Wrmsr(..) => "knows it, and refuses this value".to_owned(),
            },
            Some(KvmAnswer::Gp) => "is not asked: the processor itself refuses".to_owned(),
            Some(KvmAnswer::Ended) => "does not survive it".to_owned(),
            Some(KvmAnswer::NotTried) => "has not been tried".to_owned(),
        }
    }

    fn reason(&self) -> Option<String> {
        match (self.disposition, self.kvm) {
            (Some(Disposition::Exit(reason)), _) => {
                Some(format!("{reason}, which leaves the guest"))
            }
            (Some(Disposition::InjectGp), Some(KvmAnswer::Refused(reason))) => Some(format!(
                "{reason}, which stays inside: the policy says #GP(0), as KVM does"
            )),
            _ => None,
        }
    }

    fn rule(&self, compiled: &Compiled, sources: &Sources, steps: &mut Vec<Step>) {
        let Some(authority) = self.decider else {
            return;
        };
        let access = self.instruction.access();
        let mut beaten = self.beaten.iter();
        let text = match authority {
            Authority::Rule(decider) => written(&decider, sources),
            Authority::Default(default, _) => {
                let policy = compiled.policy();
                let word = match default {
                    "known" => policy.known,
                    "unknown" => policy.unknown,
                    _ => policy.invalid,
                };
                let place = word.map_or("not written".to_owned(), |word| {
                    sources.place(word.span).to_string()
                });
                match beaten.next() {
                    None => format!("none names it: defaults.{default} ({place})"),
                    Some(first) => {
                        let rule = written(first, sources);
                        steps.push(step(Stage::Rule, format!("{rule} allows it")));
                        format!("but KVM refuses: defaults.{default} ({place})")
                    }
                }
            }
        };
        steps.push(step(Stage::Rule, text));
        for beaten in beaten {
            let (rule, does) = (written(beaten, sources), describe(beaten.rule, access));
            steps.push(step(Stage::Beats, format!("{rule}: {does}")));
        }
        steps.push(step(Stage::Action, describe(authority.rule(), access)));
    }

    /// What the guest sees; whose value it is, where that is not plain.
    fn result(&self) -> String {
        let is_native = self.disposition == Some(Disposition::Native);
        match self.sees {
            Sees::Value(value) if is_native => format!("{value:#x}, KVM's own value here"),
            sees => sees.to_string(),
        }
    }

    /// What the host path came to, and what is not quite the guest's own about it.
    fn forwarded(&self, steps: &mut Vec<Step>) {
        let Some(host_path) = &self.host_path else {
            return;
        };
        steps.extend(host_path.texts().map(|text| step(Stage::HostPath, text)));
        let instruction = self.instruction;
        if let HostPath::Nearly(how) | HostPath::Differs(how) =
            host_path_of(instruction.index(), instruction.access())
        {
            steps.push(step(Stage::HostPath, format!("note that it {how}")));
        }
    }
}

impl Authority {
    /// Where it is written and what it says, as a line; `sources` are those of the policy that it is of.
    #[must_use]
    pub fn describe(&self, access: Access, sources: &Sources) -> String {
        let place = match self {
            Self::Rule(decider) => written(decider, sources),
            Self::Default(default, _) => format!("defaults.{default}"),
        };
        format!("{place}: {}", describe(self.rule(), access))
    }
}

impl HostSteps {
    fn texts(&self) -> impl Iterator<Item = String> {
        let get = self.get.map(|answer| match answer {
            KvmAnswer::Value(value) => format!("KVM_GET_MSRS answers {value:#x}"),
            KvmAnswer::NotTried => "KVM_GET_MSRS has not been tried".to_owned(),
            _ => "KVM_GET_MSRS refuses".to_owned(),
        });
        let set = self.set.map(|(value, answer)| match answer {
            KvmAnswer::Done => format!("KVM_SET_MSRS takes {value:#x}"),
            KvmAnswer::NotTried => format!("KVM_SET_MSRS of {value:#x} has not been tried"),
            _ => format!("KVM_SET_MSRS refuses {value:#x}"),
        });
        let refused = self
            .refused
            .map(|_| "so defaults.invalid decides".to_owned());
        [get, set, refused].into_iter().flatten()
    }
}

/// What the guest sees, as a line.
impl fmt::Display for Sees {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(value) => write!(f, "{value:#x}"),
            Self::Written => f.write_str("done by KVM"),
            Self::Kept(value) => write!(f, "kept, as {value:#x}"),
            Self::Dropped => f.write_str("dropped"),
            Self::Gp => f.write_str("#GP(0)"),
            Self::Ended => f.write_str("the end of its VM"),
            Self::Kvm => f.write_str("what KVM makes of it"),
            Self::Handler => f.write_str("what the program's handler answers"),
        }
    }
}

fn step(stage: Stage, text: impl Into<String>) -> Step {
    Step {
        stage,
        text: text.into(),
    }
}

/// Where a rule names the MSR, and how.
fn written(decider: &Decider, sources: &Sources) -> String {
    let span = decider.selector.span;
    format!("{}, msr = {}", sources.place(span), sources.text(span))
}

fn describe(rule: Rule, access: Access) -> String {
    let mut text = match (rule.action, access) {
        (Action::Allow | Action::Mask(_), Access::Write)
        | (Action::Allow | Action::Writable(_), Access::Read) => "KVM does it".to_owned(),
        (Action::Fault, _) => "#GP(0)".to_owned(),
        (Action::Ignore, Access::Read) => "reads 0".to_owned(),
        (Action::Ignore | Action::Value(_), Access::Write) => "the value is dropped".to_owned(),
        (Action::Value(value), Access::Read) => format!("reads {value:#x}"),
        (Action::Mask(mask), Access::Read) => {
            let (replaced, ones) = (mask.replaced, mask.ones);
            format!("KVM's own value, but the bits {replaced:#x} read as {ones:#x}")
        }
        (Action::Writable(writable), Access::Write) => {
            let bits = writable.bits;
            format!(
                "KVM gets the bits {bits:#x}; {}",
                violation(writable.on_violation)
            )
        }
        (Action::Shadow(shadow), _) => {
            let scope = match shadow.scope {
                Scope::Vcpu => "for each vCPU",
                Scope::Vm => "for the VM",
            };
            let reset = shadow.reset;
            let bits = shadow.writable.bits;
            let violation = violation(shadow.writable.on_violation);
            format!(
                "a register that is kept {scope}, {reset:#x} at first, \
                 with writable bits {bits:#x}; {violation}"
            )
        }
        (Action::Handler(_), _) => "the program's handler".to_owned(),
        (action, _) => format!("{action:?}"),
    };
    if rule.log {
        text.push_str(", logged");
    }
    if let Some(limit) = rule.limit_per_second {
        text.push_str(&format!(", at most {limit} a second"));
    }
    text
}

const fn violation(on_violation: OnViolation) -> &'static str {
    match on_violation {
        OnViolation::Fault => "a change of another one is #GP(0)",
        OnViolation::Ignore => "a change of another one is dropped",
    }
}
