//! [`Machine`]: a board with its vCPUs, each of which runs on a thread.

use std::fmt;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use msrgate_core::{MsrHandler, Recorder, Unimplemented, Vcpu, VcpuId, Vm, VmError};

use crate::board::Board;
use crate::end::{End, MachineError, StopCause, Stopper};
use crate::guest::Loaded;
use crate::meter::{Count, Meter};
use crate::processor::{Processor, Shared};
use crate::rules::{Reloader, Rulebook, Rules};

/// A VM with its vCPUs and devices.
pub struct Machine<V: Vm, R, W: Write> {
    shared: Shared<V, W>,
    processors: Vec<Processor<V::Vcpu, R>>,
    meter: Meter<<V::Vcpu as Vcpu>::Kicker>,
}

impl<V, R, W> Machine<V, R, W>
where
    V: Vm,
    R: Recorder,
    W: Write,
{
    /// Makes a vCPU for each of `recorders`, puts the first one where `guest` starts (others wait until it starts
    /// them), and the first of `policies` into force. The guest can ask for another one by its number; one that does
    /// not exist changes nothing.
    ///
    /// # Errors
    /// The backend refuses something.
    pub fn new(
        vm: V,
        guest: &Loaded,
        policies: Vec<Rules>,
        recorders: Vec<R>,
        console: W,
    ) -> Result<Self, VmError> {
        let vm = Arc::new(vm);
        let rules = Rulebook::new(Arc::clone(&vm), policies)?;
        let (gates, edition) = rules.gates();
        let mut processors = Vec::new();
        for (id, recorder) in (0..).zip(recorders) {
            let mut vcpu = vm.create_vcpu(id)?;
            guest.prepare(&mut vcpu)?;
            if id == 0 {
                guest.start(&mut vcpu)?;
            }
            processors.push(Processor {
                vcpu,
                gate: gates.gate(VcpuId(id), recorder),
                edition,
                exits: 0,
                count: Arc::new(Count::default()),
            });
        }
        let kickers: Arc<[_]> = processors.iter().map(|it| it.vcpu.kicker()).collect();
        let meter = Meter {
            counts: processors.iter().map(|it| Arc::clone(&it.count)).collect(),
            kickers: Arc::clone(&kickers),
        };
        Ok(Self {
            shared: Shared {
                board: Arc::new(Mutex::new(Board::new(vm, console))),
                rules: Arc::new(rules),
                stopper: Stopper::new(kickers),
                started: Instant::now(),
                vectors_lead_to: guest.vectors_lead_to(),
            },
            processors,
            meter,
        })
    }

    /// Answers with these where a policy names a handler.
    #[must_use]
    pub fn with_handlers(mut self, handlers: Arc<[Arc<dyn MsrHandler>]>) -> Self {
        self.shared.rules.set_handlers(handlers);
        let (gates, _) = self.shared.rules.gates();
        for processor in &mut self.processors {
            processor.gate.switch(&gates);
        }
        self
    }

    /// Records what the backend does by itself too.
    ///
    /// # Errors
    /// The backend cannot tell.
    pub fn observe_msrs(&mut self) -> Result<(), VmError> {
        let mut vcpus = self.processors.iter_mut().map(|it| &mut it.vcpu);
        vcpus.try_for_each(Vcpu::observe_msrs)
    }

    /// Ends [`Machine::run`] from another thread.
    pub fn stopper(&self) -> Stopper<<V::Vcpu as Vcpu>::Kicker> {
        self.shared.stopper.clone()
    }

    /// Replaces the policies from another thread while [`Machine::run`] runs.
    pub fn reloader(&self) -> Reloader<V> {
        Reloader::new(&self.shared.rules)
    }

    /// Types on the console from another thread.
    pub fn keyboard(&self) -> Keyboard<V, W> {
        Keyboard {
            board: Arc::clone(&self.shared.board),
        }
    }

    /// Tells another thread how far the guest is.
    pub fn meter(&self) -> Meter<<V::Vcpu as Vcpu>::Kicker> {
        self.meter.clone()
    }

    /// How often the guest was left.
    pub fn exits(&self) -> u64 {
        self.processors.iter().map(|it| it.exits).sum()
    }

    /// How often a vCPU had to wait because of a rule's limit.
    pub fn throttled(&self) -> u64 {
        self.processors.iter().map(|it| it.gate.throttled()).sum()
    }

    /// Instructions of the guest, where the backend counts them.
    pub fn instructions(&self) -> Option<u64> {
        self.processors.iter().map(|it| it.vcpu.retired()).sum()
    }

    /// Instructions that the guest ran and the backend does not have, each as often as by all vCPUs.
    pub fn unimplemented(&self) -> Vec<Unimplemented> {
        let mut all: Vec<Unimplemented> = Vec::new();
        for met in self
            .processors
            .iter()
            .flat_map(|it| it.vcpu.unimplemented())
        {
            match all.iter_mut().find(|it| it.bytes == met.bytes) {
                Some(same) => same.count = same.count.saturating_add(met.count),
                None => all.push(met),
            }
        }
        all
    }

    /// Gives back where the events of each vCPU went.
    pub fn into_recorders(self) -> Vec<R> {
        let gates = self.processors.into_iter().map(|it| it.gate);
        gates.map(|gate| gate.into_recorder()).collect()
    }
}

impl<V, R, W> Machine<V, R, W>
where
    V: Vm + Send + Sync,
    V::Vcpu: Send,
    R: Recorder + Send,
    W: Write + Send,
{
    /// Runs the guest until a vCPU ends, or it is stopped.
    ///
    /// # Errors
    /// The backend or the console failed.
    pub fn run(&mut self) -> Result<End, MachineError> {
        let shared = &self.shared;
        let first_end = Mutex::new(None);
        let run = |processor: &mut Processor<V::Vcpu, R>| {
            let end = processor.run(shared);
            processor.publish();
            first_end
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get_or_insert(end);
            shared.stopper.stop(StopCause::Company);
        };
        thread::scope(|scope| {
            let Some((first, others)) = self.processors.split_first_mut() else {
                return Ok(());
            };
            for (id, processor) in (1..).zip(others) {
                let thread = thread::Builder::new().name(format!("vcpu {id}"));
                let started = thread.spawn_scoped(scope, || run(processor));
                if let Err(error) = started {
                    shared.stopper.stop(StopCause::Company);
                    return Err(MachineError::Thread(error));
                }
            }
            run(first);
            Ok(())
        })?;
        let end = first_end
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        // A machine without vCPUs has nothing to do.
        end.unwrap_or(Ok(End::Halted { waits: false }))
    }
}

impl<V: Vm, R, W: Write> fmt::Debug for Machine<V, R, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("vcpus", &self.processors.len())
            .finish_non_exhaustive()
    }
}

/// Types on a machine's console.
pub struct Keyboard<V: Vm, W: Write> {
    board: Arc<Mutex<Board<V, W>>>,
}

impl<V: Vm, W: Write> Keyboard<V, W> {
    /// Says for how many of the bytes there was room; the guest has to read before there is more.
    pub fn type_bytes(&self, bytes: &[u8]) -> usize {
        let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        board.type_bytes(bytes)
    }
}

impl<V: Vm, W: Write> fmt::Debug for Keyboard<V, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyboard").finish_non_exhaustive()
    }
}
