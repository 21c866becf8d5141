//! An x86-64 processor in software, for guests that must stop inside RDMSR.
//!
//! A [`Cpu`] runs guest code out of a [`Bus`] until something happens that it cannot finish alone: a
//! [`Stop`]. It is deterministic, knows nothing of KVM, and holds no guest memory of its own.

mod bus;
mod control;
mod cpu;
mod cpuid;
mod stop;
mod walk;

pub use bus::{Bus, RamPage};
pub use cpu::{Config, Cpu, CpuidLeaf, Exception, Fpu};
pub use cpuid::{
    AMD_COPIES, CpuidRegister, Feature, SUPPORTED_FEATURES, fixed_cpuid, supported_mask,
};
pub use stop::Stop;
