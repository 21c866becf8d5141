//! The fast lookup and the oracle give the same verdict, for random filters.

use msrgate_core::{
    Access, DefaultAction, FilterRange, Lookup, MAX_MSRS, MAX_RANGES, MsrFilter, MsrIndex,
    RangeFlags,
};
use proptest::prelude::*;

/// Where something may change: bases of the usual ranges, the x2APIC, page and word edges, the end.
const LANDMARKS: [u32; 14] = [
    0,
    0x40,
    0x7c0,
    0x800,
    0x8ff,
    0x900,
    0x1000,
    0x1fff,
    0x4000_0000,
    0x4b56_4d00,
    0xc000_0080,
    0xc001_0000,
    0xffff_f000,
    u32::MAX,
];

fn near_landmark() -> impl Strategy<Value = u32> {
    (prop::sample::select(&LANDMARKS), -80i32..80)
        .prop_map(|(landmark, offset)| landmark.wrapping_add_signed(offset))
}

fn base() -> impl Strategy<Value = u32> {
    prop_oneof![4 => near_landmark(), 1 => any::<u32>()]
}

fn nmsrs() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => 1..200u32,
        1 => 0..=MAX_MSRS,
        1 => prop::sample::select(vec![0, 1, 63, 64, 65, 4095, 4096, 4097, MAX_MSRS - 1, MAX_MSRS]),
    ]
}

prop_compose! {
    fn range()(base in base(), nmsrs in nmsrs(), flags in 1..4u32)(
        bitmap in prop::collection::vec(
            prop_oneof![Just(0), Just(u64::MAX), any::<u64>()],
            FilterRange::bitmap_words(nmsrs),
        ),
        base in Just(base),
        nmsrs in Just(nmsrs),
        flags in Just(flags),
    ) -> FilterRange {
        FilterRange { flags: RangeFlags(flags), base: MsrIndex(base), nmsrs, bitmap: bitmap.into() }
    }
}

fn filter() -> impl Strategy<Value = MsrFilter> {
    let default = prop::sample::select(vec![DefaultAction::Allow, DefaultAction::Deny]);
    (default, prop::collection::vec(range(), 0..=MAX_RANGES)).prop_map(|(default, ranges)| {
        MsrFilter::new(default, ranges).unwrap_or_else(|_| MsrFilter::allow_all())
    })
}

/// The indices where a verdict can change: edges of ranges and of their words, with neighbours.
fn edges(filter: &MsrFilter) -> Vec<u32> {
    let mut indices: Vec<u32> = LANDMARKS.to_vec();
    for range in filter.ranges() {
        let end = range.base.0.wrapping_add(range.nmsrs);
        indices.extend([
            range.base.0,
            end,
            range.base.0 | 63,
            range.base.0 | 4095,
            end & !63,
        ]);
        indices.extend(
            (0..range.nmsrs)
                .step_by(64)
                .map(|at| range.base.0.wrapping_add(at)),
        );
    }
    indices
        .into_iter()
        .flat_map(|index| [-1, 0, 1].map(|offset| index.wrapping_add_signed(offset)))
        .collect()
}

proptest! {
    #[test]
    fn lookup_is_the_oracle(
        filter in filter(),
        anywhere in prop::collection::vec(base(), 200),
    ) {
        let lookup = Lookup::new(&filter);
        for index in edges(&filter).into_iter().chain(anywhere).map(MsrIndex) {
            for access in Access::ALL {
                prop_assert_eq!(
                    lookup.verdict(index, access),
                    filter.decide(index, access).verdict,
                    "{} of {}", access, index
                );
            }
        }
    }
}
