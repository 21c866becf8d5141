//! A guest of two instructions that tries one MSR access at a time: [`Probe`].
//!
//! [`Probe::rdmsr`] and [`Probe::wrmsr`] tell what KVM makes of an access ([`Seen`]); `guest_rdmsr` and
//! `guest_wrmsr` let a gate answer what leaves the guest, and tell what the guest itself meets ([`GuestSaw`]): a
//! #GP is one that its own handler caught. A probe does not mend what an access breaks: a write that makes KVM
//! write into guest memory, or ends the VM, wants a new probe after it.

use std::time::{Duration, Instant};

use msrgate_core::{
    Access, DescriptorTable, Exception, ExitReason, ExitReasons, Gate, MsrFilter, MsrIndex,
    Recorder, Registers, RunError, Vcpu, Vm, VmEntry, VmError, VmExit,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::long_mode::{self, Selectors};

const RDMSR: u64 = 0x1000;
const WRMSR: u64 = 0x1003;
/// RDMSR, HLT; WRMSR, HLT.
const CODE: [u8; 6] = [0x0f, 0x32, 0xf4, 0x0f, 0x30, 0xf4];
/// Both instructions are as long.
const ACCESS_BYTES: u64 = 2;
const HLT: u8 = 0xf4;
const HLT_BYTES: u64 = 1;
/// One HLT for each exception.
const HANDLERS: u64 = 0x1100;
const EXCEPTIONS: u8 = 32;
const GENERAL_PROTECTION: u8 = 13;
const IDT: u64 = 0x2000;
const IDT_LIMIT: u16 = 16 * EXCEPTIONS as u16 - 1;

/// An access during which the vCPU is interrupted is given up after this time.
const PATIENCE: Duration = Duration::from_secs(2);

/// A VM with one vCPU that does one MSR access after another in ring 0.
#[derive(Debug)]
pub struct Probe<V: Vm> {
    vm: V,
    vcpu: V::Vcpu,
}

impl<V: Vm> Probe<V> {
    /// Puts the guest into `memory`, which `vm` runs on. Nothing is filtered, and all that KVM refuses leaves
    /// the guest.
    ///
    /// # Errors
    /// The backend refuses something.
    pub fn new(vm: V, memory: &GuestMemoryMmap) -> Result<Self, ProbeError> {
        load(memory).map_err(ProbeError::Memory)?;
        let mut vcpu = vm.create_vcpu(0)?;
        let mut system = long_mode::system_registers(&vcpu.system_registers()?, Selectors::ELF);
        system.idt = DescriptorTable {
            base: IDT,
            limit: IDT_LIMIT,
        };
        vcpu.set_system_registers(&system)?;
        let mut probe = Self { vm, vcpu };
        probe.install(&MsrFilter::allow_all(), ExitReasons::ALL)?;
        Ok(probe)
    }

    /// Replaces the VM's filter and the reasons for which an access leaves the guest.
    ///
    /// # Errors
    /// The backend refuses them.
    pub fn install(&mut self, filter: &MsrFilter, reasons: ExitReasons) -> Result<(), VmError> {
        self.vm.set_exit_reasons(reasons)?;
        self.vm.set_msr_filter(filter)
    }

    /// What KVM makes of a read.
    ///
    /// # Errors
    /// The access ended the VM, or the backend failed.
    pub fn rdmsr(&mut self, index: MsrIndex) -> Result<Seen, ProbeError> {
        self.seen(Access::Read, index, 0)
    }

    /// What KVM makes of a write.
    ///
    /// # Errors
    /// As for [`Probe::rdmsr`].
    pub fn wrmsr(&mut self, index: MsrIndex, value: u64) -> Result<Seen, ProbeError> {
        self.seen(Access::Write, index, value)
    }

    /// What the guest meets when it reads and `gate` answers for what leaves it.
    ///
    /// # Errors
    /// As for [`Probe::rdmsr`].
    pub fn guest_rdmsr<R: Recorder>(
        &mut self,
        index: MsrIndex,
        gate: &mut Gate<R>,
    ) -> Result<GuestSaw, ProbeError> {
        self.guest_saw(Access::Read, index, 0, gate)
    }

    /// What the guest meets when it writes and `gate` answers for what leaves it.
    ///
    /// # Errors
    /// As for [`Probe::rdmsr`].
    pub fn guest_wrmsr<R: Recorder>(
        &mut self,
        index: MsrIndex,
        value: u64,
        gate: &mut Gate<R>,
    ) -> Result<GuestSaw, ProbeError> {
        self.guest_saw(Access::Write, index, value, gate)
    }

    /// The vCPU, for the host path and for a kicker. An access starts from its system registers.
    pub fn vcpu(&mut self) -> &mut V::Vcpu {
        &mut self.vcpu
    }

    fn seen(&mut self, access: Access, index: MsrIndex, value: u64) -> Result<Seen, ProbeError> {
        let start = self.start(access, index, value)?;
        let exit = self.run(VmEntry::Run, start)?;
        let answer = match exit {
            VmExit::Hlt => return Ok(self.halted()?.into()),
            VmExit::Rdmsr { .. } => VmEntry::CompleteRdmsr(Ok(0)),
            VmExit::Wrmsr { .. } => VmEntry::CompleteWrmsr(Ok(())),
            exit => return Err(ProbeError::Ended { exit }),
        };
        self.vcpu.complete(answer)?;
        let (_, _, reason) = exit.msr_access().ok_or(ProbeError::Ended { exit })?;
        Ok(Seen::Refused(reason))
    }

    fn guest_saw<R: Recorder>(
        &mut self,
        access: Access,
        index: MsrIndex,
        value: u64,
        gate: &mut Gate<R>,
    ) -> Result<GuestSaw, ProbeError> {
        let start = self.start(access, index, value)?;
        let mut entry = VmEntry::Run;
        loop {
            let exit = self.run(entry, start)?;
            if exit == VmExit::Hlt {
                return self.halted();
            }
            entry = gate
                .service(&exit, &mut self.vcpu)
                .ok_or(ProbeError::Ended { exit })?;
        }
    }

    /// Puts the vCPU before the instruction.
    fn start(&mut self, access: Access, index: MsrIndex, value: u64) -> Result<Instant, VmError> {
        let rip = match access {
            Access::Read => RDMSR,
            Access::Write => WRMSR,
        };
        self.vcpu.set_registers(&Registers {
            rcx: index.0.into(),
            rax: value & 0xffff_ffff,
            rdx: value >> 32,
            ..long_mode::registers(rip)
        })?;
        Ok(Instant::now())
    }

    /// Runs to the next exit that is not an interruption.
    fn run(&mut self, entry: VmEntry, start: Instant) -> Result<VmExit, RunError> {
        let mut exit = self.vcpu.run(entry)?;
        while exit == VmExit::Interrupted && start.elapsed() < PATIENCE {
            exit = self.vcpu.run(VmEntry::Run)?;
        }
        Ok(exit)
    }

    /// What the guest met before its HLT.
    fn halted(&self) -> Result<GuestSaw, ProbeError> {
        const READ: u64 = RDMSR + ACCESS_BYTES;
        const WRITTEN: u64 = WRMSR + ACCESS_BYTES;
        let registers = self.vcpu.registers()?;
        let (rax, rdx) = (registers.rax & 0xffff_ffff, registers.rdx & 0xffff_ffff);
        let rip = registers.rip.wrapping_sub(HLT_BYTES);
        match (rip, rip.checked_sub(HANDLERS).map(u8::try_from)) {
            (READ, _) => Ok(GuestSaw::Value(rdx << 32 | rax)),
            (WRITTEN, _) => Ok(GuestSaw::Done),
            (_, Some(Ok(GENERAL_PROTECTION))) => Ok(GuestSaw::Gp),
            (_, Some(Ok(vector))) if vector < EXCEPTIONS => Err(ProbeError::Exception { vector }),
            _ => Err(ProbeError::Ended { exit: VmExit::Hlt }),
        }
    }
}

/// What KVM makes of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It reads this value.
    Value(u64),
    /// It is written.
    Done,
    /// #GP, without an exit: the processor itself refuses it.
    Gp,
    /// It left the guest.
    Refused(ExitReason),
}

