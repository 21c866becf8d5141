//! Every interleaving of a few replacements and checks, of the two ends of a ring of events, and of writes to a
//! register that vCPUs share:
//! `RUSTFLAGS="--cfg loom" cargo test -p msrgate-core --test loom --release`.
#![cfg(loom)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use msrgate_core::{
    Access, Action, DefaultAction, Defaults, Event, EventConsumer, EventRing, ExitReason,
    FilterCell, FilterRange, FilterReader, Gates, HostMsrs, Image, MsrFilter, MsrIndex,
    OnViolation, Outcome, RangeFlags, Recorder, Rule, Scope, Shadow, VcpuId, Verdict, VmEntry,
    VmError, VmExit, Writable,
};

/// The filter of generation `number` denies the MSRs 0x10 + number and 0x20 + number, and nothing else.
fn filter(number: u32) -> MsrFilter {
    let deny =
        |base| FilterRange::uniform(RangeFlags::READ_WRITE, MsrIndex(base), 1, Verdict::Deny);
    let ranges = vec![deny(0x10 + number), deny(0x20 + number)];
    MsrFilter::new(DefaultAction::Allow, ranges).expect("two single MSRs are a filter")
}

/// The generation of the filter in force, 0 for none; both forms and both halves must say the same.
fn generation(reader: &mut FilterReader) -> u32 {
    let Some(filter) = reader.filter() else {
        return 0;
    };
    let number = filter.ranges()[0].base.0 - 0x10;
    assert_eq!(filter.ranges()[1].base.0 - 0x20, number, "torn");
    number
}

#[test]
fn checks_never_go_back_and_end_at_the_newest() {
    loom::model(|| {
        let cell = Arc::new(FilterCell::new());
        let mut reader = cell.reader();
        let writer = thread::spawn({
            let cell = Arc::clone(&cell);
            move || (1..=2).for_each(|number| cell.replace(filter(number)))
        });
        let first = generation(&mut reader);
        let second = generation(&mut reader);
        assert!(first <= second, "{first} then {second}");
        writer.join().unwrap();
        assert_eq!(generation(&mut reader), 2);
        assert_eq!(generation(&mut cell.reader()), 2);
    });
}

#[test]
fn check_after_a_returned_replacement_sees_it() {
    loom::model(|| {
        let cell = Arc::new(FilterCell::new());
        let returned = Arc::new(AtomicU32::new(0));
        let mut reader = cell.reader();
        let writer = thread::spawn({
            let (cell, returned) = (Arc::clone(&cell), Arc::clone(&returned));
            move || {
                for number in 1..=2 {
                    cell.replace(filter(number));
                    returned.store(number, Ordering::Release);
                }
            }
        });
        for _ in 0..2 {
            let at_least = returned.load(Ordering::Acquire);
            assert!(generation(&mut reader) >= at_least);
        }
        writer.join().unwrap();
    });
}

#[test]
fn verdict_is_never_a_mixture_of_two_filters() {
    loom::model(|| {
        let cell = Arc::new(FilterCell::new());
        cell.replace(filter(1));
        let mut reader = cell.reader();
        let writer = thread::spawn({
            let cell = Arc::clone(&cell);
            move || cell.replace(filter(2))
        });
        // Denied by the old filter, then by the new one: never allowed, never denied again.
        let verdicts =
            [1, 2, 1].map(|number| reader.verdict(MsrIndex(0x10 + number), Access::Read));
        assert!(verdicts != [Verdict::Allow, Verdict::Allow, Verdict::Deny]);
        assert!(verdicts[1] == Verdict::Allow || verdicts[2] == Verdict::Allow);
        writer.join().unwrap();
    });
}

#[test]
fn two_writers_lose_no_filter_and_hide_none() {
    loom::model(|| {
        let cell = Arc::new(FilterCell::new());
        let returned = Arc::new(AtomicU32::new(0));
        let mut reader = cell.reader();
        let writers = [1, 2].map(|number| {
            let (cell, returned) = (Arc::clone(&cell), Arc::clone(&returned));
            thread::spawn(move || {
                cell.replace(filter(number));
                returned.store(1, Ordering::Release);
            })
        });
        if returned.load(Ordering::Acquire) == 1 {
            assert_ne!(generation(&mut reader), 0);
        }
        for writer in writers {
            writer.join().unwrap();
        }
        let last = generation(&mut cell.reader());
        assert_ne!(last, 0);
        assert_eq!(generation(&mut reader), last);
    });
}

