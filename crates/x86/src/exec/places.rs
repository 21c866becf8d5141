//! Where operands of SSE instructions are: a type for each place, so that functions are made for it.

use core::marker::PhantomData;

use crate::int::{Datum, Int};
use crate::op::{Exit, Fault, Flow, Op};
use crate::walk::AccessKind;
use crate::{Bus, Cpu};

/// A place for a value of up to 128 bits. `number` is that of a register.
pub(super) trait Place {
    /// The source's value, zero-extended.
    fn read<B: Bus>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>, number: u8) -> Result<u128, Exit>;

    /// The destination's value, where it takes part: 0 for anything but XMM registers.
    fn before<B>(_cpu: &Cpu, _op: &Op<B>) -> u128 {
        0
    }

    /// Replaces the destination by as many low bits as it has.
    fn write<B: Bus>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>, value: u128) -> Flow;
}

/// An XMM register.
pub(super) struct Xmm;

/// A general register of this size.
pub(super) struct General<T>(PhantomData<T>);

/// Memory of this size, anywhere.
pub(super) struct Memory<T>(PhantomData<T>);

/// 16 bytes of memory that must be aligned.
pub(super) struct Aligned;

/// No operand: an immediate takes its part.
pub(super) struct Nothing;

impl Place for Xmm {
    #[inline(always)]
    fn read<B: Bus>(cpu: &mut Cpu, _: &mut B, _: &Op<B>, number: u8) -> Result<u128, Exit> {
        Ok(cpu.fpu.xmm[usize::from(number & 15)])
    }

    #[inline(always)]
    fn before<B>(cpu: &Cpu, op: &Op<B>) -> u128 {
        cpu.fpu.xmm[usize::from(op.dst & 15)]
    }

    #[inline(always)]
    fn write<B: Bus>(cpu: &mut Cpu, _: &mut B, op: &Op<B>, value: u128) -> Flow {
        cpu.fpu.xmm[usize::from(op.dst & 15)] = value;
        Ok(())
    }
}

impl<T: Int> Place for General<T> {
    fn read<B: Bus>(cpu: &mut Cpu, _: &mut B, _: &Op<B>, number: u8) -> Result<u128, Exit> {
        Ok(cpu.get::<T>(number).zx().into())
    }

    fn write<B: Bus>(cpu: &mut Cpu, _: &mut B, op: &Op<B>, value: u128) -> Flow {
        cpu.set(op.dst, T::cut(value as u64));
        Ok(())
    }
}

impl<T: Datum> Place for Memory<T> {
    #[inline(always)]
    fn read<B: Bus>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>, _: u8) -> Result<u128, Exit> {
        Ok(u128::from_le_bytes(cpu.load::<B, T>(bus, op)?.to_bytes()))
    }

    #[inline(always)]
    fn write<B: Bus>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>, value: u128) -> Flow {
        cpu.store(bus, op, T::from_bytes(value.to_le_bytes()))
    }
}

impl Place for Aligned {
    #[inline(always)]
    fn read<B: Bus>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>, _: u8) -> Result<u128, Exit> {
        let linear = aligned(cpu, op, AccessKind::Read)?;
        cpu.read(bus, linear, op.segment())
    }

    #[inline(always)]
    fn write<B: Bus>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>, value: u128) -> Flow {
        let linear = aligned(cpu, op, AccessKind::Write)?;
        cpu.write(bus, linear, op.segment(), value)
    }
}

impl Place for Nothing {
    fn read<B: Bus>(_: &mut Cpu, _: &mut B, _: &Op<B>, _: u8) -> Result<u128, Exit> {
        Ok(0)
    }

    fn write<B: Bus>(_: &mut Cpu, _: &mut B, _: &Op<B>, _: u128) -> Flow {
        Ok(())
    }
}

/// Linear address of a memory operand of 16 bytes that must be aligned.
#[inline(always)]
fn aligned<B>(cpu: &mut Cpu, op: &Op<B>, kind: AccessKind) -> Result<u64, Exit> {
    let linear = cpu.linear(op, 16, kind)?;
    if linear % 16 == 0 {
        Ok(linear)
    } else {
        Err(cpu.raise(Fault::GP))
    }
}
