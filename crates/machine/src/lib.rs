//! The board that `msrgate run` boots, over any backend that has core's `Vm` and `Vcpu`.
//!
//! * [`Guest`]: an ELF64 executable, a flat binary, or the built-in [`tour`], put into guest memory.
//! * [`Machine`]: one vCPU, a serial console, an exit port, and the loop that lets a gate answer.
//! * [`Stopper`]: ends the loop from another thread.
//! * [`Reloader`]: replaces its policies from another thread.
//! * [`Probe`]: another guest, which tries one MSR access at a time.
//!
//! There is no interrupt controller, no timer and no disk.
#![forbid(unsafe_code)]

mod board;
mod guest;
mod long_mode;
mod machine;
mod probe;
mod program;
mod real_mode;
mod reload;
pub mod tour;

pub use board::{EXIT_PORT, POLICY_PORT, SERIAL_PORT};
pub use guest::{Guest, LoadError, MemoryError, guest_memory};
pub use machine::{End, Machine, MachineError, Rules, StopCause, Stopper};
pub use probe::{GuestSaw, Probe, ProbeError, Seen};
pub use reload::Reloader;
