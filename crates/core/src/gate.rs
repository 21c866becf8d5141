//! The engine: answers the MSR accesses that leave a guest as its policy says.
//!
//! A [`Gate`] belongs to one vCPU and is called between two of its runs; [`Gates`] is what the gates of a VM have in
//! common. A gate takes no lock and allocates nothing; what it did goes as an [`Event`] to a [`Recorder`]. It decides
//! nothing about what leaves the guest: that is the filter's part.

use alloc::sync::Arc;
use core::fmt;
use core::time::Duration;

use crate::image::Entry;
use crate::shadow::{VcpuShadows, VmShadows};
use crate::storm::StormGuard;
use crate::{
    Access, Action, Event, ExitReason, Gp, HandlerId, HostMsrs, Image, MsrHandler, MsrIndex,
    NativeAccess, Outcome, Recorder, Scope, Shadow, VcpuId, VmEntry, VmExit,
};

/// What the gates of one VM have in common: the image, the program's handlers, and the registers that are kept per VM.
/// A clone is another name for the same.
///
/// A policy is replaced while vCPUs run by making new `Gates` once, and by each vCPU's thread switching to them when it
/// comes to it. Registers that both images keep are the same registers, so nothing is lost in between.
///
/// ```
/// # use std::sync::Arc;
/// # use msrgate_core::*;
/// # fn image() -> Image { Image::new(Defaults::ALLOW) }
/// let gates = Gates::new(Arc::new(image()));
/// let mut vcpus = [0, 1].map(|id| gates.gate(VcpuId(id), ()));
///
/// let gates = gates.replaced(Arc::new(image()));
/// for gate in &mut vcpus {
///     gate.switch(&gates);
/// }
/// ```
#[derive(Clone)]
pub struct Gates {
    image: Arc<Image>,
    handlers: Arc<[Arc<dyn MsrHandler>]>,
    shadows: VmShadows,
}

impl Gates {
    /// What gates that answer from `image` have in common; all registers begin at their reset.
    #[must_use]
    pub fn new(image: Arc<Image>) -> Self {
        Self {
            shadows: VmShadows::new(&image),
            handlers: Arc::new([]),
            image,
        }
    }

    /// Answers with these where the policy names a handler.
    #[must_use]
    pub fn with_handlers(mut self, handlers: Arc<[Arc<dyn MsrHandler>]>) -> Self {
        self.handlers = handlers;
        self
    }

    /// A gate that answers for `vcpu`.
    #[must_use]
    pub fn gate<R: Recorder>(&self, vcpu: VcpuId, recorder: R) -> Gate<R> {
        Gate {
            vcpu,
            shadows: VcpuShadows::new(&self.image),
            storm: StormGuard::new(&self.image),
            vm: self.clone(),
            recorder,
        }
    }

    /// The same VM with another image. A register that is kept per VM by both is one register; others begin at their
    /// reset. Make it once for a VM and let all gates [switch](Gate::switch) to it.
    #[must_use]
    pub fn replaced(&self, image: Arc<Image>) -> Self {
        Self {
            shadows: self.shadows.moved(&self.image, &image),
            handlers: Arc::clone(&self.handlers),
            image,
        }
    }

    /// What the answers come from.
    #[must_use]
    pub const fn image(&self) -> &Arc<Image> {
        &self.image
    }

    fn handler(&self, id: HandlerId) -> Option<&dyn MsrHandler> {
        Some(self.handlers.get(usize::from(id.0))?.as_ref())
    }
}

impl fmt::Debug for Gates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gates")
            .field("shadows", &self.shadows)
            .finish_non_exhaustive()
    }
}

