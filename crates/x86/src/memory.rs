//! Loads and stores: operands to linear addresses to RAM or MMIO, without partial effects.
//!
//! The fast path is a TLB hit within one page. The slow one translates every page of the access before
//! it touches any. Where there is no RAM, or a store would hit decoded code, the instruction is
//! executed again in careful mode ([`Exit::Careful`]); there, loads find the answers of earlier stops in
//! [`MmioBuffer`] and stores wait in it until the instruction retires.

use crate::control::cr4;
use crate::int::Datum;
use crate::op::{Addressing, Exit, Fault, Flow, Op, vector};
use crate::tlb::{Context, Mapping};
use crate::walk::{Access, AccessKind, walk};
use crate::{Bus, Cpu, RamPage, Stop, reg, seg};

const PAGE: usize = crate::bus::PAGE_BYTES;
const MASK: usize = reg::COUNT - 1;

/// MMIO of the instruction that runs in careful mode.
#[derive(Clone, Debug, Default)]
pub(crate) struct MmioBuffer {
    /// Completed loads, in the instruction's order.
    loaded: Vec<Load>,
    /// How many of them the instruction has met since it was restarted.
    next: usize,
    /// The last of `loaded` has not been answered.
    asked: bool,
    /// Stores of the instruction; once it has retired, of the past.
    stored: Vec<Store>,
}

#[derive(Clone, Copy, Debug)]
struct Load {
    gpa: u64,
    len_bytes: u8,
    value: u64,
}

#[derive(Clone, Copy, Debug)]
struct Store {
    gpa: u64,
    len_bytes: u8,
    value: u64,
}

impl MmioBuffer {
    /// The instruction starts (again).
    pub(crate) fn start(&mut self) {
        if core::mem::take(&mut self.asked) {
            self.loaded.pop();
        }
        self.next = 0;
        self.stored.clear();
    }

    /// The instruction retires: what it loaded is used up, what it stored is to be done.
    pub(crate) fn commit(&mut self) -> bool {
        self.loaded.clear();
        !self.stored.is_empty()
    }

    /// The instruction faulted.
    pub(crate) fn abandon(&mut self) {
        self.loaded.clear();
        self.stored.clear();
    }

    /// The next store of the past, as a stop.
    pub(crate) fn next_store(&mut self) -> Option<Stop> {
        if self.stored.is_empty() {
            return None;
        }
        let Store {
            gpa,
            len_bytes,
            value,
        } = self.stored.remove(0);
        Some(Stop::MmioWrite {
            gpa,
            len_bytes,
            value,
        })
    }

    /// Whether an instruction is to be restarted with answers.
    pub(crate) fn has_answers(&self) -> bool {
        !self.loaded.is_empty()
    }

    /// Answers the load that stopped.
    pub(crate) fn complete(&mut self, value: u64) {
        if self.asked
            && let Some(load) = self.loaded.last_mut()
        {
            load.value = value;
            self.asked = false;
        }
    }

    /// The answer for a load, or `None` after noting that it must be asked for.
    fn load(&mut self, gpa: u64, len_bytes: u8) -> Option<u64> {
        if let Some(load) = self.loaded.get(self.next)
            && (load.gpa, load.len_bytes) == (gpa, len_bytes)
        {
            self.next += 1;
            return Some(load.value);
        }
        self.asked = true;
        self.loaded.truncate(self.next);
        self.loaded.push(Load {
            gpa,
            len_bytes,
            value: 0,
        });
        None
    }
}

/// A page of an access that was translated.
#[derive(Clone, Copy)]
enum Target {
    Ram { page: RamPage, pfn: u64 },
    Mmio { pfn: u64 },
}

/// Operands.
impl Cpu {
    /// Offset of the memory operand, before it is cut to the address size.
    #[inline(always)]
    pub(crate) fn offset<B>(&self, op: &Op<B>) -> u64 {
        self.gpr[op.base as usize & MASK]
            .wrapping_add(self.gpr[op.index as usize & MASK] << (op.scale & 3))
            .wrapping_add(op.disp)
    }

    /// Linear address of the memory operand, of which `len_bytes` will be accessed.
    #[inline(always)]
    pub(crate) fn linear<B>(
        &mut self,
        op: &Op<B>,
        len_bytes: usize,
        kind: AccessKind,
    ) -> Result<u64, Exit> {
        let offset = self.offset(op);
        if op.addressing.is_flat() {
            Ok(offset)
        } else {
            self.segmented(op.addressing, offset, len_bytes, kind)
        }
    }

