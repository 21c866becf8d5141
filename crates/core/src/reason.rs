//! Why an access left the guest, and which reasons a VM wants to hear of.

use core::fmt;

/// Why an MSR access left the guest (`kvm_run.msr.reason`).
///
/// An open set: a kernel may send a reason that is not named here, and it stays what it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExitReason(pub u32);

impl ExitReason {
    /// None at all: the access did not leave KVM.
    pub const NONE: Self = Self(0);
    /// KVM knows the MSR and refuses this access (`KVM_MSR_EXIT_REASON_INVAL`).
    pub const INVAL: Self = Self(1);
    /// KVM does not know the MSR (`KVM_MSR_EXIT_REASON_UNKNOWN`).
    pub const UNKNOWN: Self = Self(2);
    /// The MSR filter denies the access (`KVM_MSR_EXIT_REASON_FILTER`).
    pub const FILTER: Self = Self(4);

    /// The named reasons, lowest bit first.
    pub const ALL: [Self; 3] = [Self::INVAL, Self::UNKNOWN, Self::FILTER];
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NONE => f.pad("none"),
            Self::INVAL => f.pad("invalid"),
            Self::UNKNOWN => f.pad("unknown"),
            Self::FILTER => f.pad("filter"),
            Self(other) => write!(f, "reason {other:#x}"),
        }
    }
}

impl fmt::Debug for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The set of reasons that a VM deflects to user space: the argument of
/// `KVM_ENABLE_CAP(KVM_CAP_X86_USER_SPACE_MSR)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ExitReasons(u32);

impl ExitReasons {
    /// No access is deflected; what KVM refuses is #GP.
    pub const NONE: Self = Self(0);
    /// Every access that KVM would fault is deflected (`KVM_MSR_EXIT_REASON_VALID_MASK`).
    pub const ALL: Self = Self(7);

    /// Checks a mask as the kernel does: all 64 bits count.
    ///
    /// # Errors
    /// A bit outside [`ExitReasons::ALL`] (EINVAL in `kvm_vm_ioctl_enable_cap`).
    pub const fn from_mask(mask: u64) -> Result<Self, UnknownExitReasons> {
        if mask & !(Self::ALL.0 as u64) != 0 {
            return Err(UnknownExitReasons { mask });
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "at most three low bits are set"
        )]
        Ok(Self(mask as u32))
    }

    /// The set with `reason` in it as well.
    #[must_use]
    pub const fn with(self, reason: ExitReason) -> Self {
        Self(self.0 | (reason.0 & Self::ALL.0))
    }

    /// Whether an access that fails for `reason` leaves the guest.
    #[must_use]
    pub const fn contains(self, reason: ExitReason) -> bool {
        self.0 & reason.0 != 0
    }

    /// The mask that the capability takes.
    #[must_use]
    pub const fn mask(self) -> u32 {
        self.0
    }
}

/// A mask of exit reasons has bits that no kernel defines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownExitReasons {
    /// The whole mask that was asked for.
    pub mask: u64,
}

impl fmt::Display for UnknownExitReasons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "exit reason mask {:#x} has bits outside {:#x}",
            self.mask,
            ExitReasons::ALL.0
        )
    }
}

impl core::error::Error for UnknownExitReasons {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mask_takes_three_bits_of_64() {
        for bit in 0..64 {
            let mask = 1u64 << bit;
            let expected = if bit < 3 { Ok(1 << bit) } else { Err(mask) };
            let answer = ExitReasons::from_mask(mask);
            let answer = answer.map(ExitReasons::mask).map_err(|error| error.mask);
            assert_eq!(answer, expected);
        }
        assert_eq!(ExitReasons::from_mask(0), Ok(ExitReasons::NONE));
        assert_eq!(ExitReasons::from_mask(7), Ok(ExitReasons::ALL));
    }

    #[test]
    fn set_contains_what_was_put_in() {
        let filter_only = ExitReasons::NONE.with(ExitReason::FILTER);
        let contained = ExitReason::ALL.map(|reason| filter_only.contains(reason));
        assert_eq!(contained, [false, false, true]);
        assert_eq!(ExitReasons::NONE.with(ExitReason(8)), ExitReasons::NONE);
    }
}
