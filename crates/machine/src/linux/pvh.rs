//! The way into a kernel that is an ELF with a PVH note: 32-bit protected mode, and `struct hvm_start_info`.
//!
//! Xen's `docs/misc/pvh.pandoc` says what the processor's state is, and `start_info.h` the structures.

use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use msrgate_core::{DescriptorTable, Registers, Segment, SystemRegisters};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout::{ACPI, BOOT_INFO, COMMAND_LINE, Stretch};

const MAGIC: u32 = 0x336e_c578;
/// With the memory map.
const VERSION: u32 = 1;
const MODULES: u64 = BOOT_INFO + 0x40;
const MEMORY_MAP: u64 = BOOT_INFO + 0x80;

/// Writes what EBX will point to.
pub(super) fn write_start_info(
    memory: &GuestMemoryMmap,
    map: &[Stretch],
    initrd: Option<(u64, u64)>,
) -> Result<(), GuestMemoryError> {
    let mut info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        cmdline_paddr: COMMAND_LINE,
        rsdp_paddr: ACPI,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: 0,
        ..Default::default()
    };
    for stretch in map {
        let entry = hvm_memmap_table_entry {
            addr: stretch.start,
            size: stretch.size_bytes,
            type_: stretch.kind as u32,
            reserved: 0,
        };
        let offset = u64::from(info.memmap_entries) * size_of_val(&entry) as u64;
        memory.write_obj(entry, GuestAddress(MEMORY_MAP + offset))?;
        info.memmap_entries += 1;
    }
    if let Some((paddr, size)) = initrd {
        let module = hvm_modlist_entry {
            paddr,
            size,
            ..Default::default()
        };
        memory.write_obj(module, GuestAddress(MODULES))?;
        info.nr_modules = 1;
        info.modlist_paddr = MODULES;
    }
    memory.write_obj(info, GuestAddress(BOOT_INFO))
}

/// Flat 32-bit segments, no paging.
pub(super) fn system_registers(reset: &SystemRegisters) -> SystemRegisters {
    let code = Segment {
        selector: 0x08,
        limit: u32::MAX,
        type_: 0xb,
        present: true,
        s: true,
        db: true,
        g: true,
        ..Segment::default()
    };
    let data = Segment {
        selector: 0x10,
        type_: 0x3,
        ..code
    };
    let task = Segment {
        limit: 0x67,
        type_: 0xb,
        present: true,
        ..Segment::default()
    };
    SystemRegisters {
        cs: code,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: task,
        gdt: DescriptorTable::default(),
        idt: DescriptorTable::default(),
        cr0: reset.cr0 & !(1 << 31) | 1,
        cr4: 0,
        efer: 0,
        ..*reset
    }
}

pub(super) fn registers(entry: u64) -> Registers {
    Registers {
        rip: entry,
        rbx: BOOT_INFO,
        rflags: 0x2,
        ..Registers::default()
    }
}
