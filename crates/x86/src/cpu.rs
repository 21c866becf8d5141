//! The processor: its state, reset, and the answers to its stops.
//!
//! What a host reads and writes is in [`host`](crate::host), what an instruction does to it is in [`exec`](crate::exec), how instructions follow each other in
//! [`run`](crate::run), memory in [`memory`](crate::memory).

use core::any::Any;
use core::fmt;

use msrgate_core::{DescriptorTable, Gp, Segment, Unimplemented};

use crate::code::CodeState;
use crate::control::{cr0, cr4, efer};
use crate::cpuid::Features;
use crate::flags::{self, Flags};
use crate::mmio::MmioBuffer;
use crate::op::{Exit, Fault, Op};
use crate::state::{Config, DebugRegisters, Exception, Fpu, MsrState};
use crate::tlb::{Context, Tlb};
use crate::walk::Paging;
use crate::{Stop, reg, seg};

/// How many different unimplemented instructions are remembered.
const MAX_UNIMPLEMENTED: usize = 64;

/// One processor.
pub struct Cpu {
    /// General registers in encoding order; the slot [`reg::ZERO`] stays 0.
    pub(crate) gpr: [u64; reg::COUNT],
    /// Where the next instruction is. While a block runs, where the block began.
    pub(crate) rip: u64,
    pub(crate) flags: Flags,
    /// The privilege and SMAP state that memory accesses are made with. See [`Cpu::update_mode`].
    pub(crate) context: Context,
    pub(crate) tlb: Tlb,
    /// Something must be looked at before the next block: see [`Cpu::attend`](crate::run).
    pub(crate) attention: bool,
    /// One instruction runs alone: MMIO and stores into decoded code are possible.
    pub(crate) careful: bool,
    /// The instruction that runs alone began with TF, and no event has been delivered since.
    pub(crate) trap: bool,
    /// Current privilege level. See [`Cpu::set_cpl`].
    pub(crate) cpl: u8,
    /// 16, 32 or 64. See [`Cpu::update_mode`].
    pub(crate) code_bits: u8,
    /// In encoding order: see [`seg`].
    pub(crate) segs: [Segment; 6],
    pub(crate) tr: Segment,
    pub(crate) ldt: Segment,
    pub(crate) gdt: DescriptorTable,
    pub(crate) idt: DescriptorTable,
    pub(crate) cr0: u64,
    pub(crate) cr2: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
    pub(crate) cr8: u64,
    pub(crate) xcr0: u64,
    pub(crate) efer: u64,
    pub(crate) debug: DebugRegisters,
    /// Some breakpoint is on data. See [`Cpu::update_breakpoints`].
    pub(crate) watches: bool,
    /// The DR6 bits of those that the instruction has met.
    pub(crate) watched: u64,
    /// The MSRs that are processor state and nothing else.
    pub msrs: MsrState,
    pub(crate) fpu: Fpu,
    pub(crate) paging: Paging,
    pub(crate) config: Config,
    /// What `config.cpuid` advertises.
    pub(crate) features: Features,

    /// What [`Exit::Fault`] is about.
    pub(crate) fault: Fault,
    /// What [`Exit::Stop`] and its kin are about.
    pub(crate) stop: Stop,
    /// Length of the instruction that stopped before retirement.
    pub(crate) stopped_len: u8,
    /// The data of the port read that the instruction to be restarted waits for.
    pub(crate) io_in: Option<u32>,
    pub(crate) mmio: MmioBuffer,
    pub(crate) pending: Pending,
    pub(crate) shadow: Shadow,
    pub(crate) shut_down: bool,
    /// How often PAUSE was executed in this run.
    pub(crate) pauses: u32,
    pub(crate) last_exception: Option<Exception>,
    pub(crate) retired: u64,
    pub(crate) unimplemented: Vec<Unimplemented>,

    /// Decoded code: `Code<B>` of the bus that ran last.
    pub(crate) code: Option<Box<dyn Any + Send + Sync>>,
    pub(crate) code_state: CodeState,
}

/// What waits to be delivered.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pending {
    /// A queued exception.
    pub(crate) exception: Option<Fault>,
    /// An external interrupt that the host injected.
    pub(crate) interrupt: Option<u8>,
    pub(crate) nmi: bool,
    /// Until IRET.
    pub(crate) nmi_masked: bool,
    /// Who holds an interrupt wants to hear when it would be taken.
    pub(crate) window: bool,
}

/// The instruction that just retired keeps interrupts away from the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Shadow {
    /// It does not.
    #[default]
    None,
    /// STI: external interrupts.
    Sti,
    /// MOV SS, POP SS: NMI and #DB too.
    MovSs,
}

