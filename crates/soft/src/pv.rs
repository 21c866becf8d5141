//! KVM's paravirtual interface: the features that CPUID leaf 0x40000001 tells of, by bit number (`KVM_FEATURE_*`).

/// The leaf with KVM's name, and the one with the features.
pub(crate) const SIGNATURE: u32 = 0x4000_0000;
pub(crate) const FEATURES: u32 = 0x4000_0001;

pub(crate) const CLOCKSOURCE: u32 = 0;
pub(crate) const NOP_IO_DELAY: u32 = 1;
pub(crate) const CLOCKSOURCE2: u32 = 3;
pub(crate) const ASYNC_PF: u32 = 4;
pub(crate) const STEAL_TIME: u32 = 5;
pub(crate) const PV_EOI: u32 = 6;
pub(crate) const PV_UNHALT: u32 = 7;
pub(crate) const POLL_CONTROL: u32 = 12;
pub(crate) const ASYNC_PF_INT: u32 = 14;
pub(crate) const CLOCKSOURCE_STABLE: u32 = 24;
