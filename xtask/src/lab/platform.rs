//! The emulators and how each is started: [`Platform`].

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::image;
use super::job::Job;
use super::kernel::Kernel;
use crate::shell;

/// Whose virtualization is emulated, and thereby which KVM is tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Platform {
    /// SVM in QEMU's TCG.
    Amd,
    /// VMX in Bochs.
    Intel,
}

/// How much of the guest's time a stuck machine gets beyond the limit that it watches itself.
const GRACE: Duration = Duration::from_secs(60);

impl Platform {
    /// The name of its folder.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Amd => "amd",
            Self::Intel => "intel",
        }
    }

    /// What is printed first.
    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Amd => "kvm-amd in QEMU's TCG (EPYC)",
            Self::Intel => "kvm-intel in Bochs (Haswell)",
        }
    }

    const fn module(self) -> &'static str {
        match self {
            Self::Amd => "kvm_amd",
            Self::Intel => "kvm_intel",
        }
    }

    /// How long to wait for a job that may take `limit` of the machine's own time. Bochs counts
    /// instructions, and its seconds are longer than ours.
    pub(super) fn patience(self, limit: Duration) -> Duration {
        match self {
            Self::Amd => limit + GRACE,
            Self::Intel => limit * 4 + GRACE * 4,
        }
    }

    /// The command of a machine that runs `jobs`: its console goes to `kernel.log`, what the jobs say to
    /// `results.log`. Bochs has one processor, whatever `cpus` says.
    pub(super) fn machine(
        self,
        kernel: &Kernel,
        jobs: &[Job],
        cpus: u8,
        folder: &Path,
    ) -> Result<Command> {
        let initramfs = folder.join("initramfs.cpio");
        image::write(&initramfs, kernel, self.module(), jobs)?;
        for log in ["kernel.log", "results.log"] {
            fs::write(folder.join(log), "").context("cannot make the logs")?;
        }
        match self {
            Self::Amd => Ok(qemu(kernel, cpus, folder, &initramfs)),
            Self::Intel => bochs(kernel, folder, &initramfs),
        }
    }
}

fn qemu(kernel: &Kernel, cpus: u8, folder: &Path, initramfs: &Path) -> Command {
    let serial = |log: &str| format!("file:{}", folder.join(log).display());
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args([
        "-accel",
        "tcg",
        "-cpu",
        "EPYC,+svm",
        "-M",
        "q35",
        "-m",
        "2048",
    ])
    .args(["-smp", &cpus.to_string()])
    .args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ])
    .args(["-serial", &serial("kernel.log")])
    .args(["-serial", &serial("results.log")])
    .arg("-kernel")
    .arg(&kernel.image)
    .arg("-initrd")
    .arg(initramfs)
    .args(["-append", "console=ttyS0 panic=-1"]);
    qemu
}

/// Debian's Bochs is built with its debugger, which wants a terminal and the command to go on.
fn bochs(kernel: &Kernel, folder: &Path, initramfs: &Path) -> Result<Command> {
    let disc = folder.join("disc");
    let _ = fs::remove_dir_all(&disc);
    fs::create_dir_all(&disc).context("cannot make the disc's folder")?;
    let copies = [
        (kernel.image.as_path(), "linux"),
        (initramfs, "initrd"),
        (Path::new("/usr/lib/ISOLINUX/isolinux.bin"), "isolinux.bin"),
        (
            Path::new("/usr/lib/syslinux/modules/bios/ldlinux.c32"),
            "ldlinux.c32",
        ),
    ];
    for (from, name) in copies {
        fs::copy(from, disc.join(name))
            .with_context(|| format!("cannot copy {}", from.display()))?;
    }
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).context("cannot write");
    fs::write(disc.join("isolinux.cfg"), ISOLINUX).context("cannot write isolinux.cfg")?;
    write("bochsrc", BOCHSRC)?;
    write("debugger", "c\n")?;
    let mut xorriso = Command::new("xorriso");
    xorriso
        .args([
            "-as",
            "mkisofs",
            "-quiet",
            "-o",
            "lab.iso",
            "-b",
            "isolinux.bin",
            "-c",
            "boot.cat",
        ])
        .args([
            "-no-emul-boot",
            "-boot-load-size",
            "4",
            "-boot-info-table",
            "disc",
        ])
        .current_dir(folder);
    shell::run_quietly(&mut xorriso, &folder.join("xorriso.log"))?;
    let mut script = Command::new("script");
    script
        .args(["-qec", "bochs -q -f bochsrc -rc debugger", "/dev/null"])
        .env("TERM", "vt100")
        .current_dir(folder);
    Ok(script)
}

const ISOLINUX: &str = "\
default lab
prompt 0
label lab
    kernel linux
    append initrd=initrd console=ttyS0 panic=-1 tsc=reliable no_timer_check mitigations=off nokaslr
";

/// `clock: sync=none` counts instructions instead of waiting.
const BOCHSRC: &str = "\
megs: 1024
cpu: model=corei7_haswell_4770, count=1, ips=50000000
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/vgabios/vgabios.bin
ata0-master: type=cdrom, path=lab.iso, status=inserted
boot: cdrom
display_library: term
clock: sync=none
com1: enabled=1, mode=file, dev=kernel.log
com2: enabled=1, mode=file, dev=results.log
log: bochs.log
panic: action=fatal
error: action=ignore
info: action=ignore
";
