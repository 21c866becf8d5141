//! The MSR filter: at most 16 bitmap ranges and a default, checked when made, immutable after.
//!
//! [`MsrFilter::decide`] is the kernel's own linear walk, word for word (`kvm_msr_allowed`), and so the
//! oracle of every faster form.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use crate::{Access, Errno, MsrIndex};

/// Ranges in one filter (`KVM_MSR_FILTER_MAX_RANGES`).
pub const MAX_RANGES: usize = 16;
/// Bytes of bitmap in one range (`KVM_MSR_FILTER_MAX_BITMAP_SIZE`).
pub const MAX_BITMAP_BYTES: u32 = 0x600;
/// MSRs in one range: one for each bit of the bitmap.
pub const MAX_MSRS: u32 = MAX_BITMAP_BYTES * 8;

/// What happens to an MSR that no range decides (`kvm_msr_filter.flags`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DefaultAction {
    /// `KVM_MSR_FILTER_DEFAULT_ALLOW`.
    Allow,
    /// `KVM_MSR_FILTER_DEFAULT_DENY`.
    Deny,
}

/// The directions that a range decides (`kvm_msr_filter_range.flags`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RangeFlags(pub u32);

impl RangeFlags {
    /// `KVM_MSR_FILTER_READ`.
    pub const READ: Self = Self(1);
    /// `KVM_MSR_FILTER_WRITE`.
    pub const WRITE: Self = Self(2);
    /// Both.
    pub const READ_WRITE: Self = Self(3);

    /// Whether a range with these flags decides about `access`.
    #[must_use]
    pub const fn contains(self, access: Access) -> bool {
        let flag = match access {
            Access::Read => Self::READ,
            Access::Write => Self::WRITE,
        };
        self.0 & flag.0 != 0
    }
}

/// One range of the filter (`struct kvm_msr_filter_range`).
///
/// The bitmap is whole 64-bit words, as the kernel copies it; bytes exist only at the ioctl.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FilterRange {
    /// The directions that it decides.
    pub flags: RangeFlags,
    /// The first MSR.
    pub base: MsrIndex,
    /// How many MSRs. 0: the slot is skipped, and nothing else in it is looked at.
    pub nmsrs: u32,
    /// Bit `n % 64` of word `n / 64` stands for MSR `base + n`: 1 allows, 0 denies. Words are
    /// `nmsrs` / 64, rounded up; bits past `nmsrs` mean nothing.
    pub bitmap: Box<[u64]>,
}

impl FilterRange {
    /// Words that the bitmap of `nmsrs` MSRs takes (`BITS_TO_LONGS`).
    #[must_use]
    pub const fn bitmap_words(nmsrs: u32) -> usize {
        nmsrs.div_ceil(64) as usize
    }

    /// A range whose MSRs all get the same answer.
    #[must_use]
    pub fn uniform(flags: RangeFlags, base: MsrIndex, nmsrs: u32, verdict: Verdict) -> Self {
        let word = match verdict {
            Verdict::Allow => u64::MAX,
            Verdict::Deny => 0,
        };
        Self {
            flags,
            base,
            nmsrs,
            bitmap: alloc::vec![word; Self::bitmap_words(nmsrs)].into(),
        }
    }

    /// Position of `index` in the bitmap, if the range holds it.
    ///
    /// The end is computed modulo 2^32, as in the kernel: a range that reaches 2^32 holds nothing.
    #[must_use]
    pub const fn position(&self, index: MsrIndex) -> Option<u32> {
        let end = self.base.0.wrapping_add(self.nmsrs);
        if index.0 >= self.base.0 && index.0 < end {
            Some(index.0 - self.base.0)
        } else {
            None
        }
    }

    /// The bit at `position`.
    #[must_use]
    pub fn verdict(&self, position: u32) -> Verdict {
        let word = self
            .bitmap
            .get(position as usize / 64)
            .copied()
            .unwrap_or(0);
        if word >> (position % 64) & 1 == 1 {
            Verdict::Allow
        } else {
            Verdict::Deny
        }
    }
}

/// The filter's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// KVM goes on to emulate the access.
    Allow,
    /// Nothing is emulated; the access leaves the guest with reason FILTER, or is #GP.
    Deny,
}

/// Who gave the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DecisionSource {
    /// x2APIC indices are never filtered.
    Exempt,
    /// The used range of this position, counted from 0.
    Range(u8),
    /// No range holds the MSR for this direction.
    Default,
    /// The VM has no filter.
    NoFilter,
}

/// A verdict and its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Decision {
    /// The answer.
    pub verdict: Verdict,
    /// Who gave it.
    pub source: DecisionSource,
}

