//! The guest's console on a stream of ours, and whether the guest left it in the middle of a line.

use std::cell::Cell;
use std::io::{self, Write};
use std::rc::Rc;

/// Where the guest's last character left the cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cursor {
    /// Nothing was written.
    Untouched,
    /// Behind a character.
    InLine,
    /// At the beginning of a line.
    NewLine,
}

/// A stream that remembers its cursor.
pub(crate) struct Console<W> {
    stream: W,
    cursor: Rc<Cell<Cursor>>,
}

impl<W: Write> Console<W> {
    pub(crate) fn new(stream: W) -> Self {
        Self {
            stream,
            cursor: Rc::new(Cell::new(Cursor::Untouched)),
        }
    }

    /// Follows the cursor while somebody else writes.
    pub(crate) fn cursor(&self) -> Rc<Cell<Cursor>> {
        Rc::clone(&self.cursor)
    }
}

impl<W: Write> Write for Console<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.stream.write(bytes)?;
        match bytes.get(..count).and_then(<[u8]>::last) {
            Some(b'\n') => self.cursor.set(Cursor::NewLine),
            Some(_) => self.cursor.set(Cursor::InLine),
            None => {}
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
