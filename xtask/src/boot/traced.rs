//! What a Linux says of its own MSR accesses, by its tracepoints `msr:*`, against what was
//! seen of them from outside.
//!
//! The tracepoints begin some time after the kernel, and code without a stack is not traced: so what Linux saw must be in
//! what we saw, as often, and not the other way round.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use super::{COMMAND_LINE, Guest};

/// Room for some ten thousand events.
const TRACING: &str = "trace_event=msr:* trace_buf_size=8M";
/// Fewer would mean that the kernel traced nothing.
const AT_LEAST: usize = 20;

/// Boots, and compares.
pub(super) fn check(guest: &Guest) -> Result<String> {
    let boot = guest.boot(
        "fixed",
        "examples/policies/observe.toml",
        &format!("{COMMAND_LINE} {TRACING}"),
    )?;
    let mut seen: BTreeMap<(u32, &str), u64> = BTreeMap::new();
    for row in boot.json["msrs"].as_array().context("no table of MSRs")? {
        let index = row["index"].as_str().context("a row without an index")?;
        let index = parse_index(index.trim_start_matches("0x"))?;
        for (direction, key) in [("read", "reads"), ("write", "writes")] {
            *seen.entry((index, direction)).or_default() += row[key].as_u64().unwrap_or(0);
        }
    }
    let mut kinds = 0;
    let mut accesses = 0;
    for line in boot.console.lines() {
        let Some(traced) = line.strip_prefix("traced: ") else {
            continue;
        };
        // How often, the event and the index, as in "12 write…: 6e0".
        let words: Vec<_> = traced.split_whitespace().collect();
        let [count, event, index] = words[..] else {
            continue;
        };
        let direction = event.split('_').next().unwrap_or(event);
        let (count, index): (u64, _) = (count.parse()?, parse_index(index)?);
        let ours = seen.get(&(index, direction)).copied().unwrap_or(0);
        ensure!(
            ours >= count,
            "Linux traced {count} times {direction} of {index:#x}, and {ours} were seen"
        );
        kinds += 1;
        accesses += count;
    }
    ensure!(
        kinds >= AT_LEAST,
        "Linux traced only {kinds} kinds of access of itself"
    );
    Ok(format!(
        "all {accesses} accesses of {kinds} kinds that Linux traced were seen"
    ))
}

fn parse_index(text: &str) -> Result<u32> {
    u32::from_str_radix(text, 16).with_context(|| format!("{text:?} is no index"))
}
