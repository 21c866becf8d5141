//! The filter of a VM, replaced while its vCPUs run: [`FilterCell`], with a [`FilterReader`] for each vCPU.
//!
//! Every check sees entirely one filter. Once [`FilterCell::replace`] has returned, no new check sees the
//! filter before; a check never waits for a writer, and costs one load more than the lookup itself.
//!
//! The filters form a chain that only grows at its end, and each reader walks along it in its own time. The
//! chain owns only the newest filter, so a reader that sleeps holds back its own filter and fewer than 200
//! bytes for each filter that it has missed.

use alloc::sync::{Arc, Weak};

use crate::sync::{Mutex, MutexGuard, OnceLock, lock};
use crate::{Access, Decision, DecisionSource, Lookup, MsrFilter, MsrIndex, Verdict};

/// The filter in force, and the place where the next one is put.
///
/// ```
/// use msrgate_core::{Access, DecisionSource, FilterCell, MsrFilter, MsrIndex};
///
/// let cell = FilterCell::new();
/// let mut reader = cell.reader();
/// let index = MsrIndex(0x10);
/// assert_eq!(reader.decide(index, Access::Read).source, DecisionSource::NoFilter);
/// cell.replace(MsrFilter::allow_all());
/// assert_eq!(reader.decide(index, Access::Read).source, DecisionSource::Default);
/// ```
#[derive(Debug)]
pub struct FilterCell {
    newest: Arc<Mutex<Position>>,
}

/// One vCPU's view of the filter.
#[derive(Clone, Debug)]
pub struct FilterReader {
    at: Position,
    /// So that the newest filter outlives the cell.
    _newest: Arc<Mutex<Position>>,
}

/// A node of the chain, with its filter.
#[derive(Clone, Debug)]
struct Position {
    node: Arc<Node>,
    installed: Arc<Installed>,
}

/// A filter, in both its forms.
#[derive(Debug)]
struct Installed {
    /// `None` before the first one.
    filter: Option<MsrFilter>,
    lookup: Lookup,
}

#[derive(Debug)]
struct Node {
    /// Held by the cell while it is the newest, and by the readers that are here.
    installed: Weak<Installed>,
    next: OnceLock<Arc<Node>>,
}

/// What a sleeping reader holds back for each filter that it misses.
const _: () = assert!(size_of::<Installed>() + size_of::<Node>() + 4 * size_of::<usize>() < 200);

impl FilterCell {
    /// The state of a new VM: no filter, everything is allowed.
    #[must_use]
    pub fn new() -> Self {
        let newest = Position::of(None, Lookup::new(&MsrFilter::allow_all()));
        Self {
            newest: Arc::new(Mutex::new(newest)),
        }
    }

    /// Puts `filter` in force.
    pub fn replace(&self, filter: MsrFilter) {
        let lookup = Lookup::new(&filter);
        let newest = Position::of(Some(filter), lookup);
        let superseded = {
            let mut guard = self.newest();
            // Linked before the cell lets go of the older filter: a reader that finds that one gone knows
            // that there is a next.
            let linked = guard.node.next.set(Arc::clone(&newest.node));
            debug_assert!(linked.is_ok(), "a node is linked once, under the lock");
            core::mem::replace(&mut *guard, newest)
        };
        drop(superseded); // it may be large, and the lock is free already
    }

    /// A view for one more vCPU.
    #[must_use]
    pub fn reader(&self) -> FilterReader {
        FilterReader {
            at: self.newest().clone(),
            _newest: Arc::clone(&self.newest),
        }
    }

    fn newest(&self) -> MutexGuard<'_, Position> {
        lock(&self.newest)
    }
}

impl Default for FilterCell {
    fn default() -> Self {
        Self::new()
    }
}

impl FilterReader {
    /// The verdict of the filter in force.
    #[inline]
    #[must_use]
    pub fn verdict(&mut self, index: MsrIndex, access: Access) -> Verdict {
        self.current().lookup.verdict(index, access)
    }

    /// The verdict and who gave it: slower, for a trace or an explanation.
    #[must_use]
    pub fn decide(&mut self, index: MsrIndex, access: Access) -> Decision {
        match &self.current().filter {
            Some(filter) => filter.decide(index, access),
            None => Decision {
                verdict: Verdict::Allow,
                source: if index.is_x2apic() {
                    DecisionSource::Exempt
                } else {
                    DecisionSource::NoFilter
                },
            },
        }
    }

    /// The filter in force; `None` if there never was one.
    #[must_use]
    pub fn filter(&mut self) -> Option<&MsrFilter> {
        self.current().filter.as_ref()
    }

    #[inline]
    fn current(&mut self) -> &Installed {
        if self.at.node.next.get().is_some() {
            self.catch_up();
        }
        &self.at.installed
    }

    #[cold]
    fn catch_up(&mut self) {
        while let Some(next) = self.at.node.next.get() {
            self.at = Position::after(next);
        }
    }
}

impl Position {
    fn of(filter: Option<MsrFilter>, lookup: Lookup) -> Self {
        let installed = Arc::new(Installed { filter, lookup });
        let node = Arc::new(Node {
            installed: Arc::downgrade(&installed),
            next: OnceLock::new(),
        });
        Self { node, installed }
    }

    /// `node`, or where its filter is gone, the first after it whose filter is not.
    fn after(node: &Arc<Node>) -> Self {
        let mut node = node;
        loop {
            if let Some(installed) = node.installed.upgrade() {
                let node = Arc::clone(node);
                return Self { node, installed };
            }
            node = node.next.wait(); // it is there already
        }
    }
}

impl Drop for Node {
    /// A chain is dropped link by link, not by recursion: a sleeping reader may hold a long one.
    fn drop(&mut self) {
        let mut next = self.next.take();
        while let Some(mut node) = next.and_then(Arc::into_inner) {
            next = node.next.take();
        }
    }
}
