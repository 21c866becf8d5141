//! What an event costs on its way into a file, and on its way back: 4096 records, in memory; and between processes.

use std::hint::black_box;
use std::{io, iter};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use msrgate_core::{Access, Event, ExitReason, MsrIndex, Outcome, Recorder, Timed, VcpuId};
use msrgate_trace::channel::{Channel, Claim, Rings};
use msrgate_trace::{Facts, Header, Reader, Writer};

const RECORDS: u64 = 4096;

fn records() -> impl Iterator<Item = Timed> {
    (0..RECORDS).map(|number| Timed {
        time_ns: number * 100,
        event: Event {
            vcpu: VcpuId(0),
            index: MsrIndex(0x6e0),
            access: Access::Write,
            reason: ExitReason::NONE,
            rip: Some(0xffff_ffff_8100_0000),
            value: number,
            outcome: Outcome::Native,
            log: false,
        },
    })
}

fn trace(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("trace");
    group.throughput(Throughput::Elements(RECORDS));
    group.bench_function("write", |bencher| {
        let mut writer = Writer::new(io::sink(), &Header::default()).expect("a sink takes all");
        bencher.iter(|| {
            for record in records() {
                writer.record(black_box(&record));
            }
        });
    });
    let mut file = Vec::new();
    let mut writer = Writer::new(&mut file, &Header::default()).expect("memory takes all");
    records().for_each(|record| writer.record(&record));
    drop(writer);
    group.bench_function("read", |bencher| {
        bencher.iter(|| {
            let reader = Reader::new(black_box(&file[..])).expect("a trace");
            assert_eq!(reader.flatten().count() as u64, RECORDS);
        });
    });
    let channel = Channel::create(&Facts::default(), Rings::Wanted).expect("memory for a channel");
    let mut other = Channel::open(channel.file().try_clone().expect("a descriptor")).expect("ours");
    let who = Claim {
        pid: 0,
        vm: 1,
        vcpu: VcpuId(0),
    };
    let mut producer = channel.claim(who).expect("a free ring");
    let mut consumer = other.claimed().expect("it is mapped").remove(0);
    group.bench_function("channel", |bencher| {
        bencher.iter(|| {
            for record in records() {
                producer.record(black_box(&record.event));
            }
            assert_eq!(iter::from_fn(|| consumer.pop()).count() as u64, RECORDS);
        });
    });
    group.finish();
}

criterion_group!(benches, trace);
criterion_main!(benches);
