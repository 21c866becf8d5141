//! Linux's own test of user-space MSR control, unmodified, on the real and on the embedded KVM, and while it is
//! observed there.
//!
//! [`source`] gets and builds the selftests of Debian's `linux-source-6.12`; this file runs them. A world
//! ([`World`]) is a way to give a test its /dev/kvm. The test's own exit status decides, as in the kernel's
//! `kselftest/runner.sh`: 0 passed, 4 skipped, anything else failed.

mod source;

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::shell;

/// The test that this project must pass.
const MAIN_TEST: &str = "x86_64/userspace_msr_exit_test";

/// `KSFT_SKIP` of the kernel's tools/testing/selftests/kselftest.h.
const EXIT_SKIPPED: i32 = 4;

/// A test that hangs is a failed test.
const TIME_LIMIT: Duration = Duration::from_secs(120);

#[derive(Args)]
pub(crate) struct Options {
    /// Tests by their name in tools/testing/selftests/kvm, without `.c`
    #[arg(default_value = MAIN_TEST)]
    tests: Vec<String>,
    /// Every single-file test of the tree that needs no nested virtualization or confidential guest
    #[arg(long, conflicts_with = "tests")]
    all: bool,
    /// Only on this KVM
    #[arg(long, value_enum)]
    on: Option<World>,
    /// `linux-source-6.12.tar.xz`, where neither apt nor /usr/src has it
    #[arg(long)]
    source: Option<PathBuf>,
    /// Only the table, not each test's output
    #[arg(long)]
    brief: bool,
    /// With the release build of msrgate (the interpreter is optimized in both)
    #[arg(long)]
    release: bool,
}

/// Which /dev/kvm a test opens.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum World {
    /// The machine's own
    Kvm,
    /// The machine's own, its MSR accesses observed by `msrgate wrap --observe filter`
    KvmObserved,
    /// The embedded one, through `msrgate wrap --kvm soft`
    Soft,
    /// The embedded one, observed in the same way
    SoftObserved,
}

impl World {
    const ALL: [Self; 4] = [Self::Kvm, Self::KvmObserved, Self::Soft, Self::SoftObserved];

    /// The options of `msrgate wrap` for it, if it needs that; behind `--trace` comes a file.
    const fn wrapped(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Kvm => None,
            Self::KvmObserved => Some(&["--kvm", "real", "--observe", "filter", "--trace"]),
            Self::Soft => Some(&["--kvm", "soft"]),
            Self::SoftObserved => Some(&["--kvm", "soft", "--observe", "filter", "--trace"]),
        }
    }

    const fn needs_dev_kvm(self) -> bool {
        matches!(self, Self::Kvm | Self::KvmObserved)
    }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::KvmObserved => "kvm-observed",
            Self::Soft => "soft",
            Self::SoftObserved => "soft-observed",
        })
    }
}

/// What became of one test in one world.
enum Outcome {
    Passed,
    Skipped(String),
    Failed(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("pass"),
            Self::Skipped(why) => write!(f, "SKIP: {why}"),
            Self::Failed(why) => write!(f, "FAIL: {why}"),
        }
    }
}

/// Builds a test, unless it is built already.
pub(crate) fn program(test: &str) -> Result<PathBuf> {
    let folder = folder()?;
    let tree = source::tree(&folder, None)?;
    source::build(&folder, &tree, test)
}

