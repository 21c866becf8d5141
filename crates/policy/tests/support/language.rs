//! Random policies as text, and what they mean: the language's own words, one access at a time.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use msrgate_core::{Access, MsrGroup, MsrIndex, msr_groups};
use msrgate_policy::{HostPath, host_path};
use proptest::prelude::*;

/// What every MSR holds that KVM handles.
pub(crate) const KVMS_VALUE: u64 = 0x5eed;
/// What the guest writes.
pub(crate) const WRITTEN: u64 = 0x5;
/// What the handler reads.
pub(crate) const HANDLED: u64 = 0xc10c;

/// What a guest sees. `Native`: KVM's own doing, whether deflected and forwarded or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Native,
    Fault,
    /// A read of 0, or a write that was dropped.
    Zero,
    Value(u64),
    /// What a write has left, in KVM or in a register that the gate keeps.
    Kept(u64),
}

/// What KVM would do with the access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kvm {
    Handles,
    DoesNotKnow,
    Refuses,
}

impl Kvm {
    pub(crate) const ALL: [Self; 3] = [Self::Handles, Self::DoesNotKnow, Self::Refuses];
}

#[derive(Clone, Debug)]
pub(crate) struct PolicyText {
    known: &'static str,
    unknown: Option<&'static str>,
    invalid: Option<&'static str>,
    rules: Vec<RuleText>,
}

#[derive(Clone, Debug)]
struct RuleText {
    msrs: Vec<Msrs>,
    does: Does,
    log: bool,
    limit: bool,
}

#[derive(Clone, Copy, Debug)]
enum Msrs {
    Single(u32),
    Range(u32, u32),
    Group(&'static str),
}

#[derive(Clone, Copy, Debug)]
enum Does {
    Directions(Option<ActionText>, Option<ActionText>),
    Shadow {
        reset: u64,
        writable: u64,
        drops: bool,
    },
}

#[derive(Clone, Copy, Debug)]
enum ActionText {
    Word(&'static str),
    Value(u64),
    /// Digits from bit 3 on.
    Mask([char; 4]),
    Writable {
        bits: u64,
        drops: bool,
    },
    Handler,
}

impl Msrs {
    fn source(self) -> String {
        match self {
            Self::Single(index) => format!("{index:#x}"),
            Self::Range(first, last) => format!("'{first:#x}..={last:#x}'"),
            Self::Group(name) => format!("'@{name}'"),
        }
    }

    /// How narrow it is, if it holds `index`.
    fn rank(self, index: u32) -> Option<(u8, u32)> {
        match self {
            Self::Single(single) => (single == index).then_some((0, 0)),
            Self::Range(first, last) => {
                let rank = (u8::from(first != last), last - first);
                (first..=last).contains(&index).then_some(rank)
            }
            Self::Group(name) => {
                let members = members(name);
                let count = u32::try_from(members.len()).expect("few");
                members.contains(&index).then_some((2, count))
            }
        }
    }
}

fn members(name: &str) -> &'static [u32] {
    static MEMBERS: LazyLock<BTreeMap<&str, Vec<u32>>> = LazyLock::new(|| {
        let members = |group: &MsrGroup| group.members().map(|row| row.index.0).collect();
        let groups = msr_groups().iter();
        groups.map(|group| (group.name, members(group))).collect()
    });
    &MEMBERS[name]
}

impl ActionText {
    fn source(self) -> String {
        match self {
            Self::Word(word) => format!("'{word}'"),
            Self::Value(value) => format!("{{ value = {value:#x} }}"),
            Self::Mask(digits) => format!("{{ mask = '0bx…{}' }}", String::from_iter(digits)),
            Self::Writable { bits, drops } => format!("{{ {} }}", writable(bits, drops)),
            Self::Handler => "{ handler = 'clock' }".to_owned(),
        }
    }
}

fn writable(bits: u64, drops: bool) -> String {
    let word = if drops { "ignore" } else { "fault" };
    format!("writable = {bits:#x}, on-violation = '{word}'")
}

impl RuleText {
    fn source(&self) -> String {
        let msrs: Vec<String> = self.msrs.iter().map(|msrs| msrs.source()).collect();
        let mut text = format!(
            "[[rule]]\nmsr = [{}]\nlog = {}\n",
            msrs.join(", "),
            self.log
        );
        if self.limit {
            text += "limit = '1000000/s'\n";
        }
        match self.does {
            Does::Directions(read, write) => {
                for (key, action) in [("read", read), ("write", write)] {
                    if let Some(action) = action {
                        text += &format!("{key} = {}\n", action.source());
                    }
                }
            }
            Does::Shadow {
                reset,
                writable: bits,
                drops,
            } => {
                let writable = writable(bits, drops);
                text += &format!("shadow = {{ reset = {reset:#x}, {writable} }}\n");
            }
        }
        text
    }

