//! A record of the file: 64 bytes, the number of the record and a check of both.

use msrgate_core::{Event, Timed, VcpuId};

/// The length of every record.
pub const RECORD_BYTES: usize = 64;

const CHECK_AT: usize = 60;
const KIND_AT: usize = 56;
const EVENT: u32 = 1;
const LOSS: u32 = 2;
const NO_VCPU: u64 = u64::MAX;

/// Events that are not in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// When it was noticed, in nanoseconds since the trace began.
    pub time_ns: u64,
    /// Where they were lost.
    pub cause: LossCause,
    /// How many, since the record before of this cause.
    pub count: u64,
}

/// Where events were lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossCause {
    /// The ring of this vCPU was full: they came faster than they could be written.
    Ring(VcpuId),
    /// The file could not be written.
    File,
}

/// What a record can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Event(Timed),
    Loss(Loss),
}

/// Why 64 bytes are no entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoEntry {
    /// They are not what was written there.
    Damaged,
    /// They are of a kind that this version does not know.
    Unknown,
}

impl Entry {
    /// The bytes of record `number`.
    pub(crate) fn encode(&self, number: u64) -> [u8; RECORD_BYTES] {
        let (kind, time_ns, words) = match self {
            Self::Event(Timed { time_ns, event }) => (EVENT, *time_ns, event.to_words()),
            Self::Loss(loss) => (LOSS, loss.time_ns, loss_words(loss)),
        };
        let mut bytes = [0; RECORD_BYTES];
        bytes[..8].copy_from_slice(&time_ns.to_le_bytes());
        for (place, word) in bytes[8..].chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes[KIND_AT..CHECK_AT].copy_from_slice(&kind.to_le_bytes());
        let check = check(number, &bytes);
        bytes[CHECK_AT..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// What the bytes of record `number` say.
    pub(crate) fn decode(number: u64, bytes: &[u8; RECORD_BYTES]) -> Result<Self, NoEntry> {
        let half = |at: usize| {
            let half = bytes[at..].first_chunk().expect("inside of the record");
            u32::from_le_bytes(*half)
        };
        let word = |at: usize| u64::from(half(at)) | u64::from(half(at + 4)) << 32;
        if half(CHECK_AT) != check(number, bytes) {
            return Err(NoEntry::Damaged);
        }
        let time_ns = word(0);
        let words = [word(8), word(16), word(24), word(32)];
        match half(KIND_AT) {
            EVENT => Event::from_words(words).map(|event| Self::Event(Timed { time_ns, event })),
            LOSS => loss_of(time_ns, words).map(Self::Loss),
            _ => None,
        }
        .ok_or(NoEntry::Unknown)
    }
}

/// CRC-32 of the record's number and of the record: one that was moved, or is left from another file, shows too.
fn check(number: u64, bytes: &[u8; RECORD_BYTES]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&number.to_le_bytes());
    hasher.update(&bytes[..CHECK_AT]);
    hasher.finalize()
}

fn loss_words(loss: &Loss) -> [u64; 4] {
    let vcpu = match loss.cause {
        LossCause::Ring(vcpu) => u64::from(vcpu.0),
        LossCause::File => NO_VCPU,
    };
    [loss.count, vcpu, 0, 0]
}

fn loss_of(time_ns: u64, [count, vcpu, ..]: [u64; 4]) -> Option<Loss> {
    let cause = match vcpu {
        NO_VCPU => LossCause::File,
        _ => LossCause::Ring(VcpuId(vcpu.try_into().ok()?)),
    };
    Some(Loss {
        time_ns,
        cause,
        count,
    })
}
