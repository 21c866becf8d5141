//! The engine: answers the MSR accesses that leave a guest as its policy says.
//!
//! A [`Gate`] belongs to one vCPU and is called between two of its runs. It takes no lock and allocates
//! nothing; what it did goes as an [`Event`] to a [`Recorder`]. It decides nothing about what leaves
//! the guest: that is the filter's part.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use crate::{
    Access, Action, Event, ExitReason, Gp, HandlerId, Image, MsrIndex, NativeAccess, Outcome,
    Shadow, Vcpu, VcpuId, VmEntry, VmError, VmExit,
};

/// Answers the MSR accesses of one vCPU.
///
/// ```
/// use std::sync::Arc;
/// use msrgate_core::*;
///
/// # struct Nobody;
/// # impl HostMsrs for Nobody {
/// #     fn get_msr(&self, _: MsrIndex) -> Result<Option<u64>, VmError> { Ok(None) }
/// #     fn set_msr(&mut self, _: MsrIndex, _: u64) -> Result<bool, VmError> { Ok(false) }
/// # }
/// # let mut vcpu = Nobody;
/// let mut image = Image::new(Defaults::ALLOW);
/// let index = MsrIndex(0x8b);
/// image.set(index, index, Access::Read, Rule::quiet(Action::Value(0x42)))?;
/// let mut gate = Gate::new(VcpuId(0), Arc::new(image), Vec::new());
///
/// let exit = VmExit::Rdmsr { index, reason: ExitReason::FILTER };
/// let entry = gate.service(&exit, &mut vcpu);
/// assert_eq!(entry, Some(VmEntry::CompleteRdmsr(Ok(0x42))));
/// assert_eq!(gate.recorder()[0].outcome, Outcome::Value);
/// # Ok::<(), ImageError>(())
/// ```
pub struct Gate<R> {
    vcpu: VcpuId,
    image: Arc<Image>,
    handlers: Arc<[Arc<dyn MsrHandler>]>,
    /// By [`Image::shadow`]; `None` until the guest writes it.
    shadows: Vec<Option<u64>>,
    recorder: R,
}

impl<R: Recorder> Gate<R> {
    /// A gate that answers for `vcpu` from `image`.
    #[must_use]
    pub fn new(vcpu: VcpuId, image: Arc<Image>, recorder: R) -> Self {
        Self {
            vcpu,
            shadows: alloc::vec![None; image.shadow_count()],
            image,
            handlers: Arc::new([]),
            recorder,
        }
    }

    /// Answers with these where the policy names a handler.
    #[must_use]
    pub fn with_handlers(mut self, handlers: Arc<[Arc<dyn MsrHandler>]>) -> Self {
        self.handlers = handlers;
        self
    }

    /// Answers `exit` if it is an MSR access, or takes note of one that needs no answer: the entry goes into the vCPU's next run. `None`: the exit
    /// is somebody else's.
    ///
    /// `host` is asked only where the policy lets KVM do what its filter denied.
    pub fn service(&mut self, exit: &VmExit, host: &mut impl HostMsrs) -> Option<VmEntry> {
        if let VmExit::Native(native) = exit {
            self.recorder.record(&self.native_event(native));
            return Some(VmEntry::Run);
        }
        let (index, access, reason) = exit.msr_access()?;
        let rule = self.image.rule(index, access, reason);
        let answer = match *exit {
            VmExit::Wrmsr { value, .. } => self.write(index, value, reason, rule.action, host),
            _ => self.read(index, reason, rule.action, host),
        };
        self.recorder.record(&Event {
            vcpu: self.vcpu,
            index,
            access,
            reason,
            rip: if R::WANTS_RIP { host.rip() } else { None },
            value: answer.value,
            outcome: answer.outcome,
            log: rule.log,
        });
        Some(answer.entry(access))
    }

    /// What the answers come from.
    #[must_use]
    pub const fn image(&self) -> &Arc<Image> {
        &self.image
    }

    /// Answers from another image from now on. Replace the VM's filter too.
    pub fn set_image(&mut self, image: Arc<Image>) {
        self.shadows = alloc::vec![None; image.shadow_count()];
        self.image = image;
    }

    /// Where the events went.
    #[must_use]
    pub const fn recorder(&self) -> &R {
        &self.recorder
    }

    /// Gives the recorder back.
    #[must_use]
    pub fn into_recorder(self) -> R {
        self.recorder
    }

    fn native_event(&self, native: &NativeAccess) -> Event {
        Event {
            vcpu: self.vcpu,
            index: native.index,
            access: native.access,
            reason: ExitReason::NONE,
            rip: Some(native.rip),
            value: native.value,
            outcome: match native.answer {
                Ok(()) => Outcome::Native,
                Err(Gp) => Outcome::Fault,
            },
            log: false,
        }
    }

