//! The fast form of a filter: [`Lookup`] gives the verdict of [`MsrFilter::decide`] in constant time.
//!
//! Ranges, overlaps, directions, the default and the x2APIC exemption are resolved once, into pages of 4096
//! indices with a bit for each; a page is found by a multiplicative hash that has no collision, because its
//! multiplier was chosen so. Who gave the verdict is not kept; ask the filter.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::{Access, DefaultAction, FilterRange, MsrFilter, MsrIndex, Verdict};

/// A filter, resolved for checking.
///
/// ```
/// use msrgate_core::{Access, DefaultAction, FilterRange, Lookup, MsrFilter, MsrIndex, RangeFlags, Verdict};
///
/// let deny = FilterRange::uniform(RangeFlags::WRITE, MsrIndex(0x1a0), 1, Verdict::Deny);
/// let lookup = Lookup::new(&MsrFilter::new(DefaultAction::Allow, vec![deny])?);
/// assert_eq!(lookup.verdict(MsrIndex(0x1a0), Access::Write), Verdict::Deny);
/// assert_eq!(lookup.verdict(MsrIndex(0x1a0), Access::Read), Verdict::Allow);
/// # Ok::<(), msrgate_core::FilterError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Lookup {
    multiplier: u32,
    /// Leaves as many bits of the product as there are slots.
    shift: u32,
    slots: Box<[Slot]>,
    /// The first page is the default.
    pages: Box<[Page]>,
}

/// Where the page of some indices is.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// The first index of the page.
    start: u32,
    page: u32,
}

/// Bits of 4096 indices, for reads and for writes; 1 allows.
type Page = [[u64; PAGE_WORDS]; 2];

const PAGE_MSRS: u32 = 4096;
const PAGE_WORDS: usize = PAGE_MSRS as usize / 64;

impl Lookup {
    /// Resolves a filter.
    #[must_use]
    pub fn new(filter: &MsrFilter) -> Self {
        let starts = page_starts(filter);
        let default = match filter.default_action() {
            DefaultAction::Allow => u64::MAX,
            DefaultAction::Deny => 0,
        };
        let uniform = [[default; PAGE_WORDS]; 2];
        let pages = starts.iter().map(|&start| resolve(filter, start, uniform));
        let pages = [uniform].into_iter().chain(pages).collect();

        let (multiplier, slot_bits) = collision_free(&starts);
        let shift = u32::BITS - slot_bits;
        // An empty slot leads to the default, like the slot of another page.
        let mut slots = alloc::vec![Slot { start: 0, page: 0 }; 1 << slot_bits];
        for (page, &start) in (1..).zip(&starts) {
            slots[slot_of(start, multiplier, shift)] = Slot { start, page };
        }
        Self {
            multiplier,
            shift,
            slots: slots.into(),
            pages,
        }
    }

    /// The verdict of [`MsrFilter::decide`].
    #[inline]
    #[must_use]
    pub fn verdict(&self, index: MsrIndex, access: Access) -> Verdict {
        let start = page_start(index.0);
        let slot = self.slots[slot_of(start, self.multiplier, self.shift)];
        let page = if slot.start == start { slot.page } else { 0 };
        let word = self.pages[page as usize][access as usize][word_of(index.0)];
        if word >> (index.0 % 64) & 1 == 1 {
            Verdict::Allow
        } else {
            Verdict::Deny
        }
    }
}

const fn page_start(index: u32) -> u32 {
    index & !(PAGE_MSRS - 1)
}

/// The word of `index` in its page.
const fn word_of(index: u32) -> usize {
    (index / 64) as usize % PAGE_WORDS
}

/// The highest bits of the product depend on all bits of `start`.
const fn slot_of(start: u32, multiplier: u32, shift: u32) -> usize {
    (start.wrapping_mul(multiplier) >> shift) as usize
}

/// First indices of the pages that may differ from the default, in order: those that a range reaches into,
/// and the one that holds the x2APIC.
fn page_starts(filter: &MsrFilter) -> Vec<u32> {
    let mut starts = alloc::vec![page_start(X2APIC_FIRST)];
    for (first, last) in filter.ranges().iter().filter_map(bounds) {
        starts.extend((page_start(first)..=last).step_by(PAGE_MSRS as usize));
    }
    starts.sort_unstable();
    starts.dedup();
    starts
}

