//! Registers: core's types and the kernel's, field by field.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use msrgate_core::{DescriptorTable, Registers, Segment, SystemRegisters};

/// Copies the named fields, which have the same names on both sides.
macro_rules! copy_fields {
    ($to:ident { $($field:ident),* $(,)? } from $source:ident $(, $($rest:tt)*)?) => {
        $to { $($field: $source.$field,)* $($($rest)*)? }
    };
}

/// `kvm_regs` to core's.
#[must_use]
pub fn registers(regs: &kvm_regs) -> Registers {
    copy_fields!(Registers {
        rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags,
    } from regs)
}

/// Core's to `kvm_regs`.
#[must_use]
pub fn kvm_regs(regs: &Registers) -> kvm_regs {
    copy_fields!(kvm_regs {
        rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags,
    } from regs)
}

/// `kvm_sregs` to core's; the interrupt bitmap is not part of it.
#[must_use]
pub fn system_registers(sregs: &kvm_sregs) -> SystemRegisters {
    copy_fields!(SystemRegisters {
        cr0, cr2, cr3, cr4, cr8, efer, apic_base,
    } from sregs,
        cs: segment(&sregs.cs),
        ds: segment(&sregs.ds),
        es: segment(&sregs.es),
        fs: segment(&sregs.fs),
        gs: segment(&sregs.gs),
        ss: segment(&sregs.ss),
        tr: segment(&sregs.tr),
        ldt: segment(&sregs.ldt),
        gdt: table(&sregs.gdt),
        idt: table(&sregs.idt),
    )
}

/// Core's over `before`, which keeps what core does not have (the interrupt bitmap).
#[must_use]
pub fn kvm_sregs(regs: &SystemRegisters, before: &kvm_sregs) -> kvm_sregs {
    copy_fields!(kvm_sregs {
        cr0, cr2, cr3, cr4, cr8, efer, apic_base,
    } from regs,
        cs: kvm_segment(&regs.cs),
        ds: kvm_segment(&regs.ds),
        es: kvm_segment(&regs.es),
        fs: kvm_segment(&regs.fs),
        gs: kvm_segment(&regs.gs),
        ss: kvm_segment(&regs.ss),
        tr: kvm_segment(&regs.tr),
        ldt: kvm_segment(&regs.ldt),
        gdt: kvm_table(regs.gdt),
        idt: kvm_table(regs.idt),
        interrupt_bitmap: before.interrupt_bitmap,
    )
}

fn segment(segment: &kvm_segment) -> Segment {
    copy_fields!(Segment { base, limit, selector, type_, dpl } from segment,
        present: segment.present != 0,
        db: segment.db != 0,
        s: segment.s != 0,
        l: segment.l != 0,
        g: segment.g != 0,
        avl: segment.avl != 0,
        unusable: segment.unusable != 0,
    )
}

fn kvm_segment(segment: &Segment) -> kvm_segment {
    copy_fields!(kvm_segment { base, limit, selector, type_, dpl } from segment,
        present: segment.present.into(),
        db: segment.db.into(),
        s: segment.s.into(),
        l: segment.l.into(),
        g: segment.g.into(),
        avl: segment.avl.into(),
        unusable: segment.unusable.into(),
        padding: 0,
    )
}

fn table(table: &kvm_dtable) -> DescriptorTable {
    copy_fields!(DescriptorTable { base, limit } from table)
}

fn kvm_table(table: DescriptorTable) -> kvm_dtable {
    copy_fields!(kvm_dtable { base, limit } from table, padding: [0; 3],)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_registers_survive_the_round_trip() {
        let cs = Segment {
            base: 0x1000,
            limit: 0xffff_ffff,
            selector: 8,
            type_: 11,
            present: true,
            l: true,
            g: true,
            s: true,
            dpl: 3,
            ..Segment::default()
        };
        let regs = SystemRegisters {
            cs,
            idt: DescriptorTable {
                base: 0x5000,
                limit: 0xfff,
            },
            cr0: 1,
            cr2: 2,
            cr3: 3,
            cr4: 4,
            cr8: 5,
            efer: 6,
            apic_base: 7,
            ..SystemRegisters::default()
        };
        let before = kvm_sregs {
            interrupt_bitmap: [1, 2, 3, 4],
            ..Default::default()
        };
        let raw = kvm_sregs(&regs, &before);
        assert_eq!(raw.interrupt_bitmap, [1, 2, 3, 4]);
        assert_eq!(system_registers(&raw), regs);
    }
}
