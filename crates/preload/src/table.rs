//! Which descriptor is what: [`Table`], the only state of this library.
//!
//! Three levels, from the common case to the rare one. A bit for each number says "not ours" to the
//! program's other descriptors with one load. Each thread remembers the entry that it used last, which is how
//! `KVM_RUN` gets by without a lock or a count. All else takes the lock, for the time of a map look-up.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::gate::{VcpuGate, VmGate};
use crate::lower::Lower;
use crate::real::FileId;

/// Numbers that can be ours (the kernel's default for the largest `RLIMIT_NOFILE`).
const LIMIT: usize = 1 << 20;

/// What a descriptor of ours leads to; `dup` shares it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) lower: Lower,
    pub(crate) role: Role,
    /// The real file underneath. All that the kernel's KVM makes are one file to it.
    pub(crate) file: FileId,
}

/// What the policy has to do with a descriptor.
#[derive(Debug)]
pub(crate) enum Role {
    /// A VM under it.
    Vm(Arc<VmGate>),
    /// A vCPU of one.
    Vcpu(Box<VcpuGate>),
    /// Nothing.
    Other,
}

/// The descriptors of this process.
#[derive(Debug)]
pub(crate) struct Table {
    ours: [AtomicU64; LIMIT / 64],
    /// Moves with every change, so that a thread knows what it remembers to be stale.
    epoch: AtomicU64,
    entries: Mutex<BTreeMap<RawFd, Arc<Entry>>>,
}

/// The table of this process.
pub(crate) static TABLE: Table = Table {
    ours: [const { AtomicU64::new(0) }; LIMIT / 64],
    epoch: AtomicU64::new(0),
    entries: Mutex::new(BTreeMap::new()),
};

struct Recent {
    fd: RawFd,
    epoch: u64,
    /// A thread that sleeps keeps no VM alive.
    entry: Weak<Entry>,
}

thread_local! {
    /// The entry that this thread used last.
    static RECENT: Cell<Option<Recent>> = const { Cell::new(None) };
    /// Holds the lock across `fork`, so that the child does not inherit one that nobody will release.
    static FORKING: RefCell<Option<Entries>> = const { RefCell::new(None) };
}

type Entries = MutexGuard<'static, BTreeMap<RawFd, Arc<Entry>>>;

impl Table {
    /// Whether `fd` may be ours: one load.
    #[inline]
    pub(crate) fn has(&self, fd: RawFd) -> bool {
        bit(fd).is_some_and(|(word, bit)| self.ours[word].load(Ordering::Acquire) & bit != 0)
    }

    /// Calls `use_entry` with the entry of `fd`.
    pub(crate) fn with<T>(&self, fd: RawFd, use_entry: impl FnOnce(&Arc<Entry>) -> T) -> Option<T> {
        if !self.has(fd) {
            return None;
        }
        let epoch = self.epoch.load(Ordering::Acquire);
        let recent = RECENT.try_with(Cell::take).ok().flatten();
        let known = recent
            .filter(|recent| recent.fd == fd && recent.epoch == epoch)
            .and_then(|recent| recent.entry.upgrade());
        let entry = match known {
            Some(entry) => entry,
            None => Arc::clone(self.lock().get(&fd)?),
        };
        let recent = Recent {
            fd,
            epoch,
            entry: Arc::downgrade(&entry),
        };
        // A thread that is ending has no place to remember it in.
        let _ = RECENT.try_with(|cell| cell.set(Some(recent)));
        Some(use_entry(&entry))
    }

    /// Makes `fd` lead to `entry`; `false` if there is no place for so large a number.
    pub(crate) fn insert(&self, fd: RawFd, entry: Entry) -> bool {
        self.share(fd, Arc::new(entry))
    }

    /// Makes `fd` lead to where another descriptor leads; `false` as for [`Table::insert`].
    pub(crate) fn share(&self, fd: RawFd, entry: Arc<Entry>) -> bool {
        let Some((word, bit)) = bit(fd) else {
            return false;
        };
        let replaced = self.lock().insert(fd, entry);
        self.epoch.fetch_add(1, Ordering::Release);
        self.ours[word].fetch_or(bit, Ordering::Release);
        drop(replaced);
        true
    }

    /// Forgets `fd`.
    pub(crate) fn remove(&self, fd: RawFd) {
        let Some((word, bit)) = bit(fd).filter(|_| self.has(fd)) else {
            return;
        };
        self.ours[word].fetch_and(!bit, Ordering::Release);
        let removed = self.lock().remove(&fd);
        self.epoch.fetch_add(1, Ordering::Release);
        drop(removed);
    }

    /// Forgets all from `first` to `last`.
    pub(crate) fn remove_range(&self, first: RawFd, last: RawFd) {
        if first > last {
            return;
        }
        let closed: Vec<_> = self.lock().range(first..=last).map(|(fd, _)| *fd).collect();
        for fd in closed {
            self.remove(fd);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<RawFd, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// To be called before `fork`.
pub(crate) fn before_fork() {
    let entries = TABLE.lock();
    let _ = FORKING.try_with(|forking| forking.replace(Some(entries)));
}

/// To be called after `fork`, in the parent and in the child. (The child's VMs and vCPUs answer EIO: the
/// embedded KVM sees to that.)
pub(crate) fn after_fork() {
    let _ = FORKING.try_with(RefCell::take);
}

fn bit(fd: RawFd) -> Option<(usize, u64)> {
    let fd = usize::try_from(fd).ok().filter(|fd| *fd < LIMIT)?;
    Some((fd / 64, 1 << (fd % 64)))
}
