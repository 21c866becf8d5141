//! What the gates of a VM do, read in the slowest way: a list of rules, and registers by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use msrgate_core::{
    Access, Action, Defaults, ExitReason, Gp, HandlerId, HostMsrs, Image, MsrHandler, MsrIndex,
    Outcome, Rule, Scope, VcpuId, VmError,
};

/// Neighbours, both sides of a leaf's border, and the ends of the index space.
pub(crate) const INDICES: [u32; 8] = [0, 0x10, 0x11, 0x3f, 0x40, 0x41, 0xc000_0080, u32::MAX];

/// KVM knows the MSRs whose index is even, and takes no value above this for them.
pub(crate) const KVM_TAKES: u64 = 0xffff;

#[derive(Clone, Debug, Default)]
pub(crate) struct Host(pub(crate) BTreeMap<u32, u64>);

impl HostMsrs for Host {
    fn get_msr(&self, index: MsrIndex) -> Result<Option<u64>, VmError> {
        let value = self.0.get(&index.0).copied().unwrap_or(0x1234);
        Ok(index.0.is_multiple_of(2).then_some(value))
    }

    fn set_msr(&mut self, index: MsrIndex, value: u64) -> Result<bool, VmError> {
        let takes = index.0.is_multiple_of(2) && value <= KVM_TAKES;
        if takes {
            self.0.insert(index.0, value);
        }
        Ok(takes)
    }
}

/// Reads as its own number, the vCPU and the MSR; takes what is even.
pub(crate) struct Handler(pub(crate) u64);

impl MsrHandler for Handler {
    fn rdmsr(&self, vcpu: VcpuId, index: MsrIndex) -> Result<u64, Gp> {
        Ok(self.0 << 40 | u64::from(vcpu.0) << 32 | u64::from(index.0))
    }

    fn wrmsr(&self, _vcpu: VcpuId, _index: MsrIndex, value: u64) -> Result<(), Gp> {
        if value.is_multiple_of(2) {
            Ok(())
        } else {
            Err(Gp)
        }
    }
}

/// A policy as a list: the last rule that holds an access decides.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) defaults: Defaults,
    pub(crate) rules: Vec<(u32, u32, Access, Rule)>,
}

impl Rules {
    pub(crate) fn image(&self) -> Arc<Image> {
        let mut image = Image::new(self.defaults);
        for &(first, last, access, rule) in &self.rules {
            let set = image.set(first.into(), last.into(), access, rule);
            set.expect("a few rules fit");
        }
        Arc::new(image)
    }

    pub(crate) fn named(&self, index: u32, access: Access) -> Option<Rule> {
        let holds = |&&(first, last, of, _): &&(u32, u32, Access, Rule)| {
            of == access && (first..=last).contains(&index)
        };
        self.rules.iter().rfind(holds).map(|&(.., rule)| rule)
    }

    pub(crate) fn rule(&self, index: u32, access: Access, reason: ExitReason) -> Rule {
        let named = self.named(index, access);
        match (named, reason) {
            (_, ExitReason::FILTER) => named.unwrap_or(self.defaults.known),
            (Some(rule), _) if rule.action != Action::Allow => rule,
            (_, ExitReason::UNKNOWN) => self.defaults.unknown,
            _ => self.defaults.invalid,
        }
    }

    pub(crate) fn reset(&self, scope: Scope, index: u32) -> Option<u64> {
        let resets = Access::ALL.map(|access| match self.named(index, access)?.action {
            Action::Shadow(shadow) if shadow.scope == scope => Some(shadow.reset),
            _ => None,
        });
        resets[0].or(resets[1])
    }
}

/// The VM as a book would tell it.
pub(crate) struct Model {
    pub(crate) host: Host,
    /// All policies that were ever in force, in order.
    pub(crate) policies: Vec<Rules>,
    pub(crate) vcpus: [ModelVcpu; 2],
    /// What was written, by MSR and by the number of the policy since when the register is kept without a break.
    pub(crate) written: BTreeMap<(u32, usize), u64>,
}

#[derive(Default)]
pub(crate) struct ModelVcpu {
    pub(crate) policy: usize,
    pub(crate) written: BTreeMap<u32, u64>,
}

