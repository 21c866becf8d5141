//! The hardware's MSR permission bitmaps: Intel's page (VMX) and AMD's map (SVM), for hypervisors that run
//! on either.
//!
//! A [`PermissionBitmap`] keeps what the hypervisor *wants* to pass through apart from what the filter
//! *allows*; an access escapes interception only where both say so. Where the bits lie and which MSRs may
//! be passed through at all is data, a [`PermissionLayout`] for each vendor. To make a page of memory
//! from the bytes, and to tell the hardware, is the hypervisor's.

mod svm;
mod vmx;

use alloc::boxed::Box;
use core::fmt;

use crate::{Access, MsrFilter, MsrIndex, Verdict};

/// Where the bits of a vendor's bitmap lie, and which MSRs may go without interception.
#[derive(Debug)]
pub struct PermissionLayout {
    /// Size of the bitmap.
    pub len_bytes: usize,
    /// The MSRs that have bits. All others are always intercepted.
    pub vectors: &'static [Vector],
    /// The MSRs that may be passed through, at most 64. All others are always intercepted.
    pub candidates: &'static [Candidate],
}

/// The bits of 8192 neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vector {
    /// The first MSR.
    pub base: MsrIndex,
    /// Its bits for reads and for writes, counted from the start of the bitmap.
    pub bits: [usize; 2],
    /// From one MSR's bit to the next one's.
    pub stride: usize,
}

/// An MSR that may be passed through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which register.
    pub index: MsrIndex,
    /// What a new vCPU passes through.
    pub initial: &'static [Access],
    /// What a nested guest may pass through.
    pub nested: &'static [Access],
    /// When KVM passes it through.
    pub note: &'static str,
}

/// What the hypervisor wants for an MSR and direction, before the filter has its say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Desired {
    /// The access leaves the guest.
    Intercept,
    /// The hardware does it.
    PassThrough,
}

impl PermissionLayout {
    /// Intel: one page of 4 KiB, with a bit for each MSR and direction (SDM vol. 3, 25.6.9).
    pub const VMX: &'static Self = &vmx::LAYOUT;
    /// AMD: a map of 8 KiB, with two bits for each MSR (APM vol. 2, 15.11).
    pub const SVM: &'static Self = &svm::LAYOUT;

    /// MSRs in one vector.
    const VECTOR_MSRS: u32 = 0x2000;

    /// The bit of an access: bit `n % 8` of byte `n / 8`, where 1 intercepts. `None`: it has no bit and is
    /// always intercepted.
    #[must_use]
    pub fn bit(&self, index: MsrIndex, access: Access) -> Option<usize> {
        self.vectors.iter().find_map(|vector| {
            let offset = index.0.wrapping_sub(vector.base.0);
            (offset < Self::VECTOR_MSRS)
                .then(|| vector.bits[access as usize] + offset as usize * vector.stride)
        })
    }

    /// Whether `bitmap`, in this layout, intercepts the access. What lies past its end does.
    #[must_use]
    pub fn intercepts(&self, bitmap: &[u8], index: MsrIndex, access: Access) -> bool {
        let byte_and_bit = self.bit(index, access).map(|bit| (bit / 8, bit % 8));
        byte_and_bit
            .is_none_or(|(byte, bit)| bitmap.get(byte).is_none_or(|byte| byte >> bit & 1 == 1))
    }

    fn intercept_all(&self) -> Box<[u8]> {
        alloc::vec![0xff; self.len_bytes].into()
    }
}

/// The permission bitmap of a vCPU.
///
/// ```
/// use msrgate_core::{
///     Access, DefaultAction, Desired, FilterRange, MsrFilter, MsrIndex, PermissionBitmap, PermissionLayout,
///     RangeFlags, Verdict,
/// };
///
/// let spec_ctrl = MsrIndex(0x48);
/// let mut bitmap = PermissionBitmap::new(PermissionLayout::VMX);
/// bitmap.set_desired(spec_ctrl, Access::Write, Desired::PassThrough)?;
/// assert!(!bitmap.intercepts(spec_ctrl, Access::Write));
///
/// let deny = FilterRange::uniform(RangeFlags::WRITE, spec_ctrl, 1, Verdict::Deny);
/// bitmap.apply_filter(&MsrFilter::new(DefaultAction::Allow, vec![deny])?);
/// assert!(bitmap.intercepts(spec_ctrl, Access::Write));
/// bitmap.apply_filter(&MsrFilter::allow_all());
/// assert!(!bitmap.intercepts(spec_ctrl, Access::Write));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct PermissionBitmap {
    layout: &'static PermissionLayout,
    /// For each direction, the candidates that the hypervisor wants to pass through.
    desired: [CandidateSet; 2],
    /// For each direction, the candidates that the filter allows.
    allowed: [CandidateSet; 2],
    bytes: Box<[u8]>,
}