/// First and last index of a range; a range that reaches 2^32 holds nothing (`FilterRange::position`).
fn bounds(range: &FilterRange) -> Option<(u32, u32)> {
    let end = range.base.0.checked_add(range.nmsrs)?;
    Some((range.base.0, end - 1))
}

const X2APIC_FIRST: u32 = 0x800;
const X2APIC_LAST: u32 = 0x8ff;

/// The page from `start` on, where `page` is what is left of the default.
fn resolve(filter: &MsrFilter, start: u32, mut page: Page) -> Page {
    // The first range that matches wins, so it is written last.
    for range in filter.ranges().iter().rev() {
        let Some((first, last)) = bounds(range) else {
            continue;
        };
        for access in Access::ALL {
            if range.flags.contains(access) {
                let bits = |from| bits_at(&range.bitmap, from - first);
                overwrite(&mut page[access as usize], start, (first, last), bits);
            }
        }
    }
    for words in &mut page {
        overwrite(words, start, (X2APIC_FIRST, X2APIC_LAST), |_| u64::MAX);
    }
    page
}

/// Replaces the bits of the indices `first..=last` that lie in the page from `start` on. `bits(from)` has
/// the bits of the 64 indices from `from` on.
fn overwrite(
    words: &mut [u64; PAGE_WORDS],
    start: u32,
    (first, last): (u32, u32),
    bits: impl Fn(u32) -> u64,
) {
    for (low, word) in (start..=u32::MAX).step_by(64).zip(words) {
        let high = low | 63;
        if high < first || last < low {
            continue;
        }
        let from = low.max(first);
        let mask = u64::MAX >> (63 - (high.min(last) - from)) << (from - low);
        *word = *word & !mask | bits(from) << (from - low) & mask;
    }
}

/// 64 bits from `position` on; past the end there are zeros.
fn bits_at(bitmap: &[u64], position: u32) -> u64 {
    let word = |at: usize| bitmap.get(at).copied().unwrap_or(0);
    let (at, shift) = (position as usize / 64, position % 64);
    match shift {
        0 => word(at),
        _ => word(at) >> shift | word(at + 1) << (64 - shift),
    }
}

