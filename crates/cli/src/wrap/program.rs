//! Will the dynamic loader preload a library into this program? [`find`] says so before it is run.
//!
//! The loader ignores `LD_PRELOAD` silently; a program that then opens the real /dev/kvm, or none, would be a
//! riddle.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::{env, fmt, io};

/// A program into which a library can be preloaded.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    /// It is of Go, which makes system calls without libc: the library sees only what other code in it does.
    pub(super) is_go: bool,
}

/// Where `name` is, if a library can be preloaded into it.
///
/// # Errors
/// There is no such program, or the loader would ignore `LD_PRELOAD`.
pub(super) fn find(name: &OsStr) -> Result<Program, ProgramError> {
    let path = locate(name).ok_or_else(|| ProgramError::Missing { name: name.into() })?;
    let Elf { is_go, .. } = check(&path, Scripts::Follow)?;
    Ok(Program { path, is_go })
}

/// Why a program cannot be wrapped.
#[derive(Debug)]
#[non_exhaustive]
pub(super) enum ProgramError {
    /// Not a file that can be executed, nor a name in `PATH`.
    Missing { name: PathBuf },
    /// It cannot be read.
    Unreadable { path: PathBuf, error: io::Error },
    /// It names no dynamic loader.
    Static { path: PathBuf },
    /// It runs with another user's or group's rights.
    Privileged { path: PathBuf },
    /// It gains capabilities when it is run.
    Capable { path: PathBuf },
    /// Not an x86-64 executable.
    Foreign { path: PathBuf },
}

impl fmt::Display for ProgramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { name } => write!(f, "{}: no such program", name.display()),
            Self::Unreadable { path, .. } => write!(f, "cannot read {}", path.display()),
            Self::Static { path } => write!(
                f,
                "{} is statically linked: no library can be loaded into it",
                path.display()
            ),
            Self::Privileged { path } => write!(
                f,
                "{} is set-user-ID or set-group-ID: the loader ignores LD_PRELOAD for it",
                path.display()
            ),
            Self::Capable { path } => write!(
                f,
                "{} has file capabilities: the loader ignores LD_PRELOAD for it; wrap a copy without them \
                 (`setcap -r`), or run it as root",
                path.display()
            ),
            Self::Foreign { path } => {
                write!(f, "{} is not an x86-64 Linux program", path.display())
            }
        }
    }
}

impl std::error::Error for ProgramError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreadable { error, .. } => Some(error),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scripts {
    Follow,
    /// A script's interpreter is no script (one level is all that matters).
    Refuse,
}

/// As a shell finds it.
fn locate(name: &OsStr) -> Option<PathBuf> {
    let is_program = |path: &Path| {
        fs::metadata(path)
            .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    if name.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(name)).filter(|path| is_program(path));
    }
    env::split_paths(&env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(|path| is_program(path))
}

fn check(path: &Path, scripts: Scripts) -> Result<Elf, ProgramError> {
    let unreadable = |error| ProgramError::Unreadable {
        path: path.into(),
        error,
    };
    let mut file = File::open(path).map_err(unreadable)?;
    if gains_rights(&file.metadata().map_err(unreadable)?) {
        return Err(ProgramError::Privileged { path: path.into() });
    }
    if gains_capabilities(&file) {
        return Err(ProgramError::Capable { path: path.into() });
    }
    let mut head = Vec::new();
    Read::by_ref(&mut file)
        .take(HEAD_BYTES)
        .read_to_end(&mut head)
        .map_err(unreadable)?;
    if scripts == Scripts::Follow
        && let Some(interpreter) = interpreter_of(&head)
    {
        return check(interpreter, Scripts::Refuse);
    }
    match elf(&head) {
        Some(elf) if elf.has_loader => Ok(elf),
        Some(_) => Err(ProgramError::Static { path: path.into() }),
        None => Err(ProgramError::Foreign { path: path.into() }),
    }
}

/// Program headers follow the ELF header in what linkers make; this is plenty.
const HEAD_BYTES: u64 = 0x4000;

/// Whether running it would change the user or the group: what makes the loader careful (`AT_SECURE`).
fn gains_rights(file: &Metadata) -> bool {
    const SET_USER_ID: u32 = 0o4000;
    const SET_GROUP_ID: u32 = 0o2000;
    let (user, group) = own_ids();
    (file.mode() & SET_USER_ID != 0 && file.uid() != user)
        || (file.mode() & SET_GROUP_ID != 0 && file.gid() != group)
}

/// Whether running it would bring capabilities, which makes the loader careful too, but not for root.
fn gains_capabilities(file: &File) -> bool {
    let is_root = own_ids().0 == 0;
    !is_root && rustix::fs::fgetxattr(file, "security.capability", &mut [0u8; 64]).is_ok()
}

