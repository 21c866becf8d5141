//! Ioctls that read and write a vCPU's state.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvm_bindings::{
    KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_INJECT_BP, KVM_GUESTDBG_INJECT_DB,
    KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, KVM_GUESTDBG_USE_SW_BP,
    KVM_MP_STATE_AP_RESET_HOLD, KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_SIPI_RECEIVED, KVM_MP_STATE_UNINITIALIZED,
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_PAYLOAD, KVM_VCPUEVENT_VALID_SHADOW,
    KVM_VCPUEVENT_VALID_SIPI_VECTOR, KVM_VCPUEVENT_VALID_SMM, KVM_X86_SHADOW_INT_MOV_SS,
    KVM_X86_SHADOW_INT_STI, kvm_debugregs, kvm_fpu, kvm_guest_debug, kvm_mp_state, kvm_regs,
    kvm_sregs, kvm_sregs2, kvm_translation, kvm_vcpu_events, kvm_xcrs,
};
use msrgate_core::Errno;
use msrgate_x86::{Config, DebugRegisters, Events, Exception};

use super::vcpu::Inner;
use super::{Outcome, VcpuDescriptor, convert, done};
use crate::vcpu::MpState;
use crate::{client, sregs};

/// Exception vectors.
const DB: u8 = 1;
const NMI: u8 = 2;
const BP: u8 = 3;
const LAST_EXCEPTION: u8 = 31;
/// RFLAGS bit 1 is always set.
const RFLAGS_FIXED: u64 = 2;

pub(super) fn get_regs(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    client::store(arg, &vcpu.lock().regs())?;
    done()
}

pub(super) fn set_regs(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let regs = client::load(arg)?;
    vcpu.lock().set_regs(&regs);
    done()
}

pub(super) fn get_sregs(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    client::store(arg, &vcpu.lock().sregs())?;
    done()
}

pub(super) fn set_sregs(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let sregs = client::load(arg)?;
    vcpu.lock().set_sregs(&sregs)?;
    done()
}

pub(super) fn get_sregs2(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let registers = vcpu.lock().engine.cpu.system_registers();
    client::store(arg, &convert::kvm_system_registers(&registers))?;
    done()
}

/// Page-directory pointers are read from memory when they are needed, so those given here are not kept.
pub(super) fn set_sregs2(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    const PDPTRS_VALID: u64 = 1;
    let new: kvm_sregs2 = client::load(arg)?;
    if new.flags & !PDPTRS_VALID != 0 {
        return Err(Errno::EINVAL);
    }
    sregs::set(&mut vcpu.lock().engine, &convert::system_registers(&new))?;
    done()
}

pub(super) fn get_fpu(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    client::store(arg, &convert::kvm_fpu(vcpu.lock().engine.cpu.fpu()))?;
    done()
}

pub(super) fn set_fpu(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let fpu: kvm_fpu = client::load(arg)?;
    vcpu.lock().engine.cpu.set_fpu(convert::fpu(&fpu));
    done()
}

pub(super) fn get_xsave(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let area = convert::xsave(vcpu.lock().engine.cpu.fpu());
    client::store(arg, &area)?;
    done()
}

pub(super) fn set_xsave(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let area: [u8; 4096] = client::load(arg)?;
    let fpu = convert::fpu_of_xsave(&area).ok_or(Errno::EINVAL)?;
    vcpu.lock().engine.cpu.set_fpu(fpu);
    done()
}

pub(super) fn get_xcrs(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let mut xcrs = kvm_xcrs {
        nr_xcrs: 1,
        ..kvm_xcrs::default()
    };
    xcrs.xcrs[0].value = vcpu.lock().engine.cpu.xcr0();
    client::store(arg, &xcrs)?;
    done()
}

/// XCR0 has x87, which is always on, and SSE.
pub(super) fn set_xcrs(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    const X87: u64 = 1;
    const SSE: u64 = 2;
    let xcrs: kvm_xcrs = client::load(arg)?;
    let count = xcrs.nr_xcrs as usize;
    let given = xcrs.xcrs.get(..count).filter(|_| xcrs.flags == 0);
    let mut given = given.ok_or(Errno::EINVAL)?.iter();
    if let Some(xcr0) = given.find(|xcr| xcr.xcr == 0) {
        if xcr0.value & X87 == 0 || xcr0.value & !(X87 | SSE) != 0 {
            return Err(Errno::EINVAL);
        }
        vcpu.lock().engine.cpu.set_xcr0(xcr0.value);
    }
    done()
}

pub(super) fn get_debugregs(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let registers = vcpu.lock().engine.cpu.debug_registers();
    client::store(arg, &convert::kvm_debug_registers(&registers))?;
    done()
}

