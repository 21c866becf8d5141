//! The document of a surface: what is read, what is refused, and what two of them differ in.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use msrgate_core::{ExitReason, MsrIndex, msr_names};
use msrgate_policy::{Difference, Side, Surface, SurfaceHost, SurfaceMsr, Tried, Window};
use proptest::prelude::*;

fn window(first: u32, last: u32) -> Window {
    Window {
        first: MsrIndex(first),
        last: MsrIndex(last),
    }
}

fn surface(windows: &[(u32, u32)], msrs: Vec<SurfaceMsr>) -> Surface {
    Surface {
        backend: "soft".to_owned(),
        host: SurfaceHost::default(),
        windows: windows
            .iter()
            .map(|&(first, last)| window(first, last))
            .collect(),
        msrs,
    }
}

fn value(index: u32, value: u64) -> SurfaceMsr {
    SurfaceMsr::new(MsrIndex(index), Tried::Done, Some(value))
}

fn refused(index: u32, read: Tried) -> SurfaceMsr {
    SurfaceMsr::new(MsrIndex(index), read, None)
}

/// A document with these windows and entries, written by hand.
fn document(windows: &str, msrs: &str) -> String {
    format!(
        r#"{{"format": "msrgate-surface", "version": 1, "backend": "kvm", "host": {{}},
            "windows": [{windows}], "msrs": [{msrs}]}}"#
    )
}

const LOW: &str = r#"{"first": "0x0", "last": "0x1fff"}"#;

fn error(text: &str) -> String {
    Surface::parse(text).unwrap_err().to_string()
}

fn told(one: &Surface, other: &Surface) -> Vec<String> {
    let differences = Surface::compare(one, other);
    differences.iter().map(Difference::to_string).collect()
}

#[test]
fn document_is_one_line_an_msr() {
    let mut tsc = value(0x10, 0xffff_ffff_ffff_ffff);
    tsc.volatile = true;
    tsc.write = Some(Tried::Done);
    let mut deadline = value(0x6e0, 0);
    deadline.not_written = Some("arms a timer".to_owned());
    let mut surface = surface(
        &[(0, 0x1fff), (0xc000_0000, 0xffff_ffff)],
        vec![tsc, refused(0x9e, Tried::Invalid), deadline],
    );
    surface.host.kernel = "6.12.0".to_owned();
    surface.host.family = Some(6);
    surface.host.ignore_msrs = Some(false);
    let expected = r#"{
  "format": "msrgate-surface",
  "version": 1,
  "backend": "soft",
  "host": {
    "kernel": "6.12.0",
    "vendor": "",
    "processor": "",
    "family": 6,
    "model": null,
    "stepping": null,
    "ignore_msrs": false
  },
  "windows": [
    {
      "first": "0x0",
      "last": "0x1fff"
    },
    {
      "first": "0xc0000000",
      "last": "0xffffffff"
    }
  ],
  "msrs": [
    {"index":"0x10","name":"IA32_TIME_STAMP_COUNTER","read":"done","value":"0xffffffffffffffff","volatile":true,"write":"done"},
    {"index":"0x9e","name":"IA32_SMBASE","read":"invalid"},
    {"index":"0x6e0","name":"IA32_TSC_DEADLINE","read":"done","value":"0x0","not_written":"arms a timer"}
  ]
}
"#;
    assert_eq!(surface.to_json(), expected);
    assert_eq!(Surface::parse(expected).unwrap(), surface);
    assert!(Surface::recognises(expected.as_bytes()));
}

#[test]
fn empty_surface_is_a_document_too() {
    let surface = surface(&[], Vec::new());
    assert_eq!(Surface::parse(&surface.to_json()).unwrap(), surface);
}

#[test]
fn order_and_unknown_keys_do_not_count() {
    let text = r#"{"later": [{}], "msrs": [
            {"index": "0xC0000080", "read": "done", "value": "0x500", "later": 1},
            {"index": "0x10", "read": "invalid", "name": "something else"}],
        "windows": [{"first": "0xc0000000", "last": "0xc0001fff"},
            {"first": "0x1000", "last": "0x1fff"}, {"first": "0x0", "last": "0xfff"},
            {"first": "0x5", "last": "0x6"}],
        "host": {"later": true}, "backend": "kvm", "version": 1, "format": "msrgate-surface"}"#;
    let read = Surface::parse(text).unwrap();
    assert_eq!(
        read.windows,
        [window(0, 0x1fff), window(0xc000_0000, 0xc000_1fff)]
    );
    let expected = [refused(0x10, Tried::Invalid), value(0xc000_0080, 0x500)];
    assert_eq!(read.msrs, expected);
}

