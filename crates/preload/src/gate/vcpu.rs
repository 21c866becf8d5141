//! A vCPU whose policy is ours: [`VcpuGate`] answers, between two `KVM_RUN`s of one call of the program's, the MSR
//! exits that are not the program's own.
//!
//! Whose an exit is follows from what would have been without us. An access that the program's own filter denies, or
//! that KVM refuses for a reason that the program asked for, is the program's, unless the policy says something else
//! than KVM would. Nothing here waits for a lock, or allocates.

use std::cell::Cell;
use std::fmt;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use msrgate_core::{
    Action, Errno, Event, ExitReason, FilterReader, Gate, Gp, HostMsrs, Outcome, Recorder, Rule,
    VcpuId, Verdict, VmEntry, VmExit,
};
use msrgate_kvm::abi::KVM_SET_SIGNAL_MASK;
use msrgate_kvm::{ExitRecord, RunPage};
use msrgate_soft::client::SignalGuard;
use msrgate_trace::channel::RingProducer;

use super::signal_mask;
use super::vm::VmGate;
use crate::lower::{HostPath, Lower};
use crate::session::{OnFailure, say};

/// A wait is cut into pieces, so that a signal ends it soon.
const NAP: Duration = Duration::from_millis(1);

/// One vCPU of a VM with a policy.
pub(crate) struct VcpuGate {
    id: VcpuId,
    vm: Arc<VmGate>,
    page: RunPage,
    on_failure: OnFailure,
    state: Mutex<State>,
}

struct State {
    gate: Gate<Option<RingProducer>>,
    /// What the program's own filter denies.
    program_filter: FilterReader,
    /// An access that the program answers now, with the place of its instruction.
    program_answers: Option<(VmExit, Option<u64>)>,
    /// The signals that the program wants blocked while the vCPU runs, if it said so.
    program_mask: Option<u64>,
    /// Those that we have had blocked instead: its thread's own.
    mask: Option<u64>,
    /// Where it ran last.
    thread: u32,
    start: Instant,
}

/// One call of `KVM_RUN` by the program, which may be several of ours.
pub(crate) struct Call {
    /// Held back until the call ends; not where KVM has no mask for the vCPU, as none would end `KVM_RUN` then.
    signals: Option<SignalGuard>,
    /// What the program saw last in its page.
    record: ExitRecord,
    /// Whether there was an MSR exit that the program does not see.
    is_hidden: bool,
}

/// What comes after a `KVM_RUN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The exit was answered.
    Again,
    /// It is for the program.
    Return,
}

/// Who answers an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Policy,
    Program,
    /// Nobody listens: #GP, as KVM does then.
    Nobody,
    /// It left only to be seen, and what KVM refuses is the program's.
    Kvm,
}

impl VcpuGate {
    pub(crate) fn new(
        id: VcpuId,
        vm: &Arc<VmGate>,
        page: RunPage,
        on_failure: OnFailure,
        recorder: Option<RingProducer>,
    ) -> Self {
        let state = State {
            gate: vm.gates.gate(id, recorder),
            program_filter: vm.filter_reader(),
            program_answers: None,
            program_mask: None,
            mask: None,
            thread: 0,
            start: Instant::now(),
        };
        Self {
            id,
            vm: Arc::clone(vm),
            page,
            on_failure,
            state: Mutex::new(state),
        }
    }

    /// Before the first `KVM_RUN` of a call.
    ///
    /// Signals wait from now on, but for those that end `KVM_RUN`: one that arrived between two of ours would
    /// otherwise be handled there, and the program's call would go on as if it had not come.
    pub(crate) fn begin(&self, lower: &Lower, fd: RawFd) -> Call {
        let mut call = Call {
            signals: None,
            record: self.page.exit_record(),
            is_hidden: false,
        };
        let Some(mut state) = self.state() else {
            return call;
        };
        let mut signals = SignalGuard::hold();
        signals.use_mask(state.program_mask);
        let mask = signals.blocked_before();
        if state.program_mask.is_none() && state.mask != Some(mask) {
            let done = signal_mask::set(lower, fd, mask);
            state.mask = done.is_ok().then_some(mask);
        }
        if state.program_mask.or(state.mask).is_some() {
            call.signals = Some(signals);
        }
        if let Some((exit, rip)) = state.program_answers.take() {
            self.record_programs_answer(&mut state, &exit, rip);
        }
        let State { gate, thread, .. } = &mut *state;
        if let Some(ring) = gate.recorder_mut() {
            let now = this_thread();
            if *thread != now {
                *thread = now;
                ring.runs_on(now);
            }
        }
        call
    }

