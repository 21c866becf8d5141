//! What stands between a VMM and KVM costs: exits of a guest in a small VMM in C (`tests/vmm.c`), bare and wrapped.
//!
//! Each row is one access of the guest to IA32_SYSENTER_CS and the four exits that its VMM sees anyway, on the real
//! KVM where there is one, else on the embedded one. Rows are measured side by side in one run.

#[path = "../tests/support/channel.rs"]
mod channel;
#[path = "../tests/support/mod.rs"]
mod support;

use std::process::Command;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use msrgate_trace::Observation;
use msrgate_trace::channel::Rings;

/// IA32_SYSENTER_CS.
const INDEX: &str = "174";

const PLAIN: &str = "version = 1\n";
const VALUE: &str = "version = 1\n[[rule]]\nmsr = 0x174\nread = { value = 7 }\n";

/// How the VMM is started.
#[derive(Clone, Copy)]
enum How {
    /// Without us.
    Bare,
    /// With the library, and nothing to do for it.
    Inert,
    /// Under a policy.
    Under(&'static str, Observation),
}

fn access(c: &mut Criterion) {
    let kvm = if support::real_kvm_opens() {
        "real"
    } else {
        "soft"
    };
    let Some(vmm) = support::compile("vmm") else {
        return;
    };
    let mut group = c.benchmark_group(format!("access on {kvm}"));
    group.throughput(Throughput::Elements(1)).sample_size(30);
    for (name, how) in [
        ("bare", How::Bare),
        ("wrapped, no policy", How::Inert),
        (
            "policy that leaves it to KVM",
            How::Under(PLAIN, Observation::Deflected),
        ),
        (
            "policy that answers",
            How::Under(VALUE, Observation::Deflected),
        ),
        (
            "observed: deflected, forwarded",
            How::Under(PLAIN, Observation::Filter),
        ),
    ] {
        if matches!(how, How::Bare) && kvm == "soft" {
            continue;
        }
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|count| {
                let word = format!("time:{count}:{INDEX}");
                timed(Command::new(&vmm).arg(word), kvm, how)
            });
        });
    }
    group.finish();
}

fn timed(command: &mut Command, kvm: &str, how: How) -> Duration {
    if !matches!(how, How::Bare) {
        command
            .env("LD_PRELOAD", support::library())
            .env("MSRGATE_KVM", kvm);
    }
    let channel = match how {
        How::Under(policy, observation) => {
            // Events of an observation go into a ring, which nobody empties here: dropping costs less, so it is
            // large enough for what a sample records only at first. Recording is measured by the trace's own bench.
            let rings = match observation {
                Observation::Filter => Rings::Wanted,
                _ => Rings::NotWanted,
            };
            Some(channel::give(command, policy, observation, rings))
        }
        _ => None,
    };
    let output = command.output().expect("the VMM can be started");
    assert!(output.status.success());
    drop(channel);
    let nanoseconds = String::from_utf8_lossy(&output.stdout);
    let nanoseconds = nanoseconds.trim().parse().expect("the VMM prints a number");
    Duration::from_nanos(nanoseconds)
}

criterion_group!(benches, access);
criterion_main!(benches);