pub(super) fn set_debugregs(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let registers: kvm_debugregs = client::load(arg)?;
    if registers.flags != 0 || (registers.dr6 | registers.dr7) >> 32 != 0 {
        return Err(Errno::EINVAL);
    }
    let registers = convert::debug_registers(&registers);
    vcpu.lock().engine.cpu.set_debug_registers(registers);
    done()
}

pub(super) fn get_vcpu_events(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    client::store(arg, &vcpu.lock().events())?;
    done()
}

pub(super) fn set_vcpu_events(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let events = client::load(arg)?;
    vcpu.lock().set_events(&events)?;
    done()
}

/// What is on its way to start the vCPU has its effect first.
pub(super) fn get_mp_state(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let mut inner = vcpu.lock();
    inner.engine.accept_start_up();
    let mp_state = match inner.engine.mp_state {
        MpState::Runnable => KVM_MP_STATE_RUNNABLE,
        MpState::Uninitialized => KVM_MP_STATE_UNINITIALIZED,
        MpState::InitReceived => KVM_MP_STATE_INIT_RECEIVED,
        MpState::Halted => KVM_MP_STATE_HALTED,
        MpState::ResetHold => KVM_MP_STATE_AP_RESET_HOLD,
    };
    client::store(arg, &kvm_mp_state { mp_state })?;
    done()
}

/// Without in-kernel controllers a vCPU is always runnable.
pub(super) fn set_mp_state(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let kvm_mp_state { mp_state } = client::load(arg)?;
    let mut inner = vcpu.lock();
    let engine = &mut inner.engine;
    if mp_state != KVM_MP_STATE_RUNNABLE && !engine.has_irqchip() {
        return Err(Errno::EINVAL);
    }
    engine.mp_state = match mp_state {
        KVM_MP_STATE_RUNNABLE => MpState::Runnable,
        KVM_MP_STATE_UNINITIALIZED => MpState::Uninitialized,
        KVM_MP_STATE_HALTED => MpState::Halted,
        KVM_MP_STATE_AP_RESET_HOLD => MpState::ResetHold,
        KVM_MP_STATE_INIT_RECEIVED => MpState::InitReceived,
        KVM_MP_STATE_SIPI_RECEIVED => {
            engine.with_lapic(|lapic, _| lapic.start_again());
            MpState::InitReceived
        }
        _ => return Err(Errno::EINVAL),
    };
    done()
}

pub(super) fn set_guest_debug(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let debug: kvm_guest_debug = client::load(arg)?;
    let control = debug.control;
    let mut inner = vcpu.lock();
    let cpu = &mut inner.engine.cpu;
    if control & (KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP) != 0 {
        if cpu.pending().is_some() {
            return Err(Errno::EBUSY);
        }
        let vector = if control & KVM_GUESTDBG_INJECT_DB != 0 {
            DB
        } else {
            BP
        };
        cpu.set_pending(Some(Exception {
            vector,
            error_code: None,
        }));
    }
    let has = |flag| control & KVM_GUESTDBG_ENABLE != 0 && control & flag != 0;
    let [db0, db1, db2, db3, .., dr7] = debug.arch.debugreg;
    let breakpoints = DebugRegisters {
        db: [db0, db1, db2, db3],
        dr7,
        ..DebugRegisters::default()
    };
    cpu.set_config(Config {
        single_step: has(KVM_GUESTDBG_SINGLESTEP),
        trap_breakpoint: has(KVM_GUESTDBG_USE_SW_BP),
        trap_debug: has(KVM_GUESTDBG_USE_HW_BP),
        breakpoints: has(KVM_GUESTDBG_USE_HW_BP).then_some(breakpoints),
        ..cpu.config().clone()
    });
    inner.engine.block_interrupts(has(KVM_GUESTDBG_BLOCKIRQ));
    done()
}

pub(super) fn translate(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let asked: kvm_translation = client::load(arg)?;
    let physical = vcpu.lock().engine.translate(asked.linear_address);
    let answer = kvm_translation {
        physical_address: physical.unwrap_or(u64::MAX),
        valid: physical.is_some().into(),
        writeable: 1,
        ..asked
    };
    client::store(arg, &answer)?;
    done()
}

/// With in-kernel controllers an interrupt is theirs to inject.
pub(super) fn interrupt(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    let vector: u32 = client::load(arg)?;
    let vector = u8::try_from(vector).map_err(|_| Errno::EINVAL)?;
    let mut inner = vcpu.lock();
    if inner.engine.has_irqchip() {
        inner.engine.interrupt_from_client(vector)?;
    } else {
        inner.inject(vector);
    }
    done()
}

pub(super) fn nmi(vcpu: &Arc<VcpuDescriptor>, _: u64) -> Result<Outcome, Errno> {
    vcpu.lock().engine.cpu.nmi();
    done()
}

