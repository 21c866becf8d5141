//! Traces that tests read whole, and a guest that fills them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use msrgate_core::Event;
use msrgate_trace::{Facts, Reader, Summary};

use crate::support::{Elf, file};

/// A whole trace.
pub(crate) struct Trace {
    pub(crate) facts: Facts,
    pub(crate) events: Vec<Event>,
    pub(crate) times: Vec<u64>,
    pub(crate) summary: Summary,
}

pub(crate) fn read(path: &Path) -> Trace {
    let mut reader = Reader::new(File::open(path).expect("a file")).expect("a trace");
    let facts = reader.header().facts.clone();
    let timed: Vec<_> = reader
        .by_ref()
        .map(|timed| timed.expect("a readable file"))
        .collect();
    Trace {
        facts,
        events: timed.iter().map(|timed| timed.event).collect(),
        times: timed.iter().map(|timed| timed.time_ns).collect(),
        summary: *reader.summary(),
    }
}

pub(crate) fn output(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_file(&path);
    path
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Reads of MSR 0x474f4f00: as many as this, then the end; or for ever.
pub(crate) fn reader(name: &str, count: Option<u32>) -> PathBuf {
    let code = match count {
        // mov ecx, 0x474f4f00; mov ebx, count; again: rdmsr; dec ebx; jnz again; out 0xf4, al
        Some(count) => [
            &[0xb9, 0x00, 0x4f, 0x4f, 0x47, 0xbb][..],
            &count.to_le_bytes(),
            &[0x0f, 0x32, 0xff, 0xcb, 0x75, 0xfa, 0xe6, 0xf4],
        ]
        .concat(),
        // mov ecx, 0x474f4f00; again: rdmsr; jmp again
        None => vec![0xb9, 0x00, 0x4f, 0x4f, 0x47, 0x0f, 0x32, 0xeb, 0xfc],
    };
    file(name, &Elf::new(&code).bytes())
}
