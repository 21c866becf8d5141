//! Will the dynamic loader preload a library into this program? [`find`] says so before it is run.
//!
//! The loader ignores `LD_PRELOAD` silently; a program that then opens the real /dev/kvm, or none, would be a
//! riddle. Files with capabilities are not recognised here.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::{env, fmt, io};

/// Where `name` is, if a library can be preloaded into it.
///
/// # Errors
/// There is no such program, or the loader would ignore `LD_PRELOAD`.
pub(super) fn find(name: &OsStr) -> Result<PathBuf, ProgramError> {
    let path = locate(name).ok_or_else(|| ProgramError::Missing { name: name.into() })?;
    check(&path, Scripts::Follow)?;
    Ok(path)
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

fn check(path: &Path, scripts: Scripts) -> Result<(), ProgramError> {
    let unreadable = |error| ProgramError::Unreadable {
        path: path.into(),
        error,
    };
    let mut file = File::open(path).map_err(unreadable)?;
    if gains_rights(&file.metadata().map_err(unreadable)?) {
        return Err(ProgramError::Privileged { path: path.into() });
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
    match has_loader(&head) {
        Some(true) => Ok(()),
        Some(false) => Err(ProgramError::Static { path: path.into() }),
        None => Err(ProgramError::Foreign { path: path.into() }),
    }
}

/// Program headers follow the ELF header in what linkers make; this is plenty.
const HEAD_BYTES: u64 = 0x4000;

/// Whether running it would change the user or the group: what makes the loader careful (`AT_SECURE`).
fn gains_rights(file: &Metadata) -> bool {
    const SET_USER_ID: u32 = 0o4000;
    const SET_GROUP_ID: u32 = 0o2000;
    // The owner of one's own folder in /proc is the effective user and group.
    let (user, group) = fs::metadata("/proc/self").map_or((0, 0), |own| (own.uid(), own.gid()));
    (file.mode() & SET_USER_ID != 0 && file.uid() != user)
        || (file.mode() & SET_GROUP_ID != 0 && file.gid() != group)
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

/// Whether an x86-64 ELF executable asks for a dynamic loader; `None` if it is no such file.
fn has_loader(head: &[u8]) -> Option<bool> {
    const MAGIC_64_LITTLE: &[u8] = b"\x7fELF\x02\x01";
    const X86_64: u16 = 62;
    const INTERPRETER: u32 = 3;
    if !head.starts_with(MAGIC_64_LITTLE) || half(head, 18)? != X86_64 {
        return None;
    }
    let table = usize::try_from(long(head, 32)?).ok()?;
    let entry_len = usize::from(half(head, 54)?);
    let count = usize::from(half(head, 56)?);
    for number in 0..count {
        let entry = table.checked_add(number * entry_len)?;
        if word(head, entry)? == INTERPRETER {
            return Some(true);
        }
    }
    Some(false)
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
        assert_eq!(has_loader(&elf), Some(false));
        elf[64] = 3;
        assert_eq!(has_loader(&elf), Some(true));
        elf[18] = 3;
        assert_eq!(has_loader(&elf), None);
    }

    #[test]
    fn hostile_header_is_no_program() {
        let mut elf = vec![0xff; 128];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18..20].copy_from_slice(&[62, 0]);
        assert_eq!(has_loader(&elf), None);
        for len in 0..elf.len() {
            assert_eq!(has_loader(&elf[..len]), None, "{len}");
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
