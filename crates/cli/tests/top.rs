//! `msrgate top` and `run --top` on a terminal: what is shown, what keys do, and that the terminal is given back.

use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

#[path = "support/preload.rs"]
mod preload;
#[path = "support/screen.rs"]
mod screen;
#[expect(dead_code, reason = "it is for more tests than these")]
mod support;

use screen::Terminal;
use support::{Elf, command, file, msrgate, stderr};

const MSRGATE: &str = env!("CARGO_BIN_EXE_msrgate");

/// Reads MSR 0x474f4f00 five times and IA32_BIOS_SIGN_ID twice, writes that once, and then runs for ever.
fn guest(name: &str) -> PathBuf {
    let read = |index: u32, count: usize| {
        let index = index.to_le_bytes();
        [&[0xb9], &index[..], &b"\x0f\x32".repeat(count)].concat()
    };
    // … wrmsr; here: jmp here
    let code = [
        read(0x474f_4f00, 5),
        read(0x8b, 2),
        b"\x0f\x30\xeb\xfe".to_vec(),
    ]
    .concat();
    file(name, &Elf::new(&code).bytes())
}

/// Reads IA32_BIOS_SIGN_ID for ever.
fn busy_guest(name: &str) -> PathBuf {
    // mov ecx, 0x8b; again: rdmsr; jmp again
    file(name, &Elf::new(b"\xb9\x8b\0\0\0\x0f\x32\xeb\xfc").bytes())
}

fn policy(name: &str) -> PathBuf {
    let text = "\
version = 1
[defaults]
unknown = 'ignore'
[[rule]]
msr   = 0x8b
read  = { value = 0x42 }
write = 'ignore'
";
    file(name, text.as_bytes())
}

/// `run --top` of a guest.
fn run(name: &str, guest: &PathBuf) -> Command {
    let mut run = command(&["run", "--backend", "soft", "--top", "--policy"]);
    run.arg(policy(&format!("{name}.toml"))).arg(guest);
    run
}

/// `top` around a VMM on the embedded KVM.
fn top(vmm: &[&str]) -> Command {
    let mut top = command(&["top", "--kvm", "soft", "--"]);
    top.args(vmm).env("MSRGATE_PRELOAD", preload::library());
    top
}

