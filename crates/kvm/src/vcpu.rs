//! A virtual processor on the real KVM: [`KvmVcpu`], which turns kernel exits into owned values and back.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR,
    KVM_EXIT_IO, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, Msrs, kvm_msr_entry,
};
use kvm_ioctls::VcpuFd;
use msrgate_core::{
    Errno, MsrIndex, PendingCompletion, Registers, RunError, SystemRegisters, Vcpu, VmEntry,
    VmError, VmExit,
};

use crate::kick::{Doorbell, KvmKicker};
use crate::register;
use crate::run_page::{Debug, FailEntry, Internal, Mmio, RunPage};
use crate::string_io::StringIo;
use crate::vm::{Shared, refused};

/// What [`KvmVcpu`] answers when it is to stop in the middle of an instruction.
const MORE_TO_SHOW: RunError = RunError::Refused {
    errno: Errno::EAGAIN,
};

/// A vCPU of a [`KvmVm`](crate::KvmVm).
#[derive(Debug)]
pub struct KvmVcpu {
    fd: VcpuFd,
    doorbell: Arc<Doorbell>,
    pending: PendingCompletion,
    /// The port access whose elements are being served.
    string: Option<StringIo>,
    /// What a completion without a run came back with: it belongs to the next run.
    deferred: Option<VmExit>,
    /// Guest memory stays mapped while the vCPU can run.
    _vm: Arc<Shared>,
}

impl KvmVcpu {
    pub(crate) fn new(fd: VcpuFd, vm: Arc<Shared>, run_bytes: usize) -> Result<Self, VmError> {
        let page = RunPage::map(&fd, run_bytes).map_err(|errno| VmError::Refused {
            call: "mmap of a vCPU",
            errno,
        })?;
        Ok(Self {
            fd,
            doorbell: Arc::new(Doorbell::new(page)),
            pending: PendingCompletion::default(),
            string: None,
            deferred: None,
            _vm: vm,
        })
    }

    /// Puts the answer where the kernel looks for it.
    fn answer(&self, entry: VmEntry) {
        let page = &self.doorbell.page;
        match entry {
            VmEntry::Run => {}
            VmEntry::CompleteRdmsr(_) | VmEntry::CompleteWrmsr(_) => page.complete_msr(entry),
            VmEntry::CompleteIoIn(value) => {
                if let Some(string) = &self.string {
                    string.answer(page, value);
                }
            }
            VmEntry::CompleteMmioRead(value) => page.set_member(Mmio {
                data: value.to_le_bytes(),
                ..page.member()
            }),
        }
    }

    /// `KVM_RUN`, and what it says.
    fn enter(&mut self) -> Result<VmExit, RunError> {
        self.string = None;
        self.doorbell.enter();
        let answer = self.doorbell.page.run(&self.fd);
        self.doorbell.leave();
        match answer {
            Ok(()) => Ok(self.decode()),
            // EAGAIN: a processor that waited for its start-up message has got it, and nothing has run yet.
            Err(Errno::EINTR | Errno::EAGAIN) => Ok(VmExit::Interrupted),
            Err(errno) => Err(RunError::Refused { errno }),
        }
    }

    /// The exit in the page as an owned value.
    fn decode(&mut self) -> VmExit {
        let page = &self.doorbell.page;
        if let Some(access) = page.msr_exit() {
            return access;
        }
        match page.exit_reason() {
            KVM_EXIT_IO => {
                let mut string = StringIo::new(page);
                let first = string.next(page);
                self.string = Some(string);
                first.unwrap_or(VmExit::Other(KVM_EXIT_IO))
            }
            KVM_EXIT_MMIO => decode_mmio(&page.member()),
            KVM_EXIT_HLT => VmExit::Hlt,
            KVM_EXIT_SHUTDOWN => VmExit::Shutdown,
            KVM_EXIT_DEBUG => {
                let debug: Debug = page.member();
                VmExit::Debug {
                    exception: debug.arch.exception,
                    pc: debug.arch.pc,
                }
            }
            KVM_EXIT_INTR => VmExit::Interrupted,
            KVM_EXIT_INTERNAL_ERROR => {
                let internal: Internal = page.member();
                VmExit::Failed {
                    code: internal.suberror.into(),
                }
            }
            KVM_EXIT_FAIL_ENTRY => {
                let failure: FailEntry = page.member();
                VmExit::Failed {
                    code: failure.hardware_entry_failure_reason,
                }
            }
            other => VmExit::Other(other),
        }
    }

    /// Whether the pending instruction has accesses that the caller has not seen.
    fn has_more_to_show(&self) -> bool {
        let elements = self.string.as_ref().is_some_and(|string| !string.is_last());
        elements || self.deferred.is_some_and(|exit| !exit.is_consistent())
    }

