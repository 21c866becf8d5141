//! The same kernels in Debian's QEMU, which is not changed and has its /dev/kvm from `msrgate wrap --kvm soft`.

use std::fs;

use anyhow::{Result, bail, ensure};

use super::{COMMAND_LINE, Guest, LIMIT};
use crate::shell;

pub(super) const PROGRAM: &str = "qemu-system-x86_64";

/// Boots it, with two processors of the host's kind, and looks at the console.
pub(super) fn check(guest: &Guest) -> Result<String> {
    shell::run(shell::cargo().args([
        "build",
        "--quiet",
        "-p",
        "msrgate",
        "-p",
        "msrgate-preload",
    ]))?;
    let console = guest.folder.join("qemu.log");
    let mut wrap = shell::cargo();
    wrap.args([
        "run", "--quiet", "-p", "msrgate", "--", "wrap", "--kvm", "soft", "--",
    ]);
    wrap.args([
        PROGRAM, "-accel", "kvm", "-M", "q35", "-cpu", "host", "-smp", "2",
    ]);
    wrap.args(["-m", "256", "-nographic", "-net", "none", "-vga", "none"]);
    wrap.args(["-no-reboot", "-kernel"])
        .arg(&guest.kernel.image);
    wrap.arg("-initrd").arg(&guest.initrd);
    wrap.args(["-append", COMMAND_LINE]);
    let Some(status) = shell::run_for(&mut wrap, &console, LIMIT)? else {
        bail!("it was not done after {} s", LIMIT.as_secs());
    };
    let text = String::from_utf8_lossy(&fs::read(&console)?).into_owned();
    let is_whole = ["guest: user space, 2 processors", "guest: end"]
        .iter()
        .all(|line| text.contains(line));
    ensure!(
        status.success() && is_whole,
        "it did not end well ({status}): {}",
        console.display()
    );
    Ok("two processors came to user space".to_owned())
}
