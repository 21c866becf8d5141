//! Translations that were looked up before, and which pages hold decoded code.
//!
//! A hit needs one comparison: the tag holds the linear page number and, above it, the
//! [`Context`] in which the access is allowed. What is in [`Tlb::write`] may be written without further thought;
//! pages with decoded code are tagged so that stores miss.

use crate::RamPage;

/// Number of entries for each kind of access.
pub(crate) const ENTRIES: usize = 1024;
/// With more changes than this, it is cheaper to look at every entry.
const MAX_LOCAL: usize = ENTRIES / 4;

/// Tag bit of a page that holds decoded code. No access has it.
const CODE: u64 = 1 << 63;
/// Tag of an entry that no access matches.
const EMPTY: u64 = u64::MAX;

/// What decides whether an access is allowed, besides the page: a part of the tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Context(u64);

impl Context {
    /// `smap`: the access is a supervisor's, and user pages are closed to it.
    pub(crate) const fn new(user: bool, smap: bool) -> Self {
        Self((user as u64) << 52 | (smap as u64) << 53)
    }

    pub(crate) const fn is_user(self) -> bool {
        self.0 & 1 << 52 != 0
    }

    pub(crate) const fn has_smap(self) -> bool {
        self.0 & 1 << 53 != 0
    }

    /// The tag of an access to `linear`.
    #[inline(always)]
    pub(crate) const fn tag(self, linear: u64) -> u64 {
        linear >> 12 | self.0
    }
}

/// The fast half of an entry.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    tag: u64,
    page: RamPage,
}

/// The slow half.
#[derive(Clone, Copy)]
struct Detail {
    pfn: u64,
    global: bool,
}

/// What a walk found, to be remembered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapping {
    /// The frame's number.
    pub(crate) pfn: u64,
    /// The RAM behind it.
    pub(crate) page: RamPage,
    /// Survives a CR3 write.
    pub(crate) global: bool,
}

/// The entries of one kind of access.
pub(crate) struct Side {
    entries: [Entry; ENTRIES],
    details: [Detail; ENTRIES],
    /// The entries that were not global when they were made, since the last flush; [`MAX_LOCAL`] at the most.
    local: Vec<u16>,
}

impl Side {
    const fn new() -> Self {
        Self {
            entries: [Entry {
                tag: EMPTY,
                page: RamPage(0),
            }; ENTRIES],
            details: [Detail {
                pfn: 0,
                global: false,
            }; ENTRIES],
            local: Vec::new(),
        }
    }

    const fn slot(linear: u64) -> usize {
        (linear >> 12) as usize % ENTRIES
    }

    /// The RAM behind `linear`, where `context` may use it.
    #[inline(always)]
    pub(crate) const fn find(&self, linear: u64, context: Context) -> Option<RamPage> {
        let entry = &self.entries[Self::slot(linear)];
        if entry.tag == context.tag(linear) {
            Some(entry.page)
        } else {
            None
        }
    }

    /// As [`Self::find`], with everything that is known, and pages with code too.
    pub(crate) const fn find_mapping(&self, linear: u64, context: Context) -> Option<Mapping> {
        let slot = Self::slot(linear);
        let entry = &self.entries[slot];
        if entry.tag & !CODE != context.tag(linear) {
            return None;
        }
        let detail = &self.details[slot];
        Some(Mapping {
            pfn: detail.pfn,
            page: entry.page,
            global: detail.global,
        })
    }

    fn insert(&mut self, linear: u64, context: Context, mapping: Mapping, code: bool) {
        let slot = Self::slot(linear);
        self.entries[slot] = Entry {
            tag: context.tag(linear) | if code { CODE } else { 0 },
            page: mapping.page,
        };
        self.details[slot] = Detail {
            pfn: mapping.pfn,
            global: mapping.global,
        };
        if !mapping.global && self.local.len() < MAX_LOCAL {
            self.local.push(slot as u16);
        }
    }

    fn flush(&mut self, keep_global: bool) {
        if keep_global && self.local.len() < MAX_LOCAL {
            for &slot in &self.local {
                let slot = usize::from(slot) % ENTRIES;
                if !self.details[slot].global {
                    self.entries[slot].tag = EMPTY;
                }
            }
        } else {
            for (entry, detail) in self.entries.iter_mut().zip(&self.details) {
                if !(keep_global && detail.global) {
                    entry.tag = EMPTY;
                }
            }
        }
        self.local.clear();
    }

    fn mark_code(&mut self, pfn: u64) {
        for (entry, detail) in self.entries.iter_mut().zip(&self.details) {
            if detail.pfn == pfn && entry.tag != EMPTY {
                entry.tag |= CODE;
            }
        }
    }

    fn unmark_code(&mut self, pfn: u64) {
        for (entry, detail) in self.entries.iter_mut().zip(&self.details) {
            if detail.pfn == pfn && entry.tag != EMPTY {
                entry.tag &= !CODE;
            }
        }
    }
}

