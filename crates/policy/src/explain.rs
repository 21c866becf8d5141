//! Why a guest sees what it sees: [`Compiled::explain`] goes the way of one access and keeps every station of it.
//!
//! * [`KvmAnswers`]: what KVM itself makes of an access on some host; `&mut NotTried` where nobody knows.
//! * [`Explanation`]: the decisions as values, and [`Explanation::steps`] for people to read.
//!
//! The rules are looked up in the policy as it is written, not in its image. Nothing here runs a guest.

mod text;

use msrgate_core::{
    Access, Action, Decision, Disposition, Emulation, ExitReason, MsrIndex, Rule, UnknownMsrs,
    Verdict,
};

use crate::compile::{Compiled, Decider};
pub use text::{Stage, Step};

/// What KVM itself makes of accesses to one MSR, with no policy in force. Asked only for what an explanation needs;
/// each answer is that of a vCPU that has done nothing before.
pub trait KvmAnswers {
    /// The guest's RDMSR.
    fn rdmsr(&mut self, index: MsrIndex) -> KvmAnswer;

    /// The guest's WRMSR.
    fn wrmsr(&mut self, index: MsrIndex, value: u64) -> KvmAnswer;

    /// `KVM_GET_MSRS`: [`KvmAnswer::Refused`] where it answers nothing.
    fn get_msr(&mut self, index: MsrIndex) -> KvmAnswer;

    /// `KVM_SET_MSRS`.
    fn set_msr(&mut self, index: MsrIndex, value: u64) -> KvmAnswer;

    /// The module parameter `ignore_msrs`, where it can be known.
    fn ignore_msrs(&self) -> Option<bool> {
        None
    }

    /// Whether KVM does the guest's writes of this MSR before it asks the filter, where that can be known.
    fn writes_before_filter(&self, _index: MsrIndex) -> Option<bool> {
        None
    }
}

/// What KVM makes of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvmAnswer {
    /// It reads this value.
    Value(u64),
    /// It takes the value.
    Done,
    /// It refuses, for this reason; the host path has none to give.
    Refused(ExitReason),
    /// The processor raises #GP before KVM is asked.
    Gp,
    /// The VM does not survive it.
    Ended,
    /// Nobody has tried.
    NotTried,
}

/// No host at hand.
#[derive(Clone, Copy, Debug, Default)]
pub struct NotTried;

impl KvmAnswers for NotTried {
    fn rdmsr(&mut self, _index: MsrIndex) -> KvmAnswer {
        KvmAnswer::NotTried
    }

    fn wrmsr(&mut self, _index: MsrIndex, _value: u64) -> KvmAnswer {
        KvmAnswer::NotTried
    }

    fn get_msr(&mut self, _index: MsrIndex) -> KvmAnswer {
        KvmAnswer::NotTried
    }

    fn set_msr(&mut self, _index: MsrIndex, _value: u64) -> KvmAnswer {
        KvmAnswer::NotTried
    }
}

/// One access, as the guest does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// RDMSR.
    Rdmsr(MsrIndex),
    /// WRMSR of a value.
    Wrmsr(MsrIndex, u64),
}

impl Instruction {
    /// Which register.
    #[must_use]
    pub const fn index(self) -> MsrIndex {
        match self {
            Self::Rdmsr(index) | Self::Wrmsr(index, _) => index,
        }
    }

    /// In which direction.
    #[must_use]
    pub const fn access(self) -> Access {
        match self {
            Self::Rdmsr(_) => Access::Read,
            Self::Wrmsr(..) => Access::Write,
        }
    }
}

/// What becomes of an access, and why.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Explanation {
    /// The access.
    pub instruction: Instruction,
    /// What the filter says.
    pub decision: Decision,
    /// KVM writes before it asks the filter.
    pub skips_filter: bool,
    /// What KVM makes of it, where it is asked.
    pub kvm: Option<KvmAnswer>,
    /// Whether KVM hides that it does not know an MSR, where that can be known.
    pub ignore_msrs: Option<bool>,
    /// Where the access goes; `None` where that hangs on KVM and nobody has tried.
    pub disposition: Option<Disposition>,
    /// Who says what the gate answers, where the access leaves the guest.
    pub decider: Option<Authority>,
    /// The rules that were beaten, the narrowest first.
    pub beaten: Vec<Decider>,
    /// What the host path came to, where the policy lets KVM do what its filter denied.
    pub host_path: Option<HostSteps>,
    /// What the guest sees.
    pub sees: Sees,
}

/// Who decides about an access that left the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authority {
    /// A rule of the policy.
    Rule(Decider),
    /// `defaults.known`, `defaults.unknown` or `defaults.invalid`.
    Default(&'static str, Rule),
}

