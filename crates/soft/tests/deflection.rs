//! A guest of a few bytes on the Rust API: its MSR accesses are deflected, answered, filtered, faulted.

#![expect(
    clippy::unwrap_used,
    reason = "a test says what went wrong by panicking"
)]

use msrgate_core::{
    Access, DefaultAction, ExitReason, ExitReasons, FilterRange, Gp, Kick, MsrFilter, MsrIndex,
    RangeFlags, Registers, RunError, Vcpu, Verdict, Vm, VmEntry, VmExit,
};
use msrgate_soft::{SoftVcpu, SoftVm, SystemConfig};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const CODE: u64 = 0x1000;
const HANDLER: u64 = 0x900;
const UNKNOWN: MsrIndex = MsrIndex(0x474f_4f00);
const RDMSR: [u8; 2] = [0x0f, 0x32];
const WRMSR: [u8; 2] = [0x0f, 0x30];
const HLT: u8 = 0xf4;

/// A VM with one vCPU in real mode, about to run `code`.
fn machine(code: &[u8]) -> (SoftVm, SoftVcpu) {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
    memory.write_slice(code, GuestAddress(CODE)).unwrap();
    // Every vector leads to a HLT.
    memory.write_slice(&[HLT], GuestAddress(HANDLER)).unwrap();
    let handler = u32::try_from(HANDLER).unwrap();
    memory
        .write_slice(&[handler.to_le_bytes(); 256].concat(), GuestAddress(0))
        .unwrap();
    let vm = SoftVm::new(&memory, SystemConfig::default()).unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let mut system = vcpu.system_registers().unwrap();
    (system.cs.base, system.cs.selector) = (0, 0);
    vcpu.set_system_registers(&system).unwrap();
    vm.set_exit_reasons(ExitReasons::ALL).unwrap();
    (vm, vcpu)
}

fn start(vcpu: &mut SoftVcpu, index: MsrIndex, value: u64) {
    let registers = Registers {
        rip: CODE,
        rflags: 2,
        rsp: 0x8000,
        rcx: u64::from(index.0) | 0xdead_beef << 32,
        rax: value & 0xffff_ffff | 0xaaaa << 32,
        rdx: value >> 32 | 0xdddd << 32,
        ..Registers::default()
    };
    vcpu.set_registers(&registers).unwrap();
}

fn deny(access: RangeFlags, index: MsrIndex) -> MsrFilter {
    let range = FilterRange::uniform(access, index, 1, Verdict::Deny);
    MsrFilter::new(DefaultAction::Allow, vec![range]).unwrap()
}

#[test]
fn unknown_rdmsr_is_deflected_and_completed() {
    let (_vm, mut vcpu) = machine(&[RDMSR[0], RDMSR[1], HLT]);
    start(&mut vcpu, UNKNOWN, 0x1122_3344_5566_7788);
    let before = vcpu.registers().unwrap();
    let exit = vcpu.run(VmEntry::Run).unwrap();
    let reason = ExitReason::UNKNOWN;
    assert_eq!(
        exit,
        VmExit::Rdmsr {
            index: UNKNOWN,
            reason
        }
    );
    assert_eq!(
        vcpu.registers().unwrap(),
        before,
        "as before the instruction"
    );
    let value = 0xfedc_ba98_7654_3210;
    let exit = vcpu.run(VmEntry::CompleteRdmsr(Ok(value))).unwrap();
    assert_eq!(exit, VmExit::Hlt);
    let after = vcpu.registers().unwrap();
    assert_eq!((after.rax, after.rdx), (0x7654_3210, 0xfedc_ba98));
    assert_eq!(after.rip, CODE + 3);
}

#[test]
fn wrmsr_exit_has_low_halves_of_the_registers() {
    let (_vm, mut vcpu) = machine(&[WRMSR[0], WRMSR[1], HLT]);
    start(&mut vcpu, UNKNOWN, 0x1122_3344_5566_7788);
    let exit = vcpu.run(VmEntry::Run).unwrap();
    assert_eq!(
        exit,
        VmExit::Wrmsr {
            index: UNKNOWN,
            value: 0x1122_3344_5566_7788,
            reason: ExitReason::UNKNOWN
        }
    );
    assert_eq!(
        vcpu.run(VmEntry::CompleteWrmsr(Ok(()))).unwrap(),
        VmExit::Hlt
    );
}

