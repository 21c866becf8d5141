//! A program on a terminal of its own, and what the terminal shows.

use std::io::{Read, Write};
use std::mem;
use std::num::NonZeroU16;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pty_process::Size;
use pty_process::blocking::{Pty, open};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{Termios, tcgetattr};
use vt100::{Parser, Screen};

/// Longer than any machine needs.
const PATIENCE: Duration = Duration::from_secs(60);

/// The terminal, and the program on it.
pub(crate) struct Terminal {
    program: Child,
    pty: Arc<Pty>,
    /// What it was before the program began.
    modes: Termios,
    shown: Arc<Mutex<Shown>>,
    /// Nobody reads any more.
    is_over: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

struct Shown {
    parser: Parser,
    /// All that was ever written.
    bytes: Vec<u8>,
}

impl Terminal {
    pub(crate) fn start(command: Command, columns: u16, rows: u16) -> Self {
        let (pty, program_side) = open().expect("a terminal");
        pty.resize(Size::new(rows, columns)).expect("a size");
        let modes = tcgetattr(&pty).expect("a terminal has modes");
        let command = pty_process::blocking::Command::from(command);
        let program = command.spawn(program_side).expect("msrgate runs");
        let pty = Arc::new(pty);
        let shown = Arc::new(Mutex::new(Shown {
            parser: Parser::new(nonzero(rows), nonzero(columns), 0),
            bytes: Vec::new(),
        }));
        let is_over = Arc::new(AtomicBool::new(false));
        let reader = thread::spawn({
            let (pty, shown, is_over) = (pty.clone(), shown.clone(), is_over.clone());
            move || {
                while !is_over.load(Ordering::Relaxed) && read(&pty, &shown) {}
            }
        });
        Self {
            program,
            pty,
            modes,
            shown,
            is_over,
            reader: Some(reader),
        }
    }

    /// Waits until the screen is so, and says what is then on it.
    pub(crate) fn wait_for(&mut self, what: &str, is_so: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            let contents = self.contents();
            if is_so(&contents) {
                return contents;
            }
            let has_ended = self.program.try_wait().expect("a child").is_some();
            assert!(
                !has_ended && start.elapsed() < PATIENCE,
                "never: {what}\n{contents}"
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until this is on it.
    pub(crate) fn wait_for_text(&mut self, text: &str) -> String {
        self.wait_for(text, |contents| contents.contains(text))
    }

    /// What is on the screen, without the spaces that end lines.
    pub(crate) fn contents(&self) -> String {
        let contents = self.screen().contents();
        let lines = contents.lines().map(str::trim_end);
        lines.collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn screen(&self) -> Screen {
        self.shown().parser.screen().clone()
    }

    /// All that was ever written.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.shown().bytes.clone()
    }

    pub(crate) fn press(&self, keys: &str) {
        (&*self.pty)
            .write_all(keys.as_bytes())
            .expect("the terminal is there");
    }

    pub(crate) fn resize(&self, columns: u16, rows: u16) {
        self.shown()
            .parser
            .screen_mut()
            .set_size(nonzero(rows), nonzero(columns));
        self.pty.resize(Size::new(rows, columns)).expect("a size");
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.program), signal).expect("it lives");
    }

    /// Waits until the program has ended and the terminal is as it was before.
    pub(crate) fn end(&mut self) -> (ExitStatus, String) {
        let status = self.wait();
        let modes = tcgetattr(&self.pty).expect("a terminal has modes");
        self.reader
            .take()
            .expect("it ends once")
            .join()
            .expect("no panic");
        let screen = self.screen();
        let contents = self.contents();
        assert!(
            !screen.alternate_screen() && !screen.hide_cursor(),
            "{contents}"
        );
        let bits = |modes: &Termios| {
            (
                modes.input_modes.bits(),
                modes.output_modes.bits(),
                modes.local_modes.bits(),
            )
        };
        assert_eq!(bits(&modes), bits(&self.modes), "the terminal's modes");
        (status, contents)
    }

    /// Takes the terminal away, and waits until the program has ended.
    pub(crate) fn hang_up(mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let reader = self.reader.take().expect("it ends once");
        reader.join().expect("no panic");
        let (other, _) = open().expect("another terminal");
        drop(mem::replace(&mut self.pty, Arc::new(other)));
        self.wait();
    }

    fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.program.try_wait().expect("a child") {
                return status;
            }
            let has_time = start.elapsed() < PATIENCE;
            assert!(has_time, "it does not end\n{}", self.contents());
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().expect("nobody panics")
    }
}

/// Shows what the program writes, if it does soon; not once it has ended.
fn read(pty: &Pty, shown: &Mutex<Shown>) -> bool {
    const SOON: Timespec = Timespec {
        tv_sec: 0,
        tv_nsec: 20_000_000,
    };
    let mut readable = [PollFd::new(pty, PollFlags::IN)];
    if poll(&mut readable, Some(&SOON)).expect("no signal comes") == 0 {
        return true;
    }
    let mut buffer = [0; 4096];
    let Ok(count @ 1..) = (&*pty).read(&mut buffer) else {
        return false;
    };
    let mut shown = shown.lock().expect("nobody panics");
    shown.parser.process(&buffer[..count]);
    shown.bytes.extend(&buffer[..count]);
    true
}

fn nonzero(number: u16) -> NonZeroU16 {
    number.try_into().expect("a terminal has a size")
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}
