//! Where the kernel's selftests come from: Debian's `linux-source-6.12`, unpacked and built under `target/`.
//!
//! Nothing of it enters the repository. The unpacked tree and every built test stay until `cargo clean`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, ensure};

use crate::shell;

/// Debian's package and the folder in its tar file.
const PACKAGE: &str = "linux-source-6.12";

/// The parts of the kernel tree that `make headers` and the selftests read.
const PARTS: [&str; 10] = [
    "tools",
    "include",
    "arch/x86",
    "arch/Kconfig",
    "scripts",
    "usr",
    "lib",
    "Makefile",
    "Kbuild",
    "Kconfig",
];

/// Programs that the build runs, and the Debian packages they are in.
const PROGRAMS: [(&str, &str); 4] = [
    ("gcc", "gcc libc6-dev"),
    ("make", "make"),
    ("tar", "tar"),
    ("xz", "xz-utils"),
];

/// Tests for other machines than ours: nested virtualization, SEV, Xen, or hours of run time.
const FOREIGN: [&str; 5] = ["vmx_", "svm_", "sev_", "xen_", "hyperv_"];

/// The unpacked kernel tree with its user-space headers built.
pub(super) fn tree(folder: &Path, source: Option<&Path>) -> Result<PathBuf> {
    let tree = folder.join(PACKAGE);
    let done = folder.join("headers.done");
    if done.exists() {
        return Ok(tree);
    }
    check_programs()?;
    let archive = archive(folder, source)?;
    unpack(&archive, folder)?;
    let mut headers = Command::new("make");
    headers.arg("headers").current_dir(&tree);
    shell::run_quietly(&mut headers, &folder.join("log/headers"))?;
    fs::write(&done, "").context("cannot write the stamp")?;
    Ok(tree)
}

/// Builds one test (seconds, and the library with the first), unless it is built already.
pub(super) fn build(folder: &Path, tree: &Path, test: &str) -> Result<PathBuf> {
    let output = folder.join("out");
    let program = output.join(test);
    let mut make = Command::new("make");
    make.arg(format!(
        "-j{}",
        thread::available_parallelism().map_or(1, usize::from)
    ))
    .arg("-C")
    .arg(tree.join("tools/testing/selftests/kvm"))
    .arg("ARCH=x86_64")
    .arg(format!("OUTPUT={}", output.display()))
    .arg(&program);
    let log = folder
        .join("log")
        .join(format!("{}.build", test.replace('/', "-")));
    shell::run_quietly(&mut make, &log)?;
    Ok(program)
}

/// The tests that stand a chance on any x86 KVM.
pub(super) fn list(tree: &Path) -> Result<Vec<String>> {
    let folder = tree.join("tools/testing/selftests/kvm/x86_64");
    let mut tests = Vec::new();
    for entry in
        fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        let name = entry.context("cannot read the list of tests")?.file_name();
        let name = name.to_string_lossy();
        if let Some(test) = name.strip_suffix(".c")
            && !FOREIGN.iter().any(|prefix| test.starts_with(prefix))
        {
            tests.push(format!("x86_64/{test}"));
        }
    }
    tests.sort();
    Ok(tests)
}

/// Says all that is missing at once.
fn check_programs() -> Result<()> {
    let missing: Vec<_> = PROGRAMS
        .iter()
        .filter(|(program, _)| shell::find_program(program).is_none())
        .map(|(_, packages)| *packages)
        .collect();
    ensure!(
        missing.is_empty(),
        "building the selftests needs: apt-get install {}",
        missing.join(" ")
    );
    Ok(())
}

/// The kernel source's tar file: the one that was named, the installed package's, or a download.
fn archive(folder: &Path, source: Option<&Path>) -> Result<PathBuf> {
    let installed = PathBuf::from(format!("/usr/src/{PACKAGE}.tar.xz"));
    if let Some(source) = source {
        return Ok(source.to_owned());
    }
    if installed.exists() {
        return Ok(installed);
    }
    for program in ["apt-get", "dpkg-deb"] {
        ensure!(
            shell::find_program(program).is_some(),
            "no {program} here: give {PACKAGE}.tar.xz with --source"
        );
    }
    let download = folder.join("download");
    fs::create_dir_all(&download).context("cannot make the download folder")?;
    let mut apt = Command::new("apt-get");
    apt.args(["download", PACKAGE]).current_dir(&download);
    shell::run_quietly(&mut apt, &folder.join("log/download")).with_context(|| {
        format!("cannot get {PACKAGE}: apt-get update && apt-get install {PACKAGE}")
    })?;
    let package = fs::read_dir(&download)
        .context("cannot read the download folder")?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get left no package")?;
    let mut extract = Command::new("dpkg-deb");
    extract.arg("--extract").arg(&package).arg(&download);
    shell::run(&mut extract)?;
    Ok(download.join(format!("usr/src/{PACKAGE}.tar.xz")))
}

fn unpack(archive: &Path, folder: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.arg("--extract").arg("--xz").arg("--file").arg(archive);
    tar.args(PARTS.map(|part| format!("{PACKAGE}/{part}")));
    tar.current_dir(folder).stdin(Stdio::null());
    shell::run(&mut tar)?;
    let download = folder.join("download");
    if archive.starts_with(&download) {
        fs::remove_dir_all(&download).context("cannot remove the download")?;
    }
    Ok(())
}
