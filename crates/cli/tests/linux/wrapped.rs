//! The same Linux under `msrgate wrap`: watched, then held to what was learned from it, then denied and given something.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use msrgate_core::{Access, MsrIndex, VcpuId};
use msrgate_policy::{HostPath, host_path};

use crate::boot::{Boot, Linux, retried};
use crate::support::{file, msrgate, stderr};
use crate::traced;
use crate::tracepoint::{self, Accesses};
use crate::{Alone, UNKNOWN, alone, console};

/// The words before QEMU's.
fn wrap<'a>(options: &[&'a str]) -> Vec<&'a str> {
    let mut words = vec![env!("CARGO_BIN_EXE_msrgate"), "wrap", "--kvm", "real"];
    words.extend(options);
    words.push("--");
    words
}

/// A boot that was watched by filter.
struct Watched {
    boot: Boot,
    trace: PathBuf,
    /// What KVM did by itself meanwhile.
    left_to_kvm: Accesses,
}

fn watched(linux: &Linux) -> &'static Watched {
    static WATCHED: OnceLock<Watched> = OnceLock::new();
    WATCHED.get_or_init(|| {
        let trace = traced::output("linux-filter.msrtrace");
        let path = trace.display().to_string();
        let words = wrap(&["--observe", "filter", "--trace", &path]);
        let attempt = || tracepoint::watch(|| linux.boot_once(&words, 1));
        let (boot, left_to_kvm) = retried(attempt, |(boot, _)| boot);
        Watched {
            boot,
            trace,
            left_to_kvm,
        }
    })
}

/// The accesses in a trace that lost nothing, by vCPU.
pub(crate) fn read_trace(path: &Path) -> BTreeMap<VcpuId, Accesses> {
    let trace = traced::read(path);
    let summary = trace.summary;
    assert_eq!(
        (summary.lost(), summary.damaged, summary.is_torn),
        (0, 0, false)
    );
    let mut accesses: BTreeMap<VcpuId, Accesses> = BTreeMap::new();
    for event in trace.events {
        let of_vcpu = accesses.entry(event.vcpu).or_default();
        *of_vcpu.entry((event.index, event.access)).or_default() += 1;
    }
    accesses
}

/// Whether observation by filter watches it.
fn is_watched(index: MsrIndex, access: Access) -> bool {
    host_path(index, access) == HostPath::Same
}

#[test]
fn watched_by_filter_it_is_the_same_and_nothing_is_missed() {
    let Some(linux) = Linux::or_skip() else {
        return;
    };
    let Alone { boot, seen } = alone(&linux);
    let watched = watched(&linux);
    watched.boot.is_whole();
    console::assert_same(&boot.console, &watched.boot.console);

    let trace = read_trace(&watched.trace);
    let trace = &trace[&VcpuId(0)];
    let mut compared = 0;
    for (&(index, access), &count) in seen {
        let recorded = trace.get(&(index, access)).copied().unwrap_or(0);
        let left = watched.left_to_kvm.get(&(index, access)).copied();
        if is_watched(index, access) {
            assert_eq!(recorded, count, "{access} of {index}");
            assert_eq!(left, None, "{access} of {index} was left to KVM");
            compared += 1;
        } else {
            assert!(left.is_some() || recorded > 0, "{access} of {index}");
        }
    }
    assert!(compared > 50, "only {compared} accesses were compared");
    // What the hardware does is not for the tracepoint, but for the filter.
    let gs_base = (MsrIndex(0xc000_0101), Access::Write);
    assert!(trace.contains_key(&gs_base) && !seen.contains_key(&gs_base));
}

#[test]
fn it_boots_the_same_with_what_was_learned_from_it() {
    let Some(linux) = Linux::or_skip() else {
        return;
    };
    let trace = watched(&linux).trace.display().to_string();
    let policy = traced::output("linux-learned.toml").display().to_string();
    let learned = msrgate(&["learn", &trace, "-o", &policy]);
    assert_eq!(learned.status.code(), Some(0), "{}", stderr(&learned));
    let boot = linux.boot(&wrap(&["--policy", &policy]), 1);
    boot.is_whole();
    console::assert_same(&alone(&linux).boot.console, &boot.console);
}

#[test]
fn denied_msr_faults_and_unknown_one_is_ignored() {
    let Some(linux) = Linux::or_skip() else {
        return;
    };
    let text = "\
version = 1
[defaults]
known = 'allow'
unknown = 'ignore'
invalid = 'fault'
[[rule]]
msr = 'IA32_PAT'
write = 'fault'
";
    let policy = file("linux-denied.toml", text.as_bytes());
    let boot = linux.boot(&wrap(&["--policy", &policy.display().to_string()]), 1);
    boot.is_whole();
    let fault = "unchecked MSR access error: WRMSR to 0x277 ";
    assert!(boot.console.contains(fault), "{}", boot.console);
    assert!(!alone(&linux).boot.console.contains(fault));
    assert_eq!(
        boot.said("guest: MSR"),
        [format!("{UNKNOWN} reads 0x0000000000000000")]
    );
}

#[test]
fn watched_by_the_tracepoint_it_is_the_same_and_nothing_is_missed() {
    let Some(linux) = Linux::or_skip() else {
        return;
    };
    let trace = traced::output("linux-tracepoint.msrtrace");
    let path = trace.display().to_string();
    let watch = ["--observe", "tracepoint", "--trace", &path];
    let boot = linux.boot(&wrap(&watch), 1);
    boot.is_whole();
    let Alone { boot: first, seen } = alone(&linux);
    console::assert_same(&first.console, &boot.console);

    let trace = &read_trace(&trace)[&VcpuId(0)];
    for (&(index, access), &count) in seen {
        let recorded = trace.get(&(index, access)).copied();
        // How often a timer is set, and an interrupt ended, differs from boot to boot.
        let is_counted = is_watched(index, access);
        let as_often = !is_counted || recorded == Some(count);
        assert!(
            as_often && recorded.is_some(),
            "{access} of {index}: {recorded:?} of {count}"
        );
    }
}

#[test]
fn two_vcpus_are_watched_apart() {
    let Some(linux) = Linux::or_skip() else {
        return;
    };
    let path = traced::output("linux-two.msrtrace");
    let trace = path.display().to_string();
    let boot = linux.boot(&wrap(&["--observe", "filter", "--trace", &trace]), 2);
    boot.is_whole();
    assert_eq!(boot.said("state: processor"), [": 0", ": 1"]);
    let trace = read_trace(&path);
    let vcpus: Vec<_> = trace.keys().copied().collect();
    assert_eq!(vcpus, [VcpuId(0), VcpuId(1)]);
    // Each processor of a Linux sets its own up.
    for accesses in trace.values() {
        assert!(accesses.contains_key(&(MsrIndex(0x277), Access::Write)));
        assert!(accesses.contains_key(&(MsrIndex(0xc000_0082), Access::Write)));
    }
}