    /// Loads the memory operand.
    #[inline(always)]
    pub(crate) fn load<B: Bus, T: Datum>(&mut self, bus: &mut B, op: &Op<B>) -> Result<T, Exit> {
        match self.try_load(bus, op) {
            Some(value) => Ok(value),
            None => self.load_slow(bus, op),
        }
    }

    /// Loads the memory operand and does the rest of the instruction with it. Where the load may be slow, all
    /// of it happens out of line, so that the fast path needs no stack frame.
    #[inline(always)]
    pub(crate) fn load_then<B: Bus, T: Datum>(
        &mut self,
        bus: &mut B,
        op: &Op<B>,
        rest: impl FnOnce(&mut Self, T),
    ) -> Flow {
        match self.try_load(bus, op) {
            Some(value) => {
                rest(self, value);
                Ok(())
            }
            None => self.load_then_slow(bus, op, rest),
        }
    }

    /// Stores the memory operand.
    #[inline(always)]
    pub(crate) fn store<B: Bus, T: Datum>(&mut self, bus: &mut B, op: &Op<B>, value: T) -> Flow {
        let linear = self.offset(op);
        if op.addressing.is_flat() && self.try_write(bus, linear, value) {
            return Ok(());
        }
        self.store_slow(bus, op, value)
    }

    /// Loads the memory operand, and stores what `change` makes of it. `change` is called once, when nothing can
    /// go wrong any more.
    #[inline(always)]
    pub(crate) fn update<B: Bus, T: Datum>(
        &mut self,
        bus: &mut B,
        op: &Op<B>,
        change: impl FnOnce(&mut Self, T) -> T,
    ) -> Flow {
        let linear = self.offset(op);
        let offset = linear as usize % PAGE;
        if op.addressing.is_flat()
            && let Some(page) = self.tlb.write.find(linear, self.context)
            && offset <= PAGE - T::BYTES
        {
            let value = change(self, T::load(bus, page, offset));
            value.store(bus, page, offset);
            return Ok(());
        }
        self.update_slow(bus, op, change)
    }

    /// The memory operand, if it takes nothing but a TLB hit.
    #[inline(always)]
    fn try_load<B: Bus, T: Datum>(&self, bus: &B, op: &Op<B>) -> Option<T> {
        if !op.addressing.is_flat() {
            return None;
        }
        self.try_read(bus, self.offset(op))
    }

    #[cold]
    #[inline(never)]
    fn load_slow<B: Bus, T: Datum>(&mut self, bus: &mut B, op: &Op<B>) -> Result<T, Exit> {
        let linear = self.linear(op, T::BYTES, AccessKind::Read)?;
        self.read(bus, linear, op.segment())
    }

