//! A channel from both of its sides.

use msrgate_core::{Access, Event, ExitReason, MsrIndex, Outcome, Recorder};
use proptest::prelude::*;

use super::*;
use crate::header::PolicySource;

/// All of it follows from `number`, so that a torn event is seen.
fn event(number: u32) -> Event {
    Event {
        vcpu: VcpuId(!number),
        index: MsrIndex(number),
        access: Access::ALL[number as usize % 2],
        reason: ExitReason(number),
        rip: (!number.is_multiple_of(3)).then_some(number.into()),
        value: number.into(),
        outcome: Outcome::ALL[number as usize % 8],
        log: number.is_multiple_of(5),
    }
}

fn claim_of(vcpu: u32) -> Claim {
    Claim {
        pid: std::process::id(),
        vm: 1,
        vcpu: VcpuId(vcpu),
    }
}

/// Two sides, each with mappings of its own.
fn pair(observation: Option<Observation>) -> (Channel, Channel) {
    let facts = Facts {
        observation,
        policies: vec![PolicySource {
            name: "p.toml".to_owned(),
            text: "version = 1\n".to_owned(),
        }],
        ..Facts::default()
    };
    let vmm = Channel::create(&facts, Rings::Wanted).unwrap();
    let collector = Channel::open(vmm.file().try_clone().unwrap()).unwrap();
    assert_eq!(collector.facts(), &facts);
    assert_eq!(collector.start(), vmm.start());
    (vmm, collector)
}

fn ring(vmm: &Channel, collector: &mut Channel, vcpu: u32) -> (RingProducer, RingConsumer) {
    let producer = vmm.claim(claim_of(vcpu)).unwrap();
    let mut claimed = collector.claimed().unwrap();
    assert_eq!(claimed.len(), 1);
    (producer, claimed.remove(0))
}

fn numbers(consumer: &mut RingConsumer) -> Vec<u32> {
    std::iter::from_fn(|| consumer.pop())
        .map(|timed| timed.event.index.0)
        .collect()
}

#[test]
fn events_come_over_whole_in_order_and_timed() {
    let (vmm, mut collector) = pair(None);
    let before = collector.now_ns();
    let (mut producer, mut consumer) = ring(&vmm, &mut collector, 7);
    assert_eq!(consumer.who(), &claim_of(7));
    let mut last = before;
    for number in 0..40_000 {
        producer.record(&event(number));
        let timed = consumer.pop().unwrap();
        assert_eq!(timed.event, event(number));
        assert!(timed.time_ns >= last);
        last = timed.time_ns;
    }
    assert!(last <= collector.now_ns());
    assert_eq!(consumer.pop(), None);
    assert_eq!((consumer.dropped(), consumer.damaged()), (0, 0));
}

#[test]
fn full_ring_drops_the_newest_and_counts_exactly() {
    let (vmm, mut collector) = pair(None);
    let (mut producer, mut consumer) = ring(&vmm, &mut collector, 0);
    let full = u32::try_from(ring::LENGTH).unwrap();
    for number in 0..full + 5 {
        producer.record(&event(number));
    }
    assert_eq!((producer.dropped(), consumer.dropped()), (5, 5));
    assert_eq!(numbers(&mut consumer), (0..full).collect::<Vec<_>>());
    producer.record(&event(9));
    assert_eq!(numbers(&mut consumer), [9]);
    assert_eq!(consumer.dropped(), 5);
}

#[test]
fn ring_is_used_again_once_it_is_given_back() {
    let (vmm, mut collector) = pair(None);
    for round in 0..3 * u32::try_from(RINGS).unwrap() {
        let (mut producer, mut consumer) = ring(&vmm, &mut collector, round);
        producer.record(&event(round));
        producer.gate_failed();
        producer.close();
        producer.record(&event(round));
        assert_eq!(producer.dropped(), 1, "it is no longer there");
        assert!(consumer.is_closed());
        assert_eq!(numbers(&mut consumer), [round]);
        assert_eq!((consumer.failures(), consumer.dropped()), (1, 0));
        collector.release(consumer);
        drop(producer);
    }
    assert_eq!(vmm.refused(), 0);
}

