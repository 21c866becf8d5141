//! Counting what tests say of themselves: [`Summary`].

use std::fmt;

/// How many tests there were.
#[derive(Default)]
pub(super) struct Summary {
    /// That held.
    pub(super) passed: u32,
    /// That did not.
    pub(super) failed: u32,
    skipped: u32,
}

impl Summary {
    /// Counts in what libtest or a selftest of the kernel (TAP) printed.
    pub(super) fn of(output: &str) -> Self {
        let mut summary = Self::default();
        for line in output.lines() {
            if let Some(counts) = line.strip_prefix("test result: ") {
                let number = |what: &str| {
                    let before = counts.split(what).next().unwrap_or_default();
                    before
                        .split_whitespace()
                        .last()
                        .and_then(|n| n.parse().ok())
                        .unwrap_or(0)
                };
                summary.passed += number(" passed");
                summary.failed += number(" failed");
                summary.skipped += number(" ignored");
            } else if line.contains("SKIP") {
                summary.skipped += 1;
            } else if line.starts_with("ok ") {
                summary.passed += 1;
            } else if line.starts_with("not ok ") {
                summary.failed += 1;
            }
        }
        summary
    }

    /// Adds another's counts.
    pub(super) fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
        } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}
