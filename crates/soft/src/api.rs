//! The Rust API: [`SoftVm`] and [`SoftVcpu`], core's [`Vm`] and [`Vcpu`] without ioctls or shared pages.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use msrgate_core::{
    Errno, Exception, ExitReasons, Kick, LineLevel, MsrFilter, MsrIndex, Registers, RunError,
    SystemRegisters, Unimplemented, Vcpu, Vm, VmEntry, VmError, VmExit,
};
use vm_memory::GuestMemoryMmap;

use crate::cpuid;
use crate::irq::Pit;
use crate::memory::Memory;
use crate::sregs;
use crate::vcpu::{Engine, SLICE};
use crate::vm::{SystemConfig, VmState};

/// A virtual machine on guest memory of its own.
///
/// ```
/// use msrgate_core::{Registers, Vcpu, Vm, VmEntry, VmExit};
/// use msrgate_soft::{SoftVm, SystemConfig};
/// use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
///
/// let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)])?;
/// memory.write_slice(&[0xf4], GuestAddress(0x100))?; // hlt
/// let vm = SoftVm::new(&memory, SystemConfig::default())?;
/// let mut vcpu = vm.create_vcpu(0)?;
/// let mut system = vcpu.system_registers()?;
/// (system.cs.base, system.cs.selector) = (0, 0);
/// vcpu.set_system_registers(&system)?;
/// vcpu.set_registers(&Registers { rip: 0x100, rflags: 2, ..Registers::default() })?;
/// assert_eq!(vcpu.run(VmEntry::Run)?, VmExit::Hlt);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct SoftVm {
    state: Arc<VmState>,
}

impl SoftVm {
    /// A VM whose memory slots are the regions of `memory`.
    ///
    /// # Errors
    /// A region is not whole pages, or there are too many.
    pub fn new(memory: &GuestMemoryMmap, config: SystemConfig) -> Result<Self, VmError> {
        let memory = Memory::of_regions(memory).map_err(refused("KVM_SET_USER_MEMORY_REGION"))?;
        Ok(Self {
            state: Arc::new(VmState::new(config, memory)),
        })
    }
}

/// The in-kernel interrupt controllers. With them HLT waits for an interrupt instead of leaving, and vCPUs other
/// than the first wait for their start-up messages.
impl SoftVm {
    /// Makes local APICs, an I/O APIC, two 8259s and a PIT, before the first vCPU.
    ///
    /// # Errors
    /// They are there already, or there is a vCPU.
    pub fn create_irqchip(&self) -> Result<(), VmError> {
        let created = self.state.create_irqchip(None);
        created.map_err(refused("KVM_CREATE_IRQCHIP"))?;
        if let Some(irqchip) = self.state.irqchip() {
            irqchip.with(|chips, now| chips.pit = Some(Pit::new(true, now)));
        }
        Ok(())
    }
}

impl Vm for SoftVm {
    type Vcpu = SoftVcpu;

    fn create_vcpu(&self, id: u32) -> Result<SoftVcpu, VmError> {
        self.state.reserve(id).map_err(refused("KVM_CREATE_VCPU"))?;
        let mut engine = Engine::new(Arc::clone(&self.state), id);
        let table = self.state.config.supported_cpuid();
        engine.set_cpuid(cpuid::of_vcpu(table, id, engine.has_irqchip()));
        Ok(SoftVcpu {
            engine,
            kicker: Kicker::default(),
        })
    }

    fn set_exit_reasons(&self, reasons: ExitReasons) -> Result<(), VmError> {
        self.state.set_reasons(reasons);
        Ok(())
    }

    fn set_msr_filter(&self, filter: &MsrFilter) -> Result<(), VmError> {
        self.state.set_filter(filter.clone());
        Ok(())
    }

    fn set_irq_line(&self, gsi: u32, level: LineLevel) -> Result<(), VmError> {
        let irqchip = self.state.irqchip().ok_or(Errno::ENXIO);
        let irqchip = irqchip.map_err(refused("KVM_IRQ_LINE"))?;
        irqchip.with(|chips, _| chips.set_gsi(gsi, level == LineLevel::High));
        Ok(())
    }
}

/// A virtual processor.
#[derive(Debug)]
pub struct SoftVcpu {
    engine: Engine,
    kicker: Kicker,
}

impl Vcpu for SoftVcpu {
    type Kicker = Kicker;

    #[inline]
    fn run(&mut self, entry: VmEntry) -> Result<VmExit, RunError> {
        if let Some(exit) = self.engine.complete(entry)? {
            return Ok(exit);
        }
        let kicker = &self.kicker;
        let exit = self
            .engine
            .run(SLICE, |_| kicker.take().then_some(VmExit::Interrupted));
        match exit {
            Ok(exit) => {
                if exit.msr_access().is_none() {
                    self.engine.note_foreign_writes();
                }
                Ok(exit)
            }
            Err(errno) => Err(RunError::Refused { errno }),
        }
    }

    fn complete(&mut self, entry: VmEntry) -> Result<(), RunError> {
        self.engine.complete(entry)?;
        Ok(())
    }

    fn observe_msrs(&mut self) -> Result<(), VmError> {
        self.engine.is_observed = true;
        Ok(())
    }

    fn kicker(&self) -> Kicker {
        self.kicker.clone()
    }

    fn registers(&self) -> Result<Registers, VmError> {
        Ok(self.engine.cpu.registers())
    }

    fn set_registers(&mut self, registers: &Registers) -> Result<(), VmError> {
        self.engine.cpu.set_registers(registers);
        Ok(())
    }

    fn system_registers(&self) -> Result<SystemRegisters, VmError> {
        Ok(self.engine.cpu.system_registers())
    }

    fn set_system_registers(&mut self, registers: &SystemRegisters) -> Result<(), VmError> {
        sregs::set(&mut self.engine, registers).map_err(refused("KVM_SET_SREGS"))
    }

    fn get_msr(&self, index: MsrIndex) -> Result<Option<u64>, VmError> {
        Ok(self.engine.get_msr(index))
    }

    fn set_msr(&mut self, index: MsrIndex, value: u64) -> Result<bool, VmError> {
        Ok(self.engine.set_msr(index, value))
    }

    fn last_exception(&self) -> Option<Exception> {
        let last = self.engine.cpu.last_exception()?;
        Some(Exception {
            vector: last.vector,
            error_code: last.error_code,
        })
    }

    fn retired(&self) -> Option<u64> {
        Some(self.engine.cpu.retired())
    }

    fn unimplemented(&self) -> Vec<Unimplemented> {
        self.engine.cpu.unimplemented().to_vec()
    }
}

/// Interrupts a [`SoftVcpu`] from another thread.
#[derive(Clone, Debug, Default)]
pub struct Kicker(Arc<AtomicBool>);

impl Kicker {
    #[inline]
    fn take(&self) -> bool {
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Acquire)
    }
}

impl Kick for Kicker {
    fn kick(&self) {
        self.0.store(true, Ordering::Release);
    }
}

fn refused(call: &'static str) -> impl Fn(Errno) -> VmError {
    move |errno| VmError::Refused { call, errno }
}
