//! A guest that does MSR accesses from a list and notes what came of each: [`Guest`].
//!
//! Long mode, one 2 MiB page that ring 3 may use too, a stub for each of the 32 exceptions. The code is
//! assembled when a test starts, so no assembler is needed; the list ([`Record`]) is in guest memory, so one
//! run serves thousands of accesses.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use msrgate_core::{DescriptorTable, Registers, Segment, SystemRegisters};

/// Bytes of RAM that the guest needs, from guest-physical address 0.
pub const MEMORY_BYTES: usize = 2 << 20;
/// The port on which the guest says that the list is done.
pub const DONE_PORT: u16 = 0xd0;
/// Accesses that one list holds.
pub const CAPACITY: usize = (MEMORY_BYTES - RECORDS_AT) / Record::BYTES;

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const GDT: u64 = 0x4000;
const TSS: u64 = 0x4100;
const IDT: u64 = 0x5000;
const CODE: u64 = 0x6000;
const STACK_TOP: u64 = 0xa000;
const USER_STACK_TOP: i32 = 0xb000;
/// How many records the list has.
const COUNT: u64 = 0xc000;
const RECORDS_AT: usize = 0x1_0000;
const RECORDS: u64 = RECORDS_AT as u64;

const CODE_SELECTOR: u16 = 0x08;
const DATA_SELECTOR: u16 = 0x10;
const USER_DATA_SELECTOR: u16 = 0x1b;
const USER_CODE_SELECTOR: u16 = 0x23;
const TSS_SELECTOR: u16 = 0x28;

/// The way in which the guest makes its access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Routine {
    /// RDMSR.
    Rdmsr,
    /// WRMSR.
    Wrmsr,
    /// RDMSR behind an operand-size prefix.
    Rdmsr66,
    /// RDMSR behind F2.
    RdmsrF2,
    /// RDMSR behind F3.
    RdmsrF3,
    /// RDMSR behind REX.W.
    RdmsrRexW,
    /// LOCK RDMSR.
    LockRdmsr,
    /// LOCK WRMSR.
    LockWrmsr,
    /// RDMSR in ring 3.
    UserRdmsr,
    /// WRMSR in ring 3.
    UserWrmsr,
    /// RDMSR with RFLAGS.TF set.
    TrapRdmsr,
    /// WRMSR with RFLAGS.TF set.
    TrapWrmsr,
    /// RDTSC, which no filter sees.
    Rdtsc,
    /// SWAPGS twice.
    Swapgs,
    /// SYSCALL to the address in `MSR_LSTAR`, which [`Guest::syscall_target`] tells.
    Syscall,
}

impl Routine {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Rdmsr,
        Self::Wrmsr,
        Self::Rdmsr66,
        Self::RdmsrF2,
        Self::RdmsrF3,
        Self::RdmsrRexW,
        Self::LockRdmsr,
        Self::LockWrmsr,
        Self::UserRdmsr,
        Self::UserWrmsr,
        Self::TrapRdmsr,
        Self::TrapWrmsr,
        Self::Rdtsc,
        Self::Swapgs,
        Self::Syscall,
    ];

    /// The bytes of the instruction in question.
    #[must_use]
    pub const fn bytes(self) -> &'static [u8] {
        match self {
            Self::Rdmsr | Self::UserRdmsr | Self::TrapRdmsr => &[0x0f, 0x32],
            Self::Wrmsr | Self::UserWrmsr | Self::TrapWrmsr => &[0x0f, 0x30],
            Self::Rdmsr66 => &[0x66, 0x0f, 0x32],
            Self::RdmsrF2 => &[0xf2, 0x0f, 0x32],
            Self::RdmsrF3 => &[0xf3, 0x0f, 0x32],
            Self::RdmsrRexW => &[0x48, 0x0f, 0x32],
            Self::LockRdmsr => &[0xf0, 0x0f, 0x32],
            Self::LockWrmsr => &[0xf0, 0x0f, 0x30],
            Self::Rdtsc => &[0x0f, 0x31],
            Self::Swapgs => &[0x0f, 0x01, 0xf8, 0x0f, 0x01, 0xf8],
            Self::Syscall => &[0x0f, 0x05],
        }
    }

    const fn is_user(self) -> bool {
        matches!(self, Self::UserRdmsr | Self::UserWrmsr)
    }

    const fn is_trapped(self) -> bool {
        matches!(self, Self::TrapRdmsr | Self::TrapWrmsr)
    }
}

