//! What the learned policy does with each MSR: one [`Choice`] for each direction.

use std::collections::BTreeMap;

use msrgate_core::{Access, Action, MsrIndex, Outcome};

use super::{Observations, Seen};

/// An MSR, by [`Access`].
pub(super) type Msr = (MsrIndex, [Choice; 2]);

/// What was seen of one MSR in one direction, and what the policy makes of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Choice {
    /// `None`: the default, #GP.
    pub(super) action: Option<Action>,
    /// How many accesses the action answers as they were.
    pub(super) count: u64,
    /// How many were answered otherwise, and how.
    pub(super) others: BTreeMap<Outcome, u64>,
    /// Nothing could be seen of it.
    pub(super) is_unseen: bool,
}

impl Choice {
    /// Some of it was answered otherwise than it will be. #GP beside what KVM does is KVM's, and comes again.
    pub(super) fn is_ambiguous(&self) -> bool {
        let is_ours = matches!(
            self.action,
            Some(Action::Value(_) | Action::Ignore | Action::Shadow(_))
        );
        let differs = |outcome: &Outcome| is_ours || *outcome != Outcome::Fault;
        self.action.is_some() && self.others.keys().any(differs)
    }

    /// A rule says it.
    pub(super) fn is_decided(&self) -> bool {
        self.action.is_some()
    }

    /// It was answered, and is not any more.
    pub(super) fn is_lost(&self) -> bool {
        self.action.is_none() && self.others.keys().any(|&other| other != Outcome::Fault)
    }

    /// It was #GP, and still is.
    pub(super) fn is_refused(&self) -> bool {
        self.action.is_none()
            && self.others.keys().all(|&other| other == Outcome::Fault)
            && !self.others.is_empty()
    }

    /// No rule can say it beside what the other direction does.
    fn give_up(&mut self, outcome: Outcome) {
        self.action = None;
        let sum = self.others.entry(outcome).or_default();
        *sum = sum.saturating_add(std::mem::take(&mut self.count));
    }

    /// No rule can say more of what no filter sees.
    fn leave_to_kvm(&mut self) {
        if self.action == Some(Action::Ignore) {
            self.give_up(Outcome::Ignored);
        }
    }

    fn of(seen: &[(Seen, u64)], is_unseen: bool) -> Self {
        let mut counts: BTreeMap<Action, u64> = BTreeMap::new();
        for (seen, count) in seen {
            if let Some(action) = seen.action.filter(|&action| action != Action::Fault) {
                let sum = counts.entry(action).or_default();
                *sum = sum.saturating_add(*count);
            }
        }
        let is_known = !seen.iter().any(|(seen, _)| seen.is_unknown);
        if is_unseen && is_known {
            counts.entry(Action::Allow).or_default();
        }
        // Where KVM did it once, the guest needs KVM. Otherwise the most frequent answer, and the first of two.
        let action = counts.contains_key(&Action::Allow).then_some(Action::Allow);
        let most = counts.iter().rev().max_by_key(|&(_, count)| count);
        let action = action.or(most.map(|(&action, _)| action));
        let mut others = BTreeMap::new();
        let is_other = |seen: &Seen| action.is_none() || seen.action != action;
        for (seen, count) in seen.iter().filter(|(seen, _)| is_other(seen)) {
            let sum: &mut u64 = others.entry(seen.outcome).or_default();
            *sum = sum.saturating_add(*count);
        }
        Self {
            count: action.map_or(0, |action| counts[&action]),
            is_unseen: action == Some(Action::Allow) && counts[&Action::Allow] == 0,
            action,
            others,
        }
    }
}

/// Every MSR that was accessed, or may have been.
pub(super) fn choose(observations: &Observations) -> Vec<Msr> {
    let mut seen: BTreeMap<(MsrIndex, Access), Vec<(Seen, u64)>> = BTreeMap::new();
    for access in &observations.unseen {
        seen.insert(*access, Vec::new());
    }
    for (&(index, access, how), &count) in &observations.counts {
        seen.entry((index, access)).or_default().push((how, count));
    }
    let mut msrs: BTreeMap<MsrIndex, [Choice; 2]> = BTreeMap::new();
    for ((index, access), seen) in seen {
        let is_unseen = observations.unseen.contains(&(index, access));
        msrs.entry(index).or_default()[access as usize] = Choice::of(&seen, is_unseen);
    }
    let mut msrs: Vec<Msr> = msrs.into_iter().collect();
    for (index, choices) in &mut msrs {
        if index.is_x2apic() {
            choices.iter_mut().for_each(Choice::leave_to_kvm);
        }
        pair(choices);
    }
    msrs
}

/// A register that the gate keeps is kept for both directions.
fn pair(choices: &mut [Choice; 2]) {
    for access in Access::ALL {
        let [one, other] = [access as usize, 1 - access as usize];
        let Some(shadow @ Action::Shadow(_)) = choices[one].action else {
            continue;
        };
        match choices[other].action {
            None => choices[other].action = Some(shadow),
            Some(action) if action == shadow => {}
            Some(_) => choices[one].give_up(Outcome::Shadow),
        }
    }
}

/// The accesses of which `is` is true.
pub(super) fn accesses(msrs: &[Msr], is: fn(&Choice) -> bool) -> Vec<(MsrIndex, Access)> {
    let all = msrs
        .iter()
        .flat_map(|(index, choices)| Access::ALL.map(|access| (*index, access, choices)));
    all.filter(|(_, access, choices)| is(&choices[*access as usize]))
        .map(|(index, access, _)| (index, access))
        .collect()
}
