//! [`Recorder`]: where a gate's events go.

use alloc::vec::Vec;

use crate::Event;

/// Where events go. Called between two runs of a vCPU, so it must not wait.
pub trait Recorder {
    /// Whether events shall say where the instruction was: on the real KVM that is one more system call for each.
    const WANTS_RIP: bool = false;

    /// Takes one event.
    fn record(&mut self, event: &Event);
}

/// Nobody wants to know.
impl Recorder for () {
    fn record(&mut self, _event: &Event) {}
}

/// Both get every event.
impl<A: Recorder, B: Recorder> Recorder for (A, B) {
    const WANTS_RIP: bool = A::WANTS_RIP || B::WANTS_RIP;

    fn record(&mut self, event: &Event) {
        self.0.record(event);
        self.1.record(event);
    }
}

/// For what is known when the program runs.
impl<R: Recorder> Recorder for Option<R> {
    const WANTS_RIP: bool = R::WANTS_RIP;

    fn record(&mut self, event: &Event) {
        if let Some(recorder) = self {
            recorder.record(event);
        }
    }
}

/// Keeps every event: for guests that end.
impl Recorder for Vec<Event> {
    fn record(&mut self, event: &Event) {
        self.push(*event);
    }
}
