//! A policy in the form that answers accesses: [`Image`], a [`Rule`] for each MSR and direction.
//!
//! Finding the rule of an access takes five dependent loads, however many rules there are, and the rule is one
//! cache line. Which accesses reach an image is the filter's business; both are made from one policy. An image
//! says which registers are kept, but holds no value of theirs.

use alloc::collections::btree_map::{self, BTreeMap};
use alloc::vec::Vec;
use core::fmt;
use core::num::NonZeroU32;

use crate::tree::{MsrTree, Number};
use crate::{Access, Action, ExitReason, MsrIndex, Rule, Scope};

/// What happens to an MSR that no rule names. No register is kept for one: a [`Action::Shadow`] here keeps its reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// KVM has not been asked yet: the filter denies what no rule names.
    pub known: Rule,
    /// KVM does not know the MSR.
    pub unknown: Rule,
    /// KVM knows the MSR and refuses the access.
    pub invalid: Rule,
}

impl Defaults {
    /// KVM's own behaviour throughout.
    pub const ALLOW: Self = Self {
        known: Rule::ALLOW,
        unknown: Rule::ALLOW,
        invalid: Rule::ALLOW,
    };
}

/// How many registers an image can keep: 8 bytes each, for each vCPU or VM.
pub const MAX_SHADOWS: usize = 8192;

/// The rule of each MSR and direction.
#[derive(Clone, Debug)]
pub struct Image {
    defaults: Defaults,
    tree: MsrTree,
    /// The defaults, then each different entry.
    entries: Vec<Entry>,
    /// By [`Entry::rule`] and [`Entry::shadow`].
    entry_numbers: BTreeMap<(Rule, Number), Number>,
    shadow_places: BTreeMap<(Scope, MsrIndex), Number>,
    shadow_counts: [Number; 2],
    limits: Vec<NonZeroU32>,
    limit_numbers: BTreeMap<Rule, Number>,
}

/// All that a gate must know to answer an access.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(crate) struct Entry {
    pub(crate) rule: Rule,
    /// The place of the kept register among those of its scope, or [`NO_SHADOW`].
    pub(crate) shadow: Number,
    /// The place of the rule's limit in [`Image::limits`].
    pub(crate) limit: Option<Number>,
}

const NO_SHADOW: Number = Number::MAX;
const MAX_RULES: usize = Number::MAX as usize + 1 - DEFAULTS;

/// An entry is one cache line.
const _: () = assert!(size_of::<Entry>() == 64);

/// Where the defaults are among the entries.
const KNOWN: usize = 0;
const UNKNOWN: usize = 1;
const INVALID: usize = 2;
const DEFAULTS: usize = 3;

impl Image {
    /// An image that names no MSR.
    #[must_use]
    pub fn new(defaults: Defaults) -> Self {
        let mut image = Self {
            defaults,
            tree: MsrTree::new(),
            entries: Vec::new(),
            entry_numbers: BTreeMap::new(),
            shadow_places: BTreeMap::new(),
            shadow_counts: [0; 2],
            limits: Vec::new(),
            limit_numbers: BTreeMap::new(),
        };
        for rule in [defaults.known, defaults.unknown, defaults.invalid] {
            let entry = image.entry_of(rule, NO_SHADOW);
            image.entries.push(entry);
        }
        image
    }

    /// Gives the MSRs from `first` to `last` a rule for one direction, in place of what they had.
    ///
    /// # Errors
    /// The image has no room; the MSRs before the one that did not fit have the rule.
    pub fn set(
        &mut self,
        first: MsrIndex,
        last: MsrIndex,
        access: Access,
        rule: Rule,
    ) -> Result<(), ImageError> {
        if let Action::Shadow(shadow) = rule.action {
            for index in (first.0..=last.0).map(MsrIndex) {
                let place = self.shadow_place(shadow.scope, index)?;
                self.set_entry(index, index, access, rule, place)?;
            }
            return Ok(());
        }
        self.set_entry(first, last, access, rule, NO_SHADOW)
    }

    /// The rule that names this access, if one does.
    #[must_use]
    pub fn named(&self, index: MsrIndex, access: Access) -> Option<Rule> {
        match usize::from(self.tree.get(index, access)) {
            KNOWN => None,
            number => Some(self.entries[number].rule),
        }
    }

    /// What an access that left the guest for `reason` is answered with: the rule that names it, or
    /// else the default. An allowed access that KVM refused is one of an MSR that no rule names.
    #[must_use]
    pub fn rule(&self, index: MsrIndex, access: Access, reason: ExitReason) -> Rule {
        self.entry(index, access, reason).rule
    }

