//! The registers that gates keep: [`VcpuShadows`] of one gate, [`VmShadows`] that the gates of a VM share.
//!
//! Which registers there are, and where, the image says. Values move to another image by MSR and scope.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::sync::{AtomicU64, Ordering};
use crate::{Image, MsrIndex, Scope, Writable};

/// The registers of one vCPU.
#[derive(Debug)]
pub(crate) struct VcpuShadows(Box<[u64]>);

/// The registers of a VM. Images that keep the same register share it, so that gates may go from one to the other in
/// their own time.
#[derive(Clone, Debug)]
pub(crate) struct VmShadows(Arc<[Arc<AtomicU64>]>);

impl VcpuShadows {
    pub(crate) fn new(image: &Image) -> Self {
        let kept = |_| None;
        Self(place(image, Scope::Vcpu, kept, |reset| reset).into())
    }

    /// The registers of `new`, with the values of those that `old` keeps too.
    pub(crate) fn moved(&self, old: &Image, new: &Image) -> Self {
        let kept = |index| self.get(old.shadow(Scope::Vcpu, index)?);
        Self(place(new, Scope::Vcpu, kept, |reset| reset).into())
    }

    pub(crate) fn get(&self, place: usize) -> Option<u64> {
        self.0.get(place).copied()
    }

    /// Writes what is writable; `None`: a violation, and nothing was written.
    pub(crate) fn write(&mut self, place: usize, writable: Writable, value: u64) -> Option<()> {
        if let Some(register) = self.0.get_mut(place) {
            *register = writable.merge(*register, value)?;
        }
        Some(())
    }
}

impl VmShadows {
    pub(crate) fn new(image: &Image) -> Self {
        let kept = |_| None;
        Self(place(image, Scope::Vm, kept, at_reset).into())
    }

    /// The registers of `new`: those that `old` keeps too are the same registers.
    pub(crate) fn moved(&self, old: &Image, new: &Image) -> Self {
        let kept = |index| self.0.get(old.shadow(Scope::Vm, index)?).cloned();
        Self(place(new, Scope::Vm, kept, at_reset).into())
    }

    pub(crate) fn get(&self, place: usize) -> Option<u64> {
        Some(self.0.get(place)?.load(Ordering::Acquire))
    }

    /// Writes what is writable, as one step for all vCPUs; `None`: a violation, and nothing was written.
    pub(crate) fn write(&self, place: usize, writable: Writable, value: u64) -> Option<()> {
        if let Some(register) = self.0.get(place) {
            let merge = |current| writable.merge(current, value);
            register
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, merge)
                .ok()?;
        }
        Some(())
    }
}

fn at_reset(reset: u64) -> Arc<AtomicU64> {
    Arc::new(AtomicU64::new(reset))
}

/// The registers of a scope, each in its place: as `kept`, or else `fresh`.
fn place<T: Clone>(
    image: &Image,
    scope: Scope,
    kept: impl Fn(MsrIndex) -> Option<T>,
    fresh: impl Fn(u64) -> T,
) -> Vec<T> {
    // A place that no rule leads to any more is filled with anything.
    let mut registers = alloc::vec![fresh(0); image.shadow_count(scope)];
    for (index, place, reset) in image.shadows(scope) {
        registers[place] = kept(index).unwrap_or_else(|| fresh(reset));
    }
    registers
}
