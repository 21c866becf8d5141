//! The filter cell with real threads, and with readers that sleep through many filters.
#![cfg(all(feature = "std", not(loom)))]

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use msrgate_core::{
    Access, Decision, DecisionSource, DefaultAction, FilterCell, FilterRange, MsrFilter, MsrIndex,
    RangeFlags, Verdict,
};

/// Denies three MSRs that lie in different pages, by their common offset.
fn filter(offset: u32) -> MsrFilter {
    let ranges = BASES
        .map(|base| {
            let base = MsrIndex(base + offset);
            FilterRange::uniform(RangeFlags::READ_WRITE, base, 1, Verdict::Deny)
        })
        .into();
    MsrFilter::new(DefaultAction::Allow, ranges).expect("three single MSRs are a filter")
}

const BASES: [u32; 3] = [0x1000, 0x4000_0000, 0xc000_0000];
const ACCESS: Access = Access::Write;

#[test]
fn new_cell_has_no_filter_and_still_names_the_exempt() {
    let mut reader = FilterCell::new().reader();
    let allowed = |source| Decision {
        verdict: Verdict::Allow,
        source,
    };
    assert_eq!(
        reader.decide(MsrIndex(0x10), ACCESS),
        allowed(DecisionSource::NoFilter)
    );
    assert_eq!(
        reader.decide(MsrIndex(0x830), ACCESS),
        allowed(DecisionSource::Exempt)
    );
    assert_eq!(reader.verdict(MsrIndex(0x10), ACCESS), Verdict::Allow);
    assert!(reader.filter().is_none());
}

#[test]
fn replaced_filter_is_what_old_and_new_readers_see() {
    let cell = FilterCell::new();
    let mut early = cell.reader();
    for offset in 1..50 {
        cell.replace(filter(offset));
        for reader in [&mut early, &mut cell.reader()] {
            assert_eq!(reader.filter(), Some(&filter(offset)));
            for base in BASES {
                assert_eq!(
                    reader.verdict(MsrIndex(base + offset), ACCESS),
                    Verdict::Deny
                );
                assert_eq!(
                    reader.verdict(MsrIndex(base + offset - 1), ACCESS),
                    Verdict::Allow
                );
            }
        }
    }
}

#[test]
fn reader_walks_past_filters_that_others_hold() {
    let cell = FilterCell::new();
    let mut late = cell.reader();
    let mut holders = Vec::new();
    for offset in 1..5 {
        cell.replace(filter(offset));
        holders.push(cell.reader());
    }
    assert_eq!(late.filter(), Some(&filter(4)));
}

#[test]
fn reader_outlives_the_cell_with_the_last_filter() {
    let cell = FilterCell::new();
    let mut reader = cell.reader();
    cell.replace(filter(1));
    cell.replace(filter(2));
    drop(cell);
    assert_eq!(reader.filter(), Some(&filter(2)));
}

#[test]
fn long_chain_behind_a_sleeping_reader_overflows_no_stack() {
    let cell = FilterCell::new();
    let mut awake = cell.reader();
    let sleeping = cell.reader();
    let mut late = cell.reader();
    for _ in 0..250_000 {
        cell.replace(MsrFilter::allow_all());
    }
    cell.replace(filter(7));
    assert_eq!(awake.verdict(MsrIndex(0x1007), ACCESS), Verdict::Deny);
    drop(sleeping);
    assert_eq!(late.verdict(MsrIndex(0x1007), ACCESS), Verdict::Deny);
    drop(cell);
}

/// What is denied by every filter of a long series is denied in every single check, each check sees one
/// filter whole, and none that was replaced before the check began.
#[test]
fn threads_see_whole_filters_in_order() {
    const OFFSETS: u32 = 3000;
    const READERS: usize = 3;
    let cell = FilterCell::new();
    cell.replace(filter(0));
    let returned = AtomicU32::new(0);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..READERS {
            let mut reader = cell.reader();
            let (returned, done) = (&returned, &done);
            scope.spawn(move || {
                let mut last = 0;
                while !done.load(Ordering::Acquire) {
                    let at_least = returned.load(Ordering::Acquire);
                    let filter = reader.filter().expect("there is a filter from the start");
                    let offsets: Vec<u32> = filter
                        .ranges()
                        .iter()
                        .zip(BASES)
                        .map(|(range, base)| range.base.0 - base)
                        .collect();
                    assert!(
                        offsets.iter().all(|&offset| offset == offsets[0]),
                        "torn: {offsets:?}"
                    );
                    assert!(offsets[0] >= last.max(at_least));
                    last = offsets[0];
                }
            });
        }
        for offset in 1..=OFFSETS {
            cell.replace(filter(offset));
            returned.store(offset, Ordering::Release);
        }
        done.store(true, Ordering::Release);
    });
    assert_eq!(cell.reader().filter(), Some(&filter(OFFSETS)));
}
