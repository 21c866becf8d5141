//! A decoded instruction, and how its execution ends.
//!
//! An [`Op`] is 32 bytes: a function, and the operands that this function wants. Functions return a
//! [`Flow`]: `Ok` means done, go on with the next; everything else is an [`Exit`] to the run loop.
//! What an exit is about ([`Fault`], [`Stop`](crate::Stop)) waits in the processor, so that the way out stays a byte.

use crate::Cpu;

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
    /// log2 of the index's factor.
    pub(crate) scale: u8,
    /// How the memory operand's offset becomes a linear address.
    pub(crate) addressing: Addressing,
    /// Bytes from the start of the block to the instruction.
    pub(crate) start: u8,
    /// Length in bytes.
    pub(crate) len: u8,
}

/// Segment and address size of a memory operand. [`Addressing::FLAT`] is the common case: 64-bit, base 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addressing(u8);

impl Addressing {
    /// 64-bit addressing through a segment whose base counts as 0.
    pub(crate) const FLAT: Self = Self(0);

    /// `segment` as in [`seg`](crate::seg), `size_bytes` 2, 4 or 8.
    pub(crate) const fn new(segment: u8, size_bytes: u8) -> Self {
        Self(0x80 | segment | size_bytes << 3)
    }

    /// [`Self::FLAT`].
    pub(crate) const fn is_flat(self) -> bool {
        self.0 == 0
    }

    /// Segment register number.
    pub(crate) const fn segment(self) -> usize {
        (self.0 & 7) as usize
    }

    /// Address size in bytes.
    pub(crate) const fn size_bytes(self) -> u8 {
        match self.0 >> 3 & 0xf {
            0 => 8,
            size => size,
        }
    }

    /// What the offset is cut to.
    pub(crate) const fn mask(self) -> u64 {
        match self.0 >> 3 & 0xf {
            2 => 0xffff,
            4 => 0xffff_ffff,
            _ => u64::MAX,
        }
    }
}

const _: () = assert!(size_of::<Op<()>>() == 32);
const _: () = assert!(size_of::<Flow>() == 1);

impl<B> Clone for Op<B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for Op<B> {}
