//! Ioctls that tie event descriptors to a VM: `KVM_IRQFD` and `KVM_IOEVENTFD`.

use std::sync::Arc;

use kvm_bindings::{
    KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE, kvm_ioeventfd,
    kvm_ioeventfd_flag_nr_datamatch, kvm_ioeventfd_flag_nr_deassign, kvm_ioeventfd_flag_nr_max,
    kvm_ioeventfd_flag_nr_pio, kvm_ioeventfd_flag_nr_virtio_ccw_notify, kvm_irqfd,
};
use msrgate_core::Errno;

use super::{Outcome, VmDescriptor, done, irqchip};
use crate::client;
use crate::eventfd::EventFd;
use crate::ioeventfd::{Bus, Place};
use crate::irq::Irqfd;

/// Descriptors before flags, as in Linux; and an event that raises no GSI is none to be given back.
pub(super) fn irqfd(vm: &Arc<VmDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let request: kvm_irqfd = client::load(arg)?;
    let flags = request.flags;
    if flags & !(KVM_IRQFD_FLAG_DEASSIGN | KVM_IRQFD_FLAG_RESAMPLE) != 0 {
        return Err(Errno::EINVAL);
    }
    if flags & KVM_IRQFD_FLAG_DEASSIGN != 0 {
        let event = EventFd::of_client(request.fd)?;
        vm.irqfds.deassign(&event, request.gsi);
        return done();
    }
    let resample = flags & KVM_IRQFD_FLAG_RESAMPLE != 0;
    let irqchip = if resample {
        irqchip::whole_irqchip_or(vm, Errno::EINVAL)?
    } else {
        irqchip::irqchip_or(vm, Errno::EINVAL)?
    };
    let event = EventFd::of_client(request.fd)?;
    let ended = resample.then(|| EventFd::of_client(request.resamplefd));
    let irqfd = Irqfd {
        gsi: request.gsi,
        event,
        ended: ended.transpose()?.map(Arc::new),
    };
    vm.irqfds.assign(&irqchip, irqfd)?;
    done()
}

const DATAMATCH: u32 = 1 << kvm_ioeventfd_flag_nr_datamatch;
const PIO: u32 = 1 << kvm_ioeventfd_flag_nr_pio;
const DEASSIGN: u32 = 1 << kvm_ioeventfd_flag_nr_deassign;
const VIRTIO_CCW: u32 = 1 << kvm_ioeventfd_flag_nr_virtio_ccw_notify;
const VALID: u32 = (1 << kvm_ioeventfd_flag_nr_max) - 1;

/// What is wrong with a place is only said of one to be had; of one to be given back, that it is not there.
pub(super) fn ioeventfd(vm: &Arc<VmDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let request: kvm_ioeventfd = client::load(arg)?;
    let kvm_ioeventfd {
        datamatch,
        addr,
        len,
        flags,
        ..
    } = request;
    let bus = match flags {
        flags if flags & PIO != 0 => Bus::Port,
        flags if flags & VIRTIO_CCW != 0 => Bus::VirtioCcw,
        _ => Bus::Memory,
    };
    let place = Place {
        bus,
        address: addr,
        len_bytes: len,
        value: (flags & DATAMATCH != 0).then_some(datamatch),
    };
    let event = || EventFd::of_client(request.fd.cast_unsigned());
    let ioeventfds = &vm.state.ioeventfds;
    if flags & DEASSIGN != 0 {
        ioeventfds.deassign(place, &event()?)?;
        return done();
    }
    let refused = !matches!(len, 0 | 1 | 2 | 4 | 8)
        || addr.checked_add(len.into()).is_none()
        || flags & !VALID != 0
        || len == 0 && place.value.is_some();
    if refused {
        return Err(Errno::EINVAL);
    }
    ioeventfds.assign(place, event()?)?;
    done()
}