/// An MSR filter that a kernel accepts.
///
/// ```
/// use msrgate_core::{Access, DefaultAction, FilterRange, MsrFilter, MsrIndex, RangeFlags, Verdict};
///
/// let deny = FilterRange::uniform(RangeFlags::READ, MsrIndex(0x10), 1, Verdict::Deny);
/// let filter = MsrFilter::new(DefaultAction::Allow, vec![deny])?;
/// assert_eq!(filter.decide(MsrIndex(0x10), Access::Read).verdict, Verdict::Deny);
/// assert_eq!(filter.decide(MsrIndex(0x10), Access::Write).verdict, Verdict::Allow);
/// # Ok::<(), msrgate_core::FilterError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MsrFilter {
    default: DefaultAction,
    ranges: Vec<FilterRange>,
}

impl MsrFilter {
    /// Checks the ranges as `kvm_vm_ioctl_set_msr_filter` does, in its order, and drops the empty ones.
    ///
    /// # Errors
    /// The first rule that is broken; [`FilterError::errno`] is what the ioctl answers.
    pub fn new(default: DefaultAction, ranges: Vec<FilterRange>) -> Result<Self, FilterError> {
        if ranges.len() > MAX_RANGES {
            return Err(FilterError::TooManyRanges {
                count: ranges.len(),
            });
        }
        check_default(default, ranges.iter().map(|range| range.nmsrs))?;
        for (slot, range) in ranges.iter().enumerate() {
            let words = check_range(slot, range.flags, range.nmsrs)?;
            if words != 0 && range.bitmap.len() != words {
                return Err(FilterError::Bitmap {
                    slot,
                    words: range.bitmap.len(),
                    needed: words,
                });
            }
        }
        Ok(Self::from_checked(default, ranges))
    }

    /// The filter that removes filtering: everything is allowed.
    #[must_use]
    pub const fn allow_all() -> Self {
        Self {
            default: DefaultAction::Allow,
            ranges: Vec::new(),
        }
    }

    /// `ranges` passed [`check_default`] and [`check_range`].
    pub(crate) fn from_checked(default: DefaultAction, mut ranges: Vec<FilterRange>) -> Self {
        ranges.retain(|range| range.nmsrs != 0);
        Self { default, ranges }
    }

    /// The answer where no range decides.
    #[must_use]
    pub const fn default_action(&self) -> DefaultAction {
        self.default
    }

    /// The used ranges, in order.
    #[must_use]
    pub fn ranges(&self) -> &[FilterRange] {
        &self.ranges
    }

    /// The kernel's decision: the first range that holds `index` and decides `access` wins.
    #[must_use]
    pub fn decide(&self, index: MsrIndex, access: Access) -> Decision {
        if index.is_x2apic() {
            return Decision {
                verdict: Verdict::Allow,
                source: DecisionSource::Exempt,
            };
        }
        for (slot, range) in (0u8..).zip(&self.ranges) {
            if range.flags.contains(access)
                && let Some(position) = range.position(index)
            {
                let verdict = range.verdict(position);
                return Decision {
                    verdict,
                    source: DecisionSource::Range(slot),
                };
            }
        }
        let verdict = match self.default {
            DefaultAction::Allow => Verdict::Allow,
            DefaultAction::Deny => Verdict::Deny,
        };
        Decision {
            verdict,
            source: DecisionSource::Default,
        }
    }
}

/// "Deny everything" needs at least one range that is not empty.
pub(crate) fn check_default(
    default: DefaultAction,
    mut nmsrs: impl Iterator<Item = u32>,
) -> Result<(), FilterError> {
    if default == DefaultAction::Deny && nmsrs.all(|count| count == 0) {
        return Err(FilterError::EmptyDeny);
    }
    Ok(())
}

/// Checks one slot up to the point where the kernel copies its bitmap; answers the bitmap's words
/// (0: the slot is empty and skipped).
pub(crate) fn check_range(
    slot: usize,
    flags: RangeFlags,
    nmsrs: u32,
) -> Result<usize, FilterError> {
    if nmsrs == 0 {
        return Ok(0);
    }
    if flags.0 & !RangeFlags::READ_WRITE.0 != 0 {
        return Err(FilterError::RangeFlags {
            slot,
            flags: flags.0,
        });
    }
    if flags.0 == 0 {
        return Err(FilterError::NoDirection { slot });
    }
    if nmsrs > MAX_MSRS {
        return Err(FilterError::TooManyMsrs { slot, nmsrs });
    }
    Ok(FilterRange::bitmap_words(nmsrs))
}