#[test]
fn late_reader_skips_filters_that_are_gone_and_passes_those_that_are_held() {
    loom::model(|| {
        let cell = Arc::new(FilterCell::new());
        let mut late = cell.reader();
        cell.replace(filter(1));
        let held = cell.reader();
        cell.replace(filter(2));
        let writer = thread::spawn({
            let cell = Arc::clone(&cell);
            move || cell.replace(filter(3))
        });
        assert!(generation(&mut late) >= 2);
        drop(cell);
        writer.join().unwrap();
        assert_eq!(generation(&mut late), 3);
        drop(held);
    });
}

/// All of it follows from `number`.
fn event(number: u32) -> Event {
    Event {
        vcpu: VcpuId(number),
        index: MsrIndex(number),
        access: Access::Read,
        reason: ExitReason(number),
        rip: Some(number.into()),
        value: number.into(),
        outcome: Outcome::Value,
        log: false,
    }
}

/// The number of the next event, which must be whole.
fn next(consumer: &mut EventConsumer) -> Option<u32> {
    let timed = consumer.pop()?;
    let number = timed.event.index.0;
    assert_eq!(timed.event, event(number), "torn");
    assert!((1..=u64::from(number)).contains(&timed.time_ns), "torn");
    Some(number)
}

/// That a slot is read before it is written again is not shown: in the model no load sees a store that comes later.
#[test]
fn ring_gives_whole_events_in_order_and_counts_the_others() {
    loom::model(|| {
        const EVENTS: u32 = 3;
        let mut numbers = 1..;
        let clock = move || numbers.next().expect("it counts without end");
        let (mut producer, mut consumer) = EventRing::new(1).split(clock);
        let vcpu = thread::spawn(move || {
            for number in 1..=EVENTS {
                producer.record(&event(number));
            }
        });
        let mut seen: Vec<u32> = (0..2).filter_map(|_| next(&mut consumer)).collect();
        vcpu.join().unwrap();
        assert!(consumer.is_closed());
        seen.extend(std::iter::from_fn(|| next(&mut consumer)));
        assert!(
            seen.is_sorted_by(|earlier, later| earlier < later),
            "{seen:?}"
        );
        assert_eq!(seen.first(), Some(&1));
        assert_eq!(seen.len() as u64 + consumer.dropped(), EVENTS.into());
    });
}

#[test]
fn closed_ring_has_all_that_will_ever_come() {
    loom::model(|| {
        let (mut producer, mut consumer) = EventRing::new(2).split(|| 1);
        let vcpu = thread::spawn(move || {
            producer.record(&event(1));
            drop(producer);
        });
        if consumer.is_closed() {
            assert_eq!(next(&mut consumer), Some(1));
        }
        vcpu.join().unwrap();
    });
}

/// Images that keep one register per VM, of which a write changes only one bit.
fn shadow_image(bit: u32) -> std::sync::Arc<Image> {
    let action = Action::Shadow(Shadow {
        scope: Scope::Vm,
        reset: 0,
        writable: Writable {
            bits: 1 << bit,
            on_violation: OnViolation::Ignore,
        },
    });
    let mut image = Image::new(Defaults::ALLOW);
    for access in Access::ALL {
        let set = image.set(MsrIndex(1), MsrIndex(1), access, Rule::quiet(action));
        set.expect("one MSR fits");
    }
    image.into()
}

struct NoHost;

impl HostMsrs for NoHost {
    fn get_msr(&self, _index: MsrIndex) -> Result<Option<u64>, VmError> {
        Ok(None)
    }

    fn set_msr(&mut self, _index: MsrIndex, _value: u64) -> Result<bool, VmError> {
        Ok(false)
    }
}

#[test]
fn two_vcpus_at_different_images_lose_no_bit_of_a_shared_register() {
    const REASON: ExitReason = ExitReason::FILTER;
    const INDEX: MsrIndex = MsrIndex(1);
    loom::model(|| {
        let old = Gates::new(shadow_image(0));
        let new = old.replaced(shadow_image(1));
        let mut late = old.gate(VcpuId(0), ());
        let mut early = old.gate(VcpuId(1), ());
        let vcpu = thread::spawn(move || {
            early.switch(&new);
            let wrmsr = VmExit::Wrmsr {
                index: INDEX,
                value: 2,
                reason: REASON,
            };
            early.service(&wrmsr, &mut NoHost)
        });
        let wrmsr = VmExit::Wrmsr {
            index: INDEX,
            value: 1,
            reason: REASON,
        };
        let done = Some(VmEntry::CompleteWrmsr(Ok(())));
        assert_eq!(late.service(&wrmsr, &mut NoHost), done);
        assert_eq!(vcpu.join().unwrap(), done);
        let rdmsr = VmExit::Rdmsr {
            index: INDEX,
            reason: REASON,
        };
        let both = Some(VmEntry::CompleteRdmsr(Ok(3)));
        assert_eq!(late.service(&rdmsr, &mut NoHost), both);
    });
}