/// One access: what the guest loads before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// How.
    pub routine: Routine,
    /// The MSR index, and what is above it.
    pub rcx: u64,
    /// The low half of the value, and what is above it.
    pub rax: u64,
    /// The high half of the value, and what is above it.
    pub rdx: u64,
}

/// What the guest saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// RAX after the instruction, or in the exception handler.
    pub rax: u64,
    /// RDX likewise.
    pub rdx: u64,
    /// The exception, if one was delivered.
    pub exception: Option<Delivered>,
}

/// An exception as its handler found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Its vector.
    pub vector: u8,
    /// The error code on the stack (0 where there is none).
    pub error_code: u64,
    /// The RIP on the stack.
    pub rip: u64,
}

/// An entry of the list in guest memory: ten little-endian 64-bit words.
#[derive(Clone, Copy, Debug)]
pub struct Record;

impl Record {
    /// Bytes from one record to the next.
    pub const BYTES: usize = 80;
    const STEP: i32 = 80;
    const ENTRY: i32 = 0;
    const RCX: i32 = 8;
    const RAX: i32 = 16;
    const RDX: i32 = 24;
    const OUT_RAX: i32 = 32;
    const OUT_RDX: i32 = 40;
    const OUT_VECTOR: i32 = 48;
    const OUT_ERROR: i32 = 56;
    const OUT_RIP: i32 = 64;
    /// Not an exception, and not written by the guest either.
    const PENDING: u64 = 0xaaaa;
    const NO_VECTOR: i32 = 0x100;
}

/// The assembled guest.
#[derive(Debug)]
pub struct Guest {
    code: Vec<u8>,
    start: u64,
    stubs: [u64; 32],
    /// Address of each routine, and of the instruction in question within it.
    routines: Vec<(Routine, u64, u64)>,
    syscall_target: u64,
}

impl Guest {
    /// Assembles the guest.
    ///
    /// # Panics
    /// A mistake in the guest's own code.
    #[must_use]
    pub fn new() -> Self {
        assemble().expect("the guest's own code assembles")
    }

