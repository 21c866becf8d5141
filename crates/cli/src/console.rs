//! The guest's console on a stream of ours, and whether the guest left it in the middle of a line.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// Where the guest's last character left the cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cursor {
    /// Nothing was written.
    Untouched = 0,
    /// Behind a character.
    InLine = 1,
    /// At the beginning of a line.
    NewLine = 2,
}

/// A cursor that several write at.
#[derive(Clone, Debug, Default)]
pub(crate) struct SharedCursor(Arc<AtomicU8>);

impl SharedCursor {
    pub(crate) fn get(&self) -> Cursor {
        Self::of(self.0.load(Ordering::Relaxed))
    }

    /// Moves it; says where it was.
    pub(crate) fn replace(&self, cursor: Cursor) -> Cursor {
        Self::of(self.0.swap(cursor as u8, Ordering::Relaxed))
    }

    fn of(byte: u8) -> Cursor {
        let all = [Cursor::InLine, Cursor::NewLine];
        let found = all.into_iter().find(|&cursor| cursor as u8 == byte);
        found.unwrap_or(Cursor::Untouched)
    }
}

/// A stream that remembers its cursor.
pub(crate) struct Console<W> {
    stream: W,
    cursor: SharedCursor,
}

impl<W: Write> Console<W> {
    pub(crate) fn new(stream: W) -> Self {
        Self {
            stream,
            cursor: SharedCursor::default(),
        }
    }

    /// Follows the cursor while somebody else writes.
    pub(crate) fn cursor(&self) -> SharedCursor {
        self.cursor.clone()
    }
}

impl<W: Write> Write for Console<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.stream.write(bytes)?;
        match bytes.get(..count).and_then(<[u8]>::last) {
            Some(b'\n') => self.cursor.replace(Cursor::NewLine),
            Some(_) => self.cursor.replace(Cursor::InLine),
            None => return Ok(count),
        };
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
