//! A policy that is made of several texts, and the rules that it says decide.

use std::collections::BTreeMap;

use msrgate_core::{Access, Action, HandlerId, MsrIndex, Rule};
use msrgate_policy::{
    Compiled, Decider, Diagnostic, Options, SelectorKind, Source, Sources, compile_with,
};

/// The texts by name; `main` is compiled. A path is a name.
fn compile(texts: &[(&str, &str)]) -> (Sources, Result<Compiled, Vec<Diagnostic>>) {
    let texts: BTreeMap<&str, String> = texts
        .iter()
        .map(|&(name, text)| (name, format!("version = 1\n{text}")))
        .collect();
    let load = |_from: &str, path: &str| match texts.get(path) {
        Some(text) => Ok(Source {
            name: path.to_owned(),
            text: text.clone(),
        }),
        None => Err("no such text".to_owned()),
    };
    let options = Options {
        handlers: &["clock", "host"],
        load: Some(&load),
        ..Options::default()
    };
    compile_with("main", &texts["main"], &options)
}

/// The only mistake: its code, and each place with what is written there.
fn mistake(texts: &[(&str, &str)]) -> (&'static str, Vec<(String, String)>) {
    let (sources, result) = compile(texts);
    let diagnostics = result.expect_err("a mistake");
    let [found] = &diagnostics[..] else {
        panic!("{diagnostics:#?}")
    };
    let labels = found.labels.iter().map(|label| {
        let place = sources.place(label.span).to_string();
        (place, sources.text(label.span).to_owned())
    });
    (found.code, labels.collect())
}

fn labels(labels: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = labels
        .iter()
        .map(|&(place, text)| (place.to_owned(), text.to_owned()));
    owned.collect()
}

#[test]
fn included_rules_and_defaults_hold() {
    let (_, result) = compile(&[
        ("main", "include = ['a', 'b']\n[defaults]\ninvalid = 'log'"),
        ("a", "[defaults]\nunknown = 'ignore'\ninvalid = 'fault'"),
        ("b", "[[rule]]\nmsr = 0x48\nread = 'fault'"),
    ]);
    let compiled = result.expect("no mistakes");
    let defaults = compiled.image.defaults();
    assert_eq!(defaults.unknown, Rule::quiet(Action::Ignore));
    assert_eq!(
        defaults.invalid,
        Rule::logged(Action::Fault),
        "the including text's"
    );
    let fault = Some(Rule::quiet(Action::Fault));
    assert_eq!(compiled.image.named(MsrIndex(0x48), Access::Read), fault);
}

#[test]
fn text_that_is_included_twice_is_put_in_once() {
    let (sources, result) = compile(&[
        ("main", "include = ['a', 'b']"),
        ("a", "include = ['base']"),
        ("b", "include = ['base']"),
        ("base", "[[rule]]\nmsr = 0x48\nread = 'fault'"),
    ]);
    result.expect("the rule does not overlap itself");
    let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
    assert_eq!(names, ["main", "a", "base", "b"]);
}

#[test]
fn overlap_across_texts_shows_both() {
    let found = mistake(&[
        (
            "main",
            "include = ['a']\n[[rule]]\nmsr = 0x48\nread = 'fault'",
        ),
        ("a", "[[rule]]\nmsr = 72\nread = 'ignore'"),
    ]);
    let places = labels(&[("a:3", "72"), ("main:4", "0x48")]);
    assert_eq!(found, ("policy::overlap", places));
}

#[test]
fn mistake_in_an_included_text_is_shown_there() {
    let found = mistake(&[("main", "include = ['a']"), ("a", "\ncolour = 'red'")]);
    assert_eq!(found, ("policy::unknown-key", labels(&[("a:3", "colour")])));
}

#[test]
fn text_that_cannot_be_read_is_told_with_the_reason() {
    let (_, result) = compile(&[("main", "include = ['gone']")]);
    let found = &result.expect_err("a mistake")[0];
    assert_eq!(
        (found.code, &*found.message),
        ("policy::include", "cannot include gone")
    );
    assert_eq!(found.labels[0].text, "no such text");
    let (_, result) = compile_with("main", "version = 1\ninclude = ['a']", &Options::default());
    assert_eq!(result.expect_err("a mistake")[0].code, "policy::include");
}

