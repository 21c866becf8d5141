//! The board and its loop, with guests of a few instructions on the embedded KVM.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use msrgate_core::{Access, Action, Event, Image, MsrIndex, Outcome, Rule};
use msrgate_machine::{End, Guest, Machine, Rules, StopCause, guest_memory};
use msrgate_soft::{SoftVm, SystemConfig};

type TestMachine = Machine<SoftVm, Vec<Event>, Vec<u8>>;

/// A 64-bit guest at 1 MiB.
fn machine(code: &[u8], policies: &[&str]) -> TestMachine {
    machine_with(code, policies.iter().map(|source| rules(source)).collect())
}

fn machine_with(code: &[u8], policies: Vec<Rules>) -> TestMachine {
    let memory = guest_memory(4 << 20).expect("4 MiB");
    let guest = Guest::parse(&elf(code)).expect("an ELF64");
    let guest = guest.load(&memory).expect("room for it");
    let vm = SoftVm::new(&memory, SystemConfig::default()).expect("a VM");
    Machine::new(vm, &guest, policies, vec![Vec::new()], Vec::new()).expect("a machine")
}

/// What its only vCPU did.
fn events(machine: TestMachine) -> Vec<Event> {
    machine.into_recorders().concat()
}

fn rules(source: &str) -> Rules {
    let compiled = msrgate_policy::compile(source).expect("no mistakes");
    Rules {
        image: Arc::new(compiled.image),
        filter: compiled.filter,
        reasons: compiled.reasons,
    }
}

/// A policy by which the MSR 0x8b reads as 1, so often per second.
fn limited(per_second: u32) -> Vec<Rules> {
    let mut rules = rules("version = 1\n[[rule]]\nmsr = 0x8b\nread = { value = 1 }");
    let rule = Rule {
        limit_per_second: NonZeroU32::new(per_second),
        ..Rule::quiet(Action::Value(1))
    };
    let mut image = Image::clone(&rules.image);
    let set = image.set(MsrIndex(0x8b), MsrIndex(0x8b), Access::Read, rule);
    set.expect("one rule fits");
    rules.image = Arc::new(image);
    vec![rules]
}

