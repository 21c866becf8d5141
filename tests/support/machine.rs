//! The list guest behind core's traits: [`Machine`]; and the backends to run it on: [`Backend`].

use msrgate_core::{MsrIndex, RunError, Vcpu, Vm, VmEntry, VmError, VmExit};
use msrgate_kvm::{Irqchip, KvmVm};
use msrgate_soft::{SoftVm, SystemConfig};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::guest::{Answer, DONE_PORT, Guest, MEMORY_BYTES, Request};
use crate::skip::kvm_or_skip;

/// A backend that tests run on.
pub trait Backend {
    /// Its VMs.
    type Vm: Vm<Vcpu: Send> + Sync;

    /// A VM on `memory`; `None` where the backend cannot run here, which has been said.
    ///
    /// # Errors
    /// The backend refuses something.
    fn vm(memory: &GuestMemoryMmap) -> Option<Result<Self::Vm, VmError>>;

    /// Whether it does a guest's writes of this MSR before it asks the filter, where that is known.
    fn writes_before_filter(index: MsrIndex) -> Option<bool>;
}

/// The real KVM.
#[derive(Debug)]
pub struct KvmBackend;

/// The embedded one.
#[derive(Debug)]
pub struct SoftBackend;

impl Backend for KvmBackend {
    type Vm = KvmVm;

    fn vm(memory: &GuestMemoryMmap) -> Option<Result<KvmVm, VmError>> {
        let kvm = kvm_or_skip()?;
        Some(KvmVm::new(&kvm, memory.clone(), Irqchip::None))
    }

    fn writes_before_filter(index: MsrIndex) -> Option<bool> {
        msrgate_kvm::writes_before_filter(index)
    }
}

impl Backend for SoftBackend {
    type Vm = SoftVm;

    fn vm(memory: &GuestMemoryMmap) -> Option<Result<SoftVm, VmError>> {
        Some(SoftVm::new(memory, SystemConfig::default()))
    }

    fn writes_before_filter(_index: MsrIndex) -> Option<bool> {
        Some(false)
    }
}

/// Makes a test for each backend of each function `fn(&GuestMemoryMmap, Vm)`-like, generic over [`Backend`].
#[macro_export]
macro_rules! on_each_backend {
    ($($test:ident),* $(,)?) => {
        mod kvm {
            $(#[test] fn $test() { super::$test::<msrgate_tests::machine::KvmBackend>(); })*
        }
        mod soft {
            $(#[test] fn $test() { super::$test::<msrgate_tests::machine::SoftBackend>(); })*
        }
    };
}

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
    /// A machine on backend `B`; `None` where it cannot run here.
    ///
    /// # Panics
    /// The backend refuses something.
    #[must_use]
    pub fn on<B: Backend<Vm = V>>() -> Option<Self> {
        Self::prepared::<B>(|_| ())
    }

    /// As [`Machine::on`], with something done to the VM before its vCPU exists.
    ///
    /// # Panics
    /// The backend refuses something.
    #[must_use]
    pub fn prepared<B: Backend<Vm = V>>(prepare: impl FnOnce(&V)) -> Option<Self> {
        let memory = guest_memory();
        let machine = B::vm(&memory)?.and_then(|vm| {
            prepare(&vm);
            Self::new(vm, memory)
        });
        Some(machine.unwrap_or_else(|error| panic!("the machine cannot be built: {error}")))
    }

    /// A machine of a VM that runs on `memory`.
    ///
    /// # Errors
    /// The backend refuses something.
    pub fn new(vm: V, memory: GuestMemoryMmap) -> Result<Self, VmError> {
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
    pub fn run_list(&mut self, service: impl FnMut(VmExit) -> VmEntry) -> Result<(), RunError> {
        run_list(&mut self.vcpu, service)
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

/// Runs the list to its end on a vCPU alone, while its VM is in use elsewhere.
///
/// # Errors
/// As for [`Machine::run_list`].
///
/// # Panics
/// As for [`Machine::run_list`].
pub fn run_list(
    vcpu: &mut impl Vcpu,
    mut service: impl FnMut(VmExit) -> VmEntry,
) -> Result<(), RunError> {
    let mut entry = VmEntry::Run;
    loop {
        match vcpu.run(entry)? {
            VmExit::IoOut {
                port: DONE_PORT, ..
            } => return Ok(()),
            exit @ (VmExit::Rdmsr { .. } | VmExit::Wrmsr { .. }) => entry = service(exit),
            other => panic!("{other:?} at {:x?}", vcpu.registers()),
        }
    }
}

/// `MSR_STAR` and `MSR_LSTAR`.
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;

fn write(memory: &GuestMemoryMmap, address: u64, bytes: &[u8]) {
    let written = memory.write_slice(bytes, GuestAddress(address));
    written.expect("the guest fits into its memory");
}