    /// Writes tables and code; `memory` is guest-physical 0 to [`MEMORY_BYTES`].
    pub fn load(&self, write: &mut impl FnMut(u64, &[u8])) {
        const PRESENT_WRITABLE_USER: u64 = 7;
        const HUGE: u64 = 1 << 7;
        write(PML4, &(PDPT | PRESENT_WRITABLE_USER).to_le_bytes());
        write(PDPT, &(PD | PRESENT_WRITABLE_USER).to_le_bytes());
        write(PD, &(PRESENT_WRITABLE_USER | HUGE).to_le_bytes());
        let gdt: [u64; 7] = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0x0000_8b00_0000_0067 | TSS << 16,
            0,
        ];
        for (address, descriptor) in (GDT..).step_by(8).zip(gdt) {
            write(address, &descriptor.to_le_bytes());
        }
        write(TSS + 4, &STACK_TOP.to_le_bytes());
        for (vector, stub) in (0u64..).zip(self.stubs) {
            let low = (stub & 0xffff)
                | u64::from(CODE_SELECTOR) << 16
                | 0x8e00 << 32
                | (stub >> 16 & 0xffff) << 48;
            write(IDT + vector * 16, &low.to_le_bytes());
            write(IDT + vector * 16 + 8, &(stub >> 32).to_le_bytes());
        }
        write(CODE, &self.code);
    }

    /// Writes the list of accesses.
    ///
    /// # Panics
    /// More than [`CAPACITY`] accesses.
    pub fn write_list(&self, requests: &[Request], write: &mut impl FnMut(u64, &[u8])) {
        assert!(requests.len() <= CAPACITY, "the list fits into memory");
        write(COUNT, &(requests.len() as u64).to_le_bytes());
        let mut bytes = Vec::with_capacity(requests.len() * Record::BYTES);
        for request in requests {
            let words = [
                self.entry(request.routine),
                request.rcx,
                request.rax,
                request.rdx,
                0,
                0,
                Record::PENDING,
                0,
                0,
                0,
            ];
            bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        }
        write(RECORDS, &bytes);
    }

    /// Reads what came of the access at `position`; `None` where the guest has not come that far.
    pub fn read_answer(
        &self,
        position: usize,
        read: &mut impl FnMut(u64, &mut [u8]),
    ) -> Option<Answer> {
        let mut bytes = [0; Record::BYTES];
        read(RECORDS + (position * Record::BYTES) as u64, &mut bytes);
        let word = |offset: i32| {
            let offset = usize::try_from(offset).expect("offsets are positive");
            u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes"))
        };
        let vector = word(Record::OUT_VECTOR);
        if vector == Record::PENDING {
            return None;
        }
        Some(Answer {
            rax: word(Record::OUT_RAX),
            rdx: word(Record::OUT_RDX),
            exception: u8::try_from(vector).ok().map(|vector| Delivered {
                vector,
                error_code: word(Record::OUT_ERROR),
                rip: word(Record::OUT_RIP),
            }),
        })
    }

    /// The address of the instruction that `routine` is about.
    #[must_use]
    pub fn instruction(&self, routine: Routine) -> u64 {
        self.routine(routine).2
    }

    /// What `MSR_LSTAR` must hold for [`Routine::Syscall`].
    #[must_use]
    pub fn syscall_target(&self) -> u64 {
        self.syscall_target
    }

    /// General-purpose registers at the start.
    #[must_use]
    pub fn registers(&self) -> Registers {
        Registers {
            rip: self.start,
            rsp: STACK_TOP,
            rflags: 2,
            ..Registers::default()
        }
    }

    /// Puts a processor after reset into the guest's mode.
    pub fn set_mode(&self, sregs: &mut SystemRegisters) {
        const PE_ET_NE_WP_PG: u64 = 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31;
        const PAE: u64 = 1 << 5;
        const SCE_LME_LMA: u64 = 1 | 1 << 8 | 1 << 10;
        sregs.cr0 = PE_ET_NE_WP_PG;
        sregs.cr3 = PML4;
        sregs.cr4 = PAE;
        sregs.efer = SCE_LME_LMA;
        let data = Segment {
            limit: u32::MAX,
            selector: DATA_SELECTOR,
            type_: 3,
            present: true,
            db: true,
            s: true,
            g: true,
            ..Segment::default()
        };
        sregs.cs = Segment {
            selector: CODE_SELECTOR,
            type_: 11,
            db: false,
            l: true,
            ..data
        };
        // Those of ring 3, because IRET to there would empty the others.
        let user_data = Segment {
            selector: USER_DATA_SELECTOR,
            dpl: 3,
            ..data
        };
        sregs.ds = user_data;
        sregs.es = user_data;
        sregs.fs = user_data;
        sregs.gs = user_data;
        sregs.ss = data;
        sregs.tr = Segment {
            base: TSS,
            limit: 0x67,
            selector: TSS_SELECTOR,
            type_: 11,
            present: true,
            ..Segment::default()
        };
        sregs.gdt = DescriptorTable {
            base: GDT,
            limit: 7 * 8 - 1,
        };
        sregs.idt = DescriptorTable {
            base: IDT,
            limit: 32 * 16 - 1,
        };
    }

    fn entry(&self, routine: Routine) -> u64 {
        self.routine(routine).1
    }

    fn routine(&self, routine: Routine) -> &(Routine, u64, u64) {
        let found = self.routines.iter().find(|(name, ..)| *name == routine);
        found.expect("every routine is assembled")
    }
}

impl Default for Guest {
    fn default() -> Self {
        Self::new()
    }
}

