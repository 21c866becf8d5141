//! What the events of all vCPUs come to: [`Seen`], and [`Shared`], in which several threads have it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use msrgate_core::{Event, Recorder};

use crate::log::Log;
use crate::tally::Tally;

/// Counted, and logged.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) tally: Tally,
    pub(crate) log: Log,
    /// Accesses that were too fast to be counted.
    pub(crate) lost: u64,
}

impl Seen {
    pub(crate) const fn new(tally: Tally, log: Log) -> Self {
        Self {
            tally,
            log,
            lost: 0,
        }
    }
}

impl Recorder for Seen {
    fn record(&mut self, event: &Event) {
        self.tally.record(event);
        self.log.record(event);
    }
}

/// A clone is another name for the same.
#[derive(Clone, Debug)]
pub(crate) struct Shared(Arc<Mutex<Seen>>);

impl Shared {
    pub(crate) fn new(seen: Seen) -> Self {
        Self(Arc::new(Mutex::new(seen)))
    }

    /// Nobody panics while he holds it.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
