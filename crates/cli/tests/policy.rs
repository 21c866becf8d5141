//! The policies in `testdata/policy`: what is printed of those that are bad, and that the good ones are taken. What bad
//! ones include is in `testdata/policy/bad/include`.
//!
//! `UPDATE_EXPECT=1` rewrites what is expected; read the difference.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "support/mod.rs"]
#[expect(
    dead_code,
    reason = "no guest is run here, so that what makes guests is not used"
)]
mod support;

use support::{command, stderr};

const DOCUMENT: &str = include_str!("../../../docs/policy.md");

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The policies of a folder, by name.
fn policies(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(folder)).expect("such a folder");
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| Path::new(folder).join(entry.expect("a file").file_name()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{folder} has policies");
    paths
}

/// What `msrgate check` says of a policy, and whether it can be used.
fn check(path: &Path) -> (String, bool) {
    let mut check = command(&["check", path.to_str().expect("UTF-8")]);
    let output = check.current_dir(root()).output().expect("msrgate runs");
    let is_usable = match output.status.code() {
        Some(0) => true,
        Some(2) => false,
        other => panic!("{}: status {other:?}", path.display()),
    };
    (stderr(&output).to_owned(), is_usable)
}

#[test]
fn bad_policies_are_told_as_expected() {
    let mut different = Vec::new();
    for path in policies("testdata/policy/bad") {
        let (text, is_usable) = check(&path);
        assert_eq!(is_usable, !text.contains("\nerror: "), "{text}");
        let is_quoted = |line: &&str| line.trim_start().starts_with(|c: char| c.is_ascii_digit());
        let mut own = text.lines().filter(|line| !is_quoted(line));
        let wide = own.find(|line| line.chars().count() > 80);
        assert_eq!(wide, None, "{}", path.display());
        let expected = root().join(path.with_extension("txt"));
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            fs::write(&expected, &text).expect("testdata can be written");
        } else if fs::read_to_string(&expected).ok().as_deref() != Some(text.as_str()) {
            different.push(format!("{}:\n{text}", path.display()));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

/// It depends on the host, not on a policy.
const OF_THE_HOST: &str = "ignore-msrs";

/// A file is called by its code, perhaps with more words behind it.
#[test]
fn every_diagnostic_of_the_document_has_a_bad_policy_that_gets_it() {
    let codes: Vec<&str> = DOCUMENT
        .lines()
        .filter_map(|line| line.strip_prefix("| `policy::")?.split('`').next())
        .filter(|code| *code != OF_THE_HOST)
        .collect();
    let mut shown = BTreeSet::new();
    for path in policies("testdata/policy/bad") {
        let name = path
            .file_stem()
            .and_then(|name| name.to_str())
            .expect("UTF-8");
        let code = codes
            .iter()
            .filter(|code| {
                name.strip_prefix(**code)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
            })
            .max_by_key(|code| code.len())
            .unwrap_or_else(|| panic!("{name} begins with no code"));
        let text = fs::read_to_string(root().join(path.with_extension("txt"))).expect("a text");
        assert!(
            text.lines().any(|line| line == format!("policy::{code}")),
            "{name}: {text}"
        );
        shown.insert(*code);
    }
    assert_eq!(shown, codes.into_iter().collect());
}

#[test]
fn every_part_of_a_bad_policy_is_included_by_some() {
    let parts = policies("testdata/policy/bad/include");
    let including = policies("testdata/policy/bad");
    let texts: Vec<String> = including
        .iter()
        .chain(&parts)
        .map(|path| fs::read_to_string(root().join(path)).expect("a text"))
        .collect();
    for part in &parts {
        let name = part
            .file_name()
            .and_then(|name| name.to_str())
            .expect("UTF-8");
        assert!(texts.iter().any(|text| text.contains(name)), "{name}");
    }
}

#[test]
fn good_policies_are_taken_without_a_word() {
    for path in policies("testdata/policy/good") {
        assert_eq!(check(&path), (String::new(), true), "{}", path.display());
    }
}
