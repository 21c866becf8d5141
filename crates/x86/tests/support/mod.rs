//! A machine of a flat memory and one processor, for tests and benchmarks.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::allow_attributes,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "each test uses a part of it, and addresses fit"
)]

use std::ops::Range;

use msrgate_core::{DescriptorTable, Segment, SystemRegisters};
use msrgate_x86::{Bus, Config, Cpu, PAGE_BYTES, RamPage, Stop};

/// Where page tables are.
const TABLES: u64 = 0x1000;
/// Where [`Machine::long`] puts code.
pub const CODE: u64 = 0x10_0000;
/// Where its stack begins.
pub const STACK: u64 = 0x20_0000;
/// Addresses without RAM.
pub const MMIO: u64 = 0x4000_0000;

/// Flat RAM from address 0.
#[derive(Debug)]
pub struct Ram {
    pub bytes: Vec<u8>,
    pub read_only: Range<u64>,
    pub clock: u64,
    /// What RDRAND reads.
    pub random: Option<u64>,
}

impl Ram {
    pub fn new(len: usize) -> Self {
        Self {
            bytes: vec![0; len],
            read_only: 0..0,
            clock: 0,
            random: None,
        }
    }

    pub fn write(&mut self, address: u64, bytes: &[u8]) {
        self.bytes[address as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    pub fn write_u64(&mut self, address: u64, value: u64) {
        self.write(address, &value.to_le_bytes());
    }

    pub fn read_u64(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.bytes[address as usize..][..8].try_into().unwrap())
    }
}

fn at(page: RamPage, offset: usize) -> usize {
    page.0 as usize * PAGE_BYTES + offset
}

impl Bus for Ram {
    fn ram_page(&mut self, pfn: u64, write: bool) -> Option<RamPage> {
        let exists = (pfn as usize) < self.bytes.len() / PAGE_BYTES;
        (exists && !(write && self.read_only.contains(&(pfn << 12)))).then_some(RamPage(pfn))
    }

    #[inline]
    fn load<const N: usize>(&self, page: RamPage, offset: usize) -> [u8; N] {
        let (pages, _) = self.bytes.as_chunks::<PAGE_BYTES>();
        pages[page.0 as usize][offset..offset + N]
            .try_into()
            .unwrap()
    }

    #[inline]
    fn store<const N: usize>(&mut self, page: RamPage, offset: usize, bytes: [u8; N]) {
        let (pages, _) = self.bytes.as_chunks_mut::<PAGE_BYTES>();
        pages[page.0 as usize][offset..offset + N].copy_from_slice(&bytes);
    }

    fn load_bytes(&self, page: RamPage, offset: usize, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.bytes[at(page, offset)..][..bytes.len()]);
    }

    fn store_bytes(&mut self, page: RamPage, offset: usize, bytes: &[u8]) {
        self.write(at(page, offset) as u64, bytes);
    }

    fn random(&mut self) -> Option<u64> {
        self.random
    }

    fn tsc(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

/// RAM and a processor.
#[derive(Debug)]
pub struct Machine {
    pub ram: Ram,
    pub cpu: Cpu,
}

impl Machine {
    /// 64-bit ring 0, `code` at [`CODE`], the lower 4 GiB mapped one to one in 2 MiB pages.
    pub fn long(code: &[u8]) -> Self {
        Self::long_with(code, Config::default())
    }

    pub fn long_with(code: &[u8], config: Config) -> Self {
        let mut ram = Ram::new(64 << 20);
        ram.write_u64(TABLES, (TABLES + 0x1000) | 7);
        for gib in 0..4 {
            let directory = TABLES + 0x2000 + gib * 0x1000;
            ram.write_u64(TABLES + 0x1000 + gib * 8, directory | 7);
            for i in 0..512 {
                ram.write_u64(directory + i * 8, gib << 30 | i << 21 | 0x87);
            }
        }
        ram.write(CODE, code);
        let mut cpu = Cpu::new(config);
        cpu.set_system_registers(&long_mode());
        let mut registers = cpu.registers();
        registers.rip = CODE;
        registers.rsp = STACK;
        cpu.set_registers(&registers);
        Self { ram, cpu }
    }

    /// 16-bit real mode, `code` at 0:0x7c00.
    pub fn real(code: &[u8]) -> Self {
        let mut ram = Ram::new(1 << 20);
        ram.write(0x7c00, code);
        let mut cpu = Cpu::new(Config::default());
        let mut system = cpu.system_registers();
        (system.cs.base, system.cs.selector) = (0, 0);
        cpu.set_system_registers(&system);
        let mut registers = cpu.registers();
        (registers.rip, registers.rsp) = (0x7c00, 0x7000);
        cpu.set_registers(&registers);
        Self { ram, cpu }
    }

    pub fn run(&mut self, budget: u64) -> Stop {
        self.cpu.run(&mut self.ram, budget)
    }

    pub fn set(&mut self, change: impl FnOnce(&mut msrgate_core::Registers)) {
        let mut registers = self.cpu.registers();
        change(&mut registers);
        self.cpu.set_registers(&registers);
    }
}

/// Paging on with CR3 at [`TABLES`], flat segments, CPL 0.
pub fn long_mode() -> SystemRegisters {
    let data = Segment {
        limit: 0xffff_ffff,
        selector: 0x10,
        type_: 3,
        present: true,
        db: true,
        s: true,
        g: true,
        ..Segment::default()
    };
    let code = Segment {
        selector: 8,
        type_: 0xb,
        db: false,
        l: true,
        ..data
    };
    SystemRegisters {
        cs: code,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: Segment {
            limit: 0x67,
            type_: 0xb,
            present: true,
            ..Segment::default()
        },
        ldt: Segment::default(),
        gdt: DescriptorTable::default(),
        idt: DescriptorTable::default(),
        cr0: 0x8005_0033,
        cr3: TABLES,
        cr4: 0x6a0,
        efer: 0xd01,
        ..SystemRegisters::default()
    }
}
