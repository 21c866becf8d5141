//! What differs in meaning between two policies: [`Compiled::compare`].
//!
//! Two texts that let every access do the same are equal, however they are written. MSRs are not walked one by
//! one: the rules are laid over each other, so that the whole index space costs no more than the rules.

use msrgate_core::{Access, Action, MsrIndex, OnViolation, Rule, Scope, Writable};

use crate::compile::Compiled;
use crate::resolve::Segment;

/// Accesses that two policies let do different things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PolicyDifference {
    /// Which MSRs.
    pub msrs: Msrs,
    /// Which direction; `None` is both.
    pub access: Option<Access>,
    /// What the two policies say, in the order in which they were given.
    pub sides: [Rule; 2],
}

/// MSRs of which two policies say different things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Msrs {
    /// Those that no rule of either names, where KVM handles them.
    Unnamed,
    /// Those that KVM does not know, where no rule of either answers.
    Unknown,
    /// Those of which KVM refuses the access, where no rule of either answers.
    Invalid,
    /// From one to another.
    Range {
        /// The first one.
        first: MsrIndex,
        /// The last one.
        last: MsrIndex,
    },
}

impl Compiled {
    /// What differs: first the defaults, then by index. Both must have been compiled for the same handlers.
    #[must_use]
    pub fn compare(one: &Self, other: &Self) -> Vec<PolicyDifference> {
        let defaults = [one, other].map(|policy| policy.image.defaults());
        let words = [
            (Msrs::Unnamed, defaults.map(|defaults| defaults.known)),
            (Msrs::Unknown, defaults.map(|defaults| defaults.unknown)),
            (Msrs::Invalid, defaults.map(|defaults| defaults.invalid)),
        ];
        let mut differences: Vec<PolicyDifference> = words
            .into_iter()
            .filter(|(_, sides)| sides[0] != sides[1])
            .map(|(msrs, sides)| PolicyDifference {
                msrs,
                access: None,
                sides,
            })
            .collect();
        differences.extend(pieces(one, other).iter().flat_map(Piece::differences));
        differences
    }
}

/// Neighbours of which the same is said.
struct Piece {
    first: MsrIndex,
    last: MsrIndex,
    /// By [`Access`]: where the policies differ, what they say.
    sides: [Option<[Rule; 2]>; 2],
}

impl Piece {
    fn differences(&self) -> Vec<PolicyDifference> {
        let difference = |access, sides| PolicyDifference {
            msrs: Msrs::Range {
                first: self.first,
                last: self.last,
            },
            access,
            sides,
        };
        match self.sides {
            [Some(read), Some(write)] if read == write => vec![difference(None, read)],
            sides => Access::ALL
                .into_iter()
                .zip(sides)
                .filter_map(|(access, sides)| Some(difference(Some(access), sides?)))
                .collect(),
        }
    }
}

/// The MSRs that a rule of either names, from one end of a rule to the next.
fn pieces(one: &Compiled, other: &Compiled) -> Vec<Piece> {
    let policies = [one, other];
    let mut bounds: Vec<u64> = X2APIC.to_vec();
    for access in Access::ALL {
        for segment in policies.iter().flat_map(|policy| policy.segments(access)) {
            bounds.push(segment.first.0.into());
            bounds.push(u64::from(segment.last.0) + 1);
        }
    }
    bounds.sort_unstable();
    bounds.dedup();
    let mut pieces: Vec<Piece> = Vec::new();
    for pair in bounds.windows(2) {
        let ends = (u32::try_from(pair[0]), u32::try_from(pair[1] - 1));
        let (Ok(first), Ok(last)) = ends else {
            continue;
        };
        let first = MsrIndex(first);
        let sides = Access::ALL.map(|access| sides(policies, first, access));
        match pieces.last_mut() {
            Some(before)
                if before.last.0.checked_add(1) == Some(first.0) && before.sides == sides =>
            {
                before.last = MsrIndex(last);
            }
            _ => pieces.push(Piece {
                first,
                last: MsrIndex(last),
                sides,
            }),
        }
    }
    pieces
}

/// What two policies say of an MSR that a rule of either names, if that differs.
fn sides(policies: [&Compiled; 2], index: MsrIndex, access: Access) -> Option<[Rule; 2]> {
    let rules = policies.map(|policy| rule(policy.segments(access), index));
    if index.is_x2apic() || rules == [None, None] {
        return None;
    }
    let sides = [0, 1].map(|side| {
        let known = policies[side].image.defaults().known;
        plain(rules[side].unwrap_or(known), access)
    });
    (sides[0] != sides[1]).then_some(sides)
}

/// The window that no filter sees, and what is behind it.
const X2APIC: [u64; 2] = [0x800, 0x900];

/// The rule of the segment that holds `index`.
fn rule(segments: &[Segment], index: MsrIndex) -> Option<Rule> {
    let at = segments.partition_point(|segment| segment.last < index);
    let segment = segments.get(at).filter(|segment| segment.first <= index)?;
    Some(segment.rule)
}

/// Without what makes no difference in this direction.
fn plain(rule: Rule, access: Access) -> Rule {
    let action = match (rule.action, access) {
        (Action::Value(0), _) | (Action::Value(_), Access::Write) => Action::Ignore,
        (action, _) => action,
    };
    Rule { action, ..rule }
}

impl PolicyDifference {
    /// What each of the two policies does, in a few words. `handlers`: what those are called that they name.
    #[must_use]
    pub fn describe(&self, handlers: &[&str]) -> [String; 2] {
        self.sides.map(|rule| {
            let mut text = describe(rule.action, handlers);
            if let Some(limit) = rule.limit_per_second {
                text += &format!(", at most {limit}/s");
            }
            if rule.log {
                text += ", logged";
            }
            text
        })
    }
}

fn describe(action: Action, handlers: &[&str]) -> String {
    let writable = |writable: Writable| {
        let otherwise = match writable.on_violation {
            OnViolation::Fault => "else fault",
            OnViolation::Ignore => "else kept",
        };
        format!("writable {:#x}, {otherwise}", writable.bits)
    };
    match action {
        Action::Allow => "allow".to_owned(),
        Action::Fault => "fault".to_owned(),
        Action::Ignore => "ignore".to_owned(),
        Action::Value(value) => format!("= {value:#x}"),
        Action::Mask(mask) => format!("mask {:#x} = {:#x}", mask.replaced, mask.ones),
        Action::Writable(bits) => writable(bits),
        Action::Shadow(shadow) => {
            let scope = match shadow.scope {
                Scope::Vcpu => "vCPU",
                Scope::Vm => "VM",
            };
            let writable = writable(shadow.writable);
            format!("shadow of the {scope} from {:#x}, {writable}", shadow.reset)
        }
        Action::Handler(id) => match handlers.get(usize::from(id.0)) {
            Some(name) => (*name).to_owned(),
            None => format!("handler {}", id.0),
        },
        _ => "something that is not known here".to_owned(),
    }
}
