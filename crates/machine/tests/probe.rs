//! The probe on each backend: what KVM makes of an access, and what its guest meets.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use msrgate_core::{
    DescriptorTable, ExitReason, ExitReasons, Gate, Kick, MsrFilter, MsrIndex, Vcpu, VcpuId, Vm,
    VmExit,
};
use msrgate_kvm::{Irqchip, Kvm, KvmVm};
use msrgate_machine::{GuestSaw, Probe, ProbeError, Seen, guest_memory};
use msrgate_soft::{SoftVm, SystemConfig};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const EFER: MsrIndex = MsrIndex(0xc000_0080);
const KERNEL_GS_BASE: MsrIndex = MsrIndex(0xc000_0102);
const SMBASE: MsrIndex = MsrIndex(0x9e);
/// No processor has it.
const UNHEARD_OF: MsrIndex = MsrIndex(0x474f_4f00);

/// Runs `test` on soft and, where there is one, on the kernel's KVM.
macro_rules! on_each_backend {
    ($($test:ident),* $(,)?) => {
        mod soft {
            $(#[test] fn $test() { super::$test(super::soft()); })*
        }
        mod kvm {
            $(#[test] fn $test() { if let Some(probe) = super::kvm() { super::$test(probe); } })*
        }
    };
}

on_each_backend!(
    access_is_done_or_refused_with_its_reason,
    value_of_64_bits_goes_in_and_comes_out,
    refused_access_without_exits_is_the_guests_own_gp,
    gate_answers_and_the_guest_tells,
    kick_does_not_end_an_access,
    fault_without_a_handler_ends_the_probe,
    what_the_guest_reads_is_what_the_host_reads,
);

fn soft() -> Probe<SoftVm> {
    soft_on(&guest_memory(2 << 20).unwrap())
}

fn soft_on(memory: &GuestMemoryMmap) -> Probe<SoftVm> {
    let vm = SoftVm::new(memory, SystemConfig::default()).unwrap();
    Probe::new(vm, memory).unwrap()
}

fn kvm() -> Option<Probe<KvmVm>> {
    match Kvm::open() {
        Ok(kvm) => {
            let memory = guest_memory(2 << 20).unwrap();
            let vm = KvmVm::new(&kvm, memory.clone(), Irqchip::None).unwrap();
            Some(Probe::new(vm, &memory).unwrap())
        }
        Err(why) => {
            let required = std::env::var_os("MSRGATE_REQUIRE_KVM").is_some();
            assert!(!required, "MSRGATE_REQUIRE_KVM is set, but {why}");
            // Seen although the test passes; nobody to tell is no reason to fail.
            let _ = writeln!(io::stderr(), "SKIP(kvm): {why}");
            None
        }
    }
}

fn access_is_done_or_refused_with_its_reason<V: Vm>(mut probe: Probe<V>) {
    let unknown = Seen::Refused(ExitReason::UNKNOWN);
    let invalid = Seen::Refused(ExitReason::INVAL);
    // LME, LMA and NXE: the mode that the guest is in.
    assert_eq!(probe.rdmsr(EFER).unwrap(), Seen::Value(0xd00));
    assert_eq!(probe.wrmsr(EFER, 0xd00).unwrap(), Seen::Done);
    assert_eq!(probe.wrmsr(EFER, 1 << 63).unwrap(), invalid);
    assert_eq!(probe.rdmsr(SMBASE).unwrap(), invalid);
    assert_eq!(probe.rdmsr(UNHEARD_OF).unwrap(), unknown);
    assert_eq!(probe.wrmsr(UNHEARD_OF, 1).unwrap(), unknown);
}

fn value_of_64_bits_goes_in_and_comes_out<V: Vm>(mut probe: Probe<V>) {
    let value = 0xffff_8765_4321_fedc;
    assert_eq!(probe.wrmsr(KERNEL_GS_BASE, value).unwrap(), Seen::Done);
    assert_eq!(probe.rdmsr(KERNEL_GS_BASE).unwrap(), Seen::Value(value));
    assert_eq!(probe.vcpu().get_msr(KERNEL_GS_BASE).unwrap(), Some(value));
}

fn refused_access_without_exits_is_the_guests_own_gp<V: Vm>(mut probe: Probe<V>) {
    probe
        .install(&MsrFilter::allow_all(), ExitReasons::NONE)
        .unwrap();
    for _ in 0..2 {
        assert_eq!(probe.rdmsr(UNHEARD_OF).unwrap(), Seen::Gp);
        assert_eq!(probe.wrmsr(EFER, 1 << 63).unwrap(), Seen::Gp);
        assert_eq!(probe.rdmsr(EFER).unwrap(), Seen::Value(0xd00));
    }
}

fn gate_answers_and_the_guest_tells<V: Vm>(mut probe: Probe<V>) {
    let policy = "\
        version = 1\n\
        [defaults]\n\
        unknown = 'ignore'\n\
        [[rule]]\n\
        msr = 'IA32_KERNEL_GS_BASE'\n\
        read = 'fault'\n\
        write = 'ignore'\n\
        [[rule]]\n\
        msr = 'IA32_SMBASE'\n\
        read = { value = 0x8877665544332211 }\n\
        write = 'fault'\n";
    let compiled = msrgate_policy::compile(policy).unwrap();
    probe.install(&compiled.filter, compiled.reasons).unwrap();
    let mut gate = Gate::new(VcpuId(0), Arc::new(compiled.image), Vec::new());
    let gate = &mut gate;
    let smbase = GuestSaw::Value(0x8877_6655_4433_2211);
    for _ in 0..2 {
        let gs_base = probe.guest_rdmsr(KERNEL_GS_BASE, gate).unwrap();
        assert_eq!(gs_base, GuestSaw::Gp);
        let gs_base = probe.guest_wrmsr(KERNEL_GS_BASE, 1, gate).unwrap();
        assert_eq!(gs_base, GuestSaw::Done);
        assert_eq!(probe.guest_rdmsr(SMBASE, gate).unwrap(), smbase);
        assert_eq!(probe.guest_wrmsr(SMBASE, 1, gate).unwrap(), GuestSaw::Gp);
        let unheard_of = probe.guest_rdmsr(UNHEARD_OF, gate).unwrap();
        assert_eq!(unheard_of, GuestSaw::Value(0));
        let efer = probe.guest_rdmsr(EFER, gate).unwrap();
        assert_eq!(efer, GuestSaw::Value(0xd00));
    }
    assert_eq!(gate.recorder().len(), 10, "EFER is read inside KVM");
    assert_eq!(probe.vcpu().get_msr(KERNEL_GS_BASE).unwrap(), Some(0));
}

fn kick_does_not_end_an_access<V: Vm>(mut probe: Probe<V>) {
    probe.vcpu().kicker().kick();
    assert_eq!(probe.rdmsr(EFER).unwrap(), Seen::Value(0xd00));
    probe.vcpu().kicker().kick();
    let unknown = Seen::Refused(ExitReason::UNKNOWN);
    assert_eq!(probe.rdmsr(UNHEARD_OF).unwrap(), unknown);
}

fn fault_without_a_handler_ends_the_probe<V: Vm>(mut probe: Probe<V>) {
    let mut system = probe.vcpu().system_registers().unwrap();
    system.idt = DescriptorTable::default();
    probe.vcpu().set_system_registers(&system).unwrap();
    probe
        .install(&MsrFilter::allow_all(), ExitReasons::NONE)
        .unwrap();
    let error = probe.rdmsr(UNHEARD_OF).unwrap_err();
    let shutdown = VmExit::Shutdown;
    assert!(
        matches!(error, ProbeError::Ended { exit } if exit == shutdown),
        "{error}"
    );
}

/// But for values that run (the TSC), the guest's door and the host's are the same where both are open.
fn what_the_guest_reads_is_what_the_host_reads<V: Vm>(mut probe: Probe<V>) {
    let windows = [
        0..=0x1fff,
        0x4b56_4d00..=0x4b56_4d0f,
        0xc000_0000..=0xc000_1fff,
        0xc001_0000..=0xc001_1fff,
    ];
    let mut compared = 0;
    for index in windows.into_iter().flatten().map(MsrIndex) {
        let Seen::Value(value) = probe.rdmsr(index).unwrap() else {
            continue;
        };
        let is_stable = probe.rdmsr(index).unwrap() == Seen::Value(value);
        if let Some(host) = probe.vcpu().get_msr(index).unwrap()
            && is_stable
        {
            assert_eq!(host, value, "{index}");
            compared += 1;
        }
    }
    assert!(compared > 100, "{compared}");
}

#[test]
fn access_that_does_not_come_back_is_given_up() {
    /// JMP to itself.
    const LOOP: [u8; 2] = [0xeb, 0xfe];
    /// The page with the probe's code.
    const CODE: std::ops::Range<u64> = 0x1000..0x2000;
    let memory = guest_memory(2 << 20).unwrap();
    let mut probe = soft_on(&memory);
    for address in CODE.step_by(LOOP.len()) {
        memory.write_slice(&LOOP, GuestAddress(address)).unwrap();
    }
    let kicker = probe.vcpu().kicker();
    let (given_up, waits) = mpsc::channel();
    let kicks = thread::spawn(move || {
        while waits.recv_timeout(Duration::from_millis(100)) == Err(RecvTimeoutError::Timeout) {
            kicker.kick();
        }
    });
    let error = probe.rdmsr(EFER).unwrap_err();
    given_up.send(()).unwrap();
    kicks.join().unwrap();
    let interrupted = VmExit::Interrupted;
    assert!(
        matches!(error, ProbeError::Ended { exit } if exit == interrupted),
        "{error}"
    );
}