    /// Notes the exit that the caller is about to see.
    fn leave_with(&mut self, exit: VmExit) -> VmExit {
        if exit == VmExit::Interrupted {
            self.doorbell.answer();
        }
        self.pending.arm(exit);
        exit
    }
}

impl AsRawFd for KvmVcpu {
    /// The vCPU's descriptor, for ioctls that have no method here.
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Vcpu for KvmVcpu {
    type Kicker = KvmKicker;

    fn run(&mut self, entry: VmEntry) -> Result<VmExit, RunError> {
        self.pending.take(entry)?;
        self.answer(entry);
        let page = &self.doorbell.page;
        let next_element = || self.string.as_mut()?.next(page);
        let exit = match self.deferred.take().or_else(next_element) {
            Some(exit) => exit,
            None => self.enter()?,
        };
        Ok(self.leave_with(exit))
    }

    /// Answers EAGAIN while the instruction has accesses that [`run`](Vcpu::run) has not shown yet (a
    /// string of elements, a load over two devices): the kernel cannot stop between them.
    fn complete(&mut self, entry: VmEntry) -> Result<(), RunError> {
        if self.has_more_to_show() {
            return Err(MORE_TO_SHOW);
        }
        if self.pending.take(entry)?.is_none() {
            return Ok(());
        }
        self.answer(entry);
        self.string = None;
        let page = &self.doorbell.page;
        page.immediate_exit().store(1, Ordering::SeqCst);
        let answer = page.run(&self.fd);
        page.immediate_exit().store(0, Ordering::SeqCst);
        match answer {
            Err(Errno::EINTR) => return Ok(()),
            Err(errno) => return Err(RunError::Refused { errno }),
            Ok(()) => self.deferred = Some(self.decode()),
        }
        if self.has_more_to_show() {
            return Err(MORE_TO_SHOW);
        }
        Ok(())
    }

    fn kicker(&self) -> KvmKicker {
        KvmKicker::new(Arc::clone(&self.doorbell))
    }

    fn registers(&self) -> Result<Registers, VmError> {
        let regs = self.fd.get_regs().map_err(refused("KVM_GET_REGS"))?;
        Ok(register::registers(&regs))
    }

    fn set_registers(&mut self, registers: &Registers) -> Result<(), VmError> {
        let regs = register::kvm_regs(registers);
        self.fd.set_regs(&regs).map_err(refused("KVM_SET_REGS"))
    }

    fn system_registers(&self) -> Result<SystemRegisters, VmError> {
        let sregs = self.fd.get_sregs().map_err(refused("KVM_GET_SREGS"))?;
        Ok(register::system_registers(&sregs))
    }

    fn set_system_registers(&mut self, registers: &SystemRegisters) -> Result<(), VmError> {
        let before = self.fd.get_sregs().map_err(refused("KVM_GET_SREGS"))?;
        let sregs = register::kvm_sregs(registers, &before);
        self.fd.set_sregs(&sregs).map_err(refused("KVM_SET_SREGS"))
    }

    fn get_msr(&self, index: MsrIndex) -> Result<Option<u64>, VmError> {
        get_msr(&self.fd, index)
    }

    fn set_msr(&mut self, index: MsrIndex, value: u64) -> Result<bool, VmError> {
        set_msr(&self.fd, index, value)
    }
}

fn decode_mmio(mmio: &Mmio) -> VmExit {
    let address = mmio.phys_addr;
    let len_bytes = u8::try_from(mmio.len).unwrap_or(u8::MAX).min(8);
    if mmio.is_write == 0 {
        return VmExit::MmioRead { address, len_bytes };
    }
    let mut data = mmio.data;
    data[usize::from(len_bytes)..].fill(0);
    VmExit::MmioWrite {
        address,
        len_bytes,
        value: u64::from_le_bytes(data),
    }
}

/// `KVM_GET_MSRS` of one MSR.
pub(crate) fn get_msr(vcpu: &VcpuFd, index: MsrIndex) -> Result<Option<u64>, VmError> {
    let mut msrs = one_msr(index, 0);
    let count = vcpu.get_msrs(&mut msrs).map_err(refused("KVM_GET_MSRS"))?;
    let entries = msrs.as_slice().iter().take(count);
    Ok(entries.map(|entry| entry.data).next())
}

/// `KVM_SET_MSRS` of one MSR.
pub(crate) fn set_msr(vcpu: &VcpuFd, index: MsrIndex, value: u64) -> Result<bool, VmError> {
    let msrs = one_msr(index, value);
    let count = vcpu.set_msrs(&msrs).map_err(refused("KVM_SET_MSRS"))?;
    Ok(count == 1)
}

fn one_msr(index: MsrIndex, data: u64) -> Msrs {
    let entry = kvm_msr_entry {
        index: index.0,
        data,
        ..Default::default()
    };
    Msrs::from_entries(&[entry]).expect("one entry is fewer than the 255 that fit")
}
