//! A guest may put anything anywhere: page tables, descriptors, gates, stacks and code of random bytes must
//! neither panic, nor hang, nor make the processor break its promises to the bus.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "what fails here fails the test"
)]

use msrgate_core::{DescriptorTable, Gp, Segment, SystemRegisters};
use msrgate_x86::{Bus, Config, Cpu, PAGE_BYTES, RamPage, Stop, fixed_cpuid};
use proptest::prelude::*;

const PAGES: u64 = 16;
const INSTRUCTIONS: u64 = 300;

/// RAM that insists on its contract.
struct Strict(Vec<u8>);

impl Strict {
    fn at(&self, page: RamPage, offset: usize, len: usize) -> usize {
        assert!(page.0 < PAGES, "a page that was never given out");
        assert!(offset + len <= PAGE_BYTES, "an access across a page");
        page.0 as usize * PAGE_BYTES + offset
    }
}

impl Bus for Strict {
    fn ram_page(&mut self, pfn: u64, write: bool) -> Option<RamPage> {
        // The last page is read-only.
        (pfn < PAGES - u64::from(write)).then_some(RamPage(pfn))
    }

    fn load<const N: usize>(&self, page: RamPage, offset: usize) -> [u8; N] {
        let at = self.at(page, offset, N);
        self.0[at..at + N].try_into().unwrap()
    }

    fn store<const N: usize>(&mut self, page: RamPage, offset: usize, bytes: [u8; N]) {
        self.store_bytes(page, offset, &bytes);
    }

    fn load_bytes(&self, page: RamPage, offset: usize, bytes: &mut [u8]) {
        let at = self.at(page, offset, bytes.len());
        bytes.copy_from_slice(&self.0[at..at + bytes.len()]);
    }

    fn store_bytes(&mut self, page: RamPage, offset: usize, bytes: &[u8]) {
        assert!(page.0 < PAGES - 1, "a store to read-only memory");
        let at = self.at(page, offset, bytes.len());
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn tsc(&mut self) -> u64 {
        0x1234_5678_9abc
    }
}

/// SplitMix64: one seed makes a whole machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// An address: mostly in RAM, else at an edge or anywhere.
    fn address(&mut self) -> u64 {
        match self.below(10) {
            0 => self.next(),
            1 => 0x7fff_ffff_fff0 + self.below(32),
            2 => 0xffff_ffff_ffff_fff0 + self.below(16),
            3 => 0xffff_fff0 + self.below(32),
            4 => PAGES * 4096 - self.below(24),
            _ => self.below(PAGES * 4096),
        }
    }

    fn segment(&mut self) -> Segment {
        let bits = self.next();
        Segment {
            base: if self.chance(50) { 0 } else { self.address() },
            limit: if self.chance(60) {
                u32::MAX
            } else {
                self.next() as u32
            },
            selector: bits as u16,
            type_: (bits >> 16 & 15) as u8,
            present: true,
            dpl: (bits >> 20 & 3) as u8,
            db: bits >> 22 & 1 != 0,
            s: bits >> 23 & 7 != 0,
            l: bits >> 26 & 1 != 0,
            g: bits >> 27 & 1 != 0,
            avl: false,
            unusable: bits >> 28 & 7 == 0,
        }
    }

    /// A page-table entry, a descriptor or a gate, or noise.
    fn table_word(&mut self) -> u64 {
        let frame = self.below(PAGES) << 12;
        match self.below(8) {
            0 => self.next(),
            1 | 2 => self.next() & 0x00ff_ff00_ffff_ffff | 0x8000_0000_0000,
            3 => 0x0000_8e00_0008_0000 | self.below(1 << 16) | self.below(4) << 45,
            _ => frame | self.next() & 0xfff | 7 | u64::from(self.chance(3)) << 63,
        }
    }