fn folder() -> Result<PathBuf> {
    let folder = shell::target_dir().join("linux-selftest");
    fs::create_dir_all(folder.join("log")).context("cannot make the selftests' folder")?;
    Ok(folder)
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let folder = folder()?;
    let tree = source::tree(&folder, options.source.as_deref())?;
    let tests = if options.all {
        source::list(&tree)?
    } else {
        options.tests.clone()
    };
    let worlds = worlds(options)?;

    let mut counts = Counts::default();
    let mut table = Vec::new();
    for test in &tests {
        let program = source::build(&folder, &tree, test);
        let mut row = vec![test.clone()];
        for (world, ready) in &worlds {
            let outcome = match (&program, ready) {
                (Err(error), _) => Outcome::Failed(format!("does not build: {error:#}")),
                (Ok(_), Some(why)) => Outcome::Skipped(why.clone()),
                (Ok(program), None) => run_one(program, *world, &folder, options)?,
            };
            counts.add(&outcome);
            row.push(format!("{world}: {outcome}"));
        }
        table.push(row);
    }
    for row in &table {
        println!("{}", row.join("\n    "));
    }
    println!("selftest: {counts}");
    Ok(if counts.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The worlds that were asked for, each with the reason why it cannot run here.
fn worlds(options: &Options) -> Result<Vec<(World, Option<String>)>> {
    let chosen: Vec<World> = World::ALL
        .into_iter()
        .filter(|world| options.on.is_none_or(|on| on == *world))
        .collect();
    if chosen.iter().any(|world| world.wrapped().is_some()) {
        let mut build = shell::cargo();
        build.args(["build", "-p", "msrgate", "-p", "msrgate-preload"]);
        if options.release {
            build.arg("--release");
        }
        shell::run(&mut build)?;
    }
    let no_kvm = match chosen.iter().any(|world| world.needs_dev_kvm()) {
        true => no_kvm()?,
        false => None,
    };
    let why = |world: &World| no_kvm.clone().filter(|_| world.needs_dev_kvm());
    Ok(chosen.iter().map(|world| (*world, why(world))).collect())
}

/// Why the real KVM cannot be used, if it cannot. `MSRGATE_REQUIRE_KVM=1` makes that an error.
fn no_kvm() -> Result<Option<String>> {
    let opened = File::options().read(true).write(true).open("/dev/kvm");
    let Err(error) = opened else {
        return Ok(None);
    };
    if std::env::var_os("MSRGATE_REQUIRE_KVM").is_some_and(|value| value == "1") {
        bail!("/dev/kvm does not open and MSRGATE_REQUIRE_KVM=1: {error}");
    }
    println!("SKIP(kvm): /dev/kvm does not open: {error}");
    Ok(Some(format!("/dev/kvm does not open: {error}")))
}

fn run_one(program: &Path, world: World, folder: &Path, options: &Options) -> Result<Outcome> {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let log = folder.join("log").join(format!("{name}.{world}"));
    let mut command = match world.wrapped() {
        None => Command::new(program),
        Some(how) => {
            let profile = if options.release { "release" } else { "debug" };
            let mut wrap = Command::new(shell::target_dir().join(profile).join("msrgate"));
            wrap.arg("wrap").args(how);
            if how.contains(&"--trace") {
                wrap.arg(log.with_extension(format!("{world}.msrtrace")));
            }
            wrap.arg("--").arg(program);
            wrap
        }
    };
    shell::announce(&command);
    let status = shell::run_for(&mut command, &log, TIME_LIMIT)?;
    let text =
        String::from_utf8_lossy(&fs::read(&log).context("cannot read the log")?).into_owned();
    if !options.brief {
        print!("{text}");
    }
    let Some(status) = status else {
        return Ok(Outcome::Failed(format!("no end after {TIME_LIMIT:?}")));
    };
    Ok(match status.code() {
        Some(0) => Outcome::Passed,
        Some(EXIT_SKIPPED) => Outcome::Skipped(telling_line(&text, "SKIP")),
        _ => Outcome::Failed(format!("{status}: {}", telling_line(&text, "pid="))),
    })
}

/// The line after the first that holds `mark`, or the last: a test's one sentence about what went wrong.
fn telling_line(text: &str, mark: &str) -> String {
    let mut lines = text.lines().skip_while(|line| !line.contains(mark));
    let marked = lines.next();
    let line = match mark {
        "SKIP" => marked,
        _ => lines.find(|line| !line.trim_start().starts_with(|c: char| c.is_ascii_digit())),
    };
    line.or_else(|| text.lines().last())
        .unwrap_or("no output")
        .trim()
        .to_owned()
}

#[derive(Default)]
struct Counts {
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Counts {
    fn add(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Passed => self.passed += 1,
            Outcome::Skipped(_) => self.skipped += 1,
            Outcome::Failed(_) => self.failed += 1,
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
        } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}
