//! A run of host pages that holds guest RAM: [`HostPages`], and the [`PageSet`]s about them.
//!
//! It checks bounds and nothing else: which slot a guest address belongs to is for [`Slots`](super::Slots).

// UNSAFETY: the client hands us guest RAM as an address; the kernel is asked whether it is usable.
#![expect(
    unsafe_code,
    reason = "a client's guest RAM is an address and a promise"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{io, ptr};

use crate::memory::PAGE_BYTES;
use vm_memory::MmapRegion;

use crate::shared::SharedBytes;

/// Consecutive host pages.
#[derive(Debug)]
pub(crate) struct HostPages {
    bytes: SharedBytes,
    owner: Owner,
}

/// Who keeps the pages mapped.
#[derive(Debug)]
enum Owner {
    /// We do, by this reference.
    Us { _mapping: Arc<MmapRegion> },
    /// The client, which said so with `KVM_SET_USER_MEMORY_REGION`. Pages are probed before first use.
    Client {
        readable: PageSet,
        writable: PageSet,
    },
}

impl HostPages {
    /// The whole pages of a mapping that the Rust API was given.
    pub(crate) fn of_mapping(mapping: Arc<MmapRegion>) -> Self {
        let len = mapping.size() & !(PAGE_BYTES - 1);
        // SAFETY: `MmapRegion` keeps `size()` bytes from `as_ptr()` mapped and `owner` keeps it; vm-memory
        // gives out no references into it either, only volatile slices.
        let bytes = unsafe { SharedBytes::new(mapping.as_ptr(), len) };
        Self {
            bytes,
            owner: Owner::Us { _mapping: mapping },
        }
    }

    /// Pages of the client, by their address in this process; `None` if there is no memory to manage them.
    pub(crate) fn of_client(address: u64, pages: u64) -> Option<Self> {
        let start = ptr::with_exposed_provenance_mut(usize::try_from(address).ok()?);
        let len = usize::try_from(pages).ok()?.checked_mul(PAGE_BYTES)?;
        Some(Self {
            // SAFETY: the client's promise at KVM_SET_USER_MEMORY_REGION (its memory, mapped for as long as
            // the slot exists); a page is used only after `probe` found it usable.
            bytes: unsafe { SharedBytes::new(start, len) },
            owner: Owner::Client {
                readable: PageSet::new(pages)?,
                writable: PageSet::new(pages)?,
            },
        })
    }

    /// The bytes of all pages.
    #[inline]
    pub(crate) fn bytes(&self) -> &SharedBytes {
        &self.bytes
    }

    /// How many pages there are.
    pub(crate) fn pages(&self) -> u64 {
        (self.bytes.len() / PAGE_BYTES) as u64
    }

    /// Address of the first, for the client that asks for the same slot again.
    pub(crate) fn address(&self) -> u64 {
        self.bytes.start().addr() as u64
    }

    /// Whether there is memory behind the page, for reading or for writing. Of the client's memory the
    /// kernel is asked once per page, which also brings the page in, as KVM's own page fault would.
    pub(crate) fn probe(&self, page: u64, write: bool) -> bool {
        let Owner::Client { readable, writable } = &self.owner else {
            return true;
        };
        let (known, advice) = if write {
            (writable, libc::MADV_POPULATE_WRITE)
        } else {
            (readable, libc::MADV_POPULATE_READ)
        };
        if known.contains(page) {
            return true;
        }
        let Ok(page_index) = usize::try_from(page) else {
            return false;
        };
        let start = self.bytes.start().wrapping_add(page_index * PAGE_BYTES);
        // SAFETY: populating changes no mapping; `madvise_populate` checks the PAGE_BYTES bytes against the
        // address space and answers ENOMEM or EFAULT where nothing usable is mapped.
        let refused = unsafe { libc::madvise(start.cast(), PAGE_BYTES, advice) } != 0;
        // EINVAL is a kernel before 5.14, or device memory: then the client's word has to do.
        if refused && io::Error::last_os_error().raw_os_error() != Some(libc::EINVAL) {
            return false;
        }
        known.insert(page);
        true
    }
}

/// The bytes of a run of pages, at hand without a look at who owns them.
#[derive(Debug)]
pub(crate) struct Window {
    bytes: SharedBytes,
    _owner: Option<Arc<HostPages>>,
}

impl Window {
    /// All bytes of `pages`.
    pub(crate) fn new(pages: &Arc<HostPages>) -> Self {
        let bytes = pages.bytes();
        Self {
            // SAFETY: `bytes` is what `of_mapping` or `of_client` were promised, for as long as the pages are owned,
            // and `_owner` owns them.
            bytes: unsafe { SharedBytes::new(bytes.start(), bytes.len()) },
            _owner: Some(Arc::clone(pages)),
        }
    }

    /// Them.
    #[inline(always)]
    pub(crate) fn bytes(&self) -> &SharedBytes {
        &self.bytes
    }
}

impl Default for Window {
    /// No bytes.
    fn default() -> Self {
        Self {
            // SAFETY: there are none to be mapped.
            bytes: unsafe { SharedBytes::new(ptr::null_mut(), 0) },
            _owner: None,
        }
    }
}

/// A set of page numbers.
#[derive(Debug)]
pub(crate) struct PageSet(Box<[AtomicU64]>);

impl PageSet {
    /// An empty set of pages below `pages`; `None` if there is no memory for it.
    pub(crate) fn new(pages: u64) -> Option<Self> {
        let words = usize::try_from(pages.div_ceil(64)).ok()?;
        let mut bits = Vec::new();
        bits.try_reserve_exact(words).ok()?;
        bits.resize_with(words, AtomicU64::default);
        Some(Self(bits.into()))
    }

    pub(crate) fn contains(&self, page: u64) -> bool {
        self.word(page)
            .is_some_and(|word| word.load(Ordering::Relaxed) >> (page % 64) & 1 == 1)
    }

    pub(crate) fn insert(&self, page: u64) {
        if let Some(word) = self.word(page) {
            word.fetch_or(1 << (page % 64), Ordering::Relaxed);
        }
    }

    /// Empties the set; what was in it, 64 pages to a word.
    pub(crate) fn take(&self) -> Vec<u64> {
        let words = self.0.iter();
        words.map(|word| word.swap(0, Ordering::Relaxed)).collect()
    }

    fn word(&self, page: u64) -> Option<&AtomicU64> {
        self.0.get(usize::try_from(page / 64).ok()?)
    }
}
