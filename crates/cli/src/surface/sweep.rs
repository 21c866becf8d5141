//! Trying all MSRs of some windows, one after another: [`sweep`].
//!
//! Reads come first, so that no write changes what is read. An access that the VM does not survive costs a new
//! VM, and one from which it does not come back is given up after some seconds.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::ProgressBar;
use msrgate_core::{Access, Kick, MsrIndex, Vcpu, Vm};
use msrgate_machine::{Probe, ProbeError, Seen};
use msrgate_policy::{SurfaceMsr, Tried, Window};

/// A probe on whichever backend.
pub(super) trait Prober {
    /// Tries one access.
    fn access(&mut self, access: Access, index: MsrIndex, value: u64) -> Result<Seen, ProbeError>;

    /// What interrupts it from another thread.
    fn kicker(&mut self) -> Kicker;
}

/// Interrupts a probe.
pub(super) type Kicker = Box<dyn Fn() + Send>;

impl<V: Vm> Prober for Probe<V>
where
    <V::Vcpu as Vcpu>::Kicker: 'static,
{
    fn access(&mut self, access: Access, index: MsrIndex, value: u64) -> Result<Seen, ProbeError> {
        match access {
            Access::Read => self.rdmsr(index),
            Access::Write => self.wrmsr(index, value),
        }
    }

    fn kicker(&mut self) -> Kicker {
        let kicker = self.vcpu().kicker();
        Box::new(move || kicker.kick())
    }
}

/// Whether to try writes too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writes {
    /// Reads only.
    No,
    /// What was read is written back.
    SameValue,
}

/// Writes that do more than to set a register, although the value is the one that was read.
const NOT_WRITTEN: [(MsrIndex, &str); 10] = [
    (MsrIndex(0x79), "loads microcode"),
    (MsrIndex(0x80b), "ends an interrupt"),
    (MsrIndex(0x830), "sends an interrupt"),
    (MsrIndex(0x838), "starts the APIC's timer"),
    (MsrIndex(0x83f), "sends an interrupt"),
    (MsrIndex(0x4000_0003), "resets the VM"),
    (MsrIndex(0x4000_0070), "ends an interrupt"),
    (MsrIndex(0x4000_0071), "sends an interrupt"),
    (MsrIndex(0x4000_0084), "ends a message"),
    (MsrIndex(0x4000_0105), "reports a crash of the guest"),
];

/// Tries the MSRs of `windows` on probes from `make`. What is unknown is left out.
pub(super) fn sweep(
    windows: &[Window],
    writes: Writes,
    progress: &ProgressBar,
    make: impl Fn() -> anyhow::Result<Box<dyn Prober>>,
) -> anyhow::Result<Vec<SurfaceMsr>> {
    let mut sweep = Sweep::new(make)?;
    let mut msrs = Vec::new();
    for window in windows {
        for index in (window.first.0..=window.last.0).map(MsrIndex) {
            if index.0 % PROGRESS_STEP == 0 {
                progress.inc(PROGRESS_STEP.into());
            }
            let (read, value) = sweep.access(Access::Read, index, 0)?;
            if read != Tried::Unknown {
                msrs.push(SurfaceMsr::new(index, read, value));
            }
        }
    }
    for msr in msrs.iter_mut().filter(|msr| msr.value.is_some()) {
        msr.volatile = sweep.access(Access::Read, msr.index, 0)?.1 != msr.value;
    }
    if writes == Writes::SameValue {
        for msr in &mut msrs {
            sweep.write_back(msr)?;
        }
    }
    Ok(msrs)
}

/// Progress is shown after so many MSRs.
const PROGRESS_STEP: u32 = 64;

/// A probe, and how to get the next one.
struct Sweep<M> {
    probe: Box<dyn Prober>,
    watchdog: Watchdog,
    make: M,
}

impl<M: Fn() -> anyhow::Result<Box<dyn Prober>>> Sweep<M> {
    fn new(make: M) -> anyhow::Result<Self> {
        let mut probe = make()?;
        let watchdog = Watchdog::new(probe.kicker());
        check(&mut *probe)?;
        Ok(Self {
            probe,
            watchdog,
            make,
        })
    }

    /// What came of an access, and what it read.
    fn access(
        &mut self,
        access: Access,
        index: MsrIndex,
        value: u64,
    ) -> anyhow::Result<(Tried, Option<u64>)> {
        Ok(match self.probe.access(access, index, value) {
            Ok(Seen::Value(value)) => (Tried::Done, Some(value)),
            Ok(Seen::Done) => (Tried::Done, None),
            Ok(Seen::Gp) => (Tried::Gp, None),
            Ok(Seen::Refused(reason)) => (reason.into(), None),
            Err(error) => {
                self.probe = (self.make)()
                    .with_context(|| format!("after {} {index}: {error}", access.instruction()))?;
                self.watchdog.watch(self.probe.kicker());
                check(&mut *self.probe)?;
                (Tried::Failed, None)
            }
        })
    }

    /// Writes what the MSR reads now.
    fn write_back(&mut self, msr: &mut SurfaceMsr) -> anyhow::Result<()> {
        let index = msr.index;
        if msr.value.is_none() {
            return Ok(());
        }
        if let Some((_, why)) = NOT_WRITTEN.iter().find(|row| row.0 == index) {
            msr.not_written = Some((*why).to_owned());
            return Ok(());
        }
        if let (_, Some(value)) = self.access(Access::Read, index, 0)? {
            msr.write = Some(self.access(Access::Write, index, value)?.0);
        }
        Ok(())
    }
}

