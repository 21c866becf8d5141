//! What a policy lets an access do: [`Action`], and with its log and limit a [`Rule`].
//!
//! These are values: nothing here knows a vCPU, or where a kept register is.

use core::num::NonZeroU32;

/// What an access that left the guest is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Action {
    /// KVM's own behaviour: through the host path where KVM was not asked yet, #GP where it has refused.
    Allow,
    /// #GP(0).
    Fault,
    /// Reads 0; a write is dropped.
    Ignore,
    /// Reads this value; a write is dropped.
    Value(u64),
    /// Reads KVM's own value with some bits replaced; a write is KVM's own.
    Mask(Mask),
    /// Writes some bits over KVM's own value; a read is KVM's own.
    Writable(Writable),
    /// Reads and writes a register that the gate keeps.
    Shadow(Shadow),
    /// Reads and writes as a program's own code says.
    Handler(HandlerId),
}

/// A [`MsrHandler`](crate::MsrHandler), by its place in the gate's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HandlerId(pub u16);

/// Bits that are read as the policy says, whatever KVM's value has there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mask {
    /// The bits that are replaced.
    pub replaced: u64,
    /// By what; a subset of `replaced`.
    pub ones: u64,
}

impl Mask {
    /// What the guest reads where KVM's value is `value`.
    #[must_use]
    pub const fn apply(self, value: u64) -> u64 {
        value & !self.replaced | self.ones & self.replaced
    }
}

/// Which bits a write may change, and what happens to one that would change another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Writable {
    /// The bits that may change.
    pub bits: u64,
    /// What a write gets that would change another bit.
    pub on_violation: OnViolation,
}

impl Writable {
    /// What a register that holds `current` holds after a write of `value`; `None`: #GP.
    #[must_use]
    pub const fn merge(self, current: u64, value: u64) -> Option<u64> {
        let violates = (current ^ value) & !self.bits != 0;
        match self.on_violation {
            OnViolation::Fault if violates => None,
            _ => Some(current & !self.bits | value & self.bits),
        }
    }
}

/// What a write gets that would change a bit that is not writable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OnViolation {
    /// #GP(0); nothing is written.
    #[default]
    Fault,
    /// The writable bits are written, the others stay.
    Ignore,
}

/// A register that the gate keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shadow {
    /// Who shares it.
    pub scope: Scope,
    /// What it holds at first.
    pub reset: u64,
    /// What the guest may write.
    pub writable: Writable,
}

/// Who shares a register that the gate keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Each vCPU has its own.
    #[default]
    Vcpu,
    /// The vCPUs of a VM have one together.
    Vm,
}

/// An action, whether its accesses are logged, and how many of them a vCPU may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// What happens.
    pub action: Action,
    /// Whether it is worth a line.
    pub log: bool,
    /// Accesses per second that one vCPU may make before it is slowed down (a storm guard).
    pub limit_per_second: Option<NonZeroU32>,
}

impl Rule {
    /// KVM's own behaviour, silently.
    pub const ALLOW: Self = Self::quiet(Action::Allow);

    /// `action`, silently.
    #[must_use]
    pub const fn quiet(action: Action) -> Self {
        Self {
            action,
            log: false,
            limit_per_second: None,
        }
    }

    /// `action`, and a line about it.
    #[must_use]
    pub const fn logged(action: Action) -> Self {
        Self {
            log: true,
            ..Self::quiet(action)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mask_replaces_only_its_bits() {
        let mask = Mask {
            replaced: 0b1100,
            ones: 0b0100,
        };
        assert_eq!(mask.apply(0b1010), 0b0110);
        assert_eq!(mask.apply(u64::MAX), !0b1000);
    }

    #[test]
    fn write_of_a_bit_that_is_not_writable_faults_or_is_dropped() {
        let writable = |on_violation| Writable {
            bits: 0xff,
            on_violation,
        };
        let fault = writable(OnViolation::Fault);
        assert_eq!(fault.merge(0x1234, 0x1256), Some(0x1256));
        assert_eq!(fault.merge(0x1234, 0x1356), None, "bit 8 would change");
        assert_eq!(
            writable(OnViolation::Ignore).merge(0x1234, 0x1356),
            Some(0x1256)
        );
    }
}