impl Cpu {
    /// A processor after reset (SDM vol. 3, 10.1.1).
    #[must_use]
    pub fn new(config: Config) -> Self {
        let mut cpu = Self {
            gpr: [0; reg::COUNT],
            rip: 0,
            flags: Flags::default(),
            context: Context::new(false, false),
            tlb: Tlb::new(),
            attention: false,
            careful: false,
            trap: false,
            cpl: 0,
            code_bits: 16,
            segs: [Segment::default(); 6],
            tr: Segment::default(),
            ldt: Segment::default(),
            gdt: DescriptorTable::default(),
            idt: DescriptorTable::default(),
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            xcr0: 1,
            efer: 0,
            debug: DebugRegisters::default(),
            watches: false,
            watched: 0,
            msrs: MsrState::default(),
            fpu: Fpu::default(),
            paging: Paging::new(0, 0, 0, 0, 36),
            features: Features::new(&config.cpuid),
            config,
            fault: Fault::UD,
            stop: Stop::Budget,
            stopped_len: 0,
            io_in: None,
            mmio: MmioBuffer::default(),
            pending: Pending::default(),
            shadow: Shadow::None,
            shut_down: false,
            pauses: 0,
            last_exception: None,
            retired: 0,
            unimplemented: Vec::new(),
            code: None,
            code_state: CodeState::default(),
        };
        cpu.reset();
        cpu
    }

    /// Back to the state after reset. Configuration, decoded code and [`Cpu::retired`] stay.
    pub fn reset(&mut self) {
        let data = Segment {
            limit: 0xffff,
            type_: 3,
            present: true,
            s: true,
            ..Segment::default()
        };
        self.gpr = [0; reg::COUNT];
        self.gpr[reg::RDX] = self.signature();
        self.rip = 0xfff0;
        self.flags = Flags::default();
        self.segs = [data; 6];
        self.segs[seg::CS] = Segment {
            base: 0xffff_0000,
            selector: 0xf000,
            type_: 0xb,
            ..data
        };
        self.tr = Segment {
            limit: 0xffff,
            type_: 0xb,
            present: true,
            ..Segment::default()
        };
        self.ldt = Segment {
            type_: 2,
            ..self.tr
        };
        let table = DescriptorTable {
            base: 0,
            limit: 0xffff,
        };
        (self.gdt, self.idt) = (table, table);
        (self.cr2, self.cr3, self.cr4, self.cr8) = (0, 0, 0, 0);
        self.cr0 = cr0::CD | cr0::NW | cr0::ET;
        (self.efer, self.xcr0) = (0, 1);
        self.debug = DebugRegisters::default();
        self.msrs = MsrState::default();
        self.fpu = Fpu::default();
        self.cpl = 0;
        self.pending = Pending::default();
        self.shadow = Shadow::None;
        self.io_in = None;
        self.mmio = MmioBuffer::default();
        self.shut_down = false;
        self.last_exception = None;
        self.update_mode();
        self.update_breakpoints();
        self.flush_tlb(false);
    }

    /// CPUID.1.EAX, which RDX holds after reset.
    fn signature(&self) -> u64 {
        let leaf = self.config.cpuid.iter().find(|leaf| leaf.function == 1);
        leaf.map_or(0x600, |leaf| u64::from(leaf.eax))
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Replaces the configuration.
    pub fn set_config(&mut self, config: Config) {
        self.features = Features::new(&config.cpuid);
        self.config = config;
        self.update_breakpoints();
        self.flush();
    }

    /// Forgets translations and decoded code: memory slots or CPUID have changed.
    pub fn flush(&mut self) {
        self.code_state.flush = true;
        self.attention = true;
        self.update_mode();
        self.flush_tlb(false);
    }

    /// Answers [`Stop::Rdmsr`]: RAX and RDX get the value and the instruction retires, or #GP(0) is queued.
    pub fn complete_rdmsr(&mut self, answer: Result<u64, Gp>) {
        match answer {
            Ok(value) => {
                self.gpr[reg::RAX] = value & 0xffff_ffff;
                self.gpr[reg::RDX] = value >> 32;
                self.step_over();
            }
            Err(Gp) => self.queue(Fault::GP),
        }
    }

    /// Answers [`Stop::Wrmsr`]: the instruction retires, or #GP(0) is queued.
    pub fn complete_wrmsr(&mut self, answer: Result<(), Gp>) {
        match answer {
            Ok(()) => self.step_over(),
            Err(Gp) => self.queue(Fault::GP),
        }
    }

    /// Answers [`Stop::IoIn`]: the next [`Cpu::run`] finishes the instruction with this value.
    pub fn complete_io_in(&mut self, value: u32) {
        self.io_in = Some(value);
    }

    /// Answers [`Stop::MmioRead`]: the next [`Cpu::run`] restarts the instruction, which finds this value.
    pub fn complete_mmio_read(&mut self, value: u64) {
        self.mmio.complete(value);
        self.attention = true;
    }
}

impl Cpu {
    /// Notes the exception, for `Err(cpu.raise(..))`.
    #[cold]
    pub(crate) fn raise(&mut self, fault: Fault) -> Exit {
        self.fault = fault;
        Exit::Fault
    }

