//! What the lab needs from Debian, said all at once and with the command that brings it.

use std::path::Path;

use anyhow::{Result, ensure};

use super::platform::Platform;
use crate::shell;

/// A file or program, and the package that it is in.
struct Need {
    what: &'static str,
    package: &'static str,
}

const fn need(what: &'static str, package: &'static str) -> Need {
    Need { what, package }
}

/// Both platforms.
const ALWAYS: &[Need] = &[
    need("/bin/busybox", "busybox-static"),
    need("strip", "binutils"),
    need("xz", "xz-utils"),
    need("timeout", "coreutils"),
];

const AMD: &[Need] = &[
    need("qemu-system-x86_64", "qemu-system-x86"),
    need("cc", "gcc libc6-dev"),
    need("/usr/share/seabios/bios-256k.bin", "seabios"),
];

const INTEL: &[Need] = &[
    need("bochs", "bochs"),
    need(
        "/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so",
        "bochs-term",
    ),
    need("/usr/share/bochs/BIOS-bochs-latest", "bochsbios"),
    need("/usr/share/vgabios/vgabios.bin", "vgabios"),
    need("/usr/lib/ISOLINUX/isolinux.bin", "isolinux"),
    need(
        "/usr/lib/syslinux/modules/bios/ldlinux.c32",
        "syslinux-common",
    ),
    need("xorriso", "xorriso"),
    need("script", "bsdutils"),
];

/// Fails with the list of what is missing.
pub(super) fn check(platform: Platform) -> Result<()> {
    let special = match platform {
        Platform::Amd => AMD,
        Platform::Intel => INTEL,
    };
    let missing: Vec<_> = ALWAYS
        .iter()
        .chain(special)
        .filter(|need| !is_here(need.what))
        .map(|need| need.package)
        .collect();
    ensure!(
        missing.is_empty(),
        "the lab needs {0}:\n    apt-get install --no-install-recommends {0}",
        missing.join(" ")
    );
    Ok(())
}

fn is_here(what: &str) -> bool {
    if what.starts_with('/') {
        Path::new(what).exists()
    } else {
        shell::find_program(what).is_some()
    }
}
