//! The example policies on a guest: each does what its comments promise, on every backend.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use msrgate_core::{Access, Event, Gate, HostMsrs, MsrIndex, Vcpu, VcpuId, Vm, VmError};
use msrgate_policy::{Compiled, compile};
use msrgate_tests::guest::{Request, Routine};
use msrgate_tests::machine::{Backend, Machine, run_list};
use msrgate_tests::on_each_backend;

on_each_backend!(
    observe_changes_nothing_and_sees_what_kvm_refuses,
    ignore_unknown_reads_zero_and_drops_writes,
    ucode_revision_is_the_policys,
    no_rapl_is_no_energy_counter,
    deny_all_denies_what_it_can,
    linux_guest_strict_lets_linux_boot_and_no_more,
);

const POLICIES: [&str; 6] = [
    "deny-all",
    "ignore-unknown",
    "linux-guest-strict",
    "no-rapl",
    "observe",
    "ucode-revision",
];

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/policies"))
}

fn source(name: &str) -> String {
    fs::read_to_string(folder().join(format!("{name}.toml"))).unwrap()
}

fn policy(name: &str) -> Compiled {
    compile(&source(name)).unwrap_or_else(|mistakes| panic!("{name}: {mistakes:#?}"))
}

#[test]
fn every_example_is_tested_and_has_no_warning_that_it_does_not_explain() {
    let mut names: Vec<String> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    assert_eq!(names, POLICIES);
    for name in POLICIES {
        for warning in policy(name).warnings {
            assert!(source(name).contains(warning.code), "{name}: {warning:#?}");
        }
    }
}

/// What the guest gets: a value, or (for a write) nothing; `None`: #GP.
type Seen = Option<u64>;

const GP: Seen = None;
const DONE: Seen = Some(0);

/// RDMSR, or WRMSR of a value.
#[derive(Clone, Copy, Debug)]
enum Try {
    Read(u32),
    Write(u32, u64),
}
use Try::{Read, Write};

impl Try {
    fn request(self) -> Request {
        let (routine, index, value) = match self {
            Read(index) => (Routine::Rdmsr, index, 0),
            Write(index, value) => (Routine::Wrmsr, index, value),
        };
        Request {
            routine,
            rcx: index.into(),
            rax: value & 0xffff_ffff,
            rdx: value >> 32,
        }
    }
}

/// A guest under an example policy, on backend `B`; `None` where it cannot run here.
struct Guest<B: Backend> {
    machine: Machine<B::Vm>,
    gate: Gate<Vec<Event>>,
}

impl<B: Backend> Guest<B> {
    fn under(name: &str) -> Option<Self> {
        let machine = Machine::on::<B>()?;
        let policy = policy(name);
        machine.vm.set_exit_reasons(policy.reasons).unwrap();
        machine.vm.set_msr_filter(&policy.filter).unwrap();
        Some(Self {
            machine,
            gate: Gate::new(VcpuId(0), Arc::new(policy.image), Vec::new()),
        })
    }

    /// Does the accesses, and tells what the guest saw of each.
    fn sees(&mut self, tries: &[Try]) -> Vec<Seen> {
        let requests: Vec<Request> = tries.iter().map(|it| it.request()).collect();
        self.machine.set_list(&requests);
        let vcpu = &mut self.machine.vcpu;
        let mut host = HostOfNobody;
        let run = run_list(vcpu, |exit| self.gate.service(&exit, &mut host).unwrap());
        run.unwrap();
        let seen = |position| {
            let answer = self.machine.answer(position).unwrap();
            match (answer.exception, tries[position]) {
                (Some(exception), _) => {
                    assert_eq!(exception.vector, 13, "{:?}", tries[position]);
                    GP
                }
                (None, Read(_)) => Some(answer.rdx << 32 | answer.rax),
                (None, Write(..)) => DONE,
            }
        };
        (0..tries.len()).map(seen).collect()
    }

    /// Whether an access of that kind to `index` has left the guest.
    fn has_left(&self, index: u32, access: Access) -> bool {
        let events = self.gate.recorder();
        events
            .iter()
            .any(|event| event.index.0 == index && event.access == access)
    }
}

/// None of the examples lets KVM do what its filter denied.
struct HostOfNobody;

impl HostMsrs for HostOfNobody {
    fn get_msr(&self, index: MsrIndex) -> Result<Option<u64>, VmError> {
        panic!("{index} was forwarded")
    }

    fn set_msr(&mut self, index: MsrIndex, _value: u64) -> Result<bool, VmError> {
        panic!("{index} was forwarded")
    }
}

/// An MSR that no processor and no KVM has.
const UNKNOWN: u32 = 0x474f_4f00;
const EFER: u32 = 0xc000_0080;
const EFER_RESERVED: u64 = 1 << 63 | 0xd00;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const BIOS_SIGN_ID: u32 = 0x8b;

fn observe_changes_nothing_and_sees_what_kvm_refuses<B: Backend>() {
    let Some(mut guest) = Guest::<B>::under("observe") else {
        return;
    };
    let tries = [
        Read(UNKNOWN),
        Write(UNKNOWN, 1),
        Write(EFER, EFER_RESERVED),
        Write(KERNEL_GS_BASE, 0x1234),
        Read(KERNEL_GS_BASE),
    ];
    assert_eq!(guest.sees(&tries), [GP, GP, GP, DONE, Some(0x1234)]);
    assert!(guest.has_left(UNKNOWN, Access::Read));
    assert!(guest.has_left(UNKNOWN, Access::Write));
    assert!(guest.has_left(EFER, Access::Write));
    assert!(!guest.has_left(KERNEL_GS_BASE, Access::Read));
}

