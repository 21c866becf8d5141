//! The rooms and the doors between them: any dependency of one of our crates on another that is not listed
//! here is a mistake in the design or in this list.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Who may depend on whom; for each room, all that it may use.
const ALLOWED: [(&str, &[&str]); 11] = [
    ("msrgate-core", &[]),
    ("msrgate-policy", &["msrgate-core"]),
    ("msrgate-x86", &["msrgate-core"]),
    ("msrgate-soft", &["msrgate-core", "msrgate-x86"]),
    ("msrgate-kvm", &["msrgate-core"]),
    ("msrgate-trace", &["msrgate-core"]),
    (
        "msrgate-machine",
        &["msrgate-core", "msrgate-kvm", "msrgate-soft"],
    ),
    (
        "msrgate-preload",
        &[
            "msrgate-core",
            "msrgate-kvm",
            "msrgate-machine",
            "msrgate-policy",
            "msrgate-soft",
            "msrgate-trace",
        ],
    ),
    (
        "msrgate",
        &[
            "msrgate-core",
            "msrgate-kvm",
            "msrgate-machine",
            "msrgate-policy",
            "msrgate-preload",
            "msrgate-soft",
            "msrgate-trace",
        ],
    ),
    ("xtask", &["msrgate-core"]),
    (
        "msrgate-tests",
        &[
            "msrgate-core",
            "msrgate-kvm",
            "msrgate-machine",
            "msrgate-policy",
            "msrgate-soft",
        ],
    ),
];

/// Our crates, each with all that it depends on in the given kinds (`None`: normal).
fn edges(kinds: &[Option<&str>]) -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let name = |value: &serde_json::Value| value["name"].as_str().expect("a name").to_owned();
    packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().expect("dependencies");
            // The model checker replaces std's locks for its own test runs only.
            let of_kind = |d: &&serde_json::Value| {
                kinds.contains(&d["kind"].as_str()) && d["target"] != "cfg(loom)"
            };
            (
                name(package),
                dependencies.iter().filter(of_kind).map(name).collect(),
            )
        })
        .collect()
}

#[test]
fn every_door_between_rooms_is_in_the_plan() {
    let ours = edges(&[None, Some("build")]);
    let mut mistakes = Vec::new();
    for (room, dependencies) in &ours {
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| name == room) else {
            mistakes.push(format!("{room} is not in the list of rooms"));
            continue;
        };
        let doors = dependencies.iter().filter(|name| ours.contains_key(*name));
        for door in doors.filter(|door| !allowed.contains(&door.as_str())) {
            mistakes.push(format!("{room} must not depend on {door}"));
        }
    }
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
}

#[test]
fn core_depends_on_nothing() {
    let ours = edges(&[None, Some("build")]);
    assert_eq!(ours["msrgate-core"], BTreeSet::new());
}

#[test]
fn every_room_of_the_plan_that_exists_was_seen() {
    let ours = edges(&[None]);
    for room in ["msrgate-core", "msrgate-kvm", "msrgate-tests"] {
        assert!(
            ours.contains_key(room),
            "{room} is gone from cargo metadata"
        );
    }
}