impl Authority {
    /// What it says.
    #[must_use]
    pub const fn rule(&self) -> Rule {
        match self {
            Self::Rule(decider) => decider.rule,
            Self::Default(_, rule) => *rule,
        }
    }
}

/// What the gate asks of the host path, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostSteps {
    /// `KVM_GET_MSRS`.
    pub get: Option<KvmAnswer>,
    /// `KVM_SET_MSRS`, and the value.
    pub set: Option<(u64, KvmAnswer)>,
    /// It was refused, so that this default holds.
    pub refused: Option<Rule>,
}

/// What the guest sees of its access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sees {
    /// It reads this value.
    Value(u64),
    /// It goes on, and KVM has taken its value or a part of it.
    Written,
    /// It goes on, and the register that the gate keeps holds this.
    Kept(u64),
    /// It goes on, and nothing has changed.
    Dropped,
    /// #GP(0) at the instruction.
    Gp,
    /// Nothing more: its VM ends.
    Ended,
    /// What KVM does; nobody has tried.
    Kvm,
    /// What the program's handler answers.
    Handler,
}

impl Compiled {
    /// Goes the way of one access.
    ///
    /// ```
    /// use msrgate_core::MsrIndex;
    /// use msrgate_policy::{Instruction, NotTried, Sees, compile};
    ///
    /// let compiled = compile("version = 1\n[[rule]]\nmsr = 0x8b\nread = { value = 7 }\n").unwrap();
    /// let explanation = compiled.explain(Instruction::Rdmsr(MsrIndex(0x8b)), &mut NotTried);
    /// assert_eq!(explanation.sees, Sees::Value(7));
    /// ```
    #[must_use]
    pub fn explain(&self, instruction: Instruction, kvm: &mut dyn KvmAnswers) -> Explanation {
        let decision = self
            .filter
            .decide(instruction.index(), instruction.access());
        let skips_filter = instruction.access() == Access::Write
            && kvm.writes_before_filter(instruction.index()) == Some(true);
        let mut explanation = Explanation {
            instruction,
            decision,
            skips_filter,
            kvm: None,
            ignore_msrs: kvm.ignore_msrs(),
            disposition: None,
            decider: None,
            beaten: Vec::new(),
            host_path: None,
            sees: Sees::Kvm,
        };
        if explanation.is_allowed() {
            explanation.kvm = Some(match instruction {
                Instruction::Rdmsr(index) => kvm.rdmsr(index),
                Instruction::Wrmsr(index, value) => kvm.wrmsr(index, value),
            });
        }
        explanation.disposition = self.disposition(&explanation);
        explanation.sees = match (explanation.disposition, explanation.kvm) {
            (Some(Disposition::Exit(reason)), _) => self.answer(&mut explanation, reason, kvm),
            (Some(Disposition::InjectGp), _) => Sees::Gp,
            (Some(Disposition::Native), Some(KvmAnswer::Value(value))) => Sees::Value(value),
            (Some(Disposition::Native), _) => Sees::Written,
            (None, Some(KvmAnswer::Ended)) => Sees::Ended,
            (None, _) => Sees::Kvm,
        };
        explanation
    }

    fn disposition(&self, explanation: &Explanation) -> Option<Disposition> {
        let emulation = match explanation.kvm {
            None | Some(KvmAnswer::Value(_) | KvmAnswer::Done) => Emulation::Done,
            Some(KvmAnswer::Refused(ExitReason::UNKNOWN)) => Emulation::Unknown,
            Some(KvmAnswer::Refused(_)) => Emulation::Invalid,
            Some(KvmAnswer::Gp) => return Some(Disposition::InjectGp),
            Some(KvmAnswer::Ended | KvmAnswer::NotTried) => return None,
        };
        let verdict = if explanation.is_allowed() {
            Verdict::Allow
        } else {
            Verdict::Deny
        };
        Some(Disposition::of(
            verdict,
            || emulation,
            UnknownMsrs::Fail,
            self.reasons,
        ))
    }

    /// Who decides an access that left the guest for `reason`, or that did not leave it ([`ExitReason::NONE`]).
    ///
    /// ```
    /// use msrgate_core::{Access, ExitReason, MsrIndex};
    ///
    /// let compiled = msrgate_policy::compile("version = 1\n[defaults]\nunknown = 'ignore'\n").unwrap();
    /// let authority = compiled.authority(MsrIndex(0x8b), Access::Read, ExitReason::UNKNOWN);
    /// let text = authority.describe(Access::Read, &compiled.sources);
    /// assert_eq!(text, "defaults.unknown: reads 0");
    /// ```
    #[must_use]
    pub fn authority(&self, index: MsrIndex, access: Access, reason: ExitReason) -> Authority {
        let was_refused = ![ExitReason::FILTER, ExitReason::NONE].contains(&reason);
        match self.deciders(index, access).first() {
            Some(first) if was_refused && first.rule.action == Action::Allow => {
                self.default(reason)
            }
            Some(&first) => Authority::Rule(first),
            None => self.default(reason),
        }
    }

