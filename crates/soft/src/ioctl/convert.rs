//! Between the structures of the UAPI and those of core and the processor.

use kvm_bindings::{
    KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2, kvm_debugregs, kvm_dtable, kvm_fpu,
    kvm_regs, kvm_segment, kvm_sregs, kvm_sregs2,
};
use msrgate_core::{DescriptorTable, Registers, Segment, SystemRegisters};
use msrgate_x86::{CpuidLeaf, DebugRegisters, Fpu};

use crate::pv;

/// Builds one structure from the fields of the same names in another.
macro_rules! same_names {
    ($to:ident from $from:expr, $($field:ident)* $(; $($rest:tt)*)?) => {
        $to { $($field: $from.$field,)* $($($rest)*)? }
    };
}

pub(super) fn registers(r: &kvm_regs) -> Registers {
    same_names!(Registers from r, rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags)
}

pub(super) fn kvm_registers(r: &Registers) -> kvm_regs {
    same_names!(kvm_regs from r, rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags)
}

/// What `kvm_sregs` and `kvm_sregs2` have in common.
pub(super) fn system_registers(s: &kvm_sregs2) -> SystemRegisters {
    SystemRegisters {
        cs: segment(&s.cs),
        ds: segment(&s.ds),
        es: segment(&s.es),
        fs: segment(&s.fs),
        gs: segment(&s.gs),
        ss: segment(&s.ss),
        tr: segment(&s.tr),
        ldt: segment(&s.ldt),
        gdt: table(&s.gdt),
        idt: table(&s.idt),
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: s.cr8,
        efer: s.efer,
        apic_base: s.apic_base,
    }
}

pub(super) fn kvm_system_registers(s: &SystemRegisters) -> kvm_sregs2 {
    kvm_sregs2 {
        cs: kvm_segment(&s.cs),
        ds: kvm_segment(&s.ds),
        es: kvm_segment(&s.es),
        fs: kvm_segment(&s.fs),
        gs: kvm_segment(&s.gs),
        ss: kvm_segment(&s.ss),
        tr: kvm_segment(&s.tr),
        ldt: kvm_segment(&s.ldt),
        gdt: kvm_table(s.gdt),
        idt: kvm_table(s.idt),
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: s.cr8,
        efer: s.efer,
        apic_base: s.apic_base,
        ..kvm_sregs2::default()
    }
}

/// The older structure, with the interrupt that is injected.
pub(super) fn sregs(s: kvm_sregs2, interrupt: Option<u8>) -> kvm_sregs {
    let mut old = same_names!(kvm_sregs from s, cs ds es fs gs ss tr ldt gdt idt cr0 cr2 cr3 cr4 cr8 efer apic_base;
        ..kvm_sregs::default());
    if let Some(vector) = interrupt {
        old.interrupt_bitmap[usize::from(vector / 64)] = 1 << (vector % 64);
    }
    old
}

/// From the older structure, with the interrupt that its bitmap injects.
pub(super) fn sregs2(s: &kvm_sregs) -> (kvm_sregs2, Option<u8>) {
    let new = same_names!(kvm_sregs2 from s, cs ds es fs gs ss tr ldt gdt idt cr0 cr2 cr3 cr4 cr8 efer apic_base;
        ..kvm_sregs2::default());
    let mut vectors = 0_u8..=u8::MAX;
    let interrupt = vectors
        .find(|vector| s.interrupt_bitmap[usize::from(vector / 64)] >> (vector % 64) & 1 == 1);
    (new, interrupt)
}

fn segment(s: &kvm_segment) -> Segment {
    Segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: s.type_ & 15,
        present: s.present != 0,
        dpl: s.dpl & 3,
        db: s.db != 0,
        s: s.s != 0,
        l: s.l != 0,
        g: s.g != 0,
        avl: s.avl != 0,
        unusable: s.unusable != 0,
    }
}

fn kvm_segment(s: &Segment) -> kvm_segment {
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: s.type_,
        present: s.present.into(),
        dpl: s.dpl,
        db: s.db.into(),
        s: s.s.into(),
        l: s.l.into(),
        g: s.g.into(),
        avl: s.avl.into(),
        unusable: s.unusable.into(),
        padding: 0,
    }
}

fn table(t: &kvm_dtable) -> DescriptorTable {
    same_names!(DescriptorTable from t, base limit)
}

fn kvm_table(t: DescriptorTable) -> kvm_dtable {
    same_names!(kvm_dtable from t, base limit; ..kvm_dtable::default())
}

pub(super) fn fpu(f: &kvm_fpu) -> Fpu {
    Fpu {
        st: f.fpr,
        fcw: f.fcw,
        fsw: f.fsw,
        ftw: f.ftwx,
        fop: f.last_opcode,
        fip: f.last_ip,
        fdp: f.last_dp,
        xmm: f.xmm.map(u128::from_le_bytes),
        mxcsr: f.mxcsr & MXCSR_KNOWN,
    }
}