    /// Notes why to stop before retirement, for `Err(cpu.stop(..))`.
    pub(crate) fn stop(&mut self, stop: Stop) -> Exit {
        self.stop = stop;
        Exit::Stop
    }

    /// Notes why to stop after retirement, for `Err(cpu.stop_after(..))`.
    pub(crate) fn stop_after(&mut self, stop: Stop) -> Exit {
        self.stop = stop;
        Exit::StopAfter
    }

    /// Notes why to stop between two portions of a repeated instruction, for `Err(cpu.stop_between(..))`.
    pub(crate) fn stop_between(&mut self, stop: Stop) -> Exit {
        self.stop = stop;
        Exit::StopRepeat
    }

    /// Queues an exception for delivery before the next instruction.
    pub(crate) fn queue(&mut self, fault: Fault) {
        self.pending.exception = Some(fault);
        self.attention = true;
    }

    /// RIP of an instruction while it runs.
    pub(crate) fn rip_of<B>(&self, op: &Op<B>) -> u64 {
        self.wrap_rip(self.rip.wrapping_add(u64::from(op.start)))
    }

    /// RIP behind an instruction while it runs.
    #[inline(always)]
    pub(crate) fn next_rip<B>(&self, op: &Op<B>) -> u64 {
        let next = self
            .rip
            .wrapping_add(u64::from(op.start) + u64::from(op.len));
        self.wrap_rip(next)
    }

    /// RIP cut to its width: outside 64-bit mode it has 32 bits, in 16-bit code too.
    #[inline(always)]
    pub(crate) fn wrap_rip(&self, rip: u64) -> u64 {
        if self.is_64() { rip } else { rip & 0xffff_ffff }
    }

    /// 64-bit mode proper (not compatibility mode).
    #[inline(always)]
    pub(crate) const fn is_64(&self) -> bool {
        self.code_bits == 64
    }

    /// EFER.LMA.
    pub(crate) const fn is_long(&self) -> bool {
        self.efer & efer::LMA != 0
    }

    /// CR0.PE is clear.
    pub(crate) const fn is_real(&self) -> bool {
        self.cr0 & cr0::PE == 0
    }

    /// RFLAGS.VM: virtual-8086 mode.
    pub(crate) const fn is_v86(&self) -> bool {
        self.flags.has(flags::VM)
    }

    /// Whether `linear` is an address that long mode has.
    pub(crate) const fn is_canonical(linear: u64) -> bool {
        ((linear << 16) as i64 >> 16) as u64 == linear
    }

    /// Changes the privilege level and what follows from it.
    pub(crate) fn set_cpl(&mut self, cpl: u8) {
        self.cpl = cpl;
        self.update_mode();
    }

    /// Recomputes what is derived from CR0, CR3, CR4, EFER, CS, CPL and RFLAGS. To be called whenever one of them
    /// changes; who calls it from an instruction ends with [`Exit::Jump`] or [`Exit::Leave`].
    pub(crate) fn update_mode(&mut self) {
        let cs = &self.segs[seg::CS];
        self.code_bits = if self.is_long() && cs.l {
            64
        } else if cs.db {
            32
        } else {
            16
        };
        self.paging = Paging::new(
            self.cr0,
            self.cr3,
            self.cr4,
            self.efer,
            self.features.physical_bits,
        );
        self.tag_code();
        if self.code_bits != 64 {
            self.change_code(false); // the base of CS may be another
        }
        self.update_context();
        self.attention = true;
    }

    /// Recomputes what follows from CPL, RFLAGS.AC and CR4.SMAP (CLAC, STAC, POPF).
    pub(crate) fn update_context(&mut self) {
        let user = self.cpl == 3;
        let smap = !user && self.cr4 & cr4::SMAP != 0 && !self.flags.has(flags::AC);
        self.context = Context::new(user, smap);
    }

    /// Forgets translations: all (CR0, CR4, EFER), or all but the global pages (CR3).
    pub(crate) fn flush_tlb(&mut self, keep_global: bool) {
        self.tlb.flush(keep_global);
        self.change_code(keep_global);
    }

    /// INVLPG.
    pub(crate) fn flush_page(&mut self, linear: u64) {
        self.tlb.flush_page(linear);
        self.change_code(false);
    }

    /// Counts an instruction that is not there.
    #[cold]
    pub(crate) fn note_unimplemented(&mut self, name: String, bytes: &[u8], rip: u64) {
        if let Some(known) = self.unimplemented.iter_mut().find(|it| it.name == name) {
            known.count += 1;
        } else if self.unimplemented.len() < MAX_UNIMPLEMENTED {
            self.unimplemented.push(Unimplemented {
                name,
                bytes: bytes.to_vec(),
                rip,
                count: 1,
            });
        }
    }
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new(Config::default())
    }
}

impl fmt::Debug for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cpu")
            .field("registers", &self.registers())
            .field("system_registers", &self.system_registers())
            .field("pending", &self.pending)
            .field("retired", &self.retired)
            .finish_non_exhaustive()
    }
}
