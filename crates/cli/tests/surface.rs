//! `msrgate surface` from outside: the table, the document, and what it says of options that cannot be used.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

#[path = "support/mod.rs"]
#[expect(
    dead_code,
    reason = "no guest is run here, so that what makes guests is not used"
)]
mod support;

use support::{backends, msrgate, stderr, stdout};

const DOCUMENT: &str = include_str!("../../../docs/surface.md");

/// The entries of a document by index.
fn msrs(document: &Value) -> BTreeMap<&str, &Value> {
    let msrs = document["msrs"].as_array().expect("a list");
    msrs.iter()
        .map(|msr| (msr["index"].as_str().expect("a text"), msr))
        .collect()
}

fn surface(arguments: &[&str]) -> Value {
    let output = msrgate(&[&["surface", "--json"], arguments].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// What Linux and the manuals say of every KVM, whatever the processor.
#[test]
fn known_msrs_are_told_on_every_backend() {
    for backend in backends() {
        let document = surface(&["--backend", backend, "--write"]);
        assert_eq!(document["format"], "msrgate-surface");
        assert_eq!(document["version"], 1);
        assert_eq!(document["backend"], backend);
        let kernel = document["host"]["kernel"].as_str().expect("a text");
        assert_eq!(
            kernel,
            fs::read_to_string("/proc/sys/kernel/osrelease")
                .expect("Linux")
                .trim()
        );
        let msrs = msrs(&document);
        // Long mode, and the value that the APM gives for a reset of PAT.
        for (index, name, value) in [
            ("0xc0000080", "IA32_EFER", "0xd00"),
            ("0x277", "IA32_PAT", "0x7040600070406"),
            ("0xfe", "IA32_MTRRCAP", "0x508"),
            ("0x1b", "IA32_APIC_BASE", "0xfee00900"),
        ] {
            let msr = msrs[index];
            assert_eq!(msr["name"], name);
            assert_eq!(
                (&msr["read"], &msr["value"]),
                (&"done".into(), &value.into()),
                "{name}"
            );
            assert!(msr.get("volatile").is_none(), "{name}");
        }
        assert_eq!(msrs["0x10"]["volatile"], true, "the TSC runs");
        assert_eq!(msrs["0xc0000080"]["write"], "done");
        assert_eq!(msrs["0xfe"]["write"], "unknown", "MTRRcap is only read");
        assert_eq!(msrs["0x9e"]["read"], "invalid", "SMBASE outside of SMM");
        assert!(
            msrs["0x9e"].get("write").is_none(),
            "no value to write back"
        );
        for index in ["0x800", "0x830", "0x8ff"] {
            assert_eq!(msrs[index]["read"], "invalid", "x2APIC without an APIC");
        }
        for index in ["0x49", "0x1fff", "0xc0001fff"] {
            assert!(!msrs.contains_key(index), "{index} cannot be read");
        }
    }
}

#[test]
fn document_has_every_key() {
    let document = surface(&["--backend", "soft", "--write"]);
    let mut parts = vec![&document, &document["host"], &document["windows"][0]];
    parts.extend(document["msrs"].as_array().expect("a list"));
    for part in parts {
        for key in part.as_object().expect("an object").keys() {
            assert!(DOCUMENT.contains(&format!("`{key}`")), "{key}");
        }
    }
}

#[test]
fn table_in_a_pipe_is_plain_and_fits_into_80_columns() {
    for backend in backends() {
        let output = Command::new(env!("CARGO_BIN_EXE_msrgate"))
            .args(["surface", "--write", "--backend", backend])
            .env_remove("NO_COLOR")
            .output()
            .expect("msrgate runs");
        assert_eq!(output.status.code(), Some(0));
        let text = stdout(&output);
        assert!(!text.contains('\x1b'), "{text}");
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
        assert!(text.lines().all(|line| line.trim_end() == line), "{text}");
        assert!(text.contains("\nIA32_EFER "), "{text}");
        assert_eq!(
            stderr(&output).lines().count(),
            1,
            "no bar: {}",
            stderr(&output)
        );
    }
}

#[test]
fn file_holds_the_document_and_the_summary_is_printed() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("surface.json");
    let path = path.to_str().expect("UTF-8");
    let arguments = [
        "--backend",
        "soft",
        "--range",
        "0xfe..=0xff",
        "--range",
        "efer",
    ];
    let output = msrgate(&[&["surface", "-o", path], &arguments[..]].concat());
    assert_eq!(
        stdout(&output),
        "3 MSRs tried on soft: 2 read, 1 unknown.\n"
    );
    let written: Value =
        serde_json::from_str(&fs::read_to_string(path).expect("a file")).expect("JSON");
    assert_eq!(written, surface(&arguments));
    let windows = serde_json::json!([
        {"first": "0xfe", "last": "0xff"},
        {"first": "0xc0000080", "last": "0xc0000080"},
    ]);
    assert_eq!(written["windows"], windows);
}

#[test]
fn unknown_msrs_leave_an_empty_document() {
    let document = surface(&["--backend", "soft", "--range", "0x474f4f00..=0x474f4fff"]);
    assert_eq!(document["msrs"], Value::Array(Vec::new()));
}

#[test]
fn what_cannot_be_used_is_told() {
    for (arguments, part) in [
        (&["--range", "0x20..=0x10"][..], "0x20 is after 0x10"),
        (&["--range", "IA32_EFR"], "IA32_EFER is near"),
        (&["--range", "0x0..=0x100000000"], "at most 32 bits"),
        (&["--json", "-o", "f"], "cannot be used with"),
        (
            &["--backend", "soft", "-o", "/no-such-folder/f"],
            "cannot write /no-such-folder/f: ",
        ),
    ] {
        let output = msrgate(&[&["surface"], arguments].concat());
        assert_eq!(output.status.code(), Some(2));
        assert_eq!(stdout(&output), "");
        assert!(stderr(&output).contains(part), "{}", stderr(&output));
    }
}
