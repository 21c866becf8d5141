//! `KVM_RUN`: the order of its steps, and an exit's way into the run page and back.

use std::mem::offset_of;
use std::sync::Arc;

use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO,
    KVM_EXIT_IO_IN, KVM_EXIT_IO_OUT, KVM_EXIT_IOAPIC_EOI, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO,
    KVM_EXIT_SHUTDOWN, KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR, KVM_SYNC_X86_EVENTS,
    KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, kvm_debug_exit_arch, kvm_run, kvm_sync_regs,
};
use msrgate_core::{Errno, Gp, MsrIndex, RunError, VmEntry, VmExit};

use super::vcpu::Inner;
use super::{Outcome, VcpuDescriptor, done};
use crate::client::SignalGuard;
use crate::run_page::{EXIT, IO_DATA_OFFSET, RunPage};
use crate::vcpu::{MpState, SLICE};

/// Fields of `kvm_run`.
const REQUEST_INTERRUPT_WINDOW: usize = offset_of!(kvm_run, request_interrupt_window);
const IMMEDIATE_EXIT: usize = offset_of!(kvm_run, immediate_exit);
const EXIT_REASON: usize = offset_of!(kvm_run, exit_reason);
const READY_FOR_INTERRUPT: usize = offset_of!(kvm_run, ready_for_interrupt_injection);
const IF_FLAG: usize = offset_of!(kvm_run, if_flag);
const FLAGS: usize = offset_of!(kvm_run, flags);
const CR8: usize = offset_of!(kvm_run, cr8);
const APIC_BASE: usize = offset_of!(kvm_run, apic_base);
const VALID_REGS: usize = offset_of!(kvm_run, kvm_valid_regs);
const DIRTY_REGS: usize = offset_of!(kvm_run, kvm_dirty_regs);
const SYNC: usize = offset_of!(kvm_run, s);
const SYNC_REGS: usize = SYNC + offset_of!(kvm_sync_regs, regs);
const SYNC_SREGS: usize = SYNC + offset_of!(kvm_sync_regs, sregs);
const SYNC_EVENTS: usize = SYNC + offset_of!(kvm_sync_regs, events);

/// Fields of the exit's union.
const MSR_ERROR: usize = EXIT;
const MSR_DATA: usize = EXIT + 16;
const MMIO_DATA: usize = EXIT + 8;

/// Bits of DR6 that are set unless something has happened.
const DR6_ACTIVE_LOW: u64 = 0xffff_0ff0;

/// While the client waits for an interrupt window, a turn is this many instructions.
const WINDOW_SLICE: u64 = 1000;

/// The groups of registers that can be synchronized through the run page.
pub(super) const SYNC_FIELDS: u32 = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS;

/// `kvm_arch_vcpu_ioctl_run`, step by step.
pub(super) fn run(vcpu: &Arc<VcpuDescriptor>, arg: u64) -> Result<Outcome, Errno> {
    if arg != 0 {
        return Err(Errno::EINVAL);
    }
    // Handlers run when this goes, and the lock goes before.
    let mut signals = SignalGuard::hold();
    let mut inner = vcpu.lock();
    signals.use_mask(inner.signal_mask);
    let page = &vcpu.page;
    let result = enter(&mut inner, page, &signals);
    save(&inner, page);
    match result? {
        VmExit::Interrupted => {
            page.store(EXIT_REASON, KVM_EXIT_INTR);
            Err(Errno::EINTR)
        }
        exit => {
            put_exit(page, exit, &inner);
            done()
        }
    }
}

fn enter(inner: &mut Inner, page: &RunPage, signals: &SignalGuard) -> Result<VmExit, Errno> {
    if inner.engine.mp_state == MpState::Uninitialized {
        return wait_for_init(inner, page, signals);
    }
    let [valid, dirty]: [u64; 2] = [page.load(VALID_REGS), page.load(DIRTY_REGS)];
    if (valid | dirty) & !u64::from(SYNC_FIELDS) != 0 {
        return Err(Errno::EINVAL);
    }
    load_dirty(inner, page, dirty)?;
    if !inner.engine.has_irqchip() {
        let cr8: u64 = page.load(CR8);
        if cr8 > 15 {
            return Err(Errno::EINVAL);
        }
        inner.engine.cpu.set_cr8(cr8);
    }
    inner.engine.note_foreign_writes();
    let entry = inner
        .engine
        .pending()
        .map_or(VmEntry::Run, |exit| answer(page, exit));
    match inner.engine.complete(entry) {
        Ok(Some(exit)) => return Ok(exit),
        Ok(None) => {}
        Err(RunError::Refused { errno }) => return Err(errno),
        Err(_) => return Err(Errno::EINVAL),
    }
    if page.load::<u8>(IMMEDIATE_EXIT) != 0 {
        return Err(Errno::EINTR); // exit_reason stays what it was
    }
    go(inner, page, signals)
}

