//! Where in low memory a Linux guest finds what its loader leaves there. (GDT and page tables: `long_mode`.)

/// `struct boot_params`, or for PVH `struct hvm_start_info` and what it points to.
pub(crate) const BOOT_INFO: u64 = 0x1_0000;
/// The command line, with its zero.
pub(crate) const COMMAND_LINE: u64 = 0x2_0000;
/// Longer than any kernel's own limit.
pub(crate) const COMMAND_LINE_LIMIT: usize = 0x1_0000;
/// Where conventional memory ends and the tables of a BIOS would be.
pub(crate) const LOW_END: u64 = 0x9_fc00;
/// ACPI's tables, where Linux would look for them itself.
pub(crate) const ACPI: u64 = 0xe_0000;
/// Memory goes on here.
pub(crate) const HIGH: u64 = 0x10_0000;

/// A stretch of guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) start: u64,
    pub(crate) size_bytes: u64,
    pub(crate) kind: Kind,
}

/// What it is, in the words of the BIOS call E820; PVH has the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ram = 1,
    Reserved = 2,
}

/// The memory map of a machine whose RAM ends at `end`.
pub(crate) fn memory_map(end: u64) -> [Stretch; 3] {
    let stretch = |start, end: u64, kind| Stretch {
        start,
        size_bytes: end.saturating_sub(start),
        kind,
    };
    [
        stretch(0, LOW_END, Kind::Ram),
        stretch(LOW_END, HIGH, Kind::Reserved),
        stretch(HIGH, end, Kind::Ram),
    ]
}
