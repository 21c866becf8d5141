//! Where the table says that the host path does the same as the guest's instruction, both are tried.

use msrgate_core::{Access, ExitReason, MsrIndex, Vcpu, Vm};
use msrgate_machine::{Probe, Seen};
use msrgate_policy::{HostPath, host_path};
use msrgate_tests::machine::Backend;
use msrgate_tests::on_each_backend;
use msrgate_tests::skip::say;

use crate::probe;

on_each_backend!(host_path_reads_as_the_guest, host_path_writes_as_the_guest);

/// Where KVM has MSRs.
const WINDOWS: [(u32, u32); 4] = [
    (0, 0x1fff),
    (0x4b56_4d00, 0x4b56_4dff),
    (0xc000_0000, 0xc000_1fff),
    (0xc001_0000, 0xc001_1fff),
];

/// What is worth writing: nothing, single bits, addresses on both sides, memory types, everything.
const VALUES: [u64; 10] = [
    0,
    1,
    1 << 18,
    1 << 31,
    0x7000_0000_1000,
    0xffff_8000_0000_1000,
    0x8000_0000_0000_0000,
    0x0606_0606_0606_0606,
    0xd01,
    u64::MAX,
];

/// The MSRs for which the host path is said to be the same.
fn same(access: Access) -> impl Iterator<Item = MsrIndex> {
    let all = WINDOWS.into_iter().flat_map(|(first, last)| first..=last);
    all.map(MsrIndex)
        .filter(move |&index| host_path(index, access) == HostPath::Same)
}

fn host_path_reads_as_the_guest<B: Backend>() {
    let Some(mut probe) = probe::<B>() else {
        return;
    };
    let mut count = 0;
    for index in same(Access::Read) {
        let expected = match probe.rdmsr(index).unwrap() {
            Seen::Value(value) => Some(value),
            Seen::Refused(ExitReason::INVAL) => None,
            seen => panic!("{index}: {seen:?}, so KVM does not know it"),
        };
        assert_eq!(probe.vcpu().get_msr(index).unwrap(), expected, "{index}");
        count += 1;
    }
    say(&format!("host path: {count} reads compared"));
}

fn host_path_writes_as_the_guest<B: Backend>() {
    let Some(mut probe) = probe::<B>() else {
        return;
    };
    let mut count = 0;
    for index in same(Access::Write) {
        let start = probe.vcpu().get_msr(index).unwrap();
        for value in VALUES {
            let done = match probe.wrmsr(index, value).unwrap() {
                Seen::Done => true,
                // #GP is the processor's, where it does the write itself.
                Seen::Refused(ExitReason::INVAL) | Seen::Gp => false,
                seen => panic!("{value:#x} to {index}: {seen:?}, so KVM does not know it"),
            };
            let by_guest = (done, after(&mut probe, index, start));
            let taken = probe.vcpu().set_msr(index, value).unwrap();
            let by_host = (taken, after(&mut probe, index, start));
            assert_eq!(by_host, by_guest, "{value:#x} to {index}");
            count += 1;
        }
    }
    say(&format!("host path: {count} writes compared"));
}

/// What the MSR holds now; then it holds what it did at the start.
fn after<V: Vm>(probe: &mut Probe<V>, index: MsrIndex, start: Option<u64>) -> Option<u64> {
    let value = probe.vcpu().get_msr(index).unwrap();
    if let Some(start) = start {
        probe.vcpu().set_msr(index, start).unwrap();
    }
    value
}
