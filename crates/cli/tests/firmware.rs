//! Debian's QEMU, which knows nothing of us, on the embedded KVM: SeaBIOS finds a disk and starts its boot sector.
//! `cargo xtask boot` has it boot Debian's kernels.

use std::env;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "it is for more tests than these")]
mod support;

use support::{command, file, say, stderr, stdout};

/// By which QEMU is stopped: many times what it takes.
const LIMIT: Duration = Duration::from_secs(60);

/// What the boot sector writes to the serial port.
const GREETING: &str = "started from disk";
/// What it writes to QEMU's `isa-debug-exit`, which makes an exit status of it.
const END: u8 = 0x10;
const END_STATUS: i32 = 0x21;

/// xor ax, ax; mov ds, ax; mov si, text; mov dx, 0x3f8; again: lodsb; test al, al; jz over; out dx, al; jmp again;
/// over: mov dx, 0xf4; mov al, END; out dx, al; hlt
fn boot_sector() -> Vec<u8> {
    const CODE: [u8; 24] = [
        0x31, 0xc0, 0x8e, 0xd8, 0xbe, 0x18, 0x7c, 0xba, 0xf8, 0x03, 0xac, 0x84, 0xc0, 0x74, 0x03,
        0xee, 0xeb, 0xf8, 0xba, 0xf4, 0x00, 0xb0, END, 0xee,
    ];
    let mut sector = [&CODE[..], GREETING.as_bytes()].concat();
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector.resize(1 << 20, 0);
    sector
}

fn starts_from_disk(name: &str, machine: &[&str]) {
    if let Err(why) = Command::new("qemu-system-x86_64").arg("--version").output() {
        say(&format!("SKIP(qemu): qemu-system-x86_64: {why}"));
        return;
    }
    let disk = file(name, &boot_sector());
    let drive = format!("file={},format=raw", disk.display());
    #[rustfmt::skip]
    let qemu = [
        "wrap", "--kvm", "soft", "--", "qemu-system-x86_64", "-accel", "kvm", "-m", "64", "-nodefaults",
        "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio", "-drive", &drive,
        "-device", "isa-debug-exit,iobase=0xf4,iosize=1",
    ];
    let test = env::current_exe().expect("a running program has a path");
    let mut child = command(&qemu)
        .args(machine)
        .env(
            "MSRGATE_PRELOAD",
            test.with_file_name("libmsrgate_preload.so"),
        )
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("msrgate runs");
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child of ours") {
            break status;
        }
        if started.elapsed() > LIMIT {
            child.kill().expect("a child of ours");
        }
        thread::sleep(Duration::from_millis(20));
    };
    let output = child.wait_with_output().expect("it has ended");
    let what = format!("{name}: {}{}", stdout(&output), stderr(&output));
    assert_eq!(status.code(), Some(END_STATUS), "{what}");
    assert!(stdout(&output).ends_with(GREETING), "{what}");
}

#[test]
fn pc_starts_from_disk() {
    starts_from_disk("firmware-pc", &["-M", "pc"]);
}

#[test]
fn q35_with_two_processors_of_the_hosts_kind_starts_from_disk() {
    let machine = ["-M", "q35", "-cpu", "host", "-smp", "2"];
    starts_from_disk("firmware-q35", &machine);
}
