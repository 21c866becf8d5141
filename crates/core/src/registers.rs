//! The registers that a host sets before it runs a vCPU and reads after.
//!
//! The fields are those of `kvm_regs` and `kvm_sregs`; the APIC and the FPU are not here.

/// General-purpose registers, RIP and RFLAGS (`struct kvm_regs`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the manuals' register names")]
pub struct Registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

/// A segment register with its hidden part (`struct kvm_segment`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "kvm_segment's field names; SDM vol. 3, 3.4.5")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are the descriptor's bits"
)]
pub struct Segment {
    pub base: u64,
    /// Last offset, in bytes (granularity already applied).
    pub limit: u32,
    pub selector: u16,
    /// The 4-bit type.
    pub type_: u8,
    pub present: bool,
    pub dpl: u8,
    /// D/B: 32-bit code, or a 32-bit stack.
    pub db: bool,
    /// S: code or data; clear for a system segment.
    pub s: bool,
    /// L: 64-bit code.
    pub l: bool,
    /// G: the descriptor's limit counts pages.
    pub g: bool,
    pub avl: bool,
    /// Loaded with a null selector.
    pub unusable: bool,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the manuals' names")]
pub struct DescriptorTable {
    pub base: u64,
    pub limit: u16,
}

/// Segments, descriptor tables and control registers (`struct kvm_sregs`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the manuals' register names")]
pub struct SystemRegisters {
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub ldt: Segment,
    pub gdt: DescriptorTable,
    pub idt: DescriptorTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub apic_base: u64,
}
