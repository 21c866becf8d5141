//! A decoded instruction, and how its execution ends.
//!
//! An [`Op`] is 32 bytes: a function, and the operands that this function wants. Functions return a
//! [`Flow`]: `Ok` means done, go on with the next; everything else is an [`Exit`] to the run loop.
//! What an exit is about ([`Fault`], [`Stop`](crate::Stop)) waits in the processor, so that the way out stays a byte.

use crate::int::Int;
use crate::{Cpu, seg};

/// Executes one decoded instruction.
pub(crate) type Exec<B> = fn(&mut Cpu, &mut B, &Op<B>) -> Flow;

/// How an instruction ends.
pub(crate) type Flow = Result<(), Exit>;

/// Why the run loop must look at the processor before it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// [`Cpu::raise`] was called. Nothing has changed; RIP becomes the instruction's own.
    Fault,
    /// [`Cpu::stop`] was called, before retirement: RIP becomes the instruction's own.
    Stop,
    /// [`Cpu::stop`] was called, the instruction has retired: RIP becomes the next one's.
    StopAfter,
    /// Retired, and the function has set RIP.
    Jump,
    /// Retired, but what follows must be looked up anew (mode, mappings or interruptibility changed).
    Leave,
    /// One portion of a repeated instruction is done: RIP stays, and it is not retired.
    Repeat,
    /// Likewise, and [`Cpu::stop_between`] was called.
    StopRepeat,
    /// Nothing has changed; execute this instruction again, alone, in the careful mode that MMIO
    /// and stores into code need.
    Careful,
}

/// An exception that an instruction raises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Vector.
    pub(crate) vector: u8,
    /// Error code, for the vectors that push one.
    pub(crate) error_code: Option<u32>,
    /// CR2 for #PF, the new DR6 bits for #DB, else 0.
    pub(crate) payload: u64,
}

/// Exception vectors.
pub(crate) mod vector {
    pub(crate) const DE: u8 = 0;
    pub(crate) const DB: u8 = 1;
    pub(crate) const BP: u8 = 3;
    pub(crate) const OF: u8 = 4;
    pub(crate) const BR: u8 = 5;
    pub(crate) const UD: u8 = 6;
    pub(crate) const NM: u8 = 7;
    pub(crate) const DF: u8 = 8;
    pub(crate) const TS: u8 = 10;
    pub(crate) const NP: u8 = 11;
    pub(crate) const SS: u8 = 12;
    pub(crate) const GP: u8 = 13;
    pub(crate) const PF: u8 = 14;
    pub(crate) const MF: u8 = 16;
    pub(crate) const XM: u8 = 19;
}

impl Fault {
    /// An exception without an error code.
    pub(crate) const fn plain(vector: u8) -> Self {
        Self {
            vector,
            error_code: None,
            payload: 0,
        }
    }

    /// An exception with an error code.
    pub(crate) const fn coded(vector: u8, error_code: u32) -> Self {
        Self {
            vector,
            error_code: Some(error_code),
            payload: 0,
        }
    }

    /// #DB, with the bits that DR6 gets.
    pub(crate) const fn debug(dr6: u64) -> Self {
        Self {
            payload: dr6,
            ..Self::plain(vector::DB)
        }
    }

    /// #UD.
    pub(crate) const UD: Self = Self::plain(vector::UD);
    /// #DE.
    pub(crate) const DE: Self = Self::plain(vector::DE);
    /// #NM.
    pub(crate) const NM: Self = Self::plain(vector::NM);
    /// #GP(0).
    pub(crate) const GP: Self = Self::coded(vector::GP, 0);
    /// #SS(0).
    pub(crate) const SS: Self = Self::coded(vector::SS, 0);
}

/// A decoded instruction.
pub(crate) struct Op<B> {
    /// What to do.
    pub(crate) exec: Exec<B>,
    /// Immediate, sign-extended; the target of a direct branch; or what the function wants.
    pub(crate) imm: u64,
    /// Displacement of the memory operand; RIP-relative ones are absolute.
    pub(crate) disp: u64,
    /// First register operand (see [`reg`](crate::reg)).
    pub(crate) dst: u8,
    /// Second register operand.
    pub(crate) src: u8,
    /// Base register of the memory operand, or [`reg::ZERO`](crate::reg::ZERO).
    pub(crate) base: u8,
    /// Index register of the memory operand, or [`reg::ZERO`](crate::reg::ZERO).
    pub(crate) index: u8,
    /// How the memory operand's offset becomes a linear address.
    pub(crate) addressing: Addressing,
    /// Bytes from the start of the block to the instruction.
    pub(crate) start: u8,
    /// Length in bytes.
    pub(crate) len: u8,
    /// How many instructions the block has to here, this one included.
    pub(crate) through: u8,
}

