//! MSR filtering and deflection on the real `/dev/kvm`.
//!
//! * [`Kvm::open`]: the device, with a reason where it cannot be used.
//! * [`KvmVm`], [`KvmVcpu`]: [`msrgate_core::Vm`] and [`msrgate_core::Vcpu`].
//! * [`KvmKicker`]: makes a running vCPU come back.
//! * [`install`], [`service`]: the same policy for a VMM that runs its vCPUs itself, with `kvm-ioctls`;
//!   `examples/minimal_vmm.rs` is one.
//! * [`RunPage`], [`raw_filter`]: the same for who speaks raw ioctls.
//! * [`ignore_msrs`]: whether the host hides unknown MSRs from everybody; [`writes_before_filter`]: whether it writes
//!   what its filter denies.
//! * [`HostProcessor`]: the processor's own MSRs, for policies that say `"host"`.
//! * [`abi`]: the numbers and layouts that this crate, and who speaks raw ioctls, rely on.
//!
//! Exits come out as owned values, one element of string I/O at a time; what the kernel says is data,
//! never a reason to panic. A kernel without the two capabilities is refused by name.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

pub mod abi;
mod fd;
mod filter;
mod host;
mod kick;
mod open;
mod parameter;
pub mod register;
mod run_page;
mod string_io;
mod vcpu;
mod vm;

pub use fd::{install, service};
pub use filter::raw_filter;
pub use host::{HANDLERS, HostProcessor, handlers};
pub use kick::KvmKicker;
pub use open::{Kvm, OpenError};
pub use parameter::{ignore_msrs, writes_before_filter};
pub use run_page::{ExitRecord, RunPage};
pub use vcpu::KvmVcpu;
pub use vm::{Irqchip, KvmVm};
