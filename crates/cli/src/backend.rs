//! Which backend runs a guest, and why.

use msrgate_kvm::Kvm;

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

/// A backend that can be used, and a line that says so.
pub(crate) struct Backend {
    pub(crate) kind: Kind,
    pub(crate) why: String,
}

pub(crate) enum Kind {
    Kvm(Kvm),
    Soft,
}

impl Kind {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Kvm(_) => "kvm",
            Self::Soft => "soft",
        }
    }
}

/// Opens what is asked for.
pub(crate) fn open(choice: Choice) -> anyhow::Result<Backend> {
    let kvm = match choice {
        Choice::Soft => {
            return Ok(Backend {
                kind: Kind::Soft,
                why: "the embedded KVM, as asked".to_owned(),
            });
        }
        Choice::Auto | Choice::Kvm => Kvm::open(),
    };
    match (kvm, choice) {
        (Ok(kvm), _) => Ok(Backend {
            kind: Kind::Kvm(kvm),
            why: kvm_line().to_owned(),
        }),
        (Err(error), Choice::Auto) => Ok(Backend {
            kind: Kind::Soft,
            why: format!("the embedded KVM, because {error}"),
        }),
        (Err(error), _) => Err(error.into()),
    }
}

/// A host that hides unknown MSRs hides them from the policy too.
fn kvm_line() -> &'static str {
    match msrgate_kvm::ignore_msrs() {
        Some(true) => "/dev/kvm filters and deflects, but kvm.ignore_msrs=1 hides unknown MSRs",
        _ => "/dev/kvm filters and deflects MSR accesses",
    }
}
