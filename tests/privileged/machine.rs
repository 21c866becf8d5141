//! [`Machine`]: a VM behind a [`Door`] that runs one [`Case`] after another, and the [`Outcome`] of each.

use kvm_bindings::{
    KVM_EXIT_SHUTDOWN, kvm_debugregs, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events,
};
use msrgate_core::Errno;
use msrgate_tests::door::{Door, Mapping};
use vm_memory::{MmapRegion, VolatileMemory};

use crate::case::{Case, GDT, HANDLERS, LDT, MEMORY_BYTES, PD};
use crate::cpuid::Cpuid;

const CREATE_VCPU: u32 = 0xae41;
const RUN: u32 = 0xae80;
const GET_REGS: u32 = 0x8090_ae81;
const SET_REGS: u32 = 0x4090_ae82;
const GET_SREGS: u32 = 0x8138_ae83;
const SET_SREGS: u32 = 0x4138_ae84;
const SET_MSRS: u32 = 0x4008_ae89;
const SET_CPUID2: u32 = 0x4008_ae90;
const SET_VCPU_EVENTS: u32 = 0x4040_aea0;
const GET_DEBUGREGS: u32 = 0x8080_aea1;
const SET_DEBUGREGS: u32 = 0x4080_aea2;

const EXIT_REASON: usize = 8;

/// A VM with one vCPU and no devices.
pub(crate) struct Machine<'d, D: Door> {
    door: &'d D,
    vcpu: D::Handle,
    page: Mapping,
    ram: MmapRegion,
    _vm: D::Handle,
}

/// What a case came to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) exit_reason: u32,
    pub(crate) regs: kvm_regs,
    pub(crate) sregs: kvm_sregs,
    pub(crate) debug: kvm_debugregs,
    pub(crate) memory: Vec<u8>,
}

impl<'d, D: Door> Machine<'d, D> {
    pub(crate) fn new(door: &'d D, cpuid: &Cpuid) -> Result<Self, Errno> {
        let ram = MmapRegion::new(MEMORY_BYTES).expect("memory");
        let vm = door.create_vm(ram.as_ptr(), MEMORY_BYTES)?;
        let vcpu = door.create(&vm, CREATE_VCPU, 0)?;
        door.ioctl(&vcpu, SET_CPUID2, address(&mut cpuid.words()))?;
        let page = door.map_run_page(&vcpu)?;
        Ok(Self {
            door,
            vcpu,
            page,
            ram,
            _vm: vm,
        })
    }

    /// Runs the case to its end. After a shutdown the machine is of no more use.
    pub(crate) fn run(&self, case: &Case) -> Result<Outcome, Errno> {
        let memory = self.ram.get_slice(0, MEMORY_BYTES).expect("all of it");
        memory.copy_from(&case.memory);
        self.ask(SET_VCPU_EVENTS, &mut kvm_vcpu_events::default())?;
        let mut sregs = case.sregs;
        self.ask(SET_SREGS, &mut sregs)?;
        let mut msrs = case.msrs();
        self.ask(SET_MSRS, &mut msrs)?;
        let mut debug = case.debug;
        self.ask(SET_DEBUGREGS, &mut debug)?;
        let mut regs = case.regs;
        self.ask(SET_REGS, &mut regs)?;
        while let Err(errno) = self.door.ioctl(&self.vcpu, RUN, 0) {
            if !matches!(errno, Errno::EINTR | Errno::EAGAIN) {
                return Err(errno);
            }
        }
        let mut outcome = Outcome {
            exit_reason: self.page.read_u32(EXIT_REASON),
            regs: kvm_regs::default(),
            sregs: kvm_sregs::default(),
            debug: kvm_debugregs::default(),
            memory: vec![0; MEMORY_BYTES],
        };
        if outcome.exit_reason == KVM_EXIT_SHUTDOWN {
            return Ok(outcome); // what is left of the state differs among vendors
        }
        self.ask(GET_REGS, &mut outcome.regs)?;
        self.ask(GET_SREGS, &mut outcome.sregs)?;
        self.ask(GET_DEBUGREGS, &mut outcome.debug)?;
        memory.copy_to(&mut outcome.memory[..]);
        outcome.normalize();
        outcome.forget_flaws(case.name);
        Ok(outcome)
    }

