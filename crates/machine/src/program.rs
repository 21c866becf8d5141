//! What kind of program a file is, and the pieces of it that go into guest memory.

use object::LittleEndian;
use object::elf::{EM_X86_64, ET_EXEC, FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};

use crate::guest::LoadError;

/// Conventional memory ends here, less room for a stack.
const FLAT_LIMIT_BYTES: usize = 0x7_0000;

/// A program, taken apart but not yet in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// Starts in 64-bit mode at `entry`.
    Elf { entry: u64, segments: Vec<Segment> },
    /// Starts in real mode at 0000:7c00.
    Flat { bytes: Vec<u8> },
}

/// Bytes, and zeros up to `size_bytes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) address: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) size_bytes: u64,
}

/// Takes a file apart.
pub(crate) fn parse(file: &[u8]) -> Result<Program, LoadError> {
    if file.is_empty() {
        return Err(LoadError::Empty);
    }
    if file.starts_with(b"\x7fELF") {
        return parse_elf(file);
    }
    if file.get(0x202..0x206) == Some(b"HdrS") {
        return Err(LoadError::LinuxKernel);
    }
    if file
        .iter()
        .all(|&byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace())
    {
        return Err(LoadError::Text);
    }
    if file.len() > FLAT_LIMIT_BYTES {
        return Err(LoadError::FlatTooLong {
            size_bytes: file.len(),
            limit_bytes: FLAT_LIMIT_BYTES,
        });
    }
    Ok(Program::Flat {
        bytes: file.to_vec(),
    })
}

fn parse_elf(file: &[u8]) -> Result<Program, LoadError> {
    check_identity(file)?;
    let truncated = |_| LoadError::Truncated {
        size_bytes: file.len(),
    };
    let header = FileHeader64::<LittleEndian>::parse(file).map_err(truncated)?;
    let machine = header.e_machine.get(LittleEndian);
    if machine != EM_X86_64 {
        return Err(LoadError::Architecture { machine });
    }
    let kind = header.e_type.get(LittleEndian);
    if kind != ET_EXEC {
        return Err(LoadError::NotExecutable { kind });
    }
    let mut segments = Vec::new();
    let mut entry = None;
    let start = header.e_entry.get(LittleEndian);
    for part in header
        .program_headers(LittleEndian, file)
        .map_err(truncated)?
    {
        if part.p_type(LittleEndian) != PT_LOAD || part.p_memsz(LittleEndian) == 0 {
            continue;
        }
        let bytes = part
            .data(LittleEndian, file)
            .map_err(|()| LoadError::Truncated {
                size_bytes: file.len(),
            })?;
        let size_bytes = part.p_memsz(LittleEndian);
        let address = part.p_paddr(LittleEndian);
        if bytes.len() as u64 > size_bytes {
            return Err(LoadError::Segment { address });
        }
        let offset = start.wrapping_sub(part.p_vaddr(LittleEndian));
        if offset < size_bytes {
            entry = Some(address.wrapping_add(offset));
        }
        segments.push(Segment {
            address,
            bytes: bytes.to_vec(),
            size_bytes,
        });
    }
    Ok(Program::Elf {
        entry: entry.ok_or(LoadError::Entry { entry: start })?,
        segments,
    })
}

/// The bytes before the part whose layout depends on them.
fn check_identity(file: &[u8]) -> Result<(), LoadError> {
    match (file.get(4), file.get(5)) {
        (Some(2), Some(1)) => Ok(()),
        (Some(1), Some(_)) => Err(LoadError::Class),
        (Some(2), Some(2)) => Err(LoadError::BigEndian),
        _ => Err(LoadError::Truncated {
            size_bytes: file.len(),
        }),
    }
}