/// The rows between the header and what is below, each without the spaces that only fill it.
fn rows(contents: &str) -> Vec<String> {
    let lines = contents.lines().skip_while(|line| !line.starts_with("MSR"));
    let rows = lines
        .skip(1)
        .take_while(|line| !line.is_empty() && !line.starts_with(" output"));
    rows.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

fn indices(contents: &str) -> Vec<String> {
    let words = rows(contents);
    let words = words.iter().filter_map(|row| row.split(' ').nth(1));
    words.map(str::to_owned).collect()
}

#[test]
fn screen_shows_what_the_table_says_in_the_end() {
    let mut terminal = Terminal::start(run("top-table", &guest("top-table.elf")), 80, 24);
    let shown = terminal.wait_for_text("8 accesses, 0.0 a second, 3 rows");
    assert!(shown.starts_with("msrgate: "), "{shown}");
    assert!(
        shown.contains(
            "\nMSR               INDEX      PER SEC\u{25bc}   READS  WRITES  VCPU REASON  OUTCOME\n"
        ),
        "{shown}"
    );
    assert_eq!(
        rows(&shown),
        [
            "IA32_BIOS_SIGN_ID 0x8b 0.0 2 0 0 filter value",
            "IA32_BIOS_SIGN_ID 0x8b 0.0 0 1 0 filter ignored",
            "- 0x474f4f00 0.0 5 0 0 unknown ignored",
        ]
    );
    assert!(
        shown.lines().all(|line| line.chars().count() <= 80) && shown.lines().count() == 24,
        "{shown}"
    );
    terminal.press("q");
    let (status, printed) = terminal.end();
    assert_eq!(status.code(), Some(0));
    for row in [
        "IA32_BIOS_SIGN_ID  0x8b            2       0  filter   = 0x42",
        "IA32_BIOS_SIGN_ID  0x8b            0       1  filter   ignored",
        "-                  0x474f4f00      5       0  unknown  ignored",
        "8 MSR accesses left the guest. You stopped the guest.",
    ] {
        assert!(printed.contains(row), "{printed}");
    }
}

#[test]
fn keys_order_filter_and_invert() {
    let mut terminal = Terminal::start(run("top-keys", &guest("top-keys.elf")), 80, 24);
    terminal.wait_for_text("8 accesses, 0.0 a second");
    let ordered = |terminal: &mut Terminal, keys: &str, mark: &str, expected: [&str; 3]| {
        terminal.press(keys);
        let shown = terminal.wait_for_text(mark);
        assert_eq!(indices(&shown), expected, "{shown}");
    };
    ordered(
        &mut terminal,
        "\x1b[C",
        "TOTAL\u{25bc}",
        ["0x474f4f00", "0x8b", "0x8b"],
    );
    ordered(
        &mut terminal,
        "i",
        "TOTAL\u{25b2}",
        ["0x8b", "0x8b", "0x474f4f00"],
    );
    ordered(
        &mut terminal,
        "\x1b[D\x1b[D",
        "INDEX\u{25b2}",
        ["0x8b", "0x8b", "0x474f4f00"],
    );
    terminal.press("/SIGN");
    terminal.wait_for_text("filter: SIGN");
    terminal.press("x\x7f_id\r");
    let shown = terminal.wait_for_text("2 with \u{201c}SIGN_id\u{201d}");
    assert_eq!(indices(&shown), ["0x8b", "0x8b"]);
    assert!(shown.contains("q quit"), "{shown}");
    terminal.press("/q");
    let shown = terminal.wait_for_text("filter: SIGN_idq");
    assert_eq!(rows(&shown).len(), 0, "q is a letter here");
    terminal.press("\x1b");
    terminal.wait_for("all rows", |shown| rows(shown).len() == 3);
    // Ctrl-C, which is a key in raw mode.
    terminal.press("\x03");
    assert_eq!(terminal.end().0.code(), Some(0));
}

#[test]
fn pause_holds_what_is_shown() {
    let mut terminal = Terminal::start(run("top-pause", &busy_guest("top-pause.elf")), 80, 24);
    terminal.wait_for_text("\nIA32_BIOS_SIGN_ID");
    let numbers = |contents: &str| (contents.lines().nth(1).map(str::to_owned), rows(contents));
    let first = numbers(&terminal.contents());
    terminal.wait_for("another number", |shown| numbers(shown) != first);
    terminal.press(" ");
    let held = numbers(&terminal.wait_for_text("PAUSED"));
    let clock = |contents: &str| contents.lines().next().map(str::to_owned);
    let then = clock(&terminal.contents());
    terminal.wait_for("two seconds", |shown| clock(shown) != then);
    let then = clock(&terminal.contents());
    let later = terminal.wait_for("two seconds", |shown| clock(shown) != then);
    assert_eq!(numbers(&later), held);
    terminal.press(" ");
    terminal.wait_for("another number", |shown| numbers(shown).1 != held.1);
    terminal.press("q");
    assert_eq!(terminal.end().0.code(), Some(0));
}

#[test]
fn any_size_will_do() {
    let mut terminal = Terminal::start(run("top-size", &guest("top-size.elf")), 80, 24);
    terminal.wait_for_text("8 accesses, 0.0 a second");
    for (columns, rows) in [(1, 1), (3, 40), (200, 2)] {
        terminal.resize(columns, rows);
        thread::sleep(Duration::from_millis(250));
    }
    terminal.resize(40, 10);
    let shown = terminal.wait_for_text("MSR               INDEX      PER SEC\u{25bc}\n");
    assert_eq!(indices(&shown), ["0x8b", "0x8b", "0x474f4f00"]);
    terminal.resize(120, 30);
    let shown = terminal.wait_for_text("OUTCOME            LAST READ\n");
    assert_eq!(
        rows(&shown)[0],
        "IA32_BIOS_SIGN_ID 0x8b 0.0 2 2 0 0 filter value 0x42"
    );
    terminal.press("q");
    assert_eq!(terminal.end().0.code(), Some(0));
}

/// `run --top` without a policy, of a guest that does nothing for ever.
fn idle(name: &str) -> Command {
    let mut run = command(&["run", "--backend", "soft", "--top"]);
    run.arg(file(name, &Elf::new(b"\xeb\xfe").bytes()));
    run
}

#[test]
fn signals_end_the_guest_and_give_the_terminal_back() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut terminal = Terminal::start(idle("top-signal.elf"), 80, 24);
        terminal.wait_for_text("0 accesses");
        terminal.signal(signal);
        let (status, printed) = terminal.end();
        assert_eq!(status.code(), Some(0), "{printed}");
        assert!(printed.contains("You stopped the guest."), "{printed}");
    }
}

