//! Reading: whole files, every prefix, damage, foreign and hostile bytes.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write as _};
use std::path::Path;
use std::process::Command;

use msrgate_core::Timed;
use msrgate_trace::{FACTS_LIMIT_BYTES, Header, RECORD_BYTES, ReadError, Reader};
use proptest::prelude::*;

mod support;

use support::{file, header, read, record};

/// Where the first record begins.
fn header_bytes() -> usize {
    file(0).len()
}

#[test]
fn trace_reads_back_as_it_was_written() {
    let file = file(3000);
    assert_eq!(*Reader::new(&file[..]).unwrap().header(), header());
    let (records, summary) = read(&file);
    assert!(records.iter().copied().eq((0..3000).map(record)));
    assert_eq!((summary.events, summary.is_torn), (3000, false));
    assert_eq!((summary.damaged, summary.unknown), (0, 0));
    assert_eq!(summary.lost(), 0);
}

/// The document has a reader in Python, which knows nothing of this crate.
#[test]
fn program_of_the_document_reads_the_same() {
    let document = include_str!("../../../docs/trace-format.md");
    let program = document
        .split("```python file=read.py\n")
        .nth(1)
        .expect("a program");
    let program = program.split("```").next().expect("its end");
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("document.trace");
    fs::write(&path, file(100)).unwrap();
    let python = Command::new("python3")
        .args(["-c", program])
        .arg(&path)
        .output();
    let Ok(output) = python else {
        let _ = writeln!(io::stderr(), "SKIP(python3): there is no python3");
        return;
    };
    let seen = String::from_utf8(output.stdout).unwrap();
    let mut expected = String::from("1700000000123456789 soft native\n");
    for Timed { time_ns, event } in (0..100).map(record) {
        let instruction = event.access.instruction();
        let (vcpu, index, value) = (event.vcpu, event.index, event.value);
        writeln!(
            expected,
            "{time_ns} {vcpu} {instruction} {index} {value:#x}"
        )
        .unwrap();
    }
    assert_eq!(
        seen,
        expected,
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn every_prefix_reads_cleanly() {
    let whole = file(5);
    let start = header_bytes();
    for length in 0..whole.len() {
        let cut = &whole[..length];
        if length == 0 {
            assert!(matches!(Reader::new(cut), Err(ReadError::Empty)));
            continue;
        }
        if length < start {
            assert!(matches!(Reader::new(cut), Err(ReadError::Cut)), "{length}");
            continue;
        }
        let (records, summary) = read(cut);
        assert_eq!(records.len(), (length - start) / RECORD_BYTES);
        assert_eq!(
            summary.is_torn,
            !(length - start).is_multiple_of(RECORD_BYTES)
        );
        assert_eq!(summary.damaged, 0);
        assert!(
            records
                .iter()
                .copied()
                .eq((0..5).map(record).take(records.len()))
        );
    }
}

#[test]
fn any_changed_bit_of_a_record_is_found_and_costs_that_record_only() {
    let whole = file(3);
    let second = header_bytes() + RECORD_BYTES;
    for bit in 0..RECORD_BYTES * 8 {
        let mut bytes = whole.clone();
        bytes[second + bit / 8] ^= 1 << (bit % 8);
        let (records, summary) = read(&bytes);
        assert_eq!(records, [record(0), record(2)], "bit {bit}");
        assert_eq!((summary.damaged, summary.is_torn), (1, false));
    }
}

#[test]
fn any_changed_bit_of_the_header_is_found() {
    let whole = file(1);
    let facts = usize::from(whole[24]) + usize::from(whole[25]) * 256;
    for bit in 0..(64 + facts) * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(Reader::new(&bytes[..]).is_err(), "bit {bit}");
    }
}

#[test]
fn record_in_the_place_of_another_is_damaged() {
    let mut bytes = file(3);
    let start = header_bytes();
    bytes.copy_within(start..start + RECORD_BYTES, start + RECORD_BYTES);
    let (records, summary) = read(&bytes);
    assert_eq!(records, [record(0), record(2)]);
    assert_eq!(summary.damaged, 1);
}

#[test]
fn tail_of_zeros_is_torn() {
    let mut bytes = file(2);
    bytes.resize(bytes.len() + 10 * RECORD_BYTES, 0);
    let (records, summary) = read(&bytes);
    assert_eq!(records.len(), 2);
    assert_eq!((summary.damaged, summary.is_torn), (10, true));
}

#[test]
fn what_is_no_trace_is_named() {
    let whole = file(1);
    let changed = |at: usize, value: u32| {
        let mut bytes = whole.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    let limit = u32::try_from(FACTS_LIMIT_BYTES).unwrap();
    let cases: &[(&[u8], &str)] = &[
        (b"", "the file is empty: a trace begins with a header"),
        (
            b"MSR",
            "the trace ends inside its header: nothing was recorded",
        ),
        (b"\x7fELF", "not a trace: it does not begin with MSRTRACE"),
        (&[b'x'; 500], "not a trace: it does not begin with MSRTRACE"),
        (
            &changed(8, 2),
            "a trace of version 2: this program reads version 1",
        ),
        (
            &changed(12, 32),
            "a trace with records of 32 bytes: they must have 64",
        ),
        (
            &changed(24, limit + 1),
            "0x1000001 bytes of facts in the header: at most 0x1000000 may be",
        ),
        (
            &changed(24, u32::MAX),
            "0xffffffff bytes of facts in the header: at most 0x1000000 may be",
        ),
        (
            &changed(24, limit),
            "the trace ends inside its header: nothing was recorded",
        ),
        (
            &changed(24, 3),
            "the trace's header is damaged: its bytes are not what was written",
        ),
    ];
    for (bytes, expected) in cases {
        let error = Reader::new(*bytes).expect_err(expected);
        assert_eq!(error.to_string(), *expected);
    }
}

/// Fails after some bytes, and again each time.
struct Broken<'a>(&'a [u8]);

impl Read for Broken<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(io::Error::other("the cable is out")),
            count => Ok(count),
        }
    }
}

