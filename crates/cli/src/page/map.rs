//! [`Window`]: the part of the MSRs' numbers that a guest touched, in rows of sixteen, and what the policy says there.

use std::collections::{BTreeMap, BTreeSet};

use msrgate_core::{Access, Action, MsrIndex, msr_names};
use msrgate_policy::Compiled;
use serde::Serialize;

use super::gather::Msr;

/// Numbers that belong together: a heading, and the first and the last of them.
const WINDOWS: [(&str, u32, u32); 4] = [
    ("Architectural and model-specific", 0, 0x1fff),
    ("Hypervisors", 0x4000_0000, 0x4fff_ffff),
    ("64-bit mode", 0xc000_0000, 0xc000_ffff),
    ("AMD", 0xc001_0000, 0xc001_ffff),
];
/// Numbers in a row.
const ROW: u32 = 16;
/// Rows of a window that are shown.
const MOST_ROWS: usize = 256;

/// One part of the map.
#[derive(Debug, Default, Serialize)]
pub(super) struct Window {
    title: &'static str,
    /// `None`: whatever is in no other window.
    range: Option<[u32; 2]>,
    rows: Vec<Row>,
    /// Rows that are not shown.
    more: usize,
}

/// Sixteen neighbours, of which one at least was touched.
#[derive(Debug, Serialize)]
struct Row {
    base: u32,
    /// For each of them, what the policy says: `a` allowed, `d` deflected, `x` denied. Empty without a policy.
    policy: String,
    /// What those are called that have a name, by their offset.
    names: BTreeMap<u32, &'static str>,
}

/// All windows, the one for what is elsewhere only where something is.
pub(super) fn windows(msrs: &[Msr], policy: Option<&Compiled>) -> Vec<Window> {
    let mut bases: BTreeSet<u32> = msrs.iter().map(|msr| msr.index.0 & !(ROW - 1)).collect();
    let mut windows: Vec<Window> = WINDOWS
        .iter()
        .map(|(title, first, last)| {
            let inside: BTreeSet<u32> = bases.range(first..=last).copied().collect();
            bases.retain(|base| !inside.contains(base));
            window(title, Some([*first, *last]), &inside, policy)
        })
        .collect();
    if !bases.is_empty() {
        windows.push(window("Elsewhere", None, &bases, policy));
    }
    windows
}

fn window(
    title: &'static str,
    range: Option<[u32; 2]>,
    bases: &BTreeSet<u32>,
    policy: Option<&Compiled>,
) -> Window {
    let rows = bases.iter().take(MOST_ROWS);
    Window {
        title,
        range,
        rows: rows.map(|base| row(*base, policy)).collect(),
        more: bases.len().saturating_sub(MOST_ROWS),
    }
}

fn row(base: u32, policy: Option<&Compiled>) -> Row {
    let last = base + (ROW - 1);
    let names = msr_names();
    let from = names.partition_point(|named| named.index.0 < base);
    let inside = names[from..]
        .iter()
        .take_while(|named| named.index.0 <= last);
    Row {
        base,
        policy: policy.map_or_else(String::new, |policy| {
            (base..=last)
                .map(|index| says(policy, MsrIndex(index)))
                .collect()
        }),
        names: inside
            .map(|named| (named.index.0 - base, named.name))
            .collect(),
    }
}

/// The stricter of what is said of the two directions.
fn says(policy: &Compiled, index: MsrIndex) -> char {
    let known = policy.image.defaults().known;
    let letters = Access::ALL.map(|access| {
        let rule = policy.image.named(index, access).unwrap_or(known);
        match rule.action {
            Action::Allow => 'a',
            Action::Fault => 'x',
            _ => 'd',
        }
    });
    letters[0].max(letters[1])
}