/// Why a filter is refused. The filter in force stays in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FilterError {
    /// `kvm_msr_filter.flags` has a bit that no kernel defines.
    Flags {
        /// All the flags.
        flags: u32,
    },
    /// Default deny with no range in use.
    EmptyDeny,
    /// More than [`MAX_RANGES`]; the ioctl's structure has no room for them.
    TooManyRanges {
        /// How many.
        count: usize,
    },
    /// `kvm_msr_filter_range.flags` has a bit that no kernel defines.
    RangeFlags {
        /// Which of the 16.
        slot: usize,
        /// All its flags.
        flags: u32,
    },
    /// The range decides neither reads nor writes.
    NoDirection {
        /// Which of the 16.
        slot: usize,
    },
    /// The range is longer than [`MAX_MSRS`].
    TooManyMsrs {
        /// Which of the 16.
        slot: usize,
        /// Its length.
        nmsrs: u32,
    },
    /// The bitmap has not the words that the range's length asks for.
    Bitmap {
        /// Which of the 16.
        slot: usize,
        /// Words that there are.
        words: usize,
        /// Words that the kernel would copy.
        needed: usize,
    },
    /// The structure or a bitmap cannot be read from the caller's memory.
    Unreadable {
        /// Where.
        pointer: u64,
        /// What reading it answered: EFAULT, or ENOMEM.
        errno: Errno,
    },
}

impl FilterError {
    /// What `KVM_X86_SET_MSR_FILTER` answers.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Unreadable { errno, .. } => *errno,
            Self::Bitmap { .. } => Errno::EFAULT,
            _ => Errno::EINVAL,
        }
    }
}

impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flags { flags } => write!(f, "filter flags {flags:#x} have bits outside 0x1"),
            Self::EmptyDeny => {
                write!(f, "default deny needs at least one range that is not empty")
            }
            Self::TooManyRanges { count } => {
                write!(f, "{count} ranges, but a filter holds at most {MAX_RANGES}")
            }
            Self::RangeFlags { slot, flags } => {
                write!(f, "range {slot}: flags {flags:#x} have bits outside 0x3")
            }
            Self::NoDirection { slot } => {
                write!(f, "range {slot}: flags name neither reads nor writes")
            }
            Self::TooManyMsrs { slot, nmsrs } => {
                write!(
                    f,
                    "range {slot}: {nmsrs} MSRs, but a range holds at most {MAX_MSRS}"
                )
            }
            Self::Bitmap {
                slot,
                words,
                needed,
            } => {
                write!(
                    f,
                    "range {slot}: the bitmap has {words} words, but needs {needed}"
                )
            }
            Self::Unreadable { pointer, errno } => {
                write!(f, "nothing can be read at {pointer:#x}: {errno}")
            }
        }
    }
}

