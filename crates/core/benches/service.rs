//! What the gate adds to one deflected access: finding the action, the answer, and the event.
//!
//! `one`: always the same MSR. `many`: 4096 MSRs of a policy, in an order that no branch predictor learns. `unnamed`: MSRs
//! that no rule names. Each measurement is 1024 accesses, recorded into a ring of 256 events.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use msrgate_core::{
    Access, Action, Defaults, Event, ExitReason, Gate, HostMsrs, Image, MsrIndex, Recorder, Rule,
    VcpuId, VmError, VmExit,
};

const FIRST: u32 = 0xc000_0000;
const NMSRS: u32 = 4096;
const ACCESSES: usize = 1024;

/// Nobody is asked.
struct NoHost;

impl HostMsrs for NoHost {
    fn get_msr(&self, _index: MsrIndex) -> Result<Option<u64>, VmError> {
        Ok(None)
    }

    fn set_msr(&mut self, _index: MsrIndex, _value: u64) -> Result<bool, VmError> {
        Ok(false)
    }
}

/// The last 256 events.
struct Ring {
    events: [Option<Event>; 256],
    next: u8,
}

impl Recorder for Ring {
    fn record(&mut self, event: &Event) {
        self.events[usize::from(self.next)] = Some(*event);
        self.next = self.next.wrapping_add(1);
    }
}

fn service(criterion: &mut Criterion) {
    let image = Arc::new(image());
    let mut group = criterion.benchmark_group("service");
    group.throughput(Throughput::Elements(ACCESSES as u64));
    for (name, exits) in exits() {
        let ring = Ring {
            events: [None; 256],
            next: 0,
        };
        let mut gate = Gate::new(VcpuId(0), Arc::clone(&image), ring);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for exit in black_box(&exits) {
                    black_box(gate.service(exit, &mut NoHost));
                }
            });
        });
    }
}

fn image() -> Image {
    let mut image = Image::new(Defaults {
        unknown: Rule::quiet(Action::Ignore),
        ..Defaults::ALLOW
    });
    for index in FIRST..FIRST + NMSRS {
        let rule = Rule::quiet(Action::Value(index.into()));
        image
            .set(MsrIndex(index), MsrIndex(index), Access::Read, rule)
            .expect("4096 rules fit");
    }
    image
}

fn exits() -> [(&'static str, Vec<VmExit>); 3] {
    let mut state = 0x2545_f491u32;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    let mut many = |first: u32, reason| {
        (0..ACCESSES)
            .map(|_| VmExit::Rdmsr {
                index: MsrIndex(first + random() % NMSRS),
                reason,
            })
            .collect::<Vec<_>>()
    };
    let named = many(FIRST, ExitReason::FILTER);
    [
        ("one", vec![named[0]; ACCESSES]),
        ("many", named),
        ("unnamed", many(0x4000_0000, ExitReason::UNKNOWN)),
    ]
}

criterion_group!(benches, service);
criterion_main!(benches);
