//! `msrgate wrap`: run somebody else's program with a /dev/kvm that msrgate answers.
//!
//! [`run`] checks what would fail without a word ([`program`]), finds the preload library, and becomes the
//! program: nothing of msrgate stays behind but the library in the program's environment.

mod program;

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use clap::ValueEnum;

use crate::Status;

/// The file that `cargo build` makes of the crate msrgate-preload.
const LIBRARY: &str = "libmsrgate_preload.so";

/// Run a program with a /dev/kvm that msrgate answers.
///
/// The program is not changed: a library takes the place of the few libc functions with which it would open
/// and use /dev/kvm. The exit status is the program's own.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What stands behind /dev/kvm.
    #[arg(long, value_enum, default_value = "auto")]
    kvm: Kvm,
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kvm {
    /// The machine's KVM where there is one, else the embedded one
    Auto,
    /// The machine's KVM
    Real,
    /// The embedded KVM: needs no /dev/kvm and no privileges
    Soft,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Status> {
    if args.kvm != Kvm::Soft {
        bail!(
            "wrapping the machine's own KVM needs a policy, which this version does not have yet; \
             use --kvm soft"
        );
    }
    let (name, arguments) = args
        .program
        .split_first()
        .expect("clap asks for at least one word");
    let program = program::find(name)?;
    let library = find_library()?;
    if library.to_string_lossy().contains([' ', ':']) {
        bail!(
            "{}: LD_PRELOAD cannot hold a path with a space or a colon",
            library.display()
        );
    }
    let error = Command::new(&program)
        .arg0(name)
        .args(arguments)
        .env("LD_PRELOAD", preload_list(&library))
        .env("MSRGATE_KVM", "soft")
        .exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}

/// Ours comes first: it must stand before any other library that takes the place of the same functions.
fn preload_list(library: &Path) -> OsString {
    let mut list = library.as_os_str().to_owned();
    if let Some(others) = env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
        list.push(":");
        list.push(others);
    }
    list
}

/// `MSRGATE_PRELOAD`, else beside this program, else where a package puts it.
fn find_library() -> anyhow::Result<PathBuf> {
    if let Some(named) = env::var_os("MSRGATE_PRELOAD") {
        let named = PathBuf::from(named);
        return named.canonicalize().with_context(|| {
            format!(
                "MSRGATE_PRELOAD names {}, which is not there",
                named.display()
            )
        });
    }
    let program = env::current_exe().context("cannot tell where this program is")?;
    let folder = program.parent().unwrap_or(Path::new("/"));
    let places = [
        folder.join(LIBRARY),
        folder.join("../lib/msrgate").join(LIBRARY),
    ];
    let found = places.iter().find_map(|place| place.canonicalize().ok());
    found.with_context(|| {
        format!(
            "{LIBRARY} is neither in {} nor in ../lib/msrgate; `cargo build --release` makes it, or \
             MSRGATE_PRELOAD names it",
            folder.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn words_behind_the_program_are_the_programs() {
        let line =
            Line::try_parse_from(["wrap", "--kvm", "soft", "vmm", "--kvm", "real", "--", "-x"]);
        let args = line.map(|line| line.args).expect("a valid command line");
        assert_eq!(args.kvm, Kvm::Soft);
        assert_eq!(args.program, ["vmm", "--kvm", "real", "--", "-x"]);
    }

    #[test]
    fn kvm_without_a_policy_is_refused() {
        for kvm in [Kvm::Auto, Kvm::Real] {
            let args = Args {
                kvm,
                program: vec!["true".into()],
            };
            let error = run(&args).expect_err("not in this version");
            assert!(error.to_string().contains("--kvm soft"), "{error}");
        }
    }
}