    /// Code: noise, with the instructions about the system more often than noise has them.
    fn code_byte(&mut self) -> [u8; 4] {
        const SYSTEM: [[u8; 4]; 32] = [
            [0x48, 0xcf, 0x90, 0x90], // IRETQ
            [0xcf, 0x90, 0x90, 0x90], // IRET
            [0x48, 0xcb, 0x90, 0x90], // RETF
            [0xca, 0x08, 0x00, 0x90], // RETF imm16
            [0xff, 0x28, 0x90, 0x90], // JMP FAR [RAX]
            [0xff, 0x18, 0x90, 0x90], // CALL FAR [RAX]
            [0x48, 0xff, 0x1b, 0x90], // CALL FAR [RBX]
            [0xcd, 0x80, 0x90, 0x90], // INT 0x80
            [0xcc, 0x90, 0x90, 0x90], // INT3
            [0x0f, 0x22, 0xc0, 0x90], // MOV CR0, RAX
            [0x0f, 0x22, 0xd8, 0x90], // MOV CR3, RAX
            [0x0f, 0x22, 0xe0, 0x90], // MOV CR4, RAX
            [0x0f, 0x23, 0xf8, 0x90], // MOV DR7, RAX
            [0x0f, 0x00, 0xd0, 0x90], // LLDT AX
            [0x0f, 0x00, 0xd8, 0x90], // LTR AX
            [0x0f, 0x01, 0x10, 0x90], // LGDT [RAX]
            [0x0f, 0x01, 0x1b, 0x90], // LIDT [RBX]
            [0x0f, 0x01, 0x00, 0x90], // SGDT [RAX]
            [0x8e, 0xd0, 0x90, 0x90], // MOV SS, EAX
            [0x8e, 0xd8, 0x90, 0x90], // MOV DS, EAX
            [0x0f, 0xb2, 0x20, 0x90], // LSS ESP, [RAX]
            [0x0f, 0xa1, 0x0f, 0xa9], // POP FS; POP GS
            [0x0f, 0x02, 0xc3, 0x90], // LAR EAX, EBX
            [0x0f, 0x03, 0xc3, 0x90], // LSL EAX, EBX
            [0x0f, 0x05, 0x90, 0x90], // SYSCALL
            [0x48, 0x0f, 0x07, 0x90], // SYSRETQ
            [0x0f, 0x34, 0x0f, 0x35], // SYSENTER; SYSEXIT
            [0xf3, 0x6e, 0xf3, 0x6d], // REP OUTSB; REP INSD
            [0xec, 0xef, 0x90, 0x90], // IN; OUT
            [0x0f, 0x01, 0x38, 0x90], // INVLPG [RAX]
            [0x9d, 0x9c, 0x90, 0x90], // POPF; PUSHF
            [0xc8, 0x10, 0x00, 0x1f], // ENTER
        ];
        if self.chance(40) {
            SYSTEM[self.below(32) as usize]
        } else {
            (self.next() as u32).to_le_bytes()
        }
    }
}

/// A machine of which every part is somewhere between plausible and absurd.
fn machine(random: &mut Random) -> (Cpu, Strict) {
    let mut ram = Vec::with_capacity(PAGES as usize * PAGE_BYTES);
    for page in 0..PAGES {
        for _ in 0..PAGE_BYTES / 8 {
            if page % 2 == 0 {
                ram.extend(random.table_word().to_le_bytes());
            } else {
                ram.extend(random.code_byte());
                ram.extend(random.code_byte());
            }
        }
    }
    let config = Config {
        cpuid: fixed_cpuid(),
        ..Config::default()
    };
    let mut cpu = Cpu::new(config);
    let long = random.chance(60);
    let paging = random.chance(80);
    let protected = paging || random.chance(70);
    let mut system = SystemRegisters {
        cs: random.segment(),
        ds: random.segment(),
        es: random.segment(),
        fs: random.segment(),
        gs: random.segment(),
        ss: random.segment(),
        tr: random.segment(),
        ldt: random.segment(),
        gdt: DescriptorTable {
            base: random.address(),
            limit: random.next() as u16,
        },
        idt: DescriptorTable {
            base: random.address(),
            limit: random.next() as u16,
        },
        cr0: u64::from(protected) | u64::from(paging) << 31 | u64::from(random.chance(50)) << 16,
        cr3: if random.chance(90) {
            random.below(PAGES) << 12
        } else {
            random.next()
        },
        cr4: random.next() & 0x31_0fff | u64::from(long) << 5,
        efer: random.next() & 0x801 | if long && paging { 0x500 } else { 0 },
        ..SystemRegisters::default()
    };
    system.cs.unusable = false;
    if paging && random.chance(60) {
        identity_map(&mut ram, &mut system, long);
        if random.chance(70) {
            plausible_tables(&mut ram, &mut system, long, random);
        }
    }
    cpu.set_system_registers(&system);
    scatter_registers(&mut cpu, random);
    cpu.msrs.star = random.next();
    cpu.msrs.lstar = random.address();
    (cpu, Strict(ram))
}

fn scatter_registers(cpu: &mut Cpu, random: &mut Random) {
    let mut registers = cpu.registers();
    for register in [
        &mut registers.rax,
        &mut registers.rbx,
        &mut registers.rcx,
        &mut registers.rdx,
        &mut registers.rsi,
        &mut registers.rdi,
        &mut registers.rbp,
        &mut registers.rsp,
        &mut registers.rip,
    ] {
        *register = random.address();
    }
    registers.rflags = random.next() & 0x3f_7fd7 & !(1 << 8);
    cpu.set_registers(&registers);
}

