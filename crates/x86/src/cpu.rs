//! The processor: its registers, and the calls that start, complete and interrupt it.
//!
//! What an instruction does to it is in [`exec`](crate::exec), how instructions follow each other in
//! [`run`](crate::run), memory in [`memory`](crate::memory).

use core::any::Any;
use core::fmt;

use msrgate_core::{DescriptorTable, Gp, Registers, Segment, SystemRegisters};

use crate::code::CodeState;
use crate::control::{cr0, cr4, efer};
use crate::cpuid::Features;
use crate::flags::{self, Flags};
use crate::memory::MmioBuffer;
use crate::op::{Exit, Fault, Op, vector};
use crate::state::{Config, DebugRegisters, Exception, Fpu, MsrState, Unimplemented};
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
    /// The MSRs that are processor state and nothing else.
    pub msrs: MsrState,
    pub(crate) fpu: Fpu,
    pub(crate) paging: Paging,
    pub(crate) config: Config,
    /// What `config.cpuid` advertises.
    pub(crate) features: Features,

    /// What [`Exit::Fault`] is about.
    pub(crate) fault: Fault,
    /// What [`Exit::Stop`] and [`Exit::StopAfter`] are about.
    pub(crate) stop: Stop,
    /// Length of the instruction that stopped before retirement.
    pub(crate) stopped_len: u8,
    /// The data of the port read that the instruction to be restarted waits for.
    pub(crate) io_in: Option<u32>,
    pub(crate) mmio: MmioBuffer,
    pub(crate) pending: Pending,
    pub(crate) shadow: Shadow,
    pub(crate) shut_down: bool,
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
        self.flush();
    }

    /// General registers, RIP and RFLAGS.
    #[must_use]
    pub fn registers(&self) -> Registers {
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
            ..,
        ] = self.gpr;
        Registers {
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
            rip: self.rip,
            rflags: self.flags.get(),
        }
    }

    /// Replaces general registers, RIP and RFLAGS. As with `KVM_SET_REGS`, a queued exception is dropped.
    pub fn set_registers(&mut self, registers: &Registers) {
        let r = registers;
        self.gpr[..16].copy_from_slice(&[
            r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11,
            r.r12, r.r13, r.r14, r.r15,
        ]);
        self.rip = r.rip;
        self.flags.set(r.rflags);
        self.pending.exception = None;
        self.update_mode();
    }

    /// Segments, descriptor tables and control registers.
    #[must_use]
    pub fn system_registers(&self) -> SystemRegisters {
        let [es, cs, ss, ds, fs, gs] = self.segs;
        SystemRegisters {
            cs,
            ds,
            es,
            fs,
            gs,
            ss,
            tr: self.tr,
            ldt: self.ldt,
            gdt: self.gdt,
            idt: self.idt,
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            cr8: self.cr8,
            efer: self.efer,
            apic_base: self.msrs.apic_base,
        }
    }

    /// Replaces segments, descriptor tables and control registers. The values are taken as they are: a
    /// host checks before it calls.
    pub fn set_system_registers(&mut self, registers: &SystemRegisters) {
        let r = registers;
        self.segs = [r.es, r.cs, r.ss, r.ds, r.fs, r.gs];
        (self.tr, self.ldt, self.gdt, self.idt) = (r.tr, r.ldt, r.gdt, r.idt);
        (self.cr0, self.cr2, self.cr3, self.cr4) = (r.cr0, r.cr2, r.cr3, r.cr4);
        self.cr8 = r.cr8 & 15;
        self.efer = r.efer;
        self.msrs.apic_base = r.apic_base;
        self.cpl = if r.cr0 & cr0::PE == 0 {
            0
        } else {
            r.ss.dpl & 3
        };
        self.update_mode();
        self.flush_tlb(false);
    }

    /// x87 and SSE state.
    #[must_use]
    pub fn fpu(&self) -> &Fpu {
        &self.fpu
    }

    /// Replaces x87 and SSE state.
    pub fn set_fpu(&mut self, fpu: Fpu) {
        self.fpu = fpu;
    }

    /// Debug registers.
    #[must_use]
    pub fn debug_registers(&self) -> DebugRegisters {
        self.debug
    }

    /// Replaces debug registers.
    pub fn set_debug_registers(&mut self, debug: DebugRegisters) {
        self.debug = debug;
        self.attention = true;
    }

    /// XCR0.
    #[must_use]
    pub fn xcr0(&self) -> u64 {
        self.xcr0
    }

    /// Replaces XCR0.
    pub fn set_xcr0(&mut self, xcr0: u64) {
        self.xcr0 = xcr0;
    }

    /// The queued exception, to be delivered before the next instruction.
    #[must_use]
    pub fn pending(&self) -> Option<Exception> {
        self.pending.exception.map(|fault| Exception {
            vector: fault.vector,
            error_code: fault.error_code,
        })
    }

    /// Queues an exception, or drops the queued one.
    pub fn set_pending(&mut self, exception: Option<Exception>) {
        self.pending.exception = exception.map(|exception| Fault {
            vector: exception.vector,
            error_code: exception.error_code,
            payload: if exception.vector == vector::PF {
                self.cr2
            } else {
                0
            },
        });
        self.attention = true;
    }

    /// Whether an external interrupt would be taken now.
    #[must_use]
    pub fn can_interrupt(&self) -> bool {
        self.flags.has(flags::IF)
            && self.shadow == Shadow::None
            && self.pending.exception.is_none()
            && self.pending.interrupt.is_none()
            && !self.shut_down
    }

    /// Injects an external interrupt, to be delivered before the next instruction. `false`: not now.
    pub fn interrupt(&mut self, vector: u8) -> bool {
        if !self.can_interrupt() {
            return false;
        }
        self.pending.interrupt = Some(vector);
        self.attention = true;
        true
    }

    /// Makes an NMI pending.
    pub fn nmi(&mut self) {
        self.pending.nmi = true;
        self.attention = true;
    }

    /// Instructions retired since the processor was made.
    #[must_use]
    pub fn retired(&self) -> u64 {
        self.retired
    }

    /// The exception that was delivered last: for the report of a triple fault.
    #[must_use]
    pub fn last_exception(&self) -> Option<Exception> {
        self.last_exception
    }

    /// Instructions that the guest ran and the processor does not have.
    #[must_use]
    pub fn unimplemented(&self) -> &[Unimplemented] {
        &self.unimplemented
    }

    /// Forgets translations and decoded code: memory slots or CPUID have changed.
    pub fn flush(&mut self) {
        self.code_state.flush = true;
        self.attention = true;
        self.update_mode();
        self.flush_tlb(false);
    }

    /// Memory may have been written by somebody else: decoded code is compared with its bytes before
    /// it runs again.
    pub fn verify_code(&mut self) {
        self.code_state.verify = self.code_state.verify.wrapping_add(1);
        self.code_state.epoch += 1;
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

    /// RIP cut to the width of the code segment.
    #[inline(always)]
    pub(crate) fn wrap_rip(&self, rip: u64) -> u64 {
        match self.code_bits {
            64 => rip,
            32 => rip & 0xffff_ffff,
            _ => rip & 0xffff,
        }
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
        if self.code_bits != 64 {
            self.code_state.epoch += 1; // the base of CS may be another
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
        self.code_state.epoch += 1;
    }

    /// INVLPG.
    pub(crate) fn flush_page(&mut self, linear: u64) {
        self.tlb.flush_page(linear);
        self.code_state.epoch += 1;
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
