//! `cargo xtask lab`: a real Linux KVM on any machine, without /dev/kvm and without root.
//!
//! An emulator ([`Platform`]) boots a Debian kernel ([`Kernel`]) that loads kvm-amd or kvm-intel; what must hold on a
//! real KVM ([`Plan`](plan::Plan)) runs in there and reports over a serial line ([`console`]). docs/lab.md says more.

mod console;
pub(crate) mod image;
mod job;
pub(crate) mod kernel;
mod linux;
mod packages;
mod plan;
mod platform;
mod summary;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use rustix::fs::{FlockOperation, flock};

use crate::shell;
use console::{End, Ended};
use job::Job;
use kernel::Kernel;
use platform::Platform;
use summary::Summary;

/// Lines of a failed job that are printed; the rest is in its log.
const SHOWN_LINES: usize = 40;

#[derive(Args)]
pub(crate) struct Options {
    /// kvm-intel in Bochs instead of kvm-amd in QEMU
    #[arg(long)]
    intel: bool,
    /// Debian's kernel package; without it the newest kernel that is installed, else the newest that apt has
    #[arg(long, value_name = "PACKAGE")]
    kernel: Option<String>,
    /// Processors of the machine; each is a thread of QEMU's
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "intel")]
    cpus: u8,
    /// Only the jobs whose name holds this text; may be repeated
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Where something is missing, says so and ends well: what CI does
    #[arg(long)]
    if_installed: bool,
    /// Prints the names of the jobs, and runs nothing
    #[arg(long)]
    list: bool,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let platform = if options.intel {
        Platform::Intel
    } else {
        Platform::Amd
    };
    let mut plans = plan::plans(platform);
    plans.retain(|plan| {
        let name = plan.name();
        options.only.is_empty() || options.only.iter().any(|text| name.contains(text.as_str()))
    });
    ensure!(!plans.is_empty(), "no job's name holds that: see --list");
    if options.list {
        for plan in plans {
            println!("{}", plan.name());
        }
        return Ok(ExitCode::SUCCESS);
    }

    let started = Instant::now();
    let folder = shell::target_dir().join("lab");
    let kernels = folder.join("kernel");
    let packages = packages::check(platform);
    if options.if_installed {
        let kernel = Kernel::present(&kernels).context("no kernel with KVM's modules is installed");
        if let Err(why) = packages.as_ref().and(kernel.as_ref().map(|_| &())) {
            println!("SKIP(lab): {why:#}");
            return Ok(ExitCode::SUCCESS);
        }
    }
    packages?;
    let inside = folder.join("linux");
    let lock = folder.join("lock");
    let folder = folder.join(platform.name());
    fs::create_dir_all(&folder).context("cannot make the lab's folder")?;
    // The other platform's lab may be getting the same things ready.
    let lock = File::create(lock).context("cannot write in the lab's folder")?;
    flock(&lock, FlockOperation::LockExclusive).context("cannot lock the lab's folder")?;
    let kernel = Kernel::find(options.kernel.as_deref(), &kernels)?;
    let jobs = job::build(&plans, platform, &kernel, &inside)?;
    drop(lock);

    println!("lab: {}, Linux {}", platform.title(), kernel.version);
    let mut lab = Lab {
        platform,
        cpus: options.cpus,
        kernel: &kernel,
        folder: &folder,
        jobs: &jobs,
        total: Summary::default(),
        failed: Vec::new(),
    };
    lab.run()?;
    let Lab { total, failed, .. } = lab;
    for name in &failed {
        println!("failed: {name}");
    }
    println!(
        "lab: {} jobs, {} failed; tests: {total}; {:.0} s",
        jobs.len(),
        failed.len(),
        started.elapsed().as_secs_f64()
    );
    Ok(if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

struct Lab<'a> {
    platform: Platform,
    cpus: u8,
    kernel: &'a Kernel,
    folder: &'a Path,
    jobs: &'a [Job],
    total: Summary,
    failed: Vec<String>,
}

impl Lab<'_> {
    /// Runs all jobs; a machine that stops answering is started once more, with the jobs that are left.
    fn run(&mut self) -> Result<()> {
        let mut next = 0;
        let mut may_retry = true;
        while next < self.jobs.len() {
            let (ended, stuck) = self.boot(next)?;
            next += ended;
            let Some(why) = stuck else {
                break;
            };
            let name = &self.jobs[next.min(self.jobs.len() - 1)].name;
            if may_retry {
                println!("FLAKE: {why}, at {name}; one more try");
                may_retry = false;
            } else {
                println!("{why} again, at {name}: the rest does not run");
                self.failed
                    .extend(self.jobs[next..].iter().map(|job| job.name.clone()));
                break;
            }
        }
        Ok(())
    }

    /// Boots the machine with the jobs from `first` on; how many ended, and why not all of them.
    fn boot(&mut self, first: usize) -> Result<(usize, Option<String>)> {
        let jobs = &self.jobs[first..];
        let started = Instant::now();
        let mut command = self
            .platform
            .machine(self.kernel, jobs, self.cpus, self.folder)?;
        let results = self.folder.join("results.log");
        let mut ended = 0;
        let limits: Vec<_> = jobs
            .iter()
            .map(|job| self.platform.patience(job.limit))
            .collect();
        let end = console::follow(&mut command, &results, &limits, &mut |event| {
            match event {
                console::Event::Booted => {
                    println!("booted in {:.1} s", started.elapsed().as_secs_f64());
                }
                console::Event::Began(n) => {
                    print!("  {:<44} ", jobs[n].name);
                    io::stdout().flush()?;
                }
                console::Event::Ended(job) => {
                    ended += 1;
                    report(&jobs[job.number], &job, &mut self.total, &mut self.failed);
                }
            }
            Ok(())
        })?;
        let stuck = match end {
            End::Whole => None,
            End::Broken(why) => Some(why),
            End::Silent(limit) => {
                println!("no answer");
                Some(format!(
                    "the machine did not answer for {} s",
                    limit.as_secs()
                ))
            }
            End::Died => Some(format!(
                "the machine ended early; its console is in {}",
                self.folder.join("kernel.log").display()
            )),
        };
        fs::rename(&results, self.folder.join(format!("results.{first}.log")))
            .context("cannot keep the log")?;
        Ok((ended, stuck))
    }
}

/// One line of the table, and what a failed job said.
fn report(job: &Job, ended: &Ended, total: &mut Summary, failed: &mut Vec<String>) {
    let summary = Summary::of(&ended.output);
    total.add(&summary);
    let seconds = Duration::from_millis(ended.milliseconds).as_secs_f64();
    match job.judge(ended.status, &summary) {
        Ok(()) => {
            println!("pass  {summary}, {seconds:.1} s");
            for line in ended.output.lines().filter(|line| line.contains("FLAKE")) {
                println!("    | {line}");
            }
        }
        Err(why) => {
            println!("FAIL  {why}; {summary}, {seconds:.1} s");
            let lines: Vec<_> = ended.output.lines().collect();
            for line in &lines[lines.len().saturating_sub(SHOWN_LINES)..] {
                println!("    | {line}");
            }
            failed.push(job.name.clone());
        }
    }
}
