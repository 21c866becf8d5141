//! What the gate adds to one deflected access.
//!
//! * `sixteen`, `many`, `one`: finding the action of an MSR and direction, and answering, beside the tables that other
//!   programs use. Policies of 16 and of 4096 MSRs, in an order that no branch predictor learns, and always the same MSR.
//! * `action`: each kind of action, with a host and a handler that answer at once.
//! * `record`: where the events go.
//!
//! Each measurement is 1024 accesses.

use std::collections::{BTreeMap, HashMap};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use msrgate_core::{
    Access, Action, Defaults, EventConsumer, EventRing, ExitReason, Gate, Gp, HandlerId, HostMsrs,
    Image, Mask, MsrHandler, MsrIndex, OnViolation, Recorder, Rule, Scope, Shadow, VcpuId, VmEntry,
    VmError, VmExit, Writable,
};

const ACCESSES: usize = 1024;

/// Answers at once.
struct Host(u64);

impl HostMsrs for Host {
    fn get_msr(&self, _index: MsrIndex) -> Result<Option<u64>, VmError> {
        Ok(Some(self.0))
    }

    fn set_msr(&mut self, _index: MsrIndex, value: u64) -> Result<bool, VmError> {
        self.0 = value;
        Ok(true)
    }
}

struct Handler;

impl MsrHandler for Handler {
    fn rdmsr(&self, _vcpu: VcpuId, index: MsrIndex) -> Result<u64, Gp> {
        Ok(index.0.into())
    }

    fn wrmsr(&self, _vcpu: VcpuId, _index: MsrIndex, _value: u64) -> Result<(), Gp> {
        Ok(())
    }
}

fn find(criterion: &mut Criterion) {
    // 16 windows, as policies for Linux guests have them; of each the first MSR, or the first 256.
    let windows: [u32; 16] = [
        0x10,
        0x1000,
        0x2000,
        0x3000,
        0x4000,
        0x5000,
        0x6000,
        0x7000,
        0x4000_0000,
        0x4b56_4d00,
        0xc000_0080,
        0xc001_0000,
        0xc001_1020,
        0xc001_2000,
        0xc001_3000,
        0xc001_4000,
    ];
    let many: Vec<u32> = windows.iter().flat_map(|&base| base..base + 256).collect();
    for (name, named, touched) in [
        ("sixteen", &windows[..], &windows[..]),
        ("many", &many[..], &many[..]),
        ("one", &many[..], &many[2000..2001]),
    ] {
        let exits = exits(touched);
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(ACCESSES as u64));
        let mut measure = |engine, answer: &mut dyn FnMut(&[VmExit])| {
            group.bench_function(engine, |bencher| bencher.iter(|| answer(black_box(&exits))));
        };
        let rules = || {
            named.iter().flat_map(|&index| {
                Access::ALL.map(|access| ((index, access), Action::Value(index.into())))
            })
        };
        let mut gate = Gate::new(VcpuId(0), image(rules()), ());
        measure("gate", &mut |exits| {
            each(exits, |exit| gate.service(exit, &mut Host(0)))
        });
        let tree: BTreeMap<_, _> = rules().collect();
        measure("btree_map", &mut |exits| {
            each(exits, |exit| answered(exit, |key| tree.get(&key).copied()))
        });
        let hash: HashMap<_, _> = rules().collect();
        measure("hash_map", &mut |exits| {
            each(exits, |exit| answered(exit, |key| hash.get(&key).copied()))
        });
        if name == "sixteen" {
            let table: Vec<_> = named
                .iter()
                .map(|&index| (index, [Action::Value(index.into()); 2]))
                .collect();
            measure("linear_table", &mut |exits| {
                each(exits, |exit| {
                    answered(exit, |(index, access)| {
                        let row = table.iter().find(|(of, _)| *of == index)?;
                        Some(row.1[access as usize])
                    })
                })
            });
        }
    }
}

/// What other programs do with what their table has: no reason, no event, no register.
fn answered(exit: &VmExit, find: impl Fn((u32, Access)) -> Option<Action>) -> Option<VmEntry> {
    let (index, access, _) = exit.msr_access()?;
    let answer = match find((index.0, access)) {
        Some(Action::Value(value)) => Ok(value),
        Some(Action::Ignore) => Ok(0),
        _ => Err(Gp),
    };
    Some(match access {
        Access::Read => VmEntry::CompleteRdmsr(answer),
        Access::Write => VmEntry::CompleteWrmsr(answer.map(|_| ())),
    })
}