/// The three sides.
pub(crate) struct Tlb {
    pub(crate) read: Side,
    pub(crate) write: Side,
    pub(crate) fetch: Side,
    /// The smallest range that holds every large page here: base, and mask of the fixed bits.
    large: Option<(u64, u64)>,
}

impl Tlb {
    pub(crate) const fn new() -> Self {
        Self {
            read: Side::new(),
            write: Side::new(),
            fetch: Side::new(),
            large: None,
        }
    }

    pub(crate) fn insert_read(&mut self, linear: u64, context: Context, mapping: Mapping) {
        self.read.insert(linear, context, mapping, false);
    }

    /// `code`: the page holds decoded code.
    pub(crate) fn insert_write(
        &mut self,
        linear: u64,
        context: Context,
        mapping: Mapping,
        code: bool,
    ) {
        self.write.insert(linear, context, mapping, code);
    }

    pub(crate) fn insert_fetch(&mut self, linear: u64, context: Context, mapping: Mapping) {
        self.fetch.insert(linear, context, mapping, false);
    }

    /// Remembers that `linear` lies in a page of `1 << shift` bytes, of which only a part is here.
    pub(crate) fn note_large(&mut self, linear: u64, shift: u32) {
        let (base, mut mask) = self.large.unwrap_or((linear, u64::MAX));
        mask &= u64::MAX << shift;
        while (base ^ linear) & mask != 0 {
            mask <<= 1;
        }
        self.large = Some((base, mask));
    }

    /// Stores to frame `pfn` miss from now on.
    pub(crate) fn mark_code(&mut self, pfn: u64) {
        self.write.mark_code(pfn);
    }

    /// Undoes [`Self::mark_code`].
    pub(crate) fn unmark_code(&mut self, pfn: u64) {
        self.write.unmark_code(pfn);
    }

    /// Forgets all, or all but the global pages.
    pub(crate) fn flush(&mut self, keep_global: bool) {
        self.read.flush(keep_global);
        self.write.flush(keep_global);
        self.fetch.flush(keep_global);
        if !keep_global {
            self.large = None;
        }
    }

    /// INVLPG.
    pub(crate) fn flush_page(&mut self, linear: u64) {
        if self
            .large
            .is_some_and(|(base, mask)| (base ^ linear) & mask == 0)
        {
            self.flush(false);
            return;
        }
        let slot = Side::slot(linear);
        for side in [&mut self.read, &mut self.write, &mut self.fetch] {
            side.entries[slot].tag = EMPTY;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: Context = Context::new(true, false);
    const SUPERVISOR: Context = Context::new(false, false);

    fn mapping(pfn: u64, global: bool) -> Mapping {
        Mapping {
            pfn,
            page: RamPage(pfn),
            global,
        }
    }

    #[test]
    fn entry_is_found_only_in_its_context() {
        let mut tlb = Tlb::new();
        tlb.insert_read(0x1234, SUPERVISOR, mapping(7, false));
        assert_eq!(tlb.read.find(0x1fff, SUPERVISOR), Some(RamPage(7)));
        assert_eq!(tlb.read.find(0x1fff, USER), None);
        assert_eq!(tlb.write.find(0x1fff, SUPERVISOR), None);
        assert_eq!(tlb.read.find(0x1fff | 1 << 63, SUPERVISOR), None);
    }

    #[test]
    fn code_page_is_hidden_from_stores() {
        let mut tlb = Tlb::new();
        tlb.insert_write(0x1000, USER, mapping(7, false), false);
        tlb.mark_code(7);
        assert_eq!(tlb.write.find(0x1000, USER), None);
        assert!(tlb.write.find_mapping(0x1000, USER).is_some());
    }

    #[test]
    fn global_page_survives_all_but_invlpg() {
        let mut tlb = Tlb::new();
        tlb.insert_read(0x1000, USER, mapping(1, true));
        tlb.insert_read(0x2000, USER, mapping(2, false));
        tlb.flush(true);
        assert_eq!(tlb.read.find(0x1000, USER), Some(RamPage(1)));
        assert_eq!(tlb.read.find(0x2000, USER), None);
        tlb.flush_page(0x1000);
        assert_eq!(tlb.read.find(0x1000, USER), None);
    }

    #[test]
    fn many_local_pages_are_forgotten_like_few() {
        for count in [MAX_LOCAL as u64 - 1, MAX_LOCAL as u64, ENTRIES as u64] {
            let mut tlb = Tlb::new();
            for page in 0..count {
                tlb.insert_read(page << 12, USER, mapping(page, page % 2 == 0));
            }
            tlb.flush(true);
            for page in 0..count {
                let expected = (page % 2 == 0).then_some(RamPage(page));
                assert_eq!(
                    tlb.read.find(page << 12, USER),
                    expected,
                    "{page} of {count}"
                );
            }
        }
    }

    #[test]
    fn invlpg_in_a_large_page_forgets_all_of_it() {
        let mut tlb = Tlb::new();
        tlb.insert_read(0x20_1000, USER, mapping(1, true));
        tlb.note_large(0x20_1000, 21);
        tlb.flush_page(0x3f_f000);
        assert_eq!(tlb.read.find(0x20_1000, USER), None);
    }
}