/// The owner of one's own folder in /proc is the effective user and group.
fn own_ids() -> (u32, u32) {
    fs::metadata("/proc/self").map_or((0, 0), |own| (own.uid(), own.gid()))
}

/// The program behind a script's `#!`.
fn interpreter_of(head: &[u8]) -> Option<&Path> {
    let line = head
        .strip_prefix(b"#!")?
        .split(|byte| *byte == b'\n')
        .next()?;
    let word = line
        .split(|byte| byte.is_ascii_whitespace())
        .find(|word| !word.is_empty())?;
    Some(Path::new(OsStr::from_bytes(word)))
}

/// What matters of an executable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Elf {
    /// It asks for a dynamic loader.
    has_loader: bool,
    /// It has the note that Go's linker leaves.
    is_go: bool,
}

/// An x86-64 ELF executable; `None` if it is no such file.
fn elf(head: &[u8]) -> Option<Elf> {
    const MAGIC_64_LITTLE: &[u8] = b"\x7fELF\x02\x01";
    const X86_64: u16 = 62;
    const INTERPRETER: u32 = 3;
    const NOTES: u32 = 4;
    if !head.starts_with(MAGIC_64_LITTLE) || half(head, 18)? != X86_64 {
        return None;
    }
    let table = usize::try_from(long(head, 32)?).ok()?;
    let entry_len = usize::from(half(head, 54)?);
    let count = usize::from(half(head, 56)?);
    let mut elf = Elf::default();
    for number in 0..count {
        let entry = table.checked_add(number * entry_len)?;
        match word(head, entry)? {
            INTERPRETER => elf.has_loader = true,
            NOTES => elf.is_go |= has_go_note(head, entry).unwrap_or(false),
            _ => {}
        }
    }
    Some(elf)
}

/// Whether the notes of a program header, as far as they are in `head`, are Go's: a name of four bytes, type 4.
fn has_go_note(head: &[u8], entry: usize) -> Option<bool> {
    let start = usize::try_from(long(head, entry.checked_add(8)?)?).ok()?;
    let length = usize::try_from(long(head, entry.checked_add(32)?)?).ok()?;
    let notes = head.get(start..)?;
    let notes = &notes[..notes.len().min(length)];
    let mut notes = notes.windows(16).step_by(4);
    Some(notes.any(|note| note.starts_with(&[4, 0, 0, 0]) && note.ends_with(b"\x04\0\0\0Go\0\0")))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    field(bytes, at).map(u16::from_le_bytes)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    field(bytes, at).map(u32::from_le_bytes)
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    field(bytes, at).map(u64::from_le_bytes)
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_program_has_a_loader() {
        let path = env::current_exe().unwrap();
        assert!(find(path.as_os_str()).is_ok());
    }

    #[test]
    fn missing_program_is_named() {
        let error = find(OsStr::new("no-such-vmm")).unwrap_err();
        assert_eq!(error.to_string(), "no-such-vmm: no such program");
    }

    #[test]
    fn elf_header_is_read_to_its_program_headers() {
        let mut elf = vec![0; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18] = 62;
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 1;
        assert_eq!(super::elf(&elf), Some(Elf::default()));
        elf[64] = 3;
        let with_loader = Elf {
            has_loader: true,
            is_go: false,
        };
        assert_eq!(super::elf(&elf), Some(with_loader));
        elf[18] = 3;
        assert_eq!(super::elf(&elf), None);
    }

    #[test]
    fn program_of_go_is_known_by_its_note() {
        let mut elf = vec![0; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18] = 62;
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 1;
        elf[64] = 4;
        elf[64 + 8] = 120;
        elf[64 + 32] = 24;
        // As `readelf -n` shows it of what `go build` makes: owner Go, GO BUILDID.
        elf.extend(b"\x04\0\0\0\x08\0\0\0\x04\0\0\0Go\0\0abcdefgh");
        assert!(super::elf(&elf).unwrap().is_go);
        elf[64 + 32] = 8;
        assert!(!super::elf(&elf).unwrap().is_go, "behind the notes");
        elf[64 + 8..64 + 16].copy_from_slice(&[0xff; 8]);
        assert!(!super::elf(&elf).unwrap().is_go, "outside of the file");
    }

    #[test]
    fn hostile_header_is_no_program() {
        let mut elf = vec![0xff; 128];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18..20].copy_from_slice(&[62, 0]);
        assert_eq!(super::elf(&elf), None);
        for len in 0..elf.len() {
            assert_eq!(super::elf(&elf[..len]), None, "{len}");
        }
    }

    #[test]
    fn script_leads_to_its_interpreter() {
        let interpreter = |text: &'static str| interpreter_of(text.as_bytes());
        assert_eq!(
            interpreter("#! /bin/sh -e\ntrue"),
            Some(Path::new("/bin/sh"))
        );
        assert_eq!(interpreter("#!\n"), None);
        assert_eq!(interpreter("\x7fELF"), None);
    }
}
