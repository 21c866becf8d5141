//! The same kernels in Debian's QEMU, which is not changed and has its /dev/kvm from `msrgate wrap --kvm soft`.

use std::fs;

use anyhow::{Context, Result, bail, ensure};

use super::{COMMAND_LINE, Guest, LIMIT};
use crate::shell;

pub(super) const PROGRAM: &str = "qemu-system-x86_64";

/// Machines, of which the second has its I/O APIC in QEMU.
const MACHINES: [&str; 2] = ["q35", "microvm"];

/// Boots it on each, with two processors of the host's kind, and looks at the console.
pub(super) fn check(guest: &Guest) -> Result<String> {
    shell::run(shell::cargo().args([
        "build",
        "--quiet",
        "-p",
        "msrgate",
        "-p",
        "msrgate-preload",
    ]))?;
    for machine in MACHINES {
        boot(guest, machine).with_context(|| machine)?;
    }
    Ok(format!("user space on {}", MACHINES.join(" and ")))
}

fn boot(guest: &Guest, machine: &str) -> Result<()> {
    let console = guest.folder.join("qemu.log");
    let mut wrap = shell::cargo();
    wrap.args(["run", "--quiet", "-p", "msrgate", "--"]);
    wrap.args(["wrap", "--kvm", "soft", "--", PROGRAM, "-accel", "kvm"]);
    wrap.args(["-M", machine, "-cpu", "host", "-smp", "2", "-m", "256"]);
    wrap.args(["-nographic", "-net", "none", "-vga", "none", "-no-reboot"]);
    wrap.arg("-kernel").arg(&guest.kernel.image);
    wrap.arg("-initrd").arg(&guest.initrd);
    wrap.args(["-append", COMMAND_LINE]);
    let Some(status) = shell::run_for(&mut wrap, &console, LIMIT)? else {
        bail!("it was not done after {} s", LIMIT.as_secs());
    };
    let text = fs::read(&console).context("cannot read the console")?;
    let text = String::from_utf8_lossy(&text);
    let lines = ["guest: user space, 2 processors", "guest: end"];
    let is_whole = lines.iter().all(|line| text.contains(line));
    ensure!(
        status.success() && is_whole,
        "it did not end well ({status}): {}",
        console.display()
    );
    Ok(())
}
