//! IN, OUT, INS, OUTS: one element a stop, behind IOPL and the TSS's I/O permission bitmap.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::sized;
use crate::descriptor::system_type;
use crate::int::Int;
use crate::op::{Exec, Exit, Fault, Flow, Op};
use crate::walk::AccessKind;
use crate::{Bus, Cpu, Stop, flags, reg, seg};

/// Where the TSS has the offset of its I/O permission bitmap.
const IO_MAP_BASE: u64 = 102;

/// The functions of this family.
pub(crate) fn lower<B: Bus>(insn: &Instruction, op: &mut Op<B>) -> Option<Exec<B>> {
    let repeated = insn.has_rep_prefix() || insn.has_repne_prefix();
    let by_immediate = [insn.op0_kind(), insn.op1_kind()].contains(&OpKind::Immediate8);
    match insn.mnemonic() {
        Mnemonic::In if by_immediate => {
            sized!(insn.op0_register().size(), T => input::<B, T, true>)
        }
        Mnemonic::In => sized!(insn.op0_register().size(), T => input::<B, T, false>),
        Mnemonic::Out if by_immediate => {
            sized!(insn.op1_register().size(), T => output::<B, T, true>)
        }
        Mnemonic::Out => sized!(insn.op1_register().size(), T => output::<B, T, false>),
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => {
            op.imm = u64::from(repeated);
            sized!(string_bytes(insn.code()), T => input_string::<B, T>)
        }
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => {
            op.imm = u64::from(repeated);
            sized!(string_bytes(insn.code()), T => output_string::<B, T>)
        }
        _ => None,
    }
}

const fn string_bytes(code: Code) -> usize {
    match code {
        Code::Insb_m8_DX | Code::Outsb_DX_m8 => 1,
        Code::Insw_m16_DX | Code::Outsw_DX_m16 => 2,
        _ => 4,
    }
}

impl Cpu {
    /// #GP(0) unless the program may use the ports; an access that is made meets their breakpoints.
    fn reach_ports<B: Bus>(&mut self, bus: &mut B, port: u16, len_bytes: usize) -> Flow {
        if !self.may_use_ports(bus, port, len_bytes)? {
            return Err(self.raise(Fault::GP));
        }
        self.watch_ports(port, len_bytes);
        Ok(())
    }

    fn may_use_ports<B: Bus>(
        &mut self,
        bus: &mut B,
        port: u16,
        len_bytes: usize,
    ) -> Result<bool, Exit> {
        if self.is_real() || self.cpl <= self.iopl() && !self.is_v86() {
            return Ok(true);
        }
        let limit = u64::from(self.tr.limit);
        let has_bitmap = !self.tr.unusable
            && self.tr.type_ & !system_type::BUSY == system_type::TSS
            && limit > IO_MAP_BASE;
        if has_bitmap {
            let tss = self.tr.base;
            let map: u16 =
                self.read_system(bus, self.wrap_linear(tss.wrapping_add(IO_MAP_BASE)))?;
            let at = u64::from(map) + u64::from(port / 8);
            // The processor always reads two bytes: the ports may cross one.
            if at < limit {
                let bits: u16 = self.read_system(bus, self.wrap_linear(tss.wrapping_add(at)))?;
                let wanted = (1_u16 << len_bytes) - 1;
                return Ok(bits >> (port % 8) & wanted == 0);
            }
        }
        Ok(false)
    }

    fn port<B, const IMMEDIATE: bool>(&self, op: &Op<B>) -> u16 {
        if IMMEDIATE {
            op.imm as u16 & 0xff
        } else {
            self.gpr[reg::RDX] as u16
        }
    }

    /// Moves a string register, cut to the address size, by one element.
    fn advance_string(&mut self, register: usize, len_bytes: usize, mask: u64) {
        let step = if self.flags.has(flags::DF) {
            (len_bytes as u64).wrapping_neg()
        } else {
            len_bytes as u64
        };
        self.set_masked(register, self.gpr[register].wrapping_add(step), mask);
    }

