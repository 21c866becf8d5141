//! What the guest's accesses came to: counted by register, reason and outcome, and the first of them in full.
//!
//! A guest may touch as many MSRs as there are numbers: both are bounded.

use std::collections::BTreeMap;

use msrgate_core::{Access, Event, ExitReason, MsrIndex, Outcome, Recorder, VcpuId};

const ROWS_LIMIT: usize = 4096;
const EVENTS_LIMIT: usize = 65_536;

/// Counts events.
#[derive(Debug)]
pub(crate) struct Tally {
    rows_limit: usize,
    events_limit: usize,
    rows: BTreeMap<Key, Count>,
    events: Vec<Event>,
    /// Events that are not in `events`.
    pub(crate) events_dropped: u64,
    /// Events that are in no row.
    pub(crate) rows_dropped: u64,
    /// How often the guest met the policy's `fault`.
    pub(crate) faults: u64,
    /// Events of accesses that did not leave the guest.
    pub(crate) observed: u64,
}

/// What makes a row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) index: MsrIndex,
    pub(crate) reason: ExitReason,
    pub(crate) outcome: Outcome,
}

/// How often, by whom, and with which value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Count {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    /// The first and the last of the vCPUs, by their numbers.
    pub(crate) vcpus: (VcpuId, VcpuId),
    /// What the last read was answered with.
    pub(crate) answered: Option<u64>,
}

impl Count {
    const fn by(vcpu: VcpuId) -> Self {
        Self {
            reads: 0,
            writes: 0,
            vcpus: (vcpu, vcpu),
            answered: None,
        }
    }

    pub(crate) const fn accesses(&self) -> u64 {
        self.reads + self.writes
    }
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            rows_limit: ROWS_LIMIT,
            events_limit: EVENTS_LIMIT,
            rows: BTreeMap::new(),
            events: Vec::new(),
            events_dropped: 0,
            rows_dropped: 0,
            faults: 0,
            observed: 0,
        }
    }
}

impl Tally {
    /// One that only counts, in at most so many rows.
    pub(crate) fn of_rows(rows_limit: usize) -> Self {
        Self {
            rows_limit,
            events_limit: 0,
            ..Self::default()
        }
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = (&Key, &Count)> {
        self.rows.iter()
    }

    pub(crate) fn events(&self) -> &[Event] {
        &self.events
    }

    /// All of them, kept or not.
    pub(crate) fn event_count(&self) -> u64 {
        self.events.len() as u64 + self.events_dropped
    }
}

impl Recorder for Tally {
    fn record(&mut self, event: &Event) {
        if event.reason == ExitReason::NONE {
            self.observed += 1;
        } else if event.outcome == Outcome::Fault {
            self.faults += 1;
        }
        if self.events.len() < self.events_limit {
            self.events.push(*event);
        } else {
            self.events_dropped += 1;
        }
        let key = Key {
            index: event.index,
            reason: event.reason,
            outcome: event.outcome,
        };
        if self.rows.len() >= self.rows_limit && !self.rows.contains_key(&key) {
            self.rows_dropped += 1;
            return;
        }
        let vcpu = event.vcpu;
        let count = self.rows.entry(key).or_insert_with(|| Count::by(vcpu));
        count.vcpus = (count.vcpus.0.min(vcpu), count.vcpus.1.max(vcpu));
        match event.access {
            Access::Read => {
                count.reads += 1;
                count.answered = Some(event.value);
            }
            Access::Write => count.writes += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_that_touches_everything_fills_neither_table_nor_list() {
        let mut tally = Tally::default();
        for index in 0..100_000 {
            tally.record(&Event {
                vcpu: VcpuId(0),
                index: MsrIndex(index),
                access: Access::Read,
                reason: ExitReason::UNKNOWN,
                rip: None,
                value: 0,
                outcome: Outcome::Ignored,
                log: false,
            });
        }
        assert_eq!(tally.rows().count(), ROWS_LIMIT);
        assert_eq!(tally.events().len(), EVENTS_LIMIT);
        assert_eq!(tally.event_count(), 100_000);
        assert_eq!(tally.rows_dropped, 100_000 - ROWS_LIMIT as u64);
    }
}
