//! The parts of a processor's state that are plain data: what a host chooses, what it saves and restores.

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
    /// Stop at #BP instead of delivering it (`KVM_GUESTDBG_USE_SW_BP`).
    pub trap_breakpoint: bool,
    /// Stop at #DB instead of delivering it (`KVM_GUESTDBG_USE_HW_BP`).
    pub trap_debug: bool,
    /// In force in place of the guest's debug registers; of DR6 nothing is used.
    pub breakpoints: Option<DebugRegisters>,
}

/// An exception or interrupt that waits for delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Vector.
    pub vector: u8,
    /// Error code, for the vectors that push one.
    pub error_code: Option<u32>,
}

/// The MSRs that are processor state and nothing else. FS and GS bases are those of the segments; EFER is
/// with the control registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the MSRs' names")]
pub struct MsrState {
    pub kernel_gs_base: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    /// IA32_FMASK (SYSCALL_MASK).
    pub fmask: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub tsc_aux: u64,
    pub pat: u64,
    pub xss: u64,
    pub apic_base: u64,
}

impl Default for MsrState {
    fn default() -> Self {
        Self {
            kernel_gs_base: 0,
            star: 0,
            lstar: 0,
            cstar: 0,
            fmask: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            tsc_aux: 0,
            pat: 0x0007_0406_0007_0406,
            xss: 0,
            apic_base: 0xfee0_0900,
        }
    }
}

/// DR0 to DR3, DR6 and DR7 (`struct kvm_debugregs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the manuals' register names")]
pub struct DebugRegisters {
    pub db: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
}

impl Default for DebugRegisters {
    fn default() -> Self {
        Self {
            db: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
        }
    }
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
