//! [`Machine`]: one vCPU on its board, and the loop that runs it until it ends.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use msrgate_core::{
    Exception, ExitReasons, Gate, Image, Kick, MsrFilter, MsrHandler, Recorder, RunError, Vcpu,
    VcpuId, Vm, VmEntry, VmError, VmExit,
};

use crate::board::{Board, Request};
use crate::guest::Guest;
use crate::reload::{Mailbox, Reloader};

/// What a VM and its gate need of a policy.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The answers.
    pub image: Arc<Image>,
    /// What leaves the guest although KVM could do it.
    pub filter: MsrFilter,
    /// What leaves the guest rather than being #GP.
    pub reasons: ExitReasons,
}

/// How long a vCPU that must wait is deaf to a [`Stopper`].
const LONGEST_NAP: Duration = Duration::from_millis(10);

/// A VM with one vCPU and its devices.
pub struct Machine<V: Vm, R, W: Write> {
    vm: V,
    vcpu: V::Vcpu,
    gate: Gate<R>,
    board: Board<W>,
    policies: Vec<Rules>,
    stop: Arc<AtomicU8>,
    reload: Arc<Mailbox>,
    exits: u64,
    /// The beginning of the time by which accesses are limited.
    started: Instant,
    /// RIP of a guest that took a vector which it has not set.
    vectors_lead_to: Option<u64>,
}

impl<V: Vm, R: Recorder, W: Write> Machine<V, R, W> {
    /// Makes the vCPU, puts it where `guest` starts, and the first of `policies` into force. The guest can
    /// ask for another one by its number; one that does not exist changes nothing.
    ///
    /// # Errors
    /// The backend refuses something.
    pub fn new(
        vm: V,
        guest: &Guest,
        policies: Vec<Rules>,
        recorder: R,
        console: W,
    ) -> Result<Self, VmError> {
        let mut vcpu = vm.create_vcpu(0)?;
        guest.start(&mut vcpu)?;
        let image = match policies.first() {
            Some(rules) => {
                vm.set_exit_reasons(rules.reasons)?;
                vm.set_msr_filter(&rules.filter)?;
                Arc::clone(&rules.image)
            }
            None => Arc::new(Image::new(msrgate_core::Defaults::ALLOW)),
        };
        Ok(Self {
            vm,
            vcpu,
            gate: Gate::new(VcpuId(0), image, recorder),
            board: Board::new(console),
            policies,
            stop: Arc::default(),
            reload: Arc::default(),
            exits: 0,
            started: Instant::now(),
            vectors_lead_to: guest.vectors_lead_to(),
        })
    }

    /// Answers with these where a policy names a handler.
    #[must_use]
    pub fn with_handlers(self, handlers: Arc<[Arc<dyn MsrHandler>]>) -> Self {
        Self {
            gate: self.gate.with_handlers(handlers),
            ..self
        }
    }

    /// Records what the backend does by itself too.
    ///
    /// # Errors
    /// The backend cannot tell.
    pub fn observe_msrs(&mut self) -> Result<(), VmError> {
        self.vcpu.observe_msrs()
    }

    /// Ends [`Machine::run`] from another thread.
    pub fn stopper(&self) -> Stopper<<V::Vcpu as Vcpu>::Kicker> {
        Stopper {
            cause: Arc::clone(&self.stop),
            kicker: self.vcpu.kicker(),
        }
    }

    /// Replaces the policies from another thread while [`Machine::run`] runs.
    pub fn reloader(&self) -> Reloader<<V::Vcpu as Vcpu>::Kicker> {
        Reloader::new(&self.reload, self.vcpu.kicker())
    }

    /// Runs the guest until it ends or is stopped.
    ///
    /// # Errors
    /// The backend or the console failed.
    pub fn run(&mut self) -> Result<End, MachineError> {
        let mut entry = VmEntry::Run;
        loop {
            let exit = self.vcpu.run(entry)?;
            self.exits += u64::from(!matches!(exit, VmExit::Native(_)));
            entry = match self.gate.service(&exit, &mut self.vcpu) {
                Some(answer) => {
                    self.throttle();
                    answer
                }
                None => match self.device(exit)? {
                    Next::Enter(entry) => entry,
                    Next::End(end) => return Ok(end),
                },
            };
        }
    }

    /// How often the guest was left.
    pub fn exits(&self) -> u64 {
        self.exits
    }

    /// How often the vCPU had to wait because of a rule's limit.
    pub fn throttled(&self) -> u64 {
        self.gate.throttled()
    }

    /// Instructions of the guest, where the backend counts them.
    pub fn instructions(&self) -> Option<u64> {
        self.vcpu.retired()
    }

    /// Gives back where the events went.
    pub fn into_recorder(self) -> R {
        self.gate.into_recorder()
    }

    /// Waits if the access just answered is one too many for its limit; no longer than until it is stopped
    /// or gets other rules.
    fn throttle(&mut self) {
        let now_ns = || u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let Some(mut left) = self.gate.throttle(now_ns) else {
            return;
        };
        let is_wanted = || self.stop.load(Ordering::SeqCst) != 0 || self.reload.is_full();
        while !left.is_zero() && !is_wanted() {
            let nap = left.min(LONGEST_NAP);
            thread::sleep(nap);
            left -= nap;
        }
    }

