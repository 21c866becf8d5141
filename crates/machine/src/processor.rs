//! [`Processor`]: one vCPU with its gate, and the loop that runs it until it ends.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use msrgate_core::{Gate, Recorder, Vcpu, Vm, VmEntry, VmError, VmExit};

use crate::board::{Board, Request};
use crate::end::{End, MachineError, Stopper};
use crate::meter::Count;
use crate::rules::Rulebook;

/// How long a vCPU that must wait is deaf to a [`Stopper`].
const LONGEST_NAP: Duration = Duration::from_millis(10);

/// A vCPU.
pub(crate) struct Processor<C, R> {
    pub(crate) vcpu: C,
    pub(crate) gate: Gate<R>,
    /// The edition of the rules that the gate answers by.
    pub(crate) edition: u64,
    pub(crate) exits: u64,
    pub(crate) count: Arc<Count>,
}

/// What the vCPUs of a machine have in common.
pub(crate) struct Shared<V: Vm, W: Write> {
    pub(crate) board: Arc<Mutex<Board<V, W>>>,
    pub(crate) rules: Arc<Rulebook<V>>,
    pub(crate) stopper: Stopper<<V::Vcpu as Vcpu>::Kicker>,
    /// The beginning of the time by which accesses are limited.
    pub(crate) started: Instant,
    /// RIP of a guest that took a vector which it has not set.
    pub(crate) vectors_lead_to: Option<u64>,
}

impl<C: Vcpu, R: Recorder> Processor<C, R> {
    /// Runs the guest until this vCPU ends or is stopped.
    pub(crate) fn run<V, W>(&mut self, shared: &Shared<V, W>) -> Result<End, MachineError>
    where
        V: Vm<Vcpu = C>,
        W: Write,
    {
        let mut entry = VmEntry::Run;
        loop {
            let exit = self.vcpu.run(entry)?;
            self.exits += u64::from(!matches!(exit, VmExit::Native(_)));
            if shared.rules.edition() != self.edition {
                let (gates, edition) = shared.rules.gates();
                self.gate.switch(&gates);
                self.edition = edition;
            }
            entry = match self.gate.service(&exit, &mut self.vcpu) {
                Some(answer) => {
                    self.throttle(shared);
                    answer
                }
                None => match self.device(exit, shared)? {
                    Next::Enter(entry) => entry,
                    Next::End(end) => return Ok(end),
                },
            };
        }
    }

    /// Lets others see how far this vCPU is.
    pub(crate) fn publish(&self) {
        self.count.set(self.exits, self.vcpu.retired());
    }

    /// Waits if the access just answered is one too many for its limit; no longer than until it is stopped
    /// or gets other rules.
    fn throttle<V: Vm<Vcpu = C>, W: Write>(&mut self, shared: &Shared<V, W>) {
        let now_ns = || u64::try_from(shared.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let Some(mut left) = self.gate.throttle(now_ns) else {
            return;
        };
        let is_wanted =
            || shared.stopper.cause().is_some() || shared.rules.edition() != self.edition;
        while !left.is_zero() && !is_wanted() {
            let nap = left.min(LONGEST_NAP);
            thread::sleep(nap);
            left -= nap;
        }
    }

    fn device<V, W>(&mut self, exit: VmExit, shared: &Shared<V, W>) -> Result<Next, MachineError>
    where
        V: Vm<Vcpu = C>,
        W: Write,
    {
        // Nobody panics while he holds it.
        let board = || shared.board.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(match exit {
            VmExit::IoIn { port, len_bytes } => {
                let value = board().read(port, len_bytes);
                Next::Enter(VmEntry::CompleteIoIn(value))
            }
            VmExit::IoOut {
                port,
                len_bytes,
                value,
            } => {
                let request = board().write(port, len_bytes, value)?;
                self.answer(request, &shared.rules)?
            }
            VmExit::MmioRead { .. } => Next::Enter(VmEntry::CompleteMmioRead(u64::MAX)),
            VmExit::MmioWrite { .. } => Next::Enter(VmEntry::Run),
            VmExit::Interrupted => match shared.stopper.cause() {
                Some(cause) => Next::End(End::Stopped { cause }),
                None => {
                    self.publish();
                    Next::Enter(VmEntry::Run)
                }
            },
            ended => Next::End(self.end(ended, shared.vectors_lead_to)?),
        })
    }

    fn answer<V: Vm>(
        &self,
        request: Option<Request>,
        rules: &Rulebook<V>,
    ) -> Result<Next, VmError> {
        Ok(match request {
            None => Next::Enter(VmEntry::Run),
            Some(Request::Policy(number)) => {
                rules.turn_to(number)?;
                Next::Enter(VmEntry::Run)
            }
            Some(Request::Exit(code)) => Next::End(End::Exit { code }),
            Some(Request::PowerOff) => Next::End(End::PowerOff),
            Some(Request::Reset) => Next::End(End::Reset),
            Some(Request::Panic) => Next::End(End::Panic),
        })
    }

    fn end(&self, exit: VmExit, vectors_lead_to: Option<u64>) -> Result<End, VmError> {
        const INTERRUPT_FLAG: u64 = 1 << 9;
        let registers = self.vcpu.registers()?;
        let rip = registers.rip;
        Ok(match exit {
            VmExit::Hlt if vectors_lead_to == Some(rip) => End::NoHandler,
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

enum Next {
    Enter(VmEntry),
    End(End),
}
