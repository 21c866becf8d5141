//! The beginning of a channel's file, which never changes: [`Description`], and [`ChannelError`] where it is none.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::process::{Resource, getrlimit};

use super::layout::{self, FACTS_AT, RINGS, ring};
use crate::header::FACTS_LIMIT_BYTES;
use crate::reader::ReadError;

/// The beginning of the file: what never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Description {
    pub(super) rings: usize,
    pub(super) monotonic_ns: u64,
    pub(super) facts_bytes: usize,
    /// In which namespace processes have the pids that the collector knows.
    pub(super) pid_namespace: u64,
    pub(super) pid: u32,
}

impl Description {
    const BYTES: usize = 48;

    fn encode(&self) -> Vec<u8> {
        let mut bytes = layout::MAGIC.to_vec();
        let rings = u32::try_from(self.rings).expect("1024 or none");
        bytes.extend(layout::VERSION.to_le_bytes());
        bytes.extend(rings.to_le_bytes());
        bytes.extend(self.monotonic_ns.to_le_bytes());
        bytes.extend((self.facts_bytes as u64).to_le_bytes());
        bytes.extend(self.pid_namespace.to_le_bytes());
        bytes.extend(u64::from(self.pid).to_le_bytes());
        bytes
    }

    pub(super) fn read(file: &File) -> Result<Self, ChannelError> {
        let mut bytes = [0; Self::BYTES];
        let read = file.read_exact_at(&mut bytes, 0);
        read.map_err(|_| ChannelError::NotAChannel)?;
        let half = |at: usize| {
            let half = bytes[at..].first_chunk().expect("inside of the array");
            u32::from_le_bytes(*half)
        };
        let word = |at: usize| u64::from(half(at)) | u64::from(half(at + 4)) << 32;
        let version = half(8);
        if !bytes.starts_with(&layout::MAGIC) {
            return Err(ChannelError::NotAChannel);
        }
        if version != layout::VERSION {
            return Err(ChannelError::Version { version });
        }
        let limited = |number: u64, limit: usize| {
            let number = usize::try_from(number).ok();
            number
                .filter(|number| *number <= limit)
                .ok_or(ChannelError::Size)
        };
        Ok(Self {
            rings: limited(half(12).into(), RINGS)?,
            monotonic_ns: word(16),
            facts_bytes: limited(word(24), FACTS_LIMIT_BYTES + layout::PAGE)?,
            pid_namespace: word(32),
            pid: half(40),
        })
    }

    pub(super) fn file_bytes(&self) -> u64 {
        let rings_at = layout::rings_at(self.facts_bytes);
        (rings_at + self.rings * ring::BYTES) as u64
    }
}

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// It cannot be made.
    #[error("cannot make the channel between the VMM and its collector")]
    Create(#[source] io::Error),
    /// Not a file that only a channel is.
    #[error("not a channel: it is no sealed file in memory that begins with MSRRINGS")]
    NotAChannel,
    /// Another version made it.
    #[error(
        "a channel of version {version}: this library speaks version {}",
        layout::VERSION
    )]
    Version {
        /// Its version.
        version: u32,
    },
    /// Its size is not what its parts take.
    #[error("the channel is not as long as its parts")]
    Size,
    /// Its facts are damaged.
    #[error("the channel's facts are damaged")]
    Facts(#[from] ReadError),
    /// It cannot be read or mapped.
    #[error("cannot map the channel")]
    Map(#[from] io::Error),
}

/// A file in memory whose length nobody can change: nothing that is mapped of it can go away.
pub(super) fn sealed(description: &Description, header: &[u8]) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create("msrgate", flags | MemfdFlags::NOEXEC_SEAL)
        // Linux before 6.3 does not know the flag.
        .or_else(|_| rustix::fs::memfd_create("msrgate", flags))?;
    let file = File::from(file);
    let bytes = description.file_bytes();
    let limit = getrlimit(Resource::Fsize).current;
    if limit.is_some_and(|limit| limit < bytes) {
        // To pass it is to get SIGXFSZ.
        let text = format!("it takes {bytes:#x} bytes, and the limit of file sizes is lower");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    file.set_len(bytes)?;
    file.write_all_at(&description.encode(), 0)?;
    file.write_all_at(header, FACTS_AT as u64)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file)
}
