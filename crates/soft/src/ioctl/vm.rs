//! Ioctls of a VM descriptor.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvm_bindings::{
    KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_MAX_VCPU_ID, KVM_CAP_MSR_PLATFORM_INFO,
    KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_CAP_X86_DISABLE_EXITS,
    KVM_CAP_X86_USER_SPACE_MSR, KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, KVM_CLOCK_TSC_STABLE,
    KVM_X2APIC_API_USE_32BIT_IDS, KVM_X86_DISABLE_EXITS_HLT, kvm_clock_data, kvm_dirty_log,
    kvm_enable_cap, kvm_userspace_memory_region, kvm_userspace_memory_region2,
};
use msrgate_core::{Errno, ExitReasons, FILTER_BYTES_64, RawFilter};

use super::{
    Creator, Handle, Handler, Outcome, VcpuDescriptor, capability, done, eventfd, int, irqchip,
    request,
};
use crate::client;
use crate::clock::Tsc;
use crate::irq::Irqfds;
use crate::kvmclock;
use crate::memory::Memory;
use crate::vm::{SystemConfig, VmState};

/// A VM, as its descriptor sees it.
#[derive(Debug)]
pub struct VmDescriptor {
    pub(super) state: Arc<VmState>,
    /// They end with the descriptor, and not only with the last vCPU's.
    pub(super) irqfds: Irqfds,
    pub(super) creator: Creator,
}

impl VmDescriptor {
    pub(super) fn new(config: SystemConfig) -> Self {
        Self {
            state: Arc::new(VmState::new(config, Memory::default())),
            irqfds: Irqfds::default(),
            creator: Creator::this_process(),
        }
    }
}

impl Drop for VmDescriptor {
    fn drop(&mut self) {
        // A forked child has neither the thread nor the right to end its parent's.
        if self.creator.check().is_ok() {
            self.irqfds.release();
        }
    }
}

pub(super) const HANDLERS: &[(u32, Handler<VmDescriptor>)] = &[
    (request::CREATE_VCPU, create_vcpu),
    (request::SET_USER_MEMORY_REGION, set_user_memory_region),
    (request::SET_USER_MEMORY_REGION2, set_user_memory_region2),
    (request::GET_DIRTY_LOG, get_dirty_log),
    (request::X86_SET_MSR_FILTER, set_msr_filter),
    (request::ENABLE_CAP, enable_cap),
    (request::CHECK_EXTENSION, check_extension),
    (request::SET_TSS_ADDR, set_tss_addr),
    (request::SET_IDENTITY_MAP_ADDR, set_identity_map_addr),
    (request::SET_NR_MMU_PAGES, set_nr_mmu_pages),
    (request::GET_NR_MMU_PAGES, get_nr_mmu_pages),
    (request::CREATE_IRQCHIP, irqchip::create_irqchip),
    (request::CREATE_PIT, irqchip::create_pit),
    (request::CREATE_PIT2, irqchip::create_pit2),
    (request::IRQ_LINE, irqchip::irq_line),
    (request::IRQ_LINE_STATUS, irqchip::irq_line_status),
    (request::SIGNAL_MSI, irqchip::signal_msi),
    (request::IRQFD, eventfd::irqfd),
    (request::IOEVENTFD, eventfd::ioeventfd),
    (request::SET_GSI_ROUTING, irqchip::set_gsi_routing),
    (request::GET_IRQCHIP, irqchip::get_irqchip),
    (request::SET_IRQCHIP, irqchip::set_irqchip),
    (request::GET_PIT, irqchip::get_pit),
    (request::SET_PIT, irqchip::set_pit),
    (request::GET_PIT2, irqchip::get_pit2),
    (request::SET_PIT2, irqchip::set_pit2),
    (request::REINJECT_CONTROL, irqchip::reinject_control),
    (request::SET_BOOT_CPU_ID, set_boot_cpu_id),
    (request::GET_CLOCK, get_clock),
    (request::SET_CLOCK, set_clock),
    (request::GET_TSC_KHZ, get_tsc_khz),
    (request::SET_TSC_KHZ, set_tsc_khz),
];

