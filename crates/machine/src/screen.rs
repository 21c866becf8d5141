//! [`Screen`]: the console on its way out, read for what a panicking Linux says.
//!
//! Linux tells nobody else that it panics: what comes after is a reset, or nothing at all.

use std::io::{self, Write};

/// In the first line of a panic.
const PANIC: &[u8] = b"Kernel panic - not syncing";
/// Begins the last one, after which the kernel waits for ever; it is not said before a reset.
const END: &[u8] = b"---[ end Kernel panic - not syncing";
/// What is kept of a line.
const LINE_LIMIT: usize = 256;

/// A stream that knows whether a kernel has panicked on it.
#[derive(Debug)]
pub(crate) struct Screen<W> {
    stream: W,
    line: Vec<u8>,
    has_panicked: bool,
    has_said_all: bool,
}

impl<W> Screen<W> {
    pub(crate) fn new(stream: W) -> Self {
        Self {
            stream,
            line: Vec::new(),
            has_panicked: false,
            has_said_all: false,
        }
    }

    /// Whether a panic has begun.
    pub(crate) fn has_panicked(&self) -> bool {
        self.has_panicked
    }

    /// Whether its last line is out.
    pub(crate) fn has_said_all(&self) -> bool {
        self.has_said_all
    }

    fn read(&mut self, byte: u8) {
        if byte != b'\n' {
            if self.line.len() < LINE_LIMIT {
                self.line.push(byte);
            }
            return;
        }
        let says = |text: &[u8]| self.line.windows(text.len()).any(|window| window == text);
        self.has_said_all |= self.has_panicked && says(END);
        self.has_panicked |= says(PANIC);
        self.line.clear();
    }
}

impl<W: Write> Write for Screen<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.stream.write(bytes)?;
        bytes.iter().take(count).for_each(|&byte| self.read(byte));
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn screen(text: &str) -> Screen<Vec<u8>> {
        let mut screen = Screen::new(Vec::new());
        screen.write_all(text.as_bytes()).unwrap();
        assert_eq!(screen.stream, text.as_bytes());
        screen
    }

    #[test]
    fn panic_is_seen_at_its_line_and_its_end_at_the_last() {
        let begun = screen("[    0.5] Kernel panic - not syncing: No working init found.\r\n");
        assert_eq!((begun.has_panicked, begun.has_said_all), (true, false));
        let text = "[1] Kernel panic - not syncing: x\r\n[1] ---[ end Kernel panic - not syncing: x ]---\r\n";
        assert!(screen(text).has_said_all);
    }

    #[test]
    fn other_lines_are_no_panic() {
        let other =
            screen("Kernel panic\n---[ end trace ]---\n---[ end Kernel panic - not syncing\n");
        // The last one alone begins nothing that it could end.
        assert!(!other.has_said_all);
        assert!(!screen("Kernel panic - not syncing, half a line").has_panicked);
    }

    #[test]
    fn long_line_is_not_kept_whole() {
        let long = screen(&"x".repeat(10 * LINE_LIMIT));
        assert_eq!(long.line.len(), LINE_LIMIT);
    }
}
