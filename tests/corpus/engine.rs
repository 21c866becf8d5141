//! The corpus on an engine that has ioctls and runs guests.
//!
//! Besides what a case says, every access checks what is true of all: the record is fully written, the guest
//! is as before the instruction, nothing is queued, and the upper register halves are ignored or cleared.

use kvm_bindings::kvm_enable_cap;
use kvm_bindings::kvm_vcpu_events__bindgen_ty_1 as Queued;
use msrgate_core::{Access, Errno, ExitReason, MsrIndex};
use msrgate_kvm::abi;
use msrgate_tests::case::{
    Caller, Case, CompleteBy, EnableCap, Exception, Filter, GuestAccess, HostAccess, On, Request,
    Step,
};
use msrgate_tests::door::{Door, Mapping};
use msrgate_tests::guest::{self, Answer, Routine};
use msrgate_tests::host::HostFlaws;
use msrgate_tests::image::{Image, WINDOW_BYTES};
use msrgate_tests::kernel_door::with_pending_signal;
use msrgate_tests::raw::{MsrRecord, RawExit, RawMachine};

use crate::Trouble;

/// What is above the 32 bits of ECX, EAX and EDX that count.
const JUNK: u64 = 0x5a5a_5a5a_0000_0000;

/// Runs one case on a fresh VM.
pub(crate) fn run<D: Door>(case: &Case, door: &D) -> Result<(), Trouble> {
    let machine = RawMachine::new(door).map_err(|errno| failed("setting up", errno))?;
    case.steps
        .iter()
        .try_for_each(|step| run_step(&machine, step))
}

fn run_step<D: Door>(machine: &RawMachine<D>, step: &Step) -> Result<(), Trouble> {
    match step {
        Step::Mask(mask) => {
            let cap = kvm_enable_cap {
                cap: 188,
                args: [u64::from(*mask), 0, 0, 0],
                ..Default::default()
            };
            let on = &machine.vm;
            let answer = machine
                .door
                .ioctl(on, abi::KVM_ENABLE_CAP, &raw const cap as u64);
            expect("KVM_ENABLE_CAP", answer, Ok(0))
        }
        Step::EnableCap(cap) => enable_cap(machine, cap),
        Step::CheckExtension(check) => {
            let on = handle(machine, check.on);
            let answer = machine
                .door
                .ioctl(on, abi::KVM_CHECK_EXTENSION, check.cap.into());
            let expected = match check.errno {
                Some(name) => Err(name.0),
                None => Ok(check.answer.unwrap_or(0)),
            };
            expect("KVM_CHECK_EXTENSION", answer, expected)
        }
        Step::Filter(filter) => set_filter(machine, filter),
        Step::Rdmsr(access) => guest_access(machine, access, Access::Read),
        Step::Wrmsr(access) => guest_access(machine, access, Access::Write),
        Step::SideEffect(routine) => side_effect(machine, *routine),
        Step::HostGet(access) => host_access(machine, access, abi::KVM_GET_MSRS),
        Step::HostSet(access) => host_access(machine, access, abi::KVM_SET_MSRS),
    }
}

fn enable_cap<D: Door>(machine: &RawMachine<D>, cap: &EnableCap) -> Result<(), Trouble> {
    let mut bytes = [cap.junk; 104];
    bytes[..4].copy_from_slice(&cap.cap.to_le_bytes());
    bytes[4..8].copy_from_slice(&cap.flags.to_le_bytes());
    bytes[8..16].copy_from_slice(&cap.mask.0.to_le_bytes());
    let window = window()?;
    let image = Image::of_structure(&bytes, cap.pointer, window.address());
    window.write(&image.bytes);
    let on = handle(machine, cap.on);
    let answer = call(machine, on, abi::KVM_ENABLE_CAP, image.argument, cap.caller)?;
    expect(
        "KVM_ENABLE_CAP",
        answer,
        cap.errno.map_or(Ok(0), |name| Err(name.0)),
    )
}

