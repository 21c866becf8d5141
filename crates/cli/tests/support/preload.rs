//! The library that `wrap` and `top` preload.

use std::env;
use std::path::PathBuf;

/// It is built beside the tests.
pub(crate) fn library() -> PathBuf {
    let test = env::current_exe().expect("a running program has a path");
    let library = test.with_file_name("libmsrgate_preload.so");
    assert!(library.exists(), "{} is not there", library.display());
    library
}