/// Groups of state that the run page's `s` holds as well.
impl Inner {
    pub(super) fn regs(&self) -> kvm_regs {
        convert::kvm_registers(&self.engine.cpu.registers())
    }

    /// A queued exception is dropped.
    pub(super) fn set_regs(&mut self, regs: &kvm_regs) {
        let mut registers = convert::registers(regs);
        registers.rflags |= RFLAGS_FIXED;
        self.engine.cpu.set_registers(&registers);
    }

    pub(super) fn sregs(&self) -> kvm_sregs {
        let cpu = &self.engine.cpu;
        let registers = convert::kvm_system_registers(&cpu.system_registers());
        convert::sregs(registers, cpu.events().interrupt)
    }

    pub(super) fn set_sregs(&mut self, sregs: &kvm_sregs) -> Result<(), Errno> {
        let (registers, interrupt) = convert::sregs2(sregs);
        sregs::set(&mut self.engine, &convert::system_registers(&registers))?;
        if let Some(vector) = interrupt {
            self.inject(vector);
        }
        Ok(())
    }

    fn inject(&mut self, vector: u8) {
        let cpu = &mut self.engine.cpu;
        cpu.set_events(Events {
            interrupt: Some(vector),
            ..cpu.events()
        });
    }

    /// Without `KVM_CAP_EXCEPTION_PAYLOAD` a queued exception is both injected and pending.
    pub(super) fn events(&self) -> kvm_vcpu_events {
        let cpu = &self.engine.cpu;
        let pending = cpu.pending();
        let waits = cpu.events();
        let payload = self.engine.vm().exception_payload.load(Ordering::Relaxed);
        let mut events = kvm_vcpu_events::default();
        if let Some(exception) = pending {
            events.exception.injected = (!payload).into();
            events.exception.pending = 1;
            events.exception.nr = exception.vector;
            events.exception.has_error_code = exception.error_code.is_some().into();
            events.exception.error_code = exception.error_code.unwrap_or(0);
        }
        if let Some(vector) = waits.interrupt {
            events.interrupt.injected = 1;
            events.interrupt.nr = vector;
        }
        let shadows = [
            (waits.shadow_sti, KVM_X86_SHADOW_INT_STI),
            (waits.shadow_mov_ss, KVM_X86_SHADOW_INT_MOV_SS),
        ];
        for (active, bit) in shadows {
            events.interrupt.shadow |= u8::from(active) * bit.to_le_bytes()[0];
        }
        events.nmi.pending = waits.nmi_pending.into();
        events.nmi.masked = waits.nmi_masked.into();
        events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
        if payload {
            events.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
        }
        events
    }

    pub(super) fn set_events(&mut self, events: &kvm_vcpu_events) -> Result<(), Errno> {
        const KNOWN: u32 = KVM_VCPUEVENT_VALID_NMI_PENDING
            | KVM_VCPUEVENT_VALID_SIPI_VECTOR
            | KVM_VCPUEVENT_VALID_SHADOW
            | KVM_VCPUEVENT_VALID_SMM
            | KVM_VCPUEVENT_VALID_PAYLOAD;
        let has = |flag| events.flags & flag != 0;
        let payload = self.engine.vm().exception_payload.load(Ordering::Relaxed);
        let queued = if has(KVM_VCPUEVENT_VALID_PAYLOAD) {
            events.exception.injected != 0 || events.exception.pending != 0
        } else {
            events.exception.injected != 0
        };
        let vector = events.exception.nr;
        if events.flags & !KNOWN != 0
            || has(KVM_VCPUEVENT_VALID_PAYLOAD) && !payload
            || queued && (vector > LAST_EXCEPTION || vector == NMI)
        {
            return Err(Errno::EINVAL);
        }
        let cpu = &mut self.engine.cpu;
        cpu.set_pending(queued.then_some(Exception {
            vector,
            error_code:
                (events.exception.has_error_code != 0).then_some(events.exception.error_code),
        }));
        let mut waits = cpu.events();
        let injected = events.interrupt.injected != 0;
        waits.interrupt = injected.then_some(events.interrupt.nr);
        if has(KVM_VCPUEVENT_VALID_SHADOW) {
            let shadow = u32::from(events.interrupt.shadow);
            waits.shadow_sti = shadow & KVM_X86_SHADOW_INT_STI != 0;
            waits.shadow_mov_ss = shadow & KVM_X86_SHADOW_INT_MOV_SS != 0;
        }
        if has(KVM_VCPUEVENT_VALID_NMI_PENDING) {
            waits.nmi_pending = events.nmi.pending != 0;
        }
        waits.nmi_masked = events.nmi.masked != 0;
        cpu.set_events(waits);
        Ok(())
    }
}