#[test]
fn entry_that_does_not_fit_leaves_the_exit_pending() {
    let (_vm, mut vcpu) = machine(&[RDMSR[0], RDMSR[1], HLT]);
    start(&mut vcpu, UNKNOWN, 0);
    let exit = vcpu.run(VmEntry::Run).unwrap();
    let entry = VmEntry::CompleteWrmsr(Ok(()));
    let mismatch = RunError::Mismatch {
        pending: Some(exit),
        entry,
    };
    assert_eq!(vcpu.run(entry), Err(mismatch));
    assert_eq!(vcpu.complete(entry), Err(mismatch));
    assert_eq!(
        vcpu.run(VmEntry::CompleteRdmsr(Ok(1))).unwrap(),
        VmExit::Hlt
    );
}

#[test]
fn answer_of_gp_is_queued_and_raised_at_the_instruction() {
    let (_vm, mut vcpu) = machine(&[RDMSR[0], RDMSR[1], HLT]);
    start(&mut vcpu, UNKNOWN, 7);
    let before = vcpu.registers().unwrap();
    vcpu.run(VmEntry::Run).unwrap();
    vcpu.complete(VmEntry::CompleteRdmsr(Err(Gp))).unwrap();
    assert_eq!(vcpu.registers().unwrap(), before, "only queued");
    // KVM_SET_REGS drops it: the instruction runs again.
    vcpu.set_registers(&before).unwrap();
    assert!(vcpu.run(VmEntry::Run).unwrap().msr_access().is_some());
    vcpu.complete(VmEntry::CompleteRdmsr(Err(Gp))).unwrap();
    vcpu.kicker().kick();
    assert_eq!(vcpu.run(VmEntry::Run).unwrap(), VmExit::Interrupted);
    assert_eq!(vcpu.registers().unwrap(), before, "not delivered yet");
}

#[test]
fn complete_retires_without_running_on() {
    let (_vm, mut vcpu) = machine(&[RDMSR[0], RDMSR[1], HLT]);
    start(&mut vcpu, UNKNOWN, 0);
    vcpu.run(VmEntry::Run).unwrap();
    vcpu.complete(VmEntry::CompleteRdmsr(Ok(5))).unwrap();
    let registers = vcpu.registers().unwrap();
    assert_eq!((registers.rip, registers.rax), (CODE + 2, 5));
    assert_eq!(vcpu.run(VmEntry::Run).unwrap(), VmExit::Hlt);
}

#[test]
fn filter_outranks_unknown_and_invalid() {
    let smbase = MsrIndex(0x9e);
    for (index, without) in [(UNKNOWN, ExitReason::UNKNOWN), (smbase, ExitReason::INVAL)] {
        let (vm, mut vcpu) = machine(&[RDMSR[0], RDMSR[1], HLT]);
        start(&mut vcpu, index, 0);
        let exit = vcpu.run(VmEntry::Run).unwrap();
        assert_eq!(exit.msr_access(), Some((index, Access::Read, without)));
        // The answer is final: a filter set meanwhile does not matter.
        vm.set_msr_filter(&deny(RangeFlags::READ, index)).unwrap();
        vcpu.run(VmEntry::CompleteRdmsr(Ok(0))).unwrap();
        start(&mut vcpu, index, 0);
        let exit = vcpu.run(VmEntry::Run).unwrap();
        let filter = (index, Access::Read, ExitReason::FILTER);
        assert_eq!(exit.msr_access(), Some(filter));
    }
}

#[test]
fn denied_write_has_no_side_effect() {
    let lstar = MsrIndex(0xc000_0082);
    let (vm, mut vcpu) = machine(&[WRMSR[0], WRMSR[1], HLT]);
    start(&mut vcpu, lstar, 0x1234);
    assert_eq!(vcpu.run(VmEntry::Run).unwrap(), VmExit::Hlt);
    assert_eq!(vcpu.get_msr(lstar).unwrap(), Some(0x1234));
    vm.set_msr_filter(&deny(RangeFlags::WRITE, lstar)).unwrap();
    start(&mut vcpu, lstar, 0x5678);
    let exit = vcpu.run(VmEntry::Run).unwrap();
    assert_eq!(
        exit.msr_access(),
        Some((lstar, Access::Write, ExitReason::FILTER))
    );
    vcpu.run(VmEntry::CompleteWrmsr(Ok(()))).unwrap();
    assert_eq!(vcpu.get_msr(lstar).unwrap(), Some(0x1234));
    assert!(
        vcpu.set_msr(lstar, 0x9abc).unwrap(),
        "hosts are not filtered"
    );
}

