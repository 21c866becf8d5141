//! The documents keep their word: commands print what is shown below them, policies are policies, links lead somewhere.
//!
//! Each document is one test, and a newcomer who begins with a clone: its blocks run in order, in a folder of its own.
//! [`block`] says what the blocks may be. `cargo test -p msrgate --test docs -- run.md` tries one document.

mod block;
mod link;
mod need;
mod session;
mod shown;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

use libtest_mimic::{Arguments, Failed, Trial};

use block::{Block, Class};
use session::Session;

/// The crate whose doc-tests compile the documents' Rust.
const DOCTESTS: &str = include_str!("../../../../tests/support/lib.rs");

/// Blocks that were tried, and those that were not although there is something to try.
static TRIED: AtomicUsize = AtomicUsize::new(0);
static LEFT: AtomicUsize = AtomicUsize::new(0);

/// A document in which nothing is true.
const LIES: &str = "crates/cli/tests/docs/lies.md";

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = vec![Trial::test("lies are found", lies_are_found)];
    trials.extend(documents().into_iter().map(|name| {
        Trial::test(name.clone(), move || match mistakes(&name)?.join("\n") {
            none if none.is_empty() => Ok(()),
            mistakes => Err(mistakes.into()),
        })
    }));
    let conclusion = libtest_mimic::run(&arguments, trials);
    let [tried, left] = [&TRIED, &LEFT].map(|count| count.load(Ordering::Relaxed));
    println!("{tried} blocks tried, {left} not, as said above");
    conclusion.exit_code()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Their names from the root: `README.md`, `docs/run.md`.
fn documents() -> Vec<String> {
    let mut documents = Vec::new();
    for folder in ["", "docs/"] {
        for entry in fs::read_dir(root().join(folder)).expect("a folder") {
            let file = entry.expect("a file").file_name();
            let file = file.to_str().expect("UTF-8");
            if file.ends_with(".md") {
                documents.push(format!("{folder}{file}"));
            }
        }
    }
    documents.sort();
    documents
}

/// Everything in a document that is not so.
fn mistakes(document: &str) -> io::Result<Vec<String>> {
    let path = root().join(document);
    let text = fs::read_to_string(&path)?;
    let mut mistakes = link::mistakes(&path, &text);
    let session = Session::begin(document)?;
    for (line, block) in Block::all(&text) {
        let place = format!("{document}:{line}");
        if let Err(mistake) = block.and_then(|block| try_block(&session, document, &place, &block))
        {
            mistakes.push(format!("{place}: {mistake}"));
        }
    }
    Ok(mistakes)
}

fn lies_are_found() -> Result<(), Failed> {
    let found = mistakes(LIES)?;
    let text = fs::read_to_string(root().join(LIES))?;
    let told: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("Lie: "))
        .collect();
    for (number, lie) in told.iter().enumerate() {
        let mistake = found.get(number).map_or("", String::as_str);
        if !mistake.contains(lie) {
            return Err(format!("instead of {lie:?}: {mistake}").into());
        }
    }
    if found.len() != told.len() {
        return Err(format!("{} lies: {found:?}", told.len()).into());
    }
    Ok(())
}

fn try_block(session: &Session, document: &str, place: &str, block: &Block) -> Result<(), String> {
    let is_run = matches!(block.class, Class::Commands | Class::Policy);
    let terminal = is_run.then_some("script");
    let needs = terminal
        .into_iter()
        .chain(block.needs.iter().map(String::as_str));
    if let Some((need, why)) = need::first_missing(needs) {
        println!("SKIP({need}): {place}: {why}");
        LEFT.fetch_add(1, Ordering::Relaxed);
        return Ok(());
    }
    if let Some(file) = &block.file {
        session.store(file, &block.text)?;
    }
    match &block.class {
        Class::NotRun(reason) => {
            println!("{place}: not run: {reason}");
            LEFT.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        Class::Sample if block.text.lines().any(|line| line.starts_with("$ ")) => {
            return Err("a command in a block that is not tried".to_owned());
        }
        Class::Sample => return Ok(()),
        Class::Doctest if !DOCTESTS.contains(&format!("/{document}\"")) => {
            return Err("no doc-test of tests/support/lib.rs has this document".to_owned());
        }
        Class::Doctest => {}
        Class::Policy => session.check_policy(block)?,
        Class::Commands => {
            for command in block.commands()? {
                session.run(&command, block.status)?;
            }
        }
    }
    TRIED.fetch_add(1, Ordering::Relaxed);
    Ok(())
}