/// A multiplier that gives each page a slot of its own, and the logarithm of the number of slots.
///
/// It ends: as `start` is a multiple of 2^12, the upper 20 bits of an odd multiple are a permutation of its
/// own. In fact a few tries suffice, with 2 to 8 slots to a page.
fn collision_free(starts: &[u32]) -> (u32, u32) {
    const TRIES: u32 = 1024;
    const GOLDEN_RATIO: u32 = 0x9e37_79b9;
    let mut used = Vec::with_capacity(starts.len());
    let mut slot_bits = (2 * starts.len()).ilog2();
    loop {
        for attempt in 0..TRIES {
            let multiplier = GOLDEN_RATIO.wrapping_mul(2 * attempt + 1);
            used.clear();
            used.extend(
                starts
                    .iter()
                    .map(|&start| slot_of(start, multiplier, u32::BITS - slot_bits)),
            );
            used.sort_unstable();
            if used.windows(2).all(|pair| pair[0] != pair[1]) {
                return (multiplier, slot_bits);
            }
        }
        slot_bits += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MAX_MSRS, RangeFlags};

    fn assert_agree(filter: &MsrFilter, lookup: &Lookup, indices: impl Iterator<Item = u32>) {
        for index in indices.map(MsrIndex) {
            for access in Access::ALL {
                assert_eq!(
                    lookup.verdict(index, access),
                    filter.decide(index, access).verdict,
                    "{access} of {index} under {filter:?}"
                );
            }
        }
    }

    /// All filters of two short ranges at every offset around a word edge, in every polarity.
    #[test]
    fn small_model_agrees_exhaustively() {
        let edge = 0x1_0040;
        let shapes: Vec<FilterRange> = (edge - 3..edge + 3)
            .flat_map(|base| (1..=3).map(move |nmsrs| (base, nmsrs)))
            .flat_map(|(base, nmsrs)| {
                [RangeFlags::READ, RangeFlags::WRITE, RangeFlags::READ_WRITE]
                    .map(|flags| (base, nmsrs, flags))
            })
            .flat_map(|(base, nmsrs, flags)| {
                (0..1u64 << nmsrs).map(move |bits| FilterRange {
                    flags,
                    base: MsrIndex(base),
                    nmsrs,
                    bitmap: Box::new([bits]),
                })
            })
            .collect();
        for first in &shapes {
            for second in shapes.iter().step_by(5) {
                for default in [DefaultAction::Allow, DefaultAction::Deny] {
                    let filter =
                        MsrFilter::new(default, vec![first.clone(), second.clone()]).unwrap();
                    assert_agree(&filter, &Lookup::new(&filter), edge - 5..edge + 8);
                }
            }
        }
    }

    #[test]
    fn every_index_of_a_page_agrees_for_unaligned_bitmaps() {
        for base in [0x0, 0x1, 0x3f, 0x7e1, 0xfff, 0xc000_0001, 0xffff_c000] {
            let pattern =
                (0..u64::from(MAX_MSRS) / 64).map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let range = FilterRange {
                flags: RangeFlags::READ,
                base: MsrIndex(base),
                nmsrs: MAX_MSRS,
                bitmap: pattern.collect(),
            };
            let filter = MsrFilter::new(DefaultAction::Deny, vec![range]).unwrap();
            let lookup = Lookup::new(&filter);
            let around = base.saturating_sub(70)..=base.saturating_add(MAX_MSRS + 70);
            assert_agree(&filter, &lookup, around);
            assert_agree(&filter, &lookup, 0x7c0..0x940);
        }
    }

    #[test]
    fn range_that_reaches_2_to_the_32_is_dead() {
        for (base, nmsrs) in [(u32::MAX, 1), (0xffff_fff0, 16), (0xffff_fff0, 32)] {
            let range = FilterRange::uniform(
                RangeFlags::READ_WRITE,
                MsrIndex(base),
                nmsrs,
                Verdict::Allow,
            );
            let filter = MsrFilter::new(DefaultAction::Deny, vec![range]).unwrap();
            let lookup = Lookup::new(&filter);
            for index in [base, u32::MAX, 0, 1, 15].map(MsrIndex) {
                assert_eq!(lookup.verdict(index, Access::Read), Verdict::Deny);
            }
        }
    }

    #[test]
    fn x2apic_is_allowed_in_every_filter_and_its_neighbours_are_not() {
        let range =
            FilterRange::uniform(RangeFlags::READ_WRITE, MsrIndex(0), 0x3000, Verdict::Deny);
        for filter in [
            MsrFilter::new(DefaultAction::Allow, vec![range.clone()]),
            MsrFilter::new(
                DefaultAction::Deny,
                vec![FilterRange {
                    base: MsrIndex(0x4000_0000),
                    ..range
                }],
            ),
        ] {
            let lookup = Lookup::new(&filter.unwrap());
            for (index, verdict) in [
                (0x7ff, Verdict::Deny),
                (0x800, Verdict::Allow),
                (0x8ff, Verdict::Allow),
                (0x900, Verdict::Deny),
            ] {
                assert_eq!(lookup.verdict(MsrIndex(index), Access::Write), verdict);
            }
        }
    }

    #[test]
    fn largest_filter_has_65_pages_and_few_slots() {
        let ranges = (0..16u32)
            .map(|slot| {
                let base = MsrIndex(0x0123_4fff + slot * 0x0fed_c000);
                FilterRange::uniform(RangeFlags::READ_WRITE, base, MAX_MSRS, Verdict::Deny)
            })
            .collect();
        let filter = MsrFilter::new(DefaultAction::Allow, ranges).unwrap();
        let lookup = Lookup::new(&filter);
        assert_eq!(lookup.pages.len(), 1 + 16 * 4 + 1);
        assert!(lookup.slots.len() <= 1024, "{}", lookup.slots.len());
    }
}
