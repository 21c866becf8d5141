//! Control transfers that load CS: far JMP, CALL and RET, call gates, IRET.
//!
//! Every function does all its checks and stack accesses before it changes a register, and ends with
//! [`Exit::Jump`]. Task gates, task state segments as targets, and returns with RFLAGS.NT are answered with
//! #GP: there is no hardware task switching.

use msrgate_core::Segment;

use crate::descriptor::{self, Gate, RPL, is_code, is_conforming, is_null, rpl, system_type};
use crate::op::{Exit, Fault, Flow, vector};
use crate::segment::Descriptor;
use crate::stack::{Stack, StackWidth};
use crate::{Bus, Cpu, flags, reg, seg};

/// Where a transfer goes, with every check passed.
#[derive(Clone, Copy, Debug)]
struct Target {
    /// With its final RPL.
    cs: Segment,
    rip: u64,
    cpl: u8,
}

/// Far JMP and CALL.
impl Cpu {
    /// Far JMP.
    pub(crate) fn far_jump<B: Bus>(&mut self, bus: &mut B, selector: u16, offset: u64) -> Flow {
        let target = if self.has_paragraphs() {
            self.paragraph_target(selector, offset)?
        } else {
            let descriptor = self.far_descriptor(bus, selector)?;
            if descriptor.segment.s {
                self.direct_target(bus, &descriptor, offset)?
            } else {
                let gate = self.call_gate(bus, &descriptor)?;
                let target = self.gate_target(bus, &gate)?;
                if target.cpl != self.cpl {
                    return Err(self.selector_fault(vector::GP, gate.selector, 0));
                }
                target
            }
        };
        self.arrive(target)
    }

    /// Far CALL; `width` is the operand size.
    pub(crate) fn far_call<B: Bus>(
        &mut self,
        bus: &mut B,
        selector: u16,
        offset: u64,
        next_rip: u64,
        width: StackWidth,
    ) -> Flow {
        let mut stack = self.current_stack(width);
        let target = if self.has_paragraphs() {
            self.paragraph_target(selector, offset)?
        } else {
            let descriptor = self.far_descriptor(bus, selector)?;
            if descriptor.segment.s {
                self.direct_target(bus, &descriptor, offset)?
            } else {
                let gate = self.call_gate(bus, &descriptor)?;
                let target = self.gate_target(bus, &gate)?;
                stack = self.gate_stack(bus, &gate, target.cpl)?;
                target
            }
        };
        stack.push(self, bus, u64::from(self.segs[seg::CS].selector))?;
        stack.push(self, bus, next_rip)?;
        stack.commit(self);
        self.arrive(target)
    }

    /// Selectors are paragraph numbers: real or virtual-8086 mode.
    const fn has_paragraphs(&self) -> bool {
        self.is_real() || self.is_v86()
    }

    fn paragraph_target(&mut self, selector: u16, rip: u64) -> Result<Target, Exit> {
        let cs = descriptor::real_mode(selector, &self.segs[seg::CS]);
        self.check_rip(Target {
            cs,
            rip,
            cpl: self.cpl,
        })
    }

    fn far_descriptor<B: Bus>(&mut self, bus: &mut B, selector: u16) -> Result<Descriptor, Exit> {
        if is_null(selector) {
            return Err(self.raise(Fault::GP));
        }
        self.require_descriptor(bus, selector, vector::GP, 0)
    }

    fn direct_target<B: Bus>(
        &mut self,
        bus: &mut B,
        descriptor: &Descriptor,
        rip: u64,
    ) -> Result<Target, Exit> {
        let it = &descriptor.segment;
        let allowed = if is_conforming(it) {
            it.dpl <= self.cpl
        } else {
            rpl(it.selector) <= self.cpl && it.dpl == self.cpl
        };
        if !is_code(it) || !allowed || self.is_long() && it.l && it.db {
            return Err(self.selector_fault(vector::GP, it.selector, 0));
        }
        self.code_target(bus, descriptor, rip, self.cpl)
    }

    /// The last checks that all code segments share.
    fn code_target<B: Bus>(
        &mut self,
        bus: &mut B,
        descriptor: &Descriptor,
        rip: u64,
        cpl: u8,
    ) -> Result<Target, Exit> {
        let selector = descriptor.segment.selector;
        if !descriptor.segment.present {
            return Err(self.selector_fault(vector::NP, selector, 0));
        }
        let cs = Segment {
            selector: selector & !RPL | u16::from(cpl),
            ..descriptor.segment
        };
        let target = self.check_rip(Target { cs, rip, cpl })?;
        self.touch(bus, descriptor)?;
        Ok(Target {
            cs: descriptor::accessed(cs),
            ..target
        })
    }

