//! What the proofs share: a guest that does MSR accesses, doors to the engines, and the corpus format.
//!
//! * [`guest::Guest`]: a long-mode guest that does accesses from a list and notes what came of each.
//! * [`door::Door`]: raw ioctls, on the real kernel or on the embedded one; [`raw::RawMachine`] runs the
//!   guest through them.
//! * [`machine::Machine`]: the same guest behind core's `Vm` and `Vcpu`.
//! * [`case`]: the corpus files; [`image`]: their filters as bytes in memory.
//! * [`stats`]: KVM's counters of a vCPU.
//! * [`faulty`]: a backend that fails on command.

/// The Rust of the documents, as doc-tests.
#[cfg(doctest)]
pub mod documents {
    #[doc = include_str!("../../docs/embedding.md")]
    pub mod embedding {}
    #[doc = include_str!("../../docs/hypervisor.md")]
    pub mod hypervisor {}
}

pub mod case;
pub mod door;
pub mod faulty;
pub mod guest;
pub mod host;
pub mod image;
pub mod kernel_door;
pub mod machine;
pub mod random;
pub mod raw;
pub mod skip;
pub mod soft_door;
pub mod stats;
