//! For a VMM that has its own `kvm_ioctls::VmFd` and `VcpuFd`: [`install`] and [`service`] put a policy into its
//! hands, and leave everything else to it.
//!
//! Nothing here keeps anything: the filter and the reasons are the VM's, the pending exit is the vCPU's.

use kvm_bindings::{
    KVM_CAP_X86_MSR_FILTER, KVM_CAP_X86_USER_SPACE_MSR, KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR,
    kvm_enable_cap,
};
use kvm_ioctls::{VcpuFd, VmFd};
use msrgate_core::{
    ExitReason, ExitReasons, Gate, HostMsrs, MsrFilter, MsrIndex, Recorder, VmEntry, VmError,
    VmExit,
};

use crate::filter::set_msr_filter;
use crate::run_page::{Msr, msr_of};
use crate::vcpu::{get_msr, set_msr};
use crate::vm::refused;

/// Puts a policy's filter and exit reasons into force for the VM, in place of what it had. vCPUs may run meanwhile.
///
/// # Errors
/// The kernel has no MSR filters (Linux before 5.10), or refuses.
pub fn install(vm: &VmFd, filter: &MsrFilter, reasons: ExitReasons) -> Result<(), VmError> {
    for (capability, what) in [
        (KVM_CAP_X86_USER_SPACE_MSR, "KVM_CAP_X86_USER_SPACE_MSR"),
        (KVM_CAP_X86_MSR_FILTER, "KVM_CAP_X86_MSR_FILTER"),
    ] {
        if vm.check_extension_raw(capability.into()) <= 0 {
            return Err(VmError::Unsupported { what });
        }
    }
    // All reasons first: what a filter denies must not be #GP in between.
    set_exit_reasons(vm, ExitReasons::ALL)?;
    set_msr_filter(vm, filter)?;
    set_exit_reasons(vm, reasons)
}

/// Replaces the reasons for which accesses leave the guest.
pub(crate) fn set_exit_reasons(vm: &VmFd, reasons: ExitReasons) -> Result<(), VmError> {
    let cap = kvm_enable_cap {
        cap: KVM_CAP_X86_USER_SPACE_MSR,
        args: [reasons.mask().into(), 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&cap).map_err(refused("KVM_ENABLE_CAP"))
}

/// Answers the MSR access for which `vcpu` has stopped; the kernel completes it when the vCPU runs next.
/// `false`: it stopped for something else, and nothing has happened.
///
/// ```no_run
/// use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
/// use msrgate_core::{Gate, VcpuId};
///
/// fn run(vm: &VmFd, mut vcpu: VcpuFd) -> Result<(), Box<dyn std::error::Error>> {
///     let policy = msrgate_policy::compile("version = 1\n[defaults]\nunknown = 'ignore'\n")
///         .expect("this policy has no mistakes");
///     msrgate_kvm::install(vm, &policy.filter, policy.reasons)?;
///     let mut gate = Gate::new(VcpuId(0), policy.image.into(), ());
///     loop {
///         match vcpu.run()? {
///             VcpuExit::X86Rdmsr(_) | VcpuExit::X86Wrmsr(_) => {
///                 msrgate_kvm::service(&mut vcpu, &mut gate);
///             }
///             VcpuExit::Hlt => return Ok(()),
///             other => println!("{other:?}"),
///         }
///     }
/// }
/// ```
pub fn service<R: Recorder>(vcpu: &mut VcpuFd, gate: &mut Gate<R>) -> bool {
    let run = vcpu.get_kvm_run();
    let exit = match run.exit_reason {
        KVM_EXIT_X86_RDMSR => rdmsr(&msr_of(run)),
        KVM_EXIT_X86_WRMSR => wrmsr(&msr_of(run)),
        _ => return false,
    };
    let entry = gate.service(&exit, &mut HostPath(vcpu));
    let run = vcpu.get_kvm_run();
    let mut msr = msr_of(run);
    complete(&mut msr, entry.expect("a gate answers every MSR access"));
    run.__bindgen_anon_1.msr = msr;
    true
}

/// `kvm_run.msr` of an RDMSR, as an owned value.
pub(crate) fn rdmsr(msr: &Msr) -> VmExit {
    VmExit::Rdmsr {
        index: MsrIndex(msr.index),
        reason: ExitReason(msr.reason),
    }
}

/// `kvm_run.msr` of a WRMSR, as an owned value.
pub(crate) fn wrmsr(msr: &Msr) -> VmExit {
    VmExit::Wrmsr {
        index: MsrIndex(msr.index),
        value: msr.data,
        reason: ExitReason(msr.reason),
    }
}

/// Puts the answer to an MSR access where the kernel looks for it.
pub(crate) fn complete(msr: &mut Msr, entry: VmEntry) {
    match entry {
        VmEntry::CompleteRdmsr(answer) => {
            msr.error = answer.is_err().into();
            msr.data = answer.unwrap_or(0);
        }
        VmEntry::CompleteWrmsr(answer) => msr.error = answer.is_err().into(),
        _ => {}
    }
}

/// `KVM_GET_MSRS` and `KVM_SET_MSRS` of a vCPU that is somebody else's.
struct HostPath<'a>(&'a VcpuFd);

impl HostMsrs for HostPath<'_> {
    fn get_msr(&self, index: MsrIndex) -> Result<Option<u64>, VmError> {
        get_msr(self.0, index)
    }

    fn set_msr(&mut self, index: MsrIndex, value: u64) -> Result<bool, VmError> {
        set_msr(self.0, index, value)
    }

    fn rip(&self) -> Option<u64> {
        Some(self.0.get_regs().ok()?.rip)
    }
}
