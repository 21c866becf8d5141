//! [`Board`]: a VM with in-kernel interrupt controllers behind a [`Door`], and a guest in long mode.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use kvm_bindings::{KVM_EXIT_IO, kvm_irq_level, kvm_pit_config, kvm_regs, kvm_segment, kvm_sregs};
use msrgate_core::Errno;
use msrgate_tests::door::{Door, Mapping};
use vm_memory::{MmapRegion, VolatileMemory};

const CREATE_VCPU: u32 = 0xae41;
const CREATE_IRQCHIP: u32 = 0xae60;
const IRQ_LINE: u32 = 0x4008_ae61;
const CREATE_PIT2: u32 = 0x4040_ae77;
const RUN: u32 = 0xae80;
const GET_SUPPORTED_CPUID: u32 = 0xc008_ae05;
const SET_CPUID2: u32 = 0x4008_ae90;
const SET_REGS: u32 = 0x4090_ae82;
const GET_SREGS: u32 = 0x8138_ae83;
const SET_SREGS: u32 = 0x4138_ae84;

/// Where things are in the guest's first 64 KiB, which is all it has.
const MEMORY_BYTES: usize = 0x1_0000;
const GDT: usize = 0x400;
const IDT: usize = 0x600;
pub(crate) const AP_CODE: usize = 0x2000;
const CODE: usize = 0x4000;
const HANDLERS: usize = 0x6000;
pub(crate) const STACK_TOP: u64 = 0xf000;
const PML4: usize = 0xa000;
const PDPT: usize = 0xb000;
const LOW_PD: usize = 0xc000;
const HIGH_PD: usize = 0xd000;
/// Words that the guest leaves for its host.
pub(crate) const NOTES: usize = 0x8000;
/// Writing here leaves to the host.
pub(crate) const PORT: u16 = 0xd0;
/// The guest is given this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What a handler does, and at which vector.
pub(crate) type Handler<'a> = (u8, &'a dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>);

/// A VM with controllers.
pub(crate) struct Board<'a, D: Door> {
    pub(crate) door: &'a D,
    pub(crate) vm: D::Handle,
    ram: MmapRegion,
}

/// The program ends if the guest never does: there is no other way out of `KVM_RUN` for every engine.
pub(crate) struct Watchdog(Arc<AtomicBool>);

