//! Delivery of exceptions and interrupts through the IDT or the real-mode vectors.
//!
//! [`Cpu::deliver`] is the run loop's door; it turns faults on the way into further exceptions, up to the
//! triple fault (SDM vol. 3, table 6-5). INT n and its kin use [`Cpu::software_interrupt`], whose faults are
//! those of an instruction. Nothing of the processor changes before the whole frame is written. Task gates
//! are answered with #GP: there is no hardware task switching.

use msrgate_core::Segment;

use crate::cpu::Shadow;
use crate::descriptor::{
    self, Gate, is_code, is_conforming, is_null, rpl, selector_error, system_type,
};
use crate::op::{Exit, Fault, Flow, vector};
use crate::stack::{Stack, StackWidth};
use crate::state::Exception;
use crate::{Bus, Cpu, Stop, flags, reg, seg};

/// Error code bit: the selector names an IDT entry.
const IN_IDT: u32 = 2;
const NMI: u8 = 2;
/// DR7.GD.
const DR7_GD: u64 = 1 << 13;
/// DR6.B0 to B3.
const DR6_B: u64 = 0xf;

/// What is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// RIP is the faulting instruction's, or for traps the next one's.
    Exception(Fault),
    /// An external interrupt.
    External(u8),
    /// Vector 2.
    Nmi,
}

/// How an exception combines with another one on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

impl Class {
    const fn of(number: u8) -> Self {
        match number {
            vector::DE | vector::TS | vector::NP | vector::SS | vector::GP => Self::Contributory,
            vector::PF => Self::PageFault,
            vector::DF => Self::DoubleFault,
            _ => Self::Benign,
        }
    }
}

/// What comes of `second`, raised while something of class `first` was delivered; `None`: a triple fault.
fn combine(first: Class, second: Fault) -> Option<Fault> {
    match (first, Class::of(second.vector)) {
        (Class::DoubleFault, _) => None,
        (Class::Contributory, Class::Contributory)
        | (Class::PageFault, Class::Contributory | Class::PageFault) => {
            Some(Fault::coded(vector::DF, 0))
        }
        _ => Some(second),
    }
}

/// One attempt at a delivery.
#[derive(Clone, Copy, Debug)]
struct Delivery {
    vector: u8,
    error_code: Option<u32>,
    class: Class,
    /// INT n, INT3 or INTO: the gate's DPL counts, and error codes lack EXT.
    software: bool,
    return_rip: u64,
    /// RF in the pushed RFLAGS: a fault, whose instruction will be restarted.
    resume: bool,
}

impl Delivery {
    const fn exception(fault: Fault, return_rip: u64) -> Self {
        const MACHINE_CHECK: u8 = 18;
        const DR6_FAULTS: u64 = 1 << 13 | 0xf;
        Self {
            vector: fault.vector,
            error_code: fault.error_code,
            class: Class::of(fault.vector),
            software: false,
            return_rip,
            resume: match fault.vector {
                // Breakpoints on instructions, and on debug registers, come before the instruction.
                vector::DB => fault.payload & DR6_FAULTS != 0,
                vector::BP | vector::OF | vector::DF | MACHINE_CHECK => false,
                _ => true,
            },
        }
    }

    const fn interrupt(vector: u8, return_rip: u64) -> Self {
        Self {
            vector,
            error_code: None,
            class: Class::Benign,
            software: false,
            return_rip,
            resume: false,
        }
    }

    /// Error code bit 0: the event came from outside the program.
    const fn ext(&self) -> u32 {
        !self.software as u32
    }

    /// The error code that names the IDT entry.
    const fn idt_error(&self) -> u32 {
        (self.vector as u32) << 3 | IN_IDT | self.ext()
    }
}

impl Cpu {
    /// Delivers an event through the IDT. Faults on the way become exceptions of their own, up to the
    /// triple fault.
    pub(crate) fn deliver<B: Bus>(&mut self, bus: &mut B, event: Event) -> Result<(), Stop> {
        let mut delivery = match event {
            Event::Exception(fault) => {
                self.last_exception = Some(Exception {
                    vector: fault.vector,
                    error_code: fault.error_code,
                });
                self.apply_payload(fault);
                Delivery::exception(fault, self.rip)
            }
            Event::External(vector) => Delivery::interrupt(vector, self.rip),
            Event::Nmi => Delivery::interrupt(NMI, self.rip),
        };
        while self.deliver_once(bus, &delivery).is_err() {
            let second = self.fault;
            self.apply_payload(second);
            let Some(next) = combine(delivery.class, second) else {
                self.shut_down = true;
                return Err(Stop::TripleFault);
            };
            delivery = Delivery::exception(next, self.rip);
        }
        Ok(())
    }

