//! Ioctls of the in-kernel interrupt controllers.

use std::mem::offset_of;
use std::sync::Arc;

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KVM_MSI_VALID_DEVID, KVM_PIT_SPEAKER_DUMMY, kvm_ioapic_state,
    kvm_irq_level, kvm_irq_routing, kvm_irqchip, kvm_msi, kvm_pic_state, kvm_pit_channel_state,
    kvm_pit_config, kvm_pit_state, kvm_pit_state2, kvm_reinject_control,
};
use msrgate_core::Errno;

use super::vcpu::Inner;
use super::{Outcome, VcpuDescriptor, VmDescriptor, done};
use crate::client;
use crate::irq::{
    Channel, Chips, IOAPIC_BASE, IOAPIC_PINS, IoapicState, IrqChip, MAX_ROUTES, PIC_PINS, Pic, Pit,
    REGISTER_BYTES, Route, Target,
};

/// Where a `kvm_irqchip` holds its chip's state.
const CHIP: u64 = offset_of!(kvm_irqchip, chip) as u64;
/// A routing entry: gsi, type, flags, padding, and a union of 32 bytes.
const ROUTE_BYTES: u64 = 48;

/// EEXIST before EINVAL, as in Linux.
pub(super) fn create_irqchip(vm: &Arc<VmDescriptor>, _: u64) -> Result<Outcome, Errno> {
    vm.state.create_irqchip(None)?;
    done()
}

/// `KVM_CAP_SPLIT_IRQCHIP`: the local APICs alone, and so many pins of an I/O APIC that the client has.
pub(super) fn split_irqchip(vm: &VmDescriptor, pins: u64) -> Result<(), Errno> {
    let pins = u32::try_from(pins).ok().filter(|pins| *pins <= MAX_ROUTES);
    let pins = pins.ok_or(Errno::EINVAL)?;
    if vm.state.has_vcpus() {
        return Err(Errno::EEXIST);
    }
    vm.state.create_irqchip(Some(pins))
}

pub(super) fn create_pit2(vm: &Arc<VmDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let config: kvm_pit_config = client::load(arg)?;
    create_pit_with(vm, config.flags)
}

/// The older call takes port 0x61 as well.
pub(super) fn create_pit(vm: &Arc<VmDescriptor>, _: u64) -> Result<Outcome, Errno> {
    create_pit_with(vm, KVM_PIT_SPEAKER_DUMMY)
}

fn create_pit_with(vm: &VmDescriptor, flags: u32) -> Result<Outcome, Errno> {
    let has_speaker = flags & KVM_PIT_SPEAKER_DUMMY != 0;
    let irqchip = whole_irqchip_or(vm, Errno::ENOENT)?;
    irqchip.with(|chips, now| match chips.pit {
        Some(_) => Err(Errno::EEXIST),
        None => {
            chips.pit = Some(Pit::new(has_speaker, now));
            done()
        }
    })
}

/// Without controllers, the errno.
pub(super) fn irqchip_or(vm: &VmDescriptor, errno: Errno) -> Result<Arc<IrqChip>, Errno> {
    vm.state.irqchip().ok_or(errno)
}

/// The same if they are the local APICs alone.
pub(super) fn whole_irqchip_or(vm: &VmDescriptor, errno: Errno) -> Result<Arc<IrqChip>, Errno> {
    let irqchip = irqchip_or(vm, errno)?;
    if irqchip.is_split() {
        return Err(errno);
    }
    Ok(irqchip)
}

pub(super) fn irq_line(vm: &Arc<VmDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    set_line(vm, arg)?;
    done()
}

/// The answer goes into the structure.
pub(super) fn irq_line_status(vm: &Arc<VmDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let status = set_line(vm, arg)?;
    client::store(arg, &status.cast_unsigned())?;
    done()
}

fn set_line(vm: &VmDescriptor, arg: u64) -> Result<i32, Errno> {
    let line: [u32; size_of::<kvm_irq_level>() / 4] = client::load(arg)?;
    let [gsi, level] = line;
    let irqchip = irqchip_or(vm, Errno::ENXIO)?;
    Ok(irqchip.with(|chips, _| chips.set_gsi(gsi, level != 0)))
}