#[test]
fn what_is_no_surface_is_told_so() {
    let not = "not a surface: `msrgate surface --json` writes one";
    assert_eq!(error("[]"), not);
    assert_eq!(
        error(r#"{"version": 1, "backend": "soft", "events": []}"#),
        not
    );
    assert_eq!(error(r#"{"format": "else", "version": 1}"#), not);
    assert!(error("").starts_with("not a whole surface: EOF"));
    assert!(error("version = 1\n").starts_with("not a whole surface: expected value"));
    assert!(!Surface::recognises(b"version = 1\n"));
    assert!(!Surface::recognises(b""));
}

#[test]
fn foreign_version_is_named_whatever_else_there_is() {
    assert_eq!(
        error(r#"{"format": "msrgate-surface", "version": 2, "msrs": 7}"#),
        "a surface of version 2: this program reads version 1"
    );
}

#[test]
fn every_prefix_of_a_document_is_refused() {
    let text = surface(&[(0, 0x1fff)], vec![value(0x10, 1), value(0x11, 2)]).to_json();
    let whole = text.trim_end().len();
    for length in 0..whole {
        assert!(Surface::parse(&text[..length]).is_err(), "{length}");
    }
}

#[test]
fn any_byte_can_be_any_other_without_a_panic() {
    let text = surface(&[(0, 0x1fff)], vec![value(0x10, 1), value(0x11, 2)]).to_json();
    let mut read = 0;
    for at in 0..text.len() {
        for byte in 0..=0x7f {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = byte;
            let changed = String::from_utf8(bytes).unwrap();
            if let Ok(surface) = Surface::parse(&changed) {
                assert_eq!(Surface::parse(&surface.to_json()).unwrap(), surface);
                read += 1;
            }
        }
    }
    assert!(read > text.len(), "spaces and texts can be others");
}

#[test]
fn contradictions_are_refused() {
    let entry = r#"{"index": "0x10", "read": "invalid"}"#;
    let twice = format!("{entry}, {entry}");
    assert_eq!(error(&document(LOW, &twice)), "0x10 has two entries");
    assert_eq!(
        error(&document("", entry)),
        "0x10 has an entry, but is in no window"
    );
    let backwards = r#"{"first": "0x20", "last": "0x1f"}"#;
    assert_eq!(
        error(&document(backwards, "")),
        "the window 0x20..=0x1f ends before it begins"
    );
    for (read, value) in [("done", ""), ("invalid", r#", "value": "0x1""#)] {
        let entry = format!(r#"{{"index": "0x10", "read": "{read}"{value}}}"#);
        assert_eq!(
            error(&document(LOW, &entry)),
            "0x10 has a value if, and only if, its read was done"
        );
    }
}

#[test]
fn wrong_types_are_refused_with_their_place() {
    let of_msr = |text: &str| error(&document(LOW, text));
    for (entry, part) in [
        ("7", "invalid type: integer `7`"),
        (
            r#"{"index": 16, "read": "invalid"}"#,
            "invalid type: integer `16`",
        ),
        (
            r#"{"index": "16", "read": "invalid"}"#,
            "hexadecimal digits with 0x",
        ),
        (
            r#"{"index": "0x", "read": "invalid"}"#,
            "hexadecimal digits with 0x",
        ),
        (
            r#"{"index": "0x+1", "read": "invalid"}"#,
            "hexadecimal digits with 0x",
        ),
        (
            r#"{"index": "0x100000000", "read": "invalid"}"#,
            "at most 0xffffffff",
        ),
        (
            r#"{"index": "0x10", "read": "done", "value": "0x10000000000000000"}"#,
            "at most 0xffffffffffffffff",
        ),
        (
            r#"{"index": "0x10", "read": "done", "value": 1}"#,
            "invalid type: integer `1`",
        ),
        (
            r#"{"index": "0x10", "read": "eaten"}"#,
            "unknown variant `eaten`",
        ),
        (
            r#"{"index": "0x10", "index": "0x11", "read": "invalid"}"#,
            "duplicate field `index`",
        ),
        (r#"{"read": "invalid"}"#, "missing field `index`"),
    ] {
        let message = of_msr(entry);
        assert!(message.contains(part), "{entry}: {message}");
        assert!(message.contains("line 2"), "{message}");
    }
}

#[test]
fn counts_of_billions_and_deep_nests_cost_nothing() {
    let all = r#"{"first": "0x0", "last": "0xffffffff"}"#;
    let one = Surface::parse(&document(all, r#"{"index": "0x1b", "read": "invalid"}"#)).unwrap();
    let other = Surface::parse(&document(all, "")).unwrap();
    assert_eq!(one.windows[0].count(), 1 << 32);
    assert_eq!(
        told(&one, &other),
        ["0x1b IA32_APIC_BASE read: invalid | unknown"]
    );
    let none = Surface::parse(&document("", "")).unwrap();
    assert_eq!(
        told(&none, &other),
        ["0x0..=0xffffffff from IA32_P5_MC_ADDR: not tried | tried"]
    );
    let deep = format!(r#"{{"later": {}"#, "[".repeat(100_000));
    assert!(error(&deep).starts_with("not a whole surface: EOF"));
}

#[test]
fn equal_surfaces_do_not_differ() {
    let one = surface(
        &[(0, 0x1fff)],
        vec![value(0x10, 1), refused(0x9e, Tried::Invalid)],
    );
    assert_eq!(Surface::compare(&one, &one), []);
}

#[test]
fn each_kind_of_difference_is_one_line() {
    let mut one = vec![
        value(0x10, 1),
        value(0x1b, 5),
        refused(0x9e, Tried::Invalid),
        value(0xfe, 0x508),
        refused(0x800, Tried::Invalid),
        refused(0x801, Tried::Invalid),
        refused(0x803, Tried::Invalid),
    ];
    one[0].volatile = true;
    one[1].write = Some(Tried::Done);
    one[3].write = Some(Tried::Unknown);
    let mut other = vec![
        value(0x10, 2),
        value(0x1b, 5),
        value(0x9e, 7),
        value(0xfe, 0x50a),
        value(0x100, 0),
    ];
    other[1].write = Some(Tried::Invalid);
    let one = surface(&[(0, 0x1fff)], one);
    let other = surface(&[(0, 0x1fff)], other);
    let expected = [
        "0x1b IA32_APIC_BASE write: done | invalid",
        "0x9e IA32_SMBASE read: invalid | 0x7",
        "0xfe IA32_MTRRCAP read: 0x508 | 0x50a",
        "0x100 read: unknown | 0x0",
        "0x800..=0x801 read: invalid | unknown",
        "0x803 IA32_X2APIC_VERSION read: invalid | unknown",
    ];
    assert_eq!(told(&one, &other), expected);
    let turned = Surface::compare(&other, &one);
    let mut back = Surface::compare(&one, &other);
    back.iter_mut()
        .for_each(|difference| difference.sides.reverse());
    assert_eq!(turned, back);
}

#[test]
fn neighbours_of_unlike_values_are_told_together_where_one_side_does_not_know_them() {
    let one = surface(
        &[(0, 0x1fff)],
        (0x200..0x210)
            .map(|index| value(index, (index % 3).into()))
            .collect(),
    );
    let mut few = surface(&[(0, 0x1fff)], Vec::new());
    assert_eq!(
        told(&one, &few),
        ["0x200..=0x20f from IA32_MTRR_PHYSBASE0 read: done | unknown"]
    );
    few.msrs.push(value(0x202, 9));
    assert_eq!(
        told(&one, &few),
        [
            "0x200..=0x201 from IA32_MTRR_PHYSBASE0 read: done | unknown",
            "0x202 IA32_MTRR_PHYSBASE1 read: 0x1 | 0x9",
            "0x203..=0x20f from IA32_MTRR_PHYSMASK1 read: done | unknown",
        ]
    );
}

#[test]
fn only_what_both_tried_is_compared_msr_by_msr() {
    let one = surface(
        &[(0, 0x1fff), (0xffff_fff0, 0xffff_ffff)],
        vec![value(0x10, 1)],
    );
    let other = surface(
        &[(0x20, 0x2f), (0x40, 0x1fff), (0x4000_0000, 0x4000_00ff)],
        vec![value(0x4000_0000, 1)],
    );
    assert_eq!(
        told(&one, &other),
        [
            "0x0..=0x1f from IA32_P5_MC_ADDR: tried | not tried",
            "0x30..=0x3f: tried | not tried",
            "0x40000000..=0x400000ff from HV_X64_MSR_GUEST_OS_ID: not tried | tried",
            "0xfffffff0..=0xffffffff: tried | not tried",
        ]
    );
}

#[test]
fn line_of_any_msr_fits_into_80_columns() {
    for row in msr_names() {
        for sides in [
            [Side::Value(u64::MAX), Side::Value(u64::MAX - 1)],
            [Side::Untried, Side::Tried],
        ] {
            for last in [row.index, MsrIndex(0xffff_ffff)] {
                let line = Difference {
                    first: row.index,
                    last,
                    access: Some(msrgate_core::Access::Write),
                    sides,
                }
                .to_string();
                assert!(line.len() <= 80 && line.starts_with("0x"), "{line}");
            }
        }
    }
}

#[test]
fn reason_of_an_exit_is_what_came_of_the_access() {
    assert_eq!(Tried::from(ExitReason::UNKNOWN), Tried::Unknown);
    assert_eq!(Tried::from(ExitReason::INVAL), Tried::Invalid);
}

/// MSRs below this number are made up.
const END: u32 = 24;

fn any_surface() -> impl Strategy<Value = Surface> {
    let outcome = prop_oneof![
        (0..2u64).prop_map(Some),
        Just(None) // invalid
    ];
    let msrs = proptest::collection::btree_map(0..END, (outcome, any::<bool>()), 0..16);
    let windows = proptest::collection::vec((0..END, 0..6u32), 0..5);
    (windows, msrs).prop_map(|(windows, msrs)| {
        let windows = windows
            .iter()
            .map(|&(first, count)| window(first, first + count));
        let windows = Window::merge(windows.collect());
        let is_in = |index: u32| {
            windows
                .iter()
                .any(|window| (window.first.0..=window.last.0).contains(&index))
        };
        let msrs = msrs.into_iter().filter(|&(index, _)| is_in(index));
        let msrs = msrs.map(|(index, (read, volatile))| match read {
            Some(read) => {
                let mut msr = value(index, read);
                msr.volatile = volatile;
                msr
            }
            None => refused(index, Tried::Invalid),
        });
        Surface {
            msrs: msrs.collect(),
            windows,
            ..surface(&[], Vec::new())
        }
    })
}

/// What one surface says of one MSR, found the slow way.
fn said(surface: &Surface, index: u32) -> Option<(Tried, Option<u64>, bool)> {
    let holds = |window: &&Window| (window.first.0..=window.last.0).contains(&index);
    surface.windows.iter().find(holds)?;
    let msr = surface.msrs.iter().find(|msr| msr.index.0 == index);
    Some(msr.map_or((Tried::Unknown, None, false), |msr| {
        (msr.read, msr.value, msr.volatile)
    }))
}

fn differs(one: &Surface, other: &Surface, index: u32) -> bool {
    match (said(one, index), said(other, index)) {
        (Some(one), Some(other)) => one.0 != other.0 || one.1 != other.1 && !one.2 && !other.2,
        (one, other) => one.is_some() != other.is_some(),
    }
}

proptest! {
    #[test]
    fn differences_are_those_that_are_found_msr_by_msr(one in any_surface(), other in any_surface()) {
        let differences = Surface::compare(&one, &other);
        let mut told: Vec<u32> = differences
            .iter()
            .flat_map(|difference| difference.first.0..=difference.last.0)
            .collect();
        told.sort_unstable();
        let found: Vec<u32> = (0..END + 8).filter(|&index| differs(&one, &other, index)).collect();
        prop_assert_eq!(told, found);
        let mut turned = Surface::compare(&other, &one);
        turned.iter_mut().for_each(|difference| difference.sides.reverse());
        prop_assert_eq!(differences, turned);
    }

    #[test]
    fn document_reads_as_it_was_written(surface in any_surface()) {
        prop_assert_eq!(Surface::parse(&surface.to_json()).unwrap(), surface);
    }
}