/// An application processor sleeps until INIT, and its client then calls again.
fn wait_for_init(
    inner: &mut Inner,
    page: &RunPage,
    signals: &SignalGuard,
) -> Result<VmExit, Errno> {
    while inner.engine.mp_state == MpState::Uninitialized {
        if interrupted(page, signals) {
            return Ok(VmExit::Interrupted);
        }
        inner.engine.attend();
    }
    Err(Errno::EAGAIN)
}

/// Runs the guest.
fn go(inner: &mut Inner, page: &RunPage, signals: &SignalGuard) -> Result<VmExit, Errno> {
    let window = !inner.engine.has_pics();
    let takes_external = inner.engine.external_interrupts();
    let wanted = || window && page.load::<u8>(REQUEST_INTERRUPT_WINDOW) != 0;
    inner.engine.want_window(wanted());
    let slice = if wanted() { WINDOW_SLICE } else { SLICE };
    inner.engine.run(slice, |cpu| {
        if interrupted(page, signals) {
            Some(VmExit::Interrupted)
        } else if wanted() && cpu.can_interrupt() && takes_external() {
            Some(VmExit::Other(KVM_EXIT_IRQ_WINDOW_OPEN))
        } else {
            None
        }
    })
}

fn interrupted(page: &RunPage, signals: &SignalGuard) -> bool {
    page.load::<u8>(IMMEDIATE_EXIT) != 0 || signals.is_pending()
}

/// What the client answers to `exit`, from the fields that it may write. What else it changed does not
/// matter: an error other than 0 is #GP, and no answer is success with 0.
fn answer(page: &RunPage, exit: VmExit) -> VmEntry {
    let msr_error = page.load::<u8>(MSR_ERROR) != 0;
    match exit {
        VmExit::Rdmsr { .. } if msr_error => VmEntry::CompleteRdmsr(Err(Gp)),
        VmExit::Rdmsr { .. } => VmEntry::CompleteRdmsr(Ok(page.load(MSR_DATA))),
        VmExit::Wrmsr { .. } if msr_error => VmEntry::CompleteWrmsr(Err(Gp)),
        VmExit::Wrmsr { .. } => VmEntry::CompleteWrmsr(Ok(())),
        VmExit::IoIn { len_bytes, .. } => VmEntry::CompleteIoIn(match len_bytes {
            1 => u32::from(page.load::<u8>(IO_DATA_OFFSET)),
            2 => u32::from(page.load::<u16>(IO_DATA_OFFSET)),
            _ => page.load(IO_DATA_OFFSET),
        }),
        VmExit::MmioRead { len_bytes, .. } => {
            let mut bytes = [0; 8];
            page.load_bytes(MMIO_DATA, &mut bytes[..usize::from(len_bytes.min(8))]);
            VmEntry::CompleteMmioRead(u64::from_le_bytes(bytes))
        }
        _ => VmEntry::Run,
    }
}

/// Writes an exit: its reason, and every byte of its part of the union.
fn put_exit(page: &RunPage, exit: VmExit, inner: &Inner) {
    let reason = match exit {
        VmExit::Rdmsr { index, reason } => {
            put_msr(page, index, reason.0, 0);
            KVM_EXIT_X86_RDMSR
        }
        VmExit::Wrmsr {
            index,
            value,
            reason,
        } => {
            put_msr(page, index, reason.0, value);
            KVM_EXIT_X86_WRMSR
        }
        VmExit::IoIn { port, len_bytes } => {
            put_io(page, KVM_EXIT_IO_IN, port, len_bytes);
            KVM_EXIT_IO
        }
        VmExit::IoOut {
            port,
            len_bytes,
            value,
        } => {
            put_io(page, KVM_EXIT_IO_OUT, port, len_bytes);
            let bytes = value.to_le_bytes();
            page.store_bytes(IO_DATA_OFFSET, &bytes[..usize::from(len_bytes.min(4))]);
            KVM_EXIT_IO
        }
        VmExit::MmioRead { address, len_bytes } => {
            put_mmio(page, address, 0, len_bytes, false);
            KVM_EXIT_MMIO
        }
        VmExit::MmioWrite {
            address,
            len_bytes,
            value,
        } => {
            put_mmio(page, address, value, len_bytes, true);
            KVM_EXIT_MMIO
        }
        VmExit::Hlt => KVM_EXIT_HLT,
        VmExit::Shutdown => KVM_EXIT_SHUTDOWN,
        VmExit::Debug { exception, pc } => {
            let debug = kvm_debug_exit_arch {
                exception,
                pad: 0,
                pc,
                dr6: inner.engine.debug_dr6 | DR6_ACTIVE_LOW,
                dr7: inner.engine.cpu.debug_in_force().dr7,
            };
            page.store(EXIT, debug);
            KVM_EXIT_DEBUG
        }
        VmExit::Other(reason) => {
            if reason == KVM_EXIT_IOAPIC_EOI {
                page.store(EXIT, inner.engine.ended_vector);
            }
            reason
        }
        _ => KVM_EXIT_INTERNAL_ERROR,
    };
    page.store(EXIT_REASON, reason);
}

