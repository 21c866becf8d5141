//! `msrgate wrap --trace`, `--stats`, `--metrics` from outside: what the collector beside a VMM makes of its accesses.
//!
//! The VMM is `msrgate run` in a wrap of its own, on the embedded KVM.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use msrgate_core::{Access, ExitReason, MsrIndex, Outcome};
use msrgate_trace::Observation;

#[path = "support/preload.rs"]
mod preload;
#[path = "support/mod.rs"]
#[expect(dead_code, reason = "it is for more tests than these")]
mod support;
#[path = "support/traced.rs"]
mod traced;

use support::{Elf, backends, command, file, say, stderr, stdout};
use traced::{output, read, reader, text};

const MSRGATE: &str = env!("CARGO_BIN_EXE_msrgate");

/// `msrgate wrap --kvm soft`, with more options and the VMM.
fn wrap(options: &[&str], vmm: &[&str]) -> Command {
    wrap_on("soft", options, vmm)
}

/// The same on another KVM.
fn wrap_on(kvm: &str, options: &[&str], vmm: &[&str]) -> Command {
    let mut wrap = command(&["wrap", "--kvm", kvm]);
    wrap.args(options).arg("--").args(vmm);
    wrap.env("MSRGATE_PRELOAD", preload::library());
    wrap
}

fn run(mut command: Command) -> Output {
    command.output().expect("msrgate runs")
}

/// A VMM whose guest reads MSR 0x474f4f00 so often, or for ever.
fn vmm(guest: &Path) -> [&str; 5] {
    [MSRGATE, "run", "--backend", "kvm", text(guest)]
}

/// Waits until it is so.
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(60), "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A wrapped VMM whose guest never ends, once its collector has written something.
struct Endless {
    vmm: Child,
    collector: u32,
    trace: PathBuf,
}

impl Endless {
    fn start(name: &str, mut command: Command, trace: PathBuf) -> Self {
        let errors = output(&format!("{name}.stderr"));
        let file = File::create(&errors).expect("the test's folder can be written");
        let vmm = command.stdout(Stdio::null()).stderr(file).spawn();
        let mut endless = Self {
            vmm: vmm.expect("msrgate runs"),
            collector: 0,
            trace,
        };
        wait_until("the guest is traced", || {
            assert!(
                endless.vmm.try_wait().expect("a child").is_none(),
                "{}",
                slurp(&errors)
            );
            fs::metadata(&endless.trace).is_ok_and(|file| file.len() > 100_000)
        });
        let said = slurp(&errors);
        let (_, rest) = said.split_once("msrgate: process ").expect("a collector");
        let pid = rest.split(' ').next().expect("its pid");
        endless.collector = pid.parse().expect("a number");
        endless
    }

    fn is_collected(&self) -> bool {
        Path::new(&format!("/proc/{}", self.collector)).exists()
    }

    /// Ends the VMM as nobody can prevent, and waits for the collector.
    fn kill(mut self) {
        self.vmm.kill().expect("it lives");
        self.vmm.wait().expect("it is ours");
        wait_until("the collector ends", || {
            !Path::new(&format!("/proc/{}", self.collector)).exists()
        });
    }
}

