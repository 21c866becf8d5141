//! The house's own rules, as far as a program can check them.

use std::fs;
use std::path::{Path, PathBuf};

/// Lines before the tests of a file.
const MAX_LINES: usize = 600;
/// Files that are data, not prose, and may be longer.
const TABLES: [&str; 2] = ["crates/core/src/names.rs", "crates/soft/src/msr/table.rs"];
/// Where unsafe code has a room; everywhere else it is a mistake.
const UNSAFE_ROOMS: [&str; 15] = [
    "crates/kvm/src/filter.rs",
    "crates/kvm/src/kick.rs",
    "crates/kvm/src/run_page.rs",
    "crates/kvm/src/vm.rs",
    "crates/preload/",
    "crates/soft/src/client.rs",
    "crates/soft/src/ioctl/",
    "crates/soft/src/memory",
    "crates/soft/src/random.rs",
    "crates/soft/src/run_page.rs",
    "crates/x86/src/simd/",
    "crates/x86/src/x87",
    "crates/x86/tests/",
    "examples/minimal_vmm.rs",
    "tests/support/kernel_door.rs",
];
/// Words that the glossary replaces, and by what. They are whole identifiers or parts of one.
const BANNED: [(&str, &str); 9] = [
    ("whitelist", "filter"),
    ("blacklist", "filter"),
    ("read_msr", "rdmsr or get_msrs"),
    ("write_msr", "wrmsr or set_msrs"),
    ("msr_addr", "index"),
    ("msr_id", "index"),
    ("MsrId", "MsrIndex"),
    ("msr_number", "index"),
    ("exit_cause", "exit reason"),
];

/// A file of the project: its path from the root, and its text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// The lines before the file's tests.
    fn body(&self) -> impl Iterator<Item = &str> {
        self.text.lines().take_while(|line| *line != "#[cfg(test)]")
    }
}

fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// All files below the source folders whose names end so.
fn sources(ending: &str) -> Vec<Source> {
    let mut found = Vec::new();
    for folder in ["crates", "tests", "xtask", "examples", "fuzz", "testdata"] {
        collect(&root().join(folder), ending, &mut found);
    }
    assert!(!found.is_empty(), "there are files that end in {ending}");
    found
}

fn collect(folder: &Path, ending: &str, found: &mut Vec<Source>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries {
        let path = entry.expect("the folder can be listed").path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .expect("a UTF-8 name");
        if path.is_dir() && name != "target" {
            collect(&path, ending, found);
        } else if name.ends_with(ending)
            && let Ok(text) = fs::read_to_string(&path)
        {
            let path = path.strip_prefix(root()).expect("below the root");
            let path = path.to_str().expect("a UTF-8 path").to_owned();
            found.push(Source { path, text });
        }
    }
}

/// Fails with all complaints at once.
fn expect_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// Each line of code that holds one of the marks, but for this file, which names them.
fn lines_with(marks: &[&str]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources(".rs")
        .iter()
        .filter(|source| source.path != "tests/tidy.rs")
    {
        for (number, line) in (1..).zip(source.text.lines()) {
            if let Some(mark) = marks.iter().find(|mark| line.contains(**mark)) {
                complaints.push(format!("{}:{number}: {mark}", source.path));
            }
        }
    }
    complaints
}

#[test]
fn files_are_something_one_can_hold_in_mind() {
    let mut complaints = Vec::new();
    for source in sources(".rs") {
        let lines = source.body().count();
        if lines > MAX_LINES && !TABLES.contains(&source.path.as_str()) {
            complaints.push(format!("{}: {lines} lines, over {MAX_LINES}", source.path));
        }
    }
    expect_none(&complaints);
}

#[test]
fn files_begin_by_saying_what_they_are() {
    let silent = sources(".rs")
        .into_iter()
        .filter(|source| !source.text.starts_with("//! "));
    let complaints: Vec<_> = silent
        .map(|source| format!("{}: no //!", source.path))
        .collect();
    expect_none(&complaints);
}

#[test]
fn nothing_is_left_over() {
    expect_none(&lines_with(&[
        "TODO",
        "FIXME",
        "XXX",
        "dbg!(",
        "todo!(",
        "unimplemented!(",
    ]));
}

#[test]
fn words_are_the_glossarys() {
    let banned: Vec<&str> = BANNED.iter().map(|(word, _)| *word).collect();
    let complaints: Vec<String> = lines_with(&banned)
        .into_iter()
        .map(|complaint| {
            let (_, instead) = BANNED
                .iter()
                .find(|(word, _)| complaint.ends_with(word))
                .expect("the complaint names the word");
            format!("{complaint}: the word is {instead}")
        })
        .collect();
    expect_none(&complaints);
}

#[test]
fn unsafe_code_stays_in_its_rooms() {
    let mut complaints = Vec::new();
    for source in sources(".rs") {
        let is_room = UNSAFE_ROOMS
            .iter()
            .any(|room| source.path.starts_with(room));
        let opts_in =
            source.text.contains("expect(unsafe_code") || source.text.contains("allow(unsafe_code");
        let is_us = source.path == "tests/tidy.rs";
        if opts_in && !is_room && !is_us {
            complaints.push(format!("{}: unsafe code outside its rooms", source.path));
        }
        if opts_in && !is_us && !source.text.contains("UNSAFETY:") {
            complaints.push(format!("{}: no UNSAFETY: comment", source.path));
        }
    }
    expect_none(&complaints);
}

#[test]
fn test_data_is_loaded_by_some_test() {
    let code = sources(".rs");
    let mut complaints = Vec::new();
    for data in sources("")
        .iter()
        .filter(|data| data.path.starts_with("testdata/"))
    {
        let folder = data.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let is_loaded = code.iter().any(|source| {
            source.path != "tests/tidy.rs"
                && (source.text.contains(&data.path) || source.text.contains(folder))
        });
        if !is_loaded {
            complaints.push(format!("{}: no test loads it", data.path));
        }
    }
    expect_none(&complaints);
}

#[test]
fn nothing_names_the_machine_that_it_was_made_on() {
    let home = ["/work", "/root"].map(|folder| format!("{folder}/"));
    let marks: Vec<&str> = home.iter().map(String::as_str).collect();
    expect_none(&lines_with(&marks));
}