#[test]
fn nothing_outlives_its_terminal() {
    let with_policy = run("top-hangup", &guest("top-hangup.elf"));
    let vmm = top(&["sleep", "1000"]);
    for command in [idle("top-hangup-idle.elf"), with_policy, vmm] {
        let mut terminal = Terminal::start(command, 80, 24);
        terminal.wait_for_text(" accesses, ");
        terminal.hang_up();
    }
}

#[test]
fn guest_that_ends_gives_the_terminal_back_with_its_last_words() {
    // mov dx, 0x3f8; for each byte: mov al, byte; out dx, al; then out 0xf4, al
    let mut code = b"\x66\xba\xf8\x03".to_vec();
    for byte in *b"\x1b[2Jlast \x1b]0;title\x07words" {
        code.extend([0xb0, byte, 0xee]);
    }
    code.extend(b"\xb0\0\xe6\xf4");
    let guest = file("top-words.elf", &Elf::new(&code).bytes());
    let mut terminal = Terminal::start(run("top-words", &guest), 80, 24);
    let (status, printed) = terminal.end();
    assert_eq!(status.code(), Some(0), "{printed}");
    assert!(printed.contains("\nlast words\n"), "{printed}");
    assert!(printed.contains("The guest ended by itself."), "{printed}");
    let bytes = terminal.bytes();
    assert!(!bytes.windows(4).any(|it| it == b"\x1b]0;"), "{printed}");
}

#[test]
fn names_do_not_control_the_terminal() {
    let guest = guest("top-\x1b]0;title\x07-\u{9b}2J.elf");
    let mut terminal = Terminal::start(run("top-names", &guest), 200, 24);
    let shown = terminal.wait_for_text("8 accesses, 0.0 a second");
    assert!(shown.starts_with("msrgate: "), "{shown}");
    assert!(
        shown.contains("top-?]0;title?-?2J.elf") || shown.contains('\u{2026}'),
        "{shown}"
    );
    let bytes = terminal.bytes();
    assert!(!bytes.windows(4).any(|it| it == b"\x1b]0;"), "{shown}");
    terminal.press("q");
    terminal.end();
}

#[test]
fn colours_are_left_out_where_nobody_wants_them() {
    for (no_color, expected) in [(Some("1"), false), (None, true)] {
        let mut run = run("top-colour", &guest("top-colour.elf"));
        run.env_remove("NO_COLOR").env("TERM", "xterm");
        run.envs(no_color.map(|value| ("NO_COLOR", value)));
        let mut terminal = Terminal::start(run, 80, 24);
        terminal.wait_for_text("8 accesses, 0.0 a second");
        let screen = terminal.screen();
        let places = (0..24).flat_map(|row| (0..80).map(move |column| (row, column)));
        let mut cells = places.filter_map(|(row, column)| screen.cell(row, column));
        let has_colours = cells.any(|cell| cell.fgcolor() != vt100::Color::Default);
        assert_eq!(has_colours, expected);
        terminal.press("q");
        terminal.end();
    }
}

