//! Writing to files that take little, nothing, or nothing for a while.

use std::cell::RefCell;
use std::io::{self, Write};
use std::rc::Rc;

use msrgate_core::VcpuId;
use msrgate_trace::{Loss, LossCause, Writer};
use proptest::prelude::*;

mod support;

use support::{file, header, read, record};

/// A disk: what it holds, and how many bytes it still takes; at most `step` at a time.
#[derive(Default)]
struct Disk {
    bytes: Vec<u8>,
    room: usize,
    step: usize,
}

#[derive(Clone)]
struct Handle(Rc<RefCell<Disk>>);

impl Handle {
    fn new(room: usize, step: usize) -> Self {
        Self(Rc::new(RefCell::new(Disk {
            bytes: Vec::new(),
            room,
            step,
        })))
    }
}

impl Write for Handle {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut disk = self.0.borrow_mut();
        let count = bytes.len().min(disk.room).min(disk.step);
        if count == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        disk.room -= count;
        disk.bytes.extend(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn header_is_there_before_the_first_record() {
    let disk = Handle::new(usize::MAX, usize::MAX);
    let mut writer = Writer::new(disk.clone(), &header()).unwrap();
    assert_eq!(disk.0.borrow().bytes, file(0));
    writer.record(&record(0));
    assert_eq!(disk.0.borrow().bytes, file(0), "it is in the buffer");
    writer.flush();
    assert_eq!(disk.0.borrow().bytes, file(1));
}

#[test]
fn what_is_not_flushed_is_bounded() {
    let disk = Handle::new(usize::MAX, usize::MAX);
    let mut writer = Writer::new(disk.clone(), &header()).unwrap();
    for number in 0..5000 {
        writer.record(&record(number));
        if number % 100 != 99 {
            continue;
        }
        let (records, _) = read(&disk.0.borrow().bytes);
        assert!(records.len() as u64 + 1024 > number);
    }
}

#[test]
fn disk_without_room_for_the_header_is_an_error_at_once() {
    let error = Writer::new(Handle::new(10, 4), &header()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
}

#[test]
fn disk_that_stays_full_loses_the_rest_and_says_how_much() {
    let room = file(1500).len() + 17;
    let disk = Handle::new(room, usize::MAX);
    let mut writer = Writer::new(disk.clone(), &header()).unwrap();
    for number in 0..5000 {
        writer.record(&record(number));
    }
    let written = writer.finish();
    assert_eq!((written.events, written.lost_in_file), (1500, 3500));
    assert_eq!(written.error.unwrap().kind(), io::ErrorKind::StorageFull);
    let (records, summary) = read(&disk.0.borrow().bytes);
    assert!(records.iter().copied().eq((0..1500).map(record)));
    assert!(summary.is_torn);
}

/// As a hostile VMM tells them.
#[test]
fn losses_without_bound_are_as_many_as_can_be() {
    let mut writer = Writer::new(Vec::new(), &header()).unwrap();
    for vcpu in [0, 0, 1] {
        writer.record_loss(Loss {
            time_ns: 1,
            cause: LossCause::Ring(VcpuId(vcpu)),
            count: u64::MAX,
        });
    }
    assert_eq!(writer.finish().lost_in_rings, u64::MAX);
}

#[test]
fn losses_of_rings_are_told_in_the_file() {
    let disk = Handle::new(usize::MAX, usize::MAX);
    let mut writer = Writer::new(disk.clone(), &header()).unwrap();
    for (vcpu, count) in [(0, 3), (1, 0), (1, 4), (0, 5)] {
        let cause = LossCause::Ring(VcpuId(vcpu));
        writer.record_loss(Loss {
            time_ns: 1,
            cause,
            count,
        });
    }
    writer.record(&record(0));
    assert_eq!(writer.finish().lost_in_rings, 12);
    let (records, summary) = read(&disk.0.borrow().bytes);
    assert_eq!(records, [record(0)]);
    assert_eq!((summary.lost_in_rings, summary.lost_in_file), (12, 0));
}

proptest! {
    /// A disk that is full at times, and takes odd numbers of bytes: whatever is in the file reads, in order, and
    /// together with what the file says is lost it is all.
    #[test]
    fn disk_with_trouble_keeps_its_records_in_step(
        rounds in proptest::collection::vec((0_usize..200_000, 1_u64..3000), 1..8),
        step in 1_usize..5000,
    ) {
        let disk = Handle::new(usize::MAX, step);
        let mut writer = Writer::new(disk.clone(), &header()).unwrap();
        let mut number = 0;
        for (room, count) in rounds {
            disk.0.borrow_mut().room = room;
            for _ in 0..count {
                writer.record(&record(number));
                number += 1;
            }
        }
        disk.0.borrow_mut().room = usize::MAX;
        let written = writer.finish();
        let (records, summary) = read(&disk.0.borrow().bytes);
        prop_assert_eq!(summary.damaged, 0);
        prop_assert!(!summary.is_torn);
        prop_assert_eq!(records.len() as u64, written.events);
        prop_assert_eq!(summary.lost_in_file, written.lost_in_file);
        prop_assert_eq!(written.events + written.lost_in_file, number);
        prop_assert!(records.is_sorted_by_key(|record| record.time_ns));
        for found in records {
            prop_assert_eq!(found, record(found.time_ns / 1_000_003));
        }
    }
}