pub(super) fn kvm_fpu(f: &Fpu) -> kvm_fpu {
    kvm_fpu {
        fpr: f.st,
        fcw: f.fcw,
        fsw: f.fsw,
        ftwx: f.ftw,
        pad1: 0,
        last_opcode: f.fop,
        last_ip: f.fip,
        last_dp: f.fdp,
        xmm: f.xmm.map(u128::to_le_bytes),
        mxcsr: f.mxcsr,
        pad2: 0,
    }
}

/// MXCSR bits that exist.
pub(super) const MXCSR_KNOWN: u32 = 0xffff;
/// Where things are in the FXSAVE area (SDM vol. 1, 10.5.1).
const FX_ST: usize = 32;
const FX_XMM: usize = 160;
/// XSTATE_BV, in the XSAVE header: x87 and SSE are in use.
const XSTATE_BV: usize = 512;

/// The XSAVE area: an FXSAVE area and a header.
pub(super) fn xsave(f: &Fpu) -> [u8; 4096] {
    let mut area = [0; 4096];
    let mut put =
        |offset: usize, bytes: &[u8]| area[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, &f.fcw.to_le_bytes());
    put(2, &f.fsw.to_le_bytes());
    put(4, &[f.ftw]);
    put(6, &f.fop.to_le_bytes());
    put(8, &f.fip.to_le_bytes());
    put(16, &f.fdp.to_le_bytes());
    put(24, &f.mxcsr.to_le_bytes());
    put(28, &MXCSR_KNOWN.to_le_bytes());
    put(FX_ST, f.st.as_flattened());
    put(FX_XMM, f.xmm.map(u128::to_le_bytes).as_flattened());
    put(XSTATE_BV, &3_u64.to_le_bytes());
    area
}

/// From the XSAVE area; `None` if it holds state that there is not.
pub(super) fn fpu_of_xsave(area: &[u8; 4096]) -> Option<Fpu> {
    fn get<const N: usize>(area: &[u8; 4096], offset: usize) -> [u8; N] {
        std::array::from_fn(|byte| area[offset + byte])
    }
    let parts = u64::from_le_bytes(get(area, XSTATE_BV));
    let mxcsr = u32::from_le_bytes(get(area, 24));
    if parts & !3 != 0 || mxcsr & !MXCSR_KNOWN != 0 {
        return None;
    }
    let mut fpu = Fpu::default();
    if parts & 1 != 0 {
        fpu.fcw = u16::from_le_bytes(get(area, 0));
        fpu.fsw = u16::from_le_bytes(get(area, 2));
        fpu.ftw = area[4];
        fpu.fop = u16::from_le_bytes(get(area, 6));
        fpu.fip = u64::from_le_bytes(get(area, 8));
        fpu.fdp = u64::from_le_bytes(get(area, 16));
        fpu.st = std::array::from_fn(|n| get(area, FX_ST + 16 * n));
    }
    if parts & 2 != 0 {
        fpu.mxcsr = mxcsr;
        fpu.xmm = std::array::from_fn(|n| u128::from_le_bytes(get(area, FX_XMM + 16 * n)));
    }
    Some(fpu)
}

pub(super) fn debug_registers(d: &kvm_debugregs) -> DebugRegisters {
    same_names!(DebugRegisters from d, db dr6 dr7)
}

pub(super) fn kvm_debug_registers(d: &DebugRegisters) -> kvm_debugregs {
    same_names!(kvm_debugregs from d, db dr6 dr7; ..kvm_debugregs::default())
}

pub(super) fn cpuid_entry(leaf: &CpuidLeaf) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: leaf.function,
        index: leaf.index.unwrap_or(0),
        flags: leaf.index.map_or(0, |_| KVM_CPUID_FLAG_SIGNIFCANT_INDEX),
        eax: leaf.eax,
        ebx: leaf.ebx,
        ecx: leaf.ecx,
        edx: leaf.edx,
        padding: [0; 3],
    }
}

pub(super) fn cpuid_leaf(entry: &kvm_cpuid_entry2) -> CpuidLeaf {
    CpuidLeaf {
        function: entry.function,
        index: (entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0).then_some(entry.index),
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    }
}

/// A guest whose HLT does not leave cannot be woken by a hypercall, so it is not told that it can.
pub(super) fn take_pv_unhalt(entries: &mut [kvm_cpuid_entry2]) {
    let is_kvm = entries
        .iter()
        .any(|entry| entry.function == pv::SIGNATURE && entry.ebx.to_le_bytes() == *b"KVMK");
    let features = entries
        .iter_mut()
        .filter(|entry| is_kvm && entry.function == pv::FEATURES);
    for entry in features {
        entry.eax &= !(1 << pv::PV_UNHALT);
    }
}
