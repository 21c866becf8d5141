//! The stack as interrupts, gates and far transfers use it: frames pushed in full before anything changes,
//! and popped from without moving the stack pointer.

use msrgate_core::Segment;

use crate::op::{Exit, Fault, Flow, vector};
use crate::{Bus, Cpu, reg, seg};

/// Size of the slots of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StackWidth {
    Bits16,
    Bits32,
    Bits64,
}

impl StackWidth {
    /// Slot size in bytes.
    pub(crate) const fn bytes(self) -> u64 {
        match self {
            Self::Bits16 => 2,
            Self::Bits32 => 4,
            Self::Bits64 => 8,
        }
    }

    /// From an operand size in bytes.
    pub(crate) const fn of(operand_bytes: u64) -> Self {
        match operand_bytes {
            2 => Self::Bits16,
            4 => Self::Bits32,
            _ => Self::Bits64,
        }
    }
}

/// A stack that a frame is being pushed to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stack {
    pub(crate) segment: Segment,
    pub(crate) pointer: u64,
    /// The privilege that it is written with.
    pub(crate) cpl: u8,
    pub(crate) width: StackWidth,
    /// 64-bit: no segmentation, canonical addresses.
    pub(crate) flat: bool,
    /// Error code of the #SS of a bad address.
    pub(crate) error_code: u32,
}

impl Stack {
    /// Pushes one slot.
    pub(crate) fn push<B: Bus>(&mut self, cpu: &mut Cpu, bus: &mut B, value: u64) -> Flow {
        let bytes = self.width.bytes();
        let mask = self.mask();
        let offset = self.pointer.wrapping_sub(bytes) & mask;
        let last = offset.wrapping_add(bytes - 1);
        let linear = if self.flat {
            (Cpu::is_canonical(offset) && Cpu::is_canonical(last)).then_some(offset)
        } else {
            is_inside(&self.segment, cpu, offset, last)
                .then(|| cpu.wrap_linear(self.segment.base.wrapping_add(offset)))
        };
        let Some(linear) = linear else {
            return Err(cpu.raise(Fault::coded(vector::SS, self.error_code)));
        };
        match self.width {
            StackWidth::Bits16 => cpu.write_as(bus, linear, value as u16, self.cpl)?,
            StackWidth::Bits32 => cpu.write_as(bus, linear, value as u32, self.cpl)?,
            StackWidth::Bits64 => cpu.write_as(bus, linear, value, self.cpl)?,
        }
        self.pointer = self.pointer & !mask | offset;
        Ok(())
    }

    /// Makes it the processor's stack.
    pub(crate) fn commit(&self, cpu: &mut Cpu) {
        cpu.segs[seg::SS] = self.segment;
        cpu.gpr[reg::RSP] = self.pointer;
    }

    const fn mask(&self) -> u64 {
        if self.flat {
            u64::MAX
        } else {
            pointer_mask(&self.segment)
        }
    }
}

/// The bits of RSP that a stack segment uses, outside 64-bit mode.
const fn pointer_mask(segment: &Segment) -> u64 {
    if segment.db { 0xffff_ffff } else { 0xffff }
}

fn is_inside(segment: &Segment, cpu: &Cpu, offset: u64, last: u64) -> bool {
    const EXPAND_DOWN: u8 = 4;
    let limit = u64::from(segment.limit);
    let expands_down = !cpu.is_real() && !cpu.is_v86() && segment.type_ & EXPAND_DOWN != 0;
    if expands_down {
        offset > limit && last <= pointer_mask(segment)
    } else {
        last <= limit
    }
}

impl Cpu {
    /// The stack in use.
    pub(crate) fn current_stack(&self, width: StackWidth) -> Stack {
        Stack {
            segment: self.segs[seg::SS],
            pointer: self.gpr[reg::RSP],
            cpl: self.cpl,
            width,
            flat: width == StackWidth::Bits64 || self.is_64(),
            error_code: 0,
        }
    }

    /// Reads the slot `index` above the stack pointer.
    pub(crate) fn stack_slot<B: Bus>(
        &mut self,
        bus: &mut B,
        width: StackWidth,
        index: u64,
    ) -> Result<u64, Exit> {
        self.stack_at(bus, width, index * width.bytes())
    }

    /// Reads a slot `distance` bytes above the stack pointer.
    pub(crate) fn stack_at<B: Bus>(
        &mut self,
        bus: &mut B,
        width: StackWidth,
        distance: u64,
    ) -> Result<u64, Exit> {
        Ok(match width {
            StackWidth::Bits16 => u64::from(self.peek::<B, u16>(bus, distance)?),
            StackWidth::Bits32 => u64::from(self.peek::<B, u32>(bus, distance)?),
            StackWidth::Bits64 => self.peek(bus, distance)?,
        })
    }

    /// The bits of RSP in use.
    #[inline(always)]
    pub(crate) fn stack_mask(&self) -> u64 {
        if self.is_64() {
            u64::MAX
        } else {
            pointer_mask(&self.segs[seg::SS])
        }
    }
}
