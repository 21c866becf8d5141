//! `msrgate wrap` from outside: what it refuses, what it says, and whose exit status it has.
//!
//! Whether the wrapped program then has a KVM is for the tests of the preload crate and for Linux's own test
//! (`cargo xtask selftest`). Any shared library does for these ones: libc's own.

use std::fs;
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};

#[test]
fn exit_status_is_the_programs() {
    for (script, status) in [("exit 0", 0), ("exit 1", 1), ("exit 7", 7)] {
        let output = wrap(&["--kvm", "soft", "--", "sh", "-c", script]);
        assert_eq!(output.status.code(), Some(status), "{}", text(&output));
    }
}

#[test]
fn death_by_signal_is_the_programs() {
    let output = wrap(&["--kvm", "soft", "sh", "-c", "kill -TERM $$"]);
    assert_eq!(output.status.signal(), Some(15), "{}", text(&output));
}

#[test]
fn program_is_told_of_the_library_and_of_soft() {
    let output = wrap(&[
        "--kvm",
        "soft",
        "sh",
        "-c",
        "echo $MSRGATE_KVM; echo $LD_PRELOAD",
    ]);
    let lines = text(&output);
    let mut lines = lines.lines();
    assert_eq!(lines.next(), Some("soft"));
    assert_eq!(lines.next(), Some(any_library().as_str()));
}

#[test]
fn other_preloaded_libraries_stay_behind_ours() {
    let mut command = command(&["--kvm", "soft", "sh", "-c", "echo $LD_PRELOAD"]);
    command.env("LD_PRELOAD", any_library());
    let output = command.output().expect("msrgate runs");
    let both = format!("{0}:{0}\n", any_library());
    assert_eq!(text(&output), both);
}

#[test]
fn missing_program_is_refused_by_name() {
    refused(
        &["--kvm", "soft", "no-such-vmm"],
        "no-such-vmm: no such program",
    );
    refused(
        &["--kvm", "soft", "/etc/passwd"],
        "/etc/passwd: no such program",
    );
}

#[test]
fn static_program_is_refused() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (source, program) = (folder.join("static.c"), folder.join("static"));
    fs::write(&source, "void _start(void) {}\n").expect("the folder is writable");
    let compiled = Command::new("cc")
        .args(["-static", "-nostdlib", "-o"])
        .args([&program, &source])
        .status();
    if compiled.is_err() {
        // Past the test harness, which swallows what a passing test prints.
        let _ = writeln!(io::stderr(), "SKIP(cc): no C compiler");
        return;
    }
    let program = program.to_str().expect("a path of letters");
    refused(&["--kvm", "soft", program], "is statically linked");
}

#[test]
fn nothing_to_do_leaves_the_program_as_it_is() {
    if let Err(why) = msrgate_kvm::Kvm::open() {
        // Past the test harness, which swallows what a passing test prints.
        let _ = writeln!(io::stderr(), "SKIP(kvm): {why}");
        return;
    }
    let output = wrap(&[
        "--kvm",
        "real",
        "sh",
        "-c",
        "echo .$LD_PRELOAD.$MSRGATE_KVM.",
    ]);
    assert_eq!(text(&output), "...\n");
}

#[test]
fn missing_library_says_how_to_make_it() {
    let mut command = command(&["--kvm", "soft", "true"]);
    command.env("MSRGATE_PRELOAD", "/no/such/library.so");
    let output = command.output().expect("msrgate runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("MSRGATE_PRELOAD names /no/such/library.so"));
}

/// As `cargo build`, a package and `cargo install` leave it.
#[test]
fn library_is_found_beside_the_program_or_in_lib_or_asked_for() {
    const LIBRARY: &str = "libmsrgate_preload.so";
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let (bin, lib) = (folder.path().join("bin"), folder.path().join("lib/msrgate"));
    for folder in [&bin, &lib] {
        fs::create_dir_all(folder).expect("a folder");
    }
    let program = bin.join("msrgate");
    fs::hard_link(env!("CARGO_BIN_EXE_msrgate"), &program).expect("one file system");
    let run = || {
        let mut wrap = Command::new(&program);
        wrap.args(["wrap", "--kvm", "soft", "sh", "-c", "echo $LD_PRELOAD"]);
        wrap.env_remove("MSRGATE_PRELOAD").env_remove("LD_PRELOAD");
        wrap.output().expect("msrgate runs")
    };
    let without = run();
    assert_eq!(without.status.code(), Some(2));
    let packaged = lib.join(LIBRARY);
    let advice = format!(
        "\ninstall -D target/release/{LIBRARY} {}\n",
        packaged.display()
    );
    assert!(text(&without).ends_with(&advice), "{}", text(&without));
    for (place, name) in [(packaged, "packaged.so"), (bin.join(LIBRARY), "beside.so")] {
        let library = folder.path().join(name);
        fs::copy(any_library(), &library).expect("a copy");
        std::os::unix::fs::symlink(&library, place).expect("a link");
        assert_eq!(text(&run()), format!("{}\n", library.display()));
    }
}

fn refused(arguments: &[&str], why: &str) {
    let output = wrap(arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    assert!(
        text(&output).contains(why),
        "{arguments:?}: {}",
        text(&output)
    );
}

fn wrap(arguments: &[&str]) -> Output {
    command(arguments).output().expect("msrgate runs")
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_msrgate"));
    command
        .arg("wrap")
        .args(arguments)
        .env("MSRGATE_PRELOAD", any_library())
        .env_remove("LD_PRELOAD");
    command
}

/// A library that is loaded already, so that to preload it changes nothing.
fn any_library() -> String {
    let maps = fs::read_to_string("/proc/self/maps").expect("Linux has it");
    let libc = maps
        .split_whitespace()
        .find(|word| word.contains("/libc.so") || word.contains("/libc-"));
    let path = Path::new(libc.expect("a test program uses libc"));
    let path = path.canonicalize().expect("it is mapped, so it is there");
    path.to_str().expect("a path of letters").to_owned()
}

fn text(output: &Output) -> String {
    let both = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8_lossy(&both).into_owned()
}