#[test]
fn exit_happens_exactly_when_the_mask_has_the_reason() {
    let causes = [
        (UNKNOWN, ExitReason::UNKNOWN),
        (MsrIndex(0x9e), ExitReason::INVAL),
        (MsrIndex(0x1fc), ExitReason::FILTER),
    ];
    for mask in 0..8 {
        let reasons = ExitReasons::from_mask(mask).unwrap();
        for (index, reason) in causes {
            let (vm, mut vcpu) = machine(&[RDMSR[0], RDMSR[1], HLT]);
            vm.set_msr_filter(&deny(RangeFlags::READ, MsrIndex(0x1fc)))
                .unwrap();
            vm.set_exit_reasons(reasons).unwrap();
            start(&mut vcpu, index, 0);
            let exit = vcpu.run(VmEntry::Run).unwrap();
            if reasons.contains(reason) {
                assert_eq!(exit, VmExit::Rdmsr { index, reason }, "mask {mask}");
            } else {
                let last = vcpu.last_exception().map(|it| it.vector);
                assert_eq!(last, Some(13), "mask {mask}, {reason}");
            }
        }
    }
}

#[test]
fn trap_flag_raises_db_behind_the_completed_instruction() {
    const TF: u64 = 1 << 8;
    const STACK: u64 = 0x8000;
    let (_vm, mut vcpu) = machine(&[RDMSR[0], RDMSR[1], 0x90, HLT]);
    start(&mut vcpu, UNKNOWN, 0);
    let mut registers = vcpu.registers().unwrap();
    registers.rflags |= TF;
    vcpu.set_registers(&registers).unwrap();
    assert!(vcpu.run(VmEntry::Run).unwrap().msr_access().is_some());
    assert_eq!(
        vcpu.run(VmEntry::CompleteRdmsr(Ok(3))).unwrap(),
        VmExit::Hlt
    );
    let registers = vcpu.registers().unwrap();
    assert_eq!(registers.rip, HANDLER + 1, "the handler has run");
    assert_eq!(
        (registers.rax, registers.rsp),
        (3, STACK - 6),
        "one interrupt frame"
    );
    assert_eq!(vcpu.last_exception().map(|it| it.vector), Some(1));
}

#[test]
fn hypercall_is_not_there() {
    let (_vm, mut vcpu) = machine(&[0x0f, 0x01, 0xd9, HLT]); // vmmcall
    start(&mut vcpu, UNKNOWN, 0);
    assert_eq!(vcpu.run(VmEntry::Run).unwrap(), VmExit::Hlt);
    assert_eq!(
        vcpu.registers().unwrap().rax,
        0xffff_fc18,
        "-1000, 32 bits wide"
    );
}

#[test]
fn vcpus_run_in_turn_so_that_an_increment_is_never_lost() {
    const COUNTER: u64 = 0x4000;
    const ROUNDS: u16 = 60_000;
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
    // again: inc dword [0x4000]; dec cx; jnz again; hlt
    let code = [0x66, 0xff, 0x06, 0x00, 0x40, 0x49, 0x75, 0xf8, HLT];
    memory.write_slice(&code, GuestAddress(CODE)).unwrap();
    let vm = SoftVm::new(&memory, SystemConfig::default()).unwrap();
    std::thread::scope(|scope| {
        for id in 0..3 {
            let mut vcpu = vm.create_vcpu(id).unwrap();
            let mut system = vcpu.system_registers().unwrap();
            (system.cs.base, system.cs.selector) = (0, 0);
            vcpu.set_system_registers(&system).unwrap();
            start(&mut vcpu, MsrIndex(ROUNDS.into()), 0);
            scope.spawn(move || assert_eq!(vcpu.run(VmEntry::Run), Ok(VmExit::Hlt)));
        }
    });
    let counted: u32 = memory.read_obj(GuestAddress(COUNTER)).unwrap();
    assert_eq!(counted, 3 * u32::from(ROUNDS));
}

#[test]
fn vcpu_number_is_free_again_when_the_vcpu_is_gone() {
    let (vm, vcpu) = machine(&[HLT]);
    assert!(vm.create_vcpu(0).is_err());
    drop(vcpu);
    assert!(vm.create_vcpu(0).is_ok());
}
