//! What each action answers, and what a gate keeps, records and limits.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use msrgate_core::{
    Access, Action, Defaults, Event, ExitReason, Gate, Gates, Gp, HandlerId, HostMsrs, Image, Mask,
    MsrIndex, NativeAccess, OnViolation, Outcome, Recorder, Rule, Scope, Shadow, VcpuId, VmEntry,
    VmError, VmExit, Writable,
};

const INDEX: MsrIndex = MsrIndex(0x1a0);

const MASK: Action = Action::Mask(Mask {
    replaced: 0xf0,
    ones: 0x10,
});

const WRITABLE: Action = Action::Writable(LOW_BYTE);

const LOW_BYTE: Writable = Writable {
    bits: 0xff,
    on_violation: OnViolation::Fault,
};

/// No gate here has handlers.
const NO_HANDLER: Action = Action::Handler(HandlerId(0));

/// A KVM that has one value for all MSRs, or refuses everything, or else all values above 0xffff.
struct Host(Option<u64>);

impl HostMsrs for Host {
    fn get_msr(&self, _index: MsrIndex) -> Result<Option<u64>, VmError> {
        Ok(self.0)
    }

    fn set_msr(&mut self, _index: MsrIndex, value: u64) -> Result<bool, VmError> {
        Ok(value <= 0xffff && self.0.replace(value).is_some())
    }

    fn rip(&self) -> Option<u64> {
        Some(0xfff0)
    }
}

const fn shadow(scope: Scope, reset: u64) -> Action {
    Action::Shadow(Shadow {
        scope,
        reset,
        writable: LOW_BYTE,
    })
}

/// One rule for both directions of an MSR.
fn image(action: Action) -> Arc<Image> {
    image_of(Rule::logged(action), Rule::ALLOW)
}

fn image_of(rule: Rule, invalid: Rule) -> Arc<Image> {
    let mut image = Image::new(Defaults {
        invalid,
        ..Defaults::ALLOW
    });
    for access in Access::ALL {
        let set = image.set(INDEX, INDEX, access, rule);
        set.expect("one MSR fits");
    }
    Arc::new(image)
}

fn gate(action: Action, invalid: Action) -> Gate<Vec<Event>> {
    let image = image_of(Rule::logged(action), Rule::quiet(invalid));
    Gate::new(VcpuId(3), image, Vec::new())
}

/// What RDMSR gets; `None`: #GP.
fn read<R: Recorder>(gate: &mut Gate<R>) -> Option<u64> {
    match gate.service(&rdmsr(ExitReason::FILTER), &mut Host(None)) {
        Some(VmEntry::CompleteRdmsr(answer)) => answer.ok(),
        other => panic!("{other:?} answers no RDMSR"),
    }
}

/// Whether WRMSR succeeds.
fn write<R: Recorder>(gate: &mut Gate<R>, value: u64) -> bool {
    gate.service(&wrmsr(value), &mut Host(None)) == Some(VmEntry::CompleteWrmsr(Ok(())))
}

fn rdmsr(reason: ExitReason) -> VmExit {
    VmExit::Rdmsr {
        index: INDEX,
        reason,
    }
}

fn wrmsr(value: u64) -> VmExit {
    VmExit::Wrmsr {
        index: INDEX,
        value,
        reason: ExitReason::FILTER,
    }
}

#[test]
fn each_action_answers_reads_and_writes() {
    use VmEntry::{CompleteRdmsr, CompleteWrmsr};
    let cases = [
        (
            Action::Fault,
            CompleteRdmsr(Err(Gp)),
            CompleteWrmsr(Err(Gp)),
        ),
        (Action::Ignore, CompleteRdmsr(Ok(0)), CompleteWrmsr(Ok(()))),
        (
            Action::Value(9),
            CompleteRdmsr(Ok(9)),
            CompleteWrmsr(Ok(())),
        ),
        (Action::Allow, CompleteRdmsr(Ok(5)), CompleteWrmsr(Ok(()))),
        (MASK, CompleteRdmsr(Ok(0x15)), CompleteWrmsr(Ok(()))),
        (WRITABLE, CompleteRdmsr(Ok(5)), CompleteWrmsr(Ok(()))),
        (NO_HANDLER, CompleteRdmsr(Err(Gp)), CompleteWrmsr(Err(Gp))),
    ];
    for (action, read, write) in cases {
        let mut gate = gate(action, Action::Fault);
        let mut host = Host(Some(5));
        let filter = rdmsr(ExitReason::FILTER);
        assert_eq!(gate.service(&filter, &mut host), Some(read), "{action:?}");
        assert_eq!(gate.service(&wrmsr(6), &mut host), Some(write));
        let is_kvms = matches!(action, Action::Allow | MASK | WRITABLE);
        assert_eq!(host.0, Some(if is_kvms { 6 } else { 5 }), "{action:?}");
    }
}

