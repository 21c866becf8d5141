//! [`SharedBytes`]: memory that somebody else reads and writes at the same time.
//!
//! Guest RAM and the run page are such memory. It is never a Rust reference: every access is volatile, by
//! value, and checked against the bounds.

// UNSAFETY: device threads of the client write guest RAM, and the client writes the run page, while we
// read them; only raw pointers can express that.
#![expect(
    unsafe_code,
    reason = "memory shared with the client cannot be a Rust slice"
)]

use std::ptr;

use crate::plain::Plain;

/// A run of bytes that others use too.
#[derive(Debug)]
pub(crate) struct SharedBytes {
    start: *mut u8,
    len: usize,
}

// SAFETY: the pointer is an address, not a borrow; all accesses through it are volatile.
unsafe impl Send for SharedBytes {}
// SAFETY: as above; `&self` methods only do volatile accesses to memory that is shared by its nature.
unsafe impl Sync for SharedBytes {}

impl SharedBytes {
    /// `len` bytes from `start`.
    ///
    /// # Safety
    /// They are mapped, and no Rust reference leads into them, whenever a method is called.
    pub(crate) unsafe fn new(start: *mut u8, len: usize) -> Self {
        Self { start, len }
    }

    pub(crate) fn start(&self) -> *mut u8 {
        self.start
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Loads a value at any alignment, if all of it is inside.
    #[inline(always)]
    pub(crate) fn load<T: Plain>(&self, offset: usize) -> Option<T> {
        let pointer = self.pointer(offset, size_of::<T>())?;
        // SAFETY: `pointer` answers only for `size_of::<T>()` bytes inside, which `new`'s caller keeps mapped;
        // any bytes are a `T: Plain`, and `Unaligned` has alignment 1.
        let value = unsafe { ptr::read_volatile(pointer.cast::<Unaligned<T>>()) };
        Some(value.0)
    }

    /// Stores a value at any alignment; whether all of it is inside.
    #[inline(always)]
    pub(crate) fn store<T: Plain>(&self, offset: usize, value: T) -> bool {
        let Some(pointer) = self.pointer(offset, size_of::<T>()) else {
            return false;
        };
        // SAFETY: as in `load`; a `T: Plain` has no uninitialised bytes to leak.
        unsafe { ptr::write_volatile(pointer.cast::<Unaligned<T>>(), Unaligned(value)) };
        true
    }

    /// Loads `N` bytes in as few accesses as there can be: one for 1, 2, 4, 8 and 16.
    #[inline(always)]
    pub(crate) fn load_array<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        match N {
            1 => bytes.copy_from_slice(&self.load::<u8>(offset)?.to_ne_bytes()),
            2 => bytes.copy_from_slice(&self.load::<u16>(offset)?.to_ne_bytes()),
            4 => bytes.copy_from_slice(&self.load::<u32>(offset)?.to_ne_bytes()),
            8 => bytes.copy_from_slice(&self.load::<u64>(offset)?.to_ne_bytes()),
            16 => bytes.copy_from_slice(&self.load::<u128>(offset)?.to_ne_bytes()),
            _ => return self.load_bytes(offset, &mut bytes).then_some(bytes),
        }
        Some(bytes)
    }

    /// Stores `N` bytes, likewise.
    #[inline(always)]
    pub(crate) fn store_array<const N: usize>(&self, offset: usize, bytes: [u8; N]) -> bool {
        match N {
            1 => self.store(offset, bytes[0]),
            2 => self.store(offset, u16::from_ne_bytes(head(&bytes))),
            4 => self.store(offset, u32::from_ne_bytes(head(&bytes))),
            8 => self.store(offset, u64::from_ne_bytes(head(&bytes))),
            16 => self.store(offset, u128::from_ne_bytes(head(&bytes))),
            _ => self.store_bytes(offset, &bytes),
        }
    }

    /// Fills `bytes`, if all of them are inside.
    pub(crate) fn load_bytes(&self, offset: usize, bytes: &mut [u8]) -> bool {
        let Some(pointer) = self.pointer(offset, bytes.len()) else {
            return false;
        };
        // SAFETY: as in `load`, for `bytes.len()` bytes; `bytes` is a reference, so not inside (`new`).
        unsafe { ptr::copy_nonoverlapping(pointer, bytes.as_mut_ptr(), bytes.len()) };
        true
    }

    /// Writes `bytes`, if there is room for all of them.
    pub(crate) fn store_bytes(&self, offset: usize, bytes: &[u8]) -> bool {
        let Some(pointer) = self.pointer(offset, bytes.len()) else {
            return false;
        };
        // SAFETY: as in `load_bytes`, in the other direction.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), pointer, bytes.len()) };
        true
    }

    /// Copies bytes of `from`, if they and their places are inside. Where they overlap, all are read first.
    pub(crate) fn copy_from(&self, offset: usize, from: &Self, from_offset: usize, len: usize) {
        if let (Some(source), Some(target)) =
            (from.pointer(from_offset, len), self.pointer(offset, len))
        {
            // SAFETY: as in `load` and `store`, for `len` bytes each.
            unsafe { ptr::copy(source, target, len) };
        }
    }

    /// Fills `len` bytes with one value, if they are inside.
    pub(crate) fn fill(&self, offset: usize, len: usize, value: u8) {
        if let Some(pointer) = self.pointer(offset, len) {
            // SAFETY: as in `store`, for `len` bytes.
            unsafe { ptr::write_bytes(pointer, value, len) };
        }
    }

    #[inline(always)]
    fn pointer(&self, offset: usize, len: usize) -> Option<*mut u8> {
        if offset > self.len || len > self.len - offset {
            return None;
        }
        Some(self.start.wrapping_add(offset))
    }
}

/// A value at any address.
#[repr(C, packed)]
struct Unaligned<T>(T);

/// The first `M` of `N` bytes.
fn head<const N: usize, const M: usize>(bytes: &[u8; N]) -> [u8; M] {
    *bytes
        .first_chunk()
        .expect("the caller has matched the length")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_is_inside_or_nothing() {
        let mut words = [0_u64; 2];
        // SAFETY: the array outlives `bytes`, and is not touched until then.
        let bytes = unsafe { SharedBytes::new((&raw mut words).cast(), 16) };
        assert!(bytes.store_array(7, [1, 2, 3, 4]));
        assert_eq!(bytes.load::<u32>(7), Some(0x0403_0201));
        assert_eq!(bytes.load_array::<16>(0).map(|all| all[10]), Some(4));
        for offset in [9, 16, 17, usize::MAX] {
            assert_eq!(bytes.load::<u64>(offset), None, "{offset}");
            assert!(!bytes.store(offset, 1_u64), "{offset}");
            assert!(!bytes.store_bytes(offset, &[0; 8]), "{offset}");
            assert!(!bytes.load_bytes(offset, &mut [0; 8]), "{offset}");
        }
    }
}