    /// INT n, INT3, INTO (`privileged`: INT1, which ignores the gate's DPL).
    pub(crate) fn software_interrupt<B: Bus>(
        &mut self,
        bus: &mut B,
        vector: u8,
        next_rip: u64,
        privileged: bool,
    ) -> Flow {
        let delivery = Delivery {
            software: !privileged,
            ..Delivery::interrupt(vector, next_rip)
        };
        self.deliver_once(bus, &delivery)?;
        Err(Exit::Jump)
    }

    /// CR2 of a page fault, DR6 of a debug exception.
    fn apply_payload(&mut self, fault: Fault) {
        match fault.vector {
            vector::PF => self.cr2 = fault.payload,
            vector::DB => {
                self.debug.dr6 = self.debug.dr6 & !DR6_B | fault.payload;
                self.debug.dr7 &= !DR7_GD;
            }
            _ => {}
        }
    }

    fn deliver_once<B: Bus>(&mut self, bus: &mut B, delivery: &Delivery) -> Flow {
        self.trap = false;
        if self.is_real() {
            self.deliver_real(bus, delivery)
        } else if self.is_long() {
            self.deliver_long(bus, delivery)
        } else {
            self.deliver_protected(bus, delivery)
        }
    }

    fn deliver_real<B: Bus>(&mut self, bus: &mut B, delivery: &Delivery) -> Flow {
        let entry = u64::from(delivery.vector) * 4;
        if entry + 3 > u64::from(self.idt.limit) {
            return Err(self.raise(Fault::GP));
        }
        let target: u32 =
            self.read_system(bus, self.wrap_linear(self.idt.base.wrapping_add(entry)))?;
        let (selector, offset) = ((target >> 16) as u16, target & 0xffff);
        let mut stack = self.current_stack(StackWidth::Bits16);
        stack.push(self, bus, self.flags.get())?;
        stack.push(self, bus, u64::from(self.segs[seg::CS].selector))?;
        stack.push(self, bus, delivery.return_rip)?;
        stack.commit(self);
        self.flags
            .put(flags::IF | flags::TF | flags::AC | flags::RF, false);
        self.segs[seg::CS] = descriptor::real_mode(selector, &self.segs[seg::CS]);
        self.enter(u64::from(offset));
        Ok(())
    }

    fn deliver_long<B: Bus>(&mut self, bus: &mut B, delivery: &Delivery) -> Flow {
        let gate = self.long_gate(bus, delivery)?;
        let (cs, cpl) = self.handler_segment(bus, gate.selector, delivery.ext())?;
        let mut stack = self.current_stack(StackWidth::Bits64);
        if cpl < self.cpl {
            stack.segment = descriptor::null(u16::from(cpl), cpl);
        }
        if gate.ist != 0 {
            stack.pointer = self.tss_qword(bus, 0x1c + u32::from(gate.ist) * 8, delivery.ext())?;
        } else if cpl < self.cpl {
            stack.pointer = self.tss_qword(bus, 4 + u32::from(cpl) * 8, delivery.ext())?;
        }
        stack.pointer &= !15;
        (stack.cpl, stack.error_code) = (cpl, delivery.ext());
        if !Self::is_canonical(gate.offset) {
            return Err(self.raise(Fault::coded(vector::GP, delivery.ext())));
        }
        stack.push(self, bus, u64::from(self.segs[seg::SS].selector))?;
        stack.push(self, bus, self.gpr[reg::RSP])?;
        self.push_return(bus, &mut stack, delivery)?;
        stack.commit(self);
        self.enter_handler(cs, cpl, &gate);
        Ok(())
    }

