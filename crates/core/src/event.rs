//! One answered access, as a value of fixed size that can be compared, counted and replayed.
//!
//! There is no time in an [`Event`]: two runs of the same guest give the same events.

use core::fmt;

use crate::{Access, ExitReason, Gp, MsrIndex};

/// Which vCPU of its VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VcpuId(pub u32);

impl fmt::Display for VcpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// One MSR access that left the guest, and what was made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    /// Who did it.
    pub vcpu: VcpuId,
    /// Which register.
    pub index: MsrIndex,
    /// In which direction.
    pub access: Access,
    /// Why KVM did not answer by itself; [`ExitReason::NONE`] where it did, and somebody watched.
    pub reason: ExitReason,
    /// Where the instruction is, if the recorder wants to know.
    pub rip: Option<u64>,
    /// What was written, or what the read was answered with (0 where that is #GP).
    pub value: u64,
    /// What became of it.
    pub outcome: Outcome,
    /// Whether the policy asks that this access be logged.
    pub log: bool,
}

const OUTCOME_SHIFT: u32 = 32;
const WRITE: u64 = 1 << 40;
const LOG: u64 = 1 << 41;
const HAS_RIP: u64 = 1 << 42;
const RESERVED: u64 = !0 << 43;

impl Event {
    /// How many words an event is.
    pub const WORDS: usize = 4;

    /// The event in the form that threads share and that files hold (there little-endian), each event in one way:
    ///
    /// | word | bits | |
    /// |---|---|---|
    /// | 0 | 0..32 | index of the MSR |
    /// | | 32..64 | vCPU |
    /// | 1 | 0..32 | exit reason, as the kernel numbers it |
    /// | | 32..40 | outcome ([`Outcome::code`]) |
    /// | | 40 | a write |
    /// | | 41 | to be logged |
    /// | | 42 | word 3 is known |
    /// | | 43..64 | 0 |
    /// | 2 | | value |
    /// | 3 | | RIP; 0 where it is not known |
    #[must_use]
    pub fn to_words(&self) -> [u64; Self::WORDS] {
        let flag = |is_set, bit| if is_set { bit } else { 0 };
        [
            pair(self.index.0, self.vcpu.0),
            pair(self.reason.0, 0)
                | u64::from(self.outcome.code()) << OUTCOME_SHIFT
                | flag(self.access == Access::Write, WRITE)
                | flag(self.log, LOG)
                | flag(self.rip.is_some(), HAS_RIP),
            self.value,
            self.rip.unwrap_or(0),
        ]
    }

    /// The event that has these words; `None` where no event has.
    #[must_use]
    pub fn from_words(words: [u64; Self::WORDS]) -> Option<Self> {
        let [who, what, value, rip] = words;
        let (index, vcpu) = halves(who);
        let (reason, _) = halves(what);
        let [_, _, _, _, outcome, ..] = what.to_le_bytes();
        let has_rip = what & HAS_RIP != 0;
        if what & RESERVED != 0 || !has_rip && rip != 0 {
            return None;
        }
        Some(Self {
            vcpu: VcpuId(vcpu),
            index: MsrIndex(index),
            access: if what & WRITE == 0 {
                Access::Read
            } else {
                Access::Write
            },
            reason: ExitReason(reason),
            rip: has_rip.then_some(rip),
            value,
            outcome: Outcome::from_code(outcome)?,
            log: what & LOG != 0,
        })
    }
}

fn pair(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

#[expect(clippy::cast_possible_truncation, reason = "each half is 32 bits")]
const fn halves(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

/// One line for people, such as `vCPU 0: rdmsr 0x8b (IA32_BIOS_SIGN_ID), filter: = 0x42`.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let instruction = self.access.instruction();
        write!(f, "vCPU {}: {instruction} {}", self.vcpu, self.index)?;
        if let Some(name) = self.index.name() {
            write!(f, " ({name})")?;
        }
        if self.access == Access::Write {
            write!(f, ", {:#x}", self.value)?;
        }
        write!(f, ", {}: ", self.reason)?;
        match (self.outcome, self.access) {
            (Outcome::Fault, _) => fmt::Display::fmt(&Gp, f),
            (Outcome::Ignored, _) | (_, Access::Write) => fmt::Display::fmt(&self.outcome, f),
            (_, Access::Read) => write!(f, "= {:#x}", self.value),
        }
    }
}

