//! The one exit of a vCPU that waits for its answer.
//!
//! [`PendingCompletion`] is what both backends keep between [`VmExit`] and the next [`VmEntry`]. It holds
//! no registers: how an instruction is retired is the backend's part.

use crate::{RunError, VmEntry, VmExit};

/// At most one exit, armed when the vCPU leaves the guest and taken once by the entry that answers it.
///
/// As in KVM, the completion comes first in the next run: before any guest instruction and before
/// `immediate_exit` and signals are looked at. What happens in between does not touch it: not a new filter
/// or reason mask (the answer is final), and not new registers either, so a vCPU that is set up afresh in
/// place must first drain it or [`cancel`](Self::cancel) it.
///
/// ```
/// use msrgate_core::{ExitReason, MsrIndex, PendingCompletion, VmEntry, VmExit};
///
/// let exit = VmExit::Rdmsr { index: MsrIndex(0xce), reason: ExitReason::UNKNOWN };
/// let mut pending = PendingCompletion::default();
/// pending.arm(exit);
/// assert!(pending.take(VmEntry::CompleteWrmsr(Ok(()))).is_err());
/// assert_eq!(pending.take(VmEntry::CompleteRdmsr(Ok(7))), Ok(Some(exit)));
/// assert!(pending.take(VmEntry::CompleteRdmsr(Ok(7))).is_err());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PendingCompletion {
    exit: Option<VmExit>,
}

impl PendingCompletion {
    /// Notes why the vCPU stopped. An exit between two instructions leaves nothing to complete.
    pub fn arm(&mut self, exit: VmExit) {
        self.exit = Some(exit).filter(|exit| !exit.is_consistent());
    }

    /// The exit that waits, if one does.
    #[must_use]
    pub const fn exit(&self) -> Option<VmExit> {
        self.exit
    }

    /// Takes the exit that `entry` answers; `None` where nothing waits and `entry` is [`VmEntry::Run`].
    ///
    /// # Errors
    /// [`RunError::Mismatch`] if `entry` is no answer to what waits, which goes on waiting.
    pub fn take(&mut self, entry: VmEntry) -> Result<Option<VmExit>, RunError> {
        let fits = match self.exit {
            Some(exit) => exit.accepts(&entry),
            None => entry == VmEntry::Run,
        };
        if fits {
            Ok(self.exit.take())
        } else {
            Err(RunError::Mismatch {
                pending: self.exit,
                entry,
            })
        }
    }

    /// Forgets the exit: its instruction will never be completed. KVM has no such call; a reset needs it.
    pub const fn cancel(&mut self) {
        self.exit = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ExitReason, Gp, MsrIndex};

    const INDEX: MsrIndex = MsrIndex(0x48);
    const REASON: ExitReason = ExitReason::FILTER;

    /// Each exit that waits, with the entries that answer it.
    fn waiting() -> Vec<(VmExit, Vec<VmEntry>)> {
        let rdmsr = VmExit::Rdmsr {
            index: INDEX,
            reason: REASON,
        };
        let wrmsr = VmExit::Wrmsr {
            index: INDEX,
            value: 1,
            reason: REASON,
        };
        let io_in = VmExit::IoIn {
            port: 0x60,
            len_bytes: 1,
        };
        let io_out = VmExit::IoOut {
            port: 0x60,
            len_bytes: 1,
            value: 2,
        };
        let mmio_read = VmExit::MmioRead {
            address: 0xfee0_0000,
            len_bytes: 4,
        };
        let mmio_write = VmExit::MmioWrite {
            address: 0xfee0_0000,
            len_bytes: 4,
            value: 3,
        };
        vec![
            (
                rdmsr,
                vec![
                    VmEntry::CompleteRdmsr(Ok(5)),
                    VmEntry::CompleteRdmsr(Err(Gp)),
                ],
            ),
            (
                wrmsr,
                vec![
                    VmEntry::CompleteWrmsr(Ok(())),
                    VmEntry::CompleteWrmsr(Err(Gp)),
                ],
            ),
            (io_in, vec![VmEntry::CompleteIoIn(5)]),
            (io_out, vec![VmEntry::Run]),
            (mmio_read, vec![VmEntry::CompleteMmioRead(5)]),
            (mmio_write, vec![VmEntry::Run]),
        ]
    }

    #[test]
    fn answer_takes_the_exit_once_and_another_entry_leaves_it() {
        let cases = waiting();
        let entries: Vec<VmEntry> = cases.iter().flat_map(|(_, fits)| fits.clone()).collect();
        for (exit, fits) in cases {
            for &entry in &entries {
                let mut pending = PendingCompletion::default();
                pending.arm(exit);
                let answer = pending.take(entry);
                if fits.contains(&entry) {
                    assert_eq!(answer, Ok(Some(exit)));
                    assert_eq!(pending.exit(), None);
                } else {
                    let pending_exit = Some(exit);
                    let mismatch = RunError::Mismatch {
                        pending: pending_exit,
                        entry,
                    };
                    assert_eq!(answer, Err(mismatch));
                    assert_eq!(pending.exit(), pending_exit);
                }
            }
        }
    }

    #[test]
    fn nothing_waits_after_an_exit_between_instructions() {
        for exit in [
            VmExit::Hlt,
            VmExit::Shutdown,
            VmExit::Interrupted,
            VmExit::Debug {
                exception: 1,
                pc: 0,
            },
            VmExit::Other(9),
        ] {
            let mut pending = PendingCompletion::default();
            pending.arm(exit);
            assert_eq!(pending.exit(), None);
            assert_eq!(pending.take(VmEntry::Run), Ok(None));
            assert!(pending.take(VmEntry::CompleteIoIn(0)).is_err());
        }
    }

    #[test]
    fn cancelled_exit_needs_no_answer() {
        let mut pending = PendingCompletion::default();
        pending.arm(waiting()[0].0);
        pending.cancel();
        assert_eq!(pending.take(VmEntry::Run), Ok(None));
    }
}
