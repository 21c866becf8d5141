//! A corpus filter as bytes in the caller's memory: [`Image`].
//!
//! The structure and its bitmaps go into one window that ends where memory ends, so that "this many bytes
//! are readable" can be said of any of them.

use msrgate_core::{Errno, FILTER_BYTES_32, FILTER_BYTES_64, MAX_RANGES};

use crate::case::{Bit, Filter, Pointer, Range, Request};

/// Bytes of the window: 16 bitmaps of the largest size, and the structure.
pub const WINDOW_BYTES: usize = 0x8000;
/// Where a structure that lies inside the window begins.
const STRUCTURE_AT: usize = 0;
/// Where the first bitmap begins; the others follow.
const BITMAPS_AT: usize = 0x400;
/// A bitmap of the largest size, and room to shift it by a byte.
const BITMAP_STRIDE: usize = 0x608;

/// The window's bytes, and where in it the ioctl's argument is.
#[derive(Debug)]
pub struct Image {
    base: u64,
    /// What the window holds.
    pub bytes: Vec<u8>,
    /// The address of the structure.
    pub argument: u64,
}

impl Image {
    /// Lays `filter` out in a window that begins at `base`.
    #[must_use]
    pub fn new(filter: &Filter, base: u64) -> Self {
        let mut image = Self {
            base,
            bytes: vec![0; WINDOW_BYTES],
            argument: 0,
        };
        let structure = image.structure(filter);
        image.argument = image.address(filter.pointer, STRUCTURE_AT);
        image.put(image.argument, &structure);
        image
    }

    /// Lays any structure out at `pointer`.
    #[must_use]
    pub fn of_structure(structure: &[u8], pointer: Pointer, base: u64) -> Self {
        let mut image = Self {
            base,
            bytes: vec![0; WINDOW_BYTES],
            argument: 0,
        };
        image.argument = image.address(pointer, STRUCTURE_AT);
        image.put(image.argument, structure);
        image
    }

    /// Reads as a kernel does: nothing outside the window can be read.
    ///
    /// # Errors
    /// EFAULT.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        let start = address.checked_sub(self.base).ok_or(Errno::EFAULT)?;
        let start = usize::try_from(start).map_err(|_| Errno::EFAULT)?;
        let end = start.checked_add(bytes.len()).ok_or(Errno::EFAULT)?;
        bytes.copy_from_slice(self.bytes.get(start..end).ok_or(Errno::EFAULT)?);
        Ok(())
    }

    fn structure(&mut self, filter: &Filter) -> Vec<u8> {
        let layout = match filter.request {
            Request::Native => NATIVE,
            Request::Compat => COMPAT,
        };
        let mut bytes = vec![filter.junk; layout.bytes];
        bytes[layout.ranges..].fill(0);
        bytes[..4].copy_from_slice(&filter.flags.to_le_bytes());
        for slot in 0..MAX_RANGES {
            let start = layout.ranges + slot * layout.stride;
            bytes[start + 12..start + layout.pointer].fill(filter.junk);
        }
        let mut next = 0;
        for range in &filter.ranges {
            let slot = range.slot.unwrap_or(next);
            next = slot + 1;
            let place = BITMAPS_AT + slot * BITMAP_STRIDE;
            let bitmap = self.address(range.pointer, place);
            if range.nmsrs <= 0x3000 {
                self.put(bitmap, &bitmap_bytes(range));
            }
            let start = layout.ranges + slot * layout.stride;
            for (offset, word) in [(0, range.flags), (4, range.nmsrs), (8, range.base)] {
                bytes[start + offset..start + offset + 4].copy_from_slice(&word.to_le_bytes());
            }
            let pointer = &bitmap.to_le_bytes()[..layout.stride - layout.pointer];
            bytes[start + layout.pointer..start + layout.stride].copy_from_slice(pointer);
        }
        bytes
    }

    fn address(&self, pointer: Pointer, place: usize) -> u64 {
        let end = self.base + WINDOW_BYTES as u64;
        match pointer {
            Pointer::Aligned => self.base + place as u64,
            Pointer::Unaligned => self.base + place as u64 + 1,
            Pointer::Null => 0,
            Pointer::Kernel => 0xffff_ffff_8100_0000,
            Pointer::Unreadable => end,
            Pointer::End(readable) => end - u64::from(readable),
        }
    }

    /// Writes what lies inside the window.
    fn put(&mut self, address: u64, bytes: &[u8]) {
        for (address, &byte) in (address..).zip(bytes) {
            let offset = address
                .checked_sub(self.base)
                .and_then(|n| usize::try_from(n).ok());
            if let Some(place) = offset.and_then(|offset| self.bytes.get_mut(offset)) {
                *place = byte;
            }
        }
    }
}

/// Offsets of the structure, for one kind of caller.
struct Layout {
    bytes: usize,
    ranges: usize,
    stride: usize,
    pointer: usize,
}

const NATIVE: Layout = Layout {
    bytes: FILTER_BYTES_64,
    ranges: 8,
    stride: 24,
    pointer: 16,
};
const COMPAT: Layout = Layout {
    bytes: FILTER_BYTES_32,
    ranges: 4,
    stride: 16,
    pointer: 12,
};

/// Whole words; the bits past the end say the opposite of the others, because nobody may look at them.
fn bitmap_bytes(range: &Range) -> Vec<u8> {
    let words = range.nmsrs.div_ceil(64);
    let mut bytes = vec![0u8; words as usize * 8];
    for position in 0..words * 64 {
        let opposite = position >= range.nmsrs || range.except.contains(&position);
        if (range.bitmap == Bit::Allow) != opposite {
            bytes[position as usize / 8] |= 1 << (position % 8);
        }
    }
    bytes
}
