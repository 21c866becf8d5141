//! Booting: [`Linux`], while it runs, [`Running`], and what became of it, [`Boot`].

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::UNKNOWN;
use crate::support::say;
use crate::traced::output;

/// How long a boot may take: in QEMU's TCG it takes five seconds, and more where others compute.
pub(crate) const LIMIT: Duration = Duration::from_secs(100);

/// A kernel and an initramfs.
pub(crate) struct Linux {
    folder: PathBuf,
}

/// QEMU, until it ends.
pub(crate) struct Running {
    child: Child,
    console: PathBuf,
    stderr: PathBuf,
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
        let [kernel, initramfs] = ["vmlinuz", "initramfs"].map(|name| self.file(name));
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

    /// Boots it with QEMU's words behind `wrapper`'s, which may be none.
    pub(crate) fn boot(&self, wrapper: &[&str], cpus: u32) -> Boot {
        retried(|| self.boot_once(wrapper, cpus), |boot| boot)
    }

    /// The same, for who [retries](retried) more than the boot.
    pub(crate) fn boot_once(&self, wrapper: &[&str], cpus: u32) -> Boot {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let console = output(&format!("linux-{number}.console"));
        let qemu = self.qemu(cpus, &console);
        let mut words = wrapper
            .iter()
            .copied()
            .chain(qemu.iter().map(String::as_str));
        let mut command = Command::new(words.next().expect("a program"));
        command.args(words);
        Running::start(command, console).end()
    }

    /// The kernel's, or the initramfs's.
    pub(crate) fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }
}

/// Emulated hardware has been seen to stop for ever: what did not end in time is done once more, and said to be.
pub(crate) fn retried<T>(attempt: impl Fn() -> T, boot: impl Fn(&T) -> &Boot) -> T {
    let first = attempt();
    let Boot {
        status, console, ..
    } = boot(&first);
    if status.is_some() {
        return first;
    }
    let last = console.lines().next_back().unwrap_or_default().trim_end();
    let seconds = LIMIT.as_secs();
    say(&format!(
        "FLAKE: no end after {seconds} s, at {last:?}; one more try"
    ));
    attempt()
}

impl Running {
    /// Starts QEMU, whose command has the console written to this file.
    pub(crate) fn start(mut command: Command, console: PathBuf) -> Self {
        let stderr = console.with_extension("stderr");
        // What `msrgate wrap` loads is where cargo puts it: beside this test.
        let test = env::current_exe().expect("a running program has a path");
        let library = test.with_file_name("libmsrgate_preload.so");
        command.env("MSRGATE_PRELOAD", library).stdin(Stdio::null());
        command.stderr(File::create(&stderr).expect("the test's folder can be written"));
        Self {
            child: command.spawn().expect("QEMU starts"),
            console,
            stderr,
        }
    }

    /// Waits for the end, and makes one after the limit.
    pub(crate) fn end(mut self) -> Boot {
        let started = Instant::now();
        let mut status = None;
        while status.is_none() && started.elapsed() < LIMIT {
            thread::sleep(Duration::from_millis(20));
            status = self.child.try_wait().expect("a child of ours");
        }
        let text =
            |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into();
        Boot {
            console: text(&self.console),
            stderr: text(&self.stderr),
            status,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Most often it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
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