/// Bit `n` stands for row `n` of the candidates.
type CandidateSet = u64;

impl PermissionBitmap {
    /// The bitmap of a new vCPU whose VM has no filter. Where it has one, apply it before the first entry.
    #[must_use]
    pub fn new(layout: &'static PermissionLayout) -> Self {
        let mut bitmap = Self {
            layout,
            desired: [0; 2],
            allowed: [CandidateSet::MAX; 2],
            bytes: layout.intercept_all(),
        };
        for (row, candidate) in layout.candidates.iter().enumerate() {
            for &access in candidate.initial {
                bitmap.desired[access as usize] |= 1 << row;
            }
        }
        bitmap.refresh();
        bitmap
    }

    /// Where its bits lie.
    #[must_use]
    pub const fn layout(&self) -> &'static PermissionLayout {
        self.layout
    }

    /// Changes what the hypervisor wants. It is remembered also while the filter denies it.
    ///
    /// # Errors
    /// The MSR is no candidate: it stays intercepted.
    pub fn set_desired(
        &mut self,
        index: MsrIndex,
        access: Access,
        desired: Desired,
    ) -> Result<(), NotCandidate> {
        let row = self.row(index).ok_or(NotCandidate { index })?;
        let set = &mut self.desired[access as usize];
        match desired {
            Desired::PassThrough => *set |= 1 << row,
            Desired::Intercept => *set &= !(1 << row),
        }
        self.refresh();
        Ok(())
    }

    /// What the hypervisor wants.
    #[must_use]
    pub fn desired(&self, index: MsrIndex, access: Access) -> Desired {
        match self.row(index) {
            Some(row) if self.desired[access as usize] >> row & 1 == 1 => Desired::PassThrough,
            _ => Desired::Intercept,
        }
    }

    /// Recomputes all bits for a filter that replaces the one before. A merged bitmap of a nested guest is
    /// out of date then.
    pub fn apply_filter(&mut self, filter: &MsrFilter) {
        self.allowed = Access::ALL.map(|access| {
            let rows = self.layout.candidates.iter().enumerate();
            rows.filter(|(_, row)| filter.decide(row.index, access).verdict == Verdict::Allow)
                .fold(0, |set, (row, _)| set | 1 << row)
        });
        self.refresh();
    }

    /// Whether the access leaves the guest.
    #[must_use]
    pub fn intercepts(&self, index: MsrIndex, access: Access) -> bool {
        self.layout.intercepts(&self.bytes, index, access)
    }

    /// The bitmap as the hardware reads it; it wants it in pages of physical memory, without a gap.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bitmap for a nested guest: an access goes without interception if neither this bitmap nor
    /// `inner`, that of the hypervisor inside, intercepts it and if the candidate may be passed to nested
    /// guests. An `inner` that is too short intercepts what lies past its end.
    #[must_use]
    pub fn merge_nested(&self, inner: &[u8]) -> Box<[u8]> {
        let mut merged = self.layout.intercept_all();
        for candidate in self.layout.candidates {
            for &access in candidate.nested {
                let intercepted = self.intercepts(candidate.index, access)
                    || self.layout.intercepts(inner, candidate.index, access);
                write(
                    &mut merged,
                    self.layout.bit(candidate.index, access),
                    intercepted,
                );
            }
        }
        merged
    }

    fn row(&self, index: MsrIndex) -> Option<usize> {
        let mut candidates = self.layout.candidates.iter();
        candidates.position(|candidate| candidate.index == index)
    }

    /// Effective is desired and allowed.
    fn refresh(&mut self) {
        for (row, candidate) in self.layout.candidates.iter().enumerate() {
            for access in Access::ALL {
                let passed = self.desired[access as usize] & self.allowed[access as usize];
                let intercepted = passed >> row & 1 == 0;
                write(
                    &mut self.bytes,
                    self.layout.bit(candidate.index, access),
                    intercepted,
                );
            }
        }
    }
}

/// Sets or clears a bit. A candidate without one is intercepted anyway.
fn write(bytes: &mut [u8], bit: Option<usize>, intercepted: bool) {
    if let Some(bit) = bit {
        let mask = 1 << (bit % 8);
        if intercepted {
            bytes[bit / 8] |= mask;
        } else {
            bytes[bit / 8] &= !mask;
        }
    }
}

