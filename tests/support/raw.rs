//! A VM reached by raw ioctls, running the list guest: [`RawMachine`].

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_guest_debug, kvm_msr_entry, kvm_regs,
    kvm_sregs, kvm_vcpu_events,
};
use msrgate_core::Errno;
use msrgate_kvm::{abi, register};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::door::{Door, Mapping};
use crate::guest::{Answer, DONE_PORT, Guest, MEMORY_BYTES, Request};
use crate::machine::guest_memory;

const KVM_GET_SUPPORTED_CPUID: u32 = 0xc008_ae05;
const KVM_SET_CPUID2: u32 = 0x4008_ae90;
const KVM_GET_REGS: u32 = 0x8090_ae81;
const KVM_SET_REGS: u32 = 0x4090_ae82;
const KVM_GET_SREGS: u32 = 0x8138_ae83;
const KVM_SET_SREGS: u32 = 0x4138_ae84;
const KVM_GET_VCPU_EVENTS: u32 = 0x8040_ae9f;
const KVM_SET_VCPU_EVENTS: u32 = 0x4040_aea0;
const KVM_SET_SIGNAL_MASK: u32 = 0x4004_ae8b;
const KVM_SET_GUEST_DEBUG: u32 = 0x4048_ae9b;

/// Offsets in `kvm_run` (the crate `msrgate-kvm` checks them against the bindings).
const IMMEDIATE_EXIT: usize = 1;
const EXIT_REASON: usize = 8;
const RECORD: usize = 32;

const KVM_EXIT_IO: u32 = 2;
const KVM_EXIT_DEBUG: u32 = 4;
const KVM_EXIT_X86_RDMSR: u32 = 29;
const KVM_EXIT_X86_WRMSR: u32 = 30;

/// A VM with one vCPU, and the guest in it.
#[derive(Debug)]
pub struct RawMachine<'d, D: Door> {
    /// The engine.
    pub door: &'d D,
    /// The VM.
    pub vm: D::Handle,
    /// The vCPU.
    pub vcpu: D::Handle,
    /// Its `kvm_run` page.
    pub page: Mapping,
    /// The guest's code and tables.
    pub guest: Guest,
    memory: GuestMemoryMmap,
}

/// What `KVM_RUN` came back with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawExit {
    /// `exit_reason`, even where it is stale.
    pub exit_reason: u32,
    /// The first 24 bytes of the union.
    pub record: [u8; 24],
}

/// `kvm_run.msr` in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrRecord {
    /// `error`.
    pub error: u8,
    /// `pad`.
    pub pad: [u8; 7],
    /// `reason`.
    pub reason: u32,
    /// `index`.
    pub index: u32,
    /// `data`.
    pub data: u64,
}

impl RawExit {
    /// Whether the guest says that its list is done.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.exit_reason == KVM_EXIT_IO
            && u16::from_le_bytes([self.record[2], self.record[3]]) == DONE_PORT
    }

    /// RIP of a guest-debug stop, if it is one.
    #[must_use]
    pub fn debug_pc(&self) -> Option<u64> {
        let pc = self.record[8..16].try_into().expect("eight bytes");
        (self.exit_reason == KVM_EXIT_DEBUG).then_some(u64::from_le_bytes(pc))
    }

    /// The exit record, if it is one of these two reasons.
    #[must_use]
    pub fn msr(&self) -> Option<MsrRecord> {
        if ![KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR].contains(&self.exit_reason) {
            return None;
        }
        let bytes = |at: usize| -> [u8; 8] {
            let bytes = self.record[at..at + 8].try_into();
            bytes.expect("the record has 24 bytes")
        };
        let [error, pad @ ..] = bytes(0);
        let reason_and_index = u64::from_le_bytes(bytes(8));
        Some(MsrRecord {
            error,
            pad,
            reason: (reason_and_index & 0xffff_ffff) as u32,
            index: (reason_and_index >> 32) as u32,
            data: u64::from_le_bytes(bytes(16)),
        })
    }
}

impl<'d, D: Door> RawMachine<'d, D> {
    /// A fresh VM whose vCPU is at the start of the guest.
    ///
    /// # Errors
    /// What the engine answers to an ioctl that ought to work.
    pub fn new(door: &'d D) -> Result<Self, Errno> {
        Self::with_cpuid(door, |_| ())
    }

