//! What a vCPU does with a guest's RDMSR or WRMSR once privilege is checked: the whole pipeline of
//! `kvm_emulate_rdmsr` and `kvm_emulate_wrmsr` in one function.
//!
//! It decides and does nothing else: the emulation is the backend's, passed in as a closure.

use crate::{ExitReason, ExitReasons, Verdict};

/// What the vCPU does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Disposition {
    /// The access is done; the instruction retires.
    Native,
    /// The vCPU stops before the instruction retires, and user space answers.
    Exit(ExitReason),
    /// #GP(0) at the instruction.
    InjectGp,
}

/// What came of emulating an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Emulation {
    /// Done.
    Done,
    /// The backend does not know the MSR (`KVM_MSR_RET_UNSUPPORTED`). A read has made 0.
    Unknown,
    /// The backend knows the MSR and refuses the access. A read has made 0.
    Invalid,
}

/// What an MSR that the backend does not know is (the module parameter `ignore_msrs`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum UnknownMsrs {
    /// A failure, with reason UNKNOWN.
    #[default]
    Fail,
    /// Read as 0, writes dropped: reason UNKNOWN never comes up.
    Ignore,
}

impl Disposition {
    /// Goes through the pipeline. A denied access is not emulated: it has no side effect, and its reason is
    /// FILTER whatever the emulation would have said.
    ///
    /// ```
    /// use msrgate_core::{Disposition, Emulation, ExitReason, ExitReasons, UnknownMsrs, Verdict};
    ///
    /// let reasons = ExitReasons::NONE.with(ExitReason::FILTER);
    /// let denied = Disposition::of(Verdict::Deny, || unreachable!(), UnknownMsrs::Fail, reasons);
    /// assert_eq!(denied, Disposition::Exit(ExitReason::FILTER));
    /// let unknown = Disposition::of(Verdict::Allow, || Emulation::Unknown, UnknownMsrs::Fail, reasons);
    /// assert_eq!(unknown, Disposition::InjectGp);
    /// ```
    #[inline]
    pub fn of(
        verdict: Verdict,
        emulate: impl FnOnce() -> Emulation,
        unknown: UnknownMsrs,
        reasons: ExitReasons,
    ) -> Self {
        let reason = match verdict {
            Verdict::Deny => ExitReason::FILTER,
            Verdict::Allow => match (emulate(), unknown) {
                (Emulation::Done, _) | (Emulation::Unknown, UnknownMsrs::Ignore) => {
                    return Self::Native;
                }
                (Emulation::Unknown, UnknownMsrs::Fail) => ExitReason::UNKNOWN,
                (Emulation::Invalid, _) => ExitReason::INVAL,
            },
        };
        if reasons.contains(reason) {
            Self::Exit(reason)
        } else {
            Self::InjectGp
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMULATIONS: [Emulation; 3] = [Emulation::Done, Emulation::Unknown, Emulation::Invalid];

    #[test]
    fn every_mask_and_cause_exits_exactly_on_its_own_bit() {
        for mask in 0..8 {
            let reasons = ExitReasons::from_mask(mask).unwrap();
            let expected = |bit: u64, reason| {
                if mask & bit == 0 {
                    Disposition::InjectGp
                } else {
                    Disposition::Exit(reason)
                }
            };
            let allowed = |emulation, unknown| {
                Disposition::of(Verdict::Allow, || emulation, unknown, reasons)
            };
            for unknown in [UnknownMsrs::Fail, UnknownMsrs::Ignore] {
                assert_eq!(allowed(Emulation::Done, unknown), Disposition::Native);
                let invalid = expected(1, ExitReason::INVAL);
                assert_eq!(allowed(Emulation::Invalid, unknown), invalid);
                let denied =
                    Disposition::of(Verdict::Deny, || unreachable!("denied"), unknown, reasons);
                assert_eq!(denied, expected(4, ExitReason::FILTER));
            }
            let failed = allowed(Emulation::Unknown, UnknownMsrs::Fail);
            assert_eq!(failed, expected(2, ExitReason::UNKNOWN));
            let ignored = allowed(Emulation::Unknown, UnknownMsrs::Ignore);
            assert_eq!(ignored, Disposition::Native);
        }
    }

    #[test]
    fn allowed_access_is_emulated_once_and_denied_never() {
        for verdict in [Verdict::Allow, Verdict::Deny] {
            for emulation in EMULATIONS {
                let mut count = 0;
                let emulate = || {
                    count += 1;
                    emulation
                };
                Disposition::of(verdict, emulate, UnknownMsrs::Fail, ExitReasons::ALL);
                assert_eq!(count, u32::from(verdict == Verdict::Allow));
            }
        }
    }
}
