//! Linux kernels, as far as `run` has to do with them: files that do not fit, how guests end, and how any guest can be
//! ended. The kernels are a few instructions long; `cargo xtask boot` boots real ones.

#[expect(dead_code, reason = "shared with tests that need more of it")]
mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use msrgate_core::{MsrIndex, Timed};
use msrgate_trace::Reader;
use support::{command, file, msrgate, stderr, stdout};

/// Where the kernels of this file belong.
const KERNEL: u64 = 4 << 20;

/// A bzImage that is not packed, so that it is entered as it is; Documentation/arch/x86/boot.rst has the offsets.
fn kernel(code: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    let mut put = |offset: usize, field: &[u8]| {
        bytes[offset..][..field.len()].copy_from_slice(field);
    };
    put(0x1f1, &[1]);
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &0x20f_u16.to_le_bytes());
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x236, &1_u16.to_le_bytes());
    put(0x238, &64_u32.to_le_bytes());
    put(0x258, &KERNEL.to_le_bytes());
    put(0x260, &(2_u32 << 20).to_le_bytes());
    bytes.extend([0; 0x200]);
    bytes.extend(code);
    bytes
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// mov ecx, 0x474f4f00; rdmsr three times, which is #GP without a policy; then `code`.
fn after_three_accesses(code: &[u8]) -> Vec<u8> {
    [b"\xb9\0\x4f\x4f\x47\x0f\x32\x0f\x32\x0f\x32", code].concat()
}

/// Answers what the kernels of this file ask for.
fn policy() -> PathBuf {
    file(
        "ignore.toml",
        b"version = 1\n[defaults]\nunknown = 'ignore'\n",
    )
}