#[test]
fn event_tells_who_what_and_what_became_of_it() {
    let mut gate = gate(Action::Ignore, Action::Fault);
    let _ = gate.service(&wrmsr(6), &mut Host(None));
    let expected = Event {
        vcpu: VcpuId(3),
        index: INDEX,
        access: Access::Write,
        reason: ExitReason::FILTER,
        rip: None,
        value: 6,
        outcome: Outcome::Ignored,
        log: true,
    };
    assert_eq!(gate.into_recorder(), [expected]);
}

#[test]
fn forwarded_access_that_the_host_refuses_is_invalid() {
    let mut gate = gate(Action::Allow, Action::Value(1));
    let answer = gate.service(&rdmsr(ExitReason::FILTER), &mut Host(None));
    assert_eq!(answer, Some(VmEntry::CompleteRdmsr(Ok(1))));
}

#[test]
fn merged_value_that_the_host_refuses_is_invalid() {
    let mut gate = gate(WRITABLE, Action::Ignore);
    let mut host = Host(Some(0x1_0000));
    let answer = |entry| entry == Some(VmEntry::CompleteWrmsr(Ok(())));
    assert!(answer(gate.service(&wrmsr(0x1_0001), &mut host)));
    assert!(
        !answer(gate.service(&wrmsr(1), &mut host)),
        "KVM is not asked"
    );
    assert_eq!(host.0, Some(0x1_0000), "nothing is written");
    let outcomes = gate.into_recorder().into_iter().map(|event| event.outcome);
    assert_eq!(
        outcomes.collect::<Vec<_>>(),
        [Outcome::Ignored, Outcome::Fault]
    );
}

#[test]
fn access_that_kvm_refused_is_not_asked_again() {
    let mut gate = gate(Action::Allow, Action::Allow);
    let answer = gate.service(&rdmsr(ExitReason::INVAL), &mut Host(Some(1)));
    assert_eq!(answer, Some(VmEntry::CompleteRdmsr(Err(Gp))));
}

#[test]
fn native_access_is_recorded_and_needs_no_answer() {
    let mut gate = gate(Action::Fault, Action::Fault);
    for answer in [Ok(()), Err(Gp)] {
        let native = VmExit::Native(NativeAccess {
            index: INDEX,
            access: Access::Write,
            value: 7,
            answer,
            rip: 0x1000,
        });
        assert_eq!(gate.service(&native, &mut Host(None)), Some(VmEntry::Run));
    }
    let expected = Event {
        vcpu: VcpuId(3),
        index: INDEX,
        access: Access::Write,
        reason: ExitReason::NONE,
        rip: Some(0x1000),
        value: 7,
        outcome: Outcome::Native,
        log: false,
    };
    let faulted = Event {
        outcome: Outcome::Fault,
        ..expected
    };
    assert_eq!(gate.into_recorder(), [expected, faulted]);
}

#[test]
fn other_exits_are_left_alone() {
    let mut gate = gate(Action::Fault, Action::Fault);
    assert_eq!(gate.service(&VmExit::Hlt, &mut Host(None)), None);
    assert!(gate.recorder().is_empty());
}

#[test]
fn write_that_kvm_or_the_policy_refuses_is_a_fault() {
    let answer = |action, value| {
        let mut gate = gate(action, Action::Fault);
        let mut host = Host(Some(0x1_0000));
        let entry = gate.service(&wrmsr(value), &mut host).unwrap();
        assert_eq!(host.0, Some(0x1_0000), "nothing is written");
        assert_eq!(entry, VmEntry::CompleteWrmsr(Err(Gp)));
        gate.recorder()[0].outcome
    };
    assert_eq!(answer(WRITABLE, 0x1_0001), Outcome::Fault, "KVM refuses it");
    assert_eq!(
        answer(WRITABLE, 1),
        Outcome::Fault,
        "bit 16 is not writable"
    );
    assert_eq!(answer(shadow(Scope::Vcpu, 0), 0x100), Outcome::Fault);
    assert_eq!(answer(shadow(Scope::Vm, 0), 0x100), Outcome::Fault);
}

