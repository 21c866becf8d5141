//! String I/O: one exit of the kernel, many elements.
//!
//! [`StringIo`] walks the elements; where their bytes lie in the page is the kernel's word, and checked there.

use kvm_bindings::KVM_EXIT_IO_IN;
use msrgate_core::VmExit;

use crate::run_page::{Io, RunPage};

/// A port access that the kernel reported, with the number of elements already shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StringIo {
    record: Io,
    shown: u32,
}

impl StringIo {
    /// The record of the exit that just came.
    pub(crate) fn new(page: &RunPage) -> Self {
        Self {
            record: page.member(),
            shown: 0,
        }
    }

    /// Whether the guest can go on once the element shown last is served.
    pub(crate) fn is_last(&self) -> bool {
        self.shown >= self.record.count
    }

    /// The next element as an exit of its own.
    pub(crate) fn next(&mut self, page: &RunPage) -> Option<VmExit> {
        if self.is_last() {
            return None;
        }
        self.shown = self.shown.wrapping_add(1);
        let (port, len_bytes) = (self.record.port, self.record.size);
        if u32::from(self.record.direction) == KVM_EXIT_IO_IN {
            return Some(VmExit::IoIn { port, len_bytes });
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "port accesses have at most 4 bytes"
        )]
        let value = page.load(self.offset(), len_bytes) as u32;
        Some(VmExit::IoOut {
            port,
            len_bytes,
            value,
        })
    }

    /// What the element shown last reads.
    pub(crate) fn answer(&self, page: &RunPage, value: u32) {
        page.store(self.offset(), self.record.size, value.into());
    }

    /// Where the element shown last lies in the page; far outside where the kernel's numbers make no sense.
    fn offset(&self) -> usize {
        let before = u64::from(self.shown.saturating_sub(1)) * u64::from(self.record.size);
        self.record
            .data_offset
            .checked_add(before)
            .and_then(|offset| usize::try_from(offset).ok())
            .unwrap_or(usize::MAX)
    }
}