    fn read(
        &self,
        index: MsrIndex,
        reason: ExitReason,
        action: Action,
        host: &impl HostMsrs,
    ) -> Answer {
        match action {
            Action::Fault => Answer::FAULT,
            Action::Ignore => Answer::new(0, Outcome::Ignored),
            Action::Value(value) => Answer::new(value, Outcome::Value),
            Action::Shadow(shadow) => Answer::new(self.shadow(index, shadow), Outcome::Shadow),
            Action::Handler(id) => match self.handler(id).map(|it| it.rdmsr(self.vcpu, index)) {
                Some(Ok(value)) => Answer::new(value, Outcome::Handled),
                _ => Answer::FAULT,
            },
            _ if reason != ExitReason::FILTER => Answer::FAULT,
            Action::Allow | Action::Mask(_) | Action::Writable(_) => {
                match (host.get_msr(index), action) {
                    (Ok(Some(value)), Action::Mask(mask)) => {
                        Answer::new(mask.apply(value), Outcome::Masked)
                    }
                    (Ok(Some(value)), _) => Answer::new(value, Outcome::Forwarded),
                    _ => self.read(index, ExitReason::UNKNOWN, self.refused(), host),
                }
            }
        }
    }

    fn write(
        &mut self,
        index: MsrIndex,
        value: u64,
        reason: ExitReason,
        action: Action,
        host: &mut impl HostMsrs,
    ) -> Answer {
        let outcome = match action {
            Action::Fault => Outcome::Fault,
            Action::Ignore | Action::Value(_) => Outcome::Ignored,
            Action::Shadow(shadow) => self.set_shadow(index, shadow, value),
            Action::Handler(id) => {
                match self.handler(id).map(|it| it.wrmsr(self.vcpu, index, value)) {
                    Some(Ok(())) => Outcome::Handled,
                    _ => Outcome::Fault,
                }
            }
            _ if reason != ExitReason::FILTER => Outcome::Fault,
            Action::Writable(writable) => {
                let Ok(Some(current)) = host.get_msr(index) else {
                    return self.write(index, value, ExitReason::UNKNOWN, self.refused(), host);
                };
                match writable
                    .merge(current, value)
                    .map(|merged| host.set_msr(index, merged))
                {
                    Some(Ok(true)) => Outcome::Masked,
                    _ => Outcome::Fault,
                }
            }
            Action::Allow | Action::Mask(_) => match host.set_msr(index, value) {
                Ok(true) => Outcome::Forwarded,
                _ => return self.write(index, value, ExitReason::UNKNOWN, self.refused(), host),
            },
        };
        Answer::new(value, outcome)
    }

    fn handler(&self, id: HandlerId) -> Option<&dyn MsrHandler> {
        Some(self.handlers.get(usize::from(id.0))?.as_ref())
    }

    fn shadow(&self, index: MsrIndex, shadow: Shadow) -> u64 {
        let kept = self
            .image
            .shadow(index)
            .and_then(|slot| self.shadows.get(slot));
        kept.copied().flatten().unwrap_or(shadow.reset)
    }

    fn set_shadow(&mut self, index: MsrIndex, shadow: Shadow, value: u64) -> Outcome {
        let Some(merged) = shadow.writable.merge(self.shadow(index, shadow), value) else {
            return Outcome::Fault;
        };
        let slot = self.image.shadow(index);
        if let Some(kept) = slot.and_then(|slot| self.shadows.get_mut(slot)) {
            *kept = Some(merged);
        }
        Outcome::Shadow
    }

    /// The host path does not say why it refuses. What a policy forwards, KVM knows.
    fn refused(&self) -> Action {
        self.image.defaults().invalid.action
    }
}

impl<R: fmt::Debug> fmt::Debug for Gate<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate")
            .field("vcpu", &self.vcpu)
            .field("recorder", &self.recorder)
            .finish_non_exhaustive()
    }
}

/// The host path to a vCPU's MSRs. Every [`Vcpu`] has it; somebody else's vCPU may have no more.
pub trait HostMsrs {
    /// `KVM_GET_MSRS` of one MSR: neither filtered nor deflected. `None` where KVM refuses.
    ///
    /// # Errors
    /// The call itself failed.
    fn get_msr(&self, index: MsrIndex) -> Result<Option<u64>, VmError>;

    /// `KVM_SET_MSRS` of one MSR: whether KVM took it.
    ///
    /// # Errors
    /// The call itself failed.
    fn set_msr(&mut self, index: MsrIndex, value: u64) -> Result<bool, VmError>;

