//! Segment registers: fetching descriptors, the checks before one is used, and the instructions that only ask.
//!
//! [`Cpu::load_segment`] is MOV, POP and LDS to a data segment register; [`Cpu::load_ldtr`] and [`Cpu::load_tr`]
//! are LLDT and LTR. CS is loaded by far transfers: see [`far`](crate::far).

use msrgate_core::Segment;

use crate::descriptor::{
    self, IN_LDT, accessed, is_accessed, is_conforming, is_null, is_readable, is_writable_data,
    parse, rpl, selector_error, system_type,
};
use crate::op::{Exit, Fault, Flow, vector};
use crate::{Bus, Cpu, seg};

/// A descriptor, and where it came from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    /// Its low 8 bytes, taken apart as a segment.
    pub(crate) segment: Segment,
    /// Its low 8 bytes.
    pub(crate) raw: u64,
    /// Linear address.
    address: u64,
}

impl Descriptor {
    /// Whether it is a system segment or gate of this type.
    pub(crate) const fn is_system(&self, type_: u8) -> bool {
        !self.segment.s && self.segment.type_ == type_
    }
}

/// Descriptors.
impl Cpu {
    /// Reads the descriptor of `selector`. `None`: it lies outside its table.
    pub(crate) fn descriptor<B: Bus>(
        &mut self,
        bus: &mut B,
        selector: u16,
    ) -> Result<Option<Descriptor>, Exit> {
        let Some(address) = self.descriptor_address(selector, 8) else {
            return Ok(None);
        };
        let raw = self.read_system(bus, address)?;
        Ok(Some(Descriptor {
            segment: parse(selector, raw),
            raw,
            address,
        }))
    }

    /// The upper 8 bytes of a 16-byte descriptor. `None`: they lie outside the table.
    pub(crate) fn descriptor_high<B: Bus>(
        &mut self,
        bus: &mut B,
        selector: u16,
    ) -> Result<Option<u64>, Exit> {
        match self.descriptor_address(selector, 16) {
            Some(address) => Ok(Some(self.read_system(bus, address.wrapping_add(8))?)),
            None => Ok(None),
        }
    }

    /// The descriptor of `selector`, or exception number `fault` with the selector.
    pub(crate) fn require_descriptor<B: Bus>(
        &mut self,
        bus: &mut B,
        selector: u16,
        fault: u8,
        ext: u32,
    ) -> Result<Descriptor, Exit> {
        match self.descriptor(bus, selector)? {
            Some(descriptor) => Ok(descriptor),
            None => Err(self.selector_fault(fault, selector, ext)),
        }
    }

    /// Raises an exception whose error code names a selector.
    pub(crate) fn selector_fault(&mut self, fault: u8, selector: u16, ext: u32) -> Exit {
        self.raise(Fault::coded(fault, selector_error(selector) | ext))
    }

    /// Sets the accessed bit in memory, where it is clear, and in the result.
    pub(crate) fn touch<B: Bus>(
        &mut self,
        bus: &mut B,
        descriptor: &Descriptor,
    ) -> Result<Segment, Exit> {
        if !is_accessed(&descriptor.segment) {
            self.write_type(bus, descriptor, 1)?;
        }
        Ok(accessed(descriptor.segment))
    }

    /// Writes the descriptor's type byte with `bits` set.
    fn write_type<B: Bus>(&mut self, bus: &mut B, descriptor: &Descriptor, bits: u8) -> Flow {
        let type_byte = descriptor.raw.to_le_bytes()[5] | bits;
        self.write_system(bus, descriptor.address.wrapping_add(5), type_byte)
    }

    fn descriptor_address(&self, selector: u16, len_bytes: u64) -> Option<u64> {
        let (base, limit) = if selector & IN_LDT == 0 {
            (self.gdt.base, u64::from(self.gdt.limit))
        } else if self.ldt.unusable {
            return None;
        } else {
            (self.ldt.base, u64::from(self.ldt.limit))
        };
        let offset = u64::from(selector & !7);
        (offset + len_bytes - 1 <= limit).then(|| self.wrap_linear(base.wrapping_add(offset)))
    }

