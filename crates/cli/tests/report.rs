//! `msrgate report` from outside: the page in a browser, its figures against the exported trace, and bad traces.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use msrgate_core::{Access, Event, ExitReason, MsrIndex, Outcome, Timed, VcpuId};
use msrgate_trace::{Facts, Header, PolicySource, Writer};
use serde_json::Value;

#[path = "support/browser.rs"]
mod browser;
#[path = "support/mod.rs"]
mod support;

use support::{Elf, backends, command, file, msrgate, stderr, stdout};

const DESKTOP: u32 = 1280;
const PHONE: u32 = 500; // headless Chromium has no narrower window

fn output(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A trace of the tour, on a backend.
fn tour(name: &str, backend: &str) -> PathBuf {
    let path = output(name);
    let run = msrgate(&["run", "--backend", backend, "--trace", text(&path)]);
    assert_eq!(run.status.code(), Some(0), "{}", stderr(&run));
    path
}

/// Makes a page, without a warning.
fn report(name: &str, arguments: &[&str]) -> PathBuf {
    let page = output(name);
    let run = command(&["report", "-o", text(&page)])
        .args(arguments)
        .output()
        .expect("it runs");
    assert_eq!((run.status.code(), stderr(&run)), (Some(0), ""));
    page
}

/// What is in the page for its script.
fn document(page: &Path) -> Value {
    let html = fs::read_to_string(page).expect("a page");
    let (_, behind) = html
        .split_once("<script type=\"application/json\" id=\"data\">")
        .expect("data");
    let (json, _) = behind.split_once("</script>").expect("an end");
    serde_json::from_str(json).expect("JSON")
}

/// Reads and writes of each MSR, as the exported trace has them.
fn exported(trace: &Path) -> BTreeMap<String, [u64; 2]> {
    let output = msrgate(&["export", text(trace), "--format", "jsonl"]);
    assert_eq!(output.status.code(), Some(0));
    let mut sums: BTreeMap<String, [u64; 2]> = BTreeMap::new();
    for line in stdout(&output).lines() {
        let row: Value = serde_json::from_str(line).expect("JSON");
        let counts = sums.entry(word(&row["index"]).to_owned()).or_default();
        counts[usize::from(row["access"] == "write")] += 1;
    }
    sums
}

fn word(value: &Value) -> &str {
    value.as_str().expect("a text")
}

fn number(value: &Value) -> u64 {
    word(value).replace(',', "").parse().expect("a number")
}

/// The same from the table that a browser shows.
fn shown(rows: &Value) -> BTreeMap<String, [u64; 2]> {
    let rows = rows.as_array().expect("rows");
    let row = |row: &Value| {
        let counts = [number(&row["Reads"]), number(&row["Writes"])];
        (word(&row["Index"]).to_owned(), counts)
    };
    let sums: BTreeMap<_, _> = rows.iter().map(row).collect();
    assert_eq!(sums.len(), rows.len(), "one row for each MSR");
    sums
}

/// Accesses in view, as the page says.
fn in_view(text: &Value) -> u64 {
    let count = word(text).split_once(' ').expect("a number").0;
    count.replace(',', "").parse().expect("a number")
}

fn event(index: u32) -> Event {
    Event {
        vcpu: VcpuId(0),
        index: MsrIndex(index),
        access: Access::Read,
        reason: ExitReason::NONE,
        rip: None,
        value: 0,
        outcome: Outcome::Native,
        log: false,
    }
}

fn written(name: &str, facts: Facts, events: impl IntoIterator<Item = Timed>) -> PathBuf {
    let header = Header {
        start_ns: 1_700_000_000_000_000_000,
        facts,
    };
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, &header).expect("a header");
    for timed in events {
        writer.record(&timed);
    }
    writer.finish();
    file(name, &bytes)
}

#[test]
fn page_of_the_tour_has_the_traces_figures_sorts_filters_and_zooms() {
    if !browser::is_there() {
        return;
    }
    for backend in backends() {
        let trace = tour(&format!("report-{backend}.trace"), backend);
        let page = report(&format!("report-{backend}.html"), &[text(&trace)]);
        let sums = exported(&trace);
        let [reads, writes] = sums
            .values()
            .fold([0; 2], |[r, w], it| [r + it[0], w + it[1]]);
        for width in [DESKTOP, PHONE] {
            let seen = browser::see(&page, width);
            assert_eq!(shown(&seen["rows"]), sums);
            assert_eq!(number(&seen["tiles"]["reads"]), reads);
            assert_eq!(number(&seen["tiles"]["writes"]), writes);
            assert_eq!(seen["cells"].as_array().expect("cells").len(), sums.len());
            assert_eq!(seen["isTooWide"], false);
            is_sorted(&seen, &sums);
            assert_eq!(seen["found"]["rows"].as_array().expect("rows").len(), 1);
            assert_eq!(seen["found"]["rows"][0]["Index"], "0x8b");
            assert_eq!(
                seen["nothing"]["status"],
                format!("0 of {} MSRs", sums.len())
            );
            is_zoomed(&seen, reads + writes);
        }
    }
}