/// A guest that cannot read the register that says which mode it is in does not run.
fn check(probe: &mut dyn Prober) -> anyhow::Result<()> {
    const EFER: MsrIndex = MsrIndex(0xc000_0080);
    match probe
        .access(Access::Read, EFER, 0)
        .context("the probe guest does not run")?
    {
        Seen::Value(_) => Ok(()),
        seen => bail!("the probe guest does not run: it reads EFER and sees {seen:?}"),
    }
}

/// Interrupts the probe now and then, so that it can see that an access takes too long.
struct Watchdog {
    kicker: Arc<Mutex<Kicker>>,
    _stop: Sender<()>,
}

impl Watchdog {
    const PERIOD: Duration = Duration::from_secs(1);

    fn new(kicker: Kicker) -> Self {
        let kicker = Arc::new(Mutex::new(kicker));
        let (stop, stopped) = mpsc::channel();
        let watched = Arc::clone(&kicker);
        thread::spawn(move || {
            while stopped.recv_timeout(Self::PERIOD) == Err(RecvTimeoutError::Timeout) {
                watched.lock().unwrap_or_else(PoisonError::into_inner)();
            }
        });
        Self {
            kicker,
            _stop: stop,
        }
    }

    fn watch(&self, kicker: Kicker) {
        *self.kicker.lock().unwrap_or_else(PoisonError::into_inner) = kicker;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use msrgate_core::{ExitReason, VmExit};

    use super::*;

    /// A VM in which some MSRs have ways of their own.
    struct Fake {
        reads: u64,
        is_over: bool,
    }

    impl Prober for Fake {
        fn access(
            &mut self,
            access: Access,
            index: MsrIndex,
            value: u64,
        ) -> Result<Seen, ProbeError> {
            assert!(!self.is_over, "a VM that ended is not used again");
            self.reads += 1;
            match (access, index.0) {
                (Access::Read, 0x10) => Ok(Seen::Value(self.reads)),
                (Access::Read, 0x11 | 0x79 | 0xc000_0080) => Ok(Seen::Value(0x500)),
                (Access::Read, 0x12) => Ok(Seen::Gp),
                (Access::Read, 0x13) => Ok(Seen::Refused(ExitReason::INVAL)),
                (Access::Read, 0x14) | (Access::Write, 0x11) => {
                    self.is_over = true;
                    Err(ProbeError::Ended {
                        exit: VmExit::Shutdown,
                    })
                }
                (Access::Write, 0x10) => {
                    assert_eq!(value, self.reads - 1, "what was read just now is written");
                    Ok(Seen::Done)
                }
                (Access::Write, index) => panic!("{index:#x} is written"),
                _ => Ok(Seen::Refused(ExitReason::UNKNOWN)),
            }
        }

        fn kicker(&mut self) -> Kicker {
            Box::new(|| {})
        }
    }

    fn window(first: u32, last: u32) -> Window {
        Window {
            first: MsrIndex(first),
            last: MsrIndex(last),
        }
    }

    fn run(writes: Writes, made: &Cell<u32>) -> Vec<SurfaceMsr> {
        let windows = [window(0x10, 0x16), window(0x79, 0x79)];
        sweep(&windows, writes, &ProgressBar::hidden(), || {
            made.set(made.get() + 1);
            Ok(Box::new(Fake {
                reads: 0,
                is_over: false,
            }))
        })
        .unwrap()
    }

    #[test]
    fn reads_are_told_by_their_outcome() {
        let made = Cell::new(0);
        let msrs = run(Writes::No, &made);
        let told: Vec<_> = msrs
            .iter()
            .map(|msr| (msr.index.0, msr.read, msr.volatile))
            .collect();
        assert_eq!(
            told,
            [
                (0x10, Tried::Done, true),
                (0x11, Tried::Done, false),
                (0x12, Tried::Gp, false),
                (0x13, Tried::Invalid, false),
                (0x14, Tried::Failed, false),
                (0x79, Tried::Done, false),
            ]
        );
        assert!(
            msrs.iter()
                .all(|msr| msr.write.is_none() && msr.not_written.is_none())
        );
        assert_eq!(made.get(), 2, "one ended");
    }

    #[test]
    fn what_was_read_is_written_back_but_for_what_does_more() {
        let made = Cell::new(0);
        let msrs = run(Writes::SameValue, &made);
        let writes: Vec<_> = msrs.iter().map(|msr| msr.write).collect();
        let expected = [
            Some(Tried::Done),
            Some(Tried::Failed),
            None,
            None,
            None,
            None,
        ];
        assert_eq!(writes, expected);
        assert_eq!(msrs[5].not_written.as_deref(), Some("loads microcode"));
        assert_eq!(made.get(), 3, "two ended");
    }

    #[test]
    fn document_lists_what_is_not_written() {
        let document = include_str!("../../../../docs/surface.md");
        for (index, why) in NOT_WRITTEN {
            let index = index.to_string();
            let row = document
                .lines()
                .find(|row| row.contains(&index) && row.ends_with(&format!("| {why} |")));
            assert!(row.is_some(), "{index} {why}");
        }
    }

    #[test]
    fn guest_that_does_not_run_is_told() {
        struct Dead;
        impl Prober for Dead {
            fn access(&mut self, _: Access, _: MsrIndex, _: u64) -> Result<Seen, ProbeError> {
                Err(ProbeError::Ended {
                    exit: VmExit::Failed { code: 1 },
                })
            }
            fn kicker(&mut self) -> Kicker {
                Box::new(|| {})
            }
        }
        let windows = [window(0, 0xffff_ffff)];
        let result = sweep(&windows, Writes::No, &ProgressBar::hidden(), || {
            Ok(Box::new(Dead))
        });
        assert_eq!(
            format!("{:#}", result.unwrap_err()),
            "the probe guest does not run: the guest ended: Failed { code: 1 }"
        );
    }
}
