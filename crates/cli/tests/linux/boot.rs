//! Booting: [`Linux`], and what became of it, [`Boot`].

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::UNKNOWN;
use crate::support::say;

/// How long a boot may take: in QEMU's TCG it takes five seconds, and more where others compute.
const LIMIT: Duration = Duration::from_secs(100);

/// A kernel and an initramfs.
pub(crate) struct Linux {
    folder: PathBuf,
}

/// A Linux that ended.
pub(crate) struct Boot {
    /// What its kernel and its init wrote.
    pub(crate) console: String,
    /// What the emulator, or what is around it, wrote.
    pub(crate) stderr: String,
    /// `None`: it did not end.
    status: Option<ExitStatus>,
}

impl Linux {
    /// The one that the lab made.
    pub(crate) fn or_skip() -> Option<Self> {
        let Some(folder) = env::var_os("MSRGATE_LINUX") else {
            say(
                "SKIP(linux): MSRGATE_LINUX names no folder with vmlinuz and initramfs; cargo xtask lab makes one",
            );
            return None;
        };
        Some(Self {
            folder: folder.into(),
        })
    }

    /// QEMU's command, with `cpus` processors and the console in `console`.
    fn qemu(&self, cpus: u32, console: &Path) -> Vec<String> {
        let kernel = self.folder.join("vmlinuz").display().to_string();
        let initramfs = self.folder.join("initramfs").display().to_string();
        let console = format!("file:{}", console.display());
        let append = format!("console=ttyS0 panic=-1 nokaslr unknown={UNKNOWN}");
        let cpus = cpus.to_string();
        #[rustfmt::skip]
        let words = [
            "qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-M", "q35", "-m", "256", "-smp", &cpus,
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", &console,
            "-kernel", &kernel, "-initrd", &initramfs, "-append", &append,
        ];
        words.map(str::to_owned).into()
    }

    /// Boots it without msrgate.
    pub(crate) fn boot(&self) -> Boot {
        self.boot_in(&[], 1)
    }

    /// Boots it with QEMU's words behind `wrapper`'s.
    pub(crate) fn boot_in(&self, wrapper: &[&str], cpus: u32) -> Boot {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let file = |what: &str| {
            let name = format!("linux-{number}-{what}");
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
        };
        let (console, stderr) = (file("console"), file("stderr"));
        let qemu = self.qemu(cpus, &console);
        let mut words = wrapper
            .iter()
            .copied()
            .chain(qemu.iter().map(String::as_str));
        let mut command = Command::new(words.next().expect("a program"));
        command.args(words).stdin(Stdio::null());
        // What `msrgate wrap` loads is where cargo puts it: beside this test.
        let test = env::current_exe().expect("a running program has a path");
        command.env(
            "MSRGATE_PRELOAD",
            test.with_file_name("libmsrgate_preload.so"),
        );
        command.stderr(File::create(&stderr).expect("the test's folder can be written"));
        let mut child = command.spawn().expect("QEMU starts");
        let status = wait(&mut child);
        let text =
            |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into();
        Boot {
            console: text(&console),
            stderr: text(&stderr),
            status,
        }
    }
}

impl Boot {
    /// It came to user space, ended by itself, and QEMU found nothing wrong.
    pub(crate) fn is_whole(&self) {
        let is_over = self.status.is_some_and(|status| status.success());
        let is_whole = is_over && self.console.contains("guest: end");
        assert!(
            is_whole,
            "{:?}: {}\n{}",
            self.status, self.stderr, self.console
        );
    }

    /// What follows `prefix` in the lines of the console that begin with it.
    pub(crate) fn said(&self, prefix: &str) -> Vec<&str> {
        let lines = self.console.lines();
        lines
            .filter_map(|line| Some(line.trim_end().strip_prefix(prefix)?.trim_start()))
            .collect()
    }
}

/// Waits for the end, and makes one after the limit.
fn wait(child: &mut Child) -> Option<ExitStatus> {
    let started = Instant::now();
    while started.elapsed() < LIMIT {
        if let Some(status) = child.try_wait().expect("a child of ours") {
            return Some(status);
        }
        thread::sleep(Duration::from_millis(20));
    }
    child.kill().expect("a child of ours");
    child.wait().expect("a child of ours");
    None
}