fn is_sorted(seen: &Value, sums: &BTreeMap<String, [u64; 2]>) {
    for (key, direction, is_down) in [("up", "descending", true), ("down", "ascending", false)] {
        let reads: Vec<u64> = seen[key]["rows"]
            .as_array()
            .expect("rows")
            .iter()
            .map(|row| number(&row["Reads"]))
            .collect();
        let mut expected: Vec<u64> = sums.values().map(|[reads, _]| *reads).collect();
        expected.sort_unstable();
        if is_down {
            expected.reverse();
        }
        assert_eq!(reads, expected);
        assert_eq!(seen[key]["sort"], direction);
    }
}

fn is_zoomed(seen: &Value, all: u64) {
    let views = seen["views"].as_array().expect("views");
    let counts: Vec<u64> = views.iter().map(in_view).collect();
    let [whole, near, later, back, home, part, end] = counts[..] else {
        panic!("{views:?}");
    };
    assert_eq!([whole, home, end], [all; 3]);
    assert!(near < all && part < all && later <= back, "{views:?}");
    assert_ne!(views[1], views[2], "another part");
    let lanes = seen["lanes"].as_array().expect("texts").iter().map(word);
    let counted: u64 = lanes.filter_map(|text| text.parse::<u64>().ok()).sum();
    assert_eq!(counted, all, "each access is in one lane");
}

#[test]
fn rules_that_decided_are_those_of_the_policy() {
    let trace = tour("report-rules.trace", "soft");
    let document = document(&report("report-rules.html", &[text(&trace)]));
    let trace = &document["traces"][0];
    let rules = |index: u32| -> Vec<&str> {
        let rows = trace["msrs"].as_array().expect("rows");
        let row = rows
            .iter()
            .find(|row| row["index"] == index)
            .expect("a row");
        let rules = row["rules"].as_array().expect("rules").iter();
        rules
            .map(|rule| {
                word(
                    &trace["rules"]
                        [usize::try_from(rule[1].as_u64().expect("a place")).expect("small")],
                )
            })
            .collect()
    };
    assert_eq!(
        rules(0x8b),
        [
            "of the tour:10, msr = \"IA32_BIOS_SIGN_ID\": reads 0x100006500000000",
            "of the tour:10, msr = \"IA32_BIOS_SIGN_ID\": the value is dropped",
        ]
    );
    assert_eq!(
        rules(0x3a),
        ["of the tour:15, msr = \"IA32_FEATURE_CONTROL\": #GP(0)"]
    );
    assert!(rules(0x474f_4f00)[0].ends_with("defaults.unknown: reads 0"));
}

#[test]
fn instructions_get_the_names_of_their_functions() {
    // mov ecx, 0x8b; rdmsr; out 0xf4, al
    let guest = file(
        "report.elf",
        &Elf::new(b"\xb9\x8b\x00\x00\x00\x0f\x32\xe6\xf4").bytes(),
    );
    let trace = output("report-symbols.trace");
    let run = msrgate(&[
        "run",
        "--backend",
        "soft",
        "--trace",
        text(&trace),
        text(&guest),
    ]);
    assert_eq!(run.status.code(), Some(0), "{}", stderr(&run));
    let map = file(
        "report.map",
        b"0000000000100000 T start\n0000000000200000 T end\n",
    );
    let arguments = [text(&trace), "--symbols", text(&map)];
    let found = document(&report("report-symbols.html", &arguments));
    assert_eq!(found["traces"][0]["msrs"][0]["symbol"], "start+0x5");

    let elsewhere = file("elsewhere.map", b"ffffffff81000000 T start\n");
    let run = msrgate(&["report", text(&trace), "--symbols", text(&elsewhere)]);
    assert_eq!(run.status.code(), Some(0));
    assert!(stderr(&run).contains("nokaslr"), "{}", stderr(&run));
    let nothing = file("nothing.map", b"\xff\xfe");
    let run = msrgate(&["report", text(&trace), "--symbols", text(&nothing)]);
    assert_eq!(run.status.code(), Some(2));
    assert!(
        stderr(&run).contains("neither a System.map nor an ELF file"),
        "{}",
        stderr(&run)
    );
}

