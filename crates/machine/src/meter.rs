//! [`Meter`]: how far a machine is, read while it runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use msrgate_core::Kick;

/// What a vCPU tells of itself from time to time.
#[derive(Debug, Default)]
pub(crate) struct Count {
    exits: AtomicU64,
    instructions: AtomicU64,
}

impl Count {
    pub(crate) fn set(&self, exits: u64, instructions: Option<u64>) {
        self.exits.store(exits, Ordering::Relaxed);
        let instructions = instructions.unwrap_or(0);
        self.instructions.store(instructions, Ordering::Relaxed);
    }
}

/// Reads how far a machine is.
#[derive(Clone, Debug)]
pub struct Meter<K> {
    pub(crate) counts: Arc<[Arc<Count>]>,
    pub(crate) kickers: Arc<[K]>,
}

/// What all vCPUs have done together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// How often the guest was left.
    pub exits: u64,
    /// Instructions of the guest; 0 where the backend does not count them.
    pub instructions: u64,
}

impl<K: Kick> Meter<K> {
    /// Makes the vCPUs stop for a moment, to tell how far they are.
    pub fn ask(&self) {
        self.kickers.iter().for_each(Kick::kick);
    }

    /// What was done up to the last exits, and what was told since [`Meter::ask`].
    #[must_use]
    pub fn read(&self) -> Reading {
        let sum = |of: fn(&Count) -> &AtomicU64| {
            self.counts
                .iter()
                .map(|count| of(count).load(Ordering::Relaxed))
                .sum()
        };
        Reading {
            exits: sum(|count| &count.exits),
            instructions: sum(|count| &count.instructions),
        }
    }
}
