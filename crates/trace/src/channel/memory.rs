//! [`Memory`]: a part of a file as words that several processes share.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

/// A mapped part of a file. The other side may write anything at any time: each word is read once, and checked.
#[derive(Debug)]
pub(super) struct Memory(MmapRegion);

impl Memory {
    /// Maps `bytes` bytes from `at` on, which the file must have for as long as they are mapped.
    pub(super) fn map(file: &Arc<File>, at: u64, bytes: usize) -> io::Result<Self> {
        let part = FileOffset::from_arc(Arc::clone(file), at);
        let region = MmapRegion::from_file(part, bytes).map_err(io::Error::other)?;
        Ok(Self(region))
    }

    /// The word at `at`, which is inside and aligned.
    #[inline]
    pub(super) fn word(&self, at: usize) -> &AtomicU64 {
        self.0.get_atomic_ref(at).expect(INSIDE)
    }

    /// The half of a word at `at`, which is inside and aligned.
    pub(super) fn half(&self, at: usize) -> &AtomicU32 {
        self.0.get_atomic_ref(at).expect(INSIDE)
    }
}

const INSIDE: &str = "places follow from the layout";
