//! Whether a KVM runs a guest's kernel on the processor, or interprets it and lacks what Linux needs.

use std::io;

use msrgate_core::Vm;
use vm_memory::GuestMemoryMmap;

use crate::end::{End, MachineError};
use crate::guest::{Guest, LoadError};
use crate::machine::Machine;
use crate::program::{Program, Segment};

const CODE: u64 = 0x10_0000;

/// In ring 0: popcnt eax, ecx; cmpxchg16b [rip + 0x34]; mov al, 0; out 0xf4, al. Every processor with hardware
/// virtualisation has both instructions; the operand is 16 bytes at `CODE` + 0x40.
const TRIAL: &[u8] = b"\xf3\x0f\xb8\xc1\x48\x0f\xc7\x0d\x34\0\0\0\xb0\0\xe6\xf4";
const OPERAND_END: u64 = 0x50;

/// Runs a kernel of a few instructions on a VM without interrupt controllers, made for this on `memory` (2 MiB are
/// enough), and tells how it ended where it did not end well.
///
/// # Errors
/// The VM cannot be used at all.
pub fn unsuitable_for_linux<V>(vm: V, memory: &GuestMemoryMmap) -> Result<Option<End>, TrialError>
where
    V: Vm + Send + Sync,
    V::Vcpu: Send,
{
    let code = Segment {
        address: CODE,
        bytes: TRIAL.to_vec(),
        size_bytes: OPERAND_END,
    };
    let guest = Guest::new(Program::Elf {
        entry: CODE,
        segments: vec![code],
    });
    let guest = guest.load(memory)?;
    let machine = Machine::new(vm, &guest, Vec::new(), vec![()], io::sink());
    let end = machine.map_err(MachineError::Vm)?.run()?;
    Ok(Some(end).filter(|end| *end != End::Exit { code: 0 }))
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrialError {
    /// Its memory is too small.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The VM refuses something.
    #[error(transparent)]
    Machine(#[from] MachineError),
}
