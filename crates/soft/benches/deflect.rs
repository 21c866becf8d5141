//! What a deflected access costs on the Rust API: exit, answer, re-entry, of a guest that does nothing else.
//!
//! `unknown`: no such MSR, by name of the reason. `filter`: the filter denies it before it is looked up.
//! `native`: the access stays inside, for comparison. Each measurement is 1024 accesses.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use msrgate_core::{
    DefaultAction, ExitReasons, FilterRange, MsrFilter, MsrIndex, RangeFlags, Registers, Vcpu,
    Verdict, Vm, VmEntry, VmExit,
};
use msrgate_soft::{SoftVcpu, SoftVm, SystemConfig};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const ACCESSES: u64 = 1024;
const CODE: u64 = 0x1000;
const UNKNOWN: MsrIndex = MsrIndex(0x474f_4f00);
const STAR: MsrIndex = MsrIndex(0xc000_0081);

fn deflect(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rdmsr");
    group.throughput(Throughput::Elements(ACCESSES));
    // again: rdmsr; jmp again
    let endless = [0x0f, 0x32, 0xeb, 0xfc];
    for (name, index) in [("unknown", UNKNOWN), ("filter", STAR)] {
        let (vm, mut vcpu) = guest(&endless, index);
        if name == "filter" {
            let range = FilterRange::uniform(RangeFlags::READ, STAR, 1, Verdict::Deny);
            let filter = MsrFilter::new(DefaultAction::Allow, vec![range]).expect("one range");
            vm.set_msr_filter(&filter).expect("soft filters");
        }
        let mut entry = VmEntry::Run;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for _ in 0..ACCESSES {
                    let exit = vcpu.run(entry).expect("the guest runs");
                    assert!(matches!(exit, VmExit::Rdmsr { .. }));
                    entry = VmEntry::CompleteRdmsr(Ok(1));
                }
            });
        });
    }
    // 1024 accesses, then HLT: mov bx, 1024; again: rdmsr; dec bx; jnz again; hlt
    let counted = [0xbb, 0x00, 0x04, 0x0f, 0x32, 0x4b, 0x75, 0xfb, 0xf4];
    let (_vm, mut vcpu) = guest(&counted, STAR);
    let start = vcpu.registers().expect("registers");
    group.bench_function("native", |bencher| {
        bencher.iter(|| {
            vcpu.set_registers(&start).expect("registers");
            assert_eq!(vcpu.run(VmEntry::Run), Ok(VmExit::Hlt));
        });
    });
    group.finish();
}

/// A guest in real mode at the start of `code`, with ECX set.
fn guest(code: &[u8], index: MsrIndex) -> (SoftVm, SoftVcpu) {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).expect("64 KiB");
    memory
        .write_slice(code, GuestAddress(CODE))
        .expect("the code fits");
    let vm = SoftVm::new(&memory, SystemConfig::default()).expect("a VM");
    vm.set_exit_reasons(ExitReasons::ALL)
        .expect("soft deflects");
    let mut vcpu = vm.create_vcpu(0).expect("a vCPU");
    let mut system = vcpu.system_registers().expect("registers");
    (system.cs.base, system.cs.selector) = (0, 0);
    vcpu.set_system_registers(&system).expect("real mode");
    let registers = Registers {
        rip: CODE,
        rflags: 2,
        rcx: index.0.into(),
        ..Registers::default()
    };
    vcpu.set_registers(&registers).expect("registers");
    (vm, vcpu)
}

criterion_group!(benches, deflect);
criterion_main!(benches);