    fn deliver_protected<B: Bus>(&mut self, bus: &mut B, delivery: &Delivery) -> Flow {
        let gate = self.protected_gate(bus, delivery)?;
        let ext = delivery.ext();
        let (cs, cpl) = self.handler_segment(bus, gate.selector, ext)?;
        let width = match gate.type_ {
            system_type::INTERRUPT_GATE | system_type::TRAP_GATE => StackWidth::Bits32,
            _ => StackWidth::Bits16,
        };
        let from_v86 = self.is_v86();
        if from_v86 && cpl != 0 {
            return Err(self.selector_fault(vector::GP, gate.selector, ext));
        }
        let mut stack = self.current_stack(width);
        stack.error_code = ext;
        if cpl < self.cpl {
            stack = self.tss_stack(bus, cpl, width, ext)?;
        }
        if u64::from(cs.limit) < gate.offset {
            return Err(self.raise(Fault::coded(vector::GP, ext)));
        }
        if from_v86 {
            for index in [seg::GS, seg::FS, seg::DS, seg::ES] {
                stack.push(self, bus, u64::from(self.segs[index].selector))?;
            }
        }
        if cpl < self.cpl {
            stack.push(self, bus, u64::from(self.segs[seg::SS].selector))?;
            stack.push(self, bus, self.gpr[reg::RSP])?;
        }
        self.push_return(bus, &mut stack, delivery)?;
        stack.commit(self);
        if from_v86 {
            for index in [seg::GS, seg::FS, seg::DS, seg::ES] {
                self.segs[index] = descriptor::null(0, 0);
            }
        }
        self.enter_handler(cs, cpl, &gate);
        Ok(())
    }

    /// RFLAGS, CS, RIP and the error code.
    fn push_return<B: Bus>(&mut self, bus: &mut B, stack: &mut Stack, delivery: &Delivery) -> Flow {
        let resume = if delivery.resume { flags::RF } else { 0 };
        stack.push(self, bus, self.flags.get() | resume)?;
        stack.push(self, bus, u64::from(self.segs[seg::CS].selector))?;
        stack.push(self, bus, delivery.return_rip)?;
        match delivery.error_code {
            Some(code) => stack.push(self, bus, u64::from(code)),
            None => Ok(()),
        }
    }

    fn enter_handler(&mut self, cs: Segment, cpl: u8, gate: &Gate) {
        const { assert!(system_type::TRAP_GATE == system_type::INTERRUPT_GATE | 1) };
        self.flags
            .put(flags::TF | flags::NT | flags::RF | flags::VM, false);
        if gate.type_ & 1 == 0 {
            self.flags.put(flags::IF, false);
        }
        self.segs[seg::CS] = Segment {
            selector: cs.selector & !3 | u16::from(cpl),
            ..cs
        };
        self.cpl = cpl;
        self.enter(gate.offset);
    }

    fn enter(&mut self, rip: u64) {
        self.rip = rip;
        self.shadow = Shadow::None;
        self.update_mode();
    }

    /// The 16-byte gate of a vector, checked.
    fn long_gate<B: Bus>(&mut self, bus: &mut B, delivery: &Delivery) -> Result<Gate, Exit> {
        let entry = u64::from(delivery.vector) * 16;
        if entry + 15 > u64::from(self.idt.limit) {
            return Err(self.raise(Fault::coded(vector::GP, delivery.idt_error())));
        }
        let address = self.idt.base.wrapping_add(entry);
        let raw: u128 = self.read_system(bus, address)?;
        let gate = Gate::parse(raw as u64, (raw >> 64) as u64);
        let usable = matches!(
            gate.type_,
            system_type::INTERRUPT_GATE | system_type::TRAP_GATE
        );
        self.checked_gate(gate, usable, delivery)
    }

    /// The 8-byte gate of a vector, checked.
    fn protected_gate<B: Bus>(&mut self, bus: &mut B, delivery: &Delivery) -> Result<Gate, Exit> {
        let entry = u64::from(delivery.vector) * 8;
        if entry + 7 > u64::from(self.idt.limit) {
            return Err(self.raise(Fault::coded(vector::GP, delivery.idt_error())));
        }
        let address = self.wrap_linear(self.idt.base.wrapping_add(entry));
        let raw: u64 = self.read_system(bus, address)?;
        let mut gate = Gate::parse(raw, 0);
        let usable = match gate.type_ {
            system_type::INTERRUPT_GATE | system_type::TRAP_GATE => true,
            system_type::INTERRUPT_GATE_16 | system_type::TRAP_GATE_16 => {
                gate.offset &= 0xffff;
                true
            }
            _ => false,
        };
        self.checked_gate(gate, usable, delivery)
    }

    fn checked_gate(
        &mut self,
        gate: Gate,
        usable: bool,
        delivery: &Delivery,
    ) -> Result<Gate, Exit> {
        if !usable || delivery.software && gate.dpl < self.cpl {
            return Err(self.raise(Fault::coded(vector::GP, delivery.idt_error())));
        }
        if !gate.present {
            return Err(self.raise(Fault::coded(vector::NP, delivery.idt_error())));
        }
        Ok(gate)
    }