#[test]
fn loop_of_includes_ends() {
    let found = mistake(&[("main", "include = ['a']"), ("a", "include = ['main']")]);
    assert_eq!(
        found,
        ("policy::include-loop", labels(&[("a:2", "'main'")]))
    );
}

#[test]
fn endless_includes_end() {
    let load = |_: &str, path: &str| {
        let number: u32 = path.parse().expect("a number");
        let next = [number * 2 + 1, number * 2 + 2];
        Ok(Source {
            name: path.to_owned(),
            text: format!("version = 1\ninclude = ['{}', '{}']", next[0], next[1]),
        })
    };
    let options = Options {
        load: Some(&load),
        ..Options::default()
    };
    let text = "version = 1\ninclude = ['1']";
    let (sources, result) = compile_with("main", text, &options);
    let diagnostics = result.expect_err("too many");
    assert!(
        diagnostics
            .iter()
            .all(|found| found.code == "policy::include-limit")
    );
    assert_eq!(sources.iter().count(), 256);
    assert!(diagnostics.len() <= 512);
}

#[test]
fn included_defaults_that_differ_are_a_mistake_unless_the_including_text_decides() {
    let a = ("a", "[defaults]\nunknown = 'ignore'");
    let b = ("b", "[defaults]\nunknown = 'log'");
    let found = mistake(&[("main", "include = ['a', 'b']"), a, b]);
    let places = labels(&[("b:3", "'log'"), ("a:3", "'ignore'")]);
    assert_eq!(found, ("policy::default-conflict", places));
    let decided = "include = ['a', 'b']\n[defaults]\nunknown = 'fault'";
    let (_, result) = compile(&[("main", decided), a, b]);
    let compiled = result.expect("no mistakes");
    assert_eq!(
        compiled.image.defaults().unknown,
        Rule::quiet(Action::Fault)
    );
}

#[test]
fn deciders_are_the_rules_that_name_an_access_narrowest_first() {
    let (sources, result) = compile(&[
        (
            "main",
            "include = ['a']\n[[rule]]\nmsr = '0x200..=0x20f'\nboth = 'fault'",
        ),
        ("a", "[[rule]]\nmsr = [1, 0x201]\nread = 'ignore'"),
    ]);
    let compiled = result.expect("no mistakes");
    let shown = |decider: &Decider| {
        let place = sources.place(decider.selector.span).to_string();
        (decider.rule.action, decider.selector.kind, place)
    };
    let read = compiled.deciders(MsrIndex(0x201), Access::Read);
    assert_eq!(
        read.iter().map(shown).collect::<Vec<_>>(),
        [
            (Action::Ignore, SelectorKind::Single, "a:3".to_owned()),
            (Action::Fault, SelectorKind::Range, "main:4".to_owned()),
        ]
    );
    let write = compiled.deciders(MsrIndex(0x201), Access::Write);
    assert_eq!(write.len(), 1);
    assert_eq!(compiled.deciders(MsrIndex(0x210), Access::Read), []);
    let segments = compiled.segments(Access::Read);
    let ends: Vec<(u32, u32)> = segments.iter().map(|it| (it.first.0, it.last.0)).collect();
    assert_eq!(
        ends,
        [(1, 1), (0x200, 0x200), (0x201, 0x201), (0x202, 0x20f)]
    );
}

#[test]
fn handlers_are_called_by_name() {
    let (_, result) = compile(&[(
        "main",
        "[[rule]]\nmsr = 1\nboth = { handler = 'clock' }\n[[rule]]\nmsr = 2\nread = 'host'",
    )]);
    let image = result.expect("no mistakes").image;
    let handler = |id| Some(Rule::quiet(Action::Handler(HandlerId(id))));
    assert_eq!(image.named(MsrIndex(1), Access::Write), handler(0));
    assert_eq!(image.named(MsrIndex(2), Access::Read), handler(1));
}

#[test]
fn handler_that_is_not_there_is_refused_by_name() {
    let rule = "[[rule]]\nmsr = 1\nread = { handler = 'clok' }";
    let (_, result) = compile(&[("main", rule)]);
    let found = &result.expect_err("a mistake")[0];
    assert_eq!(found.code, "policy::handler");
    assert_eq!(found.help.as_deref(), Some("did you mean `clock`?"));
}