    #[cold]
    #[inline(never)]
    fn load_then_slow<B: Bus, T: Datum>(
        &mut self,
        bus: &mut B,
        op: &Op<B>,
        rest: impl FnOnce(&mut Self, T),
    ) -> Flow {
        let value = self.load_slow(bus, op)?;
        rest(self, value);
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn store_slow<B: Bus, T: Datum>(&mut self, bus: &mut B, op: &Op<B>, value: T) -> Flow {
        let linear = self.linear(op, T::BYTES, AccessKind::Write)?;
        self.write(bus, linear, op.segment(), value)
    }

    #[cold]
    #[inline(never)]
    fn update_slow<B: Bus, T: Datum>(
        &mut self,
        bus: &mut B,
        op: &Op<B>,
        change: impl FnOnce(&mut Self, T) -> T,
    ) -> Flow {
        let linear = self.linear(op, T::BYTES, AccessKind::Write)?;
        let value = self.read_reserved(bus, linear, op.segment())?;
        let value = change(self, value);
        self.write_slow(bus, linear, op.segment(), value)
    }

    /// Linear address of `offset` in a segment, after its checks.
    #[inline(never)]
    pub(crate) fn segmented(
        &mut self,
        addressing: Addressing,
        offset: u64,
        len_bytes: usize,
        kind: AccessKind,
    ) -> Result<u64, Exit> {
        let offset = offset & addressing.mask();
        self.in_segment(addressing.segment(), offset, len_bytes, kind)
    }

    /// Linear address of `offset` in segment number `segment`, after its checks.
    pub(crate) fn in_segment(
        &mut self,
        segment: usize,
        offset: u64,
        len_bytes: usize,
        kind: AccessKind,
    ) -> Result<u64, Exit> {
        let segment = segment % 6;
        let base = self.segs[segment].base;
        if self.is_64() {
            return Ok(if segment >= seg::FS {
                base.wrapping_add(offset)
            } else {
                offset
            });
        }
        if !self.segment_allows(segment, offset, len_bytes, kind) {
            let fault = if segment == seg::SS {
                Fault::SS
            } else {
                Fault::GP
            };
            return Err(self.raise(fault));
        }
        Ok(base.wrapping_add(offset) & 0xffff_ffff)
    }

    /// The checks of segments outside 64-bit mode (SDM vol. 3, 5.3 to 5.5).
    fn segment_allows(
        &self,
        segment: usize,
        offset: u64,
        len_bytes: usize,
        kind: AccessKind,
    ) -> bool {
        const CODE: u8 = 8;
        const EXPAND_DOWN: u8 = 4;
        const READ_OR_WRITE: u8 = 2;
        let Some(last) = offset.checked_add(len_bytes as u64 - 1) else {
            return false;
        };
        let it = &self.segs[segment];
        let limit = u64::from(it.limit);
        if self.is_real() || self.is_v86() {
            return last <= limit;
        }
        let is_code = it.type_ & CODE != 0;
        let allowed = match kind {
            AccessKind::Fetch => true,
            AccessKind::Read => !is_code || it.type_ & READ_OR_WRITE != 0,
            AccessKind::Write => !is_code && it.type_ & READ_OR_WRITE != 0,
        };
        let inside = if !is_code && it.type_ & EXPAND_DOWN != 0 {
            let top = if it.db { 0xffff_ffff } else { 0xffff };
            offset > limit && last <= top
        } else {
            last <= limit
        };
        allowed && inside && !it.unusable
    }
}

impl<B> Op<B> {
    /// The segment that a bad address is blamed on.
    #[inline(always)]
    pub(crate) fn segment(&self) -> usize {
        if !self.addressing.is_flat() {
            self.addressing.segment()
        } else if self.base & !1 == 4 {
            seg::SS
        } else {
            seg::DS
        }
    }
}

/// Linear addresses. `segment` only tells #SS from #GP.
impl Cpu {
    /// Loads from a linear address.
    #[inline(always)]
    pub(crate) fn read<B: Bus, T: Datum>(
        &mut self,
        bus: &mut B,
        linear: u64,
        segment: usize,
    ) -> Result<T, Exit> {
        match self.try_read(bus, linear) {
            Some(value) => Ok(value),
            None => self.read_slow(bus, linear, segment),
        }
    }

    /// Stores to a linear address.
    #[inline(always)]
    pub(crate) fn write<B: Bus, T: Datum>(
        &mut self,
        bus: &mut B,
        linear: u64,
        segment: usize,
        value: T,
    ) -> Flow {
        if self.try_write(bus, linear, value) {
            return Ok(());
        }
        self.write_slow(bus, linear, segment, value)
    }

    /// What is at a linear address, if it takes nothing but a TLB hit.
    #[inline(always)]
    pub(crate) fn try_read<B: Bus, T: Datum>(&self, bus: &B, linear: u64) -> Option<T> {
        let offset = linear as usize % PAGE;
        if let Some(page) = self.tlb.read.find(linear, self.context)
            && offset <= PAGE - T::BYTES
        {
            return Some(T::load(bus, page, offset));
        }
        None
    }

    /// Stores to a linear address, if it takes nothing but a TLB hit.
    #[inline(always)]
    pub(crate) fn try_write<B: Bus, T: Datum>(&self, bus: &mut B, linear: u64, value: T) -> bool {
        let offset = linear as usize % PAGE;
        if let Some(page) = self.tlb.write.find(linear, self.context)
            && offset <= PAGE - T::BYTES
        {
            value.store(bus, page, offset);
            return true;
        }
        false
    }

