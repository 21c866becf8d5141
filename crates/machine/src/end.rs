//! How a run ends: [`End`], and [`Stopper`], with which another thread ends it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use msrgate_core::{Exception, Kick, RunError, VmError, VmExit};

/// How a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// It wrote this to the exit port.
    Exit {
        /// What it wrote.
        code: u8,
    },
    /// It switched the machine off.
    PowerOff,
    /// It asked for a reset.
    Reset,
    /// Its kernel panicked, by what it wrote to its console.
    Panic,
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
    /// Another vCPU has ended.
    Company = 3,
}

impl StopCause {
    fn from_code(code: u8) -> Option<Self> {
        [Self::Interrupt, Self::TimeLimit, Self::Company]
            .into_iter()
            .find(|&cause| cause as u8 == code)
    }
}

/// Ends a machine's run from another thread.
#[derive(Clone, Debug)]
pub struct Stopper<K> {
    cause: Arc<AtomicU8>,
    kickers: Arc<[K]>,
}

impl<K: Kick> Stopper<K> {
    pub(crate) fn new(kickers: Arc<[K]>) -> Self {
        let cause = Arc::default();
        Self { cause, kickers }
    }

    /// Stops the guest; the first cause counts.
    pub fn stop(&self, cause: StopCause) {
        let _ = self
            .cause
            .compare_exchange(0, cause as u8, Ordering::SeqCst, Ordering::SeqCst);
        self.kickers.iter().for_each(Kick::kick);
    }

    /// Why the guest is to stop, if it is.
    pub fn cause(&self) -> Option<StopCause> {
        StopCause::from_code(self.cause.load(Ordering::SeqCst))
    }
}

/// Why a machine cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// A vCPU.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The VM.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The guest's output cannot be written.
    #[error("cannot write the guest's console")]
    Console(#[from] io::Error),
    /// The host has no thread for a vCPU.
    #[error("cannot start the thread of a vCPU")]
    Thread(#[source] io::Error),
}
