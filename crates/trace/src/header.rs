//! The beginning of a trace file: [`Header`], and the [`Facts`] about what was traced.

use std::io::{self, Read};

use crate::reader::ReadError;
use crate::record::RECORD_BYTES;

/// Counts up when bytes change their meaning.
pub const VERSION: u32 = 1;

/// The longest block of facts: a policy with all that it includes has room many times over.
pub const FACTS_LIMIT_BYTES: usize = 16 << 20;

pub(crate) const MAGIC: [u8; 8] = *b"MSRTRACE";
pub(crate) const HEADER_BYTES: usize = 64;

/// Where the check of a header is: behind all that it covers but the facts.
const CHECK_AT: usize = 60;

/// When a trace began, and what is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Nanoseconds since 1970 (UTC); the times of records count from here.
    pub start_ns: u64,
    /// What was traced.
    pub facts: Facts,
}

/// What was traced, by whom, and how. What is not known is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The program that wrote the trace, with its version.
    pub program: String,
    /// Its command line.
    pub command: String,
    /// The guest.
    pub guest: String,
    /// Who ran it: `kvm` or `soft`.
    pub backend: String,
    /// The host's kernel.
    pub kernel: String,
    /// Which accesses were seen.
    pub observation: Option<Observation>,
    /// The policies that were in force, in the order in which the guest could ask for them.
    pub policies: Vec<PolicySource>,
    /// What they include.
    pub includes: Vec<PolicySource>,
}

/// A policy as it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicySource {
    /// Its file, or what else it is known as.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// Which accesses a trace has, and how they were seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Observation {
    /// All: the backend told of those that it did by itself.
    Native,
    /// Those that can be deflected and forwarded with the same result.
    Filter,
    /// All that KVM sees: the kernel's tracepoint told of those that it did by itself.
    Tracepoint,
    /// Those that left the guest anyway.
    Deflected,
}

impl Observation {
    const ALL: [Self; 4] = [
        Self::Native,
        Self::Filter,
        Self::Tracepoint,
        Self::Deflected,
    ];

    /// One word for files and for people.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Filter => "filter",
            Self::Tracepoint => "tracepoint",
            Self::Deflected => "deflected",
        }
    }
}

const POLICY_KEY: &str = "policy ";
const INCLUDE_KEY: &str = "include ";

impl Facts {
    /// Those that are known, by their keys.
    fn pairs(&self) -> impl Iterator<Item = (String, &str)> {
        let observation = self.observation.map_or("", Observation::word);
        [
            ("program", self.program.as_str()),
            ("command", &self.command),
            ("guest", &self.guest),
            ("backend", &self.backend),
            ("kernel", &self.kernel),
            ("observation", observation),
        ]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| (key.to_owned(), value))
        .chain(sources(POLICY_KEY, &self.policies))
        .chain(sources(INCLUDE_KEY, &self.includes))
    }

    /// Takes one fact; a key of a later version is passed over.
    fn set(&mut self, key: &str, value: &str) {
        for (prefix, sources) in [
            (POLICY_KEY, &mut self.policies),
            (INCLUDE_KEY, &mut self.includes),
        ] {
            if let Some(name) = key.strip_prefix(prefix) {
                let (name, text) = (name.to_owned(), value.to_owned());
                return sources.push(PolicySource { name, text });
            }
        }
        let field = match key {
            "program" => &mut self.program,
            "command" => &mut self.command,
            "guest" => &mut self.guest,
            "backend" => &mut self.backend,
            "kernel" => &mut self.kernel,
            "observation" => {
                self.observation = Observation::ALL.into_iter().find(|it| it.word() == value);
                return;
            }
            _ => return,
        };
        value.clone_into(field);
    }

    fn encode(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for (key, value) in self.pairs() {
            for text in [key.as_str(), value] {
                let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
                bytes.extend(length.to_le_bytes());
                bytes.extend(text.as_bytes());
            }
            if bytes.len() > FACTS_LIMIT_BYTES {
                let text = format!("the trace's facts are over {FACTS_LIMIT_BYTES} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
        }
        Ok(bytes)
    }

    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let mut facts = Self::default();
        while !bytes.is_empty() {
            let key = take_text(&mut bytes)?;
            let value = take_text(&mut bytes)?;
            facts.set(key, value);
        }
        Some(facts)
    }
}

