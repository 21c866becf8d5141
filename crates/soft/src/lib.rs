//! KVM in Rust, for machines without /dev/kvm: its semantics over the processor of `msrgate-x86`.
//!
//! * [`SoftVm`], [`SoftVcpu`]: the Rust API, core's `Vm` and `Vcpu`.
//! * [`Handle`]: the ioctls, for a client that believes it has /dev/kvm.
//! * [`SystemConfig`]: what is a module parameter or the host's nature elsewhere.
//!
//! MSR accesses go through the pipeline of Linux 6.12: privilege, filter, emulation, reason, exit or #GP. Two
//! differences are deliberate. No write has a way around the filter (Linux lets `IA32_TSC_DEADLINE` pass on some
//! hosts). And there is one rule for retiring a deflected instruction where Linux has three: its length is
//! added to RIP as it is when the answer comes, so a client that moved RIP meanwhile moves on from there.

mod api;
mod client;
mod clock;
mod cpuid;
mod ioctl;
mod memory;
mod msr;
mod plain;
mod processor;
mod run_page;
mod shared;
mod sregs;
mod turn;
mod vcpu;
mod vm;

pub use api::{Kicker, SoftVcpu, SoftVm};
pub use cpuid::CpuidSource;
pub use ioctl::{Handle, Outcome, System, VcpuDescriptor, VmDescriptor};
pub use vm::SystemConfig;