impl Watchdog {
    pub(crate) fn new(what: &'static str) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&done);
        thread::spawn(move || {
            thread::sleep(PATIENCE);
            if !seen.load(Ordering::Relaxed) {
                msrgate_tests::skip::say(&format!("{what}: the guest does not end"));
                std::process::abort();
            }
        });
        Self(done)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `test` on the embedded KVM, then on the real one.
macro_rules! on_both {
    ($name:ident) => {{
        let _watchdog = crate::board::Watchdog::new(stringify!($name));
        $name(&msrgate_tests::door::SoftDoor::new());
        if let Some(kvm) = msrgate_tests::skip::kvm_or_skip() {
            $name(&msrgate_tests::door::KernelDoor::new(&kvm));
        }
    }};
}
pub(crate) use on_both;

impl<'a, D: Door> Board<'a, D> {
    /// A VM with memory, controllers and a PIT.
    pub(crate) fn new(door: &'a D) -> Result<Self, Errno> {
        let board = Self::without_controllers(door)?;
        door.ioctl(&board.vm, CREATE_IRQCHIP, 0)?;
        board.ask(&board.vm, CREATE_PIT2, &mut kvm_pit_config::default())?;
        Ok(board)
    }

    /// A VM with memory.
    pub(crate) fn without_controllers(door: &'a D) -> Result<Self, Errno> {
        let ram = MmapRegion::new(MEMORY_BYTES).unwrap();
        let vm = door.create_vm(ram.as_ptr(), MEMORY_BYTES)?;
        Ok(Self { door, vm, ram })
    }

    pub(crate) fn vcpu(&self, id: u64) -> Result<D::Handle, Errno> {
        const ENTRIES: usize = 100;
        const TSC_DEADLINE: u32 = 1 << 24;
        let vcpu = self.door.create(&self.vm, CREATE_VCPU, id)?;
        // Two words, and ten for each entry: function, index, flags, EAX, EBX, ECX and so on.
        let mut table = [0_u32; 2 + 10 * ENTRIES];
        table[0] = u32::try_from(ENTRIES).unwrap();
        self.ask(self.door.system(), GET_SUPPORTED_CPUID, &mut table)?;
        for entry in table[2..].chunks_exact_mut(10) {
            if entry[0] == 1 {
                entry[5] |= TSC_DEADLINE;
            }
        }
        self.ask(&vcpu, SET_CPUID2, &mut table)?;
        Ok(vcpu)
    }

    pub(crate) fn write(&self, at: usize, bytes: &[u8]) {
        self.ram
            .get_slice(at, bytes.len())
            .unwrap()
            .copy_from(bytes);
    }

    /// A word that the guest has left.
    pub(crate) fn note(&self, number: usize) -> u32 {
        self.ram.get_ref(NOTES + 4 * number).unwrap().load()
    }

    pub(crate) fn ask<T>(
        &self,
        on: &D::Handle,
        request: u32,
        argument: &mut T,
    ) -> Result<i32, Errno> {
        self.door.ioctl(on, request, address(argument))
    }

    /// Drives a GSI.
    pub(crate) fn set_line(&self, gsi: u32, high: bool) {
        let mut line = kvm_irq_level {
            level: high.into(),
            ..kvm_irq_level::default()
        };
        line.__bindgen_anon_1.irq = gsi;
        self.ask(&self.vm, IRQ_LINE, &mut line).unwrap();
    }

    /// The guest's memory, and the controllers' pages, both at their own addresses and 2^64 - 2^32 above: what
    /// instructions with a 32-bit address reach.
    fn write_page_tables(&self) {
        const PRESENT: u64 = 3; // and writable
        const LARGE: u64 = 1 << 7 | PRESENT;
        const UNCACHED: u64 = 1 << 4 | LARGE;
        let entries = [
            (PML4, PDPT as u64 | PRESENT),
            (PML4 + 8 * 511, PDPT as u64 | PRESENT),
            (PDPT, LOW_PD as u64 | PRESENT),
            (PDPT + 8 * 511, HIGH_PD as u64 | PRESENT),
            (LOW_PD, LARGE),
            (HIGH_PD + 8 * 0x1f6, 0xfec0_0000 | UNCACHED),
            (HIGH_PD + 8 * 0x1f7, 0xfee0_0000 | UNCACHED),
        ];
        for (at, entry) in entries {
            self.write(at, &entry.to_le_bytes());
        }
    }

    /// Long mode, a stack, an interrupt table with these handlers, and RIP at `code`.
    pub(crate) fn start(
        &self,
        vcpu: &D::Handle,
        handlers: &[Handler<'_>],
        code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Result<(), Errno> {
        const CR0: u64 = 0x8000_0031;
        const CR4_PAE: u64 = 1 << 5;
        const EFER_LONG: u64 = 0x500;
        self.write_page_tables();
        let descriptors: [u64; 3] = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
        self.write(GDT, descriptors.map(u64::to_le_bytes).as_flattened());
        self.write(CODE, &assemble(CODE, code));
        for (at, (vector, handler)) in handlers.iter().enumerate() {
            let start = HANDLERS + 0x100 * at;
            self.write(start, &assemble(start, handler));
            let gate = 0x0000_8e00_0008_0000 | start as u64;
            self.write(IDT + 16 * usize::from(*vector), &gate.to_le_bytes());
        }
        let mut sregs = kvm_sregs::default();
        self.ask(vcpu, GET_SREGS, &mut sregs)?;
        let data = kvm_segment {
            limit: 0xffff_ffff,
            selector: 0x10,
            type_: 3,
            present: 1,
            db: 1,
            s: 1,
            g: 1,
            ..kvm_segment::default()
        };
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.cs = kvm_segment {
            selector: 0x08,
            type_: 0xb,
            db: 0,
            l: 1,
            ..data
        };
        (sregs.gdt.base, sregs.gdt.limit) = (GDT as u64, 0x17);
        (sregs.idt.base, sregs.idt.limit) = (IDT as u64, 0xfff);
        (sregs.cr0, sregs.cr3, sregs.cr4) = (CR0, PML4 as u64, CR4_PAE);
        sregs.efer = EFER_LONG;
        self.ask(vcpu, SET_SREGS, &mut sregs)?;
        let mut regs = kvm_regs {
            rip: CODE as u64,
            rsp: STACK_TOP,
            rflags: 2,
            ..kvm_regs::default()
        };
        self.ask(vcpu, SET_REGS, &mut regs)?;
        Ok(())
    }

    /// Runs until the guest writes to [`PORT`]: what it wrote.
    pub(crate) fn run(&self, vcpu: &D::Handle) -> Result<u32, Errno> {
        const IO_DATA: usize = 0x1000;
        let page = self.door.map_run_page(vcpu)?;
        let exit = self.exit(vcpu, &page)?;
        assert_eq!(exit, (KVM_EXIT_IO, PORT.into()), "{page:?}");
        Ok(page.read_u32(IO_DATA) & 0xff)
    }

    /// Runs until the guest leaves: the reason, and the port or address that it left for.
    pub(crate) fn exit(&self, vcpu: &D::Handle, page: &Mapping) -> Result<(u32, u32), Errno> {
        const EXIT_REASON: usize = 8;
        const IO_PORT: usize = 34;
        const MMIO_ADDRESS: usize = 32;
        loop {
            match self.door.ioctl(vcpu, RUN, 0) {
                Ok(_) => {}
                Err(Errno::EAGAIN | Errno::EINTR) => continue,
                Err(errno) => return Err(errno),
            }
            return Ok(match page.read_u32(EXIT_REASON) {
                KVM_EXIT_IO => (KVM_EXIT_IO, page.read_u32(IO_PORT) & 0xffff),
                reason => (reason, page.read_u32(MMIO_ADDRESS)),
            });
        }
    }
}

/// 64-bit code for this address.
fn assemble(at: usize, code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    code(&mut a).unwrap();
    a.assemble(at as u64).unwrap()
}

/// 16-bit code for this address.
pub(crate) fn assemble_16(
    at: usize,
    code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Vec<u8> {
    let mut a = CodeAssembler::new(16).unwrap();
    code(&mut a).unwrap();
    a.assemble(at as u64).unwrap()
}

pub(crate) fn address<T>(value: &mut T) -> u64 {
    (&raw mut *value).expose_provenance() as u64
}