    fn speaks_of(&self, access: Access) -> bool {
        match self.does {
            Does::Shadow { .. } => true,
            Does::Directions(read, write) => match access {
                Access::Read => read.is_some(),
                Access::Write => write.is_some(),
            },
        }
    }
}

impl PolicyText {
    pub(crate) fn source(&self) -> String {
        let mut text = format!("version = 1\n[defaults]\nknown = '{}'\n", self.known);
        for (key, word) in [("unknown", self.unknown), ("invalid", self.invalid)] {
            if let Some(word) = word {
                text += &format!("{key} = '{word}'\n");
            }
        }
        text + &self.rules.iter().map(RuleText::source).collect::<String>()
    }

    /// How many times the rules name the access.
    pub(crate) fn naming_count(&self, index: u32, access: Access) -> usize {
        self.naming(index, access).count()
    }

    /// The rules that name the access, with how narrow they are.
    fn naming(&self, index: u32, access: Access) -> impl Iterator<Item = ((u8, u32), Does)> {
        self.rules
            .iter()
            .filter(move |rule| rule.speaks_of(access))
            .flat_map(move |rule| {
                let ranks = rule.msrs.iter().filter_map(move |msrs| msrs.rank(index));
                ranks.map(|rank| (rank, rule.does))
            })
    }

    /// KVM surely knows the MSRs whose host path is the same.
    pub(crate) fn is_possible(&self, index: u32, access: Access, kvm: Kvm) -> bool {
        kvm != Kvm::DoesNotKnow || host_path(MsrIndex(index), access) != HostPath::Same
    }

    pub(crate) fn meaning(&self, index: u32, access: Access, kvm: Kvm) -> Seen {
        let narrowest = self.naming(index, access).min_by_key(|(rank, _)| *rank);
        let is_exempt = (0x800..=0x8ff).contains(&index);
        let decided = match narrowest {
            Some((
                _,
                Does::Shadow {
                    reset,
                    writable,
                    drops,
                },
            )) if !is_exempt => {
                return match access {
                    Access::Read if reset == 0 => Seen::Zero,
                    Access::Read => Seen::Value(reset),
                    Access::Write => changed(reset, writable, drops),
                };
            }
            Some((_, Does::Directions(read, write))) if !is_exempt => match access {
                Access::Read => read,
                Access::Write => write,
            },
            _ if is_exempt => Some(ActionText::Word("allow")),
            _ => Some(ActionText::Word(self.known)),
        };
        let decided = decided.expect("it speaks of this direction");
        let refused = if self.known == "allow" {
            "fault"
        } else {
            self.known
        };
        let word = match (decided, kvm) {
            (ActionText::Value(value), _) => return Seen::Value(value),
            (ActionText::Handler, _) if access == Access::Read => return Seen::Value(HANDLED),
            (ActionText::Handler, _) => "ignore",
            (ActionText::Mask(digits), Kvm::Handles) => return masked(digits),
            (ActionText::Writable { bits, drops }, Kvm::Handles) => {
                return changed(KVMS_VALUE, bits, drops);
            }
            (ActionText::Word("allow"), Kvm::Handles) => return Seen::Native,
            (ActionText::Word(word @ ("fault" | "ignore")), _) => word,
            (_, Kvm::DoesNotKnow) => self.unknown.unwrap_or(refused),
            (_, _) => self.invalid.unwrap_or(refused),
        };
        match word {
            "ignore" => Seen::Zero,
            _ => Seen::Fault,
        }
    }

