//! A backend that fails in the middle: what was in force stays in force, and an exit stays pending.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use msrgate_core::{
    Access, DefaultAction, Errno, ExitReason, ExitReasons, FilterRange, MsrFilter, MsrIndex,
    RangeFlags, RunError, Vcpu, Verdict, Vm, VmEntry, VmError, VmExit,
};
use msrgate_soft::{SoftVm, SystemConfig};
use msrgate_tests::faulty::{Call, Fault, Faulty};
use msrgate_tests::guest::{Request, Routine};
use msrgate_tests::machine::{Machine, guest_memory};

const INDEX: MsrIndex = MsrIndex(0xc000_0102);

fn machine(fault: &Fault) -> Machine<Faulty<SoftVm>> {
    let memory = guest_memory();
    let vm = SoftVm::new(&memory, SystemConfig::default()).unwrap();
    let machine = Machine::new(Faulty::new(vm, fault), memory).unwrap();
    machine.vm.set_exit_reasons(ExitReasons::ALL).unwrap();
    machine.set_list(&[Request {
        routine: Routine::Rdmsr,
        rcx: INDEX.0.into(),
        rax: 0,
        rdx: 0,
    }]);
    machine
}

fn denying() -> MsrFilter {
    let range = FilterRange::uniform(RangeFlags::READ, INDEX, 1, Verdict::Deny);
    MsrFilter::new(DefaultAction::Allow, vec![range]).unwrap()
}

#[test]
fn filter_that_is_refused_leaves_the_old_one_in_force() {
    let fault = Fault::new(Call::SetMsrFilter, 1, Errno::ENOMEM);
    let mut machine = machine(&fault);
    machine.vm.set_msr_filter(&denying()).unwrap();
    assert!(!fault.is_consumed());
    let refused = VmError::Refused {
        call: "KVM_X86_SET_MSR_FILTER",
        errno: Errno::ENOMEM,
    };
    assert_eq!(
        machine.vm.set_msr_filter(&MsrFilter::allow_all()),
        Err(refused)
    );
    assert!(fault.is_consumed());
    let exit = machine.vcpu.run(VmEntry::Run).unwrap();
    assert_eq!(
        exit.msr_access(),
        Some((INDEX, Access::Read, ExitReason::FILTER))
    );
}

#[test]
fn run_that_fails_leaves_the_exit_pending() {
    let fault = Fault::new(Call::Run, 1, Errno::EFAULT);
    let mut machine = machine(&fault);
    machine.vm.set_msr_filter(&denying()).unwrap();
    assert!(matches!(
        machine.vcpu.run(VmEntry::Run),
        Ok(VmExit::Rdmsr { .. })
    ));
    let answer = VmEntry::CompleteRdmsr(Ok(7));
    let refused = RunError::Refused {
        errno: Errno::EFAULT,
    };
    assert_eq!(machine.vcpu.run(answer), Err(refused));
    assert!(fault.is_consumed());
    assert!(machine.vcpu.run(answer).is_ok());
    assert_eq!(machine.answer(0).map(|answer| answer.rax), Some(7));
}

#[test]
fn each_call_can_fail_and_names_itself() {
    let errno = Errno::EIO;
    let memory = guest_memory();
    let faulty = |call| {
        let fault = Fault::new(call, 0, errno);
        let vm = SoftVm::new(&memory, SystemConfig::default()).unwrap();
        (Faulty::new(vm, &fault), fault)
    };
    let refused = |call| VmError::Refused { call, errno };

    let (vm, fault) = faulty(Call::CreateVcpu);
    assert_eq!(vm.create_vcpu(0).err(), Some(refused("KVM_CREATE_VCPU")));
    assert!(fault.is_consumed());

    let (vm, fault) = faulty(Call::SetExitReasons);
    assert_eq!(
        vm.set_exit_reasons(ExitReasons::ALL),
        Err(refused("KVM_ENABLE_CAP"))
    );
    assert!(fault.is_consumed());

    let (vm, fault) = faulty(Call::Complete);
    let mut vcpu = vm.create_vcpu(0).unwrap();
    assert_eq!(
        vcpu.complete(VmEntry::Run),
        Err(RunError::Refused { errno })
    );
    assert!(fault.is_consumed());

    let (vm, fault) = faulty(Call::GetMsr);
    let vcpu = vm.create_vcpu(0).unwrap();
    assert_eq!(vcpu.get_msr(INDEX), Err(refused("KVM_GET_MSRS")));
    assert_eq!(vcpu.get_msr(INDEX), Ok(Some(0)));
    assert!(fault.is_consumed());

    let (vm, fault) = faulty(Call::SetMsr);
    let mut vcpu = vm.create_vcpu(0).unwrap();
    assert_eq!(vcpu.set_msr(INDEX, 1), Err(refused("KVM_SET_MSRS")));
    assert_eq!(vcpu.set_msr(INDEX, 1), Ok(true));
    assert!(fault.is_consumed());
}