/// How many took it; 0 if it was for nobody that could.
pub(super) fn signal_msi(vm: &Arc<VmDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let msi: kvm_msi = client::load(arg)?;
    let irqchip = irqchip_or(vm, Errno::EINVAL)?;
    if msi.flags & !KVM_MSI_VALID_DEVID != 0 {
        return Err(Errno::EINVAL);
    }
    let address = u64::from(msi.address_hi) << 32 | u64::from(msi.address_lo);
    let takers = irqchip.with(|chips, _| {
        msi_is_valid(chips, address)
            .then(|| chips.send_msi(address, msi.data))
            .ok_or(Errno::EINVAL)
    })?;
    match takers {
        Some(takers) => Ok(Outcome::Value(i32::try_from(takers).unwrap_or(i32::MAX))),
        None => Err(Errno::EPERM), // -1, which Linux hands through
    }
}

/// With 32-bit IDs the low byte of the upper address is reserved.
fn msi_is_valid(chips: &Chips, address: u64) -> bool {
    !chips.wide_ids || address >> 32 & 0xff == 0
}

/// All routes at once; a bad one leaves the old table in force.
pub(super) fn set_gsi_routing(vm: &Arc<VmDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let [count, flags]: [u32; 2] = client::load(arg)?;
    let irqchip = irqchip_or(vm, Errno::EINVAL)?;
    if count > MAX_ROUTES || flags != 0 {
        return Err(Errno::EINVAL);
    }
    let first = arg.wrapping_add(size_of::<kvm_irq_routing>() as u64);
    let mut routes = Vec::new();
    for at in 0..u64::from(count) {
        let words: [u32; 12] = client::load(first.wrapping_add(at * ROUTE_BYTES))?;
        let route = irqchip.with(|chips, _| route(chips, &words, &routes))?;
        routes.push(route);
    }
    irqchip.with(|chips, _| chips.set_routes(routes));
    done()
}

/// One entry of the table. A GSI has at most one pin of each controller, and a message goes alone.
fn route(chips: &Chips, words: &[u32; 12], before: &[Route]) -> Result<Route, Errno> {
    let [gsi, kind, flags, _, chip, pin, data, ..] = *words;
    if gsi >= MAX_ROUTES {
        return Err(Errno::EINVAL);
    }
    let target = match kind {
        KVM_IRQ_ROUTING_IRQCHIP if flags == 0 && !chips.is_split() => {
            pin_target(chip, pin).ok_or(Errno::EINVAL)?
        }
        KVM_IRQ_ROUTING_MSI if flags & !KVM_MSI_VALID_DEVID == 0 => {
            let address = u64::from(pin) << 32 | u64::from(chip);
            if !msi_is_valid(chips, address) {
                return Err(Errno::EINVAL);
            }
            Target::Msi { address, data }
        }
        _ => return Err(Errno::EINVAL),
    };
    let mut same = before.iter().filter(|route| route.gsi == gsi);
    let clash = |other: &Route| {
        matches!(
            (other.target, target),
            (Target::Msi { .. }, _) | (_, Target::Msi { .. })
        ) || std::mem::discriminant(&other.target) == std::mem::discriminant(&target)
    };
    if same.any(clash) {
        return Err(Errno::EINVAL);
    }
    Ok(Route { gsi, target })
}

fn pin_target(chip: u32, pin: u32) -> Option<Target> {
    let pin = usize::try_from(pin).ok()?;
    match chip {
        KVM_IRQCHIP_PIC_MASTER => (pin < PIC_PINS / 2).then_some(Target::Pic(pin)),
        KVM_IRQCHIP_PIC_SLAVE => (pin < PIC_PINS / 2).then_some(Target::Pic(pin + PIC_PINS / 2)),
        KVM_IRQCHIP_IOAPIC => (pin < IOAPIC_PINS).then_some(Target::Ioapic(pin)),
        _ => None,
    }
}

