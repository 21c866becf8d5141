//! What cannot be seen from outside: how much decoded code is kept, and for how long.

use super::*;

struct Ram(Vec<u8>);

impl Ram {
    fn at(page: RamPage, offset: usize) -> usize {
        page.0 as usize * 4096 + offset
    }
}

impl Bus for Ram {
    fn ram_page(&mut self, pfn: u64, _write: bool) -> Option<RamPage> {
        ((pfn as usize) < self.0.len() / 4096).then_some(RamPage(pfn))
    }

    fn load<const N: usize>(&self, page: RamPage, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        self.load_bytes(page, offset, &mut bytes);
        bytes
    }

    fn store<const N: usize>(&mut self, page: RamPage, offset: usize, bytes: [u8; N]) {
        self.store_bytes(page, offset, &bytes);
    }

    fn load_bytes(&self, page: RamPage, offset: usize, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.0[Self::at(page, offset)..][..bytes.len()]);
    }

    fn store_bytes(&mut self, page: RamPage, offset: usize, bytes: &[u8]) {
        self.0[Self::at(page, offset)..][..bytes.len()].copy_from_slice(bytes);
    }

    fn tsc(&mut self) -> u64 {
        0
    }
}

/// Real mode, at 0x500.
fn machine(code: &[u8]) -> (Cpu, Ram) {
    let mut ram = Ram(vec![0; 0x10_0000]);
    ram.0[0x500..][..code.len()].copy_from_slice(code);
    let mut cpu = Cpu::default();
    let mut system = cpu.system_registers();
    (system.cs.base, system.cs.selector) = (0, 0);
    cpu.set_system_registers(&system);
    cpu.rip = 0x500;
    (cpu, ram)
}

#[test]
fn code_that_changes_itself_for_ever_does_not_fill_memory() {
    // inc byte [0x505]; mov al, imm8; jmp 0x500
    let (mut cpu, mut ram) = machine(b"\xfe\x06\x05\x05\xb0\x00\xeb\xf8");
    let turns = MAX_OPS as u64 * 2;
    cpu.run(&mut ram, 3 * turns);
    assert_eq!(cpu.gpr[crate::reg::RAX] & 0xff, turns & 0xff);
    let code = cpu.code.map(|code| code as Box<dyn core::any::Any>);
    let code = code.and_then(|code| code.downcast::<Code<Ram>>().ok());
    let code = code.expect("the code of this bus");
    assert!(code.blocks.len() <= MAX_OPS, "{}", code.blocks.len());
    assert!(code.bytes.len() <= MAX_OPS * MAX_OP_BYTES);
}

#[test]
fn round_that_comes_again_finds_no_old_code() {
    // mov al, imm8; jmp 0x500
    let (mut cpu, mut ram) = machine(b"\xb0\x01\xeb\xfc");
    cpu.run(&mut ram, 2);
    ram.0[0x501] = 2;
    for _ in 0..=Tag::VERIFY / Tag::ONE_VERIFY {
        cpu.verify_code();
    }
    cpu.run(&mut ram, 2);
    assert_eq!(cpu.gpr[crate::reg::RAX] & 0xff, 2);
}
