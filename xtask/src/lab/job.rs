//! The programs of the lab, with all that they need: [`Job`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::kernel::Kernel;
use super::linux::{self, Linux};
use super::plan::{CargoTest, LINUX_LIMIT, LinuxTest, Plan, Way};
use super::platform::Platform;
use super::summary::Summary;
use crate::selftest;
use crate::shell;

/// What tests read at run time, from the workspace's root.
const DATA: [&str; 2] = ["testdata", "examples/policies"];

/// What `msrgate wrap` loads.
const LIBRARY: &str = "libmsrgate_preload.so";

/// The environment of tests, on both platforms.
const ENVIRONMENT: [&str; 3] = [
    "MSRGATE_REQUIRE_KVM=1",
    "MSRGATE_DIFF_CASES=2000",
    "MSRGATE_EXPLAIN_CASES=400",
];

/// A program with all that it needs.
pub(super) struct Job {
    /// Its name in the table.
    pub(super) name: String,
    /// The current directory.
    pub(super) folder: PathBuf,
    /// A folder that it writes to.
    pub(super) scratch: PathBuf,
    /// What is run.
    pub(super) programs: Vec<PathBuf>,
    /// Files and folders that it reads.
    pub(super) data: Vec<PathBuf>,
    /// How long it may take, by the machine's clock.
    pub(super) limit: Duration,
    /// Words like `A=B`.
    environment: Vec<String>,
    command: String,
    arguments: Vec<String>,
}

impl Job {
    /// What it consists of, for `env`.
    pub(super) fn words(&self) -> impl Iterator<Item = &str> {
        let words = [&self.command].into_iter().chain(&self.arguments);
        self.environment.iter().chain(words).map(String::as_str)
    }

    /// Whether it passed, and why not.
    pub(super) fn judge(&self, status: i32, summary: &Summary) -> Result<(), String> {
        match status {
            137 => Err(format!("no end after {} s", self.limit.as_secs())),
            0 if summary.failed > 0 => Err("a test failed".to_owned()),
            0 if summary.passed == 0 => Err("no test ran".to_owned()),
            0 => Ok(()),
            status => Err(format!("exit status {status}")),
        }
    }
}

/// Builds what the plans need; the tests' environment is the platform's. `kernel` is also what is booted inside,
/// from `folder`.
pub(super) fn build(
    plans: &[Plan],
    platform: Platform,
    kernel: &Kernel,
    folder: &Path,
) -> Result<Vec<Job>> {
    let built = Built::with_cargo(plans)?;
    let mut jobs = Vec::new();
    for plan in plans {
        let mut job = match plan {
            Plan::Cargo(test) => built.job(plan.name(), test, platform)?,
            Plan::Linux(test) => test.job(plan.name(), &built)?,
        };
        if plan.boots_linux() {
            let linux = Linux::write(kernel, folder)?;
            job.programs.push(PathBuf::from(linux::QEMU));
            job.data.extend(linux.data());
            let folder = linux.folder.display();
            job.environment.push(format!("MSRGATE_LINUX={folder}"));
        }
        jobs.push(job);
    }
    Ok(jobs)
}

impl LinuxTest {
    fn job(&self, name: String, built: &Built) -> Result<Job> {
        let program = selftest::program(self.test)?;
        let mut programs = vec![program.clone()];
        let mut environment = Vec::new();
        let (command, arguments) = match self.way {
            Way::Plain => (program.display().to_string(), Vec::new()),
            Way::Forced => {
                let script = format!(
                    "echo 1 >{FORCE} && '{}'; status=$?; echo 0 >{FORCE}; exit $status",
                    program.display()
                );
                ("sh".to_owned(), vec!["-c".to_owned(), script])
            }
            Way::Watched => {
                let (msrgate, library) = built.wrap()?;
                environment.push(format!("MSRGATE_PRELOAD={}", library.display()));
                programs.extend([msrgate.clone(), library]);
                let words = WRAP.iter().map(|&word| word.to_owned());
                let arguments = words.chain([program.display().to_string()]).collect();
                (msrgate.display().to_string(), arguments)
            }
        };
        Ok(Job {
            name,
            folder: PathBuf::from("/tmp"),
            scratch: PathBuf::from("/tmp"),
            programs,
            data: Vec::new(),
            limit: LINUX_LIMIT,
            environment,
            command,
            arguments,
        })
    }
}

const FORCE: &str = "/sys/module/kvm/parameters/force_emulation_prefix";

/// What a selftest is watched by.
#[rustfmt::skip]
const WRAP: [&str; 8] = [
    "wrap", "--kvm", "real", "--observe", "filter", "--trace", "/tmp/selftest.msrtrace", "--",
];

