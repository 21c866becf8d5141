//! Ioctls of the system descriptor: what there is, and the making of VMs.

use std::sync::Arc;

use kvm_bindings::{KVM_API_VERSION, kvm_cpuid_entry2};
use msrgate_core::{Errno, MsrIndex};
use msrgate_x86::CpuidLeaf;

use super::{Handle, Handler, Outcome, VmDescriptor, capability, convert, done, msrs, request};
use crate::client;
use crate::msr::{self, GuestCpuid};
use crate::run_page::{RUN_BYTES, memfd};
use crate::vm::SystemConfig;

/// The system: a configuration, and the CPUID that comes of it.
#[derive(Debug)]
pub struct System {
    config: SystemConfig,
    supported: Vec<CpuidLeaf>,
    cpuid: GuestCpuid,
}

impl System {
    pub(super) fn new(config: SystemConfig) -> Self {
        let supported = config.supported_cpuid();
        Self {
            config,
            cpuid: GuestCpuid::new(&supported),
            supported,
        }
    }
}

/// Entries that a CPUID table may have (`KVM_MAX_CPUID_ENTRIES`).
pub(super) const MAX_CPUID_ENTRIES: u32 = 256;

pub(super) const HANDLERS: &[(u32, Handler<System>)] = &[
    (request::GET_API_VERSION, get_api_version),
    (request::CREATE_VM, create_vm),
    (request::GET_MSR_INDEX_LIST, get_msr_index_list),
    (
        request::GET_MSR_FEATURE_INDEX_LIST,
        get_msr_feature_index_list,
    ),
    (request::GET_MSRS, get_msrs),
    (request::CHECK_EXTENSION, check_extension),
    (request::GET_VCPU_MMAP_SIZE, get_vcpu_mmap_size),
    (request::GET_SUPPORTED_CPUID, get_supported_cpuid),
    (request::GET_EMULATED_CPUID, get_emulated_cpuid),
    (request::X86_GET_MCE_CAP_SUPPORTED, get_mce_cap),
];

fn no_argument(arg: u64) -> Result<(), Errno> {
    if arg == 0 { Ok(()) } else { Err(Errno::EINVAL) }
}

fn get_api_version(_: &Arc<System>, arg: u64) -> Result<Outcome, Errno> {
    no_argument(arg)?;
    Ok(Outcome::Value(KVM_API_VERSION.cast_signed()))
}

/// The only type of VM is the default one, 0.
fn create_vm(system: &Arc<System>, arg: u64) -> Result<Outcome, Errno> {
    no_argument(arg)?;
    Ok(Outcome::Descriptor {
        handle: Handle::Vm(Arc::new(VmDescriptor::new(system.config))),
        fd: memfd(c"kvm-vm", 0)?,
    })
}

fn check_extension(_: &Arc<System>, arg: u64) -> Result<Outcome, Errno> {
    Ok(Outcome::Value(capability::value(arg)))
}

fn get_vcpu_mmap_size(_: &Arc<System>, arg: u64) -> Result<Outcome, Errno> {
    no_argument(arg)?;
    Ok(Outcome::Value(
        i32::try_from(RUN_BYTES).expect("the size is a few pages"),
    ))
}

fn get_msr_index_list(system: &Arc<System>, arg: u64) -> Result<Outcome, Errno> {
    put_list(arg, &msr::index_list(&system.cpuid).collect::<Vec<_>>())
}

fn get_msr_feature_index_list(system: &Arc<System>, arg: u64) -> Result<Outcome, Errno> {
    let list = msr::feature_list(&system.cpuid).map(|(index, _)| index);
    put_list(arg, &list.collect::<Vec<_>>())
}

/// Fills a `kvm_msr_list`: the true length always, the indices if there is room for all.
fn put_list(arg: u64, list: &[MsrIndex]) -> Result<Outcome, Errno> {
    let room: u32 = client::load(arg)?;
    let count = u32::try_from(list.len()).expect("a few hundred MSRs");
    client::store(arg, &count)?;
    if room < count {
        return Err(Errno::E2BIG);
    }
    let indices: Vec<u8> = list
        .iter()
        .flat_map(|index| index.0.to_le_bytes())
        .collect();
    client::write(arg.wrapping_add(4), &indices)?;
    done()
}

/// Feature MSRs, as the system offers them.
fn get_msrs(system: &Arc<System>, arg: u64) -> Result<Outcome, Errno> {
    msrs::get(arg, |index| {
        let mut list = msr::feature_list(&system.cpuid);
        list.find(|(feature, _)| *feature == index)
            .map(|(_, value)| value)
    })
}

fn get_supported_cpuid(system: &Arc<System>, arg: u64) -> Result<Outcome, Errno> {
    room_for_one(arg)?;
    let entries: Vec<_> = system.supported.iter().map(convert::cpuid_entry).collect();
    put_cpuid(arg, &entries)
}

/// Nothing is emulated beyond what is supported.
fn get_emulated_cpuid(_: &Arc<System>, arg: u64) -> Result<Outcome, Errno> {
    room_for_one(arg)?;
    put_cpuid(arg, &[])
}

/// The system's tables want room for an entry even if there is none (`kvm_dev_ioctl_get_cpuid`).
fn room_for_one(arg: u64) -> Result<(), Errno> {
    let room: u32 = client::load(arg)?;
    if room == 0 { Err(Errno::E2BIG) } else { Ok(()) }
}

/// Fills a `kvm_cpuid2` with all entries, or says that it is too small.
pub(super) fn put_cpuid(arg: u64, entries: &[kvm_cpuid_entry2]) -> Result<Outcome, Errno> {
    let room: u32 = client::load(arg)?;
    let count = u32::try_from(entries.len()).expect("some dozens of leaves");
    if room < count {
        return Err(Errno::E2BIG);
    }
    for (position, entry) in (0..).zip(entries) {
        let offset = 8 + position * size_of::<kvm_cpuid_entry2>() as u64;
        client::store(arg.wrapping_add(offset), entry)?;
    }
    client::store(arg, &count)?;
    done()
}

fn get_mce_cap(_: &Arc<System>, arg: u64) -> Result<Outcome, Errno> {
    client::store(arg, &msr::MCE_CAPABILITIES)?;
    done()
}
