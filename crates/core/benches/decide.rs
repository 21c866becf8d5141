//! What one decision of the filter costs: the lookup, alone and behind a vCPU's reader, beside the oracle
//! and the tables that other programs use, over the same accesses.
//!
//! `hit`: the first range decides. `deep`: the last of 16 does. `miss`: none does. `random`: all of these, in
//! an order that no branch predictor learns. Each measurement is 1024 decisions.

use std::collections::{BTreeMap, HashMap};
use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use msrgate_core::{
    Access, DefaultAction, FilterCell, FilterRange, Lookup, MsrFilter, MsrIndex, RangeFlags,
    Verdict,
};

/// 16 ranges of 32 MSRs each, denied for reads and writes, as a policy for Linux guests has them.
const BASES: [u32; 16] = [
    0x0000_0010,
    0x0000_0048,
    0x0000_0080,
    0x0000_00e0,
    0x0000_0174,
    0x0000_01a0,
    0x0000_0200,
    0x0000_0400,
    0x0000_0480,
    0x0000_0600,
    0x0000_0da0,
    0x4000_0000,
    0x4b56_4d00,
    0xc000_0080,
    0xc001_0000,
    0xc001_1020,
];
const NMSRS: u32 = 32;
const ACCESSES: usize = 1024;

fn decide(criterion: &mut Criterion) {
    let filter = filter();
    let lookup = Lookup::new(&filter);
    let cell = FilterCell::new();
    cell.replace(filter.clone());
    let mut reader = cell.reader();
    let denied = || BASES.iter().flat_map(|&base| base..base + NMSRS);
    let tree: BTreeMap<u32, Verdict> = denied().map(|index| (index, Verdict::Deny)).collect();
    let hash: HashMap<u32, Verdict> = denied().map(|index| (index, Verdict::Deny)).collect();
    let table = black_box(BASES.map(|base| (base, Verdict::Deny)));

    for (name, indices) in accesses() {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(ACCESSES as u64));
        let mut measure = |engine, verdict: &mut dyn FnMut(&[MsrIndex]) -> usize| {
            group.bench_function(engine, |bencher| {
                bencher.iter(|| verdict(black_box(&indices)));
            });
        };
        measure("lookup", &mut |indices| {
            denials(indices, |index| lookup.verdict(index, Access::Read))
        });
        measure("reader", &mut |indices| {
            denials(indices, |index| reader.verdict(index, Access::Read))
        });
        measure("oracle", &mut |indices| {
            denials(indices, |index| filter.decide(index, Access::Read).verdict)
        });
        measure("btree_map", &mut |indices| {
            denials(indices, |index| {
                tree.get(&index.0).copied().unwrap_or(Verdict::Allow)
            })
        });
        measure("hash_map", &mut |indices| {
            denials(indices, |index| {
                hash.get(&index.0).copied().unwrap_or(Verdict::Allow)
            })
        });
        measure("linear_table", &mut |indices| {
            denials(indices, |index| in_linear_table(&table, index))
        });
    }
}

fn filter() -> MsrFilter {
    let ranges = BASES
        .iter()
        .map(|&base| {
            FilterRange::uniform(RangeFlags::READ_WRITE, MsrIndex(base), NMSRS, Verdict::Deny)
        })
        .collect();
    MsrFilter::new(DefaultAction::Allow, ranges).expect("16 short ranges are a filter")
}

/// A table of 16 entries, walked to the first that fits: QEMU's handlers, and most lists of allowed MSRs.
fn in_linear_table(table: &[(u32, Verdict)], index: MsrIndex) -> Verdict {
    table
        .iter()
        .find(|(base, _)| index.0.wrapping_sub(*base) < NMSRS)
        .map_or(Verdict::Allow, |&(_, verdict)| verdict)
}

fn denials(indices: &[MsrIndex], mut verdict: impl FnMut(MsrIndex) -> Verdict) -> usize {
    indices
        .iter()
        .filter(|&&index| verdict(index) == Verdict::Deny)
        .count()
}

fn accesses() -> [(&'static str, Vec<MsrIndex>); 4] {
    let mut random = xorshift();
    let mut within = |bases: &[u32]| -> Vec<MsrIndex> {
        (0..ACCESSES)
            .map(|_| {
                let base = bases[random() as usize % bases.len()];
                MsrIndex(base + random() % NMSRS)
            })
            .collect()
    };
    let gaps: Vec<u32> = BASES.iter().map(|base| base ^ 0x2000).collect();
    let mixed = [&BASES[..], &gaps[..]].concat();
    [
        ("hit", within(&BASES[..1])),
        ("deep", within(&BASES[15..])),
        ("miss", within(&gaps)),
        ("random", within(&mixed)),
    ]
}

fn xorshift() -> impl FnMut() -> u32 {
    let mut state = 0x2545_f491u32;
    move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    }
}

criterion_group!(benches, decide);
criterion_main!(benches);