/// RBX walks the records, R12 counts them.
fn assemble() -> Result<Guest, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut next = a.create_label();
    let mut done = a.create_label();
    let mut advance = a.create_label();
    let mut ok = a.create_label();
    let mut start = a.create_label();

    a.set_label(&mut start)?;
    a.mov(rbx, RECORDS)?;
    a.mov(rax, COUNT)?;
    a.mov(r12, qword_ptr(rax))?;
    a.set_label(&mut next)?;
    a.test(r12, r12)?;
    a.jz(done)?;
    a.mov(rcx, qword_ptr(rbx + Record::RCX))?;
    a.mov(rax, qword_ptr(rbx + Record::RAX))?;
    a.mov(rdx, qword_ptr(rbx + Record::RDX))?;
    a.jmp(qword_ptr(rbx + Record::ENTRY))?;
    a.set_label(&mut ok)?;
    a.mov(qword_ptr(rbx + Record::OUT_RAX), rax)?;
    a.mov(qword_ptr(rbx + Record::OUT_RDX), rdx)?;
    a.mov(qword_ptr(rbx + Record::OUT_VECTOR), Record::NO_VECTOR)?;
    a.set_label(&mut advance)?;
    a.add(rbx, Record::STEP)?;
    a.dec(r12)?;
    a.jmp(next)?;
    a.set_label(&mut done)?;
    a.out(i32::from(DONE_PORT), al)?;
    a.jmp(start)?;

    let mut stubs = assemble_stubs(&mut a, advance)?;
    let mut routines = Vec::new();
    for routine in Routine::ALL {
        routines.push(assemble_routine(&mut a, routine, ok)?);
    }
    let mut syscall_target = a.create_label();
    a.set_label(&mut syscall_target)?;
    a.jmp(ok)?;

    let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let result = a.assemble_options(CODE, options)?;
    Ok(Guest {
        start: result.label_ip(&start)?,
        stubs: stubs
            .iter_mut()
            .map(|label| result.label_ip(label))
            .collect::<Result<Vec<_>, _>>()?
            .try_into()
            .expect("32 stubs"),
        routines: routines
            .iter()
            .map(|(routine, entry, instruction)| {
                let entry = result.label_ip(entry)?;
                Ok((*routine, entry, result.label_ip(instruction)?))
            })
            .collect::<Result<_, IcedError>>()?,
        syscall_target: result.label_ip(&syscall_target)?,
        code: result.inner.code_buffer,
    })
}

/// One stub per exception; each ends in the handler that fills the record's answer.
fn assemble_stubs(a: &mut CodeAssembler, advance: CodeLabel) -> Result<Vec<CodeLabel>, IcedError> {
    const HAVE_ERROR_CODE: u32 = 1 << 8 | 0x1f << 10 | 1 << 17 | 1 << 21 | 3 << 29;
    let mut handler = a.create_label();
    a.set_label(&mut handler)?;
    a.mov(qword_ptr(rbx + Record::OUT_RAX), rax)?;
    a.mov(qword_ptr(rbx + Record::OUT_RDX), rdx)?;
    a.pop(qword_ptr(rbx + Record::OUT_VECTOR))?;
    a.pop(qword_ptr(rbx + Record::OUT_ERROR))?;
    a.pop(qword_ptr(rbx + Record::OUT_RIP))?;
    a.mov(rsp, STACK_TOP)?;
    a.jmp(advance)?;
    let mut stubs = Vec::new();
    for vector in 0..32 {
        let mut stub = a.create_label();
        a.set_label(&mut stub)?;
        if HAVE_ERROR_CODE >> vector & 1 == 0 {
            a.push(0i32)?;
        }
        a.push(vector)?;
        a.jmp(handler)?;
        stubs.push(stub);
    }
    Ok(stubs)
}

/// A routine: its entry and the instruction in question.
fn assemble_routine(
    a: &mut CodeAssembler,
    routine: Routine,
    ok: CodeLabel,
) -> Result<(Routine, CodeLabel, CodeLabel), IcedError> {
    let mut entry = a.create_label();
    let mut instruction = a.create_label();
    a.set_label(&mut entry)?;
    a.zero_bytes()?;
    if routine.is_user() {
        a.push(i32::from(USER_DATA_SELECTOR))?;
        a.push(USER_STACK_TOP)?;
        a.push(2i32)?;
        a.push(i32::from(USER_CODE_SELECTOR))?;
        a.lea(r8, qword_ptr(instruction))?;
        a.push(r8)?;
        a.iretq()?;
    }
    if routine.is_trapped() {
        a.push(0x102i32)?;
        a.popfq()?;
    }
    a.set_label(&mut instruction)?;
    a.db(routine.bytes())?;
    a.jmp(ok)?;
    Ok((routine, entry, instruction))
}