#[test]
fn closing_twice_leaves_the_next_owner_alone() {
    let (vmm, mut collector) = pair(None);
    let (mut first, consumer) = ring(&vmm, &mut collector, 0);
    first.close();
    collector.release(consumer);
    let (_second, consumer) = ring(&vmm, &mut collector, 1);
    drop(first);
    assert!(!consumer.is_closed());
}

#[test]
fn vcpus_without_a_ring_are_counted() {
    let (vmm, mut collector) = pair(None);
    let rings: Vec<_> = (0..1030).map(|vcpu| vmm.claim(claim_of(vcpu))).collect();
    assert_eq!(rings.iter().flatten().count(), RINGS);
    assert_eq!(collector.refused(), 6);
    assert_eq!(collector.claimed().unwrap().len(), RINGS);
    assert_eq!(collector.claimed().unwrap().len(), 0);

    let silent = Channel::create(&Facts::default(), Rings::NotWanted).unwrap();
    assert!(silent.claim(claim_of(0)).is_none());
    assert_eq!(silent.refused(), 0, "nobody wants one");
    assert!(silent.file().metadata().unwrap().len() < 100_000);
}

#[test]
fn vms_are_counted_over_all_sides() {
    let (vmm, collector) = pair(None);
    assert_eq!(
        (vmm.next_vm(), collector.next_vm(), vmm.next_vm()),
        (1, 2, 3)
    );
}

#[test]
fn vcpu_waits_until_its_thread_is_watched_but_not_for_ever() {
    let (vmm, mut collector) = pair(Some(Observation::Tracepoint));
    let (mut producer, consumer) = ring(&vmm, &mut collector, 0);
    let start = Instant::now();
    let vcpu = thread::spawn(move || {
        producer.runs_on(41);
        (Instant::now(), producer)
    });
    while consumer.new_thread() != Some(41) {}
    consumer.knows(41);
    let known = Instant::now();
    let (ran, mut producer) = vcpu.join().unwrap();
    assert!(ran >= start && consumer.new_thread().is_none());
    assert!(ran < known + Duration::from_millis(400), "it was let go");
    for thread in [42, 43] {
        producer.runs_on(thread);
    }
    assert!(known.elapsed() < Duration::from_secs(10), "nobody answered");
    assert_eq!(consumer.new_thread(), Some(43));
}

#[test]
fn nobody_waits_where_no_thread_is_watched() {
    let (vmm, mut collector) = pair(Some(Observation::Filter));
    let (mut producer, consumer) = ring(&vmm, &mut collector, 0);
    producer.runs_on(41);
    assert_eq!(consumer.new_thread(), None);
}

#[test]
fn vmm_that_leaves_waits_for_the_table_that_was_promised() {
    let (vmm, collector) = pair(None);
    vmm.leave(Duration::from_secs(60));
    assert!(!collector.is_left(), "nobody promised one");
    collector.promise_report();
    let leaving = thread::spawn(move || vmm.leave(Duration::from_secs(60)));
    while !collector.is_left() {}
    assert!(!leaving.is_finished());
    collector.report_is_done();
    leaving.join().unwrap();
}

#[test]
fn descriptor_that_means_another_file_by_now_is_not_mapped() {
    let (vmm, _) = pair(None);
    let vmm = Channel {
        file: Arc::new(File::open("/dev/null").unwrap()),
        ..vmm
    };
    assert!(vmm.claim(claim_of(0)).is_none());
    assert_eq!(vmm.refused(), 1);
}

#[test]
fn other_files_are_refused() {
    let file = |bytes: &[u8], seals| {
        let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::ALLOW_SEALING);
        let file = File::from(file.unwrap());
        file.write_all_at(bytes, 0).unwrap();
        rustix::fs::fcntl_add_seals(&file, seals).unwrap();
        Channel::open(file).unwrap_err()
    };
    let seals = SealFlags::SHRINK | SealFlags::GROW;
    let (vmm, _) = pair(None);
    let mut real = vec![0; 70_000];
    vmm.file().read_exact_at(&mut real, 0).unwrap();
    assert!(matches!(
        file(&real, SealFlags::GROW),
        ChannelError::NotAChannel
    ));
    assert!(matches!(file(b"MSR", seals), ChannelError::NotAChannel));
    assert!(matches!(file(&real, seals), ChannelError::Size));
    real[8] = 9;
    assert!(matches!(
        file(&real, seals),
        ChannelError::Version { version: 9 }
    ));
    let null = File::open("/dev/null").unwrap();
    assert!(matches!(
        Channel::open(null),
        Err(ChannelError::NotAChannel)
    ));
}