    /// What the gate answers.
    fn answer(
        &self,
        explanation: &mut Explanation,
        reason: ExitReason,
        kvm: &mut dyn KvmAnswers,
    ) -> Sees {
        let instruction = explanation.instruction;
        let (index, access) = (instruction.index(), instruction.access());
        let decider = self.authority(index, access, reason);
        let mut rules = self.deciders(index, access);
        if matches!(decider, Authority::Rule(_)) {
            rules.remove(0);
        }
        explanation.decider = Some(decider);
        explanation.beaten = rules;
        let action = decider.rule().action;
        let is_forwarded = matches!(
            action,
            Action::Allow | Action::Mask(_) | Action::Writable(_)
        );
        if !is_forwarded || reason != ExitReason::FILTER {
            return without_kvm(instruction, action);
        }
        let mut steps = HostSteps::default();
        let done = match instruction {
            Instruction::Rdmsr(index) => steps.read(index, action, kvm),
            Instruction::Wrmsr(index, value) => steps.write(index, value, action, kvm),
        };
        // The host path does not say why it refuses. What can be forwarded, KVM knows.
        let sees = done.unwrap_or_else(|| {
            let rule = self.image.defaults().invalid;
            steps.refused = Some(rule);
            without_kvm(instruction, rule.action)
        });
        explanation.host_path = Some(steps);
        sees
    }

    fn default(&self, reason: ExitReason) -> Authority {
        let defaults = self.image.defaults();
        match reason {
            ExitReason::FILTER | ExitReason::NONE => Authority::Default("known", defaults.known),
            ExitReason::UNKNOWN => Authority::Default("unknown", defaults.unknown),
            _ => Authority::Default("invalid", defaults.invalid),
        }
    }
}

impl Explanation {
    /// Whether KVM gets to do it.
    fn is_allowed(&self) -> bool {
        self.skips_filter || self.decision.verdict == Verdict::Allow
    }
}

impl HostSteps {
    /// Reads KVM's own value; `None` where the host path refuses.
    fn read(&mut self, index: MsrIndex, action: Action, kvm: &mut dyn KvmAnswers) -> Option<Sees> {
        let answer = kvm.get_msr(index);
        self.get = Some(answer);
        match (answer, action) {
            (KvmAnswer::Value(own), Action::Mask(mask)) => Some(Sees::Value(mask.apply(own))),
            (KvmAnswer::Value(own), _) => Some(Sees::Value(own)),
            (KvmAnswer::NotTried, _) => Some(Sees::Kvm),
            _ => None,
        }
    }

    /// Has KVM write the value, or what the rule leaves of it; `None` where the host path refuses.
    fn write(
        &mut self,
        index: MsrIndex,
        value: u64,
        action: Action,
        kvm: &mut dyn KvmAnswers,
    ) -> Option<Sees> {
        let value = match action {
            Action::Writable(writable) => {
                let answer = kvm.get_msr(index);
                self.get = Some(answer);
                let own = match answer {
                    KvmAnswer::Value(own) => own,
                    KvmAnswer::NotTried => return Some(Sees::Kvm),
                    _ => return None,
                };
                match writable.merge(own, value) {
                    Some(merged) => merged,
                    None => return Some(Sees::Gp),
                }
            }
            _ => value,
        };
        match self.set(index, value, kvm) {
            KvmAnswer::Done => Some(Sees::Written),
            KvmAnswer::NotTried => Some(Sees::Kvm),
            _ => None,
        }
    }

    fn set(&mut self, index: MsrIndex, value: u64, kvm: &mut dyn KvmAnswers) -> KvmAnswer {
        let answer = kvm.set_msr(index, value);
        self.set = Some((value, answer));
        answer
    }
}

/// What an action comes to that asks nothing of KVM, or whose access KVM has refused.
fn without_kvm(instruction: Instruction, action: Action) -> Sees {
    match (action, instruction) {
        (Action::Ignore, Instruction::Rdmsr(_)) => Sees::Value(0),
        (Action::Value(value), Instruction::Rdmsr(_)) => Sees::Value(value),
        (Action::Ignore | Action::Value(_), _) => Sees::Dropped,
        (Action::Shadow(shadow), Instruction::Rdmsr(_)) => Sees::Value(shadow.reset),
        (Action::Shadow(shadow), Instruction::Wrmsr(_, value)) => {
            let merged = shadow.writable.merge(shadow.reset, value);
            merged.map_or(Sees::Gp, Sees::Kept)
        }
        (Action::Handler(_), _) => Sees::Handler,
        _ => Sees::Gp,
    }
}
