//! The contract of `Vcpu` beyond MSRs, the same on each backend: I/O element by element, MMIO, kicks,
//! completion without running, and answers that do not fit.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use msrgate_core::{
    Errno, ExitReasons, Gp, Kick, LineLevel, MsrIndex, Registers, RunError, Vcpu, Vm, VmEntry,
    VmExit,
};
use msrgate_kvm::{Irqchip, KvmVm};
use msrgate_tests::guest::{Request, Routine};
use msrgate_tests::machine::{Backend, Machine};
use msrgate_tests::on_each_backend;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

on_each_backend!(
    ports_of_each_width_leave_as_exits,
    string_output_leaves_element_by_element,
    string_input_is_answered_element_by_element,
    load_and_store_outside_ram_are_mmio,
    halt_is_an_exit_behind_the_instruction,
    triple_fault_is_an_exit,
    kick_before_a_run_interrupts_it,
    kick_during_a_run_interrupts_it,
    kick_is_never_eaten_by_a_completion,
    entry_that_answers_nothing_is_refused,
    completion_without_running_retires_the_instruction,
    completion_with_gp_queues_it_and_set_registers_drops_it,
    registers_saved_before_completion_execute_the_access_again,
    registers_set_while_an_exit_is_pending_do_not_cancel_it,
);

const CODE: u64 = 0x1000;
const DATA: u64 = 0x2000;
const PORT: u16 = 0x123;
/// An MSR that no kernel knows.
const UNKNOWN: MsrIndex = MsrIndex(0x474f_4f00);

/// A guest in real mode with 64 KiB of RAM.
struct Flat<V: Vm> {
    memory: GuestMemoryMmap,
    vm: V,
    vcpu: V::Vcpu,
}

impl<V: Vm> Flat<V> {
    fn on<B: Backend<Vm = V>>(
        build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Option<Self> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        let vm = B::vm(&memory)?.unwrap();
        let mut a = CodeAssembler::new(16).unwrap();
        build(&mut a).unwrap();
        memory
            .write_slice(&a.assemble(CODE).unwrap(), GuestAddress(CODE))
            .unwrap();
        let mut vcpu = vm.create_vcpu(0).unwrap();
        let mut sregs = vcpu.system_registers().unwrap();
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        vcpu.set_system_registers(&sregs).unwrap();
        let registers = Registers {
            rip: CODE,
            rsp: 0x8000,
            rflags: 2,
            ..Registers::default()
        };
        vcpu.set_registers(&registers).unwrap();
        Some(Self { memory, vm, vcpu })
    }

    fn run(&mut self) -> VmExit {
        self.vcpu.run(VmEntry::Run).unwrap()
    }
}

fn out(len_bytes: u8, value: u32) -> VmExit {
    VmExit::IoOut {
        port: PORT,
        len_bytes,
        value,
    }
}

fn ports_of_each_width_leave_as_exits<B: Backend>() {
    let Some(mut flat) = Flat::on::<B>(|a| {
        a.mov(dx, i32::from(PORT))?;
        a.mov(eax, 0x1122_3344)?;
        a.out(dx, al)?;
        a.out(dx, ax)?;
        a.out(dx, eax)?;
        a.in_(al, dx)?;
        a.in_(ax, dx)?;
        a.in_(eax, dx)?;
        a.hlt()
    }) else {
        return;
    };
    assert_eq!(flat.run(), out(1, 0x44));
    assert_eq!(flat.run(), out(2, 0x3344));
    assert_eq!(flat.run(), out(4, 0x1122_3344));
    let input = |len_bytes| VmExit::IoIn {
        port: PORT,
        len_bytes,
    };
    assert_eq!(flat.run(), input(1));
    assert_eq!(
        flat.vcpu.run(VmEntry::CompleteIoIn(0xffff_ff55)),
        Ok(input(2))
    );
    assert_eq!(
        flat.vcpu.registers().unwrap().rax,
        0x1122_3355,
        "only AL is written"
    );
    assert_eq!(
        flat.vcpu.run(VmEntry::CompleteIoIn(0xffff_6677)),
        Ok(input(4))
    );
    assert_eq!(
        flat.vcpu.registers().unwrap().rax,
        0x1122_6677,
        "only AX is written"
    );
    assert_eq!(
        flat.vcpu.run(VmEntry::CompleteIoIn(0x8899_aabb)),
        Ok(VmExit::Hlt)
    );
    assert_eq!(flat.vcpu.registers().unwrap().rax, 0x8899_aabb);
}