/// Answers the MSR accesses of one vCPU.
///
/// ```
/// use std::sync::Arc;
/// use msrgate_core::*;
///
/// /// Reads as the number of the vCPU.
/// struct Number;
///
/// impl MsrHandler for Number {
///     fn rdmsr(&self, vcpu: VcpuId, _index: MsrIndex) -> Result<u64, Gp> { Ok(vcpu.0.into()) }
///     fn wrmsr(&self, _: VcpuId, _: MsrIndex, _: u64) -> Result<(), Gp> { Err(Gp) }
/// }
///
/// # struct Nobody;
/// # impl HostMsrs for Nobody {
/// #     fn get_msr(&self, _: MsrIndex) -> Result<Option<u64>, VmError> { Ok(None) }
/// #     fn set_msr(&mut self, _: MsrIndex, _: u64) -> Result<bool, VmError> { Ok(false) }
/// # }
/// # let mut vcpu = Nobody;
/// let [kept, number] = [0xc001_1020, 0x4b56_4d99].map(MsrIndex);
/// let shadow = Action::Shadow(Shadow {
///     scope: Scope::Vcpu,
///     reset: 0x10,
///     writable: Writable { bits: 0xff, on_violation: OnViolation::Ignore },
/// });
/// let mut image = Image::new(Defaults::ALLOW);
/// for access in Access::ALL {
///     image.set(kept, kept, access, Rule::quiet(shadow))?;
///     image.set(number, number, access, Rule::quiet(Action::Handler(HandlerId(0))))?;
/// }
/// let mut gate = Gate::new(VcpuId(3), Arc::new(image), Vec::new())
///     .with_handlers(Arc::new([Arc::new(Number)]));
///
/// let reason = ExitReason::FILTER;
/// let rdmsr = |index| VmExit::Rdmsr { index, reason };
/// let wrmsr = VmExit::Wrmsr { index: kept, value: 0x1234, reason };
/// let entries = [rdmsr(number), rdmsr(kept), wrmsr, rdmsr(kept)]
///     .map(|exit| gate.service(&exit, &mut vcpu).unwrap());
/// assert_eq!(entries, [
///     VmEntry::CompleteRdmsr(Ok(3)),
///     VmEntry::CompleteRdmsr(Ok(0x10)),
///     VmEntry::CompleteWrmsr(Ok(())),
///     VmEntry::CompleteRdmsr(Ok(0x34)),
/// ]);
/// assert_eq!(gate.recorder()[0].outcome, Outcome::Handled);
/// # Ok::<(), ImageError>(())
/// ```
pub struct Gate<R> {
    vcpu: VcpuId,
    vm: Gates,
    shadows: VcpuShadows,
    storm: StormGuard,
    recorder: R,
}

impl<R: Recorder> Gate<R> {
    /// The gate of a VM with one vCPU. Gates of more are made by [`Gates::gate`].
    #[must_use]
    pub fn new(vcpu: VcpuId, image: Arc<Image>, recorder: R) -> Self {
        Gates::new(image).gate(vcpu, recorder)
    }

    /// Answers with these where the policy names a handler, in a VM with one vCPU; else see [`Gates::with_handlers`].
    #[must_use]
    pub fn with_handlers(mut self, handlers: Arc<[Arc<dyn MsrHandler>]>) -> Self {
        self.vm.handlers = handlers;
        self
    }

    /// Answers `exit` if it is an MSR access, or takes note of one that needs no answer: the entry goes into the
    /// vCPU's next run. `None`: the exit is somebody else's.
    ///
    /// `host` is asked only where the policy lets KVM do what its filter denied.
    pub fn service(&mut self, exit: &VmExit, host: &mut impl HostMsrs) -> Option<VmEntry> {
        self.storm.served(None);
        if let VmExit::Native(native) = exit {
            self.recorder.record(&self.native_event(native));
            return Some(VmEntry::Run);
        }
        let (index, access, reason) = exit.msr_access()?;
        let entry = *self.vm.image.entry(index, access, reason);
        self.storm.served(entry.limit);
        let answer = match *exit {
            VmExit::Wrmsr { value, .. } => self.write(index, value, reason, &entry, host),
            _ => self.read(index, reason, &entry, host),
        };
        self.recorder.record(&Event {
            vcpu: self.vcpu,
            index,
            access,
            reason,
            rip: if R::WANTS_RIP { host.rip() } else { None },
            value: answer.value,
            outcome: answer.outcome,
            log: entry.rule.log,
        });
        Some(answer.entry(access))
    }

    /// How long the vCPU shall wait before it goes on, because the access just served is one too many for the limit of
    /// its rule. Call it after [`Gate::service`].
    ///
    /// A limit is of one vCPU; MSRs whose rules are equal have it together. A tenth of a second's accesses may come at
    /// once, and no wait is longer than a second. The clock is read only if the access has a limit, and may jump.
    pub fn throttle(&mut self, now_ns: impl FnOnce() -> u64) -> Option<Duration> {
        self.storm.throttle(now_ns)
    }

    /// How often the vCPU had to wait.
    #[must_use]
    pub const fn throttled(&self) -> u64 {
        self.storm.throttled()
    }

    /// What the answers come from.
    #[must_use]
    pub const fn image(&self) -> &Arc<Image> {
        self.vm.image()
    }