fn create_vcpu(vm: &Arc<VmDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let id = u32::try_from(arg).map_err(|_| Errno::EINVAL)?;
    let (vcpu, fd) = VcpuDescriptor::new(vm, id)?;
    Ok(Outcome::Descriptor {
        handle: Handle::Vcpu(Arc::new(vcpu)),
        fd,
    })
}

fn set_user_memory_region(vm: &Arc<VmDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let region: kvm_userspace_memory_region = client::load(arg)?;
    set_slot(vm, &region)
}

/// The longer structure; `guest_memfd` is not there, so its flag is refused with the unknown ones.
fn set_user_memory_region2(vm: &Arc<VmDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let region: kvm_userspace_memory_region2 = client::load(arg)?;
    let region = kvm_userspace_memory_region {
        slot: region.slot,
        flags: region.flags,
        guest_phys_addr: region.guest_phys_addr,
        memory_size: region.memory_size,
        userspace_addr: region.userspace_addr,
    };
    set_slot(vm, &region)
}

fn set_slot(vm: &VmDescriptor, region: &kvm_userspace_memory_region) -> Result<Outcome, Errno> {
    // In turn with the vCPUs, none of which uses the old slot when this returns.
    let _turn = vm.state.turn.take();
    vm.state.memory.set_slot(region)?;
    done()
}

fn get_dirty_log(vm: &Arc<VmDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    const BITMAP: u64 = std::mem::offset_of!(kvm_dirty_log, __bindgen_anon_1) as u64;
    let slot: u32 = client::load(arg)?;
    let bitmap: u64 = client::load(arg.wrapping_add(BITMAP))?;
    let dirty = {
        let _turn = vm.state.turn.take();
        vm.state.memory.take_dirty(slot)?
    };
    let bytes: Vec<u8> = dirty.into_iter().flat_map(u64::to_le_bytes).collect();
    client::write(bitmap, &bytes)?;
    done()
}

/// The checks are core's, in the kernel's order; a failed call leaves the old filter in force.
fn set_msr_filter(vm: &Arc<VmDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let bytes: [u8; FILTER_BYTES_64] = client::load(arg)?;
    let copy = |pointer, words: &mut [u64]| {
        let mut bytes = vec![0; size_of_val(words)];
        client::read(pointer, &mut bytes)?;
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().expect("chunks of 8"));
        }
        Ok(())
    };
    let filter = RawFilter::from_bytes_64(&bytes).check(copy);
    vm.state.set_filter(filter.map_err(|error| error.errno())?);
    done()
}

fn enable_cap(vm: &Arc<VmDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let request: kvm_enable_cap = client::load(arg)?;
    if request.flags != 0 {
        return Err(Errno::EINVAL);
    }
    let value = request.args[0];
    match request.cap {
        KVM_CAP_X86_USER_SPACE_MSR => {
            let reasons = ExitReasons::from_mask(value).map_err(|_| Errno::EINVAL)?;
            vm.state.set_reasons(reasons);
        }
        KVM_CAP_EXCEPTION_PAYLOAD => {
            let payload = &vm.state.exception_payload;
            payload.store(value != 0, Ordering::Relaxed);
        }
        KVM_CAP_MSR_PLATFORM_INFO => {
            let hidden = &vm.state.platform_info_hidden;
            hidden.store(value == 0, Ordering::Relaxed);
        }
        KVM_CAP_SPLIT_IRQCHIP => irqchip::split_irqchip(vm, value)?,
        KVM_CAP_X2APIC_API => set_x2apic_api(vm, value)?,
        KVM_CAP_X86_DISABLE_EXITS => disable_exits(vm, value)?,
        KVM_CAP_MAX_VCPU_ID => vm.state.set_max_vcpu_id(value)?,
        _ => return Err(Errno::EINVAL),
    }
    done()
}

