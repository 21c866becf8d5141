//! Records for the tests, and files with them.

use msrgate_core::{Access, Event, ExitReason, MsrIndex, Outcome, Timed, VcpuId};
use msrgate_trace::{Facts, Header, Observation, PolicySource, Reader, Summary, Writer};

/// A record whose every field depends on `number`.
pub(crate) fn record(number: u64) -> Timed {
    let small = u32::try_from(number % 1000).expect("below 1000");
    Timed {
        time_ns: number * 1_000_003,
        event: Event {
            vcpu: VcpuId(small % 7),
            index: MsrIndex(0xc000_0080 + small),
            access: Access::ALL[small as usize % 2],
            reason: ExitReason(small % 5),
            rip: (!number.is_multiple_of(3)).then_some(number << 40),
            value: number.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            outcome: Outcome::ALL[small as usize % Outcome::ALL.len()],
            log: number.is_multiple_of(4),
        },
    }
}

pub(crate) fn header() -> Header {
    Header {
        start_ns: 1_700_000_000_123_456_789,
        facts: Facts {
            program: "msrgate 0.1.0".to_owned(),
            command: "msrgate run --trace t".to_owned(),
            guest: "vmlinux".to_owned(),
            backend: "soft".to_owned(),
            kernel: "Linux 6.12".to_owned(),
            observation: Some(Observation::Native),
            policies: vec![
                PolicySource {
                    name: "strict.toml".to_owned(),
                    text: "version = 1\n# ünï\n".to_owned(),
                },
                PolicySource::default(),
            ],
            includes: vec![PolicySource {
                name: "groups.toml".to_owned(),
                text: "version = 1\n".to_owned(),
            }],
        },
    }
}

/// A file with the records `0..count`.
pub(crate) fn file(count: u64) -> Vec<u8> {
    let mut file = Vec::new();
    let mut writer = Writer::new(&mut file, &header()).expect("memory takes all");
    for number in 0..count {
        writer.record(&record(number));
    }
    assert_eq!(writer.finish().events, count);
    file
}

/// All records of a file that can be read, and what is said about it.
pub(crate) fn read(file: &[u8]) -> (Vec<Timed>, Summary) {
    let mut reader = Reader::new(file).expect("a header");
    let records = reader
        .by_ref()
        .map(|record| record.expect("memory can be read"))
        .collect();
    (records, *reader.summary())
}
