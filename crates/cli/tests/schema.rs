//! `docs/policy.schema.json` says what policies look like: it takes every policy here, and none that is badly formed.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use toml::de::{DeTable, DeValue};

#[path = "support/mod.rs"]
#[expect(
    dead_code,
    reason = "no guest is run here, so that what makes guests is not used"
)]
mod support;

use support::{msrgate, stdout};

/// Codes of mistakes that a schema sees.
const STRUCTURAL: [&str; 13] = [
    "version",
    "unknown-key",
    "type",
    "action",
    "direction",
    "mask",
    "limit",
    "no-msr",
    "no-action",
    "both",
    "number",
    "range.",
    "unknown-group",
];

fn schema() -> jsonschema::Validator {
    let schema: Value = serde_json::from_str(stdout(&msrgate(&["schema"]))).expect("JSON");
    jsonschema::draft7::meta::validate(&schema).expect("a schema");
    jsonschema::validator_for(&schema).expect("a schema")
}

fn policies(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join(folder);
    let entries = fs::read_dir(folder).expect("such a folder");
    let paths = entries.map(|entry| entry.expect("a file").path());
    paths
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .collect()
}

/// The policy as an editor gives it to a schema.
fn read(path: &Path) -> Value {
    let text = fs::read_to_string(path).expect("a text");
    value(&DeValue::Table(
        DeTable::parse(&text).expect("TOML").into_inner(),
    ))
}

fn value(toml: &DeValue<'_>) -> Value {
    match toml {
        DeValue::String(text) => json!(text),
        DeValue::Boolean(flag) => json!(flag),
        DeValue::Integer(integer) => {
            let number = i128::from_str_radix(integer.as_str(), integer.radix()).expect("a number");
            match (i64::try_from(number), u64::try_from(number)) {
                (Ok(number), _) => json!(number),
                (_, Ok(number)) => json!(number),
                // One more than the largest number, as near as JSON has it.
                _ => json!(18_446_744_073_709_555_000_f64),
            }
        }
        DeValue::Array(items) => items.iter().map(|item| value(item.get_ref())).collect(),
        DeValue::Table(table) => {
            let entries = table.iter();
            entries
                .map(|(key, item)| (key.get_ref().to_string(), value(item.get_ref())))
                .collect()
        }
        other => panic!("{other:?} is in no policy"),
    }
}

#[test]
fn schema_takes_every_policy() {
    let schema = schema();
    for folder in [
        "testdata/policy/good",
        "examples/policies",
        "crates/machine/policies",
    ] {
        for path in policies(folder) {
            let errors: Vec<String> = schema
                .iter_errors(&read(&path))
                .map(|error| error.to_string())
                .collect();
            assert!(errors.is_empty(), "{}: {errors:?}", path.display());
        }
    }
}

#[test]
fn schema_takes_the_policies_of_the_document() {
    let schema = schema();
    let document = include_str!("../../../docs/policy.md");
    for block in document.split("```toml\n").skip(1) {
        let text = block.split("```").next().expect("an end");
        let policy = value(&DeValue::Table(
            DeTable::parse(text).expect("TOML").into_inner(),
        ));
        assert!(schema.is_valid(&policy), "{text}");
    }
}

#[test]
fn schema_refuses_what_is_badly_formed() {
    let schema = schema();
    let mut count = 0;
    for path in policies("testdata/policy/bad") {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .expect("UTF-8");
        if STRUCTURAL.iter().any(|code| name.starts_with(code)) {
            assert!(!schema.is_valid(&read(&path)), "{name}");
            count += 1;
        }
    }
    assert!(count >= 2 * STRUCTURAL.len() - 6, "{count}");
}

#[test]
fn schema_lists_the_groups() {
    let schema: Value = serde_json::from_str(stdout(&msrgate(&["schema"]))).expect("JSON");
    let listed = &schema["definitions"]["msr"]["anyOf"][1]["enum"];
    let groups = msrgate_core::msr_groups().iter();
    let names: Vec<String> = groups.map(|group| format!("@{}", group.name)).collect();
    assert_eq!(*listed, json!(names));
}
