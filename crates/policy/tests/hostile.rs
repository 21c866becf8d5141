//! Texts that nobody writes by accident: each gives a policy or a bounded number of mistakes, in bounded time.

use std::fmt::Write;
use std::time::{Duration, Instant};

use msrgate_policy::{Compiled, Diagnostic, compile};

/// Far more than any of these takes, far less than a cost that grows with the square of the text.
const LONG: Duration = Duration::from_secs(30);

fn compile_soon(text: &str) -> Result<Compiled, Vec<Diagnostic>> {
    let start = Instant::now();
    let compiled = compile(text);
    assert!(start.elapsed() < LONG, "{:?}", start.elapsed());
    if let Err(diagnostics) = &compiled {
        assert!(
            (1..1000).contains(&diagnostics.len()),
            "{}",
            diagnostics.len()
        );
        for label in diagnostics.iter().flat_map(|found| &found.labels) {
            assert!(text.get(label.span.range()).is_some());
        }
    }
    compiled
}

fn codes(text: &str) -> Vec<&'static str> {
    let diagnostics = compile_soon(text).expect_err("a mistake");
    let mut codes: Vec<_> = diagnostics.iter().map(|found| found.code).collect();
    codes.dedup();
    codes
}

/// `line` again and again, to a megabyte; `%` is a number that counts up.
fn megabyte(head: &str, line: &str) -> String {
    let mut text = format!("version = 1\n{head}");
    for number in 0.. {
        text += &line.replace('%', &number.to_string());
        if text.len() > 1 << 20 {
            break;
        }
    }
    text
}

#[test]
fn megabyte_of_rules_compiles() {
    let mut text = "version = 1\n".to_owned();
    let mut index = 0x1000;
    while text.len() <= 1 << 20 {
        writeln!(
            text,
            "[[rule]]\nmsr = {index:#x}\nread = {{ value = {index} }}"
        )
        .expect("a String");
        index += 1;
    }
    let compiled = compile_soon(&text).expect("no mistakes");
    let count: u32 = compiled
        .filter
        .ranges()
        .iter()
        .map(|range| range.nmsrs)
        .sum();
    assert_eq!(count, index - 0x1000);
}

#[test]
fn megabyte_of_mistakes_is_bounded() {
    for (line, code) in [
        (
            "[[rule]]\nmsr = 'IA32_SPEC_CTL%'\nboth = 'fault'\n",
            "policy::unknown-msr",
        ),
        ("[[rule]]\nmsr = 1\nboth = 'fault'\n", "policy::overlap"),
        (
            "[[rule]]\nmsr = '@mtrr'\nboth = 'fault'\n",
            "policy::overlap",
        ),
        ("[[rule]]\nmsr = 1\nmsr = 1\n", "policy::duplicate-key"),
        (
            "[[rule]]\nmsr = 99999999999999999999999999\nboth = 'fault'\n",
            "policy::number",
        ),
        ("[[rule]]\nmsr = 0x8%\nboth = 'fault\n", "policy::syntax"),
        ("key% = 1\n", "policy::unknown-key"),
        ("[table%]\n", "policy::unknown-key"),
        ("a.b% = 1\n", "policy::unknown-key"),
        ("]", "policy::syntax"),
        ("\0", "policy::syntax"),
    ] {
        assert_eq!(codes(&megabyte("", line)), [code], "{line}");
    }
    let list = megabyte("[[rule]]\nboth = 'fault'\nmsr = [", "'NO_SUCH_MSR_%',\n") + "]\n";
    assert_eq!(codes(&list), ["policy::unknown-msr"]);
}

#[test]
fn megabyte_of_one_thing_is_what_it_is() {
    assert!(compile_soon(&megabyte("", "# nothing\n")).is_ok());
    assert!(compile_soon(&megabyte("", "\n")).is_ok());
    let ranges = megabyte(
        "[[rule]]\nboth = 'fault'\nmsr = [",
        "'0xc0000000..=0xc0001%',\n",
    ) + "]\n";
    assert!(compile_soon(&ranges).is_err());
    let long = "x".repeat(1 << 20);
    assert_eq!(
        codes(&format!("version = 1\n{long} = 1\n")),
        ["policy::unknown-key"]
    );
    let rule = format!("version = 1\n[[rule]]\nmsr = '{long}'\nboth = '{long}'\n");
    assert_eq!(codes(&rule), ["policy::unknown-msr", "policy::action"]);
}

#[test]
fn nested_values_end() {
    for open in ["[", "{ a = ", "[{ a = "] {
        let text = format!("version = 1\nrule = {}", open.repeat(10_000));
        assert_eq!(codes(&text), ["policy::syntax"], "{open}");
    }
    let dotted = format!("version = 1\n{}a = 1\n", "a.".repeat(10_000));
    assert_eq!(codes(&dotted), ["policy::syntax"]);
    let header = format!("version = 1\n[{}a]\n", "a.".repeat(10_000));
    assert_eq!(codes(&header), ["policy::syntax"]);
    let deep = format!("version = 1\nrule = {}{}\n", "[".repeat(60), "]".repeat(60));
    assert_eq!(codes(&deep), ["policy::type"]);
}

#[test]
fn ranges_as_wide_as_can_be_end() {
    let mut text = "version = 1\n[defaults]\nknown = 'ignore'\n\
        [[rule]]\nmsr = '0x800..=0x8ff'\nboth = 'allow'\n"
        .to_owned();
    for number in 0..10_000u32 {
        let (first, last) = (0x2000 + number, u32::MAX - 1 - number);
        writeln!(
            text,
            "[[rule]]\nmsr = '{first:#x}..={last:#x}'\nboth = 'ignore'"
        )
        .expect("a String");
    }
    assert!(compile_soon(&text).is_ok(), "they say what holds anyway");
    let shadows = text.replace("both = 'ignore'", "shadow = {}");
    assert_eq!(codes(&shadows), ["policy::too-big"]);
}

#[test]
fn byte_order_mark_and_windows_line_ends_are_taken() {
    let text = "\u{feff}version = 1\r\n\r\n[[rule]]\r\nmsr = 0x48\r\nboth = 'fault'\r\n";
    assert_eq!(
        compile_soon(text)
            .expect("no mistakes")
            .filter
            .ranges()
            .len(),
        1
    );
    assert_eq!(codes("\u{feff}version = 2"), ["policy::version"]);
    assert_eq!(codes("\u{feff}"), ["policy::version"]);
}