    fn check_rip(&mut self, target: Target) -> Result<Target, Exit> {
        let inside = if self.is_long() && target.cs.l {
            Self::is_canonical(target.rip)
        } else {
            target.rip <= u64::from(target.cs.limit)
        };
        if inside {
            Ok(target)
        } else {
            Err(self.raise(Fault::GP))
        }
    }

    /// The call gate that `descriptor` is. In long mode its upper half is looked at last.
    fn call_gate<B: Bus>(&mut self, bus: &mut B, descriptor: &Descriptor) -> Result<Gate, Exit> {
        const TYPE_OF_HIGH_HALF: u64 = 0x1f00 << 32;
        let selector = descriptor.segment.selector;
        let mut gate = Gate::parse(descriptor.raw, 0);
        let exists = match gate.type_ {
            system_type::CALL_GATE => true,
            system_type::CALL_GATE_16 => !self.is_long(),
            _ => false,
        };
        if !exists || gate.dpl < self.cpl.max(rpl(selector)) {
            return Err(self.selector_fault(vector::GP, selector, 0));
        }
        if !gate.present {
            return Err(self.selector_fault(vector::NP, selector, 0));
        }
        if gate.type_ == system_type::CALL_GATE_16 {
            gate.offset &= 0xffff;
        } else if self.is_long() {
            let high = self.descriptor_high(bus, selector)?;
            match high.filter(|high| high & TYPE_OF_HIGH_HALF == 0) {
                Some(high) => gate = Gate::parse(descriptor.raw, high),
                None => return Err(self.selector_fault(vector::GP, selector, 0)),
            }
        }
        Ok(gate)
    }

    fn gate_target<B: Bus>(&mut self, bus: &mut B, gate: &Gate) -> Result<Target, Exit> {
        let descriptor = self.far_descriptor(bus, gate.selector)?;
        let it = &descriptor.segment;
        let wrong_mode = self.is_long() && (!it.l || it.db);
        if !is_code(it) || it.dpl > self.cpl || wrong_mode {
            return Err(self.selector_fault(vector::GP, gate.selector, 0));
        }
        let cpl = if is_conforming(it) { self.cpl } else { it.dpl };
        self.code_target(bus, &descriptor, gate.offset, cpl)
    }

    /// The stack of a CALL through a gate, with what goes below the return address.
    fn gate_stack<B: Bus>(&mut self, bus: &mut B, gate: &Gate, cpl: u8) -> Result<Stack, Exit> {
        let width = match gate.type_ {
            _ if self.is_long() => StackWidth::Bits64,
            system_type::CALL_GATE => StackWidth::Bits32,
            _ => StackWidth::Bits16,
        };
        let old = self.current_stack(width);
        if cpl == self.cpl {
            return Ok(old);
        }
        let mut stack = if self.is_long() {
            Stack {
                segment: descriptor::null(u16::from(cpl), cpl),
                pointer: self.tss_qword(bus, 4 + u32::from(cpl) * 8, 0)?,
                cpl,
                ..old
            }
        } else {
            self.tss_stack(bus, cpl, width, 0)?
        };
        stack.push(self, bus, u64::from(old.segment.selector))?;
        stack.push(self, bus, old.pointer)?;
        if !self.is_long() {
            for index in (0..u64::from(gate.count)).rev() {
                let parameter = self.stack_slot(bus, width, index)?;
                stack.push(self, bus, parameter)?;
            }
        }
        Ok(stack)
    }

    fn arrive(&mut self, target: Target) -> Flow {
        self.segs[seg::CS] = target.cs;
        self.rip = target.rip;
        self.set_cpl(target.cpl);
        Err(Exit::Jump)
    }
}

/// Far RET and IRET.
impl Cpu {
    /// Far RET; `extra` bytes of parameters are released.
    pub(crate) fn far_return<B: Bus>(
        &mut self,
        bus: &mut B,
        width: StackWidth,
        extra: u64,
    ) -> Flow {
        let rip = self.stack_slot(bus, width, 0)?;
        let selector = self.stack_slot(bus, width, 1)? as u16;
        let release = width.bytes() * 2 + extra;
        if self.has_paragraphs() {
            let target = self.paragraph_target(selector, rip)?;
            self.move_stack_pointer(release);
            return self.arrive(target);
        }
        let target = self.return_target(bus, selector, rip)?;
        if target.cpl == self.cpl {
            self.move_stack_pointer(release);
            return self.arrive(target);
        }
        let rsp = self.stack_at(bus, width, release)?;
        let ss = self.stack_at(bus, width, release + width.bytes())? as u16;
        self.segs[seg::SS] = self.outer_stack(bus, ss, &target)?;
        self.gpr[reg::RSP] = rsp;
        let exit = self.arrive(target);
        self.move_stack_pointer(extra);
        self.drop_privileged_segments();
        exit
    }