/// Page 0 becomes the root of tables that map all of RAM, most of it for users too.
fn identity_map(ram: &mut [u8], system: &mut SystemRegisters, long: bool) {
    let mut put = |at: usize, value: u64| ram[at..at + 8].copy_from_slice(&value.to_le_bytes());
    system.cr3 = 0;
    if long {
        put(0, 0x2007);
        put(0x2000, 0x4007);
        put(0x4000, 0x87);
    } else if system.cr4 & 0x20 != 0 {
        put(0, 0x2001);
        put(0x2000, 0x87);
    } else {
        system.cr4 |= 0x10;
        put(0, 0x87);
    }
}

/// Exceptions get somewhere: page 6 becomes a GDT, page 8 an IDT, page 10 a TSS.
fn plausible_tables(ram: &mut [u8], system: &mut SystemRegisters, long: bool, random: &mut Random) {
    let mut put = |at: u64, value: u64| {
        let at = at as usize;
        ram[at..at + 8].copy_from_slice(&value.to_le_bytes());
    };
    let code = if long {
        0x00af_9b00_0000_ffff
    } else {
        0x00cf_9b00_0000_ffff
    };
    let descriptors = [
        0,
        code,
        0x00cf_9300_0000_ffff,
        code | 3 << 45,
        0x00cf_f300_0000_ffff,
    ];
    for (i, descriptor) in descriptors.into_iter().enumerate() {
        put(0x6000 + 8 * i as u64, descriptor);
    }
    let (step, count) = if long { (16, 256) } else { (8, 512) };
    for i in 0..count {
        let offset = random.below(PAGES * 4096);
        let kind = 0x8e00 | random.below(2) << 8 | random.below(4) << 13;
        let ist = random.below(8) & random.below(8);
        put(
            0x8000 + step * i,
            offset & 0xffff | 8 << 16 | (kind | ist) << 32,
        );
        if long {
            put(0x8000 + step * i + 8, 0);
        }
    }
    for at in (0xa004..0xa064).step_by(8) {
        put(
            at,
            if long {
                random.below(PAGES * 4096)
            } else {
                0x10_0000_b000
            },
        );
    }
    system.gdt = DescriptorTable {
        base: 0x6000,
        limit: 0xfff,
    };
    system.idt = DescriptorTable {
        base: 0x8000,
        limit: 0xfff,
    };
    (system.tr.base, system.tr.limit) = (0xa000, 0x2067);
    (system.tr.type_, system.tr.unusable) = (0xb, false);
    let dpl = if random.chance(50) { 0 } else { 3 };
    (system.cs.dpl, system.cs.l, system.cs.db) = (dpl, long, !long);
    (system.cs.base, system.cs.limit, system.ss.base) = (0, u32::MAX, 0);
    (system.cs.type_, system.ss.type_, system.ss.limit) = (0xb, 3, u32::MAX);
    (system.ss.dpl, system.ss.unusable, system.ss.db) = (dpl, false, true);
}

fn survive(seed: u64) {
    let mut random = Random(seed);
    let (mut cpu, mut bus) = machine(&mut random);
    // Every stop but the budget's ends at least an element, so this is a bound for all of them.
    for _ in 0..INSTRUCTIONS {
        match cpu.run(&mut bus, INSTRUCTIONS) {
            Stop::Budget | Stop::TripleFault => break,
            Stop::Rdmsr { .. } if random.chance(20) => cpu.complete_rdmsr(Err(Gp)),
            Stop::Rdmsr { .. } => cpu.complete_rdmsr(Ok(random.next())),
            Stop::Wrmsr { .. } if random.chance(20) => cpu.complete_wrmsr(Err(Gp)),
            Stop::Wrmsr { .. } => cpu.complete_wrmsr(Ok(())),
            Stop::IoIn { .. } if random.chance(80) => cpu.complete_io_in(random.next() as u32),
            Stop::MmioRead { .. } if random.chance(80) => cpu.complete_mmio_read(random.next()),
            _ => {}
        }
        if random.chance(20) {
            cpu.interrupt(random.next() as u8);
        }
        if random.chance(5) {
            cpu.nmi();
        }
        let linear = random.address();
        cpu.translate_linear(&mut bus, linear);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hostile_machine_is_survived(seed: u64) {
        survive(seed);
    }
}