/// What became of an access that left the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// The read was answered with the policy's value.
    Value = 0,
    /// KVM did it on the host path.
    Forwarded = 1,
    /// KVM did it on the host path, but for some bits.
    Masked = 2,
    /// A register that the gate keeps.
    Shadow = 3,
    /// A program's own handler did it.
    Handled = 4,
    /// It never left KVM, which did it.
    Native = 5,
    /// A read of 0, or a write that was dropped.
    Ignored = 6,
    /// The guest got #GP(0).
    Fault = 7,
    /// The VMM that the policy was put around answered it, as it would have without the policy.
    Vmm = 8,
}

impl Outcome {
    /// All of them, by [`Outcome::code`].
    pub const ALL: [Self; 9] = [
        Self::Value,
        Self::Forwarded,
        Self::Masked,
        Self::Shadow,
        Self::Handled,
        Self::Native,
        Self::Ignored,
        Self::Fault,
        Self::Vmm,
    ];

    /// The number that stands for it in files: it never changes.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// What the number stands for.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// One word for tables and files.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Fault => "fault",
            Self::Ignored => "ignored",
            Self::Value => "value",
            Self::Forwarded => "forwarded",
            Self::Masked => "masked",
            Self::Shadow => "shadow",
            Self::Handled => "handled",
            Self::Native => "native",
            Self::Vmm => "vmm",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_has_the_words_of_the_table() {
        let event = Event {
            vcpu: VcpuId(0x1122_3344),
            index: MsrIndex(0xc001_1020),
            access: Access::Write,
            reason: ExitReason::FILTER,
            rip: Some(0xffff_ffff_8100_0000),
            value: 0xdead_beef_0000_0001,
            outcome: Outcome::Fault,
            log: true,
        };
        let words = [
            0x1122_3344_c001_1020,
            0x0000_0707_0000_0004,
            0xdead_beef_0000_0001,
            0xffff_ffff_8100_0000,
        ];
        assert_eq!(event.to_words(), words);
        let quiet_read = Event {
            access: Access::Read,
            rip: None,
            outcome: Outcome::Value,
            log: false,
            ..event
        };
        assert_eq!(quiet_read.to_words(), [words[0], 4, words[2], 0]);
    }

    #[test]
    fn outcome_is_found_by_its_code() {
        for (code, outcome) in (0..).zip(Outcome::ALL) {
            assert_eq!(outcome.code(), code);
            assert_eq!(Outcome::from_code(code), Some(outcome));
        }
        assert_eq!(Outcome::from_code(9), None);
    }

    #[test]
    fn words_that_no_event_has_are_refused() {
        let words = [0, HAS_RIP, 0, 1];
        assert!(Event::from_words(words).is_some());
        assert_eq!(
            Event::from_words([0, 0, 0, 1]),
            None,
            "RIP without its flag"
        );
        assert_eq!(
            Event::from_words([0, 9 << 32, 0, 0]),
            None,
            "no such outcome"
        );
        for bit in 43..64 {
            assert_eq!(Event::from_words([0, 1 << bit, 0, 0]), None, "bit {bit}");
        }
    }

    proptest::proptest! {
        #[test]
        fn words_are_of_one_event_and_events_of_one_row_of_words(
            who: u64,
            what in proptest::prop_oneof![proptest::num::u64::ANY, 0u64..1 << 43],
            value: u64,
            rip in proptest::prop_oneof![proptest::num::u64::ANY, proptest::strategy::Just(0)],
        ) {
            let words = [who, what, value, rip];
            if let Some(event) = Event::from_words(words) {
                proptest::prop_assert_eq!(event.to_words(), words);
                proptest::prop_assert_eq!(Event::from_words(event.to_words()), Some(event));
            }
        }
    }

    #[test]
    fn event_is_a_line() {
        let read = Event {
            vcpu: VcpuId(0),
            index: MsrIndex(0x8b),
            access: Access::Read,
            reason: ExitReason::FILTER,
            rip: None,
            value: 0x42,
            outcome: Outcome::Value,
            log: false,
        };
        assert_eq!(
            read.to_string(),
            "vCPU 0: rdmsr 0x8b (IA32_BIOS_SIGN_ID), filter: = 0x42"
        );
        let write = Event {
            index: MsrIndex(0x474f_4f00),
            access: Access::Write,
            reason: ExitReason::UNKNOWN,
            outcome: Outcome::Fault,
            ..read
        };
        assert_eq!(
            write.to_string(),
            "vCPU 0: wrmsr 0x474f4f00, 0x42, unknown: #GP(0)"
        );
    }
}