/// Segment, address size and index factor of a memory operand, and whether the [`Op`] is two instructions.
///
/// | bits | |
/// |---|---|
/// | 7:6 | log2 of the index's factor |
/// | 5 | two instructions |
/// | 4:3 | log2 of the address size in bytes; 0 with segment 0 is the common case: 64 bits, base 0 |
/// | 2:0 | segment register |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addressing(u8);

impl Addressing {
    /// 64-bit addressing through a segment whose base counts as 0.
    pub(crate) const FLAT: Self = Self(0);

    const SEGMENT: u8 = 0b111;
    const SIZE: u8 = 0b11 << 3;
    const TWO: u8 = 1 << 5;

    /// `segment` as in [`seg`](crate::seg), `size_bytes` 2, 4 or 8.
    pub(crate) const fn new(segment: u8, size_bytes: u8) -> Self {
        Self(segment | (size_bytes.trailing_zeros() as u8) << 3)
    }

    /// With an index factor of `1 << scale`.
    pub(crate) const fn scaled(self, scale: u32) -> Self {
        Self(self.0 & 0x3f | (scale as u8) << 6)
    }

    /// Through no segment.
    pub(crate) const fn unsegmented(self) -> Self {
        let it = match self.size_bytes() {
            8 => Self::FLAT,
            size => Self::new(0, size),
        };
        it.scaled(self.scale() as u32)
    }

    /// Of an [`Op`] that is two instructions.
    pub(crate) const fn of_two(self) -> Self {
        Self(self.0 | Self::TWO)
    }

    /// log2 of the index's factor.
    #[inline(always)]
    pub(crate) const fn scale(self) -> u8 {
        self.0 >> 6
    }

    /// [`Self::FLAT`], with any factor.
    #[inline(always)]
    pub(crate) const fn is_flat(self) -> bool {
        self.0 & (Self::SEGMENT | Self::SIZE) == 0
    }

    /// FS or GS and a 64-bit offset: a base and nothing to check.
    #[inline(always)]
    pub(crate) const fn is_based(self) -> bool {
        self.0 & (Self::SEGMENT & !1 | Self::SIZE) == Self::new(seg::FS as u8, 8).0
    }

    /// Segment register number.
    pub(crate) const fn segment(self) -> usize {
        (self.0 & Self::SEGMENT) as usize
    }

    /// Address size in bytes.
    pub(crate) const fn size_bytes(self) -> u8 {
        match self.0 & Self::SIZE {
            0 => 8,
            size => 1 << (size >> 3),
        }
    }

    /// What the offset is cut to.
    pub(crate) const fn mask(self) -> u64 {
        match self.size_bytes() {
            2 => 0xffff,
            4 => 0xffff_ffff,
            _ => u64::MAX,
        }
    }
}

impl<B> Op<B> {
    /// Adds a conditional jump to an [`Op`] of arithmetic. `exec` does both, and the target is `distance` from the start
    /// of the block.
    pub(crate) fn add_jump(&mut self, exec: Exec<B>, distance: i32, len: usize) {
        self.exec = exec;
        self.imm = self.imm & 0xffff_ffff | u64::from(distance as u32) << 32;
        self.len += len as u8;
        self.through += 1;
        self.addressing = self.addressing.of_two();
    }

    /// The immediate of arithmetic: 32 bits, sign-extended.
    #[inline(always)]
    pub(crate) fn immediate<T: Int>(&self) -> T {
        T::cut(self.imm as i32 as u64)
    }

    /// The target of a jump that was added, where `rip` is the start of the block.
    #[inline(always)]
    pub(crate) const fn second_target(&self, rip: u64) -> u64 {
        rip.wrapping_add((self.imm as i64 >> 32) as u64)
    }

    /// How many instructions this is: 1 or 2.
    pub(crate) const fn instructions(&self) -> u8 {
        1 + (self.addressing.0 & Addressing::TWO) / Addressing::TWO
    }
}

const _: () = assert!(size_of::<Op<()>>() == 32);
const _: () = assert!(size_of::<Flow>() == 1);
const _: () = assert!(seg::FS == 4 && seg::GS == 5);

impl<B> Clone for Op<B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for Op<B> {}
