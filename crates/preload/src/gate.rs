//! A policy between a program and KVM: [`VmGate`] where the program sets up its VM, [`VcpuGate`] where it runs.
//!
//! Nothing here knows how the program's calls arrive, or holds a descriptor.

mod signal_mask;
mod vcpu;
mod vm;

pub(crate) use vcpu::{Next, VcpuGate};
pub(crate) use vm::VmGate;