pub(super) fn get_irqchip(vm: &Arc<VmDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let chip: u32 = client::load(arg)?;
    let irqchip = whole_irqchip_or(vm, Errno::ENXIO)?;
    let state = arg.wrapping_add(CHIP);
    match chip {
        KVM_IRQCHIP_PIC_MASTER | KVM_IRQCHIP_PIC_SLAVE => {
            let second = chip == KVM_IRQCHIP_PIC_SLAVE;
            let pic = irqchip.with(|chips, _| chips.pics.chip(second));
            client::store(state, &kvm_pic(&pic))?;
        }
        KVM_IRQCHIP_IOAPIC => {
            let ioapic = irqchip.with(|chips, _| chips.ioapic.state());
            client::store(state, &kvm_ioapic(&ioapic))?;
        }
        _ => return Err(Errno::EINVAL),
    }
    done()
}

pub(super) fn set_irqchip(vm: &Arc<VmDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let chip: u32 = client::load(arg)?;
    let irqchip = whole_irqchip_or(vm, Errno::ENXIO)?;
    let state = arg.wrapping_add(CHIP);
    match chip {
        KVM_IRQCHIP_PIC_MASTER | KVM_IRQCHIP_PIC_SLAVE => {
            let second = chip == KVM_IRQCHIP_PIC_SLAVE;
            let pic = pic(&client::load(state)?);
            irqchip.with(|chips, _| chips.set_pic(second, pic));
        }
        KVM_IRQCHIP_IOAPIC => {
            let ioapic = ioapic(&client::load(state)?);
            irqchip.with(|chips, _| chips.set_ioapic(&ioapic));
        }
        _ => return Err(Errno::EINVAL),
    }
    done()
}

macro_rules! pic_fields {
    ($to:ident from $from:expr) => {{
        let from = $from;
        $to {
            last_irr: from.last_irr,
            irr: from.irr,
            imr: from.imr,
            isr: from.isr,
            priority_add: from.priority_add,
            irq_base: from.irq_base,
            read_reg_select: from.read_reg_select,
            poll: from.poll,
            special_mask: from.special_mask,
            init_state: from.init_state,
            auto_eoi: from.auto_eoi,
            rotate_on_auto_eoi: from.rotate_on_auto_eoi,
            special_fully_nested_mode: from.special_fully_nested_mode,
            init4: from.init4,
            elcr: from.elcr,
            elcr_mask: from.elcr_mask,
        }
    }};
}

fn pic(state: &kvm_pic_state) -> Pic {
    pic_fields!(Pic from state)
}

fn kvm_pic(state: &Pic) -> kvm_pic_state {
    pic_fields!(kvm_pic_state from state)
}

/// `kvm_ioapic_state`: base address, select, ID, IRR, padding, entries.
const IOAPIC_HEAD: usize = 24;
const IOAPIC_STATE: usize = size_of::<kvm_ioapic_state>();

fn kvm_ioapic(state: &IoapicState) -> [u8; IOAPIC_STATE] {
    let mut bytes = [0; IOAPIC_STATE];
    bytes[..8].copy_from_slice(&IOAPIC_BASE.to_le_bytes());
    for (place, word) in [8, 12, 16]
        .into_iter()
        .zip([state.select, state.id, state.irr])
    {
        bytes[place..place + 4].copy_from_slice(&word.to_le_bytes());
    }
    for (place, entry) in bytes[IOAPIC_HEAD..].chunks_exact_mut(8).zip(state.entries) {
        place.copy_from_slice(&entry.to_le_bytes());
    }
    bytes
}

fn ioapic(bytes: &[u8; IOAPIC_STATE]) -> IoapicState {
    let word = |at: usize| {
        let word: [u8; 4] = std::array::from_fn(|byte| bytes[at + byte]);
        u32::from_le_bytes(word)
    };
    let entry = |pin: usize| {
        let at = IOAPIC_HEAD + 8 * pin;
        u64::from(word(at)) | u64::from(word(at + 4)) << 32
    };
    IoapicState {
        select: word(8),
        id: word(12),
        irr: word(16),
        entries: std::array::from_fn(entry),
    }
}

fn with_pit<R>(vm: &VmDescriptor, work: impl FnOnce(&mut Pit, u64) -> R) -> Result<R, Errno> {
    let irqchip = irqchip_or(vm, Errno::ENXIO)?;
    irqchip.with(|chips, now| {
        let pit = chips.pit.as_mut().ok_or(Errno::ENXIO)?;
        Ok(work(pit, now))
    })
}

