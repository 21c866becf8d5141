//! What a guest sees under a compiled policy: a kernel's filter and a gate, with a KVM that is made up.

use std::cell::Cell;
use std::sync::Arc;

use msrgate_core::{
    Access, Action, ExitReason, Gate, Gp, HostMsrs, Image, MsrHandler, MsrIndex, Outcome, VcpuId,
    Verdict, VmEntry, VmError, VmExit,
};
use msrgate_policy::Compiled;

use crate::language::{HANDLED, KVMS_VALUE, Kvm, Seen, WRITTEN};

/// What policies may call the handler.
pub(crate) const HANDLERS: [&str; 1] = ["clock"];

/// What a kernel and a gate make of the compiled policy, whose image is `image`.
pub(crate) fn enforced(
    compiled: &Compiled,
    image: &Arc<Image>,
    index: MsrIndex,
    access: Access,
    kvm: Kvm,
) -> Seen {
    let denied = compiled.filter.decide(index, access).verdict == Verdict::Deny;
    let reason = match kvm {
        _ if denied => ExitReason::FILTER,
        Kvm::Handles => return Seen::Native,
        Kvm::DoesNotKnow => ExitReason::UNKNOWN,
        Kvm::Refuses => ExitReason::INVAL,
    };
    if !compiled.reasons.contains(reason) {
        return Seen::Fault;
    }
    let exit = match access {
        Access::Read => VmExit::Rdmsr { index, reason },
        Access::Write => VmExit::Wrmsr {
            index,
            value: WRITTEN,
            reason,
        },
    };
    let image = match compiled.image.named(index, access) {
        Some(rule) if access == Access::Write && matches!(rule.action, Action::Shadow(_)) => {
            // The register that is kept can then be read back.
            let mut image = compiled.image.clone();
            image
                .set(index, index, Access::Read, rule)
                .expect("there is room for the write");
            Arc::new(image)
        }
        _ => Arc::clone(image),
    };
    let mut gate =
        Gate::new(VcpuId(0), image, Vec::new()).with_handlers(Arc::new([Arc::new(Clock)]));
    let mut host = Host {
        handles: kvm == Kvm::Handles,
        written: Cell::new(None),
    };
    let entry = gate.service(&exit, &mut host).expect("an MSR exit");
    let outcome = gate.recorder()[0].outcome;
    match (entry, outcome) {
        (VmEntry::CompleteRdmsr(Err(_)) | VmEntry::CompleteWrmsr(Err(_)), _) => Seen::Fault,
        (_, Outcome::Forwarded) => Seen::Native,
        (VmEntry::CompleteRdmsr(Ok(0)), _) => Seen::Zero,
        (VmEntry::CompleteRdmsr(Ok(value)), _) => Seen::Value(value),
        (VmEntry::CompleteWrmsr(Ok(())), Outcome::Masked) => {
            Seen::Kept(host.written.get().expect("a value for KVM"))
        }
        (VmEntry::CompleteWrmsr(Ok(())), Outcome::Shadow) => {
            let reason = ExitReason::FILTER;
            match gate.service(&VmExit::Rdmsr { index, reason }, &mut host) {
                Some(VmEntry::CompleteRdmsr(Ok(value))) => Seen::Kept(value),
                other => panic!("{other:?} reads no register that is kept"),
            }
        }
        (VmEntry::CompleteWrmsr(Ok(())), _) => Seen::Zero,
        other => panic!("{other:?} answers no MSR access"),
    }
}

struct Host {
    handles: bool,
    written: Cell<Option<u64>>,
}

impl HostMsrs for Host {
    fn get_msr(&self, _index: MsrIndex) -> Result<Option<u64>, VmError> {
        Ok(self.handles.then_some(KVMS_VALUE))
    }

    fn set_msr(&mut self, _index: MsrIndex, value: u64) -> Result<bool, VmError> {
        self.written.set(Some(value));
        Ok(self.handles)
    }
}

struct Clock;

impl MsrHandler for Clock {
    fn rdmsr(&self, _vcpu: VcpuId, _index: MsrIndex) -> Result<u64, Gp> {
        Ok(HANDLED)
    }

    fn wrmsr(&self, _vcpu: VcpuId, _index: MsrIndex, _value: u64) -> Result<(), Gp> {
        Ok(())
    }
}
