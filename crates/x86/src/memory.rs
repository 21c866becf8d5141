//! Loads and stores without partial effects.
//!
//! The fast path is a TLB hit within one page. The slow one translates every page of the access before
//! it touches any. Where there is no RAM, or a store would hit decoded code, the instruction is
//! executed again in careful mode ([`Exit::Careful`]); there, loads find the answers of earlier stops in the
//! [`MmioBuffer`](crate::mmio::MmioBuffer) and stores wait in it until the instruction retires.

use crate::control::cr4;
use crate::int::Datum;
use crate::op::{Exit, Flow, Op};
use crate::page::{Piece, Pieces, Target};
use crate::tlb::Context;
use crate::walk::AccessKind;
use crate::{Bus, Cpu, PAGE_BYTES};

/// Operands.
impl Cpu {
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
        if let Some(linear) = self.plain_linear(op)
            && self.try_write(bus, linear, value)
        {
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
        if let Some(linear) = self.plain_linear(op)
            && let Some(page) = self.tlb.write.find(linear, self.context)
            && let offset = linear as usize % PAGE_BYTES
            && offset <= PAGE_BYTES - T::BYTES
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
        self.try_read(bus, self.plain_linear(op)?)
    }

    #[cold]
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
        let offset = linear as usize % PAGE_BYTES;
        if let Some(page) = self.tlb.read.find(linear, self.context)
            && offset <= PAGE_BYTES - T::BYTES
        {
            return Some(T::load(bus, page, offset));
        }
        None
    }

    /// Stores to a linear address, if it takes nothing but a TLB hit.
    #[inline(always)]
    pub(crate) fn try_write<B: Bus, T: Datum>(&self, bus: &mut B, linear: u64, value: T) -> bool {
        let offset = linear as usize % PAGE_BYTES;
        if let Some(page) = self.tlb.write.find(linear, self.context)
            && offset <= PAGE_BYTES - T::BYTES
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
}
