//! KVM in Rust, for machines without /dev/kvm: its semantics over the processor of `msrgate-x86`.
//!
//! * [`SoftVm`], [`SoftVcpu`]: the Rust API, core's `Vm` and `Vcpu`.
//! * [`Handle`]: the ioctls, for a client that believes it has /dev/kvm.
//! * [`client`]: that client's memory, and its signals.
//! * [`SystemConfig`]: what is a module parameter or the host's nature elsewhere.
//!
//! MSR accesses go through the pipeline of Linux 6.12: privilege, filter, emulation, reason, exit or #GP. Two
//! differences are deliberate. No write has a way around the filter (Linux lets `IA32_TSC_DEADLINE` pass on some
//! hosts). And there is one rule for retiring a deflected instruction where Linux has three: its length is
//! added to RIP as it is when the answer comes, so a client that moved RIP meanwhile moves on from there.
//!
//! ```
//! use msrgate_core::{ExitReason, ExitReasons, MsrIndex, Registers, Vcpu, Vm, VmEntry, VmExit};
//! use msrgate_soft::{SoftVm, SystemConfig};
//! use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
//!
//! let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)])?;
//! // mov ecx, 0x474f4f00; rdmsr; hlt
//! memory.write_slice(b"\x66\xb9\0\x4f\x4f\x47\x0f\x32\xf4", GuestAddress(0))?;
//! let vm = SoftVm::new(&memory, SystemConfig::default())?;
//! vm.set_exit_reasons(ExitReasons::NONE.with(ExitReason::UNKNOWN))?;
//!
//! let mut vcpu = vm.create_vcpu(0)?;
//! let mut system = vcpu.system_registers()?;
//! (system.cs.base, system.cs.selector) = (0, 0);
//! vcpu.set_system_registers(&system)?;
//! vcpu.set_registers(&Registers { rflags: 2, ..Registers::default() })?;
//!
//! let index = MsrIndex(0x474f_4f00);
//! let stop = VmExit::Rdmsr { index, reason: ExitReason::UNKNOWN };
//! assert_eq!(vcpu.run(VmEntry::Run)?, stop);
//! assert_eq!(vcpu.run(VmEntry::CompleteRdmsr(Ok(0x1_0000_0042)))?, VmExit::Hlt);
//! let registers = vcpu.registers()?;
//! assert_eq!((registers.rdx, registers.rax), (1, 0x42));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod api;
pub mod client;
mod clock;
mod cpuid;
mod eventfd;
mod ioctl;
mod ioeventfd;
mod irq;
mod kvmclock;
mod memory;
mod msr;
mod plain;
mod processor;
mod pv;
mod random;
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