    /// IRET.
    pub(crate) fn interrupt_return<B: Bus>(&mut self, bus: &mut B, width: StackWidth) -> Flow {
        if self.is_v86() && self.iopl() < 3 {
            return Err(self.raise(Fault::GP));
        }
        let rip = self.stack_slot(bus, width, 0)?;
        let selector = self.stack_slot(bus, width, 1)? as u16;
        let popped = self.stack_slot(bus, width, 2)?;
        let flags = self.returned_flags(width, popped);
        let target = if self.has_paragraphs() {
            self.paragraph_target(selector, rip)?
        } else if self.flags.has(flags::NT) {
            return Err(self.raise(Fault::GP));
        } else if !self.is_long() && popped & flags::VM != 0 && self.cpl == 0 {
            return self.return_to_v86(bus, selector, rip, popped);
        } else {
            self.return_target(bus, selector, rip)?
        };
        let outer = target.cpl != self.cpl;
        if outer || self.is_64() {
            let rsp = self.stack_slot(bus, width, 3)?;
            let ss = self.stack_slot(bus, width, 4)? as u16;
            self.segs[seg::SS] = self.outer_stack(bus, ss, &target)?;
            self.gpr[reg::RSP] = rsp;
        } else {
            self.move_stack_pointer(width.bytes() * 3);
        }
        self.pending.nmi_masked = false;
        self.flags.set(flags);
        let exit = self.arrive(target);
        if outer {
            self.drop_privileged_segments();
        }
        exit
    }

    /// RFLAGS after IRET: what the privilege level lets it change.
    fn returned_flags(&self, width: StackWidth, popped: u64) -> u64 {
        let old = self.flags.get();
        let mut mask = flags::ARITHMETIC | flags::TF | flags::DF | flags::NT;
        if self.cpl == 0 {
            mask |= flags::IOPL;
        }
        if self.cpl <= self.iopl() {
            mask |= flags::IF;
        }
        if width != StackWidth::Bits16 {
            mask |= flags::RF | flags::AC | flags::ID;
            if self.cpl == 0 && !self.is_real() {
                mask |= flags::VIF | flags::VIP;
            }
        }
        old & !mask | popped & mask
    }

    fn return_target<B: Bus>(
        &mut self,
        bus: &mut B,
        selector: u16,
        rip: u64,
    ) -> Result<Target, Exit> {
        let cpl = rpl(selector);
        if !is_null(selector) && cpl < self.cpl {
            return Err(self.selector_fault(vector::GP, selector, 0));
        }
        let descriptor = self.far_descriptor(bus, selector)?;
        let it = &descriptor.segment;
        let allowed = if is_conforming(it) {
            it.dpl <= cpl
        } else {
            it.dpl == cpl
        };
        if !is_code(it) || !allowed || self.is_long() && it.l && it.db {
            return Err(self.selector_fault(vector::GP, selector, 0));
        }
        self.code_target(bus, &descriptor, rip, cpl)
    }

    /// SS of a return. 64-bit code below CPL 3 may have none.
    fn outer_stack<B: Bus>(
        &mut self,
        bus: &mut B,
        selector: u16,
        target: &Target,
    ) -> Result<Segment, Exit> {
        if is_null(selector) {
            let to_64 = self.is_long() && target.cs.l;
            if to_64 && target.cpl < 3 && rpl(selector) == target.cpl {
                return Ok(descriptor::null(selector, target.cpl));
            }
            return Err(self.raise(Fault::GP));
        }
        let descriptor = self.stack_descriptor(bus, selector, target.cpl, vector::GP, 0)?;
        self.touch(bus, &descriptor)
    }

    fn return_to_v86<B: Bus>(&mut self, bus: &mut B, selector: u16, rip: u64, popped: u64) -> Flow {
        let mut slots = [0; 6];
        for (slot, index) in slots.iter_mut().zip(3..) {
            *slot = self.stack_slot(bus, StackWidth::Bits32, index)?;
        }
        let [rsp, ss, es, ds, fs, gs] = slots;
        for (index, selector) in [
            (seg::SS, ss),
            (seg::ES, es),
            (seg::DS, ds),
            (seg::FS, fs),
            (seg::GS, gs),
            (seg::CS, u64::from(selector)),
        ] {
            self.segs[index] = descriptor::virtual_8086(selector as u16);
        }
        self.gpr[reg::RSP] = rsp;
        self.pending.nmi_masked = false;
        self.flags.set(popped);
        self.rip = rip & 0xffff;
        self.set_cpl(3);
        Err(Exit::Jump)
    }
}
