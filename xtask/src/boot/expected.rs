//! What a boot comes to, as a file of `testdata/boot` has it: [`Expected`].
//!
//! Not how often, nor with which values: those depend on the time and the machine.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context, Result, ensure};

use super::Boot;

const HEAD: &str = "\
# What Linux touches in a boot: MSR, direction, reason why it left the guest, outcome; and what the console says of it.
# Written by `cargo xtask boot --update`; `cargo xtask boot` also compares it with Linux's own tracepoints.
";

/// How the console tells of a policy's #GP that Linux did not expect.
const COMPLAINT: &str = "unchecked MSR access error: ";

/// What happened, a line each.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Expected(BTreeSet<String>);

impl Expected {
    pub(super) fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self(lines.map(str::to_owned).collect())
    }

    pub(super) fn of(boot: &Boot) -> Result<Self> {
        let end = boot.json["end"]["kind"].as_str();
        ensure!(
            end == Some("power-off"),
            "the guest did not switch itself off, but: {}",
            boot.json["end"]
        );
        for line in ["guest: user space, 1 processors", "guest: end"] {
            ensure!(
                boot.console.contains(line),
                "the console does not say {line:?}"
            );
        }
        let mut lines = BTreeSet::new();
        let rows = boot.json["msrs"].as_array().context("no table of MSRs")?;
        for row in rows {
            let word = |key: &str| row[key].as_str().unwrap_or("-").to_owned();
            let index = word("index");
            let number = u32::from_str_radix(index.trim_start_matches("0x"), 16);
            let number = number.context("an index that is none")?;
            for (direction, count) in [("read", "reads"), ("write", "writes")] {
                if row[count].as_u64().unwrap_or(0) != 0 {
                    lines.insert(format!(
                        "{number:#010x} {direction:<5} {:<7} {:<7} {}",
                        word("reason"),
                        word("outcome"),
                        word("name"),
                    ));
                }
            }
        }
        for line in boot.console.lines() {
            if let Some((_, complaint)) = line.split_once(COMPLAINT) {
                // Behind it are addresses.
                let what = complaint.split(" at ").next().unwrap_or(complaint);
                let what = what.split(" (").next().unwrap_or(what);
                lines.insert(format!("console: {COMPLAINT}{what}"));
            }
        }
        Ok(Self(lines))
    }

    /// What is missing, and what there is too much.
    pub(super) fn differences(&self, found: &Self) -> Vec<String> {
        let missing = self.0.difference(&found.0).map(|line| format!("- {line}"));
        let unexpected = found.0.difference(&self.0).map(|line| format!("+ {line}"));
        missing.chain(unexpected).collect()
    }

    pub(super) fn summary(&self) -> String {
        let accesses = self.0.iter().filter(|line| line.starts_with("0x"));
        format!("{} kinds of access", accesses.count())
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HEAD)?;
        self.0.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}
