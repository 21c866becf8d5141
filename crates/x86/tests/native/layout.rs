//! Where things are: at the same addresses in this process and in the emulated machine.
//!
//! All of it is below 2 GiB, so that absolute and 32-bit addressing reach it.

pub(crate) const PAGE: u64 = 4096;

/// Everything is within 2 MiB of here: one page table.
pub(crate) const BASE: u64 = 0x2000_0000;

/// The instruction under test, and the jumps behind it.
pub(crate) const CODE: u64 = BASE;
/// Where the instruction starts.
pub(crate) const INSTRUCTION: u64 = CODE + 0x800;
/// What the jumps behind the instruction jump through.
pub(crate) const CONTEXT: u64 = BASE + PAGE;
pub(crate) const EXIT_NEXT: u64 = CONTEXT + 0x800;
pub(crate) const EXIT_TAKEN: u64 = CONTEXT + 0x808;
/// Branches under test go this far.
pub(crate) const BRANCH_BYTES: u8 = 16;

/// Six pages: none, two for reading and writing, none, one read-only, none.
pub(crate) const ARENA: u64 = BASE + 16 * PAGE;
pub(crate) const ARENA_PAGES: u64 = 6;
/// The pages of the arena that may be accessed at all.
pub(crate) const WRITABLE: core::ops::Range<u64> = ARENA + PAGE..ARENA + 3 * PAGE;
pub(crate) const READ_ONLY: core::ops::Range<u64> = ARENA + 4 * PAGE..ARENA + 5 * PAGE;

/// Only in the emulated machine: what stops it, and what belongs to its system.
pub(crate) const STOPS: u64 = BASE + 32 * PAGE;
pub(crate) const MMIO: u64 = BASE + 33 * PAGE;
pub(crate) const SYSTEM: u64 = BASE + 48 * PAGE;

/// The bytes in the page of code: the instruction, a jump through [`EXIT_NEXT`], and where a branch goes, a
/// jump through [`EXIT_TAKEN`].
pub(crate) fn code(instruction: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0xcc; 64];
    let jump = |through: u64| {
        let address = u32::try_from(through).expect("below 2 GiB").to_le_bytes();
        [&[0xff, 0x24, 0x25][..], &address].concat()
    };
    let end = instruction.len();
    let taken = end + usize::from(BRANCH_BYTES);
    bytes[..end].copy_from_slice(instruction);
    bytes[end..end + 7].copy_from_slice(&jump(EXIT_NEXT));
    bytes[taken..taken + 7].copy_from_slice(&jump(EXIT_TAKEN));
    bytes
}
