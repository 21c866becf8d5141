//! Memory operands of more than 16 bytes, or of odd sizes: FXSAVE's area, the x87 environment, 80-bit numbers.

use crate::op::Flow;
use crate::{Bus, Cpu};

/// The largest power of two that divides `len_bytes`, up to 16: operands are moved in such units.
fn unit(len_bytes: usize) -> usize {
    1 << len_bytes.trailing_zeros().min(4)
}

impl Cpu {
    /// Loads an operand.
    pub(super) fn read_bytes<B: Bus>(
        &mut self,
        bus: &mut B,
        linear: u64,
        segment: usize,
        bytes: &mut [u8],
    ) -> Flow {
        let unit = unit(bytes.len());
        for (i, part) in bytes.chunks_mut(unit).enumerate() {
            let linear = linear.wrapping_add((i * unit) as u64);
            let value: u128 = match unit {
                16 => self.read(bus, linear, segment)?,
                8 => self.read::<B, u64>(bus, linear, segment)?.into(),
                4 => self.read::<B, u32>(bus, linear, segment)?.into(),
                2 => self.read::<B, u16>(bus, linear, segment)?.into(),
                _ => self.read::<B, u8>(bus, linear, segment)?.into(),
            };
            part.copy_from_slice(&value.to_le_bytes()[..unit]);
        }
        Ok(())
    }

    /// Makes sure that [`Self::write_bytes`] will succeed.
    pub(super) fn reserve_bytes<B: Bus>(
        &mut self,
        bus: &mut B,
        linear: u64,
        segment: usize,
        len_bytes: usize,
    ) -> Flow {
        let unit = unit(len_bytes);
        (0..len_bytes)
            .step_by(unit)
            .try_for_each(|at| self.reserve(bus, linear.wrapping_add(at as u64), segment, unit))
    }

    /// Stores an operand.
    pub(super) fn write_bytes<B: Bus>(
        &mut self,
        bus: &mut B,
        linear: u64,
        segment: usize,
        bytes: &[u8],
    ) -> Flow {
        let unit = unit(bytes.len());
        for (i, part) in bytes.chunks(unit).enumerate() {
            let linear = linear.wrapping_add((i * unit) as u64);
            let mut value = [0; 16];
            value[..unit].copy_from_slice(part);
            let value = u128::from_le_bytes(value);
            match unit {
                16 => self.write(bus, linear, segment, value)?,
                8 => self.write(bus, linear, segment, value as u64)?,
                4 => self.write(bus, linear, segment, value as u32)?,
                2 => self.write(bus, linear, segment, value as u16)?,
                _ => self.write(bus, linear, segment, value as u8)?,
            }
        }
        Ok(())
    }
}