fn string_output_leaves_element_by_element<B: Backend>() {
    let Some(mut flat) = Flat::on::<B>(|a| {
        a.mov(dx, i32::from(PORT))?;
        a.mov(si, 0x2000)?;
        a.mov(cx, 3)?;
        a.cld()?;
        a.rep().outsw()?;
        a.hlt()
    }) else {
        return;
    };
    flat.memory
        .write_slice(&[1, 2, 3, 4, 5, 6], GuestAddress(DATA))
        .unwrap();
    assert_eq!(flat.run(), out(2, 0x0201));
    assert_eq!(flat.run(), out(2, 0x0403));
    assert_eq!(flat.run(), out(2, 0x0605));
    assert_eq!(flat.run(), VmExit::Hlt);
    let registers = flat.vcpu.registers().unwrap();
    assert_eq!((registers.rcx, registers.rsi), (0, DATA + 6));
}

fn string_input_is_answered_element_by_element<B: Backend>() {
    let Some(mut flat) = Flat::on::<B>(|a| {
        a.mov(dx, i32::from(PORT))?;
        a.mov(di, 0x2000)?;
        a.mov(cx, 3)?;
        a.cld()?;
        a.rep().insb()?;
        a.hlt()
    }) else {
        return;
    };
    let mut exit = flat.run();
    for value in [0x11, 0x22, 0x33] {
        let input = VmExit::IoIn {
            port: PORT,
            len_bytes: 1,
        };
        assert_eq!(exit, input);
        exit = flat.vcpu.run(VmEntry::CompleteIoIn(value)).unwrap();
    }
    assert_eq!(exit, VmExit::Hlt);
    let mut bytes = [0; 4];
    flat.memory
        .read_slice(&mut bytes, GuestAddress(DATA))
        .unwrap();
    assert_eq!(bytes, [0x11, 0x22, 0x33, 0]);
}

fn load_and_store_outside_ram_are_mmio<B: Backend>() {
    const DEVICE: u64 = 0xb_8000;
    let Some(mut flat) = Flat::on::<B>(|a| {
        a.mov(ax, 0xb800)?;
        a.mov(ds, ax)?;
        a.mov(eax, 0x1122_3344)?;
        a.mov(dword_ptr(0), eax)?;
        a.mov(byte_ptr(5), al)?;
        a.mov(eax, dword_ptr(0x10))?;
        a.hlt()
    }) else {
        return;
    };
    let store = |offset, len_bytes, value| VmExit::MmioWrite {
        address: DEVICE + offset,
        len_bytes,
        value,
    };
    assert_eq!(flat.run(), store(0, 4, 0x1122_3344));
    assert_eq!(flat.run(), store(5, 1, 0x44));
    let load = VmExit::MmioRead {
        address: DEVICE + 0x10,
        len_bytes: 4,
    };
    assert_eq!(flat.run(), load);
    let answer = VmEntry::CompleteMmioRead(0xffff_ffff_5566_7788);
    assert_eq!(flat.vcpu.run(answer), Ok(VmExit::Hlt));
    assert_eq!(flat.vcpu.registers().unwrap().rax, 0x5566_7788);
}

fn halt_is_an_exit_behind_the_instruction<B: Backend>() {
    let Some(mut flat) = Flat::on::<B>(|a| a.hlt()) else {
        return;
    };
    assert_eq!(flat.run(), VmExit::Hlt);
    assert_eq!(flat.vcpu.registers().unwrap().rip, CODE + 1);
}

fn triple_fault_is_an_exit<B: Backend>() {
    let Some(mut machine) = Machine::<B::Vm>::on::<B>() else {
        return;
    };
    machine.set_list(&[Request {
        routine: Routine::UserRdmsr,
        rcx: 0,
        rax: 0,
        rdx: 0,
    }]);
    let mut sregs = machine.vcpu.system_registers().unwrap();
    sregs.idt.limit = 0;
    machine.vcpu.set_system_registers(&sregs).unwrap();
    assert_eq!(machine.vcpu.run(VmEntry::Run), Ok(VmExit::Shutdown));
}

