//! A vCPU descriptor: what it holds, and the table of its ioctls.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{KVM_CAP_ENFORCE_PV_FEATURE_CPUID, kvm_cpuid_entry2, kvm_enable_cap};
use msrgate_core::Errno;

use super::system::{MAX_CPUID_ENTRIES, put_cpuid};
use super::{
    Creator, Handler, Outcome, VmDescriptor, convert, done, int, irqchip, msrs, request, run, state,
};
use crate::client;
use crate::run_page::RunPage;
use crate::vcpu::Engine;

/// A vCPU, as its descriptor sees it.
#[derive(Debug)]
pub struct VcpuDescriptor {
    /// An ioctl holds it from beginning to end, `KVM_RUN` too.
    inner: Mutex<Inner>,
    pub(super) page: RunPage,
    pub(super) creator: Creator,
}

/// What is under the vCPU's lock.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) engine: Engine,
    /// `KVM_SET_SIGNAL_MASK`: blocked while the vCPU runs.
    pub(super) signal_mask: Option<u64>,
    /// `KVM_SET_CPUID2`, as it came.
    cpuid: Vec<kvm_cpuid_entry2>,
}

impl VcpuDescriptor {
    /// The vCPU `id` of `vm`, and the descriptor that maps its run page.
    pub(super) fn new(vm: &VmDescriptor, id: u32) -> Result<(Self, OwnedFd), Errno> {
        let (page, fd) = RunPage::new()?;
        vm.state.reserve(id)?;
        let inner = Inner {
            engine: Engine::new(Arc::clone(&vm.state), id),
            signal_mask: None,
            cpuid: Vec::new(),
        };
        let vcpu = Self {
            inner: Mutex::new(inner),
            page,
            creator: Creator::this_process(),
        };
        Ok((vcpu, fd))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) const HANDLERS: &[(u32, Handler<VcpuDescriptor>)] = &[
    (request::RUN, run::run),
    (request::GET_REGS, state::get_regs),
    (request::SET_REGS, state::set_regs),
    (request::GET_SREGS, state::get_sregs),
    (request::SET_SREGS, state::set_sregs),
    (request::GET_SREGS2, state::get_sregs2),
    (request::SET_SREGS2, state::set_sregs2),
    (request::GET_MSRS, get_msrs),
    (request::SET_MSRS, set_msrs),
    (request::GET_CPUID2, get_cpuid2),
    (request::SET_CPUID2, set_cpuid2),
    (request::GET_FPU, state::get_fpu),
    (request::SET_FPU, state::set_fpu),
    (request::GET_XSAVE, state::get_xsave),
    (request::GET_XSAVE2, state::get_xsave),
    (request::SET_XSAVE, state::set_xsave),
    (request::GET_XCRS, state::get_xcrs),
    (request::SET_XCRS, state::set_xcrs),
    (request::GET_DEBUGREGS, state::get_debugregs),
    (request::SET_DEBUGREGS, state::set_debugregs),
    (request::GET_VCPU_EVENTS, state::get_vcpu_events),
    (request::SET_VCPU_EVENTS, state::set_vcpu_events),
    (request::GET_MP_STATE, state::get_mp_state),
    (request::SET_MP_STATE, state::set_mp_state),
    (request::SET_GUEST_DEBUG, state::set_guest_debug),
    (request::TRANSLATE, state::translate),
    (request::INTERRUPT, state::interrupt),
    (request::NMI, state::nmi),
    (request::SET_SIGNAL_MASK, set_signal_mask),
    (request::ENABLE_CAP, enable_cap),
    (request::GET_TSC_KHZ, get_tsc_khz),
    (request::SET_TSC_KHZ, set_tsc_khz),
    (request::X86_SETUP_MCE, setup_mce),
    (request::GET_LAPIC, irqchip::get_lapic),
    (request::SET_LAPIC, irqchip::set_lapic),
    (request::KVMCLOCK_CTRL, kvmclock_ctrl),
    (request::TPR_ACCESS_REPORTING, tpr_access_reporting),
    (request::SET_VAPIC_ADDR, irqchip::set_vapic_addr),
];

/// There are no reports.
fn tpr_access_reporting(_: &Arc<VcpuDescriptor>, _: u64) -> Result<Outcome, Errno> {
    Err(Errno::EINVAL)
}

fn get_msrs(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let inner = vcpu.lock();
    msrs::get(arg, |index| inner.engine.get_msr(index))
}

fn set_msrs(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let mut inner = vcpu.lock();
    msrs::set(arg, |index, value| inner.engine.set_msr(index, value))
}

fn get_cpuid2(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    put_cpuid(arg, &vcpu.lock().cpuid)
}

/// Once the vCPU has run, only the same table is taken.
fn set_cpuid2(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let count: u32 = client::load(arg)?;
    if count > MAX_CPUID_ENTRIES {
        return Err(Errno::E2BIG);
    }
    let entry_bytes = size_of::<kvm_cpuid_entry2>() as u64;
    let addresses = (0..u64::from(count)).map(|n| arg.wrapping_add(8 + n * entry_bytes));
    let mut entries: Vec<kvm_cpuid_entry2> =
        addresses.map(client::load).collect::<Result<_, _>>()?;
    let mut inner = vcpu.lock();
    if inner.engine.vm().hlt_stays.load(Ordering::Relaxed) {
        convert::take_pv_unhalt(&mut entries);
    }
    if inner.engine.has_run {
        return if entries == inner.cpuid {
            done()
        } else {
            Err(Errno::EINVAL)
        };
    }
    let linear_bits = entries.iter().find(|entry| entry.function == 0x8000_0008);
    let linear_bits = linear_bits.map_or(48, |entry| entry.eax >> 8 & 0xff);
    if !matches!(linear_bits, 0 | 48 | 57) {
        return Err(Errno::EINVAL);
    }
    let table = entries.iter().map(convert::cpuid_leaf).collect();
    inner.engine.set_cpuid(table);
    inner.cpuid = entries;
    done()
}

fn set_signal_mask(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let mask = if arg == 0 {
        None
    } else {
        let len: u32 = client::load(arg)?;
        if len != client::SIGSET_BYTES {
            return Err(Errno::EINVAL);
        }
        Some(client::load(arg.wrapping_add(4))?)
    };
    vcpu.lock().signal_mask = mask;
    done()
}

fn enable_cap(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let request: kvm_enable_cap = client::load(arg)?;
    if request.flags != 0 || request.cap != KVM_CAP_ENFORCE_PV_FEATURE_CPUID {
        return Err(Errno::EINVAL);
    }
    vcpu.lock().engine.msrs.pv_enforced = request.args[0] != 0;
    done()
}

fn get_tsc_khz(vcpu: &Arc<VcpuDescriptor>, _: u64) -> Result<Outcome, Errno> {
    let khz = vcpu.lock().engine.msrs.tsc.khz();
    Ok(Outcome::Value(khz.cast_signed()))
}

/// 0 is the VM's frequency.
fn set_tsc_khz(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    if int(arg) > i32::MAX.cast_unsigned() {
        return Err(Errno::EINVAL);
    }
    let mut inner = vcpu.lock();
    let khz = match int(arg) {
        0 => inner.engine.vm().tsc_khz(),
        khz => khz,
    };
    inner.engine.msrs.tsc.set_khz(khz);
    done()
}

/// Tells the guest that it was stopped, if it has a time page.
fn kvmclock_ctrl(vcpu: &Arc<VcpuDescriptor>, _: u64) -> Result<Outcome, Errno> {
    if vcpu.lock().engine.msrs.clock.note_stop() {
        done()
    } else {
        Err(Errno::EINVAL)
    }
}

fn setup_mce(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let capability: u64 = client::load(arg)?;
    if vcpu.lock().engine.msrs.setup_mce(capability) {
        done()
    } else {
        Err(Errno::EINVAL)
    }
}
