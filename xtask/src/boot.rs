//! `cargo xtask boot`: Debian's kernels boot on the embedded KVM, under three policies, and touch the MSRs that
//! `testdata/boot` says.
//!
//! What Linux touches depends on its processor: it is the fixed one, which is the same on every host. What it touches is
//! known from somebody else too: Linux's own tracepoints, which its init reads ([`traced`]). With the host's processor,
//! and in Debian's QEMU ([`qemu`]), the kernels must come to user space and end.
//! With `--bench`, how long a boot takes here and in QEMU ([`mod@bench`]).

mod bench;
mod expected;
mod qemu;
mod traced;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::lab::image::Image;
use crate::lab::kernel::Kernel;
use crate::shell;
use expected::Expected;

/// The first program of the guest.
const INIT: &str = include_str!("boot/init.sh");
const COMMAND_LINE: &str = "console=ttyS0 cryptomgr.notests panic=-1";
const SERIES: [&str; 2] = ["6.1", "6.12"];
/// By which a boot is stopped: many times what it takes without optimizations.
const LIMIT: Duration = Duration::from_secs(300);

/// The policies, from the root.
const POLICIES: [(&str, &str); 3] = [
    ("observe", "examples/policies/observe.toml"),
    (
        "linux-guest-strict",
        "examples/policies/linux-guest-strict.toml",
    ),
    ("deny-one", "testdata/boot/deny-one.toml"),
];

#[derive(Args)]
pub(crate) struct Options {
    /// Writes down what the guests did instead of comparing it: read it before it is committed
    #[arg(long)]
    update: bool,
    /// Compares the time with that of QEMU's TCG instead, so many times each
    #[arg(long, value_name = "TIMES")]
    bench: Option<u32>,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    for program in ["apt-get", "dpkg-deb", "/bin/busybox"] {
        if shell::find_program(program).is_none() && !Path::new(program).exists() {
            println!("SKIP(boot): there is no {program}: it takes Debian, and busybox-static");
            return Ok(ExitCode::SUCCESS);
        }
    }
    let folder = shell::target_dir().join("boot");
    fs::create_dir_all(&folder).context("cannot make the folder of the guests")?;
    let initrd = folder.join("initrd.img");
    write_initrd(&initrd)?;
    let mut failures = 0;
    for series in SERIES {
        let kernel = match kernel(series) {
            Ok(kernel) => kernel,
            Err(error) => {
                println!("SKIP(boot {series}): {error:#}");
                continue;
            }
        };
        let guest = Guest {
            kernel,
            initrd: initrd.clone(),
            folder: folder.clone(),
        };
        if let Some(times) = options.bench {
            bench::compare(&guest, times)?;
            continue;
        }
        let policies = POLICIES.iter().map(|(name, policy)| {
            let what = format!("{series} {name}");
            (what, guest.is_as_expected(series, name, policy, options))
        });
        let mut others = vec![
            (format!("{series} traced by itself"), traced::check(&guest)),
            (
                format!("{series} on the host's processor"),
                guest.ends_well(),
            ),
        ];
        match shell::find_program(qemu::PROGRAM) {
            Some(_) => others.push((format!("{series} in QEMU"), qemu::check(&guest))),
            None => println!("SKIP(boot {series} in QEMU): there is no {}", qemu::PROGRAM),
        }
        for (what, result) in policies.chain(others) {
            match result {
                Ok(facts) => println!("ok    {what}: {facts}"),
                Err(error) => {
                    println!("FAIL  {what}: {error:#}");
                    failures += 1;
                }
            }
        }
    }
    Ok(match failures {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// The newest kernel of a series.
pub(crate) fn kernel(series: &str) -> Result<Kernel> {
    Kernel::of_series(series, &shell::target_dir().join("lab/kernel"))
}

/// An initramfs that says it is there and switches off.
pub(crate) fn write_initrd(path: &Path) -> Result<()> {
    let mut image = Image::with_busybox(&path.with_extension("stripped"))?;
    image.add("/init", 0o755, INIT.into());
    image.store(path)
}

/// A kernel with its initramfs.
struct Guest {
    kernel: Kernel,
    initrd: PathBuf,
    /// Where its console goes.
    folder: PathBuf,
}

/// What a boot left.
struct Boot {
    console: String,
    /// What `run --json` prints.
    json: serde_json::Value,
}

impl Guest {
    fn is_as_expected(
        &self,
        series: &str,
        name: &str,
        policy: &str,
        options: &Options,
    ) -> Result<String> {
        let boot = self.boot("fixed", policy, COMMAND_LINE)?;
        let found = Expected::of(&boot)?;
        let path = shell::root().join(format!("testdata/boot/{series}-{name}.txt"));
        if options.update {
            fs::write(&path, found.to_string()).context("cannot write what was found")?;
        }
        let text = fs::read_to_string(&path);
        let expected = Expected::parse(&text.context("cannot read what is expected")?);
        let differences = expected.differences(&found);
        ensure!(
            differences.is_empty(),
            "not as {} says:\n{}",
            path.display(),
            differences.join("\n")
        );
        Ok(found.summary())
    }

    /// With the host's processor it does what it does, and comes to its end.
    fn ends_well(&self) -> Result<String> {
        let boot = self.boot("host", POLICIES[0].1, COMMAND_LINE)?;
        Ok(Expected::of(&boot)?.summary())
    }

    /// Boots it on the embedded KVM, with this processor, to its end.
    fn boot(&self, processor: &str, policy: &str, command_line: &str) -> Result<Boot> {
        let [console, log] = ["console.log", "run.json"].map(|name| self.folder.join(name));
        let mut run = shell::cargo();
        run.args(["run", "--quiet", "-p", "msrgate", "--", "run", "--json"]);
        run.args(["--backend", "soft", "--processor", processor]);
        run.args(["--observe", "native", "--policy", policy]);
        run.arg("--console").arg(&console);
        self.add_arguments(&mut run, command_line);
        let Some(status) = shell::run_for(&mut run, &log, LIMIT)? else {
            bail!("it was not done after {} s", LIMIT.as_secs());
        };
        let output = fs::read_to_string(&log).context("cannot read what it printed")?;
        ensure!(status.success(), "it ended with {status}:\n{output}");
        let json = output
            .find("\n{")
            .map_or(output.as_str(), |at| &output[at..]);
        let console = fs::read(&console).context("cannot read the console")?;
        Ok(Boot {
            console: String::from_utf8_lossy(&console).into_owned(),
            json: serde_json::from_str(json).context("what it printed is not JSON")?,
        })
    }

    fn add_arguments(&self, run: &mut Command, command_line: &str) {
        run.arg("--initrd").arg(&self.initrd);
        run.args(["--append", command_line]);
        run.arg(&self.kernel.image);
    }
}