/// A guest that runs for ever. It takes interrupts, of which it gets none: in Bochs, those of the host do not end the
/// run of a guest that was entered without.
fn spin(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.sti()?;
    a.set_label(&mut again)?;
    a.nop()?;
    a.jmp(again)
}

fn kick_before_a_run_interrupts_it<B: Backend>() {
    let Some(mut flat) = Flat::on::<B>(spin) else {
        return;
    };
    let kicker = flat.vcpu.kicker();
    for _ in 0..3 {
        kicker.kick();
        assert_eq!(flat.run(), VmExit::Interrupted);
    }
}

fn kick_during_a_run_interrupts_it<B: Backend>() {
    let Some(mut flat) = Flat::on::<B>(spin) else {
        return;
    };
    let kicker = flat.vcpu.kicker();
    for _ in 0..3 {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                kicker.kick();
            });
            assert_eq!(flat.run(), VmExit::Interrupted);
        });
    }
}

fn kick_is_never_eaten_by_a_completion<B: Backend>() {
    let Some(mut flat) = Flat::on::<B>(|a| {
        a.mov(ecx, 0x474f_4f00)?;
        a.rdmsr()?;
        spin(a)
    }) else {
        return;
    };
    flat.vm.set_exit_reasons(ExitReasons::ALL).unwrap();
    assert!(matches!(flat.run(), VmExit::Rdmsr { .. }));
    flat.vcpu.kicker().kick();
    flat.vcpu.complete(VmEntry::CompleteRdmsr(Ok(1))).unwrap();
    assert_eq!(flat.run(), VmExit::Interrupted);
}

fn entry_that_answers_nothing_is_refused<B: Backend>() {
    let Some(mut flat) = Flat::on::<B>(|a| {
        a.mov(ecx, 0x474f_4f00)?;
        a.rdmsr()?;
        a.hlt()
    }) else {
        return;
    };
    flat.vm.set_exit_reasons(ExitReasons::ALL).unwrap();
    let entry = VmEntry::CompleteRdmsr(Ok(1));
    let nothing = RunError::Mismatch {
        pending: None,
        entry,
    };
    assert_eq!(flat.vcpu.run(entry), Err(nothing));
    let exit = flat.run();
    for entry in [
        VmEntry::Run,
        VmEntry::CompleteWrmsr(Ok(())),
        VmEntry::CompleteIoIn(1),
    ] {
        let mismatch = RunError::Mismatch {
            pending: Some(exit),
            entry,
        };
        assert_eq!(flat.vcpu.run(entry), Err(mismatch));
        assert_eq!(flat.vcpu.complete(entry), Err(mismatch));
    }
    assert_eq!(
        flat.vcpu.run(entry),
        Ok(VmExit::Hlt),
        "the exit was still pending"
    );
}

/// A machine whose guest stopped at an RDMSR of an unknown MSR.
fn stopped_at_rdmsr<B: Backend>() -> Option<Machine<B::Vm>> {
    let mut machine = Machine::on::<B>()?;
    machine.vm.set_exit_reasons(ExitReasons::ALL).unwrap();
    machine.set_list(&[Request {
        routine: Routine::Rdmsr,
        rcx: UNKNOWN.0.into(),
        rax: 7,
        rdx: 8,
    }]);
    assert!(matches!(
        machine.vcpu.run(VmEntry::Run),
        Ok(VmExit::Rdmsr { .. })
    ));
    Some(machine)
}

fn completion_without_running_retires_the_instruction<B: Backend>() {
    let Some(mut machine) = stopped_at_rdmsr::<B>() else {
        return;
    };
    let before = machine.vcpu.registers().unwrap();
    assert_eq!((before.rax, before.rdx), (7, 8));
    machine
        .vcpu
        .complete(VmEntry::CompleteRdmsr(Ok(0x1_0000_0002)))
        .unwrap();
    let after = machine.vcpu.registers().unwrap();
    assert_eq!((after.rip, after.rax, after.rdx), (before.rip + 2, 2, 1));
    machine.vcpu.complete(VmEntry::Run).unwrap();
    assert_eq!(
        machine.vcpu.registers(),
        Ok(after),
        "a second completion does nothing"
    );
    machine.run_list(|exit| panic!("{exit:?}")).unwrap();
    let answer = machine.answer(0).unwrap();
    assert_eq!((answer.rax, answer.rdx, answer.exception), (2, 1, None));
}

