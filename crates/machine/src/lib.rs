//! The board that `msrgate run` boots, over any backend that has core's `Vm` and `Vcpu`.
//!
//! * [`Guest`]: a Linux kernel, an ELF64 executable, a flat binary, or the built-in [`tour`], put into guest memory.
//! * [`Machine`]: vCPUs, a serial console, power, and the loop that lets gates answer.
//! * [`Stopper`], [`Keyboard`], [`Meter`], [`Reloader`]: end the loop, type on the console, look at the counts, and
//!   replace the policies, each from another thread.
//! * [`Probe`]: another guest, which tries one MSR access at a time.
//!
//! Interrupt controllers and timers are the backend's; there is no disk and no network.
#![forbid(unsafe_code)]

mod board;
mod end;
mod guest;
mod linux;
mod long_mode;
mod machine;
mod meter;
mod probe;
mod processor;
mod program;
mod real_mode;
mod rules;
mod screen;
mod suitable;
pub mod tour;

pub use board::{EXIT_PORT, POLICY_PORT, SERIAL_GSI, SERIAL_PORT};
pub use end::{End, MachineError, StopCause, Stopper};
pub use guest::{Guest, LoadError, Loaded, MemoryError, guest_memory};
pub use linux::{Boot, LinuxError, MAX_CPUS};
pub use machine::{Keyboard, Machine};
pub use meter::{Meter, Reading};
pub use probe::{GuestSaw, Probe, ProbeError, Seen};
pub use rules::{Reloader, Rules};
pub use suitable::{TrialError, unsuitable_for_linux};