    /// A linear address cut to 32 bits outside long mode.
    pub(crate) const fn wrap_linear(&self, linear: u64) -> u64 {
        if self.is_long() {
            linear
        } else {
            linear & 0xffff_ffff
        }
    }
}

/// Loads.
impl Cpu {
    /// Loads ES, SS, DS, FS or GS.
    pub(crate) fn load_segment<B: Bus>(
        &mut self,
        bus: &mut B,
        index: usize,
        selector: u16,
    ) -> Flow {
        let segment = if self.is_real() || self.is_v86() {
            descriptor::real_mode(selector, &self.segs[index])
        } else if index == seg::SS {
            self.checked_stack(bus, selector)?
        } else {
            self.checked_data(bus, selector)?
        };
        self.segs[index] = segment;
        Ok(())
    }

    fn checked_data<B: Bus>(&mut self, bus: &mut B, selector: u16) -> Result<Segment, Exit> {
        if is_null(selector) {
            return Ok(descriptor::null(selector, 0));
        }
        let descriptor = self.require_descriptor(bus, selector, vector::GP, 0)?;
        let it = &descriptor.segment;
        let privileged = rpl(selector).max(self.cpl) > it.dpl && !is_conforming(it);
        if !is_readable(it) || privileged {
            return Err(self.selector_fault(vector::GP, selector, 0));
        }
        if !it.present {
            return Err(self.selector_fault(vector::NP, selector, 0));
        }
        self.touch(bus, &descriptor)
    }

    fn checked_stack<B: Bus>(&mut self, bus: &mut B, selector: u16) -> Result<Segment, Exit> {
        if is_null(selector) {
            if self.is_64() && self.cpl < 3 && rpl(selector) == self.cpl {
                return Ok(descriptor::null(selector, self.cpl));
            }
            return Err(self.raise(Fault::GP));
        }
        let cpl = self.cpl;
        let descriptor = self.stack_descriptor(bus, selector, cpl, vector::GP, 0)?;
        self.touch(bus, &descriptor)
    }

    /// The descriptor of a stack segment for privilege level `cpl`; `fault` is #GP or, on a stack
    /// switch, #TS. The selector is not null.
    pub(crate) fn stack_descriptor<B: Bus>(
        &mut self,
        bus: &mut B,
        selector: u16,
        cpl: u8,
        fault: u8,
        ext: u32,
    ) -> Result<Descriptor, Exit> {
        let descriptor = self.require_descriptor(bus, selector, fault, ext)?;
        let it = &descriptor.segment;
        if rpl(selector) != cpl || it.dpl != cpl || !is_writable_data(it) {
            return Err(self.selector_fault(fault, selector, ext));
        }
        if !it.present {
            return Err(self.selector_fault(vector::SS, selector, ext));
        }
        Ok(descriptor)
    }

