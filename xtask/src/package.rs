//! `cargo xtask deb`: the Debian package, which crates/cli/Cargo.toml describes; with `--try`, one of the debug build, and
//! whether what is in it works ([`tried`]).
//!
//! cargo-deb packs files; those that the program writes itself are made here.

mod tried;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::shell;

#[derive(Args)]
pub(crate) struct Options {
    /// Packs the debug build, and tries what is in the package, and what `cargo install` leaves
    #[arg(long = "try")]
    is_tried: bool,
}

/// The files of cargo's own target folder.
const BUILT: [&str; 2] = ["msrgate", "libmsrgate_preload.so"];
/// Shells, and the file in which each looks for completions.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "msrgate.bash"),
    ("fish", "msrgate.fish"),
    ("zsh", "_msrgate"),
];
/// The manual page of the program's other name.
const QEMU_PAGE: &str = ".so man1/msrgate-wrap.1\n";

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if shell::find_program("dpkg-deb").is_none() {
        println!("SKIP(deb): there is no dpkg-deb: it takes Debian");
        return Ok(ExitCode::SUCCESS);
    }
    let (profile, built) = match options.is_tried {
        true => ("dev", shell::target_dir().join("debug")),
        false => ("release", shell::target_dir().join("release")),
    };
    let packages = ["-p", "msrgate", "-p", "msrgate-preload"];
    shell::run(
        shell::cargo()
            .args(["build", "--profile", profile])
            .args(packages),
    )?;
    let folder = shell::target_dir().join("package");
    stage(&built, &folder.join("release"))?;
    let package = pack(&folder, options)?;
    if options.is_tried {
        tried::package(&package, &folder.join("tried"))?;
        tried::cargo_install(&built, &folder.join("installed"))?;
    }
    println!("{}", package.display());
    Ok(ExitCode::SUCCESS)
}

/// Puts what is packed where cargo-deb finds it.
fn stage(built: &Path, folder: &Path) -> Result<()> {
    let pages = folder.join("man1");
    remove(folder)?;
    fs::create_dir_all(&pages).with_context(|| format!("cannot make {}", pages.display()))?;
    for name in BUILT {
        let copied = fs::copy(built.join(name), folder.join(name));
        copied.with_context(|| format!("cannot copy {name}"))?;
    }
    let program = folder.join("msrgate");
    shell::run(Command::new(&program).arg("man").arg(&pages))?;
    fs::write(pages.join("msrgate-qemu.1"), QEMU_PAGE).context("cannot write a page")?;
    // As Debian wants them; without names and times, which would make each package another.
    shell::run(Command::new("gzip").args(["-9nr"]).arg(&pages))?;
    for (shell, name) in COMPLETIONS {
        let file = File::create(folder.join(name)).context("cannot write completions")?;
        shell::run(
            Command::new(&program)
                .args(["completions", shell])
                .stdout(file),
        )?;
    }
    Ok(())
}

fn pack(folder: &Path, options: &Options) -> Result<PathBuf> {
    let mut pack = Command::new(cargo_deb()?);
    pack.args(["--no-build", "--strip", "--package", "msrgate"])
        .current_dir(shell::root())
        .env("CARGO_TARGET_DIR", folder);
    if options.is_tried {
        pack.arg("--fast");
    }
    let packages = folder.join("debian");
    remove(&packages)?;
    shell::run(&mut pack)?;
    let mut made = fs::read_dir(&packages).context("cargo-deb has made nothing")?;
    let made = made.next().context("cargo-deb has made nothing")?;
    Ok(made.context("cannot read what cargo-deb has made")?.path())
}

/// cargo-deb; where it is not installed, it is built below `target/tools`, and stays.
fn cargo_deb() -> Result<PathBuf> {
    if let Some(installed) = shell::find_program("cargo-deb") {
        return Ok(installed);
    }
    let tools = shell::target_dir().join("tools");
    let program = tools.join("bin/cargo-deb");
    if !program.exists() {
        let mut install = shell::cargo();
        install.args([
            "install",
            "cargo-deb@^3",
            "--locked",
            "--no-default-features",
            "--root",
        ]);
        // Other than the workspace's, which would build it again each time.
        install
            .arg(&tools)
            .env("CARGO_TARGET_DIR", tools.join("build"));
        shell::run(&mut install)?;
        ensure!(program.exists(), "{} was not made", program.display());
    }
    Ok(program)
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}
