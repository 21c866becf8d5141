//! Running the program, and making small guests for it.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Every way to run a guest here; `kvm` is left out, visibly, where /dev/kvm cannot be used.
pub(crate) fn backends() -> Vec<&'static str> {
    match msrgate_kvm::Kvm::open() {
        Ok(_) => vec!["soft", "kvm"],
        Err(why) if std::env::var_os("MSRGATE_REQUIRE_KVM").is_some() => {
            panic!("MSRGATE_REQUIRE_KVM is set, but {why}")
        }
        Err(why) => {
            say(&format!("SKIP(kvm): {why}"));
            vec!["soft"]
        }
    }
}

/// Prints a line that is seen although the test passes: the test harness keeps back what the macros print.
pub(crate) fn say(line: &str) {
    // Nobody to tell is no reason to fail.
    let _ = writeln!(io::stderr(), "{line}");
}

/// `msrgate` with `arguments`, without colours.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_msrgate"));
    command.args(arguments).env("NO_COLOR", "1");
    command
}

/// Runs `msrgate` with `arguments`.
pub(crate) fn msrgate(arguments: &[&str]) -> Output {
    command(arguments).output().expect("msrgate runs")
}

pub(crate) fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("UTF-8")
}

pub(crate) fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("UTF-8")
}

/// A file of this test run.
pub(crate) fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, bytes).expect("the test's folder can be written");
    path
}

/// What distinguishes one ELF file from another.
pub(crate) struct Elf<'a> {
    pub(crate) class: u8,
    pub(crate) kind: u16,
    pub(crate) machine: u16,
    pub(crate) address: u64,
    pub(crate) code: &'a [u8],
}

impl<'a> Elf<'a> {
    /// An x86-64 executable at 1 MiB.
    pub(crate) fn new(code: &'a [u8]) -> Self {
        Self {
            class: 2,
            kind: 2,
            machine: 0x3e,
            address: 0x10_0000,
            code,
        }
    }

    /// Header, one program header, the code (System V ABI, chapter 4 and 5).
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"\x7fELF".to_vec();
        bytes.extend([self.class, 1, 1]);
        bytes.resize(16, 0);
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.machine.to_le_bytes());
        bytes.extend(1u32.to_le_bytes());
        bytes.extend(self.address.to_le_bytes());
        bytes.extend(64u64.to_le_bytes());
        bytes.extend(0u64.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        for half in [64u16, 56, 1, 0, 0, 0] {
            bytes.extend(half.to_le_bytes());
        }
        bytes.extend([1, 0, 0, 0, 7, 0, 0, 0]);
        let length = self.code.len() as u64;
        for word in [120, self.address, self.address, length, length + 16, 0x1000] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(self.code);
        bytes
    }
}