fn elf(code: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    bytes.extend([2, 0, 0x3e, 0, 1, 0, 0, 0]);
    for word in [0x10_0000u64, 64, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend([1, 0, 0, 0, 7, 0, 0, 0]);
    let length = code.len() as u64;
    for word in [120, 0x10_0000, 0x10_0000, length, length, 0x1000] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(code);
    bytes
}

#[test]
fn exit_port_ends_the_guest_with_its_code() {
    // mov al, 7; out 0xf4, al
    let mut machine = machine(b"\xb0\x07\xe6\xf4", &[]);
    assert_eq!(machine.run().unwrap(), End::Exit { code: 7 });
    assert_eq!(machine.exits(), 1);
}

#[test]
fn where_there_is_no_device_all_bits_are_set() {
    // in al, 0x80; out 0xf4, al
    let mut port = machine(b"\xe4\x80\xe6\xf4", &[]);
    assert_eq!(port.run().unwrap(), End::Exit { code: 0xff });
    // mov eax, 0xe0000000; mov [rax], eax; mov al, [rax]; out 0xf4, al
    let mut memory = machine(b"\xb8\0\0\0\xe0\x89\x00\x8a\x00\xe6\xf4", &[]);
    assert_eq!(memory.run().unwrap(), End::Exit { code: 0xff });
}

#[test]
fn halt_tells_whether_interrupts_were_on() {
    let mut off = machine(b"\xf4", &[]);
    assert_eq!(off.run().unwrap(), End::Halted { waits: false });
    // sti; hlt
    let mut on = machine(b"\xfb\xf4", &[]);
    assert_eq!(on.run().unwrap(), End::Halted { waits: true });
}

#[test]
fn guest_without_a_policy_has_kvms_own_behaviour() {
    // mov ecx, 0x474f4f00; rdmsr: #GP, without an IDT
    let mut machine = machine(b"\xb9\0\x4f\x4f\x47\x0f\x32", &[]);
    let end = machine.run().unwrap();
    let End::TripleFault { rip, exception } = end else {
        panic!("{end:?}");
    };
    assert_eq!(rip, 0x10_0005);
    assert_eq!(exception.expect("soft knows").mnemonic(), Some("#GP"));
    assert!(events(machine).is_empty());
}

#[test]
fn guest_gets_the_policy_that_it_asks_for() {
    let policies = [
        "version = 1\n[[rule]]\nmsr = 0x8b\nread = { value = 1 }",
        "version = 1\n[defaults]\nunknown = 'ignore'\n[[rule]]\nmsr = 0x8b\nread = { value = 2 }",
    ];
    // mov ecx, 0x8b; rdmsr; mov dx, 0x4d53; mov al, 1; out dx, al; rdmsr; then asks for policy 9,
    // which is not there; mov ecx, 0x474f4f00; rdmsr; hlt
    let code = b"\xb9\x8b\0\0\0\x0f\x32\x66\xba\x53\x4d\xb0\x01\xee\x0f\x32\
        \x66\xba\x53\x4d\xb0\x09\xee\xb9\0\x4f\x4f\x47\x0f\x32\xf4";
    let mut machine = machine(code, &policies);
    assert_eq!(machine.run().unwrap(), End::Halted { waits: false });
    let events = events(machine);
    let seen: Vec<_> = events
        .iter()
        .map(|event| (event.index.0, event.value, event.outcome))
        .collect();
    assert_eq!(
        seen,
        [
            (0x8b, 1, Outcome::Value),
            (0x8b, 2, Outcome::Value),
            (0x474f_4f00, 0, Outcome::Ignored),
        ]
    );
}

#[test]
fn stop_ends_the_next_run_and_its_first_cause_counts() {
    // jmp to itself
    let mut machine = machine(b"\xeb\xfe", &[]);
    let stopper = machine.stopper();
    stopper.stop(StopCause::TimeLimit);
    stopper.stop(StopCause::Interrupt);
    let end = machine.run().unwrap();
    assert_eq!(
        end,
        End::Stopped {
            cause: StopCause::TimeLimit
        }
    );
}

#[test]
fn vcpu_over_the_limit_of_a_rule_is_slowed_and_answered_the_same() {
    // mov ecx, 0x8b; rdmsr; rdmsr; rdmsr; out 0xf4, al
    let code = b"\xb9\x8b\0\0\0\x0f\x32\x0f\x32\x0f\x32\xe6\xf4";
    let mut machine = machine_with(code, limited(10));
    let started = Instant::now();
    assert_eq!(machine.run().unwrap(), End::Exit { code: 1 });
    // The first is free; it waits for the others, unless it is as slow by itself.
    assert!(started.elapsed() >= Duration::from_millis(200));
    let values: Vec<_> = events(machine).iter().map(|it| it.value).collect();
    assert_eq!(values, [1, 1, 1]);
}

#[test]
fn stop_ends_a_guest_that_waits_because_of_a_limit() {
    // mov ecx, 0x8b; again: rdmsr; jmp again
    let code = b"\xb9\x8b\0\0\0\x0f\x32\xeb\xfc";
    let mut machine = machine_with(code, limited(1));
    let stopper = machine.stopper();
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        stopper.stop(StopCause::TimeLimit);
    });
    let end = machine.run().unwrap();
    let cause = StopCause::TimeLimit;
    assert_eq!(end, End::Stopped { cause });
}

#[test]
fn reloader_puts_other_rules_into_force_and_tells() {
    // again: mov ecx, 0x8b; rdmsr; cmp al, 2; jne again; out 0xf4, al
    let guest = b"\xb9\x8b\0\0\0\x0f\x32\x3c\x02\x75\xf5\xe6\xf4";
    let value = |value| format!("version = 1\n[[rule]]\nmsr = 0x8b\nread = {{ value = {value} }}");
    let mut machine = machine(guest, &[&value(1)]);
    let reloader = machine.reloader();
    let end = thread::scope(|scope| {
        let other = scope.spawn(|| [3, 2].map(|it| reloader.replace(rules(&value(it)))));
        let end = machine.run().expect("it runs");
        assert_eq!(other.join().expect("no panic"), [Some(Ok(())); 2]);
        end
    });
    assert_eq!(end, End::Exit { code: 2 });
    drop(machine);
    let late = reloader.replace(rules(&value(4)));
    assert_eq!(late, None, "nobody is there to do it");
}
