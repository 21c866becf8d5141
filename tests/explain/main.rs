//! What the policy crate says of KVM and of guests, tried: on soft, and on the real kernel where there is one.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agreement;
mod host_path;
mod learned;
mod observation;
mod policies;

use msrgate_machine::{Probe, guest_memory};
use msrgate_tests::machine::Backend;

/// A guest that has done nothing yet; `None` where the backend cannot run here, which has been said.
fn probe<B: Backend>() -> Option<Probe<B::Vm>> {
    let memory = guest_memory(2 << 20).unwrap();
    let vm = B::vm(&memory)?.unwrap();
    Some(Probe::new(vm, &memory).unwrap())
}
