//! The state in which a 64-bit guest starts: the first 4 GiB mapped one to one, flat segments, no IDT.
//!
//! The tables lie in low memory (`TABLES`); a guest that is loaded there is refused.

use std::ops::Range;

use msrgate_core::{DescriptorTable, Registers, Segment, SystemRegisters};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// Where GDT and page tables are, and the stack that a guest starts with.
pub(crate) const TABLES: Range<u64> = 0x8000..0x1_0000;

const GDT: u64 = 0x8000;
/// As if the entry point had been called: a C function can be one.
const STACK_TOP: u64 = 0x9000 - 8;
const PML4: u64 = 0x9000;
const PDPT: u64 = 0xa000;
const DIRECTORIES: u64 = 0xb000;
const GIBIBYTES: u64 = 4;

/// 64-bit code, and data; SDM vol. 3, 3.4.5.
const CODE: u64 = 0x00af_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;
const GDT_LIMIT: u16 = 8 * 4 - 1;

const PRESENT_WRITABLE: u64 = 0x3;
const LARGE_PAGE: u64 = 0x80;

/// PE, MP, ET, NE, WP, PG.
const CR0: u64 = 0x8001_0033;
/// PAE, OSFXSR, OSXMMEXCPT.
const CR4: u64 = 0x620;
/// LME, LMA, NXE.
const EFER: u64 = 0xd00;
/// The bit that is always set.
const RFLAGS: u64 = 0x2;

/// Where a guest finds its segments in the GDT.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Selectors {
    code: u16,
    data: u16,
}

impl Selectors {
    /// Of an ELF.
    pub(crate) const ELF: Self = Self {
        code: 0x08,
        data: 0x10,
    };
    /// `__BOOT_CS` and `__BOOT_DS`.
    pub(crate) const LINUX: Self = Self {
        code: 0x10,
        data: 0x18,
    };
}

/// Writes GDT and page tables.
pub(crate) fn write_tables(
    memory: &GuestMemoryMmap,
    selectors: Selectors,
) -> Result<(), GuestMemoryError> {
    write_entry(memory, GDT, u64::from(selectors.code) / 8, CODE)?;
    write_entry(memory, GDT, u64::from(selectors.data) / 8, DATA)?;
    write_entry(memory, PML4, 0, PDPT | PRESENT_WRITABLE)?;
    for gibibyte in 0..GIBIBYTES {
        let directory = DIRECTORIES + gibibyte * 0x1000;
        write_entry(memory, PDPT, gibibyte, directory | PRESENT_WRITABLE)?;
        for slot in 0..512 {
            let page = (gibibyte << 30) + (slot << 21);
            let entry = page | LARGE_PAGE | PRESENT_WRITABLE;
            write_entry(memory, directory, slot, entry)?;
        }
    }
    Ok(())
}

/// `reset` with everything changed that 64-bit mode needs.
pub(crate) fn system_registers(reset: &SystemRegisters, selectors: Selectors) -> SystemRegisters {
    let code = Segment {
        selector: selectors.code,
        limit: u32::MAX,
        type_: 0xb,
        present: true,
        s: true,
        l: true,
        g: true,
        ..Segment::default()
    };
    let data = Segment {
        selector: selectors.data,
        type_: 0x3,
        db: true,
        l: false,
        ..code
    };
    SystemRegisters {
        cs: code,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        gdt: DescriptorTable {
            base: GDT,
            limit: GDT_LIMIT,
        },
        idt: DescriptorTable::default(),
        cr0: CR0,
        cr3: PML4,
        cr4: CR4,
        efer: EFER,
        ..*reset
    }
}

/// An entry of the IDT that calls `handler` with interrupts off; SDM vol. 3, 7.14.1.
pub(crate) fn interrupt_gate(handler: u64) -> [u8; 16] {
    const CODE_SELECTOR: u64 = 0x08;
    const PRESENT_GATE: u64 = 0x8e00;
    let low = handler & 0xffff
        | CODE_SELECTOR << 16
        | PRESENT_GATE << 32
        | (handler >> 16 & 0xffff) << 48;
    (u128::from(low) | u128::from(handler >> 32) << 64).to_le_bytes()
}

/// Interrupts off, a small stack, and the entry point.
pub(crate) fn registers(entry: u64) -> Registers {
    Registers {
        rip: entry,
        rsp: STACK_TOP,
        rflags: RFLAGS,
        ..Registers::default()
    }
}

fn write_entry(
    memory: &GuestMemoryMmap,
    table: u64,
    slot: u64,
    entry: u64,
) -> Result<(), GuestMemoryError> {
    memory.write_slice(&entry.to_le_bytes(), GuestAddress(table + slot * 8))
}

const _: () = assert!(DIRECTORIES + GIBIBYTES * 0x1000 <= TABLES.end);
