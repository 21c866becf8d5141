//! Where the preload library is, and how a program is given it.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// The file that `cargo build` makes of the crate msrgate-preload.
const LIBRARY: &str = "libmsrgate_preload.so";

/// What `LD_PRELOAD` is to be.
pub(super) fn preload_list() -> anyhow::Result<OsString> {
    let library = find()?;
    if library.to_string_lossy().contains([' ', ':']) {
        bail!(
            "{}: LD_PRELOAD cannot hold a path with a space or a colon",
            library.display()
        );
    }
    Ok(before_others(&library))
}

/// Ours comes first: it must stand before any other library that takes the place of the same functions.
fn before_others(library: &Path) -> OsString {
    let mut list = library.as_os_str().to_owned();
    if let Some(others) = env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
        list.push(":");
        list.push(others);
    }
    list
}

/// `MSRGATE_PRELOAD`, else beside this program, else where a package puts it.
fn find() -> anyhow::Result<PathBuf> {
    if let Some(named) = env::var_os("MSRGATE_PRELOAD") {
        let named = PathBuf::from(named);
        return named.canonicalize().with_context(|| {
            format!(
                "MSRGATE_PRELOAD names {}, which is not there",
                named.display()
            )
        });
    }
    let program = env::current_exe().context("cannot tell where this program is")?;
    let folder = program.parent().unwrap_or(Path::new("/"));
    let package = folder.parent().unwrap_or(folder).join("lib/msrgate");
    let places = [folder.join(LIBRARY), package.join(LIBRARY)];
    let found = places.iter().find_map(|place| place.canonicalize().ok());
    found.with_context(|| {
        let [beside, packaged] = places.each_ref().map(|place| place.display());
        format!(
            "there is neither {beside} nor {packaged}, which `cargo install` does not bring; where msrgate's source is:\n\
             cargo build --release -p msrgate-preload\n\
             install -D target/release/{LIBRARY} {packaged}"
        )
    })
}
