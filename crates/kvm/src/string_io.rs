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

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    const PAGES: usize = 3 * 4096;
    const DATA: usize = 4096;

    /// A page that looks like what a kernel left behind.
    fn page(record: Io) -> RunPage {
        let path = std::env::temp_dir().join(format!(
            "msrgate-run-page-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        fs::remove_file(path).unwrap();
        file.set_len(PAGES as u64).unwrap();
        let page = RunPage::map(&file, PAGES).unwrap();
        page.set_member(record);
        page
    }

    fn record(direction: u8, size: u8, count: u32, data_offset: u64) -> Io {
        Io {
            direction,
            size,
            port: 0x3f8,
            count,
            data_offset,
        }
    }

    #[test]
    fn elements_are_shown_in_order_and_once() {
        let page = page(record(1, 2, 3, DATA as u64));
        for (n, value) in [0x1111, 0x2222, 0x3333].into_iter().enumerate() {
            page.store(DATA + 2 * n, 2, value);
        }
        let mut string = StringIo::new(&page);
        for value in [0x1111, 0x2222, 0x3333] {
            assert!(!string.is_last());
            let exit = VmExit::IoOut {
                port: 0x3f8,
                len_bytes: 2,
                value,
            };
            assert_eq!(string.next(&page), Some(exit));
        }
        assert!(string.is_last());
        assert_eq!(string.next(&page), None);
    }

    #[test]
    fn answers_go_where_their_elements_are() {
        let page = page(record(0, 1, 2, DATA as u64));
        let mut string = StringIo::new(&page);
        for value in [0xaa, 0xbb] {
            assert!(string.next(&page).is_some());
            string.answer(&page, value);
        }
        assert_eq!(page.load(DATA, 4), 0xbbaa);
    }

    #[test]
    fn record_that_makes_no_sense_reads_0_and_writes_nothing() {
        for offset in [PAGES as u64, u64::MAX, u64::MAX - 3, 1 << 63] {
            for (size, count) in [(4, u32::MAX), (255, 7), (0, 2)] {
                let page = page(record(1, size, count, offset));
                let mut string = StringIo::new(&page);
                for _ in 0..4 {
                    if let Some(VmExit::IoOut { value, .. }) = string.next(&page) {
                        assert_eq!(value, 0);
                        string.answer(&page, u32::MAX);
                    }
                }
                assert_eq!(page.member::<Io>().data_offset, offset);
            }
        }
    }

    #[test]
    fn element_that_crosses_the_end_of_the_page_is_cut() {
        let page = page(record(1, 4, 1, PAGES as u64 - 2));
        page.store(PAGES - 2, 2, 0xbeef);
        let mut string = StringIo::new(&page);
        let exit = string.next(&page);
        assert!(
            matches!(exit, Some(VmExit::IoOut { value: 0xbeef, .. })),
            "{exit:?}"
        );
    }

    #[test]
    fn string_of_no_elements_shows_nothing() {
        let page = page(record(0, 1, 0, DATA as u64));
        assert_eq!(StringIo::new(&page).next(&page), None);
    }
}