/// What the guest meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestSaw {
    /// It read this value.
    Value(u64),
    /// It went on after its write.
    Done,
    /// Its #GP handler was called.
    Gp,
}

impl From<GuestSaw> for Seen {
    fn from(saw: GuestSaw) -> Self {
        match saw {
            GuestSaw::Value(value) => Self::Value(value),
            GuestSaw::Done => Self::Done,
            GuestSaw::Gp => Self::Gp,
        }
    }
}

/// Why an access came to nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// The VM did not come back from it, and is of no more use.
    #[error("the guest ended: {exit:?}")]
    Ended {
        /// How it ended; interrupted: it took too long.
        exit: VmExit,
    },
    /// The instruction raised another exception than #GP.
    #[error("the guest met {}", Exception { vector: *vector, error_code: None })]
    Exception {
        /// Which one.
        vector: u8,
    },
    /// The vCPU.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The VM.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The guest does not fit into its memory.
    #[error("cannot write guest memory")]
    Memory(#[source] GuestMemoryError),
}

/// Writes page tables, code, a handler for each exception, and the IDT that leads there.
fn load(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    long_mode::write_tables(memory, Selectors::ELF)?;
    memory.write_slice(&CODE, GuestAddress(RDMSR))?;
    memory.write_slice(&[HLT; EXCEPTIONS as usize], GuestAddress(HANDLERS))?;
    for vector in 0..u64::from(EXCEPTIONS) {
        let gate = long_mode::interrupt_gate(HANDLERS + vector);
        memory.write_slice(&gate, GuestAddress(IDT + vector * 16))?;
    }
    Ok(())
}

const _: () = assert!(WRMSR == RDMSR + ACCESS_BYTES + HLT_BYTES);
const _: () = assert!(IDT + IDT_LIMIT as u64 <= long_mode::TABLES.start);
