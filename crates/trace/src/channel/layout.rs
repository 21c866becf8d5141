//! Where everything is in a channel's file. All of it is for programs of one version, on one machine.
//!
//! | at | bytes | |
//! |---|---|---|
//! | 0 | 4096 | what describes the channel, and the words that are not one ring's |
//! | 4096 | 1024 * 64 | the claims: for each ring, who has it |
//! | 69632 | | the facts, as the header of a trace; then zeros up to a page |
//! | there | 1024 * 659456 | the rings, if there are any |

use msrgate_core::Event;

pub(super) const MAGIC: [u8; 8] = *b"MSRRINGS";
/// Counts up with every change.
pub(super) const VERSION: u32 = 1;
pub(super) const PAGE: usize = 4096;

/// VMs so far.
pub(super) const VMS: usize = 128;
/// vCPUs that got no ring.
pub(super) const REFUSED: usize = 132;
/// Where the table at the end stands.
pub(super) const REPORT: usize = 256;

/// As many vCPUs can have a ring at once.
pub(super) const RINGS: usize = 1024;

/// Who has which ring: its fields, in the first part.
pub(super) mod claim {
    pub(crate) const BYTES: usize = 64;
    pub(crate) const STATE: usize = 0;
    pub(crate) const PID: usize = 4;
    pub(crate) const VM: usize = 8;
    pub(crate) const VCPU: usize = 12;
    /// The thread of the vCPU, and the last one that the collector knows of.
    pub(crate) const THREAD: usize = 16;
    pub(crate) const KNOWN_THREAD: usize = 20;
    pub(crate) const FAILURES: usize = 24;

    /// Where the claim on this ring is.
    pub(crate) const fn at(ring: usize) -> usize {
        super::PAGE + ring * BYTES
    }
}

/// The first part, which everybody maps.
pub(super) const CONTROL_BYTES: usize = claim::at(RINGS);
pub(super) const FACTS_AT: usize = CONTROL_BYTES;

/// The place of the first ring.
pub(super) const fn rings_at(facts_bytes: usize) -> usize {
    (FACTS_AT + facts_bytes).next_multiple_of(PAGE)
}

/// A ring: a page with its counts, then the events.
pub(super) mod ring {
    use super::{Event, PAGE};

    pub(crate) const LENGTH: usize = 1 << 14;
    pub(crate) const EVENTS: u64 = LENGTH as u64;
    /// The time, and the event's words.
    pub(crate) const WORDS: usize = 1 + Event::WORDS;
    pub(crate) const SLOTS: usize = PAGE;
    pub(crate) const BYTES: usize = SLOTS + LENGTH * WORDS * 8;

    /// Events recorded so far, and those that were dropped: the producer writes both.
    pub(crate) const RECORDED: usize = 0;
    pub(crate) const DROPPED: usize = 8;
    /// Events taken so far: the consumer writes it. In other cache lines, as in `msrgate_core::EventRing`.
    pub(crate) const TAKEN: usize = 128;

    /// Where the event is of which so many were before.
    pub(crate) fn slot(number: u64) -> usize {
        let slot = usize::try_from(number % EVENTS).expect("below the number of slots");
        SLOTS + slot * WORDS * 8
    }
}

const _: () = assert!(
    ring::BYTES.is_multiple_of(PAGE),
    "each ring is mapped on its own"
);
const _: () = assert!(
    ring::BYTES == 659_456 && CONTROL_BYTES == 69_632,
    "as the table says"
);
