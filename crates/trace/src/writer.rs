//! [`Writer`]: appends records to a file, and goes on where the file takes no more.

use std::fmt;
use std::io::{self, Write};

use msrgate_core::Timed;

use crate::header::Header;
use crate::record::{Entry, Loss, LossCause, RECORD_BYTES};

/// What is kept before it is written: a program that is killed loses at most this many records.
const BUFFER_BYTES: usize = 1024 * RECORD_BYTES;

/// Writes a trace: the header at once, records when the buffer is full or at [`Writer::flush`].
///
/// Nothing that happens to the file stops it. Records that cannot be written are counted, the count goes into the
/// file as soon as the file takes something again, and what follows stays where a reader expects it.
pub struct Writer<W: Write> {
    out: W,
    /// Whole records, but for the first `begun` bytes: the end of one that is in the file in part.
    buffer: Vec<u8>,
    begun: usize,
    begun_is_event: bool,
    /// The number of the next record.
    number: u64,
    /// What the file does not say yet.
    losses: Vec<Loss>,
    written: Written,
}

/// What became of all that was recorded.
#[derive(Debug, Default)]
pub struct Written {
    /// Events that are in the file.
    pub events: u64,
    /// Events that their rings had no room for.
    pub lost_in_rings: u64,
    /// Events that the file did not take.
    pub lost_in_file: u64,
    /// Why it did not, the first time.
    pub error: Option<io::Error>,
}

impl<W: Write> Writer<W> {
    /// Begins a trace.
    ///
    /// # Errors
    /// The header cannot be written; or its facts are longer than
    /// [`FACTS_LIMIT_BYTES`](crate::FACTS_LIMIT_BYTES).
    pub fn new(mut out: W, header: &Header) -> io::Result<Self> {
        out.write_all(&header.encode()?)?;
        Ok(Self {
            out,
            buffer: Vec::with_capacity(BUFFER_BYTES + RECORD_BYTES),
            begun: 0,
            begun_is_event: false,
            number: 0,
            losses: Vec::new(),
            written: Written::default(),
        })
    }

    /// Takes one event.
    pub fn record(&mut self, event: &Timed) {
        self.append(Entry::Event(*event));
    }

    /// Takes note that `count` more events were lost before they came here.
    pub fn record_loss(&mut self, loss: Loss) {
        if loss.count == 0 {
            return;
        }
        let sum = match loss.cause {
            LossCause::Ring(_) => &mut self.written.lost_in_rings,
            LossCause::File => &mut self.written.lost_in_file,
        };
        *sum = sum.saturating_add(loss.count);
        self.note(loss);
    }

    /// Writes what the buffer holds. What cannot be written is lost, and counted.
    pub fn flush(&mut self) {
        let losses = std::mem::take(&mut self.losses);
        for loss in losses {
            self.push(Entry::Loss(loss));
        }
        let mut done = 0;
        while let Some(rest) = self.buffer.get(done..).filter(|rest| !rest.is_empty()) {
            match self.out.write(rest) {
                Ok(0) => return self.lose(done, io::ErrorKind::WriteZero.into()),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.lose(done, error),
            }
        }
        self.buffer.clear();
        self.begun = 0;
    }

    /// What became of everything, up to the last [`Writer::flush`].
    pub fn written(&self) -> &Written {
        &self.written
    }

    /// Writes all that is left, and says what became of everything.
    pub fn finish(mut self) -> Written {
        self.flush();
        if self.begun != 0 && self.begun_is_event {
            self.written.events -= 1;
            self.written.lost_in_file += 1;
        }
        std::mem::take(&mut self.written)
    }

    fn append(&mut self, entry: Entry) {
        if self.buffer.len() >= BUFFER_BYTES {
            self.flush();
        }
        self.push(entry);
    }

    fn push(&mut self, entry: Entry) {
        self.buffer.extend_from_slice(&entry.encode(self.number));
        self.number += 1;
        if let Entry::Event(_) = entry {
            self.written.events += 1;
        }
    }

    /// Drops what could not be written behind `done` bytes of the buffer, but for the rest of a record that is in
    /// the file in part: the next one must begin behind it.
    #[cold]
    fn lose(&mut self, done: usize, error: io::Error) {
        self.written.error.get_or_insert(error);
        let mut whole = self.begun;
        while whole < done {
            whole += RECORD_BYTES;
        }
        let lost = self.buffer.split_off(whole);
        let first_lost = self.number - (lost.len() / RECORD_BYTES) as u64;
        if done > self.begun && done < whole {
            let begun = decode(first_lost - 1, &self.buffer[whole - RECORD_BYTES..]);
            self.begun_is_event = matches!(begun, Entry::Event(_));
        }
        self.buffer.drain(..done);
        self.begun = self.buffer.len();
        self.number = first_lost;
        for (number, bytes) in (first_lost..).zip(lost.chunks_exact(RECORD_BYTES)) {
            match decode(number, bytes) {
                Entry::Loss(loss) => self.note(loss),
                Entry::Event(Timed { time_ns, .. }) => {
                    self.written.events -= 1;
                    self.record_loss(Loss {
                        time_ns,
                        cause: LossCause::File,
                        count: 1,
                    });
                }
            }
        }
    }

    /// Adds to what the file is still to be told: one sum for each cause, as of its last time.
    fn note(&mut self, loss: Loss) {
        match self.losses.iter_mut().find(|it| it.cause == loss.cause) {
            Some(sum) => {
                sum.time_ns = loss.time_ns;
                sum.count = sum.count.saturating_add(loss.count);
            }
            None => self.losses.push(loss),
        }
    }
}

/// A record of the buffer.
fn decode(number: u64, bytes: &[u8]) -> Entry {
    let bytes = bytes.first_chunk().expect("records are whole");
    Entry::decode(number, bytes).expect("the buffer holds what was encoded")
}

/// A writer that is dropped writes what it has.
impl<W: Write> Drop for Writer<W> {
    fn drop(&mut self) {
        self.flush();
    }
}

impl<W: Write> fmt::Debug for Writer<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("number", &self.number)
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}