/// Of the exits that there are, those that cannot be done without are kept, as by Linux: a client asks which can.
fn disable_exits(vm: &VmDescriptor, exits: u64) -> Result<(), Errno> {
    const VALID: u64 = 0xf; // MWAIT, HLT, PAUSE, C-states
    if exits & !VALID != 0 {
        return Err(Errno::EINVAL);
    }
    let hlt = exits & u64::from(KVM_X86_DISABLE_EXITS_HLT) != 0;
    vm.state.hlt_stays.fetch_or(hlt, Ordering::Relaxed);
    Ok(())
}

/// 32-bit IDs in messages and states. That a device's 0xff means everybody is not to be given up.
fn set_x2apic_api(vm: &VmDescriptor, flags: u64) -> Result<(), Errno> {
    if flags & !u64::from(KVM_X2APIC_API_USE_32BIT_IDS) != 0 {
        return Err(Errno::EINVAL);
    }
    if flags != 0 {
        let irqchip = vm.state.irqchip().ok_or(Errno::EINVAL)?;
        irqchip.with(|chips, _| chips.wide_ids = true);
    }
    Ok(())
}

fn check_extension(_: &Arc<VmDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    Ok(Outcome::Value(capability::value(arg)))
}

/// Memory that VMX would need is not needed here; three pages have to fit below 4 GiB.
fn set_tss_addr(_: &Arc<VmDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    const LAST: u64 = 0xffff_ffff - 3 * 4096;
    if arg > LAST {
        Err(Errno::EINVAL)
    } else {
        done()
    }
}

fn set_identity_map_addr(vm: &Arc<VmDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    client::load::<u64>(arg)?;
    if vm.state.has_vcpus() {
        Err(Errno::EINVAL)
    } else {
        done()
    }
}

/// There are no shadow pages to count; fewer than 64 is refused as in Linux.
fn set_nr_mmu_pages(_: &Arc<VmDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    if int(arg) < 64 {
        Err(Errno::EINVAL)
    } else {
        done()
    }
}

fn get_nr_mmu_pages(_: &Arc<VmDescriptor>, _: u64) -> Result<Outcome, Errno> {
    Err(Errno::EINVAL)
}

fn set_boot_cpu_id(vm: &Arc<VmDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    vm.state.set_bootstrap_id(arg)?;
    done()
}

/// Flags of `kvm_clock_data`.
pub(super) const CLOCK_FLAGS: u32 = KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;

/// The clock, the time of day and the host's TSC (which is the VM's, before any offset) at one moment.
fn get_clock(vm: &Arc<VmDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let state = &vm.state;
    let clock = kvm_clock_data {
        clock: state.clock.now(),
        flags: CLOCK_FLAGS,
        realtime: kvmclock::realtime(),
        host_tsc: Tsc::new(state.epoch, state.tsc_khz()).now(),
        ..kvm_clock_data::default()
    };
    client::store(arg, &clock)?;
    done()
}

/// With the time of day at which the clock read that, it goes on from there to now.
fn set_clock(vm: &Arc<VmDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let clock: kvm_clock_data = client::load(arg)?;
    if clock.flags & !CLOCK_FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    let passed = if clock.flags & KVM_CLOCK_REALTIME != 0 {
        kvmclock::realtime().saturating_sub(clock.realtime)
    } else {
        0
    };
    vm.state.clock.set(clock.clock.wrapping_add(passed));
    done()
}

fn get_tsc_khz(vm: &Arc<VmDescriptor>, _: u64) -> Result<Outcome, Errno> {
    Ok(Outcome::Value(vm.state.tsc_khz().cast_signed()))
}

/// Of the vCPUs to be; 0 is the default.
fn set_tsc_khz(vm: &Arc<VmDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    if vm.state.has_vcpus() || int(arg) > i32::MAX.cast_unsigned() {
        return Err(Errno::EINVAL);
    }
    vm.state.set_tsc_khz(int(arg));
    done()
}
