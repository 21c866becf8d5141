//! The operand sizes, as types.

use crate::{Bus, RamPage, reg};

/// An unsigned integer that memory accesses move.
pub(crate) trait Datum: Copy {
    /// Size in bytes.
    const BYTES: usize;

    /// Loads from RAM.
    fn load<B: Bus>(bus: &B, page: RamPage, offset: usize) -> Self;

    /// Stores to RAM.
    fn store<B: Bus>(self, bus: &mut B, page: RamPage, offset: usize);

    /// From the first `Self::BYTES` of `bytes`.
    fn from_bytes(bytes: [u8; 16]) -> Self;

    /// Zero-extended.
    fn to_bytes(self) -> [u8; 16];
}

macro_rules! data {
    ($($type:ty)*) => {$(
        impl Datum for $type {
            const BYTES: usize = size_of::<$type>();

            #[inline(always)]
            fn load<B: Bus>(bus: &B, page: RamPage, offset: usize) -> Self {
                Self::from_le_bytes(bus.load(page, offset))
            }

            #[inline(always)]
            fn store<B: Bus>(self, bus: &mut B, page: RamPage, offset: usize) {
                bus.store(page, offset, self.to_le_bytes());
            }

            fn from_bytes(bytes: [u8; 16]) -> Self {
                u128::from_le_bytes(bytes) as Self
            }

            fn to_bytes(self) -> [u8; 16] {
                u128::from(self).to_le_bytes()
            }
        }
    )*};
}

data!(u8 u16 u32 u64 u128);

/// An integer operand: 8 to 64 bits.
pub(crate) trait Int: Datum + Eq {
    /// Size in bits.
    const BITS: u32 = Self::BYTES as u32 * 8;

    /// Zero-extended.
    fn zx(self) -> u64;

    /// Sign-extended.
    fn sx(self) -> u64;

    /// The low bits of `value`.
    fn cut(value: u64) -> Self;

    /// Reads a register.
    fn get(gpr: &[u64; reg::COUNT], number: u8) -> Self;

    /// Writes a register: 32 bits clear the upper half, 8 and 16 keep the rest.
    fn set(self, gpr: &mut [u64; reg::COUNT], number: u8);
}

const MASK: usize = reg::COUNT - 1;

impl Int for u8 {
    #[inline(always)]
    fn zx(self) -> u64 {
        u64::from(self)
    }

    #[inline(always)]
    fn sx(self) -> u64 {
        self as i8 as u64
    }

    #[inline(always)]
    fn cut(value: u64) -> Self {
        value as Self
    }

    #[inline(always)]
    fn get(gpr: &[u64; reg::COUNT], number: u8) -> Self {
        (gpr[number as usize & MASK] >> (number >> 2 & 8)) as Self
    }

    #[inline(always)]
    fn set(self, gpr: &mut [u64; reg::COUNT], number: u8) {
        let shift = number >> 2 & 8;
        let slot = &mut gpr[number as usize & MASK];
        *slot = *slot & !(0xff << shift) | u64::from(self) << shift;
    }
}

impl Int for u16 {
    #[inline(always)]
    fn zx(self) -> u64 {
        u64::from(self)
    }

    #[inline(always)]
    fn sx(self) -> u64 {
        self as i16 as u64
    }

    #[inline(always)]
    fn cut(value: u64) -> Self {
        value as Self
    }

    #[inline(always)]
    fn get(gpr: &[u64; reg::COUNT], number: u8) -> Self {
        gpr[number as usize & MASK] as Self
    }

    #[inline(always)]
    fn set(self, gpr: &mut [u64; reg::COUNT], number: u8) {
        let slot = &mut gpr[number as usize & MASK];
        *slot = *slot & !0xffff | u64::from(self);
    }
}

impl Int for u32 {
    #[inline(always)]
    fn zx(self) -> u64 {
        u64::from(self)
    }

    #[inline(always)]
    fn sx(self) -> u64 {
        self as i32 as u64
    }

    #[inline(always)]
    fn cut(value: u64) -> Self {
        value as Self
    }

    #[inline(always)]
    fn get(gpr: &[u64; reg::COUNT], number: u8) -> Self {
        gpr[number as usize & MASK] as Self
    }

    #[inline(always)]
    fn set(self, gpr: &mut [u64; reg::COUNT], number: u8) {
        gpr[number as usize & MASK] = u64::from(self);
    }
}

impl Int for u64 {
    #[inline(always)]
    fn zx(self) -> u64 {
        self
    }

    #[inline(always)]
    fn sx(self) -> u64 {
        self
    }

    #[inline(always)]
    fn cut(value: u64) -> Self {
        value
    }

    #[inline(always)]
    fn get(gpr: &[u64; reg::COUNT], number: u8) -> Self {
        gpr[number as usize & MASK]
    }

    #[inline(always)]
    fn set(self, gpr: &mut [u64; reg::COUNT], number: u8) {
        gpr[number as usize & MASK] = self;
    }
}