    /// As [`RawMachine::new`], with a change to what CPUID says.
    ///
    /// # Errors
    /// As for [`RawMachine::new`].
    pub fn with_cpuid(
        door: &'d D,
        change: impl FnOnce(&mut [kvm_cpuid_entry2]),
    ) -> Result<Self, Errno> {
        let memory = guest_memory();
        let host = memory
            .get_host_address(GuestAddress(0))
            .expect("RAM begins at 0");
        let vm = door.create_vm(host, MEMORY_BYTES)?;
        let vcpu = door.create(&vm, abi::KVM_CREATE_VCPU, 0)?;
        let page = door.map_run_page(&vcpu)?;
        let guest = Guest::new();
        let machine = Self {
            door,
            vm,
            vcpu,
            page,
            guest,
            memory,
        };
        machine.start(change)?;
        Ok(machine)
    }

    fn start(&self, change: impl FnOnce(&mut [kvm_cpuid_entry2])) -> Result<(), Errno> {
        let mut cpuid = CpuId::new(KVM_MAX_CPUID_ENTRIES).expect("room for all leaves");
        let leaves = cpuid.as_mut_fam_struct_ptr() as u64;
        self.door
            .ioctl(self.door.system(), KVM_GET_SUPPORTED_CPUID, leaves)?;
        change(cpuid.as_mut_slice());
        let leaves = cpuid.as_mut_fam_struct_ptr() as u64;
        self.door.ioctl(&self.vcpu, KVM_SET_CPUID2, leaves)?;
        self.guest
            .load(&mut |address, bytes| self.write_memory(address, bytes));
        let before = self.sregs()?;
        let mut sregs = register::system_registers(&before);
        self.guest.set_mode(&mut sregs);
        let sregs = register::kvm_sregs(&sregs, &before);
        self.door
            .ioctl(&self.vcpu, KVM_SET_SREGS, &raw const sregs as u64)?;
        self.set_regs(&register::kvm_regs(&self.guest.registers()))
    }

    /// `KVM_RUN` over a poisoned exit record.
    ///
    /// # Errors
    /// What it answers.
    pub fn run(&self) -> Result<RawExit, Errno> {
        self.door.ioctl(&self.vcpu, abi::KVM_RUN, 0)?;
        Ok(self.exit())
    }

    /// Fills the exit record with junk, so that what an exit leaves unwritten shows.
    pub fn poison_record(&self) {
        self.page.write(RECORD, &[0xcc; 24]);
    }

    /// What the page says now.
    #[must_use]
    pub fn exit(&self) -> RawExit {
        let mut record = [0; 24];
        self.page.read(RECORD, &mut record);
        RawExit {
            exit_reason: self.page.read_u32(EXIT_REASON),
            record,
        }
    }

    /// Sets `immediate_exit`.
    pub fn set_immediate_exit(&self, value: u8) {
        self.page.write(IMMEDIATE_EXIT, &[value]);
    }

    /// Sets `kvm_run.msr.error`.
    pub fn set_error(&self, error: u8) {
        self.page.write(RECORD, &[error]);
    }

    /// Sets `kvm_run.msr.data`.
    pub fn set_data(&self, data: u64) {
        self.page.write(RECORD + 16, &data.to_le_bytes());
    }

    /// Overwrites everything in `kvm_run` that is no answer to an MSR exit: the exit reason, and the record's
    /// padding, reason and index.
    pub fn clobber(&self) {
        self.page.write(EXIT_REASON, &[0xee; 4]);
        self.page.write(RECORD + 1, &[0xee; 15]);
    }

    /// `KVM_GET_REGS`.
    ///
    /// # Errors
    /// What it answers.
    pub fn regs(&self) -> Result<kvm_regs, Errno> {
        let mut regs = kvm_regs::default();
        self.door
            .ioctl(&self.vcpu, KVM_GET_REGS, &raw mut regs as u64)?;
        Ok(regs)
    }