#[test]
fn nothing_of_a_trace_or_a_policy_is_markup() {
    const HOSTILE: &str = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'><!-- & \u{202e}\u{1b}[31m \"'";
    let facts = Facts {
        program: HOSTILE.to_owned(),
        command: HOSTILE.to_owned(),
        guest: HOSTILE.to_owned(),
        backend: HOSTILE.to_owned(),
        kernel: HOSTILE.to_owned(),
        observation: None,
        policies: vec![
            PolicySource {
                name: HOSTILE.to_owned(),
                text: format!("version = 1 # {HOSTILE}\n[[rule]]\nmsr = 0x10\nread = 'fault'\n")
                    .replace('\u{1b}', ""),
            },
            PolicySource {
                name: "<b>mistaken</b>".to_owned(),
                text: HOSTILE.to_owned(),
            },
        ],
        includes: Vec::new(),
    };
    let accesses = (0..3).map(|time_ns| Timed {
        time_ns,
        event: Event {
            reason: ExitReason::FILTER,
            outcome: Outcome::Fault,
            ..event(0x10)
        },
    });
    let trace = written("<img src=x onerror=alert(1)>.trace", facts, accesses);
    let page = output("report-hostile.html");
    let map = file(
        "hostile.map",
        format!("0 T {}\n", "</script><b>x</b>").as_bytes(),
    );
    let run = msrgate(&[
        "report",
        text(&trace),
        "--symbols",
        text(&map),
        "-o",
        text(&page),
    ]);
    assert_eq!(run.status.code(), Some(0), "{}", stderr(&run));
    assert!(!stderr(&run).contains('\u{1b}'), "{:?}", stderr(&run));
    let html = fs::read_to_string(&page).expect("a page");
    for mark in ["hacked = 1</script>", "<img", "<!--", "<b>"] {
        assert!(!html.contains(mark), "{mark}");
    }
    assert!(!html.contains(['\u{202e}', '\u{1b}']));
    if !browser::is_there() {
        return;
    }
    let seen = browser::see(&page, DESKTOP);
    assert_eq!(seen["hacked"], Value::Null);
    assert!(
        word(&seen["text"]).contains("<img src=x onerror='window.hacked = 1'>"),
        "it is shown as it is"
    );
    assert!(word(&seen["rows"][0]["Decided by"]).contains("</script>"));
}

#[test]
fn two_traces_are_compared() {
    let at = |time_ns, event| Timed { time_ns, event };
    let refused = Event {
        outcome: Outcome::Fault,
        ..event(0x20)
    };
    let a = written(
        "report-a.trace",
        Facts::default(),
        [at(1, event(0x10)), at(2, event(0x20)), at(9, event(0x8b))],
    );
    let b = written(
        "report-b.trace",
        Facts::default(),
        [at(1, event(0x30)), at(5, refused), at(9, event(0x8b))],
    );
    let page = report("report-two.html", &[text(&a), text(&b)]);
    if !browser::is_there() {
        return;
    }
    let seen = browser::see(&page, DESKTOP);
    let rows = seen["comparison"].as_array().expect("rows").iter();
    let rows: Vec<_> = rows
        .map(|row| ["Index", "Differs in", "A", "B"].map(|key| word(&row[key])))
        .collect();
    assert_eq!(
        rows,
        [
            ["0x10", "only in A", "1 read native", "not touched"],
            ["0x20", "outcome, last value", "1 read native", "1 read #GP"],
            ["0x30", "only in B", "not touched", "1 read native"],
        ]
    );
    assert!(
        word(&seen["text"])
            .contains("1 MSR only in A, 1 only in B, 1 with another outcome, 1 alike.")
    );
    assert_eq!(
        shown(&seen["rows"]),
        exported(&a),
        "the first trace is shown below"
    );
}

