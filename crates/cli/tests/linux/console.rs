//! Comparing consoles: [`assert_same`]. Times go, and with them the few lines that measure them, or tell of slowness.

use std::collections::BTreeMap;

/// What the kernel says of its clocks and the date, and of a machine that has no time for it.
const MEASURED: [&str; 8] = [
    "kvm-clock: using sched offset of ",
    "audit: type=2000 audit(",
    "setting system clock to ",
    "sched_clock: Marking stable ",
    "hpet: Lost ",
    "hrtimer: interrupt took ",
    "perf: interrupt took too long ",
    " usecs", // a quirk of a PCI device that took long
];

/// Fails with the lines that only one console has. Their order does not count: a Linux does some things side by side.
pub(crate) fn assert_same(left: &str, right: &str) {
    let [left, right] = [lines(left), lines(right)];
    let [only_left, only_right] = [(&left, &right), (&right, &left)].map(|(of, other)| {
        let more = of
            .iter()
            .filter(|(line, count)| other.get(*line) < Some(count));
        more.map(|(line, _)| *line).collect::<Vec<_>>()
    });
    let same = only_left.is_empty() && only_right.is_empty();
    assert!(
        same,
        "on one: {only_left:#?}\non the other: {only_right:#?}"
    );
}

/// What can be compared, and how often it is there.
fn lines(console: &str) -> BTreeMap<&str, u32> {
    let mut counts = BTreeMap::new();
    let lines = console.lines().map(|line| without_time(line.trim_end()));
    for line in lines.filter(|line| !MEASURED.iter().any(|measured| line.contains(measured))) {
        *counts.entry(line).or_default() += 1;
    }
    counts
}

/// `text` of `[    0.123456] text`.
fn without_time(line: &str) -> &str {
    let rest = line
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] "));
    match rest {
        Some((time, text)) if time.trim().parse::<f64>().is_ok() => text,
        _ => line,
    }
}

#[test]
fn consoles_differ_by_more_than_time_and_order() {
    let left = "[    0.1] a\r\n[    2.5] sched_clock: Marking stable (1)\r\n[    2.6] b\r\n";
    assert_same(left, "[   10.0] b\n[   10.1] a\n");
    for other in ["a", "a\nb\nb", "a\nc"] {
        assert!(std::panic::catch_unwind(|| assert_same(left, other)).is_err());
    }
}
