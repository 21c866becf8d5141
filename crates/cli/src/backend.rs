//! Which backend runs a guest, and why.

use msrgate_core::VmError;
use msrgate_kvm::{Irqchip, Kvm, KvmVm, OpenError};
use msrgate_soft::{SoftVm, SystemConfig};
use vm_memory::GuestMemoryMmap;

/// What the user asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Choice {
    /// KVM where /dev/kvm can filter and deflect, else soft
    Auto,
    /// The kernel's KVM
    Kvm,
    /// The embedded KVM, which needs no /dev/kvm
    Soft,
}

/// A VM that is ready for its vCPU.
pub(crate) enum Backend {
    Kvm(KvmVm),
    Soft(SoftVm),
}

impl Backend {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Kvm(_) => "kvm",
            Self::Soft(_) => "soft",
        }
    }
}

/// Makes a VM on `memory` as it is asked for, and says why it is that one.
pub(crate) fn open(choice: Choice, memory: &GuestMemoryMmap) -> anyhow::Result<(Backend, String)> {
    if choice == Choice::Soft {
        return soft(memory, "the embedded KVM, as asked".to_owned());
    }
    match kvm(memory) {
        Ok(vm) => Ok((Backend::Kvm(vm), kvm_line().to_owned())),
        Err(error) if choice == Choice::Auto => {
            soft(memory, format!("the embedded KVM, because {error}"))
        }
        Err(error) => Err(error.into()),
    }
}

fn soft(memory: &GuestMemoryMmap, why: String) -> anyhow::Result<(Backend, String)> {
    let vm = SoftVm::new(memory, SystemConfig::default())?;
    Ok((Backend::Soft(vm), why))
}

fn kvm(memory: &GuestMemoryMmap) -> Result<KvmVm, KvmError> {
    let kvm = Kvm::open()?;
    Ok(KvmVm::new(&kvm, memory.clone(), Irqchip::None)?)
}

/// Why there is no VM on the kernel's KVM.
#[derive(Debug, thiserror::Error)]
enum KvmError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("/dev/kvm makes no VM: {0}")]
    Vm(#[from] VmError),
}

/// A host that hides unknown MSRs hides them from the policy too.
fn kvm_line() -> &'static str {
    match msrgate_kvm::ignore_msrs() {
        Some(true) => "/dev/kvm filters and deflects, but kvm.ignore_msrs=1 hides unknown MSRs",
        _ => "/dev/kvm filters and deflects MSR accesses",
    }
}
