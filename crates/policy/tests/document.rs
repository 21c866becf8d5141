//! `docs/policy.md` tells the truth: its policies compile, and it knows every diagnostic.

use std::fs;
use std::path::Path;

use msrgate_core::{MsrGroup, msr_groups};
use msrgate_policy::compile;

const DOCUMENT: &str = include_str!("../../../docs/policy.md");

#[test]
fn policies_of_the_document_compile_without_a_warning() {
    let mut count = 0;
    for block in DOCUMENT.split("```toml\n").skip(1) {
        let source = block.split("```").next().expect("an end");
        let compiled = compile(source).expect("no mistakes");
        assert_eq!(compiled.warnings, []);
        count += 1;
    }
    assert_ne!(count, 0);
}

#[test]
fn document_lists_the_groups() {
    let listed = |group: &MsrGroup| format!("| `@{}` | {} |\n", group.name, group.meaning);
    let table: String = msr_groups().iter().map(listed).collect();
    assert!(DOCUMENT.contains(&table), "{table}");
}

#[test]
fn document_and_code_have_the_same_diagnostics() {
    let mut paths = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut in_code = Vec::new();
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(path).expect("a folder");
            paths.extend(entries.map(|entry| entry.expect("a file").path()));
        } else {
            let source = fs::read_to_string(path).expect("a text");
            in_code.extend(codes(&source, '"'));
        }
    }
    let mut in_document = codes(DOCUMENT, '`');
    in_code.sort();
    in_code.dedup();
    in_document.sort();
    assert_eq!(in_document, in_code);
}

fn codes(text: &str, quote: char) -> Vec<String> {
    text.split(quote)
        .filter(|part| {
            let name = part.strip_prefix("policy::");
            name.is_some_and(|name| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'))
        })
        .filter(|part| !part.ends_with("::"))
        .map(str::to_owned)
        .collect()
}
