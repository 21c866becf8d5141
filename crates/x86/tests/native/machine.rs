//! The embedded processor: the same memory at the same addresses, in user mode with paging.

use msrgate_core::{DescriptorTable, Registers, Segment, SystemRegisters};
use msrgate_x86::{Bus, Config, Cpu, Fpu, RamPage, Stop};

use crate::layout::*;
use crate::state::{End, Fx, State};

const PAGES: u64 = 64;
/// Page frames of the page tables; those of everything else are in order of address.
const PML4: u64 = 56;
const PDPT: u64 = 57;
const PD: u64 = 58;
const PT: u64 = 59;
const MMIO_FRAME: u64 = 0x100;

/// Within the system's pages: tables, the stack for exceptions, and a HLT for each vector.
const IDT: u64 = SYSTEM;
const GDT: u64 = SYSTEM + PAGE;
const TSS: u64 = SYSTEM + 2 * PAGE;
const STACK_TOP: u64 = SYSTEM + 4 * PAGE;
const HANDLERS: u64 = SYSTEM + 4 * PAGE;
const HANDLER_BYTES: u64 = 16;
const VECTORS: u64 = 32;
/// Vectors that push an error code.
const WITH_ERROR_CODE: [u8; 7] = [8, 10, 11, 12, 13, 14, 17];

const CS_SYSTEM: u16 = 0x08;
const STAR_USER: u16 = 0x33;

struct Ram(Vec<u8>);

impl Ram {
    fn at(&mut self, frame: u64, offset: u64, bytes: &[u8]) {
        let start = (frame * PAGE + offset) as usize;
        self.0[start..start + bytes.len()].copy_from_slice(bytes);
    }

    /// Writes at one of the addresses of [`layout`](crate::layout).
    fn write(&mut self, address: u64, bytes: &[u8]) {
        self.at((address - BASE) / PAGE, address % PAGE, bytes);
    }

    fn read(&self, address: u64) -> u64 {
        let start = (address - BASE) as usize;
        u64::from_le_bytes(core::array::from_fn(|i| self.0[start + i]))
    }
}

impl Bus for Ram {
    fn ram_page(&mut self, pfn: u64, _write: bool) -> Option<RamPage> {
        (pfn < PAGES).then_some(RamPage(pfn))
    }

    fn load<const N: usize>(&self, page: RamPage, offset: usize) -> [u8; N] {
        let start = page.0 as usize * PAGE as usize + offset;
        core::array::from_fn(|i| self.0[start + i])
    }

    fn store<const N: usize>(&mut self, page: RamPage, offset: usize, bytes: [u8; N]) {
        self.at(page.0, offset as u64, &bytes);
    }

    fn load_bytes(&self, page: RamPage, offset: usize, bytes: &mut [u8]) {
        let start = page.0 as usize * PAGE as usize + offset;
        bytes.copy_from_slice(&self.0[start..start + bytes.len()]);
    }

    fn store_bytes(&mut self, page: RamPage, offset: usize, bytes: &[u8]) {
        self.at(page.0, offset as u64, bytes);
    }

    fn tsc(&mut self) -> u64 {
        0
    }
}