    /// Where the vCPU is, if that can be known.
    fn rip(&self) -> Option<u64> {
        None
    }
}

impl<V: Vcpu> HostMsrs for V {
    fn get_msr(&self, index: MsrIndex) -> Result<Option<u64>, VmError> {
        Vcpu::get_msr(self, index)
    }

    fn set_msr(&mut self, index: MsrIndex, value: u64) -> Result<bool, VmError> {
        Vcpu::set_msr(self, index, value)
    }

    fn rip(&self) -> Option<u64> {
        Some(self.registers().ok()?.rip)
    }
}

/// A program's own code for some MSRs: what a policy calls by a name. It is called on the thread of the vCPU, between
/// two of its runs, so it must not wait.
pub trait MsrHandler: Send + Sync {
    /// What RDMSR reads.
    ///
    /// # Errors
    /// The guest gets #GP(0).
    fn rdmsr(&self, vcpu: VcpuId, index: MsrIndex) -> Result<u64, Gp>;

    /// What WRMSR does.
    ///
    /// # Errors
    /// The guest gets #GP(0).
    fn wrmsr(&self, vcpu: VcpuId, index: MsrIndex, value: u64) -> Result<(), Gp>;
}

/// Where events go. Called between two runs of a vCPU, so it must not wait.
pub trait Recorder {
    /// Whether events shall say where the instruction was: on the real KVM that is one more system call for each.
    const WANTS_RIP: bool = false;

    /// Takes one event.
    fn record(&mut self, event: &Event);
}

/// Nobody wants to know.
impl Recorder for () {
    fn record(&mut self, _event: &Event) {}
}

/// Both get every event.
impl<A: Recorder, B: Recorder> Recorder for (A, B) {
    const WANTS_RIP: bool = A::WANTS_RIP || B::WANTS_RIP;

    fn record(&mut self, event: &Event) {
        self.0.record(event);
        self.1.record(event);
    }
}

/// For what is known when the program runs.
impl<R: Recorder> Recorder for Option<R> {
    const WANTS_RIP: bool = R::WANTS_RIP;

    fn record(&mut self, event: &Event) {
        if let Some(recorder) = self {
            recorder.record(event);
        }
    }
}

/// Keeps every event: for guests that end.
impl Recorder for Vec<Event> {
    fn record(&mut self, event: &Event) {
        self.push(*event);
    }
}

/// What an access is answered with, before it is known how the vCPU takes it.
struct Answer {
    value: u64,
    outcome: Outcome,
}

impl Answer {
    const FAULT: Self = Self::new(0, Outcome::Fault);

    const fn new(value: u64, outcome: Outcome) -> Self {
        Self { value, outcome }
    }

    fn entry(&self, access: Access) -> VmEntry {
        let fault = self.outcome == Outcome::Fault;
        match access {
            Access::Read => VmEntry::CompleteRdmsr(if fault { Err(Gp) } else { Ok(self.value) }),
            Access::Write => VmEntry::CompleteWrmsr(if fault { Err(Gp) } else { Ok(()) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Defaults, Rule};

    const INDEX: MsrIndex = MsrIndex(0x1a0);

    /// A host that knows one value, or refuses everything.
    struct Host(Option<u64>);

    impl HostMsrs for Host {
        fn get_msr(&self, _index: MsrIndex) -> Result<Option<u64>, VmError> {
            Ok(self.0)
        }

        fn set_msr(&mut self, _index: MsrIndex, value: u64) -> Result<bool, VmError> {
            Ok(self.0.replace(value).is_some())
        }
    }

    fn gate(action: Action, invalid: Action) -> Gate<Vec<Event>> {
        let mut image = Image::new(Defaults {
            invalid: Rule::quiet(invalid),
            ..Defaults::ALLOW
        });
        for access in Access::ALL {
            image
                .set(INDEX, INDEX, access, Rule::logged(action))
                .unwrap();
        }
        Gate::new(VcpuId(3), Arc::new(image), Vec::new())
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
        ];
        for (action, read, write) in cases {
            let mut gate = gate(action, Action::Fault);
            let mut host = Host(Some(5));
            let filter = rdmsr(ExitReason::FILTER);
            assert_eq!(gate.service(&filter, &mut host), Some(read), "{action:?}");
            assert_eq!(gate.service(&wrmsr(6), &mut host), Some(write));
            let written = if action == Action::Allow { 6 } else { 5 };
            assert_eq!(host.0, Some(written), "{action:?}");
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
    fn access_that_kvm_refused_is_not_asked_again() {
        let mut gate = gate(Action::Allow, Action::Allow);
        let answer = gate.service(&rdmsr(ExitReason::UNKNOWN), &mut Host(Some(1)));
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
}
