//! A Linux kernel as a guest: [`Kernel`], taken apart from a bzImage or an ELF with a PVH note, and what it is booted
//! with, [`Boot`].
//!
//! The 64-bit boot protocol of `Documentation/arch/x86/boot.rst`, or PVH. There is no BIOS and no EFI below it, and the
//! kernel stays at its link address: what chooses another one at random is the unpacker, which does not run.

mod acpi;
pub(crate) mod layout;
mod payload;
mod pvh;
mod zero_page;

use std::mem;

use linux_loader::loader::bootparam::setup_header;
use msrgate_core::{MsrIndex, Registers, SystemRegisters, Vcpu, VmError};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use self::layout::{ACPI, BOOT_INFO, COMMAND_LINE, COMMAND_LINE_LIMIT, HIGH};
use crate::guest::LoadError;
use crate::long_mode::{self, Selectors};
use crate::program::{self, Segment};

/// As many as have a number in an 8-bit APIC id and a name in the DSDT.
pub const MAX_CPUS: u8 = 254;

/// `setup_header` in the file, and in the zero page.
const HEADER: usize = 0x1f1;
/// Version 2.12 has `xloadflags`, and with it the 64-bit entry point; Linux 3.8.
const OLDEST_PROTOCOL: u16 = 0x20c;
const XLF_KERNEL_64: u16 = 1 << 0;
const SECTOR_BYTES: usize = 512;
/// From the start of the protected-mode kernel.
const ENTRY_64: u64 = 0x200;
/// No kernel is so large; a header can say anything.
const UNPACKED_LIMIT_BYTES: u64 = 512 << 20;
const PAGE: u64 = 0x1000;

/// What Linux is booted with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// The kernel's parameters.
    pub command_line: String,
    /// The initial RAM disk.
    pub initrd: Option<Vec<u8>>,
    /// Processors that it may start.
    pub cpus: u8,
}

impl Default for Boot {
    fn default() -> Self {
        Self {
            command_line: "console=ttyS0".to_owned(),
            initrd: None,
            cpus: 1,
        }
    }
}

/// A kernel that is not in memory yet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Kernel {
    segments: Vec<Segment>,
    start: Start,
    /// How far into memory it goes when it begins.
    end: u64,
}

/// The way in.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Start {
    Long { entry: u64, header: setup_header },
    Pvh { entry: u64 },
}

impl Kernel {
    /// Whether a file is a bzImage.
    pub(crate) fn is_in(file: &[u8]) -> bool {
        file.get(0x202..0x206) == Some(b"HdrS")
    }

    /// Takes a bzImage apart.
    pub(crate) fn parse(file: &[u8]) -> Result<Self, LoadError> {
        let truncated = || LinuxError::Truncated {
            size_bytes: file.len(),
        };
        let header = header(file).ok_or_else(truncated)?;
        if header.version < OLDEST_PROTOCOL || header.xloadflags & XLF_KERNEL_64 == 0 {
            return Err(LinuxError::Protocol {
                version: header.version,
            }
            .into());
        }
        // 0 means 4, for the sake of kernels older than these.
        let sectors = match header.setup_sects {
            0 => 4,
            count => usize::from(count),
        };
        let kernel = file.get((sectors + 1) * SECTOR_BYTES..);
        let kernel = kernel.filter(|bytes| !bytes.is_empty());
        let kernel = kernel.ok_or_else(truncated)?;
        let payload = payload(&header, kernel).ok_or_else(truncated)?;
        let limit = u64::from(header.init_size).min(UNPACKED_LIMIT_BYTES);
        let (entry, segments) = match payload::unpack(payload, limit)? {
            Some(vmlinux) => vmlinux_segments(&vmlinux)?,
            None => {
                let whole = Segment {
                    address: header.pref_address,
                    bytes: kernel.to_vec(),
                    size_bytes: kernel.len() as u64,
                };
                (header.pref_address.wrapping_add(ENTRY_64), vec![whole])
            }
        };
        let wanted = header.pref_address.saturating_add(header.init_size.into());
        Ok(Self {
            end: wanted.max(end_of(&segments)),
            start: Start::Long { entry, header },
            segments,
        })
    }