fn ignore_unknown_reads_zero_and_drops_writes<B: Backend>() {
    let Some(mut guest) = Guest::<B>::under("ignore-unknown") else {
        return;
    };
    let tries = [
        Write(UNKNOWN, 7),
        Read(UNKNOWN),
        Write(EFER, EFER_RESERVED),
        Write(KERNEL_GS_BASE, 0x1234),
        Read(KERNEL_GS_BASE),
    ];
    assert_eq!(guest.sees(&tries), [DONE, Some(0), GP, DONE, Some(0x1234)]);
    assert!(guest.has_left(UNKNOWN, Access::Read), "it is seen");
}

fn ucode_revision_is_the_policys<B: Backend>() {
    let Some(mut guest) = Guest::<B>::under("ucode-revision") else {
        return;
    };
    let tries = [
        Write(BIOS_SIGN_ID, 0),
        Read(BIOS_SIGN_ID),
        Write(BIOS_SIGN_ID, 0x2222_0000_0000),
        Read(BIOS_SIGN_ID),
        Read(UNKNOWN),
    ];
    let revision = Some(0x0100_0065_0000_0000);
    assert_eq!(guest.sees(&tries), [DONE, revision, DONE, revision, GP]);
}

fn no_rapl_is_no_energy_counter<B: Backend>() {
    let Some(mut guest) = Guest::<B>::under("no-rapl") else {
        return;
    };
    let energy = [
        0x606,
        0x610,
        0x611,
        0x613,
        0x614,
        0x618,
        0x619,
        0x61b,
        0x61c,
        0x638,
        0x639,
        0x63a,
        0x63b,
        0x640,
        0x641,
        0x642,
        0x64d,
        0x65c,
        0xc001_0299,
        0xc001_029a,
        0xc001_029b,
    ];
    let tries: Vec<Try> = energy.into_iter().map(Read).collect();
    assert_eq!(guest.sees(&tries), vec![GP; energy.len()]);
    for index in energy {
        assert!(
            guest.has_left(index, Access::Read),
            "{index:#x} is seen, not only refused"
        );
    }
    let others = [Write(KERNEL_GS_BASE, 0x1234), Read(KERNEL_GS_BASE)];
    assert_eq!(guest.sees(&others), [DONE, Some(0x1234)]);
}

fn deny_all_denies_what_it_can<B: Backend>() {
    let Some(mut guest) = Guest::<B>::under("deny-all") else {
        return;
    };
    let tries = [
        Read(EFER),
        Write(KERNEL_GS_BASE, 0x1234),
        Read(0x10),
        Read(UNKNOWN),
        Write(UNKNOWN, 0),
        Read(0),
        Read(u32::MAX),
    ];
    assert_eq!(guest.sees(&tries), [GP; 7]);
    assert_eq!(
        guest.gate.recorder().len(),
        tries.len(),
        "each of them is seen"
    );
    let kept = Vcpu::get_msr(&guest.machine.vcpu, KERNEL_GS_BASE.into()).unwrap();
    assert_eq!(kept, Some(0), "nothing was written");
}

fn linux_guest_strict_lets_linux_boot_and_no_more<B: Backend>() {
    let Some(mut guest) = Guest::<B>::under("linux-guest-strict") else {
        return;
    };
    let free: [u32; 20] = [
        EFER,
        0xc000_0081,
        0xc000_0082,
        0xc000_0083,
        0xc000_0084,
        0xc000_0100,
        0xc000_0101,
        KERNEL_GS_BASE,
        0x174,
        0x175,
        0x176,
        0x1b,
        0x10,
        0x8b,
        0xfe,
        0x200,
        0x2ff,
        0x277,
        0x179,
        0x17a,
    ];
    let reads: Vec<Try> = free.into_iter().map(Read).collect();
    let seen = guest.sees(&reads);
    for (index, seen) in free.into_iter().zip(seen) {
        assert_ne!(seen, GP, "Linux reads {index:#x} without care");
        assert!(
            !guest.has_left(index, Access::Read),
            "{index:#x} stays inside KVM"
        );
    }
    let probes = [
        (Read(0x3a), Some(1)),
        (Write(0x3a, 5), DONE),
        (Read(0x3a), Some(1)),
        (Write(0xc1, 0xabcd), DONE),
        (Read(0xc1), Some(0)),
        (Read(0x345), Some(0)),
        (Write(0xc001_0200, 0xabcd), DONE),
        (Read(0xc001_0200), Some(0)),
        (Read(0x606), GP),
        (Read(0x480), GP),
        (Read(0x19c), GP),
        (Write(0x10, 0), GP),
        (Read(UNKNOWN), GP),
        (Write(KERNEL_GS_BASE, 0x1234), DONE),
        (Read(KERNEL_GS_BASE), Some(0x1234)),
    ];
    let tries = probes.map(|(it, _)| it);
    assert_eq!(guest.sees(&tries), probes.map(|(_, seen)| seen));
}