    /// Counts a repetition. `true`: more are to come.
    fn count_down(&mut self, repeated: bool, mask: u64) -> bool {
        if !repeated {
            return false;
        }
        let left = self.gpr[reg::RCX].wrapping_sub(1) & mask;
        self.set_masked(reg::RCX, left, mask);
        left != 0
    }

    /// Writes a register by address size: 32 bits clear the upper half, 16 keep the rest.
    fn set_masked(&mut self, register: usize, value: u64, mask: u64) {
        let kept = if mask == 0xffff {
            self.gpr[register] & !mask
        } else {
            0
        };
        self.gpr[register] = kept | value & mask;
    }
}

fn input<B: Bus, T: Int, const IMMEDIATE: bool>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let port = cpu.port::<B, IMMEDIATE>(op);
    cpu.reach_ports(bus, port, T::BYTES)?;
    match cpu.io_in.take() {
        Some(value) => {
            cpu.set(reg::RAX as u8, T::cut(u64::from(value)));
            Ok(())
        }
        None => Err(cpu.stop(Stop::IoIn {
            port,
            len_bytes: T::BYTES as u8,
        })),
    }
}

fn output<B: Bus, T: Int, const IMMEDIATE: bool>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let port = cpu.port::<B, IMMEDIATE>(op);
    cpu.reach_ports(bus, port, T::BYTES)?;
    let value = cpu.get::<T>(reg::RAX as u8).zx() as u32;
    Err(cpu.stop_after(Stop::IoOut {
        port,
        len_bytes: T::BYTES as u8,
        value,
    }))
}

/// INS; `imm` is 1 with REP.
fn input_string<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let mask = op.addressing.mask();
    let repeated = op.imm == 1;
    if repeated && cpu.gpr[reg::RCX] & mask == 0 {
        return Ok(());
    }
    let port = cpu.port::<B, false>(op);
    cpu.reach_ports(bus, port, T::BYTES)?;
    let offset = cpu.gpr[reg::RDI] & mask;
    let linear = cpu.in_segment(seg::ES, offset, T::BYTES, AccessKind::Write)?;
    // The store must not fail once the device has been read.
    cpu.reserve(bus, linear, seg::ES, T::BYTES)?;
    let Some(value) = cpu.io_in.take() else {
        return Err(cpu.stop(Stop::IoIn {
            port,
            len_bytes: T::BYTES as u8,
        }));
    };
    cpu.write(bus, linear, seg::ES, T::cut(u64::from(value)))?;
    cpu.advance_string(reg::RDI, T::BYTES, mask);
    if cpu.count_down(repeated, mask) {
        Err(Exit::Repeat)
    } else {
        Ok(())
    }
}

/// OUTS; `imm` is 1 with REP.
fn output_string<B: Bus, T: Int>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let mask = op.addressing.mask();
    let repeated = op.imm == 1;
    if repeated && cpu.gpr[reg::RCX] & mask == 0 {
        return Ok(());
    }
    let port = cpu.port::<B, false>(op);
    cpu.reach_ports(bus, port, T::BYTES)?;
    let offset = cpu.gpr[reg::RSI] & mask;
    let segment = if op.addressing.is_flat() {
        seg::DS
    } else {
        op.addressing.segment()
    };
    let linear = cpu.in_segment(segment, offset, T::BYTES, AccessKind::Read)?;
    let value: T = cpu.read(bus, linear, segment)?;
    cpu.advance_string(reg::RSI, T::BYTES, mask);
    let stop = Stop::IoOut {
        port,
        len_bytes: T::BYTES as u8,
        value: value.zx() as u32,
    };
    if cpu.count_down(repeated, mask) {
        Err(cpu.stop_between(stop))
    } else {
        Err(cpu.stop_after(stop))
    }
}