#[test]
fn register_is_a_vcpus_own_or_the_vms() {
    for (scope, seen_by_other) in [(Scope::Vcpu, 0x200), (Scope::Vm, 0x2ff)] {
        let gates = Gates::new(image(shadow(scope, 0x200)));
        let [mut one, mut other] = [0, 1].map(|id| gates.gate(VcpuId(id), ()));
        assert!(write(&mut one, 0x2ff));
        assert_eq!(read(&mut one), Some(0x2ff));
        assert_eq!(read(&mut other), Some(seen_by_other), "{scope:?}");
    }
}

#[test]
fn replaced_image_keeps_a_register_of_the_same_scope() {
    for scope in [Scope::Vcpu, Scope::Vm] {
        let mut gate = Gate::new(VcpuId(0), image(shadow(scope, 0x200)), ());
        assert!(write(&mut gate, 0x2ff));
        gate.set_image(image(shadow(scope, 0x300)));
        assert_eq!(read(&mut gate), Some(0x2ff), "{scope:?}");
        gate.set_image(image(Action::Fault));
        assert_eq!(read(&mut gate), None);
        gate.set_image(image(shadow(scope, 0x300)));
        assert_eq!(read(&mut gate), Some(0x300), "it begins anew");
        let other = if scope == Scope::Vm {
            Scope::Vcpu
        } else {
            Scope::Vm
        };
        assert!(write(&mut gate, 0x301));
        gate.set_image(image(shadow(other, 0x400)));
        assert_eq!(read(&mut gate), Some(0x400), "another register");
    }
}

/// Each of eight threads owns a bit of one register and must find it as it left it, while images come and go.
#[test]
fn vcpus_lose_no_bit_of_a_shared_register_while_images_are_replaced() {
    const ROUNDS: usize = 20_000;
    let bit_image = |bit: u32| {
        let writable = Writable {
            bits: 1 << bit,
            on_violation: OnViolation::Ignore,
        };
        image(Action::Shadow(Shadow {
            scope: Scope::Vm,
            reset: 0,
            writable,
        }))
    };
    let first = Gates::new(bit_image(0));
    thread::scope(|scope| {
        for bit in 0..8 {
            // The register is one, whichever of these images a vCPU is at.
            let next = first.replaced(bit_image(bit));
            let mut gate = next.gate(VcpuId(bit), ());
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let value = if round % 2 == 0 { u64::MAX } else { 0 };
                    assert!(write(&mut gate, value));
                    assert_eq!(read(&mut gate).unwrap() >> bit & 1, value & 1);
                    if round % 64 == 0 {
                        gate.switch(&next.replaced(bit_image(bit)));
                    }
                }
            });
        }
    });
    assert_eq!(read(&mut first.gate(VcpuId(9), ())), Some(0));
}

#[test]
fn vcpu_waits_once_its_rule_is_over_its_limit() {
    let limited = Rule {
        limit_per_second: NonZeroU32::new(20),
        ..Rule::quiet(Action::Ignore)
    };
    let mut gate = Gate::new(VcpuId(0), image_of(limited, Rule::ALLOW), ());
    let mut waits = Vec::new();
    for _ in 0..4 {
        assert_eq!(read(&mut gate), Some(0), "the answer is the same");
        waits.push(gate.throttle(|| 1_000_000_000));
        assert_eq!(gate.throttle(|| 0), None, "an access is counted once");
    }
    let wait = |ms| Some(Duration::from_millis(ms));
    assert_eq!(waits, [None, None, wait(50), wait(100)]);
    assert_eq!(gate.throttled(), 2);
    let _ = gate.service(&rdmsr(ExitReason::INVAL), &mut Host(None));
    assert!(gate.service(&VmExit::Hlt, &mut Host(None)).is_none());
    assert_eq!(gate.throttle(|| panic!("no access was served")), None);
    gate.set_image(image(Action::Ignore));
    assert_eq!(read(&mut gate), Some(0));
    assert_eq!(gate.throttle(|| panic!("this rule has no limit")), None);
    assert_eq!(gate.throttled(), 2);
}

/// Wants to know where the instruction was.
#[derive(Default)]
struct Rips(Vec<Option<u64>>);

impl Recorder for Rips {
    const WANTS_RIP: bool = true;

    fn record(&mut self, event: &Event) {
        self.0.push(event.rip);
    }
}

#[test]
fn both_of_a_pair_get_the_event_and_what_one_of_them_wants() {
    let pair = (Vec::new(), (Some(Rips::default()), None::<Vec<Event>>));
    let mut gate = Gate::new(VcpuId(0), image(Action::Ignore), pair);
    assert!(write(&mut gate, 1));
    let (events, (rips, _)) = gate.into_recorder();
    assert_eq!(events[0].rip, Some(0xfff0));
    assert_eq!(rips.unwrap().0, [Some(0xfff0)]);
}
