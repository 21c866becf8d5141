//! A guest in memory, and how it starts: [`Guest`], [`LoadError`].

use std::mem;

use msrgate_core::{Vcpu, VmError};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap};

use crate::linux::{self, Boot, LinuxError};
use crate::long_mode::{self, Selectors};
use crate::program::{self, Program};
use crate::real_mode::{self, FLAT_BASE};

/// RAM ends below the window where a PC has its devices.
const MEMORY_LIMIT_BYTES: u64 = 3 << 30;
const MEMORY_LEAST_BYTES: u64 = 2 << 20;

/// RAM for a guest, all zeros, from address 0.
///
/// # Errors
/// Less than 2 MiB, more than 3 GiB, not whole pages, or the host has not so much.
pub fn guest_memory(size_bytes: u64) -> Result<GuestMemoryMmap, MemoryError> {
    if !(MEMORY_LEAST_BYTES..=MEMORY_LIMIT_BYTES).contains(&size_bytes)
        || !size_bytes.is_multiple_of(4096)
    {
        return Err(MemoryError::Size { size_bytes });
    }
    let length = usize::try_from(size_bytes).map_err(|_| MemoryError::Size { size_bytes })?;
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), length)]).map_err(MemoryError::Map)
}

/// Why there is no guest memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// Too little, too much, or not whole pages.
    #[error("{size_bytes:#x} bytes of guest memory: it must be whole pages, 2 MiB to 3 GiB")]
    Size {
        /// What was asked for.
        size_bytes: u64,
    },
    /// The host refused.
    #[error("cannot map guest memory")]
    Map(#[source] vm_memory::mmap::FromRangesError),
}

/// A program that can be put into guest memory and started.
#[derive(Clone, Debug)]
pub struct Guest {
    program: Program,
    /// Only Linux looks at it.
    boot: Boot,
}

impl Guest {
    /// Recognises a file: a Linux kernel, ELF64 for x86-64, or else a flat binary for real mode.
    ///
    /// # Errors
    /// What is wrong with it, or why it cannot be booted here.
    pub fn parse(file: &[u8]) -> Result<Self, LoadError> {
        Ok(Self::new(program::parse(file)?))
    }

    /// A program that has been taken apart already.
    pub(crate) fn new(program: Program) -> Self {
        let boot = Boot::default();
        Self { program, boot }
    }

    /// Whether it is a kernel, which needs interrupt controllers and takes a [`Boot`].
    #[must_use]
    pub fn is_linux(&self) -> bool {
        matches!(self.program, Program::Linux(_))
    }

    /// Boots a kernel with this instead of nothing; [`MAX_CPUS`](crate::MAX_CPUS) are the most.
    #[must_use]
    pub fn with_boot(self, boot: Boot) -> Self {
        Self { boot, ..self }
    }

    /// Puts the guest where it belongs. Its bytes are only there then.
    ///
    /// # Errors
    /// It does not fit.
    pub fn load(self, memory: &GuestMemoryMmap) -> Result<Loaded, LoadError> {
        let mut program = self.program;
        match &mut program {
            Program::Elf { segments, .. } => {
                let written = long_mode::write_tables(memory, Selectors::ELF);
                written.map_err(LoadError::Memory)?;
                for segment in mem::take(segments) {
                    load_segment(&segment, memory)?;
                }
            }
            Program::Flat { bytes } => {
                real_mode::write_vectors(memory).map_err(LoadError::Memory)?;
                memory
                    .write_slice(&mem::take(bytes), GuestAddress(FLAT_BASE))
                    .map_err(LoadError::Memory)?;
            }
            Program::Linux(kernel) => kernel.load(memory, &self.boot)?,
        }
        Ok(Loaded { program })
    }
}

/// A guest that is in guest memory.
#[derive(Debug)]
pub struct Loaded {
    /// Without its bytes.
    program: Program,
}

impl Loaded {
    /// As [`Guest::is_linux`].
    #[must_use]
    pub fn is_linux(&self) -> bool {
        matches!(self.program, Program::Linux(_))
    }

    /// Does to each vCPU what the guest expects of firmware.
    ///
    /// # Errors
    /// The backend refuses it.
    pub(crate) fn prepare(&self, vcpu: &mut impl Vcpu) -> Result<(), VmError> {
        match &self.program {
            Program::Linux(_) => linux::prepare(vcpu),
            Program::Elf { .. } | Program::Flat { .. } => Ok(()),
        }
    }