fn action(criterion: &mut Criterion) {
    let writable = Writable {
        bits: 0xffff,
        on_violation: OnViolation::Ignore,
    };
    let shadow = |scope| {
        Action::Shadow(Shadow {
            scope,
            reset: 0,
            writable,
        })
    };
    let mask = Action::Mask(Mask {
        replaced: 0xff,
        ones: 0xf,
    });
    let actions = [
        ("value", Action::Value(1)),
        ("forward", Action::Allow),
        ("mask", mask),
        ("writable", Action::Writable(writable)),
        ("shadow_vcpu", shadow(Scope::Vcpu)),
        ("shadow_vm", shadow(Scope::Vm)),
        ("handler", Action::Handler(HandlerId(0))),
    ];
    let indices: Vec<u32> = (0xc000_0000..0xc000_0100).collect();
    let exits = exits(&indices);
    let mut group = criterion.benchmark_group("action");
    group.throughput(Throughput::Elements(ACCESSES as u64));
    for (name, action) in actions {
        let rules = indices
            .iter()
            .flat_map(|&index| Access::ALL.map(|access| ((index, access), action)));
        let mut gate =
            Gate::new(VcpuId(0), image(rules), ()).with_handlers(Arc::new([Arc::new(Handler)]));
        let mut host = Host(0);
        group.bench_function(name, |bencher| {
            bencher.iter(|| each(black_box(&exits), |exit| gate.service(exit, &mut host)));
        });
    }
}

fn record(criterion: &mut Criterion) {
    let indices: Vec<u32> = (0xc000_0000..0xc000_0100).collect();
    let started = Instant::now();
    let now_ns = move || u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let mut group = criterion.benchmark_group("record");
    group.throughput(Throughput::Elements(ACCESSES as u64));
    let mut measure = |name, mut with: Box<dyn Measured>| {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| (0..rounds).map(|_| with.round()).sum());
        });
    };
    measure("nowhere", Box::new(Recorded::new(&indices, (), None)));
    let (producer, consumer) = EventRing::new(ACCESSES).split(|| 0);
    measure(
        "ring",
        Box::new(Recorded::new(&indices, producer, Some(consumer))),
    );
    let (producer, consumer) = EventRing::new(ACCESSES).split(now_ns);
    measure(
        "ring_and_time",
        Box::new(Recorded::new(&indices, producer, Some(consumer))),
    );
    let (producer, consumer) = EventRing::new(1).split(|| 0);
    let full = (producer, ());
    measure("full_ring", Box::new(Recorded::new(&indices, full, None)));
    drop(consumer);
}

/// 1024 accesses are timed, and taking their events out again is not.
trait Measured {
    fn round(&mut self) -> Duration;
}

struct Recorded<R> {
    exits: Vec<VmExit>,
    gate: Gate<R>,
    consumer: Option<EventConsumer>,
}

impl<R: Recorder> Recorded<R> {
    fn new(indices: &[u32], recorder: R, consumer: Option<EventConsumer>) -> Self {
        let rules = indices
            .iter()
            .flat_map(|&index| Access::ALL.map(|access| ((index, access), Action::Value(1))));
        Self {
            exits: exits(indices),
            gate: Gate::new(VcpuId(0), image(rules), recorder),
            consumer,
        }
    }
}

impl<R: Recorder> Measured for Recorded<R> {
    fn round(&mut self) -> Duration {
        let started = Instant::now();
        each(black_box(&self.exits), |exit| {
            self.gate.service(exit, &mut Host(0))
        });
        let elapsed = started.elapsed();
        if let Some(consumer) = &mut self.consumer {
            let count = std::iter::from_fn(|| consumer.pop()).count();
            assert_eq!(count, ACCESSES);
        }
        elapsed
    }
}

/// Answers all, and uses each answer as a vCPU would: by its kind and value.
fn each(exits: &[VmExit], mut answer: impl FnMut(&VmExit) -> Option<VmEntry>) {
    let used = exits.iter().fold(0u64, |sum, exit| {
        sum.wrapping_add(match answer(exit) {
            Some(VmEntry::CompleteRdmsr(Ok(value))) => value,
            Some(VmEntry::CompleteWrmsr(Ok(()))) => 1,
            Some(_) => 2,
            None => 3,
        })
    });
    black_box(used);
}

fn image(rules: impl Iterator<Item = ((u32, Access), Action)>) -> Arc<Image> {
    let mut image = Image::new(Defaults::ALLOW);
    for ((index, access), action) in rules {
        image
            .set(index.into(), index.into(), access, Rule::quiet(action))
            .expect("they fit");
    }
    Arc::new(image)
}

/// Reads and writes of these, in no order.
fn exits(indices: &[u32]) -> Vec<VmExit> {
    let mut state = 0x2545_f491u32;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    (0..ACCESSES)
        .map(|_| {
            let index = MsrIndex(indices[random() as usize % indices.len()]);
            let reason = ExitReason::FILTER;
            match random() % 2 {
                0 => VmExit::Rdmsr { index, reason },
                _ => VmExit::Wrmsr {
                    index,
                    value: random().into(),
                    reason,
                },
            }
        })
        .collect()
}

criterion_group!(benches, find, action, record);
criterion_main!(benches);
