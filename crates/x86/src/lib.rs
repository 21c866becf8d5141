//! An x86-64 processor in software, for guests that must stop inside RDMSR.
//!
//! A [`Cpu`] runs guest code out of a [`Bus`] until something happens that it cannot finish alone: a
//! [`Stop`]. It is deterministic, knows nothing of KVM, and holds no guest memory of its own.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "cutting and sign-extending is what the instructions do"
)]

mod address;
mod breakpoint;
mod bus;
mod code;
mod control;
mod cpu;
mod cpuid;
mod decode;
mod descriptor;
mod exec;
mod far;
mod flags;
mod host;
mod int;
mod interrupt;
mod memory;
mod mmio;
mod op;
mod page;
mod reg;
mod run;
mod seg;
mod segment;
mod simd;
mod stack;
mod state;
mod stop;
mod tlb;
mod walk;
mod x87;

pub use bus::{Bus, PAGE_BYTES, RamPage};
pub use cpu::Cpu;
pub use cpuid::{
    AMD_COPIES, CpuidRegister, Feature, SUPPORTED_FEATURES, fixed_cpuid, supported_mask,
};
pub use host::Events;
pub use state::{Config, CpuidLeaf, DebugRegisters, Exception, Fpu, MsrState};
pub use stop::Stop;
