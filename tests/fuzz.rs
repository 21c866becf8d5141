//! Replays on any compiler what the fuzzers of `fuzz/` found once, and the inputs that they begin with.

use std::fs;
use std::path::{Path, PathBuf};

#[path = "../fuzz/src/lib.rs"]
#[expect(
    unreachable_pub,
    reason = "it is also the library that libFuzzer's targets call"
)]
mod targets;

/// Each file of a folder and of those in it.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder");
    entries
        .map(|entry| entry.expect("a file").path())
        .flat_map(|path| {
            if path.is_dir() {
                files(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}

fn replay(target: fn(&[u8]), folders: &[&str]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for folder in folders {
        let files = files(&root.join(folder));
        assert!(!files.is_empty(), "{folder}");
        for file in files {
            println!("{}", file.display());
            target(&fs::read(&file).expect("a file"));
        }
    }
}

#[test]
fn policies_that_were_found_do_no_harm() {
    replay(
        targets::policy_parse,
        &["fuzz/regressions/policy_parse", "testdata/policy"],
    );
}

#[test]
fn traces_that_were_found_do_no_harm() {
    replay(targets::trace_read, &["fuzz/regressions/trace_read"]);
}

#[test]
fn foreign_policies_that_were_found_do_no_harm() {
    replay(
        targets::import,
        &["fuzz/regressions/import", "testdata/import"],
    );
}
