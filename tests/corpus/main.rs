//! One corpus, every engine: same answer and same reason.
//!
//! The cases are in `testdata/filter`. Core's own forms (the oracle, the fast lookup) run them as a model;
//! the engines run them by raw ioctls with a real guest. The last lines say how many cases ran where.

mod engine;
mod model;

use std::collections::BTreeSet;
use std::path::PathBuf;

use msrgate_core::{Lookup, MsrFilter};
use msrgate_tests::case::{Case, File};
use msrgate_tests::door::{KernelDoor, SoftDoor};
use msrgate_tests::skip::{kvm_or_skip, say};

/// Why a case did not pass on an engine.
#[derive(Debug)]
pub enum Trouble {
    /// This engine has no way to say the case.
    Unsupported(&'static str),
    /// It answered differently.
    Mismatch(String),
}

/// How the corpus went on one engine.
#[derive(Debug, Default)]
struct Tally {
    passed: usize,
    unsupported: Vec<(String, &'static str)>,
    failed: Vec<String>,
}

impl Tally {
    fn of(cases: &[Case], run: impl Fn(&Case) -> Result<(), Trouble>) -> Self {
        let mut tally = Self::default();
        for case in cases {
            match run(case) {
                Ok(()) => tally.passed += 1,
                Err(Trouble::Unsupported(why)) => {
                    tally.unsupported.push((case.name.clone(), why));
                }
                Err(Trouble::Mismatch(what)) => {
                    tally
                        .failed
                        .push(format!("{} ({}): {what}", case.name, case.source));
                }
            }
        }
        tally
    }

    /// The engine's part of the last line.
    fn summary(&self) -> String {
        let Self {
            passed,
            unsupported,
            failed,
        } = self;
        let mut text = format!("{passed} passed");
        if !unsupported.is_empty() {
            text += &format!(", {} unsupported", unsupported.len());
        }
        if !failed.is_empty() {
            text += &format!(", {} FAILED", failed.len());
        }
        text
    }
}

fn cases() -> Vec<Case> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/filter"));
    let mut cases = Vec::new();
    for entry in std::fs::read_dir(&folder).expect("the corpus is there") {
        let path = entry.expect("the corpus can be listed").path();
        let text = std::fs::read_to_string(&path).expect("a corpus file can be read");
        match toml::from_str::<File>(&text) {
            Ok(file) => cases.extend(file.case),
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }
    cases
}

#[test]
fn case_names_are_unique_and_sources_are_sections() {
    let cases = cases();
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), cases.len());
    for case in &cases {
        let section = case
            .source
            .split(['.', ',', ' '])
            .next()
            .and_then(|n| n.parse::<u32>().ok());
        assert!(
            section.is_some_and(|n| (1..=21).contains(&n)),
            "{}: {}",
            case.name,
            case.source
        );
    }
}

#[test]
fn every_engine_gives_the_same_answer_for_the_same_reason() {
    let cases = cases();
    let oracle = |filter: &MsrFilter, index, access| {
        let decision = filter.decide(index, access);
        (decision.verdict, Some(decision.source))
    };
    let lookup = |filter: &MsrFilter, index, access| {
        let verdict = Lookup::new(filter).verdict(index, access);
        (verdict, None)
    };
    let soft = SoftDoor::new();
    let mut tallies = vec![
        ("oracle", Tally::of(&cases, |case| model::run(case, oracle))),
        ("lookup", Tally::of(&cases, |case| model::run(case, lookup))),
        ("soft", Tally::of(&cases, |case| engine::run(case, &soft))),
    ];
    if let Some(kvm) = kvm_or_skip() {
        let kvm = KernelDoor::new(&kvm);
        tallies.push(("kvm", Tally::of(&cases, |case| engine::run(case, &kvm))));
    }

    let mut failures = Vec::new();
    for (engine, tally) in &tallies {
        for (case, why) in &tally.unsupported {
            println!("{engine}: {case}: unsupported: {why}");
        }
        failures.extend(
            tally
                .failed
                .iter()
                .map(|failure| format!("{engine}: {failure}")),
        );
        assert!(tally.passed > 0, "{engine} ran nothing");
    }
    let parts: Vec<_> = tallies
        .iter()
        .map(|(engine, tally)| format!("{engine} {}", tally.summary()))
        .collect();
    say(&format!(
        "corpus: {} cases: {}",
        cases.len(),
        parts.join("; ")
    ));
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