    /// An ELF whose note names `entry`.
    pub(crate) fn pvh(entry: u64, segments: Vec<Segment>) -> Self {
        Self {
            end: end_of(&segments),
            start: Start::Pvh { entry },
            segments,
        }
    }

    /// Puts it and what it is booted with where they belong, and lets go of its bytes.
    pub(crate) fn load(&mut self, memory: &GuestMemoryMmap, boot: &Boot) -> Result<(), LoadError> {
        let memory_end = memory.last_addr().0 + 1;
        if self.end > memory_end {
            return Err(LinuxError::NoRoom {
                needed_bytes: self.end,
                memory_bytes: memory_end,
            }
            .into());
        }
        let low = |segment: &&Segment| segment.address < HIGH;
        if let Some(segment) = self.segments.iter().find(low) {
            let address = segment.address;
            return Err(LinuxError::Low { address }.into());
        }
        let initrd = self.place_initrd(boot, memory_end)?;
        let command_line = self.command_line(boot)?;
        let write = |bytes: &[u8], address| {
            let done = memory.write_slice(bytes, GuestAddress(address));
            done.map_err(LoadError::Memory)
        };
        for segment in mem::take(&mut self.segments) {
            write(&segment.bytes, segment.address)?;
        }
        write(command_line.as_bytes(), COMMAND_LINE)?;
        write(&acpi::tables(boot.cpus), ACPI)?;
        if let (Some(bytes), Some((address, _))) = (&boot.initrd, initrd) {
            write(bytes, address)?;
        }
        let map = layout::memory_map(memory_end);
        match self.start {
            Start::Long { header, .. } => {
                long_mode::write_tables(memory, Selectors::LINUX).map_err(LoadError::Memory)?;
                zero_page::write(memory, header, &map, initrd)
            }
            Start::Pvh { .. } => pvh::write_start_info(memory, &map, initrd),
        }
        .map_err(LoadError::Memory)
    }

    /// The state in which it starts.
    pub(crate) fn start(&self, reset: &SystemRegisters) -> (SystemRegisters, Registers) {
        match self.start {
            Start::Long { entry, .. } => {
                let registers = Registers {
                    rsi: BOOT_INFO,
                    ..long_mode::registers(entry)
                };
                (
                    long_mode::system_registers(reset, Selectors::LINUX),
                    registers,
                )
            }
            Start::Pvh { entry } => (pvh::system_registers(reset), pvh::registers(entry)),
        }
    }

    /// As high as it may be, so that the kernel has room below.
    fn place_initrd(&self, boot: &Boot, memory_end: u64) -> Result<Option<(u64, u64)>, LinuxError> {
        let Some(initrd) = &boot.initrd else {
            return Ok(None);
        };
        let size_bytes = initrd.len() as u64;
        let limit = match self.start {
            Start::Long { header, .. } => u64::from(header.initrd_addr_max) + 1,
            Start::Pvh { .. } => u64::MAX,
        };
        let end = memory_end.min(limit);
        let address = end.checked_sub(size_bytes).map(|start| start & !(PAGE - 1));
        match address.filter(|start| *start >= self.end) {
            Some(address) => Ok(Some((address, size_bytes))),
            None => Err(LinuxError::InitrdNoRoom {
                size_bytes,
                room_bytes: end.saturating_sub(self.end),
            }),
        }
    }

    /// The command line with its zero.
    fn command_line(&self, boot: &Boot) -> Result<String, LinuxError> {
        let line = &boot.command_line;
        let own_limit = match self.start {
            Start::Long { header, .. } => {
                usize::try_from(header.cmdline_size).unwrap_or(usize::MAX)
            }
            Start::Pvh { .. } => usize::MAX,
        };
        let limit_bytes = own_limit.min(COMMAND_LINE_LIMIT - 1);
        if line.len() > limit_bytes || line.contains('\0') {
            return Err(LinuxError::CommandLine {
                size_bytes: line.len(),
                limit_bytes,
            });
        }
        Ok(format!("{line}\0"))
    }
}