    /// Gives a vCPU the state in which the guest starts.
    ///
    /// # Errors
    /// The backend refuses it.
    pub fn start(&self, vcpu: &mut impl Vcpu) -> Result<(), VmError> {
        let reset = vcpu.system_registers()?;
        let (system, registers) = match &self.program {
            Program::Elf { entry, .. } => (
                long_mode::system_registers(&reset, Selectors::ELF),
                long_mode::registers(*entry),
            ),
            Program::Flat { .. } => (real_mode::system_registers(&reset), real_mode::registers()),
            Program::Linux(kernel) => kernel.start(&reset),
        };
        vcpu.set_system_registers(&system)?;
        vcpu.set_registers(&registers)
    }

    /// RIP behind the HLT that every interrupt vector leads to, for a guest that starts with vectors.
    pub(crate) fn vectors_lead_to(&self) -> Option<u64> {
        match self.program {
            Program::Elf { .. } | Program::Linux(_) => None,
            Program::Flat { .. } => Some(real_mode::STUB_END),
        }
    }
}

fn load_segment(segment: &program::Segment, memory: &GuestMemoryMmap) -> Result<(), LoadError> {
    let address = segment.address;
    let end = address.checked_add(segment.size_bytes);
    let limit = memory.last_addr().0 + 1;
    match end {
        Some(end) if end <= limit => {
            if address < long_mode::TABLES.end && end > long_mode::TABLES.start {
                return Err(LoadError::OnTables { address, end });
            }
        }
        _ => {
            return Err(LoadError::NoRoom {
                address,
                size_bytes: segment.size_bytes,
                memory_bytes: limit,
            });
        }
    }
    memory
        .write_slice(&segment.bytes, GuestAddress(address))
        .map_err(LoadError::Memory)
}

/// Why a file cannot be booted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// No bytes.
    #[error("the file is empty")]
    Empty,
    /// A Linux kernel that cannot be booted, or not so.
    #[error(transparent)]
    Linux(#[from] LinuxError),
    /// Nothing but readable characters.
    #[error(
        "a text, not a program: a guest is a Linux kernel, an ELF64 for x86-64 or a flat binary"
    )]
    Text,
    /// Too long for conventional memory.
    #[error("a flat binary of {size_bytes} bytes: at most {limit_bytes} fit below 640 KiB")]
    FlatTooLong {
        /// Its length.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// 32-bit.
    #[error("a 32-bit ELF: it must be ELF64 for x86-64")]
    Class,
    /// Big-endian.
    #[error("a big-endian ELF: it must be ELF64 for x86-64")]
    BigEndian,
    /// For another processor.
    #[error("an ELF for another processor (e_machine {machine:#x}): it must be x86-64 (0x3e)")]
    Architecture {
        /// `e_machine`.
        machine: u16,
    },
    /// A shared object, a core file, an object file.
    #[error(
        "an ELF of type {kind:#x}: it must be an executable with fixed addresses (0x2), linked with -static -no-pie"
    )]
    NotExecutable {
        /// `e_type`.
        kind: u16,
    },
    /// The file ends before what its headers promise.
    #[error("the ELF is cut off: its headers point behind its end at {size_bytes:#x}")]
    Truncated {
        /// The file's length.
        size_bytes: usize,
    },
    /// More bytes in the file than in memory.
    #[error("the segment at {address:#x} has more bytes in the file than in memory")]
    Segment {
        /// Its address.
        address: u64,
    },
    /// The entry point is in no segment.
    #[error("the entry point {entry:#x} is in no loaded segment")]
    Entry {
        /// `e_entry`.
        entry: u64,
    },
    /// A segment does not fit into RAM.
    #[error(
        "the segment at {address:#x} ({size_bytes:#x} bytes) lies outside of {memory_bytes:#x} bytes of guest memory"
    )]
    NoRoom {
        /// Its address.
        address: u64,
        /// Its length.
        size_bytes: u64,
        /// All RAM.
        memory_bytes: u64,
    },
    /// A segment lies on what the loader itself needs.
    #[error(
        "the segment {address:#x}..{end:#x} lies on the page tables, which are at 0x8000..0x10000"
    )]
    OnTables {
        /// Its address.
        address: u64,
        /// Its end.
        end: u64,
    },
    /// Guest memory cannot be written.
    #[error("cannot write guest memory")]
    Memory(#[source] GuestMemoryError),
}
