//! `KVM_GET_MSRS` and `KVM_SET_MSRS`: entries one after the other, up to the first that is refused.

use kvm_bindings::{kvm_msr_entry, kvm_msrs};
use msrgate_core::{Errno, MsrIndex};

use super::Outcome;
use crate::client;

/// Entries of one call are fewer (`MAX_IO_MSRS`).
const MAX_ENTRIES: u32 = 256;

/// Fills the entries with what `value` answers; how many were filled.
pub(super) fn get(
    arg: u64,
    mut value: impl FnMut(MsrIndex) -> Option<u64>,
) -> Result<Outcome, Errno> {
    let mut entries = entries(arg)?;
    let mut count = 0;
    for entry in &mut entries {
        let Some(data) = value(MsrIndex(entry.index)) else {
            break;
        };
        entry.data = data;
        count += 1;
    }
    // All of them go back, as in the kernel: those behind the first refused as they came.
    for (position, entry) in (0..).zip(&entries) {
        client::store(address(arg, position), entry)?;
    }
    Ok(Outcome::Value(count))
}

/// Offers the entries to `take`; how many were taken.
pub(super) fn set(arg: u64, mut take: impl FnMut(MsrIndex, u64) -> bool) -> Result<Outcome, Errno> {
    let entries = entries(arg)?;
    let taken = entries
        .iter()
        .take_while(|entry| take(MsrIndex(entry.index), entry.data));
    Ok(Outcome::Value(
        i32::try_from(taken.count()).expect("fewer than 256"),
    ))
}

fn entries(arg: u64) -> Result<Vec<kvm_msr_entry>, Errno> {
    let count: u32 = client::load(arg)?;
    if count >= MAX_ENTRIES {
        return Err(Errno::E2BIG);
    }
    let addresses = (0..u64::from(count)).map(|position| address(arg, position));
    addresses.map(client::load).collect()
}

fn address(arg: u64, position: u64) -> u64 {
    let entry = size_of::<kvm_msr_entry>() as u64;
    arg.wrapping_add(size_of::<kvm_msrs>() as u64 + position * entry)
}