fn slurp(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn tour_is_seen_and_does_not_notice() {
    let trace = output("collect-tour.trace");
    let seen = run(wrap(
        &["--trace", text(&trace), "--stats"],
        &[MSRGATE, "run", "--backend", "kvm"],
    ));
    assert_eq!(seen.status.code(), Some(0), "{}", stderr(&seen));
    let plain = run(wrap(&[], &[MSRGATE, "run", "--backend", "kvm"]));
    assert_eq!(stdout(&seen), stdout(&plain));

    let trace = read(&trace);
    assert_eq!(trace.facts.observation, Some(Observation::Filter));
    assert_eq!(
        (trace.facts.backend.as_str(), trace.facts.guest.as_str()),
        ("soft", MSRGATE)
    );
    // As many as `run --observe filter` has: docs/run.md.
    assert_eq!(trace.events.len(), 12);
    assert!(trace.times.is_sorted() && !trace.summary.is_torn);
    let kept = trace
        .events
        .iter()
        .find(|event| event.index == MsrIndex(0x8b));
    assert_eq!(kept.expect("the tour reads it").outcome, Outcome::Vmm);

    let said = stderr(&seen);
    assert!(
        said.contains("IA32_FEATURE_CONTROL  0x3a            1       0  filter   #GP\n"),
        "{said}"
    );
    assert!(
        said.contains("\n12 MSR accesses left the guest.\n12 MSR accesses in the trace "),
        "{said}"
    );
}

/// On the machine's own KVM; none of these MSRs is passed through on any.
#[test]
fn what_kvm_does_is_told_by_its_tracepoint() {
    if !backends().contains(&"kvm") {
        return;
    }
    // mov ecx, IA32_MISC_ENABLE; rdmsr; wrmsr; mov ecx, IA32_MTRR_DEF_TYPE; rdmsr; out 0xf4, al
    let code = b"\xb9\xa0\x01\0\0\x0f\x32\x0f\x30\xb9\xff\x02\0\0\x0f\x32\xe6\xf4";
    let guest = file("collect-tracepoint.elf", &Elf::new(code).bytes());
    let trace = output("collect-tracepoint.trace");
    let options = ["--observe", "tracepoint", "--trace", text(&trace)];
    let seen = run(wrap_on("real", &options, &vmm(&guest)));
    if let Some((_, why)) = stderr(&seen).split_once("--observe tracepoint: ") {
        return say(&format!("SKIP(tracepoint): {}", why.trim_end()));
    }
    assert!(stderr(&seen).contains("MSR accesses"), "{}", stderr(&seen));
    let trace = read(&trace);
    assert_eq!(trace.facts.observation, Some(Observation::Tracepoint));
    let events = trace.events.iter();
    let events: Vec<_> = events
        .map(|event| (event.index.0, event.access, event.outcome))
        .collect();
    let native = Outcome::Native;
    assert_eq!(
        events,
        [
            (0x1a0, Access::Read, native),
            (0x1a0, Access::Write, native),
            (0x2ff, Access::Read, native)
        ]
    );
    assert_eq!(trace.events[0].value, trace.events[1].value);
    assert!(trace.times.is_sorted() && trace.times[0] > 0);
}

#[test]
fn what_a_killed_vmm_did_is_in_the_trace() {
    let guest = reader("collect-killed.elf", None);
    let trace = output("collect-killed.trace");
    let options = ["--trace", text(&trace), "--stats"];
    let policy = ignoring("collect-killed.toml");
    let options = [&options[..], &["--policy", text(&policy)]].concat();
    let endless = Endless::start("killed", wrap(&options, &vmm(&guest)), trace.clone());
    endless.kill();
    let trace = read(&trace);
    assert!(!trace.summary.is_torn && trace.summary.damaged == 0);
    assert!(trace.events.len() > 1000);
    let event = trace.events[0];
    assert_eq!(
        (event.index, event.reason),
        (MsrIndex(0x474f_4f00), ExitReason::UNKNOWN)
    );
    assert_eq!(event.outcome, Outcome::Ignored);
    assert!(event.rip.is_some());
    let said = slurp(&output_path("killed.stderr"));
    assert!(said.contains("MSR accesses left the guest."), "{said}");
}

#[test]
fn collector_is_not_in_the_way() {
    let guest = reader("collect-way.elf", None);
    let trace = output("collect-way.trace");
    let policy = ignoring("collect-way.toml");
    let inherited = file("collect-way.inherited", b"");
    // Another descriptor, which must not stay open when the VMM is gone.
    let mut shell = Command::new("sh");
    let wrapped = wrap(
        &[
            "--trace",
            text(&trace),
            "--stats",
            "--policy",
            text(&policy),
        ],
        &vmm(&guest),
    );
    shell.args(["-c", "exec 7<\"$0\"; exec \"$@\"", text(&inherited)]);
    shell.arg(wrapped.get_program()).args(wrapped.get_args());
    for (name, value) in wrapped.get_envs() {
        shell.env(name, value.expect("nothing is removed"));
    }
    let endless = Endless::start("way", shell, trace);
    let folder = format!("/proc/{}", endless.collector);

    let status = slurp(Path::new(&format!("{folder}/status")));
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:\t"));
    assert_ne!(
        parent,
        Some(endless.vmm.id().to_string().as_str()),
        "nobody waits for it"
    );
    let open = fs::read_dir(format!("{folder}/fd")).expect("it lives");
    let open: Vec<_> = open
        .flatten()
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        .collect();
    assert!(
        open.iter()
            .all(|path| !path.ends_with("collect-way.inherited")),
        "{open:?}"
    );

    let signal = |name: &str| {
        let pid = endless.collector.to_string();
        let status = Command::new("sh")
            .args(["-c", "kill -$0 $1", name, &pid])
            .status();
        assert!(status.expect("a shell").success());
    };
    for name in ["TERM", "INT", "HUP", "QUIT"] {
        signal(name);
    }
    signal("USR1");
    let errors = output_path("way.stderr");
    wait_until("the table is shown", || {
        slurp(&errors).contains("left the guest.")
    });
    assert!(endless.is_collected());
    endless.kill();
}

#[test]
fn each_vm_has_a_trace() {
    let guest = reader("collect-two.elf", Some(3));
    let trace = output("collect-two.trace");
    let second = output("collect-two.trace.2");
    let third = output("collect-two.trace.3");
    let script = "\"$@\" >/dev/null; \"$@\" >/dev/null";
    let policy = ignoring("collect-two.toml");
    let vmm = [&vmm(&guest)[..], &["--policy", text(&policy)]].concat();
    let shell = [&["sh", "-c", script, "sh"], &vmm[..]].concat();
    let seen = run(wrap(&["--trace", text(&trace)], &shell));
    assert_eq!(seen.status.code(), Some(0), "{}", stderr(&seen));
    for path in [trace, second] {
        let trace = read(&path);
        let [first, ..] = trace.events[..] else {
            panic!("{} is empty", path.display())
        };
        assert_eq!(
            (trace.events.len(), first.outcome),
            (3, Outcome::Vmm),
            "`run` answers"
        );
    }
    assert!(!third.exists());
}

#[test]
fn rule_that_logs_has_its_lines_without_anything_else() {
    let guest = reader("collect-log.elf", Some(30));
    let policy = file(
        "collect-log.toml",
        b"version = 1\n[[rule]]\nmsr = 0x474f4f00\nread = { value = 0x7 }\nlog = true\n",
    );
    let seen = run(wrap(&["--policy", text(&policy)], &vmm(&guest)));
    let said = stderr(&seen);
    let line = "msrgate: vCPU 0: rdmsr 0x474f4f00, filter: = 0x7\n";
    assert_eq!(said.matches(line).count(), 20, "{said}");
    assert!(
        said.contains("msrgate: 10 more accesses that are to be logged are not shown\n"),
        "{said}"
    );
}

#[test]
fn policy_alone_has_no_collector() {
    let policy = ignoring("collect-alone.toml");
    let seen = run(wrap(
        &["--policy", text(&policy)],
        &["sh", "-c", "echo $MSRGATE_CHANNEL"],
    ));
    assert_eq!((stdout(&seen), stderr(&seen)), ("300\n", ""));
}

#[test]
fn metrics_are_what_another_parser_reads() {
    let guest = reader("collect-metrics.elf", Some(5));
    let metrics = output("collect-metrics.prom");
    let policy = ignoring("collect-metrics.toml");
    let options = ["--policy", text(&policy), "--metrics", text(&metrics)];
    let seen = run(wrap(&options, &vmm(&guest)));
    assert_eq!(seen.status.code(), Some(0), "{}", stderr(&seen));
    let script = "
import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus
text = open(sys.argv[1]).read()
for parse in openmetrics, prometheus:
    for family in parse(text):
        for sample in family.samples:
            if sample.name == 'msrgate_msr_accesses_total':
                labels = sample.labels
                print(*[labels[key] for key in ('index', 'msr', 'access', 'reason', 'outcome')], int(sample.value))
            if sample.name == 'msrgate_vmm_running':
                print(sample.labels['guest'], int(sample.value))
";
    let parsed = Command::new("python3")
        .args(["-c", script, text(&metrics)])
        .output();
    let Ok(parsed) = parsed else {
        return say("SKIP(prometheus_client): no python3");
    };
    if stderr(&parsed).contains("No module named 'prometheus_client'") {
        return say("SKIP(prometheus_client): python3 does not have it");
    }
    let once = format!("0x474f4f00  read unknown ignored 5\n{MSRGATE} 0\n");
    assert_eq!(stdout(&parsed), once.repeat(2), "{}", stderr(&parsed));
}

#[test]
fn what_cannot_be_is_refused_before_the_program_starts() {
    let mistake = file(
        "collect-mistake.toml",
        b"version = 1\n[[rule]]\nmsr = 'NO_SUCH'\nread = 'fault'\n",
    );
    for (options, why) in [
        (&["--policy", text(&mistake)][..], "has 1 mistake"),
        (
            &["--policy", "/no/such.toml"],
            "cannot read the policy /no/such.toml",
        ),
        (
            &["--trace", "/no-such-folder/t"],
            "cannot write the trace /no-such-folder/t: No such file",
        ),
        (
            &["--trace", "/dev/full"],
            "cannot write the trace /dev/full: No space left",
        ),
        (
            &["--metrics", "/no-such-folder/m"],
            "cannot write /no-such-folder/m: No such file",
        ),
        (
            &["--observe", "filter"],
            "--observe filter: nobody would see it",
        ),
    ] {
        let refused = run(wrap(options, &["echo", "started"]));
        assert_eq!(
            (refused.status.code(), stdout(&refused)),
            (Some(2), ""),
            "{options:?}"
        );
        assert!(
            stderr(&refused).contains(why),
            "{options:?}: {}",
            stderr(&refused)
        );
    }
}

#[test]
fn full_disk_is_told_and_does_not_stop_the_guest() {
    const READS: u32 = 20_000;
    let guest = reader("collect-full.elf", Some(READS));
    let policy = ignoring("collect-full.toml");
    let folder = output("collect-full");
    let copy = output("collect-full.trace");
    let _ = fs::create_dir(&folder);
    let script =
        "mount -t tmpfs -o size=64k none $0 || exit 77; copy=$1; shift; \"$@\" && cp $0/t $copy";
    let trace = folder.join("t");
    let wrapped = wrap(
        &[
            "--policy",
            text(&policy),
            "--stats",
            "--trace",
            text(&trace),
        ],
        &vmm(&guest),
    );
    let mut unshare = Command::new("unshare");
    unshare.args(["-rm", "sh", "-c", script, text(&folder), text(&copy)]);
    unshare.arg(wrapped.get_program()).args(wrapped.get_args());
    for (name, value) in wrapped.get_envs() {
        unshare.env(name, value.expect("nothing is removed"));
    }
    let Ok(seen) = unshare.output() else {
        return say("SKIP(unshare): there is no unshare");
    };
    if matches!(seen.status.code(), Some(1 | 77)) {
        return say(&format!("SKIP(tmpfs): {}", stderr(&seen)));
    }
    let said = stderr(&seen);
    assert_eq!(seen.status.code(), Some(0), "{said}");
    assert!(
        said.contains(": No space left on device (os error 28): the guest runs on"),
        "{said}"
    );
    assert!(
        said.contains("more could not be written, and are lost"),
        "{said}"
    );
    let trace = read(&copy);
    assert!(trace.events.len() < 2000 && trace.summary.damaged == 0);
}

#[test]
fn limit_of_file_sizes_is_told() {
    let script = "ulimit -f 100; exec \"$@\"";
    let wrapped = wrap(&["--stats"], &["echo", "started"]);
    let mut shell = Command::new("sh");
    shell
        .args(["-c", script, "sh"])
        .arg(wrapped.get_program())
        .args(wrapped.get_args());
    for (name, value) in wrapped.get_envs() {
        shell.env(name, value.expect("nothing is removed"));
    }
    let refused = run(shell);
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        stderr(&refused).contains("the limit of file sizes is lower"),
        "{}",
        stderr(&refused)
    );
}

/// Under it, MSR 0x474f4f00 reads as 0.
fn ignoring(name: &str) -> PathBuf {
    file(name, b"version = 1\n[defaults]\nunknown = \"ignore\"\n")
}

fn output_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}