    /// What happens to MSRs that no rule names.
    #[must_use]
    pub const fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    /// [`Image::rule`], and what the gate has for it.
    #[inline]
    pub(crate) fn entry(&self, index: MsrIndex, access: Access, reason: ExitReason) -> &Entry {
        let number = usize::from(self.tree.get(index, access));
        let named = &self.entries[number];
        if reason == ExitReason::FILTER {
            return named; // the first entry is the default
        }
        match named.rule.action {
            Action::Allow => {}
            _ if number == KNOWN => {}
            _ => return named,
        }
        if reason == ExitReason::UNKNOWN {
            &self.entries[UNKNOWN]
        } else {
            self.refused()
        }
    }

    /// What happens where KVM refuses an access. The host path does not say why; but what a policy forwards, KVM knows.
    pub(crate) fn refused(&self) -> &Entry {
        &self.entries[INVALID]
    }

    /// How many places the kept registers of a scope need.
    pub(crate) const fn shadow_count(&self, scope: Scope) -> usize {
        self.shadow_counts[scope as usize] as usize
    }

    /// The kept registers of a scope, each with its place and what it holds at first. Where reads and writes have
    /// different rules, that of reads counts.
    pub(crate) fn shadows(&self, scope: Scope) -> impl Iterator<Item = (MsrIndex, usize, u64)> {
        let all = (scope, MsrIndex(0))..=(scope, MsrIndex(u32::MAX));
        self.shadow_places
            .range(all)
            .filter_map(move |(&(_, index), &place)| {
                let reset = self.reset(scope, index)?;
                Some((index, usize::from(place), reset))
            })
    }

    /// The place of a kept register among those of its scope.
    pub(crate) fn shadow(&self, scope: Scope, index: MsrIndex) -> Option<usize> {
        self.reset(scope, index)?;
        let place = self.shadow_places.get(&(scope, index))?;
        Some(usize::from(*place))
    }

    /// Accesses per second, by [`Entry::limit`].
    pub(crate) fn limits(&self) -> &[NonZeroU32] {
        &self.limits
    }

    /// What a kept register holds at first; `None` where rules that were set later keep none.
    fn reset(&self, scope: Scope, index: MsrIndex) -> Option<u64> {
        Access::ALL
            .iter()
            .find_map(|&access| match self.named(index, access)?.action {
                Action::Shadow(shadow) if shadow.scope == scope => Some(shadow.reset),
                _ => None,
            })
    }

    fn set_entry(
        &mut self,
        first: MsrIndex,
        last: MsrIndex,
        access: Access,
        rule: Rule,
        shadow: Number,
    ) -> Result<(), ImageError> {
        let number = self.entry_number(rule, shadow)?;
        self.tree
            .set(first, last, access, number)
            .ok_or(ImageError::TooManyMsrs)
    }

    fn entry_number(&mut self, rule: Rule, shadow: Number) -> Result<Number, ImageError> {
        let next = self.entries.len();
        let number = match self.entry_numbers.entry((rule, shadow)) {
            btree_map::Entry::Occupied(number) => return Ok(*number.get()),
            btree_map::Entry::Vacant(place) => {
                *place.insert(Number::try_from(next).map_err(|_| ImageError::TooManyRules)?)
            }
        };
        let entry = self.entry_of(rule, shadow);
        self.entries.push(entry);
        Ok(number)
    }

    fn entry_of(&mut self, rule: Rule, shadow: Number) -> Entry {
        let limit = rule.limit_per_second.map(|limit| {
            *self.limit_numbers.entry(rule).or_insert_with(|| {
                self.limits.push(limit);
                Number::try_from(self.limits.len() - 1).expect("no more limits than entries")
            })
        });
        Entry {
            rule,
            shadow,
            limit,
        }
    }

    fn shadow_place(&mut self, scope: Scope, index: MsrIndex) -> Result<Number, ImageError> {
        let is_full = self.shadow_places.len() == MAX_SHADOWS;
        match self.shadow_places.entry((scope, index)) {
            btree_map::Entry::Occupied(place) => Ok(*place.get()),
            btree_map::Entry::Vacant(_) if is_full => Err(ImageError::TooManyShadows),
            btree_map::Entry::Vacant(place) => {
                let count = &mut self.shadow_counts[scope as usize];
                *count += 1;
                Ok(*place.insert(*count - 1))
            }
        }
    }
}

/// An image has no room for a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageError {
    /// More than 65,533 different rules; a kept register is one of its own.
    TooManyRules,
    /// More than [`MAX_SHADOWS`] kept registers.
    TooManyShadows,
    /// The MSRs lie in more than 65,535 groups of 64.
    TooManyMsrs,
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyRules => write!(f, "more than {MAX_RULES} different rules"),
            Self::TooManyShadows => write!(f, "more than {MAX_SHADOWS} registers to keep"),
            Self::TooManyMsrs => write!(f, "MSRs in more than {} groups of 64", Number::MAX),
        }
    }
}