    /// Where something may change: at the ends of everything named, and next to them.
    pub(crate) fn probes(&self) -> Vec<u32> {
        let msrs = self.rules.iter().flat_map(|rule| &rule.msrs);
        let ends = msrs.flat_map(|msrs| match *msrs {
            Msrs::Single(index) => vec![index],
            Msrs::Range(first, last) => vec![first, last],
            Msrs::Group(name) => members(name).iter().copied().step_by(5).collect(),
        });
        ends.flat_map(|end| [end.wrapping_sub(1), end, end.wrapping_add(1), end ^ 0x40])
            .chain([0, 0x7ff, 0x800, 0x8ff, 0x900, u32::MAX])
            .collect()
    }
}

/// Bit by bit, from bit 3 on; the others stay.
fn masked(digits: [char; 4]) -> Seen {
    let mut value = KVMS_VALUE;
    for (bit, digit) in (0..4).rev().zip(digits) {
        match digit {
            '0' => value &= !(1 << bit),
            '1' => value |= 1 << bit,
            _ => {}
        }
    }
    Seen::Value(value)
}

/// What a register that held `before` holds after the guest's write, bit by bit.
fn changed(before: u64, writable: u64, drops: bool) -> Seen {
    let mut after = before;
    for bit in (0..64).map(|bit| 1u64 << bit) {
        if before & bit == WRITTEN & bit {
            continue;
        }
        if writable & bit != 0 {
            after ^= bit;
        } else if !drops {
            return Seen::Fault;
        }
    }
    Seen::Kept(after)
}

fn words(words: &'static [&'static str]) -> impl Strategy<Value = &'static str> {
    prop::sample::select(words)
}

fn word_action() -> impl Strategy<Value = ActionText> {
    words(&["allow", "fault", "ignore"]).prop_map(ActionText::Word)
}

fn read() -> impl Strategy<Value = ActionText> {
    prop_oneof![
        3 => word_action(),
        2 => (1u64..).prop_map(ActionText::Value),
        1 => prop::array::uniform4(prop::sample::select(vec!['0', '1', 'x'])).prop_map(ActionText::Mask),
        1 => Just(ActionText::Handler),
    ]
}

/// Bits that let the guest's write through, or do not.
fn bits() -> impl Strategy<Value = u64> {
    prop_oneof![
        0u64..16,
        Just(0xffff),
        Just(u64::MAX),
        Just(KVMS_VALUE ^ WRITTEN)
    ]
}

fn write() -> impl Strategy<Value = ActionText> {
    prop_oneof![
        3 => word_action(),
        1 => (bits(), any::<bool>()).prop_map(|(bits, drops)| ActionText::Writable { bits, drops }),
        1 => Just(ActionText::Handler),
    ]
}

fn does() -> impl Strategy<Value = Does> {
    let directions = (prop::option::of(read()), prop::option::of(write()))
        .prop_filter("a rule does something", |(read, write)| {
            read.is_some() || write.is_some()
        })
        .prop_map(|(read, write)| Does::Directions(read, write));
    let shadow = (
        prop_oneof![Just(0), any::<u64>(), Just(4)],
        bits(),
        any::<bool>(),
    )
        .prop_map(|(reset, writable, drops)| Does::Shadow {
            reset,
            writable,
            drops,
        });
    prop_oneof![5 => directions, 1 => shadow]
}

fn msrs() -> impl Strategy<Value = Msrs> {
    let bases = vec![0x0u32, 0x7c0, 0x8f0, 0x2fe0, 0x474f_4f00, 0xc000_0080];
    let single = (prop::sample::select(bases.clone()), 0u32..0x60);
    let range = (
        prop::sample::select(bases),
        0u32..0x60,
        prop_oneof![0u32..3, 0u32..0x60, 0x2000u32..0x8000],
    );
    let groups = words(&["syscall", "mtrr", "mca", "tsc", "kvm", "vmx", "sgx"]);
    prop_oneof![
        3 => single.prop_map(|(base, offset)| Msrs::Single(base + offset)),
        6 => range.prop_map(|(base, offset, more)| Msrs::Range(base + offset, base + offset + more)),
        2 => groups.prop_map(Msrs::Group),
    ]
}

fn rule() -> impl Strategy<Value = RuleText> {
    let msrs = prop::collection::vec(msrs(), 1..3);
    (
        msrs,
        does(),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(msrs, does, log, limit)| RuleText {
            msrs,
            does,
            log,
            limit,
        })
}

/// A policy of a few rules.
pub(crate) fn policy() -> impl Strategy<Value = PolicyText> {
    let refused = || prop::option::of(words(&["fault", "ignore", "log"]));
    let defaults = prop_oneof![
        3 => (Just("allow"), refused(), refused()),
        1 => (words(&["fault", "ignore"]), Just(None), Just(None)),
    ];
    (defaults, prop::collection::vec(rule(), 0..6)).prop_map(
        |((known, unknown, invalid), rules)| PolicyText {
            known,
            unknown,
            invalid,
            rules,
        },
    )
}
