//! Following a machine by what it says on its second serial line: [`follow`].
//!
//! The lines of the init script begin with `lab: `; what is between `begin` and `end` is the job's.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::shell;

/// How long a machine may take from its start to /dev/kvm.
const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// What happened in the machine.
pub(super) enum Event {
    /// /dev/kvm is there.
    Booted,
    /// The job of this number runs.
    Began(usize),
    /// A job ended.
    Ended(Ended),
}

/// A job that ended.
pub(super) struct Ended {
    /// Which.
    pub(super) number: usize,
    /// Its exit status.
    pub(super) status: i32,
    /// How long it took, by the machine's clock.
    pub(super) milliseconds: u64,
    /// What it wrote.
    pub(super) output: String,
}

/// How a machine ended.
pub(super) enum End {
    /// It ran all jobs.
    Whole,
    /// It said that it cannot.
    Broken(String),
    /// It said nothing of the job within this time.
    Silent(Duration),
    /// The emulator ended before the jobs did.
    Died,
}

/// Starts a machine and tells of its jobs until it ends, says that it is done, or is silent for longer than
/// `limits` say of the job. Nothing of it runs afterwards.
pub(super) fn follow(
    command: &mut Command,
    results: &Path,
    limits: &[Duration],
    tell: &mut impl FnMut(Event) -> Result<()>,
) -> Result<End> {
    let mut machine = shell::start_group(command, &results.with_file_name("emulator.log"))?;
    let end = listen(&mut machine, results, limits, tell);
    shell::end_group(&mut machine)?;
    end
}

fn listen(
    machine: &mut Child,
    results: &Path,
    limits: &[Duration],
    tell: &mut impl FnMut(Event) -> Result<()>,
) -> Result<End> {
    let mut log = File::open(results).context("cannot read the results")?;
    let mut parser = Parser::default();
    let mut limit = BOOT_LIMIT;
    let mut since = Instant::now();
    loop {
        // Asked before reading: what a machine wrote before it ended is read.
        let is_over = machine.try_wait().context("wait")?.is_some();
        let mut bytes = Vec::new();
        log.read_to_end(&mut bytes)
            .context("cannot read the results")?;
        for line in parser.lines(&bytes) {
            match line {
                Line::Event(event) => {
                    if let Event::Began(n) = event {
                        limit = limits.get(n).copied().unwrap_or(BOOT_LIMIT);
                    }
                    since = Instant::now();
                    tell(event)?;
                }
                Line::End(end) => return Ok(end),
            }
        }
        if is_over {
            return Ok(End::Died);
        }
        if since.elapsed() > limit {
            return Ok(End::Silent(limit));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

enum Line {
    Event(Event),
    End(End),
}

/// Takes a line apart.
#[derive(Default)]
struct Parser {
    /// The line that has no end yet.
    rest: Vec<u8>,
    output: String,
}

impl Parser {
    fn lines(&mut self, bytes: &[u8]) -> Vec<Line> {
        let mut lines = Vec::new();
        for &byte in bytes {
            match byte {
                b'\n' => {
                    let line =
                        String::from_utf8_lossy(&std::mem::take(&mut self.rest)).into_owned();
                    lines.extend(self.line(&line));
                }
                b'\r' => {}
                _ => self.rest.push(byte),
            }
        }
        lines
    }

    fn line(&mut self, line: &str) -> Option<Line> {
        if let Some(told) = line.strip_prefix("lab: ").and_then(|told| self.told(told)) {
            return Some(told);
        }
        self.output += line;
        self.output.push('\n');
        None
    }

    fn told(&mut self, line: &str) -> Option<Line> {
        let mut words = line.split(' ');
        let event = match words.next()? {
            "booted" => Event::Booted,
            "begin" => {
                self.output.clear();
                Event::Began(words.next()?.parse().ok()?)
            }
            "end" => Event::Ended(Ended {
                number: words.next()?.parse().ok()?,
                status: words.next()?.parse().ok()?,
                milliseconds: words.next()?.parse().ok()?,
                output: std::mem::take(&mut self.output),
            }),
            "whole" => return Some(Line::End(End::Whole)),
            "broken:" => {
                return Some(Line::End(End::Broken(words.collect::<Vec<_>>().join(" "))));
            }
            _ => return None,
        };
        Some(Line::Event(event))
    }
}
