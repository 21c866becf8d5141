//! Descriptors: the bytes of the GDT, LDT and IDT, taken apart.
//!
//! A segment descriptor becomes core's [`Segment`]; a gate becomes a [`Gate`]. Which of them may be used
//! for what is the business of [`segment`](crate::segment) and [`interrupt`](crate::interrupt).

use msrgate_core::Segment;

/// Type bits of code and data segments.
const ACCESSED: u8 = 1;
const WRITABLE_OR_READABLE: u8 = 2;
const EXPAND_DOWN_OR_CONFORMING: u8 = 4;
const CODE: u8 = 8;

/// Types of system segments and gates.
pub(crate) mod system_type {
    pub(crate) const TSS_16: u8 = 0x1;
    pub(crate) const LDT: u8 = 0x2;
    pub(crate) const CALL_GATE_16: u8 = 0x4;
    pub(crate) const INTERRUPT_GATE_16: u8 = 0x6;
    pub(crate) const TRAP_GATE_16: u8 = 0x7;
    pub(crate) const TSS: u8 = 0x9;
    pub(crate) const BUSY: u8 = 0x2;
    pub(crate) const CALL_GATE: u8 = 0xc;
    pub(crate) const INTERRUPT_GATE: u8 = 0xe;
    pub(crate) const TRAP_GATE: u8 = 0xf;
}

/// The bits of a selector below its index.
pub(crate) const RPL: u16 = 3;
/// Selector bit: the descriptor is in the LDT.
pub(crate) const IN_LDT: u16 = 4;

/// The selector as error codes hold it: without its RPL.
pub(crate) const fn selector_error(selector: u16) -> u32 {
    (selector & !RPL) as u32
}

/// Requested privilege level of a selector.
pub(crate) const fn rpl(selector: u16) -> u8 {
    (selector & RPL) as u8
}

/// Whether a selector is null.
pub(crate) const fn is_null(selector: u16) -> bool {
    selector & !RPL == 0
}

/// Takes a descriptor's 8 bytes apart.
pub(crate) const fn parse(selector: u16, raw: u64) -> Segment {
    let limit = (raw & 0xffff | raw >> 32 & 0xf_0000) as u32;
    let granular = raw >> 55 & 1 != 0;
    Segment {
        base: raw >> 16 & 0xff_ffff | raw >> 32 & 0xff00_0000,
        limit: if granular { limit << 12 | 0xfff } else { limit },
        selector,
        type_: (raw >> 40 & 0xf) as u8,
        present: raw >> 47 & 1 != 0,
        dpl: (raw >> 45 & 3) as u8,
        db: raw >> 54 & 1 != 0,
        s: raw >> 44 & 1 != 0,
        l: raw >> 53 & 1 != 0,
        g: granular,
        avl: raw >> 52 & 1 != 0,
        unusable: false,
    }
}

/// A segment register after a null selector was loaded. The base becomes 0, as on Intel processors; the
/// DPL is kept because SS has the CPL there.
pub(crate) const fn null(selector: u16, dpl: u8) -> Segment {
    Segment {
        base: 0,
        limit: 0,
        selector,
        type_: 0,
        present: false,
        dpl,
        db: false,
        s: false,
        l: false,
        g: false,
        avl: false,
        unusable: true,
    }
}

/// A segment as real mode makes it: base from the selector, the other hidden parts as they were.
pub(crate) const fn real_mode(selector: u16, old: &Segment) -> Segment {
    Segment {
        selector,
        base: (selector as u64) << 4,
        present: true,
        s: true,
        unusable: false,
        ..*old
    }
}

/// A segment of virtual-8086 mode.
pub(crate) const fn virtual_8086(selector: u16) -> Segment {
    Segment {
        base: (selector as u64) << 4,
        limit: 0xffff,
        type_: 3,
        present: true,
        s: true,
        unusable: false,
        ..null(selector, 3)
    }
}

/// A flat segment that SYSCALL and its kin make without reading a descriptor.
pub(crate) const fn flat(selector: u16, dpl: u8, code: bool) -> Segment {
    Segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_: if code { 0xb } else { 3 },
        present: true,
        dpl,
        db: true,
        s: true,
        l: false,
        g: true,
        avl: false,
        unusable: false,
    }
}

pub(crate) const fn is_code(segment: &Segment) -> bool {
    segment.s && segment.type_ & CODE != 0
}

pub(crate) const fn is_data(segment: &Segment) -> bool {
    segment.s && segment.type_ & CODE == 0
}

pub(crate) const fn is_conforming(segment: &Segment) -> bool {
    is_code(segment) && segment.type_ & EXPAND_DOWN_OR_CONFORMING != 0
}

pub(crate) const fn is_writable_data(segment: &Segment) -> bool {
    is_data(segment) && segment.type_ & WRITABLE_OR_READABLE != 0
}

/// Data segments, and code segments that may be read.
pub(crate) const fn is_readable(segment: &Segment) -> bool {
    is_data(segment) || segment.s && segment.type_ & WRITABLE_OR_READABLE != 0
}

pub(crate) const fn is_accessed(segment: &Segment) -> bool {
    segment.type_ & ACCESSED != 0
}

/// The segment with its accessed bit.
pub(crate) const fn accessed(segment: Segment) -> Segment {
    Segment {
        type_: segment.type_ | ACCESSED,
        ..segment
    }
}

/// An IDT or call gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gate {
    pub(crate) selector: u16,
    pub(crate) offset: u64,
    /// The 4-bit type, or 0x10 and more where S makes it no gate at all.
    pub(crate) type_: u8,
    pub(crate) dpl: u8,
    pub(crate) present: bool,
    /// Interrupt stack table index: 0 for none.
    pub(crate) ist: u8,
    /// Parameters that a call gate copies.
    pub(crate) count: u8,
}

impl Gate {
    /// From the 8 bytes, and in long mode the 8 above them.
    pub(crate) const fn parse(low: u64, high: u64) -> Self {
        Self {
            selector: (low >> 16) as u16,
            offset: low & 0xffff | low >> 32 & 0xffff_0000 | high << 32,
            type_: (low >> 40 & 0x1f) as u8,
            dpl: (low >> 45 & 3) as u8,
            present: low >> 47 & 1 != 0,
            ist: (low >> 32 & 7) as u8,
            count: (low >> 32 & 0x1f) as u8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_kernel_code_descriptor_is_64_bit_code() {
        let cs = parse(0x10, 0x00af_9b00_0000_ffff);
        assert!(is_code(&cs) && cs.l && !cs.db && cs.g && cs.present && is_accessed(&cs));
        assert_eq!((cs.base, cs.limit, cs.dpl), (0, u32::MAX, 0));
    }

    #[test]
    fn fields_come_from_their_scattered_bits() {
        let segment = parse(0x2b, 0x1256_f234_5678_9abc);
        assert_eq!(segment.base, 0x1234_5678);
        assert_eq!(segment.limit, 0x6_9abc);
        assert_eq!((segment.dpl, segment.type_, segment.s), (3, 2, true));
        assert!(segment.avl && !segment.g && !segment.l && segment.db);
    }

    #[test]
    fn gate_offset_has_three_parts() {
        let gate = Gate::parse(0x8182_ee03_0010_8384, 0x8788_8586);
        assert_eq!(gate.offset, 0x8788_8586_8182_8384);
        assert_eq!(
            (gate.selector, gate.type_, gate.dpl, gate.ist),
            (0x10, 0xe, 3, 3)
        );
        assert!(gate.present);
    }
}
