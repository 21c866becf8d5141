//! A VMM of its own on `kvm-ioctls`, with a policy from a file: `install` before the guest runs, `service` in its loop.
//!
//! `cargo run --example minimal_vmm -- examples/policies/ucode-revision.toml`, or without /dev/kvm:
//! `msrgate wrap --kvm soft -- target/debug/examples/minimal_vmm POLICY`.
// UNSAFETY: the kernel keeps the address of guest memory.
#![expect(
    unsafe_code,
    reason = "kvm-ioctls cannot know that the memory stays mapped"
)]

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};
use msrgate_core::{Gate, VcpuId};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// mov ecx, 0x8b; rdmsr; mov eax, edx; mov dx, 0x3f8; out dx, eax; hlt
const GUEST: &[u8] = b"\x66\xb9\x8b\0\0\0\x0f\x32\x66\x89\xd0\xba\xf8\x03\x66\xef\xf4";
const SIZE: usize = 0x1000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: minimal_vmm POLICY")?;
    let policy = msrgate_policy::compile(&std::fs::read_to_string(path)?)
        .map_err(|mistakes| mistakes[0].clone())?;
    let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), SIZE)])?;
    memory.write_slice(GUEST, GuestAddress(0))?;

    let vm = Kvm::new()?.create_vm()?;
    let region = kvm_userspace_memory_region {
        memory_size: SIZE as u64,
        userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
        ..Default::default()
    };
    // SAFETY: `memory` is mapped for SIZE bytes, and is dropped after the VM.
    unsafe { vm.set_user_memory_region(region) }?;
    msrgate_kvm::install(&vm, &policy.filter, policy.reasons)?;

    let mut vcpu = vm.create_vcpu(0)?;
    let mut system = vcpu.get_sregs()?;
    (system.cs.base, system.cs.selector) = (0, 0);
    vcpu.set_sregs(&system)?;
    let mut registers = vcpu.get_regs()?;
    (registers.rip, registers.rflags) = (0, 2);
    vcpu.set_regs(&registers)?;

    let mut gate = Gate::new(VcpuId(0), policy.image.into(), Vec::new());
    loop {
        match vcpu.run()? {
            VcpuExit::X86Rdmsr(_) | VcpuExit::X86Wrmsr(_) => {
                msrgate_kvm::service(&mut vcpu, &mut gate);
            }
            VcpuExit::IoOut(0x3f8, bytes) => println!("the guest has seen {bytes:02x?}"),
            VcpuExit::Hlt => break,
            other => return Err(format!("{other:?}").into()),
        }
    }
    gate.recorder().iter().for_each(|event| println!("{event}"));
    Ok(())
}
