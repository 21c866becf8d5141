//! `msrgate completions` and `msrgate man` from outside: a real shell completes, and a real formatter has no complaint.

use std::fs;
use std::path::Path;
use std::process::Command;

#[path = "support/mod.rs"]
#[expect(
    dead_code,
    reason = "no guest is run here, so that what makes guests is not used"
)]
mod support;

use support::{file, msrgate, say, stderr, stdout};

/// The verbs that the help names.
fn verbs() -> Vec<String> {
    let output = msrgate(&["--help"]);
    let help = stdout(&output);
    let (_, behind) = help.split_once("Commands:\n").expect("a list");
    let lines = behind.lines().take_while(|line| !line.is_empty());
    let lines = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let verbs = lines.filter_map(|line| line.split_whitespace().next());
    verbs
        .filter(|verb| *verb != "help")
        .map(str::to_owned)
        .collect()
}

fn is_there(program: &str) -> bool {
    let is_there = Command::new(program).arg("--version").output().is_ok();
    if !is_there {
        say(&format!("SKIP({program}): it is not installed"));
    }
    is_there
}

/// What bash offers behind these words.
fn completed(script: &Path, words: &[&str]) -> Vec<String> {
    let line = format!(
        "source '{}'; COMP_WORDS=(msrgate {words}); COMP_CWORD={last}; _msrgate msrgate '{word}' '{before}'; \
         printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        script.display(),
        words = words
            .iter()
            .map(|word| format!("'{word}'"))
            .collect::<Vec<_>>()
            .join(" "),
        last = words.len(),
        word = words[words.len() - 1],
        before = if words.len() > 1 {
            words[words.len() - 2]
        } else {
            "msrgate"
        },
    );
    let output = Command::new("bash")
        .args(["-euc", &line])
        .output()
        .expect("bash");
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""));
    stdout(&output).lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_verbs_options_and_values() {
    let script = msrgate(&["completions", "bash"]);
    assert_eq!(script.status.code(), Some(0));
    let script = file("msrgate.bash", &script.stdout);
    if !is_there("bash") {
        return;
    }
    let mut offered = completed(&script, &[""]);
    offered.retain(|word| !word.starts_with('-') && word != "help");
    let mut verbs = verbs();
    assert!(verbs.len() > 10, "{verbs:?}");
    for list in [&mut offered, &mut verbs] {
        list.sort_unstable();
    }
    assert_eq!(offered, verbs, "what is hidden stays hidden");
    assert_eq!(completed(&script, &["expo"]), ["export"]);
    assert_eq!(completed(&script, &["report", "--sym"]), ["--symbols"]);
    assert_eq!(
        completed(&script, &["export", "--format", ""]),
        ["jsonl", "csv", "perfetto"]
    );
}

#[test]
fn every_shell_has_a_script_with_every_verb() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = msrgate(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        let script = stdout(&output);
        for verb in verbs() {
            assert!(script.contains(&verb), "{shell} {verb}");
        }
        let mut words = script.split(|c: char| !c.is_alphanumeric());
        assert!(!words.any(|word| word == "collect"), "{shell}");
    }
    assert_eq!(msrgate(&["completions", "tcsh"]).status.code(), Some(2));
}

#[test]
fn every_verb_has_a_manual_page_without_a_complaint() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().join("man/man1");
    let output = msrgate(&["man", folder.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let mut expected: Vec<String> = verbs()
        .iter()
        .map(|verb| format!("msrgate-{verb}.1"))
        .collect();
    expected.push("msrgate.1".to_owned());
    expected.sort_unstable();
    let pages = fs::read_dir(&folder).expect("a folder");
    let mut pages: Vec<_> = pages.map(|page| page.expect("a page").path()).collect();
    pages.sort_unstable();
    let names = pages
        .iter()
        .map(|page| page.file_name().and_then(|name| name.to_str()));
    assert_eq!(
        names.map(|name| name.expect("UTF-8")).collect::<Vec<_>>(),
        expected
    );
    let only = msrgate(&["man"]);
    assert_eq!(
        only.stdout,
        fs::read(folder.join("msrgate.1")).expect("a page")
    );
    if !is_there("groff") {
        return;
    }
    for page in pages {
        let mut groff = Command::new("groff");
        groff.args(["-man", "-Tutf8", "-ww", "-P-cbou"]).arg(&page);
        let output = groff.output().expect("groff");
        assert_eq!(
            (output.status.code(), stderr(&output)),
            (Some(0), ""),
            "{page:?}"
        );
        let text = stdout(&output);
        assert!(
            text.contains("SYNOPSIS") && !text.contains("collect "),
            "{text}"
        );
    }
}

#[test]
fn folder_that_cannot_be_made_is_one_line() {
    let taken = file("taken", b"");
    let output = msrgate(&["man", taken.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).starts_with("error: cannot make "),
        "{}",
        stderr(&output)
    );
}