    /// `KVM_SET_REGS`.
    ///
    /// # Errors
    /// What it answers.
    pub fn set_regs(&self, regs: &kvm_regs) -> Result<(), Errno> {
        self.door
            .ioctl(&self.vcpu, KVM_SET_REGS, &raw const *regs as u64)?;
        Ok(())
    }

    /// `KVM_GET_SREGS`.
    ///
    /// # Errors
    /// What it answers.
    pub fn sregs(&self) -> Result<kvm_sregs, Errno> {
        let mut sregs = kvm_sregs::default();
        self.door
            .ioctl(&self.vcpu, KVM_GET_SREGS, &raw mut sregs as u64)?;
        Ok(sregs)
    }

    /// `KVM_GET_VCPU_EVENTS`.
    ///
    /// # Errors
    /// What it answers.
    pub fn events(&self) -> Result<kvm_vcpu_events, Errno> {
        let mut events = kvm_vcpu_events::default();
        self.door
            .ioctl(&self.vcpu, KVM_GET_VCPU_EVENTS, &raw mut events as u64)?;
        Ok(events)
    }

    /// `KVM_SET_VCPU_EVENTS`.
    ///
    /// # Errors
    /// What it answers.
    pub fn set_events(&self, events: &kvm_vcpu_events) -> Result<(), Errno> {
        let events = &raw const *events as u64;
        self.door.ioctl(&self.vcpu, KVM_SET_VCPU_EVENTS, events)?;
        Ok(())
    }

    /// `KVM_SET_GUEST_DEBUG` with this control word.
    ///
    /// # Errors
    /// What it answers.
    pub fn set_guest_debug(&self, control: u32) -> Result<(), Errno> {
        let debug = kvm_guest_debug {
            control,
            ..Default::default()
        };
        let debug = &raw const debug as u64;
        self.door.ioctl(&self.vcpu, KVM_SET_GUEST_DEBUG, debug)?;
        Ok(())
    }

    /// `KVM_SET_SIGNAL_MASK`: no signal is blocked while the vCPU runs.
    ///
    /// # Errors
    /// What it answers.
    pub fn unblock_signals_in_run(&self) -> Result<(), Errno> {
        /// `struct kvm_signal_mask`, with its flexible array.
        #[repr(C)]
        struct Mask {
            len: u32,
            sigset: [u8; 8],
        }
        let mask = Mask {
            len: 8,
            sigset: [0; 8],
        };
        let mask = &raw const mask as u64;
        self.door.ioctl(&self.vcpu, KVM_SET_SIGNAL_MASK, mask)?;
        Ok(())
    }

    /// `KVM_GET_MSRS` or `KVM_SET_MSRS` of one MSR: entries done, and the value.
    ///
    /// # Errors
    /// What it answers.
    pub fn host_msr(&self, request: u32, index: u32, value: u64) -> Result<(i32, u64), Errno> {
        let entry = kvm_msr_entry {
            index,
            data: value,
            ..Default::default()
        };
        let mut msrs = Msrs::from_entries(&[entry]).expect("room for one entry");
        let done = self
            .door
            .ioctl(&self.vcpu, request, msrs.as_mut_fam_struct_ptr() as u64)?;
        Ok((done, msrs.as_slice()[0].data))
    }

    /// Gives the guest its next access.
    pub fn set_access(&self, request: Request) {
        self.set_list(&[request]);
    }

    /// Gives the guest its next accesses.
    pub fn set_list(&self, requests: &[Request]) {
        let mut write = |address, bytes: &[u8]| self.write_memory(address, bytes);
        self.guest.write_list(requests, &mut write);
    }

    /// What came of the access.
    #[must_use]
    pub fn answer(&self) -> Option<Answer> {
        self.answer_of(0)
    }

    /// What came of the access at `position`.
    #[must_use]
    pub fn answer_of(&self, position: usize) -> Option<Answer> {
        self.guest.read_answer(position, &mut |address, bytes| {
            let read = self.memory.read_slice(bytes, GuestAddress(address));
            read.expect("the list is in guest memory");
        })
    }

    fn write_memory(&self, address: u64, bytes: &[u8]) {
        let written = self.memory.write_slice(bytes, GuestAddress(address));
        written.expect("the guest fits into its memory");
    }
}
