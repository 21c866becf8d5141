//! The crate `toml` reads the same texts, and the same trees in them.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use toml::de::{DeTable, DeValue};

use super::{Kind, Table, Value, parse};
use crate::source::SourceId;

/// Both readings must be one: a tree, or none.
fn check(text: &str) {
    let ours = parse(SourceId(0), text).map(|table| tree(&table));
    let theirs = DeTable::parse(text).map(|table| their_tree(table.get_ref()));
    match (&ours, &theirs) {
        (Ok(ours), Ok(theirs)) => assert_eq!(ours, theirs, "{text}"),
        (Err(_), Err(_)) => {}
        _ => panic!("{text}\nours: {ours:?}\ntheirs: {theirs:?}"),
    }
}

fn tree(table: &Table<'_>) -> String {
    let entry =
        |(key, value): &(super::Key<'_>, Value<'_>)| format!("{:?}={}", key.name, leaf(value));
    braced(table.entries.iter().map(entry).collect())
}

fn leaf(value: &Value<'_>) -> String {
    match &value.kind {
        Kind::Text(text) => format!("{text:?}"),
        Kind::Integer { digits, radix } => format!("{digits} of {radix}"),
        Kind::Fraction => "fraction".to_owned(),
        Kind::Boolean(flag) => flag.to_string(),
        Kind::Date => "date".to_owned(),
        Kind::List(items) | Kind::Tables(items) => {
            format!("{:?}", items.iter().map(leaf).collect::<Vec<_>>())
        }
        Kind::Table(table) => tree(table),
    }
}

fn their_tree(table: &DeTable<'_>) -> String {
    let entries = table.iter();
    let entry =
        entries.map(|(key, value)| format!("{:?}={}", key.get_ref(), their_leaf(value.get_ref())));
    braced(entry.collect())
}

fn their_leaf(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(digits) => format!("{} of {}", digits.as_str(), digits.radix()),
        DeValue::Float(_) => "fraction".to_owned(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(_) => "date".to_owned(),
        DeValue::Array(items) => {
            let items = items.iter().map(|item| their_leaf(item.get_ref()));
            format!("{:?}", items.collect::<Vec<_>>())
        }
        DeValue::Table(table) => their_tree(table),
    }
}

/// The crate does not keep the order of the text.
fn braced(mut entries: Vec<String>) -> String {
    entries.sort();
    format!("{{{}}}", entries.join(", "))
}

fn pick(words: &'static [&'static str]) -> impl Strategy<Value = String> + Clone {
    prop::sample::select(words).prop_map(str::to_owned)
}

/// Few names, so that keys meet.
fn key() -> impl Strategy<Value = String> {
    let part = pick(&[
        "a",
        "a",
        "b",
        "c",
        "\"a\"",
        "'b'",
        "'a.b'",
        "1",
        "\"\\u0061\"",
        "",
        "é",
    ]);
    let dot = pick(&[".", ".", " . ", "..", ".\n"]);
    (part.clone(), prop::collection::vec((dot, part), 0..3)).prop_map(|(first, more)| {
        more.into_iter()
            .fold(first, |key, (dot, part)| key + &dot + &part)
    })
}

fn value() -> impl Strategy<Value = String> {
    let scalar = pick(&[
        "0",
        "1",
        "-7",
        "+0",
        "0x1f",
        "0b10",
        "0o17",
        "1_000",
        "1__0",
        "01",
        "0x",
        "0X1",
        "99999999999999999999",
        "1.5",
        "1.",
        ".5",
        "1e3",
        "inf",
        "-nan",
        "true",
        "false",
        "True",
        "1979-05-27",
        "07:32:00",
        "1979-05-27T07:32:00Z",
        "\"\"",
        "\"a\\tb\"",
        "\"\\x41\"",
        "\"\\q\"",
        "\"\\ud800\"",
        "'a\\b'",
        "''",
        "\"\"\"\na\\\n  b\"\"\"",
        "\"\"\"a\"\"\"\"\"",
        "'''\r\na'''",
        "'a\nb'",
        "\"a",
        "a",
        "",
    ]);
    scalar.prop_recursive(3, 12, 3, |inner| {
        let space = || pick(&["", " ", "\n", " # a\n", "\t"]);
        let items = prop::collection::vec(inner.clone(), 0..3);
        let comma = || pick(&[",", ",", ", ", ",\n", " ", ",,"]);
        let list = (space(), items, comma(), pick(&["]", "]", ",]", "\n]", ""]))
            .prop_map(|(space, items, comma, end)| format!("[{space}{}{end}", items.join(&comma)));
        let pairs = prop::collection::vec(
            (key(), inner).prop_map(|(key, value)| format!("{key} = {value}")),
            0..3,
        );
        let table = (space(), pairs, comma(), pick(&["}", "}", ",}", "\n}", ""]))
            .prop_map(|(space, pairs, comma, end)| format!("{{{space}{}{end}", pairs.join(&comma)));
        prop_oneof![list, table]
    })
}

fn line() -> impl Strategy<Value = String> {
    let end = || {
        pick(&[
            "\n", "\n", "\n", "\n", "\r\n", " # a\n", "", "\r", "\u{1}\n",
        ])
    };
    prop_oneof![
        6 => (key(), pick(&[" = ", " = ", "=", " ", "\n= "]), value(), end())
            .prop_map(|(key, equals, value, end)| key + &equals + &value + &end),
        3 => (key(), end()).prop_map(|(key, end)| format!("[{key}]{end}")),
        3 => (key(), end()).prop_map(|(key, end)| format!("[[{key}]]{end}")),
        1 => pick(&["\n", "# a\n", "#\u{7f}\n", "\u{feff}", "[ [a]]\n", "[a\n]\n", "]\n", "\t\n", "[]\n"]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_text_is_the_tree_that_the_crate_toml_reads(lines in prop::collection::vec(line(), 0..7)) {
        check(&lines.concat());
    }
}

#[test]
fn valid_lines_meet_and_are_the_trees_that_the_crate_toml_reads() {
    let lines = [
        "a = 1\n",
        "a.b = 1\n",
        "a.b.c = 1\n",
        "a = {}\n",
        "a = { b = 1 }\n",
        "a = [{}]\n",
        "[a]\n",
        "[a.b]\n",
        "[a.b.c]\n",
        "[[a]]\n",
        "[[a.b]]\n",
        "[b]\n",
        "b.c = 2\n",
        "c = 3\n",
    ];
    let mut count = 0;
    for first in lines {
        for second in lines {
            for third in lines {
                for fourth in lines {
                    let text = [first, second, third, fourth].concat();
                    check(&text);
                    count += u32::from(parse(SourceId(0), &text).is_ok());
                }
            }
        }
    }
    assert!(count > 1000, "{count} of 38416 are TOML");
}

#[test]
fn policies_are_the_trees_that_the_crate_toml_reads() {
    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/policy");
    for folder in ["good", "bad", "bad/include"] {
        for entry in fs::read_dir(policies.join(folder)).expect("a folder") {
            let path = entry.expect("a file").path();
            if path.extension().is_some_and(|ending| ending == "toml") {
                check(&fs::read_to_string(path).expect("a text"));
            }
        }
    }
}
