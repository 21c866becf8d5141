//! Whether what is in a package works, and what `cargo install` leaves: [`package`], [`cargo_install`].

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};

use super::remove;
use crate::shell;

/// A program that needs a /dev/kvm.
const CLIENT: &str = include_str!("client.c");
const CLIENT_SAYS: &str = "version 12, filter 1, vm 1";
const WRAPPED: &str = "msrgate wrap --kvm soft -- ./client";

/// What is typed in the folder into which a package was unpacked, what is then printed among other things, and the program
/// without which it cannot be tried.
const TRIED: [(&str, &str, &str); 8] = [
    (
        "msrgate run --backend soft",
        "9 MSR accesses left the guest. The guest ended by itself.",
        "bash",
    ),
    ("cc -o client client.c && echo compiled", "compiled", "cc"),
    (WRAPPED, CLIENT_SAYS, "cc"),
    (
        "MSRGATE_QEMU=/bin/echo msrgate-qemu -name web",
        "-name web",
        "bash",
    ),
    (
        "for page in usr/share/man/man1/*; do man -l $page >>pages 2>&1; done; cat pages",
        "msrgate-wrap(1)",
        "man",
    ),
    (
        ". usr/share/bash-completion/completions/msrgate; complete -p msrgate",
        "-F _msrgate msrgate",
        "bash",
    ),
    (
        "for policy in usr/share/doc/msrgate/examples/policies/*; do msrgate check $policy; done && echo all",
        "all",
        "bash",
    ),
    (
        "ls usr/share/doc/msrgate/docs/run.md usr/share/doc/msrgate/copyright",
        "copyright",
        "bash",
    ),
];

/// Unpacks it into `folder`, and types what is to be tried.
pub(super) fn package(package: &Path, folder: &Path) -> Result<()> {
    remove(folder)?;
    let mut unpack = Command::new("dpkg-deb");
    shell::run(unpack.arg("--extract").arg(package).arg(folder))?;
    shell::run(Command::new("dpkg-deb").arg("--field").arg(package))?;
    fs::write(folder.join("client.c"), CLIENT).context("cannot write the client")?;
    for (line, expected, program) in TRIED {
        if shell::find_program(program).is_none() {
            println!("SKIP({program}): {line}");
            continue;
        }
        says(&typed(line, folder, &folder.join("usr/bin"))?, 0, expected)?;
    }
    if shell::find_program("lintian").is_some() {
        shell::run(Command::new("lintian").arg("--fail-on=error").arg(package))?;
    }
    Ok(())
}

/// Installs the program into `folder`, which leaves the library out, and does what the program then says.
pub(super) fn cargo_install(built: &Path, folder: &Path) -> Result<()> {
    if shell::find_program("cc").is_none() {
        println!("SKIP(cc): what `cargo install` leaves is not tried");
        return Ok(());
    }
    remove(folder)?;
    let mut install = shell::cargo();
    install.args([
        "install",
        "--debug",
        "--locked",
        "--path",
        "crates/cli",
        "--root",
    ]);
    install
        .arg(folder)
        .env("CARGO_TARGET_DIR", shell::target_dir());
    shell::run(&mut install)?;
    fs::write(folder.join("client.c"), CLIENT).context("cannot write the client")?;
    let bin = folder.join("bin");
    says(&typed("cc -o client client.c", folder, &bin)?, 0, "")?;
    let without = typed(WRAPPED, folder, &bin)?;
    says(&without, 2, "cargo build --release -p msrgate-preload\n")?;
    let said = String::from_utf8_lossy(&without.stderr).into_owned();
    let advice = said.lines().find(|line| line.starts_with("install -D "));
    let advice = advice.context("it does not say where the library is to be")?;
    let library = built.join("libmsrgate_preload.so");
    let library = library.to_str().context("a path that is no text")?;
    let advice = advice.replace("target/release/libmsrgate_preload.so", library);
    says(&typed(&advice, folder, &bin)?, 0, "")?;
    says(&typed(WRAPPED, folder, &bin)?, 0, CLIENT_SAYS)
}

/// What comes of a line for the shell in `folder`, where programs are found in `bin` first.
fn typed(line: &str, folder: &Path, bin: &Path) -> Result<Output> {
    println!("$ {line}");
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", line])
        .current_dir(folder)
        .env("PATH", format!("{}:{path}", bin.display()))
        .env_remove("MSRGATE_PRELOAD")
        .output();
    output.context("cannot start bash")
}

fn says(output: &Output, status: i32, expected: &str) -> Result<()> {
    let said = [&output.stdout[..], &output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    ensure!(
        output.status.code() == Some(status) && said.contains(expected),
        "{}, and not {expected:?} in:\n{said}",
        output.status
    );
    Ok(())
}