    fn ask<T>(&self, request: u32, argument: &mut T) -> Result<i32, Errno> {
        self.door.ioctl(&self.vcpu, request, address(argument))
    }
}

impl Outcome {
    /// The registers, one a line.
    pub(crate) fn lines(&self) -> Vec<String> {
        let text = format!("{:#x?}\n{:#x?}\n{:#x?}", self.regs, self.sregs, self.debug);
        text.lines().map(|line| line.trim().to_owned()).collect()
    }

    /// Leaves out what QEMU's TCG (7.2) gets wrong, and what no two processors have in common: the time. The stack of a
    /// handler is in memory: it is the case's, or the TSS's.
    fn forget_flaws(&mut self, name: &str) {
        const RF: u8 = 1;
        const ACCESSED: u8 = 1;
        const ACCESSED_DIRTY: u8 = 0x60;
        const ARITHMETIC: u64 = 0x8d5;
        match name {
            "rdtsc" => (self.regs.rax, self.regs.rdx) = (0, 0),
            // It forgets them, whatever the mask says.
            "syscall" => self.regs.rflags &= !ARITHMETIC,
            // The null selector leaves the rest of the register.
            "lldt" if self.sregs.ldt.selector & !3 == 0 => self.sregs.ldt = kvm_segment::default(),
            _ => {}
        }
        // Far transfers do not mark their descriptors, and so do not make their page dirty.
        self.memory[PD] |= ACCESSED_DIRTY;
        for table in [GDT..GDT + 0x100, LDT..LDT + 0x40] {
            for at in table.step_by(8) {
                self.memory[at + 5] |= ACCESSED;
            }
        }
        self.sregs.cs.type_ |= ACCESSED;
        let Some(vector) = self.vector() else { return };
        // A stack segment that is not present is #SS, not #NP.
        if matches!(vector, 11 | 12) && (name == "iret" || name.starts_with("ret")) {
            self.regs.rip = HANDLERS as u64 + 16 * 12 + 1;
        }
        let mut frame = usize::try_from(self.regs.rsp).unwrap_or(0);
        if matches!(vector, 8 | 10..=14 | 17) {
            // The vector of a software interrupt that is refused is in there twice as large.
            if name.starts_with("int") {
                self.memory[frame..frame + 2].fill(0);
            }
            frame += 8;
        }
        // A fault pushes RF as 1.
        self.memory[frame + 16 + 2] &= !RF;
    }

    /// The exception or interrupt whose handler the case ended in.
    fn vector(&self) -> Option<u64> {
        let behind = self.regs.rip.checked_sub(HANDLERS as u64)?;
        (behind % 16 == 1 && behind < 0x1000).then_some(behind / 16)
    }

    /// Leaves out what KVM does not keep, or keeps as its vendor does.
    fn normalize(&mut self) {
        let s = &mut self.sregs;
        let (user, long) = (s.ss.dpl, s.efer >> 10 & 1 != 0 && s.cs.l != 0);
        for segment in [&mut s.ds, &mut s.es, &mut s.fs, &mut s.gs, &mut s.ss] {
            normalize(segment);
        }
        normalize(&mut s.ldt);
        for segment in [&mut s.ds, &mut s.es, &mut s.ss] {
            if long {
                // Nobody looks at them in 64-bit mode.
                *segment = kvm_segment {
                    selector: segment.selector,
                    ..kvm_segment::default()
                };
            }
        }
        s.ss.dpl = user;
        (s.cs.padding, s.tr.padding) = (0, 0);
        s.interrupt_bitmap = [0; 4];
    }
}

/// Whether the null selector clears the base differs among processors.
fn normalize(segment: &mut kvm_segment) {
    segment.padding = 0;
    if segment.present == 0 || segment.unusable != 0 {
        *segment = kvm_segment {
            selector: segment.selector,
            unusable: 1,
            ..kvm_segment::default()
        };
    } else if segment.s != 0 {
        segment.type_ |= 1; // accessed
    }
}

/// A descriptor table register.
pub(crate) fn table(base: usize, limit: u16) -> kvm_dtable {
    kvm_dtable {
        base: base as u64,
        limit,
        padding: [0; 3],
    }
}

fn address<T: ?Sized>(value: &mut T) -> u64 {
    (&raw mut *value).cast::<u8>().expose_provenance() as u64
}