    /// Answers from another image from now on, in a VM with one vCPU. Replace the VM's filter too.
    pub fn set_image(&mut self, image: Arc<Image>) {
        let vm = self.vm.replaced(image);
        self.switch(&vm);
    }

    /// Goes on as one of `gates`, which [replace](Gates::replaced) those that this gate was one of. A register that is
    /// kept for this vCPU by both images keeps its value, others begin at their reset.
    pub fn switch(&mut self, gates: &Gates) {
        self.shadows = self.shadows.moved(&self.vm.image, &gates.image);
        self.storm.set_image(&gates.image);
        self.vm = gates.clone();
    }

    /// Where the events went.
    #[must_use]
    pub const fn recorder(&self) -> &R {
        &self.recorder
    }

    /// The same, to record what somebody else answered.
    pub const fn recorder_mut(&mut self) -> &mut R {
        &mut self.recorder
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
        entry: &Entry,
        host: &impl HostMsrs,
    ) -> Answer {
        match entry.rule.action {
            Action::Fault => Answer::FAULT,
            Action::Ignore => Answer::new(0, Outcome::Ignored),
            Action::Value(value) => Answer::new(value, Outcome::Value),
            Action::Shadow(shadow) => Answer::new(self.shadow(shadow, entry), Outcome::Shadow),
            Action::Handler(id) => match self.vm.handler(id).map(|it| it.rdmsr(self.vcpu, index)) {
                Some(Ok(value)) => Answer::new(value, Outcome::Handled),
                _ => Answer::FAULT,
            },
            _ if reason != ExitReason::FILTER => Answer::FAULT,
            action @ (Action::Allow | Action::Mask(_) | Action::Writable(_)) => {
                match (host.get_msr(index), action) {
                    (Ok(Some(value)), Action::Mask(mask)) => {
                        Answer::new(mask.apply(value), Outcome::Masked)
                    }
                    (Ok(Some(value)), _) => Answer::new(value, Outcome::Forwarded),
                    _ => self.read(index, ExitReason::INVAL, self.vm.image.refused(), host),
                }
            }
        }
    }

    fn write(
        &mut self,
        index: MsrIndex,
        value: u64,
        reason: ExitReason,
        entry: &Entry,
        host: &mut impl HostMsrs,
    ) -> Answer {
        let outcome = match entry.rule.action {
            Action::Fault => Outcome::Fault,
            Action::Ignore | Action::Value(_) => Outcome::Ignored,
            Action::Shadow(shadow) => match self.set_shadow(shadow, entry, value) {
                Some(()) => Outcome::Shadow,
                None => Outcome::Fault,
            },
            Action::Handler(id) => {
                match self
                    .vm
                    .handler(id)
                    .map(|it| it.wrmsr(self.vcpu, index, value))
                {
                    Some(Ok(())) => Outcome::Handled,
                    _ => Outcome::Fault,
                }
            }
            _ if reason != ExitReason::FILTER => Outcome::Fault,
            Action::Writable(writable) => {
                let Ok(Some(current)) = host.get_msr(index) else {
                    return self.refused_write(index, value, host);
                };
                let merged = writable.merge(current, value);
                match merged.map(|merged| host.set_msr(index, merged)) {
                    Some(Ok(true)) => Outcome::Masked,
                    Some(_) => return self.refused_write(index, value, host),
                    None => Outcome::Fault,
                }
            }
            Action::Allow | Action::Mask(_) => match host.set_msr(index, value) {
                Ok(true) => Outcome::Forwarded,
                _ => return self.refused_write(index, value, host),
            },
        };
        Answer::new(value, outcome)
    }

    #[cold]
    fn refused_write(&mut self, index: MsrIndex, value: u64, host: &mut impl HostMsrs) -> Answer {
        let refused = *self.vm.image.refused();
        self.write(index, value, ExitReason::INVAL, &refused, host)
    }

    fn shadow(&self, shadow: Shadow, entry: &Entry) -> u64 {
        let place = usize::from(entry.shadow);
        let kept = match shadow.scope {
            Scope::Vcpu => self.shadows.get(place),
            Scope::Vm => self.vm.shadows.get(place),
        };
        kept.unwrap_or(shadow.reset)
    }

    fn set_shadow(&mut self, shadow: Shadow, entry: &Entry, value: u64) -> Option<()> {
        let place = usize::from(entry.shadow);
        match shadow.scope {
            Scope::Vcpu => self.shadows.write(place, shadow.writable, value),
            Scope::Vm => self.vm.shadows.write(place, shadow.writable, value),
        }
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
