//! [`Output`]: what would have gone to the terminal while it shows the view. Its last lines are kept, without what would
//! control a terminal.

use std::collections::VecDeque;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{mem, thread};

use anstream::adapter::StripBytes;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::ioctl_fionbio;

/// As many are kept.
const LINES_LIMIT: usize = 100;
/// Of a line.
const BYTES_LIMIT: usize = 512;
/// What a pipe holds.
const PIPE_BYTES: usize = 64 << 10;

/// A pipe for all who write. A thread reads it, so that they need not wait for who looks.
#[derive(Debug)]
pub(super) struct Output {
    writer: PipeWriter,
    reader: Arc<Mutex<Reader>>,
}

impl Output {
    pub(super) fn new() -> io::Result<Self> {
        let (pipe, writer) = io::pipe()?;
        ioctl_fionbio(&pipe, true)?;
        let readable = pipe.try_clone()?;
        let reader = Arc::new(Mutex::new(Reader {
            pipe,
            strip: StripBytes::new(),
            lines: Lines::default(),
        }));
        let output = Self {
            writer,
            reader: Arc::clone(&reader),
        };
        thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || {
                while poll(&mut [PollFd::new(&readable, PollFlags::IN)], None).is_ok()
                    && lock(&reader).read()
                {}
            })?;
        Ok(output)
    }

    /// For somebody who writes.
    pub(super) fn writer(&self) -> io::Result<PipeWriter> {
        self.writer.try_clone()
    }

    /// The last lines.
    pub(super) fn last(&self) -> Vec<String> {
        lock(&self.reader).lines.all()
    }

    /// Writes what is kept, with what was written until now.
    pub(super) fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut reader = lock(&self.reader);
        reader.read();
        let lines = reader.lines.all();
        lines.iter().try_for_each(|line| writeln!(out, "{line}"))
    }
}

/// Nobody panics while he holds it.
fn lock(reader: &Mutex<Reader>) -> MutexGuard<'_, Reader> {
    reader.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Reader {
    pipe: PipeReader,
    strip: StripBytes,
    lines: Lines,
}

impl Reader {
    /// Takes what is there, but not for ever. Says whether more can come.
    fn read(&mut self) -> bool {
        let mut buffer = [0; 4096];
        for _ in 0..PIPE_BYTES / buffer.len() {
            match self.pipe.read(&mut buffer) {
                Ok(0) => return false,
                Ok(count) => {
                    for printable in self.strip.strip_next(&buffer[..count]) {
                        printable.iter().for_each(|&byte| self.lines.push(byte));
                    }
                }
                // Nothing is there, or a signal came.
                Err(_) => return true,
            }
        }
        true
    }
}

#[derive(Debug, Default)]
struct Lines {
    ended: VecDeque<String>,
    begun: Vec<u8>,
    /// What comes next stands where the line began.
    has_returned: bool,
}

impl Lines {
    fn push(&mut self, byte: u8) {
        match byte {
            b'\n' => {
                if self.ended.len() == LINES_LIMIT {
                    self.ended.pop_front();
                }
                self.ended.push_back(text(&mem::take(&mut self.begun)));
                self.has_returned = false;
            }
            b'\r' => self.has_returned = true,
            _ => {
                if mem::take(&mut self.has_returned) {
                    self.begun.clear();
                }
                if self.begun.len() < BYTES_LIMIT {
                    self.begun.push(byte);
                }
            }
        }
    }

    fn all(&self) -> Vec<String> {
        let begun = Some(text(&self.begun)).filter(|line| !line.is_empty());
        self.ended.iter().cloned().chain(begun).collect()
    }
}

fn text(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line).replace('\t', "    ");
    text.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8]) -> Lines {
        let mut lines = Lines::default();
        text.iter().for_each(|&byte| lines.push(byte));
        lines
    }

    #[test]
    fn lines_end_as_terminals_show_it() {
        assert_eq!(lines(b"a\r\nb\nc").all(), ["a", "b", "c"]);
        assert_eq!(lines(b"1 %\r2 %\r100 %\n\n").all(), ["100 %", ""]);
    }

    #[test]
    fn flood_fills_nothing() {
        let flood = lines(
            &[
                b"x".repeat(10 * BYTES_LIMIT),
                b"\n".repeat(10 * LINES_LIMIT),
            ]
            .concat(),
        );
        assert_eq!(flood.all().len(), LINES_LIMIT);
        assert_eq!(
            lines(&b"x".repeat(10 * BYTES_LIMIT)).begun.len(),
            BYTES_LIMIT
        );
    }

    #[test]
    fn what_controls_a_terminal_is_not_kept() {
        let output = Output::new().unwrap();
        let text = b"\x1b]0;title\x07\x1b[2Ja\x1b[31mb\x08\xc2\x9b2J\x1b[0mc\td\xff\n";
        output.writer().unwrap().write_all(text).unwrap();
        let mut printed = Vec::new();
        output.print(&mut printed).unwrap();
        assert_eq!(printed, b"ab2Jc    d\n");
    }
}