/// The channels alone.
pub(super) fn get_pit(vm: &Arc<VmDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    client::load::<[u8; size_of::<kvm_pit_state>()]>(arg)?;
    let (channels, _) = with_pit(vm, |pit, _| pit.state())?;
    client::store(arg, &channels.map(|channel| kvm_channel(&channel)))?;
    done()
}

pub(super) fn set_pit(vm: &Arc<VmDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let channels: [kvm_pit_channel_state; 3] = client::load(arg)?;
    with_pit(vm, |pit, now| {
        let (_, flags) = pit.state();
        pit.set_state(channels.map(|state| channel(&state)), flags, now);
    })?;
    done()
}

/// The channels, and flags behind them.
pub(super) fn get_pit2(vm: &Arc<VmDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let (channels, flags) = with_pit(vm, |pit, _| pit.state())?;
    client::store(arg, &[0_u8; size_of::<kvm_pit_state2>()])?;
    client::store(arg, &channels.map(|channel| kvm_channel(&channel)))?;
    client::store(arg.wrapping_add(PIT_FLAGS), &flags)?;
    done()
}

pub(super) fn set_pit2(vm: &Arc<VmDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    client::load::<[u8; size_of::<kvm_pit_state2>()]>(arg)?;
    let channels: [kvm_pit_channel_state; 3] = client::load(arg)?;
    let flags: u32 = client::load(arg.wrapping_add(PIT_FLAGS))?;
    with_pit(vm, |pit, now| {
        pit.set_state(channels.map(|state| channel(&state)), flags, now);
    })?;
    done()
}

const PIT_FLAGS: u64 = offset_of!(kvm_pit_state2, flags) as u64;

pub(super) fn reinject_control(vm: &Arc<VmDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let [reinject, ..]: [u8; size_of::<kvm_reinject_control>()] = client::load(arg)?;
    with_pit(vm, |pit, _| pit.set_reinject(reinject != 0))?;
    done()
}

fn channel(state: &kvm_pit_channel_state) -> Channel {
    Channel {
        count: state.count,
        latched_count: state.latched_count,
        count_latched: state.count_latched,
        status_latched: state.status_latched,
        status: state.status,
        read_state: state.read_state,
        write_state: state.write_state,
        write_latch: state.write_latch,
        rw_mode: state.rw_mode,
        mode: state.mode,
        bcd: state.bcd,
        gate: state.gate,
        count_load_time: state.count_load_time.cast_unsigned(),
    }
}

fn kvm_channel(channel: &Channel) -> kvm_pit_channel_state {
    kvm_pit_channel_state {
        count: channel.count,
        latched_count: channel.latched_count,
        count_latched: channel.count_latched,
        status_latched: channel.status_latched,
        status: channel.status,
        read_state: channel.read_state,
        write_state: channel.write_state,
        write_latch: channel.write_latch,
        rw_mode: channel.rw_mode,
        mode: channel.mode,
        bcd: channel.bcd,
        gate: channel.gate,
        count_load_time: channel.count_load_time.cast_signed(),
    }
}

pub(super) fn get_lapic(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let inner = vcpu.lock();
    let wide = wide_ids(&inner)?;
    let state = inner.engine.with_lapic(|lapic, now| lapic.state(wide, now));
    client::store(arg, &state.ok_or(Errno::EINVAL)?)?;
    done()
}

pub(super) fn set_lapic(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let mut inner = vcpu.lock();
    let wide = wide_ids(&inner)?;
    let state: [u8; REGISTER_BYTES] = client::load(arg)?;
    let set = inner
        .engine
        .with_lapic(|lapic, now| lapic.set_state(&state, wide, now));
    inner.engine.note_lapic_change();
    set.and_then(Result::ok).ok_or(Errno::EINVAL)?;
    done()
}

/// Without reports of TPR accesses nobody needs a page for the TPR; QEMU asks for none, at address 0, at each reset.
pub(super) fn set_vapic_addr(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let has_irqchip = vcpu.lock().engine.has_irqchip();
    let address: u64 = client::load(arg)?;
    if has_irqchip && address == 0 {
        done()
    } else {
        Err(Errno::EINVAL)
    }
}

fn wide_ids(inner: &Inner) -> Result<bool, Errno> {
    let irqchip = inner.engine.vm().irqchip().ok_or(Errno::EINVAL)?;
    Ok(irqchip.with(|chips, _| chips.wide_ids))
}