/// What cargo built.
#[derive(Default)]
struct Built {
    artifacts: Vec<Artifact>,
}

/// A line of `cargo test --message-format=json`, as far as it matters here.
#[derive(Deserialize)]
struct Artifact {
    reason: String,
    #[serde(default)]
    package_id: String,
    #[serde(default)]
    manifest_path: PathBuf,
    #[serde(default)]
    target: Target,
    #[serde(default)]
    profile: Profile,
    executable: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
struct Target {
    name: String,
}

#[derive(Default, Deserialize)]
struct Profile {
    test: bool,
}

impl Built {
    fn with_cargo(plans: &[Plan]) -> Result<Self> {
        if !plans.iter().any(Plan::needs_cargo) {
            return Ok(Self::default());
        }
        let mut cargo = shell::cargo();
        // All of it, as CI builds it: a part would be built with other features, and again.
        cargo.args(["test", "--workspace", "--no-run"]);
        cargo.arg("--message-format=json-render-diagnostics");
        shell::announce(&cargo);
        let output = cargo
            .stderr(Stdio::inherit())
            .output()
            .context("cannot start cargo")?;
        ensure!(output.status.success(), "the tests do not build");
        let lines = output
            .stdout
            .split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty());
        let artifacts: Result<Vec<Artifact>, _> = lines.map(serde_json::from_slice).collect();
        let mut artifacts = artifacts.context("cargo's messages are not as expected")?;
        artifacts.retain(|artifact| artifact.reason == "compiler-artifact");
        Ok(Self { artifacts })
    }

    fn job(&self, name: String, test: &CargoTest, platform: Platform) -> Result<Job> {
        let artifact = self
            .of_package(test.package)
            .find(|artifact| artifact.profile.test && artifact.target.name == test.target)
            .with_context(|| format!("{} has no test {}", test.package, test.target))?;
        let program = artifact.executable.clone().context("a test is a program")?;
        let mut environment: Vec<_> = ENVIRONMENT.map(str::to_owned).into();
        if platform == Platform::Amd {
            environment.push("MSRGATE_HOST=tcg".to_owned());
        }
        let mut programs = vec![program.clone()];
        // Tests of programs start them from where cargo puts them.
        if test.package == "msrgate" {
            let started = self
                .of_package(test.package)
                .filter(|other| !other.profile.test);
            programs.extend(started.filter_map(|other| other.executable.clone()));
            programs.push(program.with_file_name(LIBRARY));
        }
        if let Some(name) = test.client {
            programs.push(program.with_file_name(LIBRARY));
            programs.push(client(&artifact.manifest_path, name)?);
            environment.push("CC=true".to_owned()); // it is compiled already
        }
        let arguments = test.arguments.iter().chain(&["--test-threads=1"]);
        let folder = artifact.manifest_path.parent().unwrap_or(Path::new("/"));
        Ok(Job {
            name,
            folder: folder.to_owned(),
            scratch: shell::target_dir().join("tmp"),
            programs,
            data: DATA.map(|data| shell::root().join(data)).to_vec(),
            limit: test.limit,
            environment,
            command: program.display().to_string(),
            arguments: arguments.map(|&word| word.to_owned()).collect(),
        })
    }

    /// The program `msrgate`, and the library that its `wrap` loads.
    fn wrap(&self) -> Result<(PathBuf, PathBuf)> {
        let mut programs = self.of_package("msrgate").filter(|it| !it.profile.test);
        let program = programs.find(|it| it.target.name == "msrgate" && it.executable.is_some());
        let program = program.and_then(|it| it.executable.clone());
        let program = program.context("cargo has not built msrgate")?;
        let library = program.with_file_name("deps").join(LIBRARY);
        Ok((program, library))
    }

    fn of_package(&self, name: &str) -> impl Iterator<Item = &Artifact> {
        let mark = format!("#{name}@");
        self.artifacts
            .iter()
            .filter(move |artifact| artifact.package_id.contains(&mark))
    }
}

/// Compiles a C program where the test `tests/NAME.c` belongs to expects it.
fn client(manifest: &Path, name: &str) -> Result<PathBuf> {
    let source = manifest
        .with_file_name("tests")
        .join(name)
        .with_extension("c");
    let scratch = shell::target_dir().join("tmp");
    fs::create_dir_all(&scratch).context("cannot make cargo's folder for tests")?;
    let program = scratch.join(format!("preload-{name}"));
    // Somebody may read the old one just now.
    let new = program.with_extension("new");
    let mut cc = Command::new("cc");
    cc.args(["-O1", "-pthread", "-o"]).arg(&new).arg(source);
    shell::run(&mut cc)?;
    fs::rename(&new, &program).context("cannot rename what cc wrote")?;
    Ok(program)
}
