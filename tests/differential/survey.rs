//! Every MSR of the windows where MSRs are, read and written on soft and on the real kernel, and what differs.
//!
//! Not a test: it fills `known.toml` when a kernel is new. Run it with `--ignored --nocapture`.

use msrgate_core::{ExitReasons, MsrFilter, VmEntry, VmExit};
use msrgate_core::{Vcpu, Vm};
use msrgate_tests::guest::{Request, Routine};
use msrgate_tests::machine::{Backend, KvmBackend, Machine, SoftBackend};

use crate::known::Known;

/// First index and count of each window.
const WINDOWS: [(u32, u32); 7] = [
    (0, 0x800),
    (0x800, 0x800),
    (0x1000, 0x1000),
    (0xc000_0000, 0x400),
    (0xc001_0000, 0x2000),
    (0x4b56_4d00, 0x10),
    (0x4000_0000, 0x200),
];

/// What an engine makes of one access: a value, or why not.
type Seen = Result<u64, VmExit>;

fn survey<B: Backend>(requests: &[Request]) -> Option<Vec<Seen>> {
    let mut machine = Machine::<B::Vm>::on::<B>()?;
    machine
        .vm
        .set_exit_reasons(ExitReasons::ALL)
        .expect("accepted");
    machine
        .vm
        .set_msr_filter(&MsrFilter::allow_all())
        .expect("accepted");
    let mut seen = Vec::new();
    for request in requests {
        machine.set_list(&[*request]);
        let mut exit = None;
        let run = machine.run_list(|refused| {
            exit = Some(refused);
            match refused {
                VmExit::Rdmsr { .. } => VmEntry::CompleteRdmsr(Ok(0)),
                _ => VmEntry::CompleteWrmsr(Ok(())),
            }
        });
        run.unwrap_or_else(|error| panic!("{request:x?}: {error} {:x?}", machine.vcpu.registers()));
        let answer = machine.answer(0).expect("accepted");
        seen.push(exit.map_or(Ok(answer.rdx << 32 | answer.rax & 0xffff_ffff), Err));
    }
    Some(seen)
}

fn requests() -> Vec<Request> {
    let known = Known::load();
    let mut requests = Vec::new();
    for (base, count) in WINDOWS {
        for index in base..base + count {
            let mut push = |routine, value: u64| {
                requests.push(Request {
                    routine,
                    rcx: index.into(),
                    rax: value & 0xffff_ffff,
                    rdx: value >> 32,
                });
            };
            push(Routine::Rdmsr, 0);
            for value in [0, 1, 0x7000_0000_1000, u64::MAX] {
                push(Routine::Wrmsr, value);
                push(Routine::Rdmsr, 0);
            }
        }
    }
    requests.retain(|request| known.may_compare(request));
    requests
}

#[test]
#[ignore = "prints what differs between soft and this kernel; it is no test"]
fn print_differences() {
    let known = Known::load();
    let requests = requests();
    let (Some(soft), Some(kvm)) = (
        survey::<SoftBackend>(&requests),
        survey::<KvmBackend>(&requests),
    ) else {
        return;
    };
    for (request, (soft, kvm)) in requests.iter().zip(soft.iter().zip(&kvm)) {
        let same_outcome = soft.is_ok() && kvm.is_ok() && !known.may_compare_value(request);
        if soft != kvm && !same_outcome {
            let value = request.rdx << 32 | request.rax;
            println!(
                "{:?} {:#x} {value:#x}: soft {soft:x?}, kvm {kvm:x?}",
                request.routine, request.rcx
            );
        }
    }
}
