//! A policy in the form that answers accesses: [`Image`], a [`Rule`] for each MSR and direction.
//!
//! Finding the rule of an access takes four dependent loads, however many rules there are. Which
//! accesses reach an image is the filter's business; both are made from one policy.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

use crate::{Access, Action, ExitReason, MsrIndex, Rule};

/// What happens to an MSR that no rule names.
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

/// The number of a node or rule; 0 is the one that says "nothing here".
type Number = u16;
type Node = [Number; 256];
/// The rules of 64 neighbours, for reads and for writes.
type Leaf = [[Number; 2]; 64];

/// The rule of each MSR and direction.
#[derive(Clone, Debug)]
pub struct Image {
    defaults: Defaults,
    /// By index bits 31:22, 21:14, 13:6 and 5:0.
    root: Vec<Number>,
    upper: Vec<Node>,
    lower: Vec<Node>,
    leaves: Vec<Leaf>,
    /// By leaf: which 64 of the kept registers are its MSRs'; 0 where it has none.
    blocks: Vec<Number>,
    block_count: Number,
    rules: Vec<Rule>,
    numbers: BTreeMap<Rule, Number>,
}

impl Image {
    /// An image that names no MSR.
    #[must_use]
    pub fn new(defaults: Defaults) -> Self {
        Self {
            defaults,
            root: alloc::vec![0; 1024],
            upper: alloc::vec![[0; 256]],
            lower: alloc::vec![[0; 256]],
            leaves: alloc::vec![[[0; 2]; 64]],
            blocks: alloc::vec![0],
            block_count: 0,
            rules: alloc::vec![Rule::ALLOW],
            numbers: BTreeMap::new(),
        }
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
        let number = self.number(rule)?;
        for page in first.0 / 64..=last.0 / 64 {
            let leaf = self.leaf_mut(page)?;
            if let Action::Shadow(_) = rule.action
                && self.blocks[leaf] == 0
            {
                self.block_count += 1;
                self.blocks[leaf] = self.block_count;
            }
            let start = first.0.saturating_sub(page * 64).min(63) as usize;
            let end = (last.0 - page * 64).min(63) as usize;
            for slot in &mut self.leaves[leaf][start..=end] {
                slot[access as usize] = number;
            }
        }
        Ok(())
    }

    /// The rule that names this access, if one does.
    #[must_use]
    pub fn named(&self, index: MsrIndex, access: Access) -> Option<Rule> {
        let (leaf, slot) = self.place(index);
        match self.leaves[leaf][slot][access as usize] {
            0 => None,
            number => Some(self.rules[usize::from(number)]),
        }
    }

    /// Which of [`Image::shadow_count`] registers is kept for `index`, if its neighbours have any.
    #[must_use]
    pub fn shadow(&self, index: MsrIndex) -> Option<usize> {
        let (leaf, slot) = self.place(index);
        let block = usize::from(self.blocks[leaf]);
        Some(block.checked_sub(1)? * 64 + slot)
    }

    /// Room for how many registers a gate must have.
    #[must_use]
    pub const fn shadow_count(&self) -> usize {
        self.block_count as usize * 64
    }

    /// What an access that left the guest for `reason` is answered with: the rule that names it, or
    /// else the default. An allowed access that KVM refused is one of an MSR that no rule names.
    #[must_use]
    pub fn rule(&self, index: MsrIndex, access: Access, reason: ExitReason) -> Rule {
        let named = self.named(index, access);
        if reason == ExitReason::FILTER {
            return named.unwrap_or(self.defaults.known);
        }
        match named {
            Some(rule) if rule.action != Action::Allow => rule,
            _ if reason == ExitReason::UNKNOWN => self.defaults.unknown,
            _ => self.defaults.invalid,
        }
    }

    /// What happens to MSRs that no rule names.
    #[must_use]
    pub const fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    fn place(&self, index: MsrIndex) -> (usize, usize) {
        let [top, upper, lower, slot] = digits(index.0);
        let node = usize::from(self.root[top]);
        let node = usize::from(self.upper[node][upper]);
        (usize::from(self.lower[node][lower]), slot)
    }