    /// After a return to an outer level: data segments that it may not use become null.
    pub(crate) fn drop_privileged_segments(&mut self) {
        for index in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let it = &self.segs[index];
            if !it.unusable && it.dpl < self.cpl && !is_conforming(it) {
                self.segs[index] = descriptor::null(0, 0);
            }
        }
    }

    /// LLDT, after the privilege check.
    pub(crate) fn load_ldtr<B: Bus>(&mut self, bus: &mut B, selector: u16) -> Flow {
        if is_null(selector) {
            self.ldt = descriptor::null(selector, 0);
            return Ok(());
        }
        let (_, segment) = self.system_segment(bus, selector, &[system_type::LDT])?;
        self.ldt = segment;
        Ok(())
    }

    /// LTR, after the privilege check.
    pub(crate) fn load_tr<B: Bus>(&mut self, bus: &mut B, selector: u16) -> Flow {
        if is_null(selector) {
            return Err(self.raise(Fault::GP));
        }
        let types: &[u8] = if self.is_long() {
            &[system_type::TSS]
        } else {
            &[system_type::TSS, system_type::TSS_16]
        };
        let (descriptor, segment) = self.system_segment(bus, selector, types)?;
        self.write_type(bus, &descriptor, system_type::BUSY)?;
        self.tr = Segment {
            type_: segment.type_ | system_type::BUSY,
            ..segment
        };
        Ok(())
    }

    /// A system segment of the GDT, of one of `types`; 16 bytes long in long mode.
    fn system_segment<B: Bus>(
        &mut self,
        bus: &mut B,
        selector: u16,
        types: &[u8],
    ) -> Result<(Descriptor, Segment), Exit> {
        if selector & IN_LDT != 0 {
            return Err(self.selector_fault(vector::GP, selector, 0));
        }
        let descriptor = self.require_descriptor(bus, selector, vector::GP, 0)?;
        let mut segment = descriptor.segment;
        if !types.iter().any(|&type_| descriptor.is_system(type_)) {
            return Err(self.selector_fault(vector::GP, selector, 0));
        }
        if !segment.present {
            return Err(self.selector_fault(vector::NP, selector, 0));
        }
        if self.is_long() {
            let high = self.descriptor_high(bus, selector)?;
            let base = high.map(|high| segment.base | high << 32);
            let Some(base) = base.filter(|&base| Self::is_canonical(base)) else {
                return Err(self.selector_fault(vector::GP, selector, 0));
            };
            segment.base = base;
        }
        Ok((descriptor, segment))
    }
}

/// System descriptor types that LAR answers for (SDM vol. 2, table 3-53).
const LAR_TYPES: [u16; 2] = [0b0001_1010_0011_1110, 0b0001_1010_0000_0100];
/// Those that LSL answers for: gates have no limit.
const LSL_TYPES: [u16; 2] = [0b0000_1010_0000_1110, 0b0000_1010_0000_0100];

/// LAR, LSL, VERR, VERW: questions about a selector that never fault over it.
impl Cpu {
    /// LAR: the access rights, or `None` for ZF = 0.
    pub(crate) fn access_rights<B: Bus>(
        &mut self,
        bus: &mut B,
        selector: u16,
    ) -> Result<Option<u32>, Exit> {
        self.ask(bus, selector, LAR_TYPES)
            .map(|found| found.map(|it| (it.raw >> 32 & 0x00f0_ff00) as u32))
    }

    /// LSL: the limit in bytes, or `None` for ZF = 0.
    pub(crate) fn segment_limit<B: Bus>(
        &mut self,
        bus: &mut B,
        selector: u16,
    ) -> Result<Option<u32>, Exit> {
        self.ask(bus, selector, LSL_TYPES)
            .map(|found| found.map(|it| it.segment.limit))
    }

    /// VERR and VERW.
    pub(crate) fn verify_segment<B: Bus>(
        &mut self,
        bus: &mut B,
        selector: u16,
        write: bool,
    ) -> Result<bool, Exit> {
        let visible = self.visible_descriptor(bus, selector)?;
        Ok(visible.is_some_and(|it| {
            if write {
                is_writable_data(&it.segment)
            } else {
                is_readable(&it.segment)
            }
        }))
    }

    /// The descriptor, where it is visible and of a type that the instruction answers for: a set of
    /// system types as bits, for legacy and long mode.
    fn ask<B: Bus>(
        &mut self,
        bus: &mut B,
        selector: u16,
        types: [u16; 2],
    ) -> Result<Option<Descriptor>, Exit> {
        let types = types[usize::from(self.is_long())];
        let visible = self.visible_descriptor(bus, selector)?;
        Ok(visible.filter(|it| it.segment.s || types >> it.segment.type_ & 1 != 0))
    }

    /// The descriptor, where CPL and RPL may see it.
    fn visible_descriptor<B: Bus>(
        &mut self,
        bus: &mut B,
        selector: u16,
    ) -> Result<Option<Descriptor>, Exit> {
        if is_null(selector) {
            return Ok(None);
        }
        let cpl = self.cpl;
        Ok(self
            .descriptor(bus, selector)?
            .filter(|it| is_conforming(&it.segment) || rpl(selector).max(cpl) <= it.segment.dpl))
    }
}
