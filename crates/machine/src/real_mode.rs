//! The state in which a flat binary starts: 0000:7c00, as a BIOS leaves a boot sector, but without a BIOS.
//!
//! Every interrupt vector leads to a stub that halts: a guest that ends there has called the BIOS, or has met
//! an exception that it has no handler for.

use msrgate_core::{Registers, Segment, SystemRegisters};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// Where a BIOS loads a boot sector. The stack grows down from here.
pub(crate) const FLAT_BASE: u64 = 0x7c00;
/// RIP after the stub's HLT.
pub(crate) const STUB_END: u64 = STUB + 2;

const STUB: u64 = 0x500;
/// CLI, HLT.
const STUB_CODE: [u8; 2] = [0xfa, 0xf4];
const VECTORS: u64 = 256;
/// The drive that a BIOS booted from, in DL.
const DRIVE: u64 = 0x80;
/// The bit that is always set.
const RFLAGS: u64 = 0x2;

/// Writes the interrupt vectors and their stub.
pub(crate) fn write_vectors(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    for vector in 0..VECTORS {
        // Offset in the low half, segment 0 in the high one.
        memory.write_slice(&STUB.to_le_bytes()[..4], GuestAddress(vector * 4))?;
    }
    memory.write_slice(&STUB_CODE, GuestAddress(STUB))
}

/// `reset` with CS at 0.
pub(crate) fn system_registers(reset: &SystemRegisters) -> SystemRegisters {
    SystemRegisters {
        cs: Segment {
            base: 0,
            selector: 0,
            ..reset.cs
        },
        ..*reset
    }
}

/// Interrupts off.
pub(crate) fn registers() -> Registers {
    Registers {
        rip: FLAT_BASE,
        rsp: FLAT_BASE,
        rdx: DRIVE,
        rflags: RFLAGS,
        ..Registers::default()
    }
}
