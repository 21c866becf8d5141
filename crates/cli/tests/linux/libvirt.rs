//! The arguments that libvirt makes of a domain, with `msrgate-qemu` as its emulator: QEMU's seccomp filter on, stopped
//! until its monitor says so, two processors.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use msrgate_core::{Access, MsrIndex, VcpuId};
use serde_json::Value;

use crate::boot::{LIMIT, Linux, Running};
use crate::traced;
use crate::wrapped::read_trace;

const DOMAIN: &str = include_str!("../../../../testdata/libvirt/domain.args");

const POLICY: &str = "version = 1\n[[rule]]\nmsr = 'IA32_PAT'\nwrite = 'fault'\n";

#[test]
fn domain_of_libvirt_boots_under_the_policy_of_its_name() {
    let Some(linux) = Linux::or_skip() else {
        return;
    };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("linux-libvirt");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).expect("the test's folder can be written");
    let at = |name: &str| folder.join(name).display().to_string();
    let write = |name: &str, bytes: &[u8]| fs::write(at(name), bytes).expect("it is ours");
    write("master-key.aes", &[7; 32]);
    write("web.toml", POLICY.as_bytes());
    let options = format!("--observe filter --trace {}", at("{name}.msrtrace"));
    write("web.options", options.as_bytes());

    let console = folder.join("console");
    let serial = format!("file,id=charserial0,path={}", console.display());
    let mut arguments = DOMAIN.to_owned();
    for (of_libvirt, ours) in [
        ("/var/lib/libvirt/boot/vmlinuz", linux.file("vmlinuz")),
        ("/var/lib/libvirt/boot/initrd.img", linux.file("initramfs")),
        ("/var/lib/libvirt/qemu/domain--1-web", at("")),
        ("pty,id=charserial0", serial),
    ] {
        assert!(arguments.contains(of_libvirt), "{of_libvirt}");
        arguments = arguments.replace(of_libvirt, &ours);
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_msrgate"));
    command
        .arg0("/usr/local/bin/msrgate-qemu")
        .args(shlex::split(&arguments).expect("as a shell reads it"))
        .env("MSRGATE_QEMU_POLICIES", &folder);
    let qemu = Running::start(command, console);
    let mut monitor = Monitor::connect(&folder.join("monitor.sock"));
    monitor.execute("cont");
    monitor.wait_for("SHUTDOWN");
    monitor.execute("quit");
    let boot = qemu.end();

    boot.is_whole();
    let fault = "unchecked MSR access error: WRMSR to 0x277 ";
    assert!(boot.console.contains(fault), "{}", boot.console);
    let path = folder.join("web.msrtrace");
    assert_eq!(traced::read(&path).facts.guest, "web");
    let trace = read_trace(&path);
    let pat = (MsrIndex(0x277), Access::Write);
    assert!(
        [0, 1]
            .iter()
            .all(|&vcpu| trace[&VcpuId(vcpu)].contains_key(&pat))
    );
}

/// QEMU's monitor, as libvirt speaks to it.
struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    fn connect(socket: &Path) -> Self {
        let started = Instant::now();
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) => assert!(started.elapsed() < LIMIT, "no monitor: {error}"),
            }
            thread::sleep(Duration::from_millis(20));
        };
        let limited = stream.set_read_timeout(Some(LIMIT));
        limited.expect("a time that is not 0");
        let mut monitor = Self {
            stream: BufReader::new(stream),
        };
        monitor.wait_for("QMP");
        monitor.execute("qmp_capabilities");
        monitor
    }

    fn execute(&mut self, command: &str) {
        let request = format!("{{\"execute\":\"{command}\"}}\n");
        let written = self.stream.get_mut().write_all(request.as_bytes());
        written.expect("the monitor listens");
        self.wait_for("return");
    }

    /// Reads until there is an answer with this key, or an event of this name.
    fn wait_for(&mut self, what: &str) {
        loop {
            let mut line = String::new();
            let read = self.stream.read_line(&mut line).expect("an answer in time");
            assert!(read > 0, "the monitor is gone");
            let answer: Value = serde_json::from_str(&line).expect("JSON");
            assert!(answer.get("error").is_none(), "{answer}");
            if answer.get(what).is_some() || answer["event"] == what {
                return;
            }
        }
    }
}