    /// After a `KVM_RUN` that returned `result`.
    pub(crate) fn after(&self, lower: &Lower, fd: RawFd, call: &mut Call, result: i32) -> Next {
        if result < 0 {
            // The page is as it was, but for exits that the program does not know of.
            if call.is_hidden && self.page.msr_exit().is_some() {
                self.page.restore(call.record);
            }
            return Next::Return;
        }
        let Some(exit) = self.page.msr_exit() else {
            return Next::Return;
        };
        let Some(mut state) = self.state() else {
            return self.refuse(call);
        };
        let mut host = HostPath {
            lower,
            fd,
            tells_rip: state.gate.recorder().is_some(),
        };
        let entry = match self.owner(&mut state, &exit) {
            Owner::Policy => self.answer(&mut state, &exit, &mut host),
            Owner::Program => return self.leave_to_program(&mut state, exit, host.rip()),
            Owner::Nobody => {
                self.record(&mut state, &exit, host.rip(), 0, Outcome::Fault);
                faulting(&exit)
            }
            Owner::Kvm => match done_by_kvm(&exit, &mut host) {
                Some((entry, value)) => {
                    self.record(&mut state, &exit, host.rip(), value, Outcome::Forwarded);
                    entry
                }
                None => {
                    self.page.set_msr_reason(ExitReason::INVAL);
                    let refused = self.page.msr_exit().unwrap_or(exit);
                    return self.leave_to_program(&mut state, refused, host.rip());
                }
            },
        };
        self.page.complete_msr(entry);
        call.is_hidden = true;
        let start = state.start;
        if let Some(wait) = state.gate.throttle(|| nanoseconds(start.elapsed())) {
            nap(wait, call.signals.as_ref());
        }
        Next::Again
    }

    /// #GP for an exit that could not be looked at: the program must not see it.
    pub(crate) fn refuse(&self, call: &mut Call) -> Next {
        let Some(exit) = self.page.msr_exit() else {
            return Next::Return;
        };
        self.page.complete_msr(faulting(&exit));
        call.is_hidden = true;
        Next::Again
    }

    /// The program's `KVM_SET_SIGNAL_MASK`.
    pub(crate) fn set_signal_mask(
        &self,
        lower: &Lower,
        fd: RawFd,
        argument: u64,
    ) -> Result<i32, Errno> {
        let mask = signal_mask::read(argument)?;
        let done = lower.ioctl(fd, KVM_SET_SIGNAL_MASK, argument)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.program_mask = mask;
        state.mask = None;
        Ok(done.value)
    }

    /// A panic in the gate is our bug, and no reason to end the program: the access falls to what was asked for.
    fn answer(&self, state: &mut State, exit: &VmExit, host: &mut HostPath<'_>) -> VmEntry {
        let gate = &mut state.gate;
        let answer = catch_unwind(AssertUnwindSafe(|| gate.service(exit, host)));
        if let Ok(Some(entry)) = answer {
            return entry;
        }
        if let Some(ring) = state.gate.recorder() {
            ring.gate_failed();
        }
        let (index, access, reason) = exit.msr_access().expect("an MSR exit was served");
        let fallback = self.on_failure;
        say(format_args!(
            "a bug: the gate of vCPU {} failed at {} {index}; the guest gets {}",
            self.id,
            access.instruction(),
            fallback.gives()
        ));
        let may_pass = fallback == OnFailure::Pass && reason == ExitReason::FILTER;
        let passed = may_pass.then(|| done_by_kvm(exit, host)).flatten();
        passed.map_or(faulting(exit), |(entry, _)| entry)
    }

