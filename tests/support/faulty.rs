//! A backend that fails on command: [`Faulty`], a decorator around any other.
//!
//! A [`Fault`] is armed once and strikes once, at the call that it names; `is_consumed` tells a test that
//! its fault was really met.

use std::cell::RefCell;
use std::rc::Rc;

use msrgate_core::{
    Errno, ExitReasons, MsrFilter, MsrIndex, Registers, RunError, SystemRegisters, Vcpu, Vm,
    VmEntry, VmError, VmExit,
};

/// Which call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `create_vcpu`.
    CreateVcpu,
    /// `set_exit_reasons`.
    SetExitReasons,
    /// `set_msr_filter`.
    SetMsrFilter,
    /// `run`.
    Run,
    /// `complete`.
    Complete,
    /// `get_msr`.
    GetMsr,
    /// `set_msr`.
    SetMsr,
}

/// One failure that waits for its call.
#[derive(Clone, Debug)]
pub struct Fault(Rc<RefCell<Option<(Call, u32, Errno)>>>);

impl Fault {
    /// The call fails with `errno` after it succeeded `after` times.
    #[must_use]
    pub fn new(call: Call, after: u32, errno: Errno) -> Self {
        Self(Rc::new(RefCell::new(Some((call, after, errno)))))
    }

    /// Whether the fault has struck.
    #[must_use]
    pub fn is_consumed(&self) -> bool {
        self.0.borrow().is_none()
    }

    /// The errno, if it is this call's turn to fail.
    fn strike(&self, call: Call) -> Option<Errno> {
        let mut fault = self.0.borrow_mut();
        let (armed, after, errno) = (*fault)?;
        if armed != call {
            return None;
        }
        if after > 0 {
            *fault = Some((armed, after - 1, errno));
            return None;
        }
        *fault = None;
        Some(errno)
    }

    fn check(&self, call: Call, name: &'static str) -> Result<(), VmError> {
        match self.strike(call) {
            Some(errno) => Err(VmError::Refused { call: name, errno }),
            None => Ok(()),
        }
    }

    fn check_run(&self, call: Call) -> Result<(), RunError> {
        match self.strike(call) {
            Some(errno) => Err(RunError::Refused { errno }),
            None => Ok(()),
        }
    }
}

/// A VM or vCPU with a fault in front of it.
#[derive(Debug)]
pub struct Faulty<T> {
    inner: T,
    fault: Fault,
}

impl<T> Faulty<T> {
    /// Puts `fault` in front of `inner`.
    #[must_use]
    pub fn new(inner: T, fault: &Fault) -> Self {
        Self {
            inner,
            fault: fault.clone(),
        }
    }
}

impl<V: Vm> Vm for Faulty<V> {
    type Vcpu = Faulty<V::Vcpu>;

    fn create_vcpu(&self, id: u32) -> Result<Self::Vcpu, VmError> {
        self.fault.check(Call::CreateVcpu, "KVM_CREATE_VCPU")?;
        Ok(Faulty::new(self.inner.create_vcpu(id)?, &self.fault))
    }

    fn set_exit_reasons(&self, reasons: ExitReasons) -> Result<(), VmError> {
        self.fault.check(Call::SetExitReasons, "KVM_ENABLE_CAP")?;
        self.inner.set_exit_reasons(reasons)
    }

    fn set_msr_filter(&self, filter: &MsrFilter) -> Result<(), VmError> {
        self.fault
            .check(Call::SetMsrFilter, "KVM_X86_SET_MSR_FILTER")?;
        self.inner.set_msr_filter(filter)
    }
}

impl<C: Vcpu> Vcpu for Faulty<C> {
    type Kicker = C::Kicker;

    fn run(&mut self, entry: VmEntry) -> Result<VmExit, RunError> {
        self.fault.check_run(Call::Run)?;
        self.inner.run(entry)
    }

    fn complete(&mut self, entry: VmEntry) -> Result<(), RunError> {
        self.fault.check_run(Call::Complete)?;
        self.inner.complete(entry)
    }

    fn kicker(&self) -> Self::Kicker {
        self.inner.kicker()
    }

    fn registers(&self) -> Result<Registers, VmError> {
        self.inner.registers()
    }

    fn set_registers(&mut self, registers: &Registers) -> Result<(), VmError> {
        self.inner.set_registers(registers)
    }

    fn system_registers(&self) -> Result<SystemRegisters, VmError> {
        self.inner.system_registers()
    }

    fn set_system_registers(&mut self, registers: &SystemRegisters) -> Result<(), VmError> {
        self.inner.set_system_registers(registers)
    }

    fn get_msr(&self, index: MsrIndex) -> Result<Option<u64>, VmError> {
        self.fault.check(Call::GetMsr, "KVM_GET_MSRS")?;
        self.inner.get_msr(index)
    }

    fn set_msr(&mut self, index: MsrIndex, value: u64) -> Result<bool, VmError> {
        self.fault.check(Call::SetMsr, "KVM_SET_MSRS")?;
        self.inner.set_msr(index, value)
    }
}
