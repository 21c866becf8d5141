//! `struct kvm_msr_filter` as bytes, and the checks of `KVM_X86_SET_MSR_FILTER` in the kernel's order.
//!
//! [`RawFilter`] is what a caller wrote, unchecked; [`RawFilter::check`] makes it an [`MsrFilter`] or says
//! why not. How a caller's memory is read is the caller's business: a function is passed in.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::array;

use crate::filter::{check_default, check_range};
use crate::{
    DefaultAction, Errno, FilterError, FilterRange, MAX_RANGES, MsrFilter, MsrIndex, RangeFlags,
};

/// Bytes of `struct kvm_msr_filter` in a 64-bit caller.
pub const FILTER_BYTES_64: usize = 392;
/// Bytes of `struct kvm_msr_filter` in a 32-bit caller (`struct kvm_msr_filter_compat`).
pub const FILTER_BYTES_32: usize = 260;

/// `struct kvm_msr_filter`: what the caller of `KVM_X86_SET_MSR_FILTER` asks for.
///
/// ```
/// use msrgate_core::{Errno, FILTER_BYTES_64, RawFilter};
///
/// let mut bytes = [0; FILTER_BYTES_64];
/// bytes[0] = 1; // default deny, and no range
/// let refused = RawFilter::from_bytes_64(&bytes).check(|_, _| Ok(())).unwrap_err();
/// assert_eq!(refused.errno(), Errno::EINVAL);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawFilter {
    /// Bit 0: default deny. The rest is not defined.
    pub flags: u32,
    /// All slots, used or not.
    pub ranges: [RawRange; MAX_RANGES],
}

/// `struct kvm_msr_filter_range`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawRange {
    /// Bits 0 and 1: reads, writes. The rest is not defined.
    pub flags: u32,
    /// How many MSRs; 0 for a slot that is not used.
    pub nmsrs: u32,
    /// The first MSR.
    pub base: u32,
    /// Where the bitmap is, in the caller's memory.
    pub bitmap: u64,
}

impl RawFilter {
    /// Reads the layout of a 64-bit caller. Padding is not looked at.
    #[must_use]
    pub fn from_bytes_64(bytes: &[u8; FILTER_BYTES_64]) -> Self {
        Self::from_words(bytes, &LAYOUT_64, |slot| {
            u64::from(word(bytes, slot + LAYOUT_64.bitmap))
                | u64::from(word(bytes, slot + LAYOUT_64.bitmap + 4)) << 32
        })
    }

    /// Reads the layout of a 32-bit caller.
    #[must_use]
    pub fn from_bytes_32(bytes: &[u8; FILTER_BYTES_32]) -> Self {
        Self::from_words(bytes, &LAYOUT_32, |slot| {
            u64::from(word(bytes, slot + LAYOUT_32.bitmap))
        })
    }

    /// Checks as `kvm_vm_ioctl_set_msr_filter` does and copies the bitmaps with `copy`, which fills whole
    /// words (bit `n` of the bitmap is bit `n % 8` of byte `n / 8`) from an address that need not be aligned.
    ///
    /// The first broken rule wins, slot by slot, so that an unreadable bitmap in one slot hides a bad flag
    /// in a later one. An empty slot is not looked at.
    ///
    /// # Errors
    /// The rule; [`FilterError::errno`] is what the ioctl answers.
    pub fn check(
        &self,
        mut copy: impl FnMut(u64, &mut [u64]) -> Result<(), Errno>,
    ) -> Result<MsrFilter, FilterError> {
        let default = match self.flags {
            0 => DefaultAction::Allow,
            DEFAULT_DENY => DefaultAction::Deny,
            flags => return Err(FilterError::Flags { flags }),
        };
        check_default(default, self.ranges.iter().map(|range| range.nmsrs))?;
        let mut used = Vec::new();
        for (slot, range) in self.ranges.iter().enumerate() {
            let flags = RangeFlags(range.flags);
            let words = check_range(slot, flags, range.nmsrs)?;
            if words == 0 {
                continue;
            }
            let mut bitmap: Box<[u64]> = alloc::vec![0; words].into();
            copy(range.bitmap, &mut bitmap).map_err(|errno| FilterError::Unreadable {
                pointer: range.bitmap,
                errno,
            })?;
            used.push(FilterRange {
                flags,
                base: MsrIndex(range.base),
                nmsrs: range.nmsrs,
                bitmap,
            });
        }
        Ok(MsrFilter::from_checked(default, used))
    }

    fn from_words(bytes: &[u8], layout: &Layout, bitmap: impl Fn(usize) -> u64) -> Self {
        let ranges = array::from_fn(|slot| {
            let start = layout.ranges + slot * layout.stride;
            RawRange {
                flags: word(bytes, start + RANGE_FLAGS),
                nmsrs: word(bytes, start + RANGE_NMSRS),
                base: word(bytes, start + RANGE_BASE),
                bitmap: bitmap(start),
            }
        });
        Self {
            flags: word(bytes, FILTER_FLAGS),
            ranges,
        }
    }
}