    /// Loads as the processor itself, whatever CPL is: descriptor tables, TSS. No RAM there reads as ones.
    pub(crate) fn read_system<B: Bus, T: Datum>(
        &mut self,
        bus: &mut B,
        linear: u64,
    ) -> Result<T, Exit> {
        self.as_system(|cpu| {
            let mut bytes = [0; 16];
            for piece in cpu.pieces(bus, linear, T::BYTES, AccessKind::Read)?.iter() {
                match piece.target {
                    Target::Ram { page, .. } => {
                        bus.load_bytes(page, piece.offset, &mut bytes[piece.from..piece.to]);
                    }
                    Target::Mmio { .. } => bytes[piece.from..piece.to].fill(0xff),
                }
            }
            Ok(T::from_bytes(bytes))
        })
    }

    /// Stores as the processor itself. No RAM there takes nothing.
    pub(crate) fn write_system<B: Bus, T: Datum>(
        &mut self,
        bus: &mut B,
        linear: u64,
        value: T,
    ) -> Flow {
        self.as_system(|cpu| cpu.write_ram_only(bus, linear, value))
    }

    /// Stores with the privilege of `cpl`: the frame of an interrupt. No RAM there takes nothing.
    pub(crate) fn write_as<B: Bus, T: Datum>(
        &mut self,
        bus: &mut B,
        linear: u64,
        value: T,
        cpl: u8,
    ) -> Flow {
        let context = self.context;
        self.context = Context::new(cpl == 3, cpl != 3 && self.cr4 & cr4::SMAP != 0);
        let flow = self.write_ram_only(bus, linear, value);
        self.context = context;
        flow
    }

    fn write_ram_only<B: Bus, T: Datum>(&mut self, bus: &mut B, linear: u64, value: T) -> Flow {
        let bytes = value.to_bytes();
        for piece in self
            .pieces(bus, linear, T::BYTES, AccessKind::Write)?
            .iter()
        {
            if let Target::Ram { page, pfn } = piece.target {
                self.note_code_write(pfn, piece.offset, piece.to - piece.from);
                bus.store_bytes(page, piece.offset, &bytes[piece.from..piece.to]);
            }
        }
        Ok(())
    }

    fn as_system<T>(&mut self, access: impl FnOnce(&mut Self) -> T) -> T {
        let context = self.context;
        self.context = Context::new(false, self.cr4 & cr4::SMAP != 0);
        let answer = access(self);
        self.context = context;
        answer
    }

