//! Numbers of registers, in the order of their encoding.

/// How many slots the register file has. A power of two, so that a masked number is a valid one.
pub(crate) const COUNT: usize = 32;

/// The slot that is always 0: "no base", "no index".
pub(crate) const ZERO: u8 = 16;

/// Added to the number of AH, CH, DH and BH (0 to 3 after subtraction).
pub(crate) const HIGH: u8 = 32;

pub(crate) const RAX: usize = 0;
pub(crate) const RCX: usize = 1;
pub(crate) const RDX: usize = 2;
pub(crate) const RBX: usize = 3;
pub(crate) const RSP: usize = 4;
pub(crate) const RBP: usize = 5;
pub(crate) const RSI: usize = 6;
pub(crate) const RDI: usize = 7;
pub(crate) const R11: usize = 11;