/// Fast strings on, as firmware leaves them. On a processor of Intel's, Linux without them takes ERMS for absent, but not
/// FSRM, and its memmove() then runs over (seen in 6.1).
pub(crate) fn prepare(vcpu: &mut impl Vcpu) -> Result<(), VmError> {
    const MISC_ENABLE: MsrIndex = MsrIndex(0x1a0);
    const FAST_STRING: u64 = 1 << 0;
    if let Some(value) = vcpu.get_msr(MISC_ENABLE)? {
        vcpu.set_msr(MISC_ENABLE, value | FAST_STRING)?;
    }
    Ok(())
}

/// The header as far as the file has it; it says itself how long it is.
fn header(file: &[u8]) -> Option<setup_header> {
    // The target of the jump over it; boot.rst, "the real-mode kernel header".
    let end = 0x202 + usize::from(*file.get(0x201)?);
    let bytes = file.get(HEADER..end)?;
    let mut header = setup_header::default();
    let place = header.as_mut_slice();
    let length = bytes.len().min(place.len());
    place[..length].copy_from_slice(&bytes[..length]);
    Some(header)
}

fn payload<'a>(header: &setup_header, kernel: &'a [u8]) -> Option<&'a [u8]> {
    let start = usize::try_from(header.payload_offset).ok()?;
    let length = usize::try_from(header.payload_length).ok()?;
    kernel.get(start..)?.get(..length)
}

/// The ELF inside a bzImage. Its entry point is a physical address.
fn vmlinux_segments(vmlinux: &[u8]) -> Result<(u64, Vec<Segment>), LoadError> {
    let elf = program::parse_elf(vmlinux).map_err(|_| LinuxError::Payload)?;
    let is_inside =
        |segment: &Segment| elf.entry.wrapping_sub(segment.address) < segment.size_bytes;
    if !elf.segments.iter().any(is_inside) {
        return Err(LinuxError::Payload.into());
    }
    Ok((elf.entry, elf.segments))
}

/// `u64::MAX` if there is no such place.
fn end_of(segments: &[Segment]) -> u64 {
    let ends = segments
        .iter()
        .map(|it| it.address.saturating_add(it.size_bytes));
    ends.max().unwrap_or(0)
}

/// Why a Linux kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinuxError {
    /// The file ends before what its header promises.
    #[error("the bzImage is cut off: its header points behind its end at {size_bytes:#x}")]
    Truncated {
        /// The file's length.
        size_bytes: usize,
    },
    /// 32-bit, or ancient.
    #[error(
        "the bzImage has no 64-bit entry point (boot protocol {}.{:02}; x86-64 kernels since 3.8 have one)",
        .version >> 8, .version & 0xff
    )]
    Protocol {
        /// Of the boot protocol.
        version: u16,
    },
    /// What is packed in it cannot be unpacked, or is no kernel.
    #[error("the kernel packed in the bzImage is damaged")]
    Payload,
    /// More memory is needed.
    #[error(
        "the kernel needs guest memory up to {needed_bytes:#x}, and there is {memory_bytes:#x} of it"
    )]
    NoRoom {
        /// The end of the kernel.
        needed_bytes: u64,
        /// All RAM.
        memory_bytes: u64,
    },
    /// It lies on the tables.
    #[error(
        "the kernel's segment at {address:#x} lies below 1 MiB, where it finds its boot parameters"
    )]
    Low {
        /// Of the segment.
        address: u64,
    },
    /// The initial RAM disk does not fit.
    #[error(
        "the initrd ({size_bytes:#x} bytes) does not fit: guest memory has room for {room_bytes:#x} behind the kernel"
    )]
    InitrdNoRoom {
        /// Its length.
        size_bytes: u64,
        /// How long it may be.
        room_bytes: u64,
    },
    /// The command line is too long.
    #[error(
        "a command line of {size_bytes} bytes: this kernel takes {limit_bytes}, and none of them zero"
    )]
    CommandLine {
        /// Its length.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
}
