//! [`VmState`]: what the vCPUs of a VM share. Both doors, the Rust API and the ioctls, are made on top of it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use msrgate_core::{Errno, ExitReasons, FilterCell, MsrFilter, UnknownMsrs};
use msrgate_x86::CpuidLeaf;

use crate::clock::{self, TscSync};
use crate::cpuid::{self, CpuidSource};
use crate::ioeventfd::IoEventFds;
use crate::irq::IrqChip;
use crate::kvmclock::VmClock;
use crate::memory::Memory;
use crate::turn::Turn;

/// vCPUs of one VM (`KVM_CAP_MAX_VCPUS`), and the end of their numbers.
pub(crate) const MAX_VCPUS: u32 = 1024;

/// What a host chooses about a VM, or about all VMs of one system descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SystemConfig {
    /// Whose processor a guest sees.
    pub cpuid: CpuidSource,
    /// What an MSR is that is not known here (the module parameter `ignore_msrs`).
    pub unknown_msrs: UnknownMsrs,
    /// UD2 followed by "kvm" is a prefix (the module parameter `force_emulation_prefix`).
    pub forced_emulation_prefix: bool,
    /// Frequency of the TSC.
    pub tsc_khz: u32,
}

impl Default for SystemConfig {
    fn default() -> Self {
        Self {
            cpuid: CpuidSource::default(),
            unknown_msrs: UnknownMsrs::default(),
            forced_emulation_prefix: false,
            tsc_khz: clock::TSC_KHZ,
        }
    }
}

impl SystemConfig {
    /// `KVM_GET_SUPPORTED_CPUID`.
    pub(crate) fn supported_cpuid(&self) -> Vec<CpuidLeaf> {
        cpuid::supported(self.cpuid, self.tsc_khz)
    }
}

/// A virtual machine.
#[derive(Debug)]
pub(crate) struct VmState {
    pub(crate) config: SystemConfig,
    pub(crate) memory: Memory,
    pub(crate) turn: Turn,
    /// The vCPU that ran last, plus 1. Written by who has the turn.
    pub(crate) last_runner: AtomicU32,
    pub(crate) filter: FilterCell,
    reasons: AtomicU32,
    /// When the VM was made: TSCs and the clock count from here.
    pub(crate) epoch: Instant,
    pub(crate) clock: Arc<VmClock>,
    pub(crate) tsc_sync: TscSync,
    /// TSC frequency of vCPUs to be.
    tsc_khz: AtomicU32,
    ids: Mutex<BTreeSet<u32>>,
    /// The number of the bootstrap processor (`KVM_SET_BOOT_CPU_ID`).
    bootstrap_id: AtomicU32,
    /// The end of the numbers that a client set itself (`KVM_CAP_MAX_VCPU_ID`); 0: none.
    max_vcpu_id: AtomicU32,
    irqchip: OnceLock<Arc<IrqChip>>,
    pub(crate) ioeventfds: IoEventFds,
    /// HLT does not leave the guest (`KVM_CAP_X86_DISABLE_EXITS`).
    pub(crate) hlt_stays: AtomicBool,
    /// KVM_CAP_EXCEPTION_PAYLOAD.
    pub(crate) exception_payload: AtomicBool,
    /// KVM_CAP_MSR_PLATFORM_INFO with 0.
    pub(crate) platform_info_hidden: AtomicBool,
}

impl VmState {
    pub(crate) fn new(config: SystemConfig, memory: Memory) -> Self {
        let epoch = Instant::now();
        Self {
            config,
            memory,
            turn: Turn::default(),
            last_runner: AtomicU32::new(0),
            filter: FilterCell::new(),
            reasons: AtomicU32::new(0),
            epoch,
            clock: Arc::new(VmClock::new(epoch)),
            tsc_sync: TscSync::default(),
            tsc_khz: AtomicU32::new(config.tsc_khz),
            ids: Mutex::default(),
            bootstrap_id: AtomicU32::new(0),
            max_vcpu_id: AtomicU32::new(0),
            irqchip: OnceLock::new(),
            ioeventfds: IoEventFds::default(),
            hlt_stays: AtomicBool::new(false),
            exception_payload: AtomicBool::new(false),
            platform_info_hidden: AtomicBool::new(false),
        }
    }

