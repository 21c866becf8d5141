//! A guest whose MSR accesses are watched where nothing deflects them.

#![expect(
    clippy::unwrap_used,
    reason = "a test says what went wrong by panicking"
)]

use msrgate_core::{
    Access, ExitReason, ExitReasons, Gp, MsrIndex, NativeAccess, Registers, Vcpu, Vm, VmEntry,
    VmExit,
};
use msrgate_soft::{SoftVcpu, SoftVm, SystemConfig};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const CODE: u64 = 0x1000;
const HANDLER: u64 = 0x900;
const STAR: MsrIndex = MsrIndex(0xc000_0081);
const UNKNOWN: MsrIndex = MsrIndex(0x474f_4f00);
const VALUE: u64 = 0x1234_5678_9abc_def0;

/// wrmsr; rdmsr; mov ecx, 0x474f4f00; rdmsr; hlt
const PROGRAM: [u8; 13] = [
    0x0f, 0x30, 0x0f, 0x32, 0x66, 0xb9, 0x00, 0x4f, 0x4f, 0x47, 0x0f, 0x32, 0xf4,
];
const UNKNOWN_AT: u64 = CODE + 10;

/// A vCPU in real mode, about to write `VALUE` to STAR; every vector leads to a HLT.
fn machine(reasons: ExitReasons) -> (SoftVm, SoftVcpu) {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
    memory.write_slice(&PROGRAM, GuestAddress(CODE)).unwrap();
    memory.write_slice(&[0xf4], GuestAddress(HANDLER)).unwrap();
    let vectors = [0x00, 0x09, 0, 0].repeat(256);
    memory.write_slice(&vectors, GuestAddress(0)).unwrap();
    let vm = SoftVm::new(&memory, SystemConfig::default()).unwrap();
    vm.set_exit_reasons(reasons).unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let mut system = vcpu.system_registers().unwrap();
    (system.cs.base, system.cs.selector) = (0, 0);
    vcpu.set_system_registers(&system).unwrap();
    let registers = Registers {
        rip: CODE,
        rflags: 2,
        rsp: 0x8000,
        rcx: STAR.0.into(),
        rax: VALUE & 0xffff_ffff,
        rdx: VALUE >> 32,
        ..Registers::default()
    };
    vcpu.set_registers(&registers).unwrap();
    (vm, vcpu)
}

fn native(access: Access, rip: u64) -> VmExit {
    VmExit::Native(NativeAccess {
        index: STAR,
        access,
        value: VALUE,
        answer: Ok(()),
        rip,
    })
}

#[test]
fn observed_vcpu_tells_of_each_access_once_with_value_and_rip() {
    let (_vm, mut vcpu) = machine(ExitReasons::ALL);
    vcpu.observe_msrs().unwrap();
    let run = |vcpu: &mut SoftVcpu| vcpu.run(VmEntry::Run).unwrap();
    assert_eq!(run(&mut vcpu), native(Access::Write, CODE));
    assert_eq!(vcpu.registers().unwrap().rip, CODE + 2, "it is done");
    assert_eq!(run(&mut vcpu), native(Access::Read, CODE + 2));
    let deflected = VmExit::Rdmsr {
        index: UNKNOWN,
        reason: ExitReason::UNKNOWN,
    };
    assert_eq!(run(&mut vcpu), deflected, "that one is told of by its exit");
    let answer = VmEntry::CompleteRdmsr(Ok(1));
    assert_eq!(vcpu.run(answer).unwrap(), VmExit::Hlt);
}

#[test]
fn access_that_faults_without_an_exit_is_told_too() {
    let (_vm, mut vcpu) = machine(ExitReasons::NONE);
    vcpu.observe_msrs().unwrap();
    for _ in 0..2 {
        vcpu.run(VmEntry::Run).unwrap();
    }
    let faulted = VmExit::Native(NativeAccess {
        index: UNKNOWN,
        access: Access::Read,
        value: 0,
        answer: Err(Gp),
        rip: UNKNOWN_AT,
    });
    assert_eq!(vcpu.run(VmEntry::Run).unwrap(), faulted);
    assert_eq!(vcpu.run(VmEntry::Run).unwrap(), VmExit::Hlt);
    assert_eq!(vcpu.registers().unwrap().rip, HANDLER + 1);
}

#[test]
fn observation_changes_nothing_for_the_guest() {
    let end = |observe: bool| {
        let (_vm, mut vcpu) = machine(ExitReasons::NONE);
        if observe {
            vcpu.observe_msrs().unwrap();
        }
        let mut exits = 1;
        while vcpu.run(VmEntry::Run).unwrap() != VmExit::Hlt {
            exits += 1;
        }
        (exits, vcpu.registers().unwrap(), vcpu.retired())
    };
    let (unobserved, observed) = (end(false), end(true));
    assert_eq!((unobserved.0, observed.0), (1, 4));
    assert_eq!((unobserved.1, unobserved.2), (observed.1, observed.2));
}
