//! From linear addresses to pages: the TLB, the walk that fills it, and the pages that hold decoded code.

use crate::op::{Exit, Fault, vector};
use crate::tlb::Mapping;
use crate::walk::{Access, AccessKind, walk};
use crate::{Bus, Cpu, PAGE_BYTES, RamPage, seg};

/// A page of an access that was translated.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    Ram { page: RamPage, pfn: u64 },
    Mmio { pfn: u64 },
}

/// The part of an access that lies in one page.
#[derive(Clone, Copy)]
pub(crate) struct Piece {
    pub(crate) target: Target,
    /// Within the page.
    pub(crate) offset: usize,
    /// Within the access.
    pub(crate) from: usize,
    pub(crate) to: usize,
}

/// One or two pieces.
pub(crate) struct Pieces {
    first: Piece,
    second: Option<Piece>,
}

impl Pieces {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Piece> {
        core::iter::once(&self.first).chain(&self.second)
    }
}

impl Cpu {
    /// The pages of an access, all translated before any is touched.
    pub(crate) fn pieces<B: Bus>(
        &mut self,
        bus: &mut B,
        linear: u64,
        len_bytes: usize,
        kind: AccessKind,
    ) -> Result<Pieces, Exit> {
        self.watch(linear, len_bytes, kind);
        let offset = linear as usize % PAGE_BYTES;
        let first_len = len_bytes.min(PAGE_BYTES - offset);
        let first = Piece {
            target: self.translate(bus, linear, kind)?,
            offset,
            from: 0,
            to: first_len,
        };
        if first_len == len_bytes {
            return Ok(Pieces {
                first,
                second: None,
            });
        }
        let mut next = linear.wrapping_add(first_len as u64);
        if !self.is_long() {
            next &= 0xffff_ffff;
        }
        let second = Piece {
            target: self.translate(bus, next, kind)?,
            offset: 0,
            from: first_len,
            to: len_bytes,
        };
        Ok(Pieces {
            first,
            second: Some(second),
        })
    }

    /// Through the TLB, or a walk that fills it.
    fn translate<B: Bus>(
        &mut self,
        bus: &mut B,
        linear: u64,
        kind: AccessKind,
    ) -> Result<Target, Exit> {
        let side = match kind {
            AccessKind::Read => &self.tlb.read,
            AccessKind::Write => &self.tlb.write,
            AccessKind::Fetch => &self.tlb.fetch,
        };
        if let Some(Mapping { pfn, page, .. }) = side.find_mapping(linear, self.context) {
            return Ok(Target::Ram { page, pfn });
        }
        let access = Access {
            kind,
            user: self.context.is_user(),
            alignment_check: !self.context.has_smap(),
        };
        let found = match walk(bus, &self.paging, linear, access) {
            Ok(found) => found,
            Err(fault) => {
                return Err(self.raise(Fault {
                    vector: vector::PF,
                    error_code: Some(fault.error_code),
                    payload: linear,
                }));
            }
        };
        let pfn = found.pfn;
        let Some(page) = bus.ram_page(pfn, kind == AccessKind::Write) else {
            return Ok(Target::Mmio { pfn });
        };
        let mapping = Mapping {
            pfn,
            page,
            global: found.global,
        };
        if found.page_shift > 12 {
            self.tlb.note_large(linear, found.page_shift);
        }
        match kind {
            AccessKind::Read | AccessKind::Write if self.is_watched(linear) => {}
            AccessKind::Read => self.tlb.insert_read(linear, self.context, mapping),
            AccessKind::Fetch => self.tlb.insert_fetch(linear, self.context, mapping),
            AccessKind::Write => {
                let has_code = self.code_state.lines.contains_key(&pfn);
                self.tlb
                    .insert_write(linear, self.context, mapping, has_code);
            }
        }
        Ok(Target::Ram { page, pfn })
    }

    /// The RAM that code at `linear` is fetched from, and its frame. `None`: there is none.
    pub(crate) fn fetch_page<B: Bus>(
        &mut self,
        bus: &mut B,
        linear: u64,
    ) -> Result<Option<(RamPage, u64)>, Exit> {
        self.check_canonical(linear, 1, seg::CS)?;
        Ok(match self.translate(bus, linear, AccessKind::Fetch)? {
            Target::Ram { page, pfn } => Some((page, pfn)),
            Target::Mmio { .. } => None,
        })
    }

    /// The RAM page behind `linear`, for as many bytes as the page has left; `None` for MMIO and for
    /// stores into decoded code. String instructions move whole runs with it.
    pub(crate) fn run_page<B: Bus>(
        &mut self,
        bus: &mut B,
        linear: u64,
        kind: AccessKind,
    ) -> Result<Option<RamPage>, Exit> {
        if self.is_long() && !Self::is_canonical(linear) {
            return Ok(None);
        }
        Ok(match self.translate(bus, linear, kind)? {
            Target::Ram { pfn, .. }
                if kind == AccessKind::Write && self.code_state.lines.contains_key(&pfn) =>
            {
                None
            }
            Target::Ram { page, .. } => Some(page),
            Target::Mmio { .. } => None,
        })
    }

    /// Whether a store hits a line with decoded code.
    pub(crate) fn hits_code(&self, pfn: u64, offset: usize, len_bytes: usize) -> bool {
        self.code_state
            .lines
            .get(&pfn)
            .is_some_and(|lines| lines.mask & line_mask(offset, len_bytes) != 0)
    }

    /// Makes decoded code stale that a store hits, or that many stores have passed by.
    pub(crate) fn note_code_write(&mut self, pfn: u64, offset: usize, len_bytes: usize) {
        if let Some(lines) = self.code_state.lines.get_mut(&pfn)
            && (lines.mask & line_mask(offset, len_bytes) != 0 || lines.spare())
        {
            self.code_state.stale.push(pfn);
            self.attention = true;
        }
    }
}

/// The 64-byte lines of a page that `offset..offset + len_bytes` touches.
pub(crate) fn line_mask(offset: usize, len_bytes: usize) -> u64 {
    let first = offset / 64;
    let last = (offset + len_bytes.max(1) - 1).min(PAGE_BYTES - 1) / 64;
    (u64::MAX >> (63 - last)) & (u64::MAX << first)
}