    fn number(&mut self, rule: Rule) -> Result<Number, ImageError> {
        if let Some(&number) = self.numbers.get(&rule) {
            return Ok(number);
        }
        let number = append(&mut self.rules, rule).ok_or(ImageError::TooManyRules)?;
        self.numbers.insert(rule, number);
        Ok(number)
    }

    /// The leaf of 64 neighbours, made where there is none.
    fn leaf_mut(&mut self, page: u32) -> Result<usize, ImageError> {
        let [top, upper, lower, _] = digits(page * 64);
        let node = child(&mut self.root[top], &mut self.upper, [0; 256])?;
        let node = child(&mut self.upper[node][upper], &mut self.lower, [0; 256])?;
        let leaf = child(&mut self.lower[node][lower], &mut self.leaves, [[0; 2]; 64])?;
        self.blocks.resize(self.leaves.len(), 0);
        Ok(leaf)
    }
}

/// Where `index` is found at each level.
const fn digits(index: u32) -> [usize; 4] {
    [
        (index >> 22) as usize,
        (index >> 14 & 0xff) as usize,
        (index >> 6 & 0xff) as usize,
        (index & 0x3f) as usize,
    ]
}

/// The node that `link` leads to, made where it leads nowhere.
fn child<T>(link: &mut Number, nodes: &mut Vec<T>, empty: T) -> Result<usize, ImageError> {
    if *link == 0 {
        *link = append(nodes, empty).ok_or(ImageError::TooManyMsrs)?;
    }
    Ok(usize::from(*link))
}

fn append<T>(items: &mut Vec<T>, item: T) -> Option<Number> {
    let number = Number::try_from(items.len()).ok()?;
    items.push(item);
    Some(number)
}

/// An image has no room for a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageError {
    /// More than 65,535 different rules.
    TooManyRules,
    /// The MSRs lie in more than 65,535 groups of 64.
    TooManyMsrs,
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyRules => write!(f, "more than {} different rules", Number::MAX),
            Self::TooManyMsrs => write!(f, "MSRs in more than {} groups of 64", Number::MAX),
        }
    }
}

impl core::error::Error for ImageError {}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn range_across_leaves_names_its_ends_and_not_its_neighbours() {
        let image = image(&[(0x3e, 0x4081, Access::Read, FAULT)]);
        for index in [0x3e, 0x3f, 0x40, 0x4000, 0x4081] {
            assert_eq!(
                image.named(MsrIndex(index), Access::Read),
                Some(FAULT),
                "{index:#x}"
            );
            assert_eq!(image.named(MsrIndex(index), Access::Write), None);
        }
        for index in [0, 0x3d, 0x4082, 0x40_003e, u32::MAX] {
            assert_eq!(
                image.named(MsrIndex(index), Access::Read),
                None,
                "{index:#x}"
            );
        }
    }

    #[test]
    fn last_index_can_be_named() {
        let image = image(&[(u32::MAX, u32::MAX, Access::Write, FAULT)]);
        assert_eq!(image.named(MsrIndex(u32::MAX), Access::Write), Some(FAULT));
        assert_eq!(image.named(MsrIndex(u32::MAX - 1), Access::Write), None);
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
    fn whole_index_space_is_refused_in_bounded_room() {
        let mut image = Image::new(Defaults::ALLOW);
        let error = image
            .set(MsrIndex(0), MsrIndex(u32::MAX), Access::Read, FAULT)
            .unwrap_err();
        assert_eq!(error, ImageError::TooManyMsrs);
        assert!(image.leaves.len() <= 1 << 16);
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
        for value in 0..65535 {
            set(value).unwrap();
        }
        assert_eq!(set(65535), Err(ImageError::TooManyRules));
        assert_eq!(set(5), Ok(()), "a rule that is known needs no room");
    }
}
