//! The processor: its registers, and the calls that start, complete and interrupt it.

use msrgate_core::{Gp, Registers, SystemRegisters};

use crate::{Bus, Stop};

/// One row of the CPUID table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the registers that CPUID reads and writes")]
pub struct CpuidLeaf {
    pub function: u32,
    /// The subleaf, or `None` where ECX does not matter.
    pub index: Option<u32>,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// What a host chooses about a processor.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// What CPUID answers; the processor fills in OSXSAVE, APIC and the like from its state.
    pub cpuid: Vec<CpuidLeaf>,
    /// UD2 followed by the bytes "kvm" is a five-byte prefix, as with `kvm.force_emulation_prefix=1`.
    pub forced_emulation_prefix: bool,
    /// Stop after each instruction (`KVM_GUESTDBG_SINGLESTEP`).
    pub single_step: bool,
    /// Stop at #BP and #DB instead of delivering them (`KVM_GUESTDBG_USE_SW_BP`, `_HW_BP`).
    pub trap_debug: bool,
}

/// An exception or interrupt that waits for delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Vector.
    pub vector: u8,
    /// Error code, for the vectors that push one.
    pub error_code: Option<u32>,
}

/// x87 and SSE state (`struct kvm_fpu`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the FXSAVE area's names; SDM vol. 1, 10.5.1")]
pub struct Fpu {
    /// ST0 to ST7 (stack order), 80 bits each, little-endian.
    pub st: [[u8; 16]; 8],
    pub fcw: u16,
    pub fsw: u16,
    /// Abridged tag word: a bit for each register that is not empty.
    pub ftw: u8,
    pub fop: u16,
    pub fip: u64,
    pub fdp: u64,
    pub xmm: [u128; 16],
    pub mxcsr: u32,
}

impl Default for Fpu {
    fn default() -> Self {
        Self {
            st: [[0; 16]; 8],
            fcw: 0x37f,
            fsw: 0,
            ftw: 0,
            fop: 0,
            fip: 0,
            fdp: 0,
            xmm: [0; 16],
            mxcsr: 0x1f80,
        }
    }
}

/// One processor.
#[derive(Debug, Default)]
pub struct Cpu {
    config: Config,
}

impl Cpu {
    /// A processor after reset (SDM vol. 3, 10.1.1).
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { config }
    }
}

// The rest of the contract (bodies to come):
//   fn run<B: Bus>(&mut self, bus: &mut B, budget: u64) -> Stop
//   fn complete_rdmsr(&mut self, Result<u64, Gp>)    fn complete_wrmsr(&mut self, Result<(), Gp>)
//   fn complete_io_in(&mut self, value: u32)         fn complete_mmio_read(&mut self, value: u64)
//   fn registers / set_registers / system_registers / set_system_registers / fpu / set_fpu / debug_registers / set_..
//   fn config(&self) -> &Config; fn config_mut(&mut self) -> &mut Config (flushes what depends on it)
//   fn pending(&self) -> Option<Exception>; fn set_pending(..): the queued exception (KVM_GET_VCPU_EVENTS)
//   fn interrupt(&mut self, vector: u8) -> bool (taken when IF and no shadow), fn can_interrupt(&self) -> bool, fn nmi(&mut self)
//   fn retired(&self) -> u64: instructions since reset
//   fn last_exception(&self) -> Option<Exception>: for the report of a triple fault
//   MSRs that are processor state: fs_base, gs_base, kernel_gs_base, star, lstar, cstar, fmask, sysenter_*, tsc_aux, efer, pat...
//      as plain pub fields of `cpu.msrs` (struct MsrState)
//   fn flush(&mut self): forget translations and decoded code (memory slots changed)
//   fn verify_code(&mut self): memory may have been written by somebody else: compare decoded code with its bytes before it runs again