fn set_filter<D: Door>(machine: &RawMachine<D>, filter: &Filter) -> Result<(), Trouble> {
    let window = window()?;
    let image = Image::new(filter, window.address());
    window.write(&image.bytes);
    let request = match filter.request {
        Request::Native => abi::KVM_X86_SET_MSR_FILTER,
        Request::Compat => abi::KVM_X86_SET_MSR_FILTER_COMPAT,
    };
    let on = handle(machine, filter.on);
    let answer = call(machine, on, request, image.argument, filter.caller)?;
    // The kernel took a copy: what becomes of the memory does not matter (it is gone with `window`).
    window.write(&[0xa5; WINDOW_BYTES]);
    let expected = filter.errno.map_or(Ok(0), |name| Err(name.0));
    expect("KVM_X86_SET_MSR_FILTER", answer, expected)
}

fn call<D: Door>(
    machine: &RawMachine<D>,
    on: &D::Handle,
    request: u32,
    argument: u64,
    caller: Caller,
) -> Result<Result<i32, Errno>, Trouble> {
    let door = machine.door;
    match caller {
        Caller::Owner => Ok(door.ioctl(on, request, argument)),
        Caller::Compat => {
            let argument = u32::try_from(argument).unwrap_or(u32::MAX);
            door.ioctl_compat(on, request, argument)
                .ok_or(Trouble::Unsupported("no 32-bit callers"))
        }
        Caller::Child => door
            .ioctl_in_child(on, request, argument)
            .ok_or(Trouble::Unsupported("no other processes")),
    }
}

fn guest_access<D: Door>(
    machine: &RawMachine<D>,
    access: &GuestAccess,
    direction: Access,
) -> Result<(), Trouble> {
    let routine = access.routine(direction);
    let flaws = HostFlaws::of_this_host();
    let request = guest::Request {
        routine,
        rcx: JUNK & flaws.rcx_junk() | u64::from(access.index),
        rax: JUNK | access.value.0 & 0xffff_ffff,
        rdx: JUNK | access.value.0 >> 32,
    };
    let needs_queue = access.complete_by == CompleteBy::QueuedUd;
    if !flaws.can_run(&request) || needs_queue && !flaws.keeps_queued_exceptions() {
        return Err(Trouble::Unsupported("the processor gets it wrong"));
    }
    machine.set_access(request);
    machine.poison_record();
    let mut exit = kvm_run(machine)?;
    let index = MsrIndex(access.index);
    let skips_filter = direction == Access::Write && machine.door.writes_before_filter(index);
    if let Some(record) = exit.msr() {
        check_exit(machine, access, direction, &exit, record)?;
        let step = |step: &Step| run_step_while_pending(machine, step);
        access.meanwhile.iter().try_for_each(step)?;
        reply(machine, access);
        exit = complete(machine, access.complete_by, routine, &exit)?;
    } else if let Some(reason) = access.exit
        && !(skips_filter && reason.reason() == ExitReason::FILTER)
    {
        return mismatch(format!(
            "{:#x}: no exit with reason {reason:?}",
            access.index
        ));
    }
    if !exit.is_done() {
        return mismatch(format!("{:#x}: then {exit:x?}", access.index));
    }
    let Some(answer) = machine.answer() else {
        return mismatch("the guest noted nothing".to_owned());
    };
    check_answer(machine, access, &request, &answer, direction)
}

/// A pending exit is not touched by a new filter or mask, and those are the only steps that may come.
fn run_step_while_pending<D: Door>(machine: &RawMachine<D>, step: &Step) -> Result<(), Trouble> {
    match step {
        Step::Mask(_) | Step::EnableCap(_) | Step::Filter(_) => run_step(machine, step),
        _ => mismatch("only ioctls may come while an exit is pending".to_owned()),
    }
}

fn check_exit<D: Door>(
    machine: &RawMachine<D>,
    access: &GuestAccess,
    direction: Access,
    exit: &RawExit,
    record: MsrRecord,
) -> Result<(), Trouble> {
    let Some(reason) = access.exit else {
        return mismatch(format!("{:#x}: exit {record:x?}", access.index));
    };
    let expected = MsrRecord {
        error: 0,
        pad: [0; 7],
        reason: reason.reason().0,
        index: access.index,
        data: match direction {
            Access::Read => 0,
            Access::Write => access.value.0,
        },
    };
    let number = match direction {
        Access::Read => 29,
        Access::Write => 30,
    };
    if (record, exit.exit_reason) != (expected, number) {
        return mismatch(format!("exit {record:x?}, not {expected:x?}"));
    }
    let regs = machine
        .regs()
        .map_err(|errno| failed("KVM_GET_REGS", errno))?;
    let at = machine.guest.instruction(access.routine(direction));
    let before = (
        at,
        JUNK | access.value.0 & 0xffff_ffff,
        JUNK | access.value.0 >> 32,
    );
    if (regs.rip, regs.rax, regs.rdx) != before {
        return mismatch(format!(
            "RIP, RAX, RDX at the exit: {regs:x?}, not {before:x?}"
        ));
    }
    let found = exception_state(machine)?;
    expect(
        "an exception at the exit",
        (found.injected, found.pending),
        (0, 0),
    )
}

