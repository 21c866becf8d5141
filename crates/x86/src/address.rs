//! From operands to linear addresses: base, index and displacement, and segmentation.

use crate::op::{Addressing, Exit, Fault, Flow, Op};
use crate::walk::AccessKind;
use crate::{Cpu, reg, seg};

const MASK: usize = reg::COUNT - 1;

impl Cpu {
    /// Offset of the memory operand, before it is cut to the address size.
    #[inline(always)]
    pub(crate) fn offset<B>(&self, op: &Op<B>) -> u64 {
        self.gpr[op.base as usize & MASK]
            .wrapping_add(self.gpr[op.index as usize & MASK] << op.addressing.scale())
            .wrapping_add(op.disp)
    }

    /// Linear address of the memory operand, if there is nothing to check.
    #[inline(always)]
    pub(crate) fn plain_linear<B>(&self, op: &Op<B>) -> Option<u64> {
        let offset = self.offset(op);
        if op.addressing.is_flat() {
            Some(offset)
        } else if op.addressing.is_based() {
            let base = self.segs[seg::FS | op.addressing.segment() & 1].base;
            Some(base.wrapping_add(offset))
        } else {
            None
        }
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
        } else if self.is_64() {
            Ok(self.based(op.addressing, offset))
        } else {
            self.segmented(op.addressing, offset, len_bytes, kind)
        }
    }

    /// Linear address of `offset` in 64-bit mode, where only FS and GS have a base.
    #[inline(always)]
    fn based(&self, addressing: Addressing, offset: u64) -> u64 {
        let base = match addressing.segment() {
            segment @ (seg::FS | seg::GS) => self.segs[segment].base,
            _ => 0,
        };
        base.wrapping_add(offset & addressing.mask())
    }

    /// Linear address of `offset` in a segment, after its checks.
    #[inline]
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
    #[inline]
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
    #[inline]
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

    /// Long mode has no addresses outside the canonical ones. `segment` tells #SS from #GP.
    pub(crate) fn check_canonical(
        &mut self,
        linear: u64,
        len_bytes: usize,
        segment: usize,
    ) -> Flow {
        let last = linear.wrapping_add(len_bytes as u64 - 1);
        if !self.is_long() || Self::is_canonical(linear) && Self::is_canonical(last) {
            return Ok(());
        }
        let fault = if segment == seg::SS {
            Fault::SS
        } else {
            Fault::GP
        };
        Err(self.raise(fault))
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