impl core::error::Error for FilterError {}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: u32 = 0x100;

    fn range(flags: RangeFlags, base: u32, nmsrs: u32, bits: u64) -> FilterRange {
        FilterRange {
            flags,
            base: MsrIndex(base),
            nmsrs,
            bitmap: alloc::vec![bits; FilterRange::bitmap_words(nmsrs)].into(),
        }
    }

    fn decide(default: DefaultAction, ranges: &[FilterRange], index: u32) -> [Decision; 2] {
        let filter = MsrFilter::new(default, ranges.to_vec()).unwrap();
        Access::ALL.map(|access| filter.decide(MsrIndex(index), access))
    }

    fn by(source: DecisionSource, verdict: Verdict) -> Decision {
        Decision { verdict, source }
    }

    #[test]
    fn bit_of_the_first_range_that_matches_decides() {
        let ranges = [
            range(RangeFlags::READ_WRITE, INDEX, 2, 0b01),
            range(RangeFlags::READ_WRITE, INDEX, 3, 0b110),
        ];
        for (index, slot, verdict) in [
            (INDEX, 0, Verdict::Allow),
            (INDEX + 1, 0, Verdict::Deny),
            (INDEX + 2, 1, Verdict::Allow),
        ] {
            for default in [DefaultAction::Allow, DefaultAction::Deny] {
                let expected = by(DecisionSource::Range(slot), verdict);
                assert_eq!(decide(default, &ranges, index), [expected; 2]);
            }
        }
    }

    #[test]
    fn range_without_the_direction_is_transparent_for_it() {
        let ranges = [
            range(RangeFlags::READ, INDEX, 1, 0),
            range(RangeFlags::WRITE, INDEX, 1, 1),
        ];
        let expected = [
            by(DecisionSource::Range(0), Verdict::Deny),
            by(DecisionSource::Range(1), Verdict::Allow),
        ];
        assert_eq!(decide(DefaultAction::Deny, &ranges, INDEX), expected);
        let expected = by(DecisionSource::Default, Verdict::Allow);
        assert_eq!(
            decide(DefaultAction::Allow, &ranges[..1], INDEX)[1],
            expected
        );
    }

    #[test]
    fn default_decides_outside_all_ranges() {
        let ranges = [range(RangeFlags::READ_WRITE, INDEX, 2, 0)];
        for (default, verdict) in [
            (DefaultAction::Allow, Verdict::Allow),
            (DefaultAction::Deny, Verdict::Deny),
        ] {
            for index in [0, INDEX - 1, INDEX + 2, u32::MAX] {
                let expected = by(DecisionSource::Default, verdict);
                assert_eq!(decide(default, &ranges, index), [expected; 2]);
            }
        }
    }

    #[test]
    fn x2apic_is_exempt_before_any_range() {
        let ranges = [range(RangeFlags::READ_WRITE, 0x7ff, 0x102, 0)];
        let exempt = by(DecisionSource::Exempt, Verdict::Allow);
        let denied = by(DecisionSource::Range(0), Verdict::Deny);
        for (index, expected) in [
            (0x7ff, denied),
            (0x800, exempt),
            (0x8ff, exempt),
            (0x900, denied),
        ] {
            assert_eq!(decide(DefaultAction::Deny, &ranges, index), [expected; 2]);
        }
    }

    #[test]
    fn range_that_reaches_2_to_the_32_holds_nothing_but_counts_as_used() {
        for (base, nmsrs) in [(u32::MAX, 1), (0xffff_fff0, 16), (0xffff_fff0, 32)] {
            let ranges = [range(RangeFlags::READ_WRITE, base, nmsrs, u64::MAX)];
            for index in [base, u32::MAX, 0, 8] {
                let expected = by(DecisionSource::Default, Verdict::Deny);
                assert_eq!(decide(DefaultAction::Deny, &ranges, index), [expected; 2]);
            }
        }
        let last = [range(RangeFlags::READ_WRITE, 0xffff_fff0, 15, u64::MAX)];
        let expected = by(DecisionSource::Range(0), Verdict::Allow);
        assert_eq!(
            decide(DefaultAction::Deny, &last, 0xffff_fffe),
            [expected; 2]
        );
    }

    #[test]
    fn empty_ranges_are_dropped_and_not_looked_at() {
        let mut junk = range(RangeFlags(0xff), 0, 0, 0);
        junk.bitmap = alloc::vec![0; 500].into();
        let ranges = vec![
            junk.clone(),
            range(RangeFlags::READ_WRITE, INDEX, 1, 0),
            junk,
        ];
        let filter = MsrFilter::new(DefaultAction::Allow, ranges).unwrap();
        assert_eq!(filter.ranges().len(), 1);
        let decision = filter.decide(MsrIndex(INDEX), Access::Read);
        assert_eq!(decision, by(DecisionSource::Range(0), Verdict::Deny));
    }

    #[test]
    fn broken_rule_is_named() {
        let good = || range(RangeFlags::READ, INDEX, 65, 0);
        let short = FilterRange {
            bitmap: alloc::vec![0; 1].into(),
            ..good()
        };
        let deny = DefaultAction::Deny;
        for (ranges, error, errno) in [
            (vec![], FilterError::EmptyDeny, Errno::EINVAL),
            (
                vec![good(); 17],
                FilterError::TooManyRanges { count: 17 },
                Errno::EINVAL,
            ),
            (
                vec![good(), range(RangeFlags(7), 0, 1, 0)],
                FilterError::RangeFlags { slot: 1, flags: 7 },
                Errno::EINVAL,
            ),
            (
                vec![range(RangeFlags(0), 0, 1, 0)],
                FilterError::NoDirection { slot: 0 },
                Errno::EINVAL,
            ),
            (
                vec![range(RangeFlags::READ, 0, MAX_MSRS + 1, 0)],
                FilterError::TooManyMsrs {
                    slot: 0,
                    nmsrs: MAX_MSRS + 1,
                },
                Errno::EINVAL,
            ),
            (
                vec![good(), good(), short],
                FilterError::Bitmap {
                    slot: 2,
                    words: 1,
                    needed: 2,
                },
                Errno::EFAULT,
            ),
        ] {
            assert_eq!(MsrFilter::new(deny, ranges), Err(error));
            assert_eq!(error.errno(), errno);
        }
        let full = vec![range(RangeFlags::READ, 0, MAX_MSRS, 0); 16];
        assert!(MsrFilter::new(deny, full).is_ok());
    }
}
