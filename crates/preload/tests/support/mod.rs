//! What the tests of a wrapped program share: the C clients, the library, and whether there is a real KVM.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use msrgate_kvm::Kvm;

/// The program that `tests/NAME.c` becomes; `None`, said once, where there is no compiler.
pub(crate) fn compile(name: &str) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    fs::create_dir_all(folder).expect("cargo's folder for tests is writable");
    let program = folder.join(format!("preload-{name}"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/{name}.c"));
    let compiled = Command::new(env::var_os("CC").unwrap_or_else(|| "cc".into()))
        .args(["-Wall", "-Wextra", "-Werror", "-O1", "-pthread", "-o"])
        .args([&program, &source])
        .status();
    match compiled {
        Ok(status) => assert!(status.success(), "{name}.c does not compile"),
        Err(error) => {
            say(&format!("SKIP(cc): no C compiler: {error}"));
            return None;
        }
    }
    Some(program)
}

/// The library, which cargo builds beside this test.
pub(crate) fn library() -> PathBuf {
    let test = env::current_exe().expect("a running program has a path");
    let folder = test.parent().expect("a program lies in a folder");
    let library = folder.join("libmsrgate_preload.so");
    assert!(library.exists(), "{} is not there", library.display());
    library
}

pub(crate) fn real_kvm_opens() -> bool {
    match Kvm::open() {
        Ok(_) => true,
        Err(error) => {
            say(&format!("SKIP(kvm): {error}"));
            let required = env::var_os("MSRGATE_REQUIRE_KVM").is_some_and(|value| value == "1");
            assert!(!required, "MSRGATE_REQUIRE_KVM=1");
            false
        }
    }
}

/// Past the test harness, which swallows what a passing test prints.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
