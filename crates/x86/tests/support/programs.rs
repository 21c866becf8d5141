//! The C programs of `benches/programs.c`, as guests.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "each test uses a part of it"
)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// Their names, by number.
pub const NAMES: [&str; 6] = [
    "sieve",
    "sha256",
    "quicksort",
    "words",
    "matrix",
    "interpreter",
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches")
}

fn compile(output: &Path, arguments: &[&str]) -> Result<(), String> {
    let status = Command::new("cc")
        .args(["-O2", "-w", "-o"])
        .arg(output)
        .arg(folder().join("programs.c"))
        .args(arguments)
        .status()
        .map_err(|error| format!("no C compiler: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("cc: {status}"))
    }
}

/// A flat binary for [`CODE`](super::CODE), compiled as kernels are: `gcc -O2`, general registers only.
pub fn guest() -> Result<Vec<u8>, String> {
    let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join("programs.bin");
    let script = format!("-Wl,-T,{}", folder().join("programs.ld").display());
    compile(
        &output,
        &[
            "-ffreestanding",
            "-static",
            "-nostdlib",
            "-fno-pic",
            "-no-pie",
            "-fno-stack-protector",
            "-fcf-protection=none",
            "-mgeneral-regs-only",
            "-Wl,--oformat=binary",
            "-Wl,--build-id=none",
            &script,
        ],
    )?;
    std::fs::read(&output).map_err(|error| error.to_string())
}

/// The checksums that the host's processor computes.
pub fn host_checksums() -> Result<Vec<u64>, String> {
    let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join("programs");
    compile(&output, &["-DHOST"])?;
    let run = Command::new(&output)
        .output()
        .map_err(|error| error.to_string())?;
    let text = String::from_utf8(run.stdout).map_err(|error| error.to_string())?;
    Ok(text.lines().map(|line| line.parse().unwrap()).collect())
}