fn sources<'a>(
    key: &'a str,
    sources: &'a [PolicySource],
) -> impl Iterator<Item = (String, &'a str)> {
    sources
        .iter()
        .map(move |source| (format!("{key}{}", source.name), source.text.as_str()))
}

/// A text behind its length.
fn take_text<'a>(bytes: &mut &'a [u8]) -> Option<&'a str> {
    let (length, rest) = bytes.split_first_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let (text, rest) = rest.split_at_checked(length)?;
    *bytes = rest;
    str::from_utf8(text).ok()
}

impl Header {
    /// All bytes before the first record.
    pub(crate) fn encode(&self) -> io::Result<Vec<u8>> {
        let facts = self.facts.encode()?;
        let length = u32::try_from(facts.len()).expect("the facts are within their limit");
        let record_bytes = u32::try_from(RECORD_BYTES).expect("64");
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(record_bytes.to_le_bytes());
        bytes.extend(self.start_ns.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.resize(CHECK_AT, 0);
        let check = check(&bytes, &facts);
        bytes.extend(check.to_le_bytes());
        bytes.extend(facts);
        bytes.resize(bytes.len().next_multiple_of(RECORD_BYTES), 0);
        Ok(bytes)
    }

    /// Reads all bytes before the first record.
    pub(crate) fn read(input: &mut impl Read) -> Result<Self, ReadError> {
        let start = read_up_to(input, HEADER_BYTES)?;
        let Some(fixed) = start.first_chunk::<HEADER_BYTES>() else {
            return Err(match &start[..] {
                [] => ReadError::Empty,
                cut if MAGIC.starts_with(&cut[..cut.len().min(MAGIC.len())]) => ReadError::Cut,
                _ => ReadError::NotATrace,
            });
        };
        if !fixed.starts_with(&MAGIC) {
            return Err(ReadError::NotATrace);
        }
        let half = |at: usize| {
            let bytes = fixed[at..].first_chunk().expect("inside of the header");
            u32::from_le_bytes(*bytes)
        };
        let (version, record_bytes) = (half(8), half(12));
        if version != VERSION {
            return Err(ReadError::Version { version });
        }
        if usize::try_from(record_bytes) != Ok(RECORD_BYTES) {
            return Err(ReadError::RecordSize { record_bytes });
        }
        let facts_bytes = usize::try_from(half(24)).unwrap_or(usize::MAX);
        if facts_bytes > FACTS_LIMIT_BYTES {
            return Err(ReadError::FactsTooLong { facts_bytes });
        }
        let padded_bytes = facts_bytes.next_multiple_of(RECORD_BYTES);
        let padded = read_up_to(input, padded_bytes)?;
        if padded.len() < padded_bytes {
            return Err(ReadError::Cut);
        }
        let facts = &padded[..facts_bytes];
        if half(CHECK_AT) != check(&fixed[..CHECK_AT], facts) {
            return Err(ReadError::HeaderDamaged);
        }
        Ok(Self {
            start_ns: u64::from(half(16)) | u64::from(half(20)) << 32,
            facts: Facts::decode(facts).ok_or(ReadError::HeaderDamaged)?,
        })
    }
}

fn check(fixed: &[u8], facts: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(fixed);
    hasher.update(facts);
    hasher.finalize()
}

/// At most `length` bytes: fewer where the input ends. Memory grows with what there is, not with what was promised.
fn read_up_to(input: &mut impl Read, length: usize) -> Result<Vec<u8>, ReadError> {
    let mut bytes = Vec::new();
    input.take(length as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fact_of_a_later_version_is_passed_over() {
        let mut bytes = Vec::new();
        for text in ["colour", "blue", "guest", "vmlinux"] {
            bytes.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
            bytes.extend(text.as_bytes());
        }
        let facts = Facts::decode(&bytes).unwrap();
        assert_eq!(facts.guest, "vmlinux");
        assert_eq!(Facts::decode(&bytes[..bytes.len() - 1]), None);
    }

    #[test]
    fn facts_beyond_the_limit_are_refused_before_anything_is_written() {
        let facts = Facts {
            command: "x".repeat(FACTS_LIMIT_BYTES),
            ..Facts::default()
        };
        let error = facts.encode().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