impl core::error::Error for ImageError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{OnViolation, Shadow, Writable};

    const FAULT: Rule = Rule::quiet(Action::Fault);

    fn image(rules: &[(u32, u32, Access, Rule)]) -> Image {
        let mut image = Image::new(Defaults::ALLOW);
        for &(first, last, access, rule) in rules {
            image
                .set(MsrIndex(first), MsrIndex(last), access, rule)
                .unwrap();
        }
        image
    }

    #[test]
    fn later_rule_replaces_the_earlier() {
        let value = Rule::logged(Action::Value(7));
        let image = image(&[
            (0x10, 0x1f, Access::Read, FAULT),
            (0x18, 0x18, Access::Read, value),
        ]);
        assert_eq!(image.named(MsrIndex(0x17), Access::Read), Some(FAULT));
        assert_eq!(image.named(MsrIndex(0x18), Access::Read), Some(value));
    }

    #[test]
    fn allowed_access_that_kvm_refused_takes_the_default() {
        let mut image = Image::new(Defaults {
            known: FAULT,
            unknown: Rule::quiet(Action::Ignore),
            invalid: Rule::logged(Action::Fault),
        });
        let index = MsrIndex(0x1a0);
        image.set(index, index, Access::Read, Rule::ALLOW).unwrap();
        let action = |access, reason| image.rule(index, access, reason);
        assert_eq!(action(Access::Read, ExitReason::FILTER), Rule::ALLOW);
        assert_eq!(
            action(Access::Read, ExitReason::UNKNOWN),
            image.defaults.unknown
        );
        assert_eq!(
            action(Access::Read, ExitReason::INVAL),
            image.defaults.invalid
        );
        assert_eq!(action(Access::Write, ExitReason::FILTER), FAULT);
        assert_eq!(
            action(Access::Read, ExitReason(8)),
            image.defaults.invalid,
            "a reason without a name"
        );
    }

    #[test]
    fn whole_index_space_is_refused() {
        let mut image = Image::new(Defaults::ALLOW);
        let whole = (MsrIndex(0), MsrIndex(u32::MAX));
        let error = image.set(whole.0, whole.1, Access::Read, FAULT);
        assert_eq!(error, Err(ImageError::TooManyMsrs));
    }

    #[test]
    fn more_rules_than_numbers_are_refused() {
        let mut image = Image::new(Defaults::ALLOW);
        let index = MsrIndex(1);
        let mut set = |value| {
            image.set(
                index,
                index,
                Access::Read,
                Rule::quiet(Action::Value(value)),
            )
        };
        for value in 0..65533 {
            set(value).unwrap();
        }
        assert_eq!(set(65533), Err(ImageError::TooManyRules));
        assert_eq!(set(5), Ok(()), "a rule that is known needs no room");
    }

    fn shadow(scope: Scope, reset: u64) -> Rule {
        Rule::quiet(Action::Shadow(Shadow {
            scope,
            reset,
            writable: Writable {
                bits: u64::MAX,
                on_violation: OnViolation::Fault,
            },
        }))
    }

    #[test]
    fn register_is_kept_once_for_both_directions_and_per_scope() {
        let image = image(&[
            (0x10, 0x12, Access::Write, shadow(Scope::Vm, 1)),
            (0x10, 0x11, Access::Read, shadow(Scope::Vm, 2)),
            (0x12, 0x12, Access::Read, shadow(Scope::Vcpu, 3)),
        ]);
        let kept = |scope| image.shadows(scope).collect::<Vec<_>>();
        let [first, second, third] = [0x10, 0x11, 0x12].map(MsrIndex);
        assert_eq!(
            kept(Scope::Vm),
            [(first, 0, 2), (second, 1, 2), (third, 2, 1)]
        );
        assert_eq!(kept(Scope::Vcpu), [(third, 0, 3)]);
        assert_eq!(image.shadow(Scope::Vm, second), Some(1));
        assert_eq!(image.shadow(Scope::Vcpu, second), None);
    }

    #[test]
    fn register_whose_rules_were_replaced_is_not_kept() {
        let image = image(&[
            (0x10, 0x10, Access::Read, shadow(Scope::Vm, 1)),
            (0x10, 0x10, Access::Read, FAULT),
        ]);
        assert_eq!(image.shadows(Scope::Vm).count(), 0);
        assert_eq!(image.shadow(Scope::Vm, MsrIndex(0x10)), None);
    }

    #[test]
    fn more_registers_than_a_gate_shall_keep_are_refused() {
        let mut image = Image::new(Defaults::ALLOW);
        let rule = shadow(Scope::Vcpu, 0);
        let whole = (MsrIndex(0), MsrIndex(u32::MAX));
        let error = image.set(whole.0, whole.1, Access::Read, rule).unwrap_err();
        assert_eq!(error, ImageError::TooManyShadows);
        assert_eq!(image.shadows(Scope::Vcpu).count(), MAX_SHADOWS);
        let last = MsrIndex(8191);
        assert_eq!(image.set(last, last, Access::Write, rule), Ok(()));
    }
}
