//! The built-in guest: a small 64-bit program that tries MSRs, and says what it saw.
//!
//! It is assembled when it is asked for, runs in ring 0 without an operating system, and catches its
//! own #GP. It behaves the same on every backend, so that its events can be compared. It uses nothing that
//! some KVM cannot do: no stack of exceptions, no interrupts, no instruction newer than 64-bit mode.

use iced_x86::code_asm::{
    CodeAssembler, CodeLabel, al, byte_ptr, cl, dx, eax, ecx, esi, ptr, qword_ptr, r13d, r14, rax,
    rdx, rsi, rsp,
};
use iced_x86::{BlockEncoderOptions, IcedError};

use crate::board::{EXIT_PORT, POLICY_PORT, SERIAL_PORT};
use crate::guest::Guest;
use crate::long_mode;
use crate::program::{Program, Segment};

/// The policy that the tour starts under (TOML).
pub const POLICY: &str = include_str!("../policies/tour.toml");
/// The policy that it asks for halfway: number 1.
pub const SECOND_POLICY: &str = include_str!("../policies/tour-locked.toml");

const CODE: u64 = 0x10_0000;
const IDT: u64 = 0x11_0000;
const GENERAL_PROTECTION: usize = 13;

const KERNEL_GS_BASE: u32 = 0xc000_0102;
const BIOS_SIGN_ID: u32 = 0x8b;
const FEATURE_CONTROL: u32 = 0x3a;
/// No processor has it.
const UNHEARD_OF: u32 = 0x474f_4f00;
const EFER: u32 = 0xc000_0080;
/// Bit 63 of EFER is reserved on every processor.
const EFER_RESERVED: u64 = 0x8000_0000_0000_0d00;

/// What the guest does, one after another.
const STEPS: &[Step] = &[
    Step::Say("This is a 64-bit guest with nothing but a console. I try some MSRs.\n\n"),
    Step::Say("1. A register that KVM handles, and the policy allows.\n"),
    Step::Write(
        "   I wrote 0x1234 to IA32_KERNEL_GS_BASE",
        KERNEL_GS_BASE,
        0x1234,
    ),
    Step::Read("   I read it back", KERNEL_GS_BASE),
    Step::Say("2. A register that the policy answers for.\n"),
    Step::Read("   I read IA32_BIOS_SIGN_ID", BIOS_SIGN_ID),
    Step::Write("   I wrote 0 to it", BIOS_SIGN_ID, 0),
    Step::Say("3. A register that the policy keeps from me.\n"),
    Step::Read("   I read IA32_FEATURE_CONTROL", FEATURE_CONTROL),
    Step::Say("4. A register that KVM has never heard of.\n"),
    Step::Read("   I read MSR 0x474f4f00", UNHEARD_OF),
    Step::Write("   I wrote 1 to it", UNHEARD_OF, 1),
    Step::Say("5. A value that KVM refuses.\n"),
    Step::Write("   I set a reserved bit of IA32_EFER", EFER, EFER_RESERVED),
    Step::Say("6. Now I ask the host for another policy, while I run.\n"),
    Step::Ask(1),
    Step::Read("   I read IA32_KERNEL_GS_BASE again", KERNEL_GS_BASE),
    Step::Write("   I wrote 0x5678 to it", KERNEL_GS_BASE, 0x5678),
    Step::Read("   I read MSR 0x474f4f00 again", UNHEARD_OF),
    Step::Say("7. And for the first one back.\n"),
    Step::Ask(0),
    Step::Read("   I read IA32_KERNEL_GS_BASE once more", KERNEL_GS_BASE),
    Step::Say("\nThat was all. Good bye.\n"),
];