/// The embedded processor and its memory.
pub(crate) struct Machine {
    cpu: Cpu,
    ram: Ram,
    instruction_bytes: u64,
    unimplemented: u64,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let mut ram = Ram(vec![0; (PAGES * PAGE) as usize]);
        map_pages(&mut ram);
        ram.write(EXIT_NEXT, &STOPS.to_le_bytes());
        ram.write(EXIT_TAKEN, &(STOPS + 16).to_le_bytes());
        for stop in [STOPS, STOPS + 16] {
            // mov byte ptr [MMIO], 0
            ram.write(stop, &[0xc6, 0x04, 0x25]);
            ram.write(stop + 3, &(MMIO as u32).to_le_bytes());
        }
        for vector in 0..VECTORS {
            let handler = HANDLERS + vector * HANDLER_BYTES;
            ram.write(handler, &[0xf4]);
            let gate = handler & 0xffff
                | u64::from(CS_SYSTEM) << 16
                | 0x8e << 40
                | (handler >> 16 & 0xffff) << 48;
            ram.write(IDT + 16 * vector, &gate.to_le_bytes());
        }
        ram.write(
            GDT + u64::from(CS_SYSTEM),
            &0x00af_9b00_0000_ffff_u64.to_le_bytes(),
        );
        ram.write(TSS + 4, &STACK_TOP.to_le_bytes());
        let mut machine = Self {
            cpu: Cpu::new(Config::default()),
            ram,
            instruction_bytes: 0,
            unimplemented: 0,
        };
        machine.enter_user_mode();
        machine
    }

    pub(crate) fn set_read_only(&mut self, bytes: &[u8]) {
        self.ram.write(READ_ONLY.start, bytes);
    }

    pub(crate) fn set_instruction(&mut self, bytes: &[u8]) {
        self.ram.write(INSTRUCTION, &code(bytes));
        self.instruction_bytes = bytes.len() as u64;
        self.cpu.verify_code();
    }

    /// The pages that can be written.
    pub(crate) fn memory(&mut self) -> &mut [u8] {
        &mut self.ram.0[(WRITABLE.start - BASE) as usize..(WRITABLE.end - BASE) as usize]
    }

    /// Runs the instruction, alone or in a block with what follows.
    pub(crate) fn run(&mut self, input: &State, alone: bool) -> (State, End) {
        self.load(input);
        let end = if alone {
            self.run_alone()
        } else {
            self.run_block()
        };
        let end = end.unwrap_or(End::Lost);
        let mut output = self.store();
        if let End::Fault { vector, .. } = end {
            self.take_fault_frame(vector, &mut output);
            self.enter_user_mode();
            if self.is_unimplemented() {
                return (output, End::Unimplemented);
            }
        }
        (output, end)
    }

    fn run_alone(&mut self) -> Option<End> {
        for _ in 0..1000 {
            if self.cpu.run(&mut self.ram, 1) != Stop::Budget {
                return None;
            }
            let rip = self.cpu.registers().rip;
            let next = INSTRUCTION + self.instruction_bytes;
            match rip {
                INSTRUCTION => {}
                _ if rip == next => return Some(End::Next),
                _ if rip == next + u64::from(BRANCH_BYTES) => return Some(End::Taken),
                _ => return self.fault(rip),
            }
        }
        None
    }

    fn run_block(&mut self) -> Option<End> {
        let stop = self.cpu.run(&mut self.ram, 10_000);
        let rip = self.cpu.registers().rip;
        match stop {
            Stop::MmioWrite { .. } if rip < STOPS + 16 => Some(End::Next),
            Stop::MmioWrite { .. } => Some(End::Taken),
            Stop::Hlt => self.fault(rip - 1),
            _ => None,
        }
    }

    fn fault(&self, rip: u64) -> Option<End> {
        let vector = rip.checked_sub(HANDLERS)? / HANDLER_BYTES;
        let has_error_code = WITH_ERROR_CODE.contains(&(vector as u8));
        let frame = self.cpu.registers().rsp;
        let rip = frame + if has_error_code { 8 } else { 0 };
        (vector < VECTORS).then(|| End::Fault {
            vector: vector as u8,
            error_code: if has_error_code {
                self.ram.read(frame) as u32
            } else {
                0
            },
            cr2: self.cpu.system_registers().cr2,
            rip: self.ram.read(rip),
        })
    }

    /// RFLAGS and RSP from before the exception.
    fn take_fault_frame(&self, vector: u8, output: &mut State) {
        let has_error_code = WITH_ERROR_CODE.contains(&vector);
        let frame = output.gpr[4] + if has_error_code { 8 } else { 0 };
        output.rflags = self.ram.read(frame + 16);
        output.gpr[4] = self.ram.read(frame + 24);
    }

    fn is_unimplemented(&mut self) -> bool {
        let count = self.cpu.unimplemented().iter().map(|it| it.count).sum();
        core::mem::replace(&mut self.unimplemented, count) != count
    }

    fn load(&mut self, input: &State) {
        let [
            rax,
            rcx,
            rdx,
            rbx,
            rsp,
            rbp,
            rsi,
            rdi,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
        ] = input.gpr;
        self.cpu.set_registers(&Registers {
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rsp,
            rbp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip: INSTRUCTION,
            rflags: input.rflags,
        });
        let Fx {
            fcw,
            fsw,
            ftw,
            mxcsr,
            st,
            xmm,
            ..
        } = input.fx;
        let ftw = ftw as u8;
        self.cpu.set_fpu(Fpu {
            fcw,
            fsw,
            ftw,
            mxcsr,
            st,
            xmm,
            ..Fpu::default()
        });
    }

    fn store(&self) -> State {
        let r = self.cpu.registers();
        let fpu = self.cpu.fpu();
        State {
            gpr: [
                r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11,
                r.r12, r.r13, r.r14, r.r15,
            ],
            rflags: r.rflags,
            fx: Fx {
                fcw: fpu.fcw,
                fsw: fpu.fsw,
                ftw: fpu.ftw.into(),
                mxcsr: fpu.mxcsr,
                st: fpu.st,
                xmm: fpu.xmm,
                ..Fx::default()
            },
        }
    }

    fn enter_user_mode(&mut self) {
        const PG_WP_NE_ET_MP_PE: u64 = 0x8001_0033;
        const OSXMMEXCPT_OSFXSR_PAE: u64 = 0x620;
        const NXE_LMA_LME_SCE: u64 = 0xd01;
        let data = Segment {
            limit: u32::MAX,
            selector: 0x2b,
            type_: 3,
            present: true,
            dpl: 3,
            db: true,
            s: true,
            g: true,
            ..Segment::default()
        };
        let code = Segment {
            selector: STAR_USER,
            type_: 0xb,
            db: false,
            l: true,
            ..data
        };
        let tr = Segment {
            base: TSS,
            limit: 0x67,
            selector: 0x40,
            type_: 0xb,
            present: true,
            ..Segment::default()
        };
        self.cpu.set_system_registers(&SystemRegisters {
            cs: code,
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr,
            gdt: DescriptorTable {
                base: GDT,
                limit: 0xff,
            },
            idt: DescriptorTable {
                base: IDT,
                limit: (VECTORS * 16 - 1) as u16,
            },
            cr0: PG_WP_NE_ET_MP_PE,
            cr3: PML4 * PAGE,
            cr4: OSXMMEXCPT_OSFXSR_PAE,
            efer: NXE_LMA_LME_SCE,
            apic_base: 0xfee0_0900,
            ..SystemRegisters::default()
        });
    }
}

