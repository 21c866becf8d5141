//! The guest's console on a stream of ours: [`Console`], written by a thread of its own, so that the guest waits neither
//! for each byte nor for a reader who has gone to sleep.

use std::io::{self, Write};
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What the guest may be ahead of the stream.
const LIMIT_BYTES: usize = 64 << 10;
/// Bytes that come within this time are written together.
const GATHER: Duration = Duration::from_millis(3);

/// Where the guest's last character left the cursor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Cursor {
    /// Nothing was written.
    #[default]
    Untouched,
    /// Behind a character.
    InLine,
    /// At the beginning of a line.
    NewLine,
}

/// Takes what the guest writes. A clone is another name for the same.
#[derive(Clone, Debug)]
pub(crate) struct Console(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// The state is another.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    /// The thread has taken bytes that it has not written yet.
    is_writing: bool,
    /// The thread waits for bytes.
    is_idle: bool,
    /// Nobody waits for the stream any more.
    is_abandoned: bool,
    cursor: Cursor,
    error: Option<io::Error>,
    has_failed: bool,
}

impl Console {
    pub(crate) fn new(stream: impl Write + Send + 'static) -> io::Result<Self> {
        let console = Self(Arc::default());
        let shared = Arc::clone(&console.0);
        let thread = thread::Builder::new().name("console".to_owned());
        thread.spawn(move || shared.write_to(stream))?;
        Ok(console)
    }

    /// From now on the guest does not wait for the stream: what there is no room for is lost.
    pub(crate) fn abandon(&self) {
        self.0.lock().is_abandoned = true;
        self.0.changed.notify_all();
    }

    /// Waits until all is written, but no longer than `limit`; says whether it is.
    ///
    /// # Errors
    /// The stream takes no more.
    pub(crate) fn settle(&self, limit: Duration) -> io::Result<bool> {
        let end = Instant::now() + limit;
        let mut state = self.0.lock();
        while !state.has_failed && (state.is_writing || !state.waiting.is_empty()) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            state = self.0.wait(state, left);
        }
        state.error.take().map_or(Ok(true), Err)
    }

    pub(crate) fn cursor(&self) -> Cursor {
        self.0.lock().cursor
    }

    /// Moves the cursor to a new line, which somebody else has begun or will; says where it was.
    pub(crate) fn begin_line(&self) -> Cursor {
        mem::replace(&mut self.0.lock().cursor, Cursor::NewLine)
    }
}

impl Shared {
    /// The thread.
    fn write_to(&self, mut stream: impl Write) {
        loop {
            let mut state = self.lock();
            while state.waiting.is_empty() {
                state.is_idle = true;
                state = self.wait(state, Duration::MAX);
            }
            state.is_idle = false;
            let bytes = mem::take(&mut state.waiting);
            state.is_writing = true;
            drop(state);
            let done = stream.write_all(&bytes).and_then(|()| stream.flush());
            let mut state = self.lock();
            state.is_writing = false;
            if let Err(error) = done {
                state.error = Some(error);
                state.has_failed = true;
            }
            let has_failed = state.has_failed;
            drop(state);
            self.changed.notify_all();
            if has_failed {
                return;
            }
            thread::sleep(GATHER);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nobody panics while he holds it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        let woken = self.changed.wait_timeout(state, limit);
        woken.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        while state.waiting.len() >= LIMIT_BYTES && !state.is_abandoned && !state.has_failed {
            state = self.0.wait(state, Duration::MAX);
        }
        if state.has_failed {
            let error = state.error.take();
            return Err(error.unwrap_or_else(|| io::ErrorKind::BrokenPipe.into()));
        }
        match bytes.last() {
            Some(b'\n') => state.cursor = Cursor::NewLine,
            Some(_) => state.cursor = Cursor::InLine,
            None => {}
        }
        if state.waiting.len() < LIMIT_BYTES {
            state.waiting.extend(bytes);
        }
        if state.is_idle {
            state.is_idle = false;
            self.0.changed.notify_all();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Passes on what is written, and fails once nobody takes it; as slow as who takes it.
    struct Pipe(mpsc::SyncSender<Vec<u8>>);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let sent = self.0.send(bytes.to_vec());
            sent.map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn all_is_written_in_order() {
        let (sender, receiver) = mpsc::sync_channel(1000);
        let mut console = Console::new(Pipe(sender)).expect("a thread");
        for byte in 0..200 {
            console.write_all(&[byte]).expect("room");
        }
        assert!(console.settle(Duration::from_secs(60)).expect("no error"));
        let written: Vec<u8> = receiver.try_iter().flatten().collect();
        assert_eq!(written, (0..200).collect::<Vec<u8>>());
        assert_eq!(console.cursor(), Cursor::InLine);
    }

    #[test]
    fn who_writes_without_a_reader_goes_on_once_it_is_abandoned() {
        let (sender, _receiver) = mpsc::sync_channel(0);
        let mut console = Console::new(Pipe(sender)).expect("a thread");
        let other = console.clone();
        console.write_all(b"x").expect("room");
        let writer = thread::spawn(move || {
            for _ in 0..10 * LIMIT_BYTES {
                console.write_all(b"x").expect("the reader is there");
            }
        });
        assert!(!other.settle(Duration::from_millis(10)).expect("no error"));
        other.abandon();
        writer.join().expect("no panic");
    }

    #[test]
    fn reader_that_is_gone_is_an_error() {
        let (sender, receiver) = mpsc::sync_channel(0);
        drop(receiver);
        let mut console = Console::new(Pipe(sender)).expect("a thread");
        let error = loop {
            if let Err(error) = console.write_all(b"x") {
                break error;
            }
            thread::yield_now();
        };
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
