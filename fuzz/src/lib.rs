//! What is done with hostile bytes: one function for each target, which panics where something is wrong.
//!
//! libFuzzer calls them with bytes that it makes up; `tests/fuzz.rs` includes this file and calls them with what was
//! once found. What each input means is tested elsewhere; here is only what must hold for all.

use msrgate_core::{Access, MsrIndex, Rule, Verdict};
use msrgate_policy::{
    self as policy, Compiled, Diagnostic, ImportError, Options, Peer, Sources, compile_with,
};
use msrgate_trace::{RECORD_BYTES, Reader, Writer};

const PEERS: [Peer; 5] = [
    Peer::Crosvm,
    Peer::Firecracker,
    Peer::MsrSafe,
    Peer::Libvirt,
    Peer::VirtualBox,
];

/// The text of a policy.
pub fn policy_parse(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let options = Options {
        handlers: &["host", "clock"],
        ..Options::default()
    };
    let (sources, compiled) = compile_with("policy", text, &options);
    match &compiled {
        Ok(compiled) => {
            check_places(&sources, &compiled.warnings);
            check_answers(compiled);
        }
        Err(diagnostics) => {
            assert!(!diagnostics.is_empty(), "a refusal says why");
            check_places(&sources, diagnostics);
        }
    }
    let observed = Options {
        observe: true,
        ..options
    };
    let (_, observed) = compile_with("policy", text, &observed);
    assert_eq!(
        compiled.is_ok(),
        observed.is_ok(),
        "to watch changes no verdict"
    );
}

/// A place is in its text, at the bounds of characters.
fn check_places(sources: &Sources, diagnostics: &[Diagnostic]) {
    for label in diagnostics.iter().flat_map(|found| &found.labels) {
        let text = &sources.get(label.span.source).text;
        assert!(text.get(label.span.range()).is_some(), "{label:?}");
        assert!(sources.place(label.span).line <= text.lines().count() + 1);
    }
}

/// Where something changes, the image says what the narrowest rule says.
fn check_answers(compiled: &Compiled) {
    for access in Access::ALL {
        let ends = compiled.segments(access).iter().flat_map(|segment| {
            let (first, last) = (segment.first.0, segment.last.0);
            [first.wrapping_sub(1), first, last, last.wrapping_add(1)]
        });
        for index in ends.take(1000).chain([0, 0x800, u32::MAX]).map(MsrIndex) {
            let known = compiled.image.defaults().known;
            let named = compiled.image.named(index, access);
            let deciders = compiled.deciders(index, access);
            let decided = deciders.first().map_or(known, |decider| decider.rule);
            assert_eq!(named.unwrap_or(known), decided, "{access} of {index}");
            if index.is_x2apic() || decided == Rule::ALLOW {
                continue;
            }
            let leaves = compiled.filter.decide(index, access);
            assert!(
                leaves.verdict == Verdict::Deny,
                "{access} of {index}: {leaves:?}"
            );
        }
    }
}

/// The bytes of a trace file, as they are and with checks that fit them.
pub fn trace_read(data: &[u8]) {
    check_trace(data);
    let mut checked = data.to_vec();
    mend_checks(&mut checked);
    check_trace(&checked);
}

/// What is read can be written, and is then read as the same.
fn check_trace(data: &[u8]) {
    let Ok(mut reader) = Reader::new(data) else {
        return;
    };
    let events: Vec<_> = reader
        .by_ref()
        .map(|event| event.expect("bytes in memory can be read"))
        .collect();
    let summary = *reader.summary();
    assert_eq!(events.len() as u64, summary.events);
    let records = summary.events + summary.damaged + summary.unknown;
    assert!(records <= (data.len() / RECORD_BYTES) as u64);

    let mut copy = Vec::new();
    let mut writer =
        Writer::new(&mut copy, reader.header()).expect("facts that were read are not too long");
    events.iter().for_each(|event| writer.record(event));
    assert_eq!(writer.finish().events, summary.events);
    let mut again = Reader::new(&copy[..]).expect("what was written can be read");
    assert_eq!(again.header(), reader.header());
    assert!(
        again
            .by_ref()
            .map(|event| event.expect("an event"))
            .eq(events)
    );
    assert!(!again.summary().is_torn);
}

/// Writes the checks that a file of these bytes would have: nobody guesses them.
fn mend_checks(file: &mut [u8]) {
    const CHECK_AT: usize = RECORD_BYTES - 4;
    let Some((header, rest)) = file.split_first_chunk_mut::<RECORD_BYTES>() else {
        return;
    };
    let facts_bytes = u32::from_le_bytes([header[24], header[25], header[26], header[27]]) as usize;
    let Some(facts) = rest.get(..facts_bytes) else {
        return;
    };
    let check = crc32fast::hash(&[&header[..CHECK_AT], facts].concat());
    header[CHECK_AT..].copy_from_slice(&check.to_le_bytes());
    let records = rest
        .get_mut(facts_bytes.next_multiple_of(RECORD_BYTES)..)
        .unwrap_or_default();
    for (number, record) in (0u64..).zip(records.chunks_exact_mut(RECORD_BYTES)) {
        let check = crc32fast::hash(&[&number.to_le_bytes(), &record[..CHECK_AT]].concat());
        record[CHECK_AT..].copy_from_slice(&check.to_le_bytes());
    }
}

/// A policy that was written for another program: each of them, whatever it is.
pub fn import(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    for peer in PEERS {
        match policy::import(peer, text) {
            Ok(imported) => {
                for note in &imported.inexpressible {
                    let line = note.to_string();
                    assert!(!line.contains(char::is_control), "{peer:?}: {line:?}");
                }
            }
            Err(ImportError::Refused {
                sources,
                diagnostics,
            }) => {
                assert!(!diagnostics.is_empty(), "a refusal says why");
                check_places(&sources, &diagnostics);
            }
            Err(error) => assert!(!error.to_string().contains(char::is_control), "{error}"),
        }
    }
}