fn map_pages(ram: &mut Ram) {
    const PRESENT: u64 = 1;
    const WRITE: u64 = 2;
    const USER: u64 = 4;
    const ALL: u64 = PRESENT | WRITE | USER;
    let mut entry = |table: u64, index: u64, value: u64| {
        ram.at(table, index * 8, &value.to_le_bytes());
    };
    entry(PML4, 0, (PDPT * PAGE) | ALL);
    entry(PDPT, 0, (PD * PAGE) | ALL);
    entry(PD, BASE >> 21 & 511, (PT * PAGE) | ALL);
    let mut page = |address: u64, frame: u64, bits: u64| {
        entry(PT, (address - BASE) / PAGE, (frame * PAGE) | bits);
    };
    let mut identical = |range: core::ops::Range<u64>, bits: u64| {
        for address in range.step_by(PAGE as usize) {
            page(address, (address - BASE) / PAGE, bits);
        }
    };
    identical(CODE..CODE + 2 * PAGE, PRESENT | USER);
    identical(WRITABLE, ALL);
    identical(READ_ONLY, PRESENT | USER);
    identical(STOPS..STOPS + PAGE, PRESENT | USER);
    identical(SYSTEM..SYSTEM + 5 * PAGE, PRESENT | WRITE);
    page(MMIO, MMIO_FRAME, ALL);
}
