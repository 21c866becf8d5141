//! A virtual machine on the real KVM.
// UNSAFETY: the kernel keeps the addresses of guest memory for as long as the VM lives.
#![expect(unsafe_code, reason = "memory slots hold addresses")]

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_CAP_TSC_DEADLINE_TIMER, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config,
    kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
use msrgate_core::{Errno, ExitReasons, LineLevel, MsrFilter, Vm, VmError};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::{Kvm, KvmVcpu, fd, filter};

/// Three pages below the BIOS that KVM may use for a task state segment (Intel without unrestricted
/// guest), and the page before them for an identity map. No RAM belongs there.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// Who has the interrupt controllers and the timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Irqchip {
    /// Nobody: HLT leaves the guest.
    None,
    /// The kernel: local APICs, I/O APIC, PIC and PIT. HLT waits inside the kernel.
    Kernel,
}

/// A VM: its descriptor, and the memory that it runs on.
#[derive(Debug)]
pub struct KvmVm {
    shared: Arc<Shared>,
    cpuid: CpuId,
}

/// What the VM and its vCPUs hold on to. The descriptor is dropped before the memory.
#[derive(Debug)]
pub(crate) struct Shared {
    vm: VmFd,
    _memory: GuestMemoryMmap,
}

impl KvmVm {
    /// A VM without vCPUs whose RAM is `memory`.
    ///
    /// # Errors
    /// The kernel refuses the VM, a memory region, or the interrupt controllers.
    pub fn new(kvm: &Kvm, memory: GuestMemoryMmap, irqchip: Irqchip) -> Result<Self, VmError> {
        let mut cpuid = kvm.supported_cpuid()?;
        let vm = kvm.fd.create_vm().map_err(refused("KVM_CREATE_VM"))?;
        for (slot, region) in (0u32..).zip(memory.iter()) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: `__kvm_set_memory_region` keeps `userspace_addr` and lets the guest use
            // `memory_size` bytes from there. The region is mapped for as long as `memory`, which
            // `Shared` drops after the VM's descriptor; every vCPU holds `Shared` too. A kicker's mapping
            // can keep the kernel's VM for longer, but without a descriptor nothing runs it.
            unsafe { vm.set_user_memory_region(region) }
                .map_err(refused("KVM_SET_USER_MEMORY_REGION"))?;
        }
        if irqchip == Irqchip::Kernel {
            create_irqchip(&vm)?;
            set_feature(&mut cpuid, HYPERVISOR);
            if vm.check_extension_raw(KVM_CAP_TSC_DEADLINE_TIMER.into()) > 0 {
                set_feature(&mut cpuid, TSC_DEADLINE);
            }
        }
        let shared = Arc::new(Shared {
            vm,
            _memory: memory,
        });
        Ok(Self { shared, cpuid })
    }
}

impl AsRawFd for KvmVm {
    /// The VM's descriptor, for ioctls that have no method here.
    fn as_raw_fd(&self) -> RawFd {
        self.shared.vm.as_raw_fd()
    }
}

impl Vm for KvmVm {
    type Vcpu = KvmVcpu;

    fn create_vcpu(&self, id: u32) -> Result<KvmVcpu, VmError> {
        let fd = self
            .shared
            .vm
            .create_vcpu(id.into())
            .map_err(refused("KVM_CREATE_VCPU"))?;
        let mut cpuid = self.cpuid.clone();
        set_apic_id(&mut cpuid, id);
        fd.set_cpuid2(&cpuid).map_err(refused("KVM_SET_CPUID2"))?;
        KvmVcpu::new(fd, Arc::clone(&self.shared), self.shared.vm.run_size())
    }

    fn set_exit_reasons(&self, reasons: ExitReasons) -> Result<(), VmError> {
        fd::set_exit_reasons(&self.shared.vm, reasons)
    }

    fn set_msr_filter(&self, filter: &MsrFilter) -> Result<(), VmError> {
        filter::set_msr_filter(&self.shared.vm, filter)
    }

    fn set_irq_line(&self, gsi: u32, level: LineLevel) -> Result<(), VmError> {
        self.shared
            .vm
            .set_irq_line(gsi, level == LineLevel::High)
            .map_err(refused("KVM_IRQ_LINE"))
    }
}

/// An ioctl's failure, with its name.
pub(crate) fn refused(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> VmError {
    move |error| VmError::Refused {
        call,
        errno: Errno(error.errno()),
    }
}

fn create_irqchip(vm: &VmFd) -> Result<(), VmError> {
    vm.set_tss_address(TSS_ADDRESS)
        .map_err(refused("KVM_SET_TSS_ADDR"))?;
    vm.set_identity_map_address(IDENTITY_MAP_ADDRESS)
        .map_err(refused("KVM_SET_IDENTITY_MAP_ADDR"))?;
    vm.create_irq_chip()
        .map_err(refused("KVM_CREATE_IRQCHIP"))?;
    let pit = kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    };
    vm.create_pit2(pit).map_err(refused("KVM_CREATE_PIT2"))
}

/// What `KVM_GET_SUPPORTED_CPUID` leaves to the VMM, in CPUID.1:ECX: that there is a hypervisor, without which no guest
/// looks for KVM's clock.
const HYPERVISOR: u32 = 1 << 31;
/// Likewise: the timer is the kernel's local APIC's.
const TSC_DEADLINE: u32 = 1 << 24;

fn set_feature(cpuid: &mut CpuId, bit: u32) {
    let mut leaves = cpuid.as_mut_slice().iter_mut();
    if let Some(leaf) = leaves.find(|leaf| leaf.function == 1) {
        leaf.ecx |= bit;
    }
}

/// CPUID shows the APIC id in leaf 1 (EBX 31:24) and in the topology leaves (EDX); SDM vol. 2, CPUID.
fn set_apic_id(cpuid: &mut CpuId, id: u32) {
    for leaf in cpuid.as_mut_slice() {
        match leaf.function {
            1 => leaf.ebx = leaf.ebx & 0x00ff_ffff | id << 24,
            0xb | 0x1f => leaf.edx = id,
            _ => {}
        }
    }
}
