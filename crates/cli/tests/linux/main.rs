//! A Debian Linux in Debian's QEMU on the real KVM: what it does with its MSRs alone, as its console and the kernel's
//! own tracepoint tell.
//!
//! `cargo xtask lab` makes the Linux and runs this on kvm-amd. Elsewhere `MSRGATE_LINUX` names the folder that the lab made
//! (`target/lab/linux`), where a real /dev/kvm can boot it.

mod boot;
mod console;
mod libvirt;
mod tracepoint;
mod wrapped;

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "makes small guests too")]
mod support;
#[path = "../support/traced.rs"]
#[expect(dead_code, reason = "makes guests that fill traces too")]
mod traced;

use std::sync::OnceLock;

use boot::{Boot, Linux};
use msrgate_core::{Access, MsrIndex};
use tracepoint::Accesses;

/// An MSR that no KVM knows.
const UNKNOWN: &str = "0x474f4f00";

/// A boot without msrgate, with what KVM's tracepoint saw of it.
struct Alone {
    boot: Boot,
    seen: Accesses,
}

/// Boots once for all tests.
fn alone(linux: &Linux) -> &'static Alone {
    static ALONE: OnceLock<Alone> = OnceLock::new();
    ALONE.get_or_init(|| {
        let attempt = || tracepoint::watch(|| linux.boot_once(&[], 1));
        let (boot, seen) = boot::retried(attempt, |(boot, _)| boot);
        Alone { boot, seen }
    })
}

#[test]
fn linux_alone_comes_to_user_space_and_ends_by_itself() {
    let Some(linux) = Linux::or_skip() else {
        return;
    };
    let Alone { boot, seen } = alone(&linux);
    boot.is_whole();
    assert_eq!(boot.said("guest: MSR"), [format!("{UNKNOWN} reads #GP")]);
    // What every Linux does: it programs the MTRRs' type and the PAT, and looks for the microcode's revision.
    for (index, access) in [
        (0x2ff, Access::Write),
        (0x277, Access::Write),
        (0x8b, Access::Read),
    ] {
        assert!(seen.contains_key(&(MsrIndex(index), access)), "{index:#x}");
    }
}

/// What the other tests compare is the same where nothing changes.
#[test]
fn two_boots_alone_are_the_same() {
    let Some(linux) = Linux::or_skip() else {
        return;
    };
    let first = &alone(&linux).boot;
    let second = linux.boot(&[], 1);
    second.is_whole();
    console::assert_same(&first.console, &second.console);
}