fn reply<D: Door>(machine: &RawMachine<D>, access: &GuestAccess) {
    if access.reply.clobber {
        machine.clobber();
    }
    if let Some(error) = access.reply.error {
        machine.set_error(error);
    }
    if let Some(data) = access.reply.data {
        machine.set_data(data.0);
    }
}

/// Completes the exit, and comes back with the exit after it.
fn complete<D: Door>(
    machine: &RawMachine<D>,
    how: CompleteBy,
    routine: Routine,
    exit: &RawExit,
) -> Result<RawExit, Trouble> {
    let is_error = machine.exit().record[0] != 0;
    let length = if is_error {
        0
    } else {
        routine.bytes().len() as u64
    };
    let next = machine.guest.instruction(routine) + length;
    match how {
        CompleteBy::Run => {}
        CompleteBy::ImmediateExit => {
            machine.set_immediate_exit(1);
            for _ in 0..2 {
                let stale = exit.exit_reason;
                expect_interrupted(machine, is_error, next, stale)?;
            }
            let pending = exception_state(machine)?.pending;
            expect("exception.pending", pending, is_error.into())?;
            machine.set_immediate_exit(0);
        }
        CompleteBy::Signal => {
            const KVM_EXIT_INTR: u32 = 10;
            let unblocked = machine.unblock_signals_in_run();
            unblocked.map_err(|errno| failed("KVM_SET_SIGNAL_MASK", errno))?;
            with_pending_signal(|| expect_interrupted(machine, is_error, next, KVM_EXIT_INTR))?;
        }
        CompleteBy::SingleStep => {
            const ENABLE_SINGLESTEP: u32 = 1 | 2;
            let debug = |control| {
                let set = machine.set_guest_debug(control);
                set.map_err(|errno| failed("KVM_SET_GUEST_DEBUG", errno))
            };
            debug(ENABLE_SINGLESTEP)?;
            expect(
                "the stop behind the instruction",
                kvm_run(machine)?.debug_pc(),
                Some(next),
            )?;
            debug(0)?;
        }
        CompleteBy::QueuedUd => {
            let mut events = machine
                .events()
                .map_err(|errno| failed("KVM_GET_VCPU_EVENTS", errno))?;
            events.exception.injected = 1;
            events.exception.nr = Exception::Ud.vector();
            let set = machine.set_events(&events);
            set.map_err(|errno| failed("KVM_SET_VCPU_EVENTS", errno))?;
        }
    }
    kvm_run(machine)
}

/// A run that is interrupted before the guest runs has completed the exit all the same: RIP is `next`, and an
/// error waits as an exception.
fn expect_interrupted<D: Door>(
    machine: &RawMachine<D>,
    is_error: bool,
    next: u64,
    exit_reason: u32,
) -> Result<(), Trouble> {
    expect("KVM_RUN", machine.run().map(|_| 0), Err(Errno::EINTR))?;
    expect("exit_reason", machine.exit().exit_reason, exit_reason)?;
    let regs = machine
        .regs()
        .map_err(|errno| failed("KVM_GET_REGS", errno))?;
    expect("RIP after the completion", regs.rip, next)?;
    let found = exception_state(machine)?;
    if is_error {
        let queued = (
            found.injected,
            found.nr,
            found.has_error_code,
            found.error_code,
        );
        expect("the queued exception", queued, (1, 13, 1, 0))
    } else {
        expect(
            "a queued exception",
            (found.injected, found.pending),
            (0, 0),
        )
    }
}

fn exception_state<D: Door>(machine: &RawMachine<D>) -> Result<Queued, Trouble> {
    let events = machine.events();
    let events = events.map_err(|errno| failed("KVM_GET_VCPU_EVENTS", errno))?;
    Ok(events.exception)
}