    fn device(&mut self, exit: VmExit) -> Result<Next, MachineError> {
        Ok(match exit {
            VmExit::IoIn { port, len_bytes } => {
                Next::Enter(VmEntry::CompleteIoIn(self.board.read(port, len_bytes)))
            }
            VmExit::IoOut {
                port,
                len_bytes,
                value,
            } => match self.board.write(port, len_bytes, value)? {
                Some(Request::Exit(code)) => Next::End(End::Exit { code }),
                Some(Request::Policy(number)) => {
                    self.install(number)?;
                    Next::Enter(VmEntry::Run)
                }
                None => Next::Enter(VmEntry::Run),
            },
            VmExit::MmioRead { .. } => Next::Enter(VmEntry::CompleteMmioRead(u64::MAX)),
            VmExit::MmioWrite { .. } => Next::Enter(VmEntry::Run),
            VmExit::Interrupted => match StopCause::from_code(self.stop.load(Ordering::SeqCst)) {
                Some(cause) => Next::End(End::Stopped { cause }),
                None => {
                    self.reload();
                    Next::Enter(VmEntry::Run)
                }
            },
            ended => Next::End(self.end(ended)?),
        })
    }

    fn install(&mut self, number: u8) -> Result<(), VmError> {
        match self.policies.get(usize::from(number)) {
            Some(rules) => put_into_force(rules, &self.vm, &mut self.gate),
            None => Ok(()),
        }
    }

    /// Does what a [`Reloader`] asks, if one does. Refused rules leave the guest under the old ones.
    fn reload(&mut self) {
        let Some(request) = self.reload.take() else {
            return;
        };
        let done = put_into_force(&request.rules, &self.vm, &mut self.gate);
        if done.is_ok() {
            self.policies = vec![request.rules];
        }
        // Who asked may have stopped waiting.
        let _ = request.answer.send(done);
    }

    fn end(&self, exit: VmExit) -> Result<End, VmError> {
        const INTERRUPT_FLAG: u64 = 1 << 9;
        let registers = self.vcpu.registers()?;
        let rip = registers.rip;
        Ok(match exit {
            VmExit::Hlt if self.vectors_lead_to == Some(rip) => End::NoHandler,
            VmExit::Hlt => End::Halted {
                waits: registers.rflags & INTERRUPT_FLAG != 0,
            },
            VmExit::Shutdown => End::TripleFault {
                rip,
                exception: self.vcpu.last_exception(),
            },
            exit => End::Failed { rip, exit },
        })
    }
}

fn put_into_force<R: Recorder>(
    rules: &Rules,
    vm: &impl Vm,
    gate: &mut Gate<R>,
) -> Result<(), VmError> {
    // All reasons first: what the old filter denies must not be #GP in between.
    vm.set_exit_reasons(ExitReasons::ALL)?;
    vm.set_msr_filter(&rules.filter)?;
    vm.set_exit_reasons(rules.reasons)?;
    gate.set_image(Arc::clone(&rules.image));
    Ok(())
}

impl<V: Vm, R, W: Write> fmt::Debug for Machine<V, R, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("exits", &self.exits)
            .finish_non_exhaustive()
    }
}

enum Next {
    Enter(VmEntry),
    End(End),
}

/// How a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// It wrote this to the exit port.
    Exit {
        /// What it wrote.
        code: u8,
    },
    /// HLT.
    Halted {
        /// Interrupts were on, but no device here raises one.
        waits: bool,
    },
    /// A real-mode guest called the BIOS, which is not there, or met an exception without a handler.
    NoHandler,
    /// A fault while a double fault was being delivered.
    TripleFault {
        /// RIP of the vCPU after it.
        rip: u64,
        /// What began it or came of it, where the backend knows.
        exception: Option<Exception>,
    },
    /// [`Stopper::stop`].
    Stopped {
        /// Who asked.
        cause: StopCause,
    },
    /// The backend could not go on, or left the guest for something that this board has not.
    Failed {
        /// RIP of the vCPU.
        rip: u64,
        /// What it said.
        exit: VmExit,
    },
}

/// Why a guest was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopCause {
    /// The user asked.
    Interrupt = 1,
    /// It took longer than it may.
    TimeLimit = 2,
}

impl StopCause {
    fn from_code(code: u8) -> Option<Self> {
        [Self::Interrupt, Self::TimeLimit]
            .into_iter()
            .find(|&cause| cause as u8 == code)
    }
}

/// Ends a machine's run from another thread.
#[derive(Clone, Debug)]
pub struct Stopper<K> {
    cause: Arc<AtomicU8>,
    kicker: K,
}

impl<K: Kick> Stopper<K> {
    /// Stops the guest; the first cause counts.
    pub fn stop(&self, cause: StopCause) {
        let _ = self
            .cause
            .compare_exchange(0, cause as u8, Ordering::SeqCst, Ordering::SeqCst);
        self.kicker.kick();
    }
}

/// Why a machine cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// The vCPU.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The VM.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The guest's output cannot be written.
    #[error("cannot write the guest's console")]
    Console(#[from] io::Error),
}