#[test]
fn without_a_terminal_it_is_one_line() {
    for arguments in [&["run", "--top"][..], &["top", "--kvm", "soft", "true"]] {
        let output = msrgate(arguments);
        assert_eq!(output.status.code(), Some(2));
        let said = stderr(&output);
        assert!(
            said.starts_with("error: the live view needs a terminal "),
            "{said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn vmm_is_shown_and_q_ends_it() {
    let guest = guest("top-vmm.elf");
    let policy = policy("top-vmm.toml");
    let vmm = [
        MSRGATE,
        "run",
        "--backend",
        "kvm",
        "--policy",
        policy.to_str().unwrap(),
        guest.to_str().unwrap(),
    ];
    let mut terminal = Terminal::start(top(&vmm), 80, 24);
    let shown = terminal.wait_for_text("8 accesses, 0.0 a second");
    assert_eq!(
        rows(&shown)[0],
        "IA32_BIOS_SIGN_ID 0x8b 0.0 2 1 0 filter vmm"
    );
    let shown = terminal.wait_for_text(" output ");
    assert!(
        shown.contains("\nmsrgate: vCPU 0: rdmsr 0x474f4f00, unknown: = 0x0\n"),
        "{shown}"
    );
    terminal.press("q");
    let (status, printed) = terminal.end();
    assert_eq!(status.code(), Some(0), "{printed}");
    assert!(
        printed.contains("-                  0x474f4f00      5       0  unknown  vmm"),
        "{printed}"
    );
    assert!(
        printed.ends_with("8 MSR accesses left the guest."),
        "{printed}"
    );
}

#[test]
fn vmm_that_does_not_want_to_end_is_killed_by_the_second_q() {
    let mut terminal = Terminal::start(
        top(&[
            "sh",
            "-c",
            "trap 'echo not yet' TERM; echo ready; while :; do sleep 0.1; done",
        ]),
        80,
        24,
    );
    terminal.wait_for_text("ready");
    terminal.press("q");
    let shown = terminal.wait_for_text("not yet");
    assert!(
        shown.contains("SIGTERM was sent to the VMM. q again: SIGKILL"),
        "{shown}"
    );
    terminal.press("q");
    assert_eq!(terminal.end().0.code(), Some(0));
}

/// In a session of its own, which ends by itself.
#[test]
fn process_that_left_the_vmm_is_shown_and_not_waited_for_in_the_end() {
    let guest = busy_guest("top-left.elf");
    let script = "setsid -f timeout 20 \"$@\"; exec sleep 1";
    let vmm = [MSRGATE, "run", "--backend", "kvm", guest.to_str().unwrap()];
    let mut terminal = Terminal::start(
        top(&[&["sh", "-c", script, "sh"], &vmm[..]].concat()),
        80,
        24,
    );
    terminal.wait_for_text("IA32_BIOS_SIGN_ID");
    terminal.press("q");
    terminal.wait_for_text("SIGTERM was sent");
    terminal.press("q");
    assert_eq!(terminal.end().0.code(), Some(0));
}

#[test]
fn status_and_last_words_are_the_vmms() {
    for (script, expected) in [("exit 0", 0), ("exit 7", 7), ("kill -SEGV $$", 128 + 11)] {
        let script = format!("echo >&2 'no such disk'; {script}");
        let mut terminal = Terminal::start(top(&["sh", "-c", &script]), 80, 24);
        let (status, printed) = terminal.end();
        assert_eq!(status.code(), Some(expected), "{printed}");
        assert!(
            printed.contains("no such disk\nNo MSR access left the guest."),
            "{printed}"
        );
    }
    let mut terminal = Terminal::start(top(&["no-such-vmm"]), 80, 24);
    let (status, printed) = terminal.end();
    assert_eq!(status.code(), Some(2));
    assert_eq!(printed.trim_end(), "error: no-such-vmm: no such program");
}
