//! What kind of program a file is, and the pieces of it that go into guest memory.

use object::LittleEndian;
use object::elf::{EM_X86_64, ET_EXEC, FileHeader64, PT_LOAD, PT_NOTE, ProgramHeader64};
use object::read::elf::{FileHeader, ProgramHeader};

use crate::guest::LoadError;
use crate::linux::Kernel;

/// Conventional memory ends here, less room for a stack.
const FLAT_LIMIT_BYTES: usize = 0x7_0000;

/// A program, taken apart but not yet in memory.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Program {
    /// Starts in 64-bit mode at `entry`.
    Elf { entry: u64, segments: Vec<Segment> },
    /// Starts in real mode at 0000:7c00.
    Flat { bytes: Vec<u8> },
    /// Starts as its boot protocol says.
    Linux(Kernel),
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
        return parse_elf(file)?.into_program();
    }
    if Kernel::is_in(file) {
        return Ok(Program::Linux(Kernel::parse(file)?));
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

/// An ELF64 for x86-64.
pub(crate) struct Elf {
    /// As the header has it: a virtual address, or a physical one.
    pub(crate) entry: u64,
    pub(crate) segments: Vec<Segment>,
    /// The entry point as a physical address, by the segment in which it is a virtual one.
    physical_entry: Option<u64>,
    /// The entry point for PVH, if a note has one.
    pvh_entry: Option<u64>,
}

impl Elf {
    fn into_program(self) -> Result<Program, LoadError> {
        if let Some(entry) = self.pvh_entry {
            return Ok(Program::Linux(Kernel::pvh(entry, self.segments)));
        }
        let entry = self.physical_entry;
        Ok(Program::Elf {
            entry: entry.ok_or(LoadError::Entry { entry: self.entry })?,
            segments: self.segments,
        })
    }
}

/// Takes an ELF apart.
pub(crate) fn parse_elf(file: &[u8]) -> Result<Elf, LoadError> {
    check_identity(file)?;
    let truncated = || LoadError::Truncated {
        size_bytes: file.len(),
    };
    let header = FileHeader64::<LittleEndian>::parse(file).map_err(|_| truncated())?;
    let machine = header.e_machine.get(LittleEndian);
    if machine != EM_X86_64 {
        return Err(LoadError::Architecture { machine });
    }
    let kind = header.e_type.get(LittleEndian);
    if kind != ET_EXEC {
        return Err(LoadError::NotExecutable { kind });
    }
    let mut elf = Elf {
        entry: header.e_entry.get(LittleEndian),
        segments: Vec::new(),
        physical_entry: None,
        pvh_entry: None,
    };
    let parts = header.program_headers(LittleEndian, file);
    for part in parts.map_err(|_| truncated())? {
        match part.p_type(LittleEndian) {
            PT_NOTE => elf.pvh_entry = elf.pvh_entry.or(pvh_entry(part, file)),
            PT_LOAD if part.p_memsz(LittleEndian) != 0 => {
                let segment = segment(part, file)?;
                let offset = elf.entry.wrapping_sub(part.p_vaddr(LittleEndian));
                if offset < segment.size_bytes {
                    elf.physical_entry = Some(segment.address.wrapping_add(offset));
                }
                elf.segments.push(segment);
            }
            _ => {}
        }
    }
    Ok(elf)
}

fn segment(part: &ProgramHeader64<LittleEndian>, file: &[u8]) -> Result<Segment, LoadError> {
    let truncated = |()| LoadError::Truncated {
        size_bytes: file.len(),
    };
    let bytes = part.data(LittleEndian, file).map_err(truncated)?;
    let size_bytes = part.p_memsz(LittleEndian);
    let address = part.p_paddr(LittleEndian);
    if bytes.len() as u64 > size_bytes {
        return Err(LoadError::Segment { address });
    }
    Ok(Segment {
        address,
        bytes: bytes.to_vec(),
        size_bytes,
    })
}

/// XEN_ELFNOTE_PHYS32_ENTRY. Notes that are no notes are none.
fn pvh_entry(part: &ProgramHeader64<LittleEndian>, file: &[u8]) -> Option<u64> {
    const PHYS32_ENTRY: u32 = 18;
    let mut notes = part.notes(LittleEndian, file).ok()??;
    while let Ok(Some(note)) = notes.next() {
        if note.name() == b"Xen" && note.n_type(LittleEndian) == PHYS32_ENTRY {
            // 4 or 8 bytes, by who wrote it.
            let entry = note.desc().first_chunk().map(|it| u32::from_le_bytes(*it));
            return entry.map(u64::from);
        }
    }
    None
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