#[test]
fn page_of_a_million_accesses_is_small_and_right() {
    let accesses = (0..1_000_000u32).map(|number| Timed {
        time_ns: u64::from(number) * 7919,
        event: Event {
            vcpu: VcpuId(number % 8),
            value: u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            rip: Some(u64::from(number) << 8),
            outcome: Outcome::from_code((number % 9).try_into().expect("small"))
                .expect("an outcome"),
            reason: ExitReason(number / 9 % 8),
            ..event(number.wrapping_mul(0x9e37_79b1) >> 20)
        },
    });
    let trace = written("report-million.trace", Facts::default(), accesses);
    let name = text(&trace);
    for arguments in [&[name][..], &[name, name]] {
        let page = report("report-million.html", arguments);
        let bytes = fs::metadata(&page).expect("a page").len();
        assert!(bytes < 3_000_000, "{bytes} bytes");
        let document = document(&page);
        let trace = &document["traces"][0];
        let rows = trace["msrs"].as_array().expect("rows").iter();
        let in_rows: u64 = rows
            .map(|row| row["reads"].as_u64().expect("a number"))
            .sum();
        assert_eq!(
            in_rows + trace["hidden"].as_u64().expect("a number"),
            1_000_000
        );
        let lanes = trace["timeline"].as_array().expect("lanes").iter();
        let counts =
            lanes.flat_map(|lane| lane[1].as_array().expect("bins").iter().skip(1).step_by(2));
        assert_eq!(
            counts
                .map(|count| count.as_u64().expect("a number"))
                .sum::<u64>(),
            1_000_000
        );
        if arguments.len() == 1 && browser::is_there() {
            let seen = browser::see(&page, DESKTOP);
            assert_eq!(seen["tiles"]["accesses"], "1,000,000");
            assert_eq!(in_view(&seen["views"][0]), 1_000_000);
            assert!(word(&seen["text"]).contains("Show all"));
        }
    }
}

#[test]
fn torn_and_empty_traces_are_pages_that_say_so() {
    let trace = tour("report-torn.trace", "soft");
    let mut bytes = fs::read(&trace).expect("a file");
    bytes.truncate(bytes.len() - 10);
    let torn = file("report-torn.trace", &bytes);
    let run = msrgate(&["report", text(&torn)]);
    assert_eq!(run.status.code(), Some(0));
    assert!(stderr(&run).contains("torn"), "{}", stderr(&run));
    let page = file("report-torn.html", stdout(&run).as_bytes());
    let empty = written("report-none.trace", Facts::default(), []);
    let nothing = report("report-none.html", &[text(&empty)]);
    if !browser::is_there() {
        return;
    }
    let seen = browser::see(&page, DESKTOP);
    assert!(
        word(&seen["text"]).contains("The trace is torn"),
        "{}",
        seen["text"]
    );
    assert_eq!(shown(&seen["rows"]), exported(&torn));
    let seen = browser::see(&nothing, DESKTOP);
    assert!(word(&seen["text"]).contains("made no MSR access that was seen"));
}

#[test]
fn what_is_no_trace_is_one_line_and_no_page() {
    let good = tour("report-good.trace", "soft");
    let none = file("report-no.trace", b"version = 1\n");
    let empty = file("report-empty.trace", b"");
    let mut bytes = fs::read(&good).expect("a file");
    bytes[8] = 9;
    let foreign = file("report-foreign.trace", &bytes);
    let page = output("report-never.html");
    for (traces, expected) in [
        (
            vec![text(&none)],
            "not a trace: it does not begin with MSRTRACE",
        ),
        (
            vec![text(&empty)],
            "the file is empty: a trace begins with a header",
        ),
        (
            vec![text(&foreign)],
            "a trace of version 9: this program reads version 1",
        ),
        (vec![text(&good), "no-such-trace"], "No such file"),
    ] {
        let run = command(&["report", "-o", text(&page)])
            .args(&traces)
            .output()
            .expect("it runs");
        assert_eq!(run.status.code(), Some(2));
        let message = stderr(&run);
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(
            message.starts_with("error: ") && message.contains(expected),
            "{message}"
        );
        assert!(!page.exists());
    }
}

#[test]
fn page_goes_to_whoever_reads_it_and_not_to_a_terminal() {
    let trace = tour("report-pipe.trace", "soft");
    let whole = report("report-pipe.html", &[text(&trace)]);
    let run = msrgate(&["report", text(&trace)]);
    assert_eq!(stdout(&run).as_bytes(), fs::read(whole).expect("a page"));

    let mut child = command(&["report", text(&trace)])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("a child").code(), Some(0));

    let terminal = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/ptmx")
        .expect("a terminal");
    let run = command(&["report", text(&trace)])
        .stdout(terminal)
        .output()
        .expect("it runs");
    assert_eq!(run.status.code(), Some(2));
    assert!(
        stderr(&run).contains("name a file with -o"),
        "{}",
        stderr(&run)
    );
}