/// The MSR is none that may be passed through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotCandidate {
    /// Which register.
    pub index: MsrIndex,
}

impl fmt::Display for NotCandidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MSR {} is always intercepted", self.index)
    }
}

impl core::error::Error for NotCandidate {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DefaultAction, FilterRange, RangeFlags};

    const LAYOUTS: [&PermissionLayout; 2] = [PermissionLayout::VMX, PermissionLayout::SVM];

    fn deny(flags: RangeFlags, index: MsrIndex) -> MsrFilter {
        let range = FilterRange::uniform(flags, index, 1, Verdict::Deny);
        MsrFilter::new(DefaultAction::Allow, vec![range]).unwrap()
    }

    /// All that is not intercepted.
    fn passed(layout: &PermissionLayout, bytes: &[u8]) -> Vec<(MsrIndex, Access)> {
        let low = 0..0x3000;
        let high = 0xc000_0000..0xc000_3000;
        let amd = 0xc001_0000..0xc001_3000;
        low.chain(high)
            .chain(amd)
            .map(MsrIndex)
            .flat_map(|index| Access::ALL.map(|access| (index, access)))
            .filter(|&(index, access)| !layout.intercepts(bytes, index, access))
            .collect()
    }

    fn everything_passed(layout: &'static PermissionLayout) -> PermissionBitmap {
        let mut bitmap = PermissionBitmap::new(layout);
        for candidate in layout.candidates {
            for access in Access::ALL {
                let answer = bitmap.set_desired(candidate.index, access, Desired::PassThrough);
                assert_eq!(answer, Ok(()));
            }
        }
        bitmap
    }

    #[test]
    fn candidates_are_distinct_few_and_have_bits() {
        for layout in LAYOUTS {
            assert!(layout.candidates.len() <= 64);
            for (row, candidate) in layout.candidates.iter().enumerate() {
                let mut before = layout.candidates[..row].iter();
                assert!(before.all(|other| other.index != candidate.index));
                for access in Access::ALL {
                    let bit = layout.bit(candidate.index, access);
                    assert!(bit.is_some_and(|bit| bit < layout.len_bytes * 8));
                }
            }
        }
    }

    #[test]
    fn all_bits_of_a_layout_are_distinct_and_inside() {
        for layout in LAYOUTS {
            let mut seen = vec![false; layout.len_bytes * 8];
            for vector in layout.vectors {
                for index in (vector.base.0..).take(0x2000).map(MsrIndex) {
                    for access in Access::ALL {
                        let bit = layout.bit(index, access).unwrap();
                        assert!(
                            !core::mem::replace(&mut seen[bit], true),
                            "{index} {access}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn index_outside_the_vectors_is_always_intercepted() {
        for layout in LAYOUTS {
            let mut bitmap = everything_passed(layout);
            for index in [
                0x2000,
                0x4000_0000,
                0xbfff_ffff,
                0xc000_2000,
                0xc001_2000,
                u32::MAX,
            ] {
                let index = MsrIndex(index);
                for access in Access::ALL {
                    assert_eq!(layout.bit(index, access), None);
                    assert!(bitmap.intercepts(index, access));
                    let answer = bitmap.set_desired(index, access, Desired::PassThrough);
                    assert_eq!(answer, Err(NotCandidate { index }));
                }
            }
        }
        let amd = MsrIndex(0xc001_0130);
        assert_eq!(PermissionLayout::VMX.bit(amd, Access::Read), None);
    }

    #[test]
    fn only_candidates_are_ever_passed() {
        for layout in LAYOUTS {
            let bitmap = everything_passed(layout);
            let mut expected: Vec<_> = layout
                .candidates
                .iter()
                .flat_map(|row| Access::ALL.map(|access| (row.index, access)))
                .collect();
            expected.sort_unstable();
            assert_eq!(passed(layout, bitmap.as_bytes()), expected);
        }
    }

    #[test]
    fn filter_takes_and_gives_back_each_direction_and_nothing_else() {
        for layout in LAYOUTS {
            let mut bitmap = everything_passed(layout);
            let open = bitmap.as_bytes().to_vec();
            for candidate in layout.candidates {
                let index = candidate.index;
                for (flags, access, other) in [
                    (RangeFlags::READ, Access::Read, Access::Write),
                    (RangeFlags::WRITE, Access::Write, Access::Read),
                ] {
                    bitmap.apply_filter(&deny(flags, index));
                    // No filter reaches the x2APIC.
                    assert_eq!(bitmap.intercepts(index, access), !index.is_x2apic());
                    assert!(!bitmap.intercepts(index, other));
                    assert_eq!(bitmap.desired(index, access), Desired::PassThrough);
                    let changed = open.iter().zip(bitmap.as_bytes());
                    let changed = changed.map(|(a, b)| (a ^ b).count_ones()).sum::<u32>();
                    assert_eq!(changed, u32::from(!index.is_x2apic()));
                    bitmap.apply_filter(&MsrFilter::allow_all());
                    assert_eq!(bitmap.as_bytes(), open);
                }
            }
        }
    }

    #[test]
    fn wish_made_while_denied_counts_when_allowed() {
        let index = MsrIndex(0x48);
        for layout in LAYOUTS {
            let mut bitmap = PermissionBitmap::new(layout);
            bitmap.apply_filter(&deny(RangeFlags::READ_WRITE, index));
            let answer = bitmap.set_desired(index, Access::Write, Desired::PassThrough);
            assert_eq!(answer, Ok(()));
            assert!(bitmap.intercepts(index, Access::Write));
            bitmap.apply_filter(&MsrFilter::allow_all());
            assert!(!bitmap.intercepts(index, Access::Write));
            assert!(bitmap.intercepts(index, Access::Read));
        }
    }

    #[test]
    fn wish_for_one_leaves_the_others() {
        let (spec_ctrl, pred_cmd) = (MsrIndex(0x48), MsrIndex(0x49));
        for layout in LAYOUTS {
            let mut bitmap = everything_passed(layout);
            let all = passed(layout, bitmap.as_bytes());
            let answer = bitmap.set_desired(spec_ctrl, Access::Read, Desired::Intercept);
            assert_eq!(answer, Ok(()));
            assert_eq!(bitmap.desired(spec_ctrl, Access::Read), Desired::Intercept);
            assert_eq!(bitmap.desired(pred_cmd, Access::Read), Desired::PassThrough);
            let left = passed(layout, bitmap.as_bytes());
            let gone: Vec<_> = all
                .into_iter()
                .filter(|access| !left.contains(access))
                .collect();
            assert_eq!(gone, [(spec_ctrl, Access::Read)]);
        }
    }

    #[test]
    fn allowing_does_not_pass_what_is_not_wanted() {
        for layout in LAYOUTS {
            let mut bitmap = everything_passed(layout);
            for candidate in layout.candidates {
                let answer = bitmap.set_desired(candidate.index, Access::Read, Desired::Intercept);
                assert_eq!(answer, Ok(()));
            }
            bitmap.apply_filter(&MsrFilter::allow_all());
            let passed = passed(layout, bitmap.as_bytes());
            assert_eq!(passed.len(), layout.candidates.len());
            assert!(passed.iter().all(|&(_, access)| access == Access::Write));
        }
    }

    #[test]
    fn merged_bit_is_clear_only_if_both_are() {
        for layout in LAYOUTS {
            let open = everything_passed(layout);
            let closed = {
                let mut bitmap = open.clone();
                for candidate in layout.candidates {
                    for access in Access::ALL {
                        let answer =
                            bitmap.set_desired(candidate.index, access, Desired::Intercept);
                        assert_eq!(answer, Ok(()));
                    }
                }
                bitmap
            };
            let (all, none) = (vec![0; layout.len_bytes], vec![0xff; layout.len_bytes]);
            let mut nested: Vec<_> = layout
                .candidates
                .iter()
                .flat_map(|row| row.nested.iter().map(|&access| (row.index, access)))
                .collect();
            nested.sort_unstable();
            assert_eq!(passed(layout, &open.merge_nested(&all)), nested);
            assert_eq!(*open.merge_nested(&none), *none);
            assert_eq!(*closed.merge_nested(&all), *none);
            assert_eq!(*open.merge_nested(&[]), *none);
            assert_eq!(open.merge_nested(&all).len(), layout.len_bytes);
        }
    }

    #[test]
    fn merged_bitmap_obeys_the_filter_of_the_outer() {
        let fs_base = MsrIndex(0xc000_0100);
        for layout in LAYOUTS {
            let mut bitmap = PermissionBitmap::new(layout);
            bitmap.apply_filter(&deny(RangeFlags::READ, fs_base));
            let merged = bitmap.merge_nested(&vec![0; layout.len_bytes]);
            assert!(layout.intercepts(&merged, fs_base, Access::Read));
            assert!(!layout.intercepts(&merged, fs_base, Access::Write));
        }
    }
}
