//! [`Reader`]: the records of a trace, one after another, whatever state the file is in.

use std::fmt;
use std::io::{self, BufReader, Read};

use msrgate_core::Timed;

use crate::header::{FACTS_LIMIT_BYTES, Header, VERSION};
use crate::record::{Entry, LossCause, NoEntry, RECORD_BYTES};

/// Reads a trace: an iterator of its events. It holds one block of the file at a time.
///
/// Records that are damaged are passed over and counted; [`Reader::summary`] says so at the end.
pub struct Reader<R> {
    input: BufReader<R>,
    header: Header,
    /// The number of the next record.
    number: u64,
    summary: Summary,
    is_at_end: bool,
}

/// What a trace has, as far as it is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Events that were read.
    pub events: u64,
    /// Events that the writer says it lost because they came too fast.
    pub lost_in_rings: u64,
    /// Events that the writer says it could not write.
    pub lost_in_file: u64,
    /// Records that are not what was written there.
    pub damaged: u64,
    /// Records of a kind that this version does not know.
    pub unknown: u64,
    /// The file ends inside a record, or in damaged ones: its writer did not end by itself, or writes still.
    pub is_torn: bool,
}

impl Summary {
    /// Events that were lost before they were in the file.
    #[must_use]
    pub const fn lost(&self) -> u64 {
        self.lost_in_rings.saturating_add(self.lost_in_file)
    }
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// It is not the header of a trace, or not of one that this version reads.
    pub fn new(input: R) -> Result<Self, ReadError> {
        let mut input = BufReader::with_capacity(1024 * RECORD_BYTES, input);
        Ok(Self {
            header: Header::read(&mut input)?,
            input,
            number: 0,
            summary: Summary::default(),
            is_at_end: false,
        })
    }

    /// What was traced.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What there is, so far; all of it once the iterator has ended.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// The next 64 bytes; `None` at the end.
    fn block(&mut self) -> io::Result<Option<[u8; RECORD_BYTES]>> {
        let mut block = [0; RECORD_BYTES];
        let mut length = 0;
        while length < RECORD_BYTES {
            match self.input.read(&mut block[length..]) {
                Ok(0) => {
                    self.summary.is_torn |= length != 0;
                    return Ok(None);
                }
                Ok(count) => length += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Some(block))
    }

    /// The event in a block, if it is one.
    fn take(&mut self, block: &[u8; RECORD_BYTES]) -> Option<Timed> {
        let entry = Entry::decode(self.number, block);
        self.number += 1;
        self.summary.is_torn = entry == Err(NoEntry::Damaged);
        match entry {
            Ok(Entry::Event(event)) => {
                self.summary.events += 1;
                return Some(event);
            }
            Ok(Entry::Loss(loss)) => {
                let sum = match loss.cause {
                    LossCause::Ring(_) => &mut self.summary.lost_in_rings,
                    LossCause::File => &mut self.summary.lost_in_file,
                };
                *sum = sum.saturating_add(loss.count);
            }
            Err(NoEntry::Damaged) => self.summary.damaged += 1,
            Err(NoEntry::Unknown) => self.summary.unknown += 1,
        }
        None
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Timed, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.is_at_end {
            match self.block() {
                Ok(Some(block)) => {
                    if let Some(event) = self.take(&block) {
                        return Some(Ok(event));
                    }
                }
                Ok(None) => self.is_at_end = true,
                Err(error) => {
                    self.is_at_end = true;
                    return Some(Err(error.into()));
                }
            }
        }
        None
    }
}

impl<R> fmt::Debug for Reader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("number", &self.number)
            .field("summary", &self.summary)
            .finish_non_exhaustive()
    }
}

/// Why there is no trace to read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// No bytes.
    #[error("the file is empty: a trace begins with a header")]
    Empty,
    /// It begins with something else.
    #[error("not a trace: it does not begin with MSRTRACE")]
    NotATrace,
    /// It ends inside its header.
    #[error("the trace ends inside its header: nothing was recorded")]
    Cut,
    /// A version that this program does not know.
    #[error("a trace of version {version}: this program reads version {VERSION}")]
    Version {
        /// Its version.
        version: u32,
    },
    /// Records of another size, which no version has.
    #[error("a trace with records of {record_bytes} bytes: they must have {RECORD_BYTES}")]
    RecordSize {
        /// Their size.
        record_bytes: u32,
    },
    /// The header promises more than a header may have.
    #[error("{facts_bytes:#x} bytes of facts in the header: at most {FACTS_LIMIT_BYTES:#x} may be")]
    FactsTooLong {
        /// What it promises.
        facts_bytes: usize,
    },
    /// Its check fails, or its facts cannot be taken apart.
    #[error("the trace's header is damaged: its bytes are not what was written")]
    HeaderDamaged,
    /// The file cannot be read.
    #[error("cannot read the trace")]
    Io(#[from] io::Error),
}
