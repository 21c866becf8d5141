//! Whom a gate asks: [`HostMsrs`], KVM's own values, and [`MsrHandler`], a program's own code.

use crate::{Gp, MsrIndex, Vcpu, VcpuId, VmError};

/// The host path to a vCPU's MSRs. Every [`Vcpu`] has it; somebody else's vCPU may have no more.
pub trait HostMsrs {
    /// `KVM_GET_MSRS` of one MSR: neither filtered nor deflected. `None` where KVM refuses.
    ///
    /// # Errors
    /// The call itself failed.
    fn get_msr(&self, index: MsrIndex) -> Result<Option<u64>, VmError>;

    /// `KVM_SET_MSRS` of one MSR: whether KVM took it.
    ///
    /// # Errors
    /// The call itself failed.
    fn set_msr(&mut self, index: MsrIndex, value: u64) -> Result<bool, VmError>;

    /// Where the vCPU is, if that can be known.
    fn rip(&self) -> Option<u64> {
        None
    }
}

impl<V: Vcpu> HostMsrs for V {
    fn get_msr(&self, index: MsrIndex) -> Result<Option<u64>, VmError> {
        Vcpu::get_msr(self, index)
    }

    fn set_msr(&mut self, index: MsrIndex, value: u64) -> Result<bool, VmError> {
        Vcpu::set_msr(self, index, value)
    }

    fn rip(&self) -> Option<u64> {
        Some(self.registers().ok()?.rip)
    }
}

/// A program's own code for some MSRs: what a policy calls by a name. It is called on the thread of the vCPU, between
/// two of its runs, so it must not wait.
pub trait MsrHandler: Send + Sync {
    /// What RDMSR reads.
    ///
    /// # Errors
    /// The guest gets #GP(0).
    fn rdmsr(&self, vcpu: VcpuId, index: MsrIndex) -> Result<u64, Gp>;

    /// What WRMSR does.
    ///
    /// # Errors
    /// The guest gets #GP(0).
    fn wrmsr(&self, vcpu: VcpuId, index: MsrIndex, value: u64) -> Result<(), Gp>;
}