    fn owner(&self, state: &mut State, exit: &VmExit) -> Owner {
        let Some((index, access, reason)) = exit.msr_access() else {
            return Owner::Program;
        };
        let rule = state.gate.image().rule(index, access, reason);
        let is_filtered = reason == ExitReason::FILTER;
        let is_denied = is_filtered && state.program_filter.verdict(index, access) == Verdict::Deny;
        let is_as_without_policy = match rule.action {
            Action::Allow => is_denied,
            Action::Fault => !is_filtered,
            _ => false,
        };
        if is_as_without_policy && self.vm.program_wants(reason) {
            Owner::Program
        } else if is_as_without_policy && is_filtered {
            Owner::Nobody
        } else if is_filtered && rule == Rule::ALLOW && self.vm.program_wants(ExitReason::INVAL) {
            Owner::Kvm
        } else {
            Owner::Policy
        }
    }

    /// Its answer is there when the vCPU runs next.
    fn leave_to_program(&self, state: &mut State, exit: VmExit, rip: Option<u64>) -> Next {
        state.program_answers = Some((exit, rip));
        Next::Return
    }

    /// The event of an access that the program has answered.
    fn record_programs_answer(&self, state: &mut State, exit: &VmExit, rip: Option<u64>) {
        // It may have put something else there.
        if self.page.msr_exit() != Some(*exit) {
            return;
        }
        match self.page.msr_answer() {
            Ok(value) => self.record(state, exit, rip, value, Outcome::Vmm),
            Err(Gp) => self.record(state, exit, rip, 0, Outcome::Fault),
        }
    }

    /// The event of an access that the gate did not answer; `read` is what a read reads.
    fn record(
        &self,
        state: &mut State,
        exit: &VmExit,
        rip: Option<u64>,
        read: u64,
        outcome: Outcome,
    ) {
        let Some((index, access, reason)) = exit.msr_access() else {
            return;
        };
        let log = state.gate.image().rule(index, access, reason).log;
        let value = match *exit {
            VmExit::Wrmsr { value, .. } => value,
            _ => read,
        };
        state.gate.recorder_mut().record(&Event {
            vcpu: self.id,
            index,
            access,
            reason,
            rip,
            value,
            outcome,
            log,
        });
    }