impl Model {
    pub(crate) fn switch(&mut self, vcpu: usize) {
        let newest = self.policies.len() - 1;
        let vcpu = &mut self.vcpus[vcpu];
        let (old, new) = (&self.policies[vcpu.policy], &self.policies[newest]);
        let both_keep = |index: u32| {
            [old, new]
                .iter()
                .all(|it| it.reset(Scope::Vcpu, index).is_some())
        };
        // What is kept keeps its value, and that is the old reset where it was never written.
        vcpu.written = INDICES
            .into_iter()
            .filter(|&index| both_keep(index))
            .filter_map(|index| {
                let written = vcpu.written.get(&index).copied();
                Some((index, written.or(old.reset(Scope::Vcpu, index))?))
            })
            .collect();
        vcpu.policy = newest;
    }

    /// The register that is kept, and what it holds.
    fn register(&mut self, vcpu: usize, scope: Scope, index: u32) -> Option<&mut u64> {
        let policy = self.vcpus[vcpu].policy;
        let reset = self.policies[policy].reset(scope, index)?;
        if scope == Scope::Vcpu {
            return Some(self.vcpus[vcpu].written.entry(index).or_insert(reset));
        }
        let keeps = |number: &usize| self.policies[*number].reset(scope, index).is_some();
        let since = (0..=policy).rev().take_while(keeps).last()?;
        let reset = self.policies[since].reset(scope, index)?;
        Some(self.written.entry((index, since)).or_insert(reset))
    }

    /// What the guest gets for an access, and what is recorded.
    pub(crate) fn answer(
        &mut self,
        vcpu: usize,
        index: u32,
        written: Option<u64>,
        reason: ExitReason,
        rule: Rule,
    ) -> (Result<u64, Gp>, Outcome) {
        let asks_kvm = reason == ExitReason::FILTER;
        let refused = self.policies[self.vcpus[vcpu].policy].defaults.invalid;
        let current = self.host.get_msr(index.into()).expect("it answers");
        let done = |is_done, outcome| if is_done { (Ok(0), outcome) } else { FAULT };
        match (rule.action, written) {
            (Action::Ignore, _) => (Ok(0), Outcome::Ignored),
            (Action::Value(value), None) => (Ok(value), Outcome::Value),
            (Action::Value(_), Some(_)) => (Ok(0), Outcome::Ignored),
            (Action::Shadow(shadow), _) => {
                let Some(register) = self.register(vcpu, shadow.scope, index) else {
                    return (Ok(shadow.reset), Outcome::Shadow);
                };
                let Some(value) = written else {
                    return (Ok(*register), Outcome::Shadow);
                };
                match shadow.writable.merge(*register, value) {
                    Some(merged) => *register = merged,
                    None => return FAULT,
                }
                (Ok(0), Outcome::Shadow)
            }
            (Action::Handler(HandlerId(id @ 0..2)), None) => {
                let number = u64::from(id) << 40 | (vcpu as u64) << 32 | u64::from(index);
                (Ok(number), Outcome::Handled)
            }
            (Action::Handler(HandlerId(0..2)), Some(value)) => {
                done(value % 2 == 0, Outcome::Handled)
            }
            (Action::Mask(mask), None) if asks_kvm && current.is_some() => {
                (Ok(mask.apply(current.unwrap_or(0))), Outcome::Masked)
            }
            (Action::Writable(writable), Some(value)) if asks_kvm && current.is_some() => {
                match writable.merge(current.unwrap_or(0), value) {
                    None => FAULT,
                    Some(merged) if self.set_msr(index, merged) => (Ok(0), Outcome::Masked),
                    Some(_) => self.answer(vcpu, index, written, ExitReason::INVAL, refused),
                }
            }
            (Action::Allow | Action::Mask(_) | Action::Writable(_), _) if asks_kvm => {
                match (current, written) {
                    (Some(current), None) => (Ok(current), Outcome::Forwarded),
                    (_, Some(value)) if self.set_msr(index, value) => (Ok(0), Outcome::Forwarded),
                    _ => self.answer(vcpu, index, written, ExitReason::INVAL, refused),
                }
            }
            _ => FAULT,
        }
    }

    fn set_msr(&mut self, index: u32, value: u64) -> bool {
        self.host.set_msr(index.into(), value).expect("it answers")
    }
}

pub(crate) const FAULT: (Result<u64, Gp>, Outcome) = (Err(Gp), Outcome::Fault);
