//! An x86-64 processor in software, for guests that must stop inside RDMSR.
//!
//! A [`Cpu`] runs guest code out of a [`Bus`] until something happens that it cannot finish alone: a
//! [`Stop`]. It is deterministic, knows nothing of KVM, and holds no guest memory of its own.

mod bus;
mod cpu;
mod stop;

pub use bus::{Bus, RamPage};
pub use cpu::{Config, Cpu, CpuidLeaf, Exception, Fpu};
pub use stop::Stop;