    /// The reasons that are deflected to user space.
    #[inline]
    pub(crate) fn reasons(&self) -> ExitReasons {
        let mask = u64::from(self.reasons.load(Ordering::Relaxed));
        ExitReasons::from_mask(mask).unwrap_or(ExitReasons::NONE)
    }

    /// Replaces them. A pending exit is not affected.
    pub(crate) fn set_reasons(&self, reasons: ExitReasons) {
        self.reasons.store(reasons.mask(), Ordering::Relaxed);
    }

    /// Replaces the filter; once this returns, no access is checked against the old one.
    pub(crate) fn set_filter(&self, filter: MsrFilter) {
        self.filter.replace(filter);
    }

    /// Reserves the number of a vCPU to be.
    ///
    /// # Errors
    /// EINVAL for a number beyond the limit, EEXIST for one that is taken.
    pub(crate) fn reserve(&self, id: u32) -> Result<(), Errno> {
        if id >= self.max_vcpu_id().unwrap_or(MAX_VCPUS) {
            return Err(Errno::EINVAL);
        }
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        if ids.insert(id) {
            Ok(())
        } else {
            Err(Errno::EEXIST)
        }
    }

    /// Whether there is a vCPU already, which some settings have to precede.
    pub(crate) fn has_vcpus(&self) -> bool {
        let ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        !ids.is_empty()
    }

    /// The number of the bootstrap processor.
    pub(crate) fn bootstrap_id(&self) -> u32 {
        self.bootstrap_id.load(Ordering::Relaxed)
    }

    /// Sets it.
    ///
    /// # Errors
    /// EBUSY if there is a vCPU, EINVAL for a number that none can have. (The end itself is let through, as by
    /// Linux.)
    pub(crate) fn set_bootstrap_id(&self, id: u64) -> Result<(), Errno> {
        if self.has_vcpus() {
            return Err(Errno::EBUSY);
        }
        let limit = self.max_vcpu_id().unwrap_or(MAX_VCPUS);
        let id = u32::try_from(id).ok().filter(|id| *id <= limit);
        self.bootstrap_id
            .store(id.ok_or(Errno::EINVAL)?, Ordering::Relaxed);
        Ok(())
    }

    /// Lowers the end of the vCPUs' numbers, once.
    ///
    /// # Errors
    /// EINVAL beyond the limit, below the bootstrap processor, or for another value than before.
    pub(crate) fn set_max_vcpu_id(&self, end: u64) -> Result<(), Errno> {
        let end = u32::try_from(end).ok().filter(|end| *end <= MAX_VCPUS);
        let end = end.ok_or(Errno::EINVAL)?;
        let set_before = self.max_vcpu_id().is_some_and(|before| before != end);
        if self.bootstrap_id() > end || set_before {
            return Err(Errno::EINVAL);
        }
        self.max_vcpu_id.store(end, Ordering::Relaxed);
        Ok(())
    }

    fn max_vcpu_id(&self) -> Option<u32> {
        Some(self.max_vcpu_id.load(Ordering::Relaxed)).filter(|end| *end != 0)
    }

    /// Gives the number back of a vCPU that is gone.
    pub(crate) fn release(&self, id: u32) {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.remove(&id);
    }

    /// The in-kernel interrupt controllers, if the client has asked for them.
    pub(crate) fn irqchip(&self) -> Option<Arc<IrqChip>> {
        self.irqchip.get().cloned()
    }

    /// Makes them (`KVM_CREATE_IRQCHIP`); with the number of `client_pins`, the local APICs alone.
    ///
    /// # Errors
    /// EEXIST if they are there, EINVAL if there is a vCPU already.
    pub(crate) fn create_irqchip(&self, client_pins: Option<u32>) -> Result<(), Errno> {
        if self.irqchip.get().is_some() {
            return Err(Errno::EEXIST);
        }
        if self.has_vcpus() {
            return Err(Errno::EINVAL);
        }
        let irqchip = Arc::new(IrqChip::new(self.epoch, client_pins));
        self.irqchip.set(irqchip).map_err(|_| Errno::EEXIST)
    }

    /// The TSC frequency of vCPUs to be.
    pub(crate) fn tsc_khz(&self) -> u32 {
        self.tsc_khz.load(Ordering::Relaxed)
    }

    /// Sets it; 0 is the default.
    pub(crate) fn set_tsc_khz(&self, khz: u32) {
        let khz = if khz == 0 { self.config.tsc_khz } else { khz };
        self.tsc_khz.store(khz, Ordering::Relaxed);
    }
}