    /// `None` where another thread runs the same vCPU: KVM makes it wait, and so its exits are not for this one.
    fn state(&self) -> Option<MutexGuard<'_, State>> {
        match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(error)) => Some(error.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// The kernel's number of this thread; it is asked once.
fn this_thread() -> u32 {
    thread_local!(static NUMBER: Cell<u32> = const { Cell::new(0) });
    let ask = || {
        rustix::thread::gettid()
            .as_raw_nonzero()
            .get()
            .cast_unsigned()
    };
    NUMBER.with(|number| {
        if number.get() == 0 {
            number.set(ask());
        }
        number.get()
    })
}

/// What the host path makes of an access, and what is read; `None` where KVM refuses.
fn done_by_kvm(exit: &VmExit, host: &mut HostPath<'_>) -> Option<(VmEntry, u64)> {
    let (index, ..) = exit.msr_access()?;
    if let VmExit::Wrmsr { value, .. } = *exit {
        let done = host.set_msr(index, value) == Ok(true);
        return done.then_some((VmEntry::CompleteWrmsr(Ok(())), 0));
    }
    let value = host.get_msr(index).ok()??;
    Some((VmEntry::CompleteRdmsr(Ok(value)), value))
}

fn faulting(exit: &VmExit) -> VmEntry {
    match exit {
        VmExit::Wrmsr { .. } => VmEntry::CompleteWrmsr(Err(Gp)),
        _ => VmEntry::CompleteRdmsr(Err(Gp)),
    }
}

/// Waits, but not when a signal does.
fn nap(wait: Duration, signals: Option<&SignalGuard>) {
    let start = Instant::now();
    while let Some(left) = wait.checked_sub(start.elapsed()) {
        if signals.is_some_and(SignalGuard::is_pending) {
            return;
        }
        thread::sleep(left.min(NAP));
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl fmt::Debug for VcpuGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuGate")
            .field("id", &self.id)
            .field("vm", &self.vm)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::os::unix::fs::FileExt;

    use kvm_bindings::KVM_EXIT_X86_RDMSR;
    use msrgate_core::{Access, Defaults, HandlerId, Image, MsrHandler, MsrIndex, Rule};
    use msrgate_kvm::abi::{KVM_CREATE_VCPU, KVM_CREATE_VM};
    use msrgate_soft::{Handle, Outcome as Made, SystemConfig};
    use msrgate_trace::Facts;
    use msrgate_trace::channel::{Channel, Claim, Rings};

    use super::*;

    /// A register whose handler has a bug, which KVM knows.
    const INDEX: MsrIndex = MsrIndex(0x174);

    struct Buggy;

    impl MsrHandler for Buggy {
        fn rdmsr(&self, _: VcpuId, _: MsrIndex) -> Result<u64, Gp> {
            panic!("a bug, for the test")
        }

        fn wrmsr(&self, _: VcpuId, _: MsrIndex, _: u64) -> Result<(), Gp> {
            panic!("a bug, for the test")
        }
    }

    fn make(parent: &Handle, request: u32) -> (Handle, OwnedFd) {
        match parent.ioctl(request, 0).expect("the embedded KVM makes it") {
            Made::Descriptor { handle, fd } => (handle, fd),
            Made::Value(value) => panic!("{value} is no descriptor"),
        }
    }

    /// What a read of [`INDEX`] that left for `reason` is answered with, and what the collector hears of it.
    fn answer(on_failure: OnFailure, reason: ExitReason) -> (Result<u64, Gp>, u64) {
        let mut image = Image::new(Defaults::ALLOW);
        let rule = Rule::quiet(Action::Handler(HandlerId(0)));
        image.set(INDEX, INDEX, Access::Read, rule).unwrap();
        let (vm, _vm_fd) = make(&Handle::open(SystemConfig::default()), KVM_CREATE_VM);
        let (vcpu, vcpu_fd) = make(&vm, KVM_CREATE_VCPU);
        let (lower, fd) = (Lower::Soft(vcpu), vcpu_fd.as_raw_fd());
        let mut host = HostPath {
            lower: &lower,
            fd,
            tells_rip: false,
        };
        assert_eq!(host.set_msr(INDEX, 0x10), Ok(true));

        let vm = Arc::new(VmGate::of_image(image, Arc::new([Arc::new(Buggy)])));
        let page = RunPage::map(&vcpu_fd, 3 * 4096).unwrap();
        let mut channel = Channel::create(&Facts::default(), Rings::Wanted).unwrap();
        let ring = channel.claim(Claim {
            pid: std::process::id(),
            vm: 1,
            vcpu: VcpuId(0),
        });
        let gate = VcpuGate::new(VcpuId(0), &vm, page, on_failure, ring);
        let mut call = gate.begin(&lower, fd);
        let file = File::from(vcpu_fd.try_clone().unwrap());
        let put = |at, word: u32| file.write_all_at(&word.to_le_bytes(), at).unwrap();
        put(8, KVM_EXIT_X86_RDMSR);
        put(40, reason.0);
        put(44, INDEX.0);
        assert_eq!(gate.after(&lower, fd, &mut call, 0), Next::Again);
        let failures = channel.claimed().unwrap()[0].failures();
        (gate.page.msr_answer(), failures)
    }

    #[test]
    fn bug_in_the_gate_costs_the_access_and_nothing_else() {
        let [filter, unknown] = [ExitReason::FILTER, ExitReason::UNKNOWN];
        assert_eq!(answer(OnFailure::Deny, filter), (Err(Gp), 1));
        assert_eq!(answer(OnFailure::Pass, filter), (Ok(0x10), 1));
        assert_eq!(answer(OnFailure::Pass, unknown), (Err(Gp), 1));
    }
}