/// `KVM_MSR_FILTER_DEFAULT_DENY`.
const DEFAULT_DENY: u32 = 1;

const FILTER_FLAGS: usize = 0;
const RANGE_FLAGS: usize = 0;
const RANGE_NMSRS: usize = 4;
const RANGE_BASE: usize = 8;

/// Where the layouts differ: in what a pointer's size and alignment decide.
struct Layout {
    /// The first range.
    ranges: usize,
    /// From one range to the next.
    stride: usize,
    /// The bitmap's pointer, in a range.
    bitmap: usize,
}

const LAYOUT_64: Layout = Layout {
    ranges: 8,
    stride: 24,
    bitmap: 16,
};
const LAYOUT_32: Layout = Layout {
    ranges: 4,
    stride: 16,
    bitmap: 12,
};

const _: () = {
    assert!(LAYOUT_64.bitmap + 8 == LAYOUT_64.stride);
    assert!(LAYOUT_32.bitmap + 4 == LAYOUT_32.stride);
    assert!(LAYOUT_64.ranges + MAX_RANGES * LAYOUT_64.stride == FILTER_BYTES_64);
    assert!(LAYOUT_32.ranges + MAX_RANGES * LAYOUT_32.stride == FILTER_BYTES_32);
};

/// The little-endian word at `offset`, which lies inside `bytes` by the assertions above.
fn word(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(array::from_fn(|byte| bytes[offset + byte]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Access, MAX_MSRS, Verdict};

    /// No bitmap can be read.
    fn unreadable(_: u64, _: &mut [u64]) -> Result<(), Errno> {
        Err(Errno::EFAULT)
    }

    /// Pointer 0 cannot be read; elsewhere there are only zeros.
    fn zeros(pointer: u64, words: &mut [u64]) -> Result<(), Errno> {
        words.fill(0);
        if pointer == 0 {
            Err(Errno::EFAULT)
        } else {
            Ok(())
        }
    }

    fn one_slot(flags: u32, nmsrs: u32, bitmap: u64) -> RawFilter {
        let mut filter = empty();
        filter.ranges[3] = RawRange {
            flags,
            nmsrs,
            base: 0x10,
            bitmap,
        };
        filter
    }

    fn empty() -> RawFilter {
        RawFilter::from_bytes_64(&[0; FILTER_BYTES_64])
    }

    fn put(bytes: &mut [u8], offset: usize, value: u32) {
        bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }

    #[test]
    fn layout_64_is_read_at_the_documented_offsets() {
        let mut bytes = [0xee; FILTER_BYTES_64]; // padding holds junk
        put(&mut bytes, 0, 1);
        for slot in 0..16u32 {
            let at = 8 + slot as usize * 24;
            put(&mut bytes, at, 0x100 + slot);
            put(&mut bytes, at + 4, 0x200 + slot);
            put(&mut bytes, at + 8, 0x300 + slot);
            put(&mut bytes, at + 16, 0x400 + slot);
            put(&mut bytes, at + 20, 0x7fff);
        }
        let filter = RawFilter::from_bytes_64(&bytes);
        assert_eq!(filter.flags, 1);
        for (slot, range) in (0u32..).zip(filter.ranges) {
            assert_eq!(
                (range.flags, range.nmsrs, range.base, range.bitmap),
                (
                    0x100 + slot,
                    0x200 + slot,
                    0x300 + slot,
                    0x7fff_0000_0400 + u64::from(slot)
                )
            );
        }
    }

    #[test]
    fn layout_32_is_read_at_the_documented_offsets() {
        let mut bytes = [0; FILTER_BYTES_32];
        for slot in 0..16u32 {
            let at = 4 + slot as usize * 16;
            put(&mut bytes, at, 0x100 + slot);
            put(&mut bytes, at + 4, 0x200 + slot);
            put(&mut bytes, at + 8, 0x300 + slot);
            put(&mut bytes, at + 12, 0xffff_ff00 + slot);
        }
        let filter = RawFilter::from_bytes_32(&bytes);
        assert_eq!(filter.flags, 0);
        for (slot, range) in (0u32..).zip(filter.ranges) {
            assert_eq!(
                (range.flags, range.nmsrs, range.base, range.bitmap),
                (
                    0x100 + slot,
                    0x200 + slot,
                    0x300 + slot,
                    0xffff_ff00 + u64::from(slot)
                )
            );
        }
    }

    #[test]
    fn filter_flags_other_than_bit_0_are_refused() {
        for bit in 0..32 {
            let mut filter = one_slot(1, 1, 0x1000);
            filter.flags = 1 << bit;
            let answer = filter.check(zeros);
            if bit == 0 {
                assert_eq!(answer.unwrap().default_action(), DefaultAction::Deny);
            } else {
                assert_eq!(answer, Err(FilterError::Flags { flags: 1 << bit }));
            }
        }
    }

    #[test]
    fn bad_filter_flags_come_before_the_empty_deny_and_before_the_slots() {
        let mut filter = empty();
        filter.flags = 3;
        assert_eq!(
            filter.check(zeros),
            Err(FilterError::Flags { flags: 3 }),
            "not EmptyDeny"
        );
        let mut filter = one_slot(0xff, 1, 0);
        filter.flags = 2;
        assert_eq!(filter.check(zeros), Err(FilterError::Flags { flags: 2 }));
    }

    #[test]
    fn deny_with_only_empty_slots_is_refused_and_allow_is_not() {
        let mut filter = one_slot(0xffff_ffff, 0, 0);
        assert_eq!(filter.check(unreadable), Ok(MsrFilter::allow_all()));
        filter.flags = 1;
        assert_eq!(filter.check(unreadable), Err(FilterError::EmptyDeny));
    }

    #[test]
    fn range_flags_beat_size_beat_pointer() {
        let slot = 3;
        let nmsrs = MAX_MSRS + 1;
        for (filter, error, errno) in [
            (
                one_slot(4, nmsrs, 0),
                FilterError::RangeFlags { slot, flags: 4 },
                Errno::EINVAL,
            ),
            (
                one_slot(0, nmsrs, 0),
                FilterError::NoDirection { slot },
                Errno::EINVAL,
            ),
            (
                one_slot(3, nmsrs, 0),
                FilterError::TooManyMsrs { slot, nmsrs },
                Errno::EINVAL,
            ),
            (
                one_slot(3, u32::MAX, 0),
                FilterError::TooManyMsrs {
                    slot,
                    nmsrs: u32::MAX,
                },
                Errno::EINVAL,
            ),
            (
                one_slot(3, MAX_MSRS, 0),
                FilterError::Unreadable {
                    pointer: 0,
                    errno: Errno::EFAULT,
                },
                Errno::EFAULT,
            ),
        ] {
            assert_eq!(filter.check(zeros), Err(error));
            assert_eq!(error.errno(), errno);
        }
        assert!(one_slot(3, MAX_MSRS, 1).check(zeros).is_ok());
    }

    #[test]
    fn first_bad_slot_wins_whatever_its_error() {
        let bad_flags = RawRange {
            flags: 4,
            nmsrs: 1,
            base: 0,
            bitmap: 1,
        };
        let bad_pointer = RawRange {
            flags: 1,
            nmsrs: 1,
            base: 0,
            bitmap: 0,
        };
        let mut filter = empty();
        (filter.ranges[2], filter.ranges[9]) = (bad_pointer, bad_flags);
        assert_eq!(filter.check(zeros).unwrap_err().errno(), Errno::EFAULT);
        (filter.ranges[2], filter.ranges[9]) = (bad_flags, bad_pointer);
        assert_eq!(filter.check(zeros).unwrap_err().errno(), Errno::EINVAL);
    }

    #[test]
    fn errno_of_the_copy_is_passed_on() {
        let answer = one_slot(1, 1, 0x1000).check(|_, _| Err(Errno::ENOMEM));
        assert_eq!(answer.unwrap_err().errno(), Errno::ENOMEM);
    }

    #[test]
    fn whole_words_are_copied_from_each_pointer_once() {
        for (nmsrs, words) in [(1, 1), (64, 1), (65, 2), (MAX_MSRS, 192)] {
            let mut asked = Vec::new();
            let filter = one_slot(2, nmsrs, 0xabc1).check(|pointer, bitmap| {
                asked.push((pointer, bitmap.len()));
                bitmap.fill(0x8000_0000_0000_0001);
                Ok(())
            });
            assert_eq!(asked, [(0xabc1, words)]);
            let filter = filter.unwrap();
            let verdict = |index| filter.decide(MsrIndex(index), Access::Write).verdict;
            assert_eq!(verdict(0x10), Verdict::Allow);
            if nmsrs > 1 {
                assert_eq!(verdict(0x11), Verdict::Deny);
            }
        }
    }

    #[test]
    fn used_slots_are_compacted_in_order() {
        let mut filter = empty();
        for slot in [1, 5, 15] {
            filter.ranges[slot] = RawRange {
                flags: 3,
                nmsrs: 1,
                base: u32::try_from(slot).unwrap(),
                bitmap: 1,
            };
        }
        let filter = filter.check(zeros).unwrap();
        let bases: Vec<u32> = filter.ranges().iter().map(|range| range.base.0).collect();
        assert_eq!(bases, [1, 5, 15]);
    }
}
