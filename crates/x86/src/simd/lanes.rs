//! A 128-bit register as lanes: split, compute, join.
//!
//! Lane 0 is the least significant. Everything here is safe code that the compiler turns back into
//! vector instructions; nothing here knows of instructions or operands.

use core::array::from_fn;

/// A lane type, `N` of which fill a register.
pub(super) trait Lane<const N: usize>: Copy {
    fn split(register: u128) -> [Self; N];
    fn join(lanes: [Self; N]) -> u128;
}

macro_rules! lanes {
    ($($lane:ty, $count:literal;)*) => {$(
        impl Lane<$count> for $lane {
            fn split(register: u128) -> [Self; $count] {
                const BYTES: usize = size_of::<$lane>();
                let bytes = register.to_le_bytes();
                from_fn(|lane| <$lane>::from_le_bytes(from_fn(|byte| bytes[lane * BYTES + byte])))
            }

            fn join(lanes: [Self; $count]) -> u128 {
                let mut bytes = [0; 16];
                for (place, lane) in bytes.chunks_exact_mut(size_of::<$lane>()).zip(lanes) {
                    place.copy_from_slice(&lane.to_le_bytes());
                }
                u128::from_le_bytes(bytes)
            }
        }
    )*};
}

lanes! {
    u8, 16;
    i8, 16;
    u16, 8;
    i16, 8;
    u32, 4;
    i32, 4;
    u64, 2;
    i64, 2;
}

/// Each lane through `f`.
pub(super) fn map<T: Lane<N>, const N: usize>(register: u128, f: impl Fn(T) -> T) -> u128 {
    T::join(T::split(register).map(f))
}

/// Each pair of lanes through `f`.
pub(super) fn zip<T: Lane<N>, const N: usize>(a: u128, b: u128, f: impl Fn(T, T) -> T) -> u128 {
    let (a, b) = (T::split(a), T::split(b));
    T::join(from_fn(|lane| f(a[lane], b[lane])))
}

/// Lane `i` of the result is `f(i)`.
pub(super) fn build<T: Lane<N>, const N: usize>(f: impl Fn(usize) -> T) -> u128 {
    T::join(from_fn(f))
}

/// Neighbours folded: first `a`'s pairs, then `b`'s (PHADDW and relatives).
pub(super) fn pairs<T: Lane<N>, const N: usize>(a: u128, b: u128, f: impl Fn(T, T) -> T) -> u128 {
    let (a, b) = (T::split(a), T::split(b));
    build(|lane| {
        let (from, first) = if lane < N / 2 {
            (&a, 2 * lane)
        } else {
            (&b, 2 * lane - N)
        };
        f(from[first], from[first + 1])
    })
}

/// A lane for each answer: all ones or all zeros.
pub(super) fn mask<T: Lane<N>, const N: usize>(
    a: u128,
    b: u128,
    holds: impl Fn(&T, &T) -> bool,
) -> u128 {
    let (a, b) = (T::split(a), T::split(b));
    let (ones, zeros) = (T::split(u128::MAX), T::split(0));
    build(|lane| {
        if holds(&a[lane], &b[lane]) {
            ones[lane]
        } else {
            zeros[lane]
        }
    })
}

/// Bit `i` of the result is the sign of lane `i`.
pub(super) fn signs<T: Lane<N> + Into<i64>, const N: usize>(register: u128) -> u128 {
    T::split(register)
        .into_iter()
        .enumerate()
        .fold(0, |bits, (lane, value)| {
            bits | u128::from(value.into() < 0) << lane
        })
}
