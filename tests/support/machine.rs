//! The list guest behind core's traits: [`Machine`].

use msrgate_core::{MsrIndex, RunError, Vcpu, Vm, VmEntry, VmError, VmExit};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::guest::{Answer, DONE_PORT, Guest, MEMORY_BYTES, Request};

/// RAM for one guest.
///
/// # Panics
/// The host has no memory.
#[must_use]
pub fn guest_memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).expect("2 MiB of memory")
}

/// A VM with one vCPU that runs the list guest.
#[derive(Debug)]
pub struct Machine<V: Vm> {
    /// The VM.
    pub vm: V,
    /// Its only vCPU.
    pub vcpu: V::Vcpu,
    guest: Guest,
    memory: GuestMemoryMmap,
}

impl<V: Vm> Machine<V> {
    /// A machine whose VM is made, on the memory given to it, by `make`.
    ///
    /// # Errors
    /// The backend refuses something.
    pub fn new(make: impl FnOnce(GuestMemoryMmap) -> Result<V, VmError>) -> Result<Self, VmError> {
        let memory = guest_memory();
        let vm = make(memory.clone())?;
        let mut vcpu = vm.create_vcpu(0)?;
        let guest = Guest::new();
        guest.load(&mut |address, bytes| write(&memory, address, bytes));
        let mut sregs = vcpu.system_registers()?;
        guest.set_mode(&mut sregs);
        vcpu.set_system_registers(&sregs)?;
        vcpu.set_registers(&guest.registers())?;
        vcpu.set_msr(MsrIndex(LSTAR), guest.syscall_target())?;
        vcpu.set_msr(MsrIndex(STAR), 8 << 32)?;
        Ok(Self {
            vm,
            vcpu,
            guest,
            memory,
        })
    }

    /// The guest's code and tables.
    #[must_use]
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// Gives the guest its next list of accesses.
    pub fn set_list(&self, requests: &[Request]) {
        let mut write = |address, bytes: &[u8]| write(&self.memory, address, bytes);
        self.guest.write_list(requests, &mut write);
    }

    /// Runs the list; `service` answers each MSR exit.
    ///
    /// # Errors
    /// The backend's own failure.
    ///
    /// # Panics
    /// The guest leaves for anything else than an MSR or the end of the list.
    pub fn run_list(&mut self, mut service: impl FnMut(VmExit) -> VmEntry) -> Result<(), RunError> {
        let mut entry = VmEntry::Run;
        loop {
            match self.vcpu.run(entry)? {
                VmExit::IoOut {
                    port: DONE_PORT, ..
                } => return Ok(()),
                exit @ (VmExit::Rdmsr { .. } | VmExit::Wrmsr { .. }) => entry = service(exit),
                other => panic!("{other:?} at {:x?}", self.vcpu.registers()),
            }
        }
    }

    /// What came of the access at `position`.
    #[must_use]
    pub fn answer(&self, position: usize) -> Option<Answer> {
        self.guest.read_answer(position, &mut |address, bytes| {
            let read = self.memory.read_slice(bytes, GuestAddress(address));
            read.expect("the list is in guest memory");
        })
    }
}

/// `MSR_STAR` and `MSR_LSTAR`.
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;

fn write(memory: &GuestMemoryMmap, address: u64, bytes: &[u8]) {
    let written = memory.write_slice(bytes, GuestAddress(address));
    written.expect("the guest fits into its memory");
}
