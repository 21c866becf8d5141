//! Writing a file whole or not at all, and a value as JSON.

use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use tempfile::NamedTempFile;

/// Puts `bytes` into the file `path`. Who reads it meanwhile sees all of the old ones or all of the new ones.
/// What is no regular file (a pipe, a terminal) is written as it is.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    write_file_with(path, |out| Ok(out.write_all(bytes)?))
}

/// The same for what need not be in memory all at once: `write` writes it.
pub(crate) fn write_file_with(
    path: &Path,
    write: impl FnOnce(&mut File) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => {
            let file = fs::OpenOptions::new().write(true).open(path);
            write(&mut file.with_context(cannot)?).with_context(cannot)
        }
        found => {
            let mut file = Replacement::of(path, found.ok()).with_context(cannot)?;
            write(file.0.as_file_mut()).with_context(cannot)?;
            file.0.persist(file.1).with_context(cannot)?;
            Ok(())
        }
    }
}

/// Prints `value` as JSON, with the end of its last line.
pub(crate) fn write_json(out: &mut dyn Write, value: &impl Serialize) -> anyhow::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value).map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(())
}

/// A file beside the one that it will replace, and the path of that one.
struct Replacement(NamedTempFile, PathBuf);

impl Replacement {
    fn of(path: &Path, found: Option<Metadata>) -> io::Result<Self> {
        let (path, permissions) = match found {
            Some(found) => (fs::canonicalize(path)?, found.permissions()),
            // The process's mask takes away what it takes from any new file.
            None => (path.to_owned(), Permissions::from_mode(0o666)),
        };
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        fs::metadata(folder)?;
        let file = tempfile::Builder::new()
            .permissions(permissions)
            .tempfile_in(folder)?;
        Ok(Self(file, path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_is_made_and_replaced_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        for bytes in [&b"one"[..], b"the other"] {
            write_file(&path, bytes).unwrap();
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn link_stays_a_link_and_permissions_stay() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("out"), folder.path().join("link"));
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        write_file(&link, b"new").unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o640
        );
    }

    #[test]
    fn what_cannot_be_written_is_named() {
        for (path, why) in [
            ("/no-such-folder/out", "No such file"),
            ("/dev/full", "No space"),
            ("/", "Is a directory"),
        ] {
            let error = format!("{:#}", write_file(Path::new(path), b"bytes").unwrap_err());
            let start = format!("cannot write {path}: {why}");
            assert!(error.starts_with(&start), "{error}");
        }
        write_file(Path::new("/dev/null"), b"bytes").unwrap();
        assert!(!Path::new("/dev/null").is_file());
    }
}