    /// Makes sure that a store of `len_bytes` (at most 16) will succeed: page faults come now.
    pub(crate) fn reserve<B: Bus>(
        &mut self,
        bus: &mut B,
        linear: u64,
        segment: usize,
        len_bytes: usize,
    ) -> Flow {
        self.check_canonical(linear, len_bytes, segment)?;
        for piece in self
            .pieces(bus, linear, len_bytes, AccessKind::Write)?
            .iter()
        {
            self.may_store(piece)?;
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn read_slow<B: Bus, T: Datum>(
        &mut self,
        bus: &mut B,
        linear: u64,
        segment: usize,
    ) -> Result<T, Exit> {
        self.check_canonical(linear, T::BYTES, segment)?;
        let pieces = self.pieces(bus, linear, T::BYTES, AccessKind::Read)?;
        self.read_pieces(bus, &pieces)
    }

    /// Loads with the intention to store: faults are those of a store.
    #[cold]
    #[inline(never)]
    fn read_reserved<B: Bus, T: Datum>(
        &mut self,
        bus: &mut B,
        linear: u64,
        segment: usize,
    ) -> Result<T, Exit> {
        self.check_canonical(linear, T::BYTES, segment)?;
        let pieces = self.pieces(bus, linear, T::BYTES, AccessKind::Write)?;
        for piece in pieces.iter() {
            self.may_store(piece)?;
        }
        self.read_pieces(bus, &pieces)
    }

    fn read_pieces<B: Bus, T: Datum>(&mut self, bus: &mut B, pieces: &Pieces) -> Result<T, Exit> {
        let mut bytes = [0; 16];
        for piece in pieces.iter() {
            match piece.target {
                Target::Ram { page, .. } => {
                    bus.load_bytes(page, piece.offset, &mut bytes[piece.from..piece.to]);
                }
                Target::Mmio { pfn } => {
                    let gpa = pfn << 12 | piece.offset as u64;
                    self.load_mmio(gpa, &mut bytes[piece.from..piece.to])?;
                }
            }
        }
        Ok(T::from_bytes(bytes))
    }

    #[cold]
    #[inline(never)]
    fn write_slow<B: Bus, T: Datum>(
        &mut self,
        bus: &mut B,
        linear: u64,
        segment: usize,
        value: T,
    ) -> Flow {
        self.check_canonical(linear, T::BYTES, segment)?;
        let pieces = self.pieces(bus, linear, T::BYTES, AccessKind::Write)?;
        for piece in pieces.iter() {
            self.may_store(piece)?;
        }
        let bytes = value.to_bytes();
        for piece in pieces.iter() {
            let bytes = &bytes[piece.from..piece.to];
            match piece.target {
                Target::Ram { page, pfn } => {
                    self.note_code_write(pfn, piece.offset, bytes.len());
                    bus.store_bytes(page, piece.offset, bytes);
                }
                Target::Mmio { pfn } => self.store_mmio(pfn << 12 | piece.offset as u64, bytes),
            }
        }
        Ok(())
    }

    /// Outside careful mode, a store must hit neither MMIO nor decoded code.
    fn may_store(&self, piece: &Piece) -> Flow {
        let special = match piece.target {
            Target::Ram { pfn, .. } => self.hits_code(pfn, piece.offset, piece.to - piece.from),
            Target::Mmio { .. } => true,
        };
        if special && !self.careful {
            Err(Exit::Careful)
        } else {
            Ok(())
        }
    }

    fn check_canonical(&mut self, linear: u64, len_bytes: usize, segment: usize) -> Flow {
        let last = linear.wrapping_add(len_bytes as u64 - 1);
        if !self.is_long() || Self::is_canonical(linear) && Self::is_canonical(last) {
            return Ok(());
        }
        let fault = if segment == seg::SS {
            vector::SS
        } else {
            vector::GP
        };
        Err(self.raise(Fault::coded(fault, 0)))
    }
}

/// The part of an access that lies in one page.
#[derive(Clone, Copy)]
struct Piece {
    target: Target,
    /// Within the page.
    offset: usize,
    /// Within the access.
    from: usize,
    to: usize,
}

/// One or two pieces.
struct Pieces {
    first: Piece,
    second: Option<Piece>,
}

impl Pieces {
    fn iter(&self) -> impl Iterator<Item = &Piece> {
        core::iter::once(&self.first).chain(&self.second)
    }
}

/// Pages.
impl Cpu {
    fn pieces<B: Bus>(
        &mut self,
        bus: &mut B,
        linear: u64,
        len_bytes: usize,
        kind: AccessKind,
    ) -> Result<Pieces, Exit> {
        let offset = linear as usize % PAGE;
        let first_len = len_bytes.min(PAGE - offset);
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
    fn hits_code(&self, pfn: u64, offset: usize, len_bytes: usize) -> bool {
        self.code_state
            .lines
            .get(&pfn)
            .is_some_and(|lines| lines & line_mask(offset, len_bytes) != 0)
    }

    /// Makes decoded code stale that a store hits.
    fn note_code_write(&mut self, pfn: u64, offset: usize, len_bytes: usize) {
        if self.hits_code(pfn, offset, len_bytes) {
            self.code_state.stale.push(pfn);
            self.attention = true;
        }
    }

    fn load_mmio(&mut self, gpa: u64, bytes: &mut [u8]) -> Flow {
        if !self.careful {
            return Err(Exit::Careful);
        }
        let mut gpa = gpa;
        for part in bytes.chunks_mut(8) {
            let len_bytes = part.len() as u8;
            let Some(value) = self.mmio.load(gpa, len_bytes) else {
                return Err(self.stop(Stop::MmioRead { gpa, len_bytes }));
            };
            part.copy_from_slice(&value.to_le_bytes()[..part.len()]);
            gpa += 8;
        }
        Ok(())
    }

    fn store_mmio(&mut self, gpa: u64, bytes: &[u8]) {
        let mut gpa = gpa;
        for part in bytes.chunks(8) {
            let mut value = [0; 8];
            value[..part.len()].copy_from_slice(part);
            self.mmio.stored.push(Store {
                gpa,
                len_bytes: part.len() as u8,
                value: u64::from_le_bytes(value),
            });
            gpa += 8;
        }
    }
}

/// The 64-byte lines of a page that `offset..offset + len_bytes` touches.
pub(crate) fn line_mask(offset: usize, len_bytes: usize) -> u64 {
    let first = offset / 64;
    let last = (offset + len_bytes.max(1) - 1).min(PAGE - 1) / 64;
    (u64::MAX >> (63 - last)) & (u64::MAX << first)
}