fn check_answer<D: Door>(
    machine: &RawMachine<D>,
    access: &GuestAccess,
    request: &guest::Request,
    answer: &Answer,
    direction: Access,
) -> Result<(), Trouble> {
    let found = answer.exception.map(|exception| exception.vector);
    let expected = access.raises.map(Exception::vector);
    if found != expected {
        return mismatch(format!(
            "{:#x}: exception {found:?}, not {expected:?}",
            access.index
        ));
    }
    let is_queued = access.complete_by == CompleteBy::QueuedUd;
    let retired = is_queued || matches!(access.raises, None | Some(Exception::Db));
    if let Some(exception) = answer.exception {
        let routine = request.routine;
        let length = if retired {
            routine.bytes().len() as u64
        } else {
            0
        };
        let rip = machine.guest.instruction(routine) + length;
        if (exception.rip, exception.error_code) != (rip, 0) {
            return mismatch(format!("{exception:x?}, not at {rip:#x} with error code 0"));
        }
    }
    let (rax, rdx) = if !retired || direction == Access::Write {
        (request.rax, request.rdx)
    } else if let Some(value) = access.reads {
        (value.0 & 0xffff_ffff, value.0 >> 32)
    } else {
        (answer.rax & 0xffff_ffff, answer.rdx & 0xffff_ffff)
    };
    if (answer.rax, answer.rdx) != (rax, rdx) {
        let text = format!(
            "{:#x}: {answer:x?}, not RAX {rax:#x}, RDX {rdx:#x}",
            access.index
        );
        return mismatch(text);
    }
    Ok(())
}

fn side_effect<D: Door>(machine: &RawMachine<D>, routine: Routine) -> Result<(), Trouble> {
    const STAR: u32 = 0xc000_0081;
    const LSTAR: u32 = 0xc000_0082;
    for (index, value) in [(STAR, 8 << 32), (LSTAR, machine.guest.syscall_target())] {
        let answer = machine
            .host_msr(abi::KVM_SET_MSRS, index, value)
            .map(|(done, _)| done);
        expect("KVM_SET_MSRS", answer, Ok(1))?;
    }
    machine.set_access(guest::Request {
        routine,
        rcx: 0,
        rax: 0,
        rdx: 0,
    });
    let exit = kvm_run(machine)?;
    if !exit.is_done() {
        return mismatch(format!("{routine:?} left with {exit:x?}"));
    }
    match machine.answer() {
        Some(Answer {
            exception: None, ..
        }) => Ok(()),
        other => mismatch(format!("{routine:?}: {other:x?}")),
    }
}

fn host_access<D: Door>(
    machine: &RawMachine<D>,
    access: &HostAccess,
    request: u32,
) -> Result<(), Trouble> {
    let given = if request == abi::KVM_SET_MSRS {
        access.value.0
    } else {
        0
    };
    let answer = machine.host_msr(request, access.index, given);
    let expected = if access.done == 0 {
        given
    } else {
        access.value.0
    };
    expect("host access", answer, Ok((access.done, expected)))
}

fn kvm_run<D: Door>(machine: &RawMachine<D>) -> Result<RawExit, Trouble> {
    machine.run().map_err(|errno| failed("KVM_RUN", errno))
}

fn handle<'m, D: Door>(machine: &'m RawMachine<D>, on: On) -> &'m D::Handle {
    match on {
        On::System => machine.door.system(),
        On::Vm => &machine.vm,
        On::Vcpu => &machine.vcpu,
    }
}

fn window() -> Result<msrgate_tests::kernel_door::Fenced, Trouble> {
    Mapping::fenced(WINDOW_BYTES).map_err(|errno| failed("mmap", errno))
}

fn expect<T: PartialEq + std::fmt::Debug>(
    what: &str,
    found: T,
    expected: T,
) -> Result<(), Trouble> {
    if found == expected {
        return Ok(());
    }
    mismatch(format!("{what}: {found:?}, not {expected:?}"))
}

fn failed(what: &str, errno: Errno) -> Trouble {
    Trouble::Mismatch(format!("{what}: {errno}"))
}

fn mismatch<T>(text: String) -> Result<T, Trouble> {
    Err(Trouble::Mismatch(text))
}