/// Member `msr`: error u8, pad, reason u32 at 8, index u32 at 12, data u64 at 16.
fn put_msr(page: &RunPage, index: MsrIndex, reason: u32, data: u64) {
    page.store(EXIT, 0_u64);
    page.store(EXIT + 8, reason);
    page.store(EXIT + 12, index.0);
    page.store(MSR_DATA, data);
}

/// Member `io`: direction u8, size u8, port u16, count u32, data_offset u64.
fn put_io(page: &RunPage, direction: u32, port: u16, len_bytes: u8) {
    page.store(EXIT, direction.to_le_bytes()[0]);
    page.store(EXIT + 1, len_bytes);
    page.store(EXIT + 2, port);
    page.store(EXIT + 4, 1_u32);
    page.store(EXIT + 8, IO_DATA_OFFSET as u64);
}

/// Member `mmio`: phys_addr u64, data [u8; 8], len u32, is_write u8.
fn put_mmio(page: &RunPage, address: u64, value: u64, len_bytes: u8, write: bool) {
    page.store(EXIT, address);
    page.store(MMIO_DATA, value);
    page.store(EXIT + 16, u32::from(len_bytes));
    page.store(EXIT + 20, u8::from(write));
}

/// Applies the register groups that the client says it has changed, and takes note that they are.
fn load_dirty(inner: &mut Inner, page: &RunPage, dirty: u64) -> Result<(), Errno> {
    let is_dirty = |group: u32| dirty & u64::from(group) != 0;
    if is_dirty(KVM_SYNC_X86_REGS) {
        inner.set_regs(&page.load(SYNC_REGS));
    }
    if is_dirty(KVM_SYNC_X86_SREGS) {
        inner.set_sregs(&page.load(SYNC_SREGS))?;
    }
    if is_dirty(KVM_SYNC_X86_EVENTS) {
        inner.set_events(&page.load(SYNC_EVENTS))?;
    }
    if dirty != 0 {
        page.store(DIRTY_REGS, 0_u64);
    }
    Ok(())
}

/// What every return from the guest leaves in the page.
fn save(inner: &Inner, page: &RunPage) {
    let cpu = &inner.engine.cpu;
    page.store(IF_FLAG, u8::from(cpu.interrupt_flag()));
    page.store(FLAGS, 0_u16);
    page.store(CR8, cpu.cr8());
    page.store(APIC_BASE, cpu.msrs.apic_base);
    let takes_external = inner.engine.external_interrupts();
    let ready = inner.engine.has_pics() || cpu.can_interrupt() && takes_external();
    page.store(READY_FOR_INTERRUPT, u8::from(ready));
    let valid: u64 = page.load(VALID_REGS);
    let is_valid = |group: u32| valid & u64::from(group) != 0;
    if is_valid(KVM_SYNC_X86_REGS) {
        page.store(SYNC_REGS, inner.regs());
    }
    if is_valid(KVM_SYNC_X86_SREGS) {
        page.store(SYNC_SREGS, inner.sregs());
    }
    if is_valid(KVM_SYNC_X86_EVENTS) {
        page.store(SYNC_EVENTS, inner.events());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::{signal, this_thread};
    use crate::ioctl::{Handle, request};
    use crate::vm::SystemConfig;
    use kvm_bindings::kvm_userspace_memory_region;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;
    use vm_memory::{MmapRegion, VolatileMemory};

    fn open(handle: &Handle, request: u32) -> Handle {
        match handle.ioctl(request, 0) {
            Ok(Outcome::Descriptor { handle, .. }) => handle,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn signal_ends_a_run_that_would_not_end() {
        let vm = open(&Handle::open(SystemConfig::default()), request::CREATE_VM);
        let vcpu = open(&vm, request::CREATE_VCPU);
        let Handle::Vcpu(vcpu) = vcpu else {
            panic!("a vCPU");
        };
        // jmp to itself at the reset vector.
        let ram = MmapRegion::<()>::new(0x1000).unwrap();
        ram.get_slice(0xff0, 2).unwrap().copy_from(&[0xeb_u8, 0xfe]);
        let Handle::Vm(vm) = vm else {
            panic!("a VM");
        };
        let region = kvm_userspace_memory_region {
            guest_phys_addr: 0xffff_f000,
            memory_size: 0x1000,
            userspace_addr: ram.as_ptr().expose_provenance() as u64,
            ..kvm_userspace_memory_region::default()
        };
        vm.state.memory.set_slot(&region).unwrap();
        let (send, receive) = mpsc::channel();
        let runner = thread::spawn(move || {
            send.send(this_thread()).unwrap();
            let answer = run(&vcpu, 0).map(|_| ());
            (answer, vcpu.page.load::<u32>(EXIT_REASON))
        });
        let target = receive.recv().unwrap();
        while !runner.is_finished() {
            signal(target);
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(runner.join().unwrap(), (Err(Errno::EINTR), KVM_EXIT_INTR));
    }
}