fn completion_with_gp_queues_it_and_set_registers_drops_it<B: Backend>() {
    let Some(mut machine) = stopped_at_rdmsr::<B>() else {
        return;
    };
    let before = machine.vcpu.registers().unwrap();
    machine
        .vcpu
        .complete(VmEntry::CompleteRdmsr(Err(Gp)))
        .unwrap();
    assert_eq!(
        machine.vcpu.registers(),
        Ok(before),
        "the exception is only queued"
    );
    machine.vcpu.set_registers(&before).unwrap();
    let mut exits = 0;
    machine
        .run_list(|_| {
            exits += 1;
            VmEntry::CompleteRdmsr(Err(Gp))
        })
        .unwrap();
    assert_eq!(
        exits, 1,
        "KVM_SET_REGS drops a queued exception, so the access happens again"
    );
    assert_eq!(
        machine.answer(0).unwrap().exception.map(|e| e.vector),
        Some(13)
    );
}

fn registers_saved_before_completion_execute_the_access_again<B: Backend>() {
    let Some(machine) = stopped_at_rdmsr::<B>() else {
        return;
    };
    let saved = machine.vcpu.registers().unwrap();
    let Some(mut elsewhere) = Machine::<B::Vm>::on::<B>() else {
        return;
    };
    elsewhere.vm.set_exit_reasons(ExitReasons::ALL).unwrap();
    elsewhere.vcpu.set_registers(&saved).unwrap();
    let exit = elsewhere.vcpu.run(VmEntry::Run).unwrap();
    assert_eq!(exit.msr_access().map(|(index, ..)| index), Some(UNKNOWN));
}

fn registers_set_while_an_exit_is_pending_do_not_cancel_it<B: Backend>() {
    let Some(mut machine) = stopped_at_rdmsr::<B>() else {
        return;
    };
    let mut registers = machine.vcpu.registers().unwrap();
    (registers.rax, registers.rdx, registers.r15) = (0x11, 0x22, 0x33);
    machine.vcpu.set_registers(&registers).unwrap();
    machine
        .vcpu
        .complete(VmEntry::CompleteRdmsr(Ok(0x5_0000_0006)))
        .unwrap();
    let after = machine.vcpu.registers().unwrap();
    assert_eq!((after.rax, after.rdx, after.r15), (6, 5, 0x33));
    assert_eq!(after.rip, registers.rip + 2);
}

/// With the kernel's interrupt controllers HLT waits inside `KVM_RUN`; a kick still gets it out.
#[test]
fn kvm_with_its_own_irqchip_waits_in_hlt_until_kicked() {
    let Some(kvm) = msrgate_tests::skip::kvm_or_skip() else {
        return;
    };
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
    memory.write_slice(&[0xf4], GuestAddress(CODE)).unwrap();
    let vm = KvmVm::new(&kvm, memory, Irqchip::Kernel).unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let mut sregs = vcpu.system_registers().unwrap();
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_system_registers(&sregs).unwrap();
    let registers = Registers {
        rip: CODE,
        rflags: 2,
        ..Registers::default()
    };
    vcpu.set_registers(&registers).unwrap();
    vm.set_irq_line(4, LineLevel::High).unwrap();
    vm.set_irq_line(4, LineLevel::Low).unwrap();
    let kicker = vcpu.kicker();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(20));
            kicker.kick();
        });
        assert_eq!(vcpu.run(VmEntry::Run), Ok(VmExit::Interrupted));
    });
}

/// The kernel reports a string as one exit, so that it cannot stop between the elements.
#[test]
fn kvm_refuses_to_complete_half_a_string() {
    let Some(mut flat) = Flat::on::<msrgate_tests::machine::KvmBackend>(|a| {
        a.mov(dx, i32::from(PORT))?;
        a.mov(di, 0x2000)?;
        a.mov(cx, 2)?;
        a.rep().insb()?;
        a.hlt()
    }) else {
        return;
    };
    flat.run();
    let entry = VmEntry::CompleteIoIn(1);
    let refused = RunError::Refused {
        errno: Errno::EAGAIN,
    };
    match flat.vcpu.complete(entry) {
        Ok(()) => {}
        Err(error) => {
            assert_eq!(error, refused);
            assert!(matches!(flat.vcpu.run(entry), Ok(VmExit::IoIn { .. })));
            flat.vcpu.complete(VmEntry::CompleteIoIn(2)).unwrap();
        }
    }
}