#[test]
fn other_process_records_and_dies_without_a_word() {
    const CHANNEL: &str = "MSRGATE_TEST_CHANNEL";
    if let Some(path) = std::env::var_os(CHANNEL) {
        // The other process: this test again.
        let file = File::options().read(true).write(true).open(path).unwrap();
        let channel = Channel::open(file).unwrap();
        let mut producer = channel.claim(claim_of(3)).unwrap();
        for number in 0..100 {
            producer.record(&event(number));
        }
        std::process::abort();
    }
    let (vmm, mut collector) = pair(None);
    let fd = std::os::fd::AsRawFd::as_raw_fd(vmm.file());
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "channel::tests::other_process_records_and_dies_without_a_word",
        ])
        .env(CHANNEL, format!("/proc/{}/fd/{fd}", std::process::id()))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let pid = child.id();
    assert!(!child.wait().unwrap().success());
    let mut consumer = collector.claimed().unwrap().pop().unwrap();
    assert_eq!((consumer.who().pid, consumer.who().vcpu), (pid, VcpuId(3)));
    assert!(!consumer.is_closed(), "it could not say so");
    assert_eq!(numbers(&mut consumer), (0..100).collect::<Vec<_>>());
    collector.release(consumer);
    assert!(vmm.claim(claim_of(4)).is_some());
}

#[test]
fn threads_lose_nothing_but_what_is_counted() {
    const EVENTS: u32 = 500_000;
    let (vmm, mut collector) = pair(None);
    let (mut producer, mut consumer) = ring(&vmm, &mut collector, 0);
    let vcpu =
        thread::spawn(move || (0..EVENTS).for_each(|number| producer.record(&event(number))));
    let (mut seen, mut next) = (0, 0);
    loop {
        let is_closed = consumer.is_closed();
        while let Some(timed) = consumer.pop() {
            let number = timed.event.index.0;
            assert!(number >= next, "out of order");
            assert_eq!(timed.event, event(number), "torn");
            next = number + 1;
            seen += 1;
        }
        if is_closed {
            break;
        }
    }
    vcpu.join().unwrap();
    assert_eq!(seen + consumer.dropped(), u64::from(EVENTS));
    assert_eq!(consumer.damaged(), 0);
}

proptest! {
    /// Whatever the other side writes, nothing panics, and no look takes longer than a ring is.
    #[test]
    fn hostile_bytes_in_a_ring_are_at_most_passed_over(
        recorded: [u64; 3],
        taken: u64,
        words: [u64; 4],
        places in proptest::collection::vec((0u32..80, any::<u32>()), 0..20),
    ) {
        let (vmm, mut collector) = pair(None);
        let mut producer = vmm.claim(claim_of(0)).unwrap();
        for (place, half) in places {
            let at = usize::try_from(place).unwrap() * 4;
            vmm.control.half(claim::at(0) + at % claim::BYTES).store(half, Ordering::Relaxed);
        }
        vmm.state(0).store(state::OPEN, Ordering::Relaxed);
        let mut consumer = collector.claimed().unwrap().pop().unwrap();
        let shared = vmm.map(0).unwrap();
        for recorded in recorded {
            for (place, word) in (0..).zip(words) {
                shared.word(ring::SLOTS + place * 8).store(word, Ordering::Relaxed);
            }
            shared.word(ring::RECORDED).store(recorded, Ordering::Relaxed);
            let _ = std::iter::from_fn(|| consumer.pop()).count();
            prop_assert_eq!(consumer.pop(), None);
            shared.word(ring::TAKEN).store(taken, Ordering::Relaxed);
            producer.record(&event(1));
            let _ = (consumer.new_thread(), consumer.failures(), consumer.dropped());
        }
        collector.release(consumer);
    }

    #[test]
    fn hostile_bytes_are_no_channel_or_one(at in 0u64..72_000, byte: u8) {
        let (vmm, _) = pair(None);
        vmm.file().write_all_at(&[byte], at).unwrap();
        let opened = Channel::open(vmm.file().try_clone().unwrap());
        if let Ok(mut other) = opened {
            prop_assert!(other.claimed().is_ok());
            prop_assert!(other.claim(claim_of(0)).is_some());
        }
    }
}