#[test]
fn what_linux_cannot_be_booted_with_is_one_line() {
    let linux = file("linux-fits", &kernel(b"\xf4"));
    let initrd = file("initrd-large", &vec![0; 3 << 20]);
    let missing = PathBuf::from("no-such-initrd");
    let line = "x".repeat(65);
    let cases: [(&[&str], &str); 5] = [
        (&["--mem", "4M"], "needs guest memory up to 0x600000"),
        (
            &["--mem", "8M", "--initrd", text(&initrd)],
            "has room for 0x200000 behind the kernel",
        ),
        (&["--initrd", text(&missing)], "cannot read no-such-initrd"),
        (&["--append", &line], "this kernel takes 64"),
        (&["--mem", "4G"], "it must be whole pages, 2 MiB to 3 GiB"),
    ];
    for (arguments, expected) in cases {
        let output = command(&["run", "--backend", "soft"])
            .args(arguments)
            .arg(&linux)
            .output()
            .expect("msrgate runs");
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn options_of_linux_are_refused_for_other_guests() {
    let flat = file("flat.bin", &[0xf4]);
    for option in [
        ["--cpus", "2"],
        ["--append", "x"],
        ["--initrd", text(&flat)],
    ] {
        let output = msrgate(&["run", option[0], option[1], text(&flat)]);
        assert_eq!(output.status.code(), Some(2));
        let message = stderr(&output);
        assert!(message.contains("is no Linux kernel"), "{message}");
    }
    for cpus in ["0", "255", "many"] {
        let output = msrgate(&["run", "--cpus", cpus, text(&flat)]);
        assert_eq!(output.status.code(), Some(2), "{cpus}");
    }
}

#[test]
fn status_tells_how_the_guest_ended() {
    // The panic's last line, then for ever: mov esi, TEXT; mov dx, 0x3f8; next: lodsb; test al, al; jz next; out dx, al;
    // jmp next.
    let mut panics = b"\xbe\x10\x02\x40\0\x66\xba\xf8\x03\xac\x84\xc0\x74\xfb\xee\xeb".to_vec();
    panics[1..5].copy_from_slice(&(0x40_0211_u32).to_le_bytes());
    panics.push(0xf8);
    panics
        .extend(b"\nKernel panic - not syncing: x\n---[ end Kernel panic - not syncing: x ]---\n");
    let cases: [(&str, &[u8], i32, &str); 4] = [
        // mov dx, 0x604; mov al, 0x34; out dx, al
        (
            "power-off",
            b"\x66\xba\x04\x06\xb0\x34\xee",
            0,
            "switched itself off",
        ),
        // mov al, 0xfe; out 0x64, al
        ("reset", b"\xb0\xfe\xe6\x64", 0, "asked for a reset"),
        ("panic", &panics, 1, "kernel panicked"),
        // ud2, without an IDT
        ("ud2", b"\x0f\x0b", 2, "triple-faulted at RIP 0x400200"),
    ];
    for (name, code, status, expected) in cases {
        let guest = file(name, &kernel(code));
        let output = command(&["run", "--backend", "soft", text(&guest)])
            .stdin(Stdio::null())
            .output()
            .expect("msrgate runs");
        let said = [stdout(&output), stderr(&output)].concat();
        assert_eq!(output.status.code(), Some(status), "{name}: {said}");
        assert!(said.contains(expected), "{name}: {said}");
    }
}

#[test]
fn console_can_be_off_or_a_file() {
    // mov dx, 0x3f8; mov al, '!'; out dx, al; out 0xf4, al
    let guest = file("says", &kernel(b"\x66\xba\xf8\x03\xb0\x21\xee\xe6\xf4"));
    let place = file("console.log", b"");
    for (console, said) in [("on", "!"), ("off", ""), (text(&place), "")] {
        let output = msrgate(&[
            "run",
            "--backend",
            "soft",
            "--console",
            console,
            text(&guest),
        ]);
        assert_eq!(output.status.code(), Some(0));
        let table = stdout(&output);
        let console = table.split("No MSR access").next().expect("a part");
        assert_eq!(console.trim_end(), said, "{table}");
    }
    assert_eq!(std::fs::read(&place).expect("a file"), b"!");
}

#[test]
fn what_is_piped_in_is_typed_on_the_console() {
    // Echoes to COM1 what comes in, up to 'q': mov dx, 0x3fd; wait: in al, dx; test al, 1; jz wait; mov dl, 0xf8;
    // in al, dx; out dx, al; mov dl, 0xfd; cmp al, 'q'; jne wait; out 0xf4, al
    let code =
        b"\x66\xba\xfd\x03\xec\xa8\x01\x74\xfb\xb2\xf8\xec\xee\xb2\xfd\x3c\x71\x75\xf1\xe6\xf4";
    let guest = file("echo", &kernel(code));
    let mut child = command(&["run", "--backend", "soft", text(&guest)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("msrgate runs");
    let long = "x".repeat(10_000) + "q";
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(long.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("a child");
    assert!(
        stdout(&output).starts_with(long.as_str()),
        "{}",
        stdout(&output)
    );
}

/// A guest that ends only when it is ended, its trace and a child that runs it.
fn start_wild(name: &str, code: &[u8]) -> (PathBuf, Child) {
    let guest = file(name, &kernel(&after_three_accesses(code)));
    let trace = file(&format!("{name}.msrtrace"), b"");
    let child = command(&["run", "--backend", "soft", "--policy", text(&policy())])
        .args(["--trace", text(&trace), text(&guest)])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("msrgate runs");
    (trace, child)
}

fn terminate(child: &Child) {
    let sent = Command::new("kill").arg(child.id().to_string()).status();
    assert!(sent.expect("kill runs").success());
}

/// Waits until there are events in the file.
fn wait_for_events(trace: &Path) {
    let start = Instant::now();
    while events(trace) < 3 {
        assert!(start.elapsed() < Duration::from_secs(60), "no events");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Of the beginning: a guest that does nothing else writes faster than anybody reads.
fn events(trace: &Path) -> usize {
    let Ok(file) = File::open(trace) else {
        return 0;
    };
    let Ok(reader) = Reader::new(file.take(1 << 20)) else {
        return 0;
    };
    let is_of_guest = |timed: &Timed| timed.event.index == MsrIndex(0x474f_4f00);
    reader.flatten().filter(is_of_guest).count()
}

fn ended(mut child: Child) -> Output {
    let start = Instant::now();
    while child.try_wait().expect("a child").is_none() {
        if start.elapsed() > Duration::from_secs(60) {
            child.kill().expect("a child");
            panic!("it goes on");
        }
        thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().expect("a child")
}

#[test]
fn wild_guest_is_ended_by_a_signal_and_its_trace_is_complete() {
    for (name, code) in [
        // cli; jmp to itself
        ("spins", &b"\xfa\xeb\xfe"[..]),
        // cli; hlt
        ("sleeps", b"\xfa\xf4\xeb\xfd"),
        // mov rax, cr3 for ever, with interrupts on but none to come
        ("polls", b"\xfb\x0f\x20\xd8\xeb\xfb"),
    ] {
        let (trace, child) = start_wild(name, code);
        wait_for_events(&trace);
        terminate(&child);
        let output = ended(child);
        assert_eq!(output.status.code(), Some(0), "{name}: {}", stderr(&output));
        assert!(stdout(&output).contains("You stopped the guest."), "{name}");
        assert_eq!(events(&trace), 3, "{name}");
    }
}

#[test]
fn guest_that_fills_its_console_is_ended_though_nobody_reads_it() {
    // mov dx, 0x3f8; again: out dx, al; jmp again
    let (trace, mut child) = start_wild("floods", b"\x66\xba\xf8\x03\xee\xeb\xfd");
    wait_for_events(&trace);
    thread::sleep(Duration::from_millis(300));
    terminate(&child);
    let start = Instant::now();
    while child.try_wait().expect("a child").is_none() {
        assert!(start.elapsed() < Duration::from_secs(60), "it goes on");
        thread::sleep(Duration::from_millis(10));
    }
    let mut message = String::new();
    let errors = child.stderr.as_mut().expect("a pipe");
    errors.read_to_string(&mut message).expect("UTF-8");
    assert!(
        message.contains("nobody reads the guest's console"),
        "{message}"
    );
    assert_eq!(events(&trace), 3);
}

#[test]
fn guest_that_does_nothing_but_msr_accesses_is_ended() {
    // again: rdmsr; jmp again
    let (trace, child) = start_wild("accesses", b"\x0f\x32\xeb\xfc");
    wait_for_events(&trace);
    terminate(&child);
    let output = ended(child);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("in the trace"));
}

/// util-linux's `script` gives the program a terminal, and takes keys from its standard input.
#[test]
fn ctrl_a_x_ends_the_guest_and_the_terminal_is_as_before() {
    let guest = file("terminal", &kernel(b"\xfa\xeb\xfe"));
    let program = env!("CARGO_BIN_EXE_msrgate");
    let line = format!(
        "stty -g; {program} run --backend soft {}; echo status $?; stty -g",
        text(&guest)
    );
    let script = Command::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut child) = script else {
        support::say("SKIP(terminal): there is no program `script`");
        return;
    };
    let mut stdout = child.stdout.take().expect("a pipe");
    let mut said = String::new();
    let mut buffer = [0; 1024];
    let mut read_until = |what: &str| {
        while !said.contains(what) {
            let count = stdout.read(&mut buffer).expect("it can be read");
            assert_ne!(count, 0, "{said}");
            said += &String::from_utf8_lossy(&buffer[..count]);
        }
        said.clone()
    };
    read_until("Ctrl-A X ends the guest");
    let mut stdin = child.stdin.take().expect("a pipe");
    // Ctrl-C is the guest's.
    stdin.write_all(b"\x03\x01x").expect("it reads");
    let said = read_until("status 0\r\n");
    assert!(said.contains("You stopped the guest."), "{said}");
    let before = said.lines().next().expect("a line").to_owned();
    assert!(before.contains(':'), "{before}");
    drop(stdin);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).expect("UTF-8");
    let all = said + &rest;
    assert_eq!(all.matches(&before).count(), 2, "{all}");
    child.wait().expect("a child");
}

/// `cargo xtask lab` makes the Linux and runs this on kvm-amd.
#[test]
fn debians_kernel_comes_to_user_space_on_kvm_with_all_processors() {
    let Some(folder) = std::env::var_os("MSRGATE_LINUX").map(PathBuf::from) else {
        support::say("SKIP(linux): MSRGATE_LINUX names no folder with a kernel");
        return;
    };
    for cpus in ["1", "2"] {
        let output = command(&["run", "--backend", "kvm", "--cpus", cpus])
            .args(["--initrd", text(&folder.join("initramfs"))])
            .args(["--append", "console=ttyS0 panic=-1"])
            .arg(folder.join("vmlinuz"))
            .stdin(Stdio::null())
            .output()
            .expect("msrgate runs");
        let said = stdout(&output);
        assert_eq!(output.status.code(), Some(0), "{said}{}", stderr(&output));
        assert!(said.contains("guest: end"), "{said}");
        let processors = said.matches("state: processor").count();
        assert_eq!(processors.to_string(), cpus, "{said}");
    }
}

#[test]
fn instruction_that_the_processor_lacks_is_named() {
    // vaddps ymm0, ymm0, ymm0, without an IDT
    let guest = file("avx", &kernel(b"\xc5\xfc\x58\xc0"));
    let output = command(&["run", "--backend", "soft", "--stats", text(&guest)])
        .stdin(Stdio::null())
        .output()
        .expect("msrgate runs");
    assert_eq!(output.status.code(), Some(2));
    let said = stdout(&output);
    assert!(said.contains("#UD 1 times: this backend has no "), "{said}");
    assert!(said.contains("first at RIP 0x400200"), "{said}");
}