    /// The code segment that a gate names, and the privilege level that it runs at.
    fn handler_segment<B: Bus>(
        &mut self,
        bus: &mut B,
        selector: u16,
        ext: u32,
    ) -> Result<(Segment, u8), Exit> {
        if is_null(selector) {
            return Err(self.raise(Fault::coded(vector::GP, ext)));
        }
        let descriptor = self.require_descriptor(bus, selector, vector::GP, ext)?;
        let it = &descriptor.segment;
        let wrong_mode = self.is_long() && (!it.l || it.db);
        if !is_code(it) || it.dpl > self.cpl || wrong_mode {
            return Err(self.selector_fault(vector::GP, selector, ext));
        }
        if !it.present {
            return Err(self.selector_fault(vector::NP, selector, ext));
        }
        let cpl = if is_conforming(it) { self.cpl } else { it.dpl };
        Ok((self.touch(bus, &descriptor)?, cpl))
    }
}

/// The task state segment, as far as it holds stacks.
impl Cpu {
    /// A stack pointer of the 64-bit TSS.
    pub(crate) fn tss_qword<B: Bus>(
        &mut self,
        bus: &mut B,
        offset: u32,
        ext: u32,
    ) -> Result<u64, Exit> {
        self.check_tss(offset, 8, ext)?;
        self.read_system(bus, self.tr.base.wrapping_add(u64::from(offset)))
    }

    /// The stack for privilege level `cpl` out of a 32-bit or 16-bit TSS, checked.
    pub(crate) fn tss_stack<B: Bus>(
        &mut self,
        bus: &mut B,
        cpl: u8,
        width: StackWidth,
        ext: u32,
    ) -> Result<Stack, Exit> {
        let (pointer, selector) = if self.tr.type_ & !system_type::BUSY == system_type::TSS {
            let at = 4 + u32::from(cpl) * 8;
            self.check_tss(at, 6, ext)?;
            let raw: u64 = self.read_system(bus, self.tss_address(at))?;
            (raw & 0xffff_ffff, (raw >> 32) as u16)
        } else {
            let at = 2 + u32::from(cpl) * 4;
            self.check_tss(at, 4, ext)?;
            let raw: u32 = self.read_system(bus, self.tss_address(at))?;
            (u64::from(raw & 0xffff), (raw >> 16) as u16)
        };
        if is_null(selector) {
            return Err(self.raise(Fault::coded(vector::TS, ext)));
        }
        debug_assert!(cpl < 4 && rpl(selector) < 4);
        let descriptor = self.stack_descriptor(bus, selector, cpl, vector::TS, ext)?;
        Ok(Stack {
            segment: self.touch(bus, &descriptor)?,
            pointer,
            cpl,
            width,
            flat: false,
            error_code: selector_error(selector) | ext,
        })
    }

    fn tss_address(&self, offset: u32) -> u64 {
        self.wrap_linear(self.tr.base.wrapping_add(u64::from(offset)))
    }

    fn check_tss(&mut self, offset: u32, len_bytes: u32, ext: u32) -> Flow {
        if self.tr.unusable || offset + len_bytes - 1 > self.tr.limit {
            return Err(self.selector_fault(vector::TS, self.tr.selector, ext));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn combinations_follow_the_manuals_table() {
        let double = Some(vector::DF);
        let rows = [
            // first, second, what is delivered
            (vector::UD, vector::GP, Some(vector::GP)),
            (vector::DB, vector::PF, Some(vector::PF)),
            (vector::GP, vector::PF, Some(vector::PF)),
            (vector::DE, vector::PF, Some(vector::PF)),
            (vector::GP, vector::NP, double),
            (vector::TS, vector::SS, double),
            (vector::PF, vector::GP, double),
            (vector::PF, vector::PF, double),
            (vector::PF, vector::UD, Some(vector::UD)),
            (vector::DF, vector::GP, None),
            (vector::DF, vector::PF, None),
        ];
        for (first, second, expected) in rows {
            let got = combine(Class::of(first), Fault::plain(second));
            assert_eq!(
                got.map(|fault| fault.vector),
                expected,
                "{first} then {second}"
            );
        }
        assert_eq!(
            combine(Class::PageFault, Fault::GP),
            Some(Fault::coded(vector::DF, 0))
        );
    }
}
