//! Another policy while the guest runs: `--watch`, SIGHUP, and files that are no policy.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "what guests end with is not looked at here")]
mod support;

use support::{Elf, backends, command, file};

/// Reads 0x8b again and again, and prints its low byte and a new line when it is another one.
const GUEST: &[u8] = &[
    0xb9, 0x8b, 0, 0, 0, 0x31, 0xdb, // mov ecx, 0x8b; xor ebx, ebx
    0x0f, 0x32, 0x38, 0xd8, 0x74, 0xfa, // again: rdmsr; cmp al, bl; je again
    0x88, 0xc3, 0x66, 0xba, 0xf8, 0x03, 0xee, // mov bl, al; mov dx, 0x3f8; out dx, al
    0xb0, b'\n', 0xee, 0xeb, 0xee, // mov al, '\n'; out dx, al; jmp again
];

/// Longer than any machine needs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A policy by which the guest reads this letter.
fn policy(letter: char) -> String {
    let value = u32::from(letter);
    format!("version = 1\n[[rule]]\nmsr = 0x8b\nread = {{ value = {value} }}\n")
}

/// A guest that runs until it is dropped, and what it prints, line by line.
struct Run {
    child: Child,
    guest: Receiver<String>,
    errors: Receiver<String>,
}

impl Run {
    fn start(name: &str, backend: &str, policy: &Path, options: &[&str]) -> Self {
        let guest = file(name, &Elf::new(GUEST).bytes());
        let mut child = command(&["run", "--backend", backend, "--policy"])
            .arg(policy)
            .args(options)
            .arg(guest)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("msrgate runs");
        Self {
            guest: lines(child.stdout.take().expect("a pipe")),
            errors: lines(child.stderr.take().expect("a pipe")),
            child,
        }
    }

    /// Waits until the guest has seen a letter.
    fn sees(&self, letter: char) {
        let line = self.guest.recv_timeout(PATIENCE).expect("a line in time");
        assert_eq!(line, letter.to_string());
    }

    /// Waits for a line of the standard error.
    fn says(&self, words: &str) {
        let mut before = String::new();
        loop {
            let line = self.errors.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("nothing says {words:?}:\n{before}"));
            if line.contains(words) {
                return;
            }
            before += &line;
            before += "\n";
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(sent.expect("kill runs").success());
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // It may have ended, which a failed test is about.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// As editors do it: another file takes the name.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).expect("the test's folder can be written");
    fs::rename(&new, path).expect("the same folder");
}

fn policy_file(name: &str, letter: char) -> PathBuf {
    file(name, policy(letter).as_bytes())
}

#[test]
fn changed_file_is_in_force_and_a_broken_one_is_not() {
    for backend in backends() {
        let path = policy_file(&format!("watch-{backend}.toml"), 'A');
        let run = Run::start("watch.elf", backend, &path, &["--watch"]);
        run.sees('A');
        fs::write(&path, policy('B')).expect("it can be written");
        run.says("msrgate: policy replaced by ");
        run.sees('B');
        replace(&path, &policy('C'));
        run.says("policy replaced");
        run.sees('C');
        replace(
            &path,
            "version = 1\n[[rule]]\nmsr = 'IA32_SPEC_CTL'\nboth = 'fault'\n",
        );
        run.says("IA32_SPEC_CTL");
        run.says("has 1 mistake: the old one stays in force");
        replace(&path, &policy('D'));
        run.sees('D');
    }
}

#[test]
fn file_that_goes_away_is_waited_for() {
    let path = policy_file("watch-gone.toml", 'A');
    let run = Run::start("watch-gone.elf", "soft", &path, &["--watch"]);
    run.sees('A');
    fs::remove_file(&path).expect("it is there");
    thread::sleep(Duration::from_secs(1));
    fs::write(&path, policy('B')).expect("it can be written");
    run.sees('B');
}

#[test]
fn included_file_is_watched_too() {
    let included = policy_file("watch-included.toml", 'A');
    let path = file(
        "watch-including.toml",
        b"version = 1\ninclude = ['watch-included.toml']\n",
    );
    let run = Run::start("watch-included.elf", "soft", &path, &["--watch"]);
    run.sees('A');
    replace(&included, &policy('B'));
    run.sees('B');
}

#[test]
fn hangup_reads_the_file_again_only_when_it_comes() {
    let path = policy_file("hangup.toml", 'A');
    let run = Run::start("hangup.elf", "soft", &path, &[]);
    run.sees('A');
    replace(&path, &policy('B'));
    let early = run.guest.recv_timeout(Duration::from_secs(1));
    early.expect_err("nobody watches the file");
    run.signal("HUP");
    run.says("policy replaced");
    run.sees('B');
    fs::remove_file(&path).expect("it is there");
    run.signal("HUP");
    run.says("cannot read the policy");
}

#[test]
fn watching_needs_a_file() {
    let output = command(&["run", "--watch"]).output().expect("msrgate runs");
    assert_eq!(output.status.code(), Some(2));
}
