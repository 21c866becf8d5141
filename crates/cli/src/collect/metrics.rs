//! A file of metrics, as node_exporter's textfile collector reads it: [`Metrics`].
//!
//! It is OpenMetrics text. There are as many series as the tally has rows and directions, and a few more.

use std::fmt::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use msrgate_core::Access;

use crate::output::write_file;
use crate::tally::Tally;

/// Between two versions of the file.
const INTERVAL: Duration = Duration::from_secs(5);

/// A file that always holds the newest numbers.
#[derive(Debug)]
pub(super) struct Metrics {
    path: PathBuf,
    /// What tells this VMM's series from others', as labels.
    labels: String,
    due: Instant,
}

/// What is counted besides the tally.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Numbers {
    pub(super) is_running: bool,
    pub(super) vcpus: usize,
    pub(super) lost_in_rings: u64,
    pub(super) lost_in_file: u64,
    pub(super) failures: u64,
    pub(super) refused: u32,
    pub(super) damaged: u64,
}

impl Metrics {
    pub(super) fn new(path: &Path, guest: &str, pid: u32) -> Self {
        Self {
            path: path.to_owned(),
            labels: format!("guest=\"{}\",pid=\"{pid}\"", escaped(guest)),
            due: Instant::now() + INTERVAL,
        }
    }

    /// Whether it is time for a new version. It is asked until it is.
    pub(super) fn is_due(&mut self) -> bool {
        let is_due = Instant::now() >= self.due;
        if is_due {
            self.due = Instant::now() + INTERVAL;
        }
        is_due
    }

    /// Replaces the file.
    pub(super) fn write(&self, tally: &Tally, numbers: &Numbers) -> anyhow::Result<()> {
        write_file(&self.path, self.text(tally, numbers).as_bytes())
    }

    fn text(&self, tally: &Tally, numbers: &Numbers) -> String {
        let mut text = String::new();
        // A String takes all.
        let _ = self.write_text(&mut text, tally, numbers);
        text
    }

    fn write_text(&self, out: &mut String, tally: &Tally, numbers: &Numbers) -> fmt::Result {
        let labels = &self.labels;
        Self::head(
            out,
            "msr_accesses",
            "counter",
            "MSR accesses that were seen.",
        )?;
        for (key, count) in tally.rows() {
            let name = key.index.name().unwrap_or("");
            for (access, count) in [(Access::Read, count.reads), (Access::Write, count.writes)] {
                if count != 0 {
                    writeln!(
                        out,
                        "msrgate_msr_accesses_total{{{labels},index=\"{}\",msr=\"{name}\",\
                         access=\"{access}\",reason=\"{}\",outcome=\"{}\"}} {count}",
                        key.index, key.reason, key.outcome,
                    )?;
                }
            }
        }
        for (name, help, number) in [
            (
                "msr_accesses_unlisted",
                "MSR accesses of still other kinds than those that have a series.",
                tally.rows_dropped,
            ),
            (
                "gate_failures",
                "Accesses at which msrgate itself failed.",
                numbers.failures,
            ),
            (
                "vcpus_unseen",
                "vCPUs whose accesses are not seen, as there were too many at once.",
                numbers.refused.into(),
            ),
            (
                "damaged",
                "Times that the VMM left something else than an access.",
                numbers.damaged,
            ),
        ] {
            Self::head(out, name, "counter", help)?;
            writeln!(out, "msrgate_{name}_total{{{labels}}} {number}")?;
        }
        Self::head(
            out,
            "events_lost",
            "counter",
            "MSR accesses that are missing.",
        )?;
        for (place, number) in [
            ("ring", numbers.lost_in_rings),
            ("file", numbers.lost_in_file),
        ] {
            writeln!(
                out,
                "msrgate_events_lost_total{{{labels},place=\"{place}\"}} {number}"
            )?;
        }
        Self::head(out, "vcpus", "gauge", "vCPUs that there are.")?;
        writeln!(out, "msrgate_vcpus{{{labels}}} {}", numbers.vcpus)?;
        Self::head(out, "vmm_running", "gauge", "Whether the VMM runs.")?;
        writeln!(
            out,
            "msrgate_vmm_running{{{labels}}} {}",
            u8::from(numbers.is_running)
        )?;
        writeln!(out, "# EOF")
    }

    fn head(out: &mut String, name: &str, kind: &str, help: &str) -> fmt::Result {
        writeln!(
            out,
            "# HELP msrgate_{name} {help}\n# TYPE msrgate_{name} {kind}"
        )
    }
}

/// As a label's value.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', r"\\");
    text.replace('"', "\\\"").replace('\n', r"\n")
}