#[test]
fn read_error_is_told_once_and_ends_the_trace() {
    let file = file(4);
    let mut reader = Reader::new(Broken(&file)).unwrap();
    assert_eq!(reader.by_ref().take(4).filter(Result::is_ok).count(), 4);
    assert!(matches!(reader.next(), Some(Err(ReadError::Io(_)))));
    assert!(reader.next().is_none());
}

proptest! {
    #[test]
    fn random_bytes_are_read_without_a_panic(
        random in proptest::collection::vec(any::<u8>(), 0..2000),
        count in 0_u64..3,
        keep in 0_usize..600,
    ) {
        prop_assert!(Reader::new(&random[..]).is_err());
        let mut bytes = file(count);
        bytes.truncate(keep);
        bytes.extend(&random);
        if let Ok(reader) = Reader::new(&bytes[..]) {
            prop_assert!(reader.flatten().count() as u64 <= count);
        }
    }

    #[test]
    fn any_header_reads_back(
        start_ns: u64,
        texts in proptest::collection::vec(".{0,30}", 7),
    ) {
        let mut header = Header { start_ns, ..header() };
        let facts = &mut header.facts;
        facts.policies[0].name.clone_from(&texts[0]);
        facts.policies[0].text.clone_from(&texts[1]);
        facts.program.clone_from(&texts[2]);
        facts.command.clone_from(&texts[3]);
        facts.guest.clone_from(&texts[4]);
        facts.backend.clone_from(&texts[5]);
        facts.kernel.clone_from(&texts[6]);
        let mut bytes = Vec::new();
        drop(msrgate_trace::Writer::new(&mut bytes, &header));
        let reader = Reader::new(&bytes[..]).expect("a header");
        prop_assert_eq!(reader.header(), &header);
    }
}
