//! The smallest use: a policy, a guest of four instructions that meets it, and what became of that.

use std::sync::Arc;

use msrgate_core::{Gate, Registers, Vcpu, VcpuId, Vm, VmEntry};
use msrgate_soft::{SoftVm, SystemConfig};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const POLICY: &str = "version = 1
[[rule]]
msr = 'IA32_BIOS_SIGN_ID'
read = { value = 0x42 }";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let policy = msrgate_policy::compile(POLICY).map_err(|mistakes| mistakes[0].clone())?;
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)])?;
    // mov ecx, 0x8b; rdmsr; hlt
    memory.write_slice(b"\x66\xb9\x8b\0\0\0\x0f\x32\xf4", GuestAddress(0))?;
    let vm = SoftVm::new(&memory, SystemConfig::default())?; // or a KvmVm: the rest is the same
    vm.set_exit_reasons(policy.reasons)?;
    vm.set_msr_filter(&policy.filter)?;
    let mut vcpu = vm.create_vcpu(0)?;
    let mut system = vcpu.system_registers()?;
    (system.cs.base, system.cs.selector) = (0, 0);
    vcpu.set_system_registers(&system)?;
    vcpu.set_registers(&Registers {
        rflags: 2,
        ..Registers::default()
    })?;
    let mut gate = Gate::new(VcpuId(0), Arc::new(policy.image), Vec::new());
    let mut exit = vcpu.run(VmEntry::Run)?;
    while let Some(answer) = gate.service(&exit, &mut vcpu) {
        exit = vcpu.run(answer)?;
    }
    for event in gate.recorder() {
        println!("{event}");
    }
    Ok(())
}