enum Step {
    Say(&'static str),
    Read(&'static str, u32),
    Write(&'static str, u32, u64),
    /// Asks the host for the policy of this number.
    Ask(u8),
}

/// The tour guest.
///
/// # Panics
/// Never: the program is fixed, and a test assembles it.
#[must_use]
pub fn guest() -> Guest {
    Guest::new(assemble().expect("every instruction of the tour can be encoded"))
}

fn assemble() -> Result<Program, IcedError> {
    let mut program = Assembler::new()?;
    for step in STEPS {
        match *step {
            Step::Say(text) => program.say(text)?,
            Step::Read(text, index) => program.read(text, index)?,
            Step::Write(text, index, value) => program.write(text, index, value)?,
            Step::Ask(number) => program.ask(number)?,
        }
    }
    program.finish()
}

/// The guest in the making. R14 holds what was read, R13D whether there was a #GP.
struct Assembler {
    code: CodeAssembler,
    say: CodeLabel,
    say_number: CodeLabel,
    catch: CodeLabel,
    idt_register: CodeLabel,
    texts: Vec<(CodeLabel, String)>,
}

impl Assembler {
    fn new() -> Result<Self, IcedError> {
        let mut code = CodeAssembler::new(64)?;
        let mut program = Self {
            say: code.create_label(),
            say_number: code.create_label(),
            catch: code.create_label(),
            idt_register: code.create_label(),
            texts: Vec::new(),
            code,
        };
        program.code.lidt(ptr(program.idt_register))?;
        Ok(program)
    }

    fn say(&mut self, text: &str) -> Result<(), IcedError> {
        let label = self.code.create_label();
        self.texts.push((label, text.to_owned()));
        self.code.lea(rsi, ptr(label))?;
        self.code.call(self.say)
    }

    fn read(&mut self, text: &str, index: u32) -> Result<(), IcedError> {
        let a = &mut self.code;
        a.xor(r13d, r13d)?;
        a.mov(ecx, index)?;
        a.rdmsr()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.mov(r14, rax)?;
        self.say(text)?;
        let a = &mut self.code;
        let mut refused = a.create_label();
        let mut done = a.create_label();
        a.test(r13d, r13d)?;
        a.jne(refused)?;
        self.say(" and saw ")?;
        self.code.call(self.say_number)?;
        self.say(".\n")?;
        self.code.jmp(done)?;
        self.code.set_label(&mut refused)?;
        self.say(" and caught #GP.\n")?;
        self.code.set_label(&mut done)
    }

    fn write(&mut self, text: &str, index: u32, value: u64) -> Result<(), IcedError> {
        let a = &mut self.code;
        a.xor(r13d, r13d)?;
        a.mov(ecx, index)?;
        a.mov(rax, value)?;
        a.mov(rdx, rax)?;
        a.shr(rdx, 32)?;
        a.wrmsr()?;
        self.say(text)?;
        let a = &mut self.code;
        let mut refused = a.create_label();
        let mut done = a.create_label();
        a.test(r13d, r13d)?;
        a.jne(refused)?;
        self.say(", and nothing complained.\n")?;
        self.code.jmp(done)?;
        self.code.set_label(&mut refused)?;
        self.say(" and caught #GP.\n")?;
        self.code.set_label(&mut done)
    }

    fn ask(&mut self, number: u8) -> Result<(), IcedError> {
        self.code.mov(dx, i32::from(POLICY_PORT))?;
        self.code.mov(al, i32::from(number))?;
        self.code.out(dx, al)
    }

    /// Ends the guest; adds its routines, its data and its IDT.
    fn finish(mut self) -> Result<Program, IcedError> {
        let a = &mut self.code;
        a.xor(eax, eax)?;
        a.mov(dx, i32::from(EXIT_PORT))?;
        a.out(dx, al)?;
        a.hlt()?;
        self.say_routine()?;
        self.say_number_routine()?;
        self.catch_routine()?;
        let a = &mut self.code;
        a.set_label(&mut self.idt_register)?;
        a.db(&[0xff, 0x0f])?;
        a.dq(&[IDT])?;
        for (mut label, text) in self.texts {
            a.set_label(&mut label)?;
            a.db(text.as_bytes())?;
            a.db(&[0])?;
        }
        let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
        let assembled = a.assemble_options(CODE, options)?;
        let catch = assembled.label_ip(&self.catch)?;
        let code = Segment {
            address: CODE,
            size_bytes: assembled.inner.code_buffer.len() as u64,
            bytes: assembled.inner.code_buffer,
        };
        Ok(Program::Elf {
            entry: CODE,
            segments: vec![code, interrupt_table(catch)],
        })
    }

    /// Writes the text at RSI, up to a zero, to the console.
    fn say_routine(&mut self) -> Result<(), IcedError> {
        let a = &mut self.code;
        let mut next = a.create_label();
        let mut end = a.create_label();
        a.set_label(&mut self.say)?;
        a.mov(dx, i32::from(SERIAL_PORT))?;
        a.set_label(&mut next)?;
        a.mov(al, byte_ptr(rsi))?;
        a.test(al, al)?;
        a.je(end)?;
        a.out(dx, al)?;
        a.inc(rsi)?;
        a.jmp(next)?;
        a.set_label(&mut end)?;
        a.ret()
    }

    /// Writes R14 in hexadecimal, without leading zeros.
    fn say_number_routine(&mut self) -> Result<(), IcedError> {
        let a = &mut self.code;
        let mut digits = a.create_label();
        let mut skip = a.create_label();
        let mut next = a.create_label();
        let mut write = a.create_label();
        a.set_label(&mut self.say_number)?;
        a.mov(dx, i32::from(SERIAL_PORT))?;
        a.mov(al, i32::from(b'0'))?;
        a.out(dx, al)?;
        a.mov(al, i32::from(b'x'))?;
        a.out(dx, al)?;
        a.mov(ecx, 60)?;
        a.set_label(&mut skip)?;
        a.mov(rax, r14)?;
        a.shr(rax, cl)?;
        a.jne(digits)?;
        a.sub(ecx, 4)?;
        a.jne(skip)?;
        a.set_label(&mut digits)?;
        a.mov(esi, ecx)?;
        a.set_label(&mut next)?;
        a.mov(ecx, esi)?;
        a.mov(rax, r14)?;
        a.shr(rax, cl)?;
        a.and(eax, 15)?;
        a.add(eax, i32::from(b'0'))?;
        a.cmp(eax, i32::from(b'9'))?;
        a.jbe(write)?;
        a.add(eax, i32::from(b'a' - b'9' - 1))?;
        a.set_label(&mut write)?;
        a.out(dx, al)?;
        a.sub(esi, 4)?;
        a.jns(next)?;
        a.ret()
    }

    /// #GP: says so in R13D, and steps over RDMSR or WRMSR, which are two bytes long.
    fn catch_routine(&mut self) -> Result<(), IcedError> {
        let a = &mut self.code;
        a.set_label(&mut self.catch)?;
        a.mov(r13d, 1)?;
        a.add(rsp, 8)?;
        a.add(qword_ptr(rsp), 2)?;
        a.iretq()
    }
}

/// An IDT in which only #GP is present.
fn interrupt_table(catch: u64) -> Segment {
    let mut bytes = vec![0; 256 * 16];
    bytes[GENERAL_PROTECTION * 16..][..16].copy_from_slice(&long_mode::interrupt_gate(catch));
    Segment {
        address: IDT,
        size_bytes: 256 * 16,
        bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tour_can_be_assembled_and_fits_below_its_idt() {
        let Program::Elf { entry, segments } = assemble().unwrap() else {
            panic!("the tour is a 64-bit program");
        };
        assert_eq!(entry, segments[0].address);
        assert!(segments[0].address + segments[0].size_bytes <= IDT);
    }

    #[test]
    fn both_policies_compile_without_a_warning() {
        for source in [POLICY, SECOND_POLICY] {
            let compiled = msrgate_policy::compile(source).unwrap();
            assert_eq!(compiled.warnings, []);
        }
    }
}
