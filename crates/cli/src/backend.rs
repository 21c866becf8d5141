//! Which backend runs a guest, and why.

use msrgate_core::VmError;
use msrgate_kvm::{Irqchip, Kvm, KvmVm, OpenError};
use msrgate_machine::{MemoryError, TrialError, guest_memory, unsuitable_for_linux};
use msrgate_soft::{CpuidSource, SoftVm, SystemConfig};
use vm_memory::GuestMemoryMmap;

/// Memory of the VM on which /dev/kvm is tried.
const TRIAL_BYTES: u64 = 2 << 20;

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

/// Whose processor a guest sees on the embedded KVM; KVM's is the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Processor {
    /// The host's, with the features that the processor in software has
    Host,
    /// The same on every host
    Fixed,
}

/// What a guest needs of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// A processor and memory.
    Bare,
    /// Interrupt controllers too, and a kernel's instructions: Linux.
    Linux,
}

/// Makes a VM on `memory` as it is asked for, and says why it is that one.
pub(crate) fn open(
    choice: Choice,
    need: Need,
    processor: Processor,
    memory: &GuestMemoryMmap,
) -> anyhow::Result<(Backend, String)> {
    let soft = |why| soft(need, processor, memory, why);
    if choice == Choice::Soft {
        return soft("the embedded KVM, as asked".to_owned());
    }
    match kvm(need, memory) {
        Ok(vm) => Ok((Backend::Kvm(vm), kvm_line().to_owned())),
        Err(error) if choice == Choice::Auto => soft(format!("the embedded KVM, because {error}")),
        Err(error) => Err(error.into()),
    }
}

fn soft(
    need: Need,
    processor: Processor,
    memory: &GuestMemoryMmap,
    why: String,
) -> anyhow::Result<(Backend, String)> {
    let mut config = SystemConfig::default();
    config.cpuid = match processor {
        Processor::Host => CpuidSource::Host,
        Processor::Fixed => CpuidSource::Fixed,
    };
    let vm = SoftVm::new(memory, config)?;
    if need == Need::Linux {
        vm.create_irqchip()?;
    }
    Ok((Backend::Soft(vm), why))
}

fn kvm(need: Need, memory: &GuestMemoryMmap) -> Result<KvmVm, KvmError> {
    let kvm = Kvm::open()?;
    if need == Need::Bare {
        return Ok(KvmVm::new(&kvm, memory.clone(), Irqchip::None)?);
    }
    let trial = guest_memory(TRIAL_BYTES)?;
    let vm = KvmVm::new(&kvm, trial.clone(), Irqchip::None)?;
    if unsuitable_for_linux(vm, &trial)?.is_some() {
        return Err(KvmError::Interprets);
    }
    Ok(KvmVm::new(&kvm, memory.clone(), Irqchip::Kernel)?)
}

/// Why there is no VM on the kernel's KVM.
#[derive(Debug, thiserror::Error)]
enum KvmError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("/dev/kvm makes no VM: {0}")]
    Vm(#[from] VmError),
    #[error(
        "/dev/kvm interprets the guest's kernel and lacks instructions that Linux needs (CMPXCHG16B, POPCNT)"
    )]
    Interprets,
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error("/dev/kvm cannot be tried: {0}")]
    Trial(#[from] TrialError),
}

/// A host that hides unknown MSRs hides them from the policy too.
fn kvm_line() -> &'static str {
    match msrgate_kvm::ignore_msrs() {
        Some(true) => "/dev/kvm filters and deflects, but kvm.ignore_msrs=1 hides unknown MSRs",
        _ => "/dev/kvm filters and deflects MSR accesses",
    }
}
