//! The host's own processor: runs one instruction in this process.
//!
//! UNSAFETY: maps memory at fixed addresses, installs signal handlers and jumps to bytes made at run
//! time, with all registers but the instruction pointer chosen by the caller. The instructions come from
//! [`generate`](crate::generate), which admits only those that touch nothing but registers and the
//! arena: no system calls, no segments, no privileged ones. A fault comes back through a handler on its own stack.
#![expect(unsafe_code, reason = "runs generated instructions on the host")]

use core::arch::global_asm;
use core::mem::offset_of;
use core::ptr;

use crate::layout::*;
use crate::state::{End, Fx, State};

/// The page at [`CONTEXT`]. The assembly below knows the offsets.
#[repr(C)]
struct Context {
    input: State,
    output: State,
    host_rsp: u64,
    taken: u64,
    host_mxcsr: u32,
    host_fcw: u32,
    fault: u64,
    vector: u64,
    error_code: u64,
    cr2: u64,
    rip: u64,
}

const fn at(offset: usize) -> u64 {
    CONTEXT + offset as u64
}

const INPUT: u64 = at(offset_of!(Context, input));
const OUTPUT: u64 = at(offset_of!(Context, output));
const FLAGS: u64 = offset_of!(State, rflags) as u64;
const FX: u64 = offset_of!(State, fx) as u64;

const _: () = assert!(size_of::<Context>() <= 0x800 && size_of::<Fx>() == 512);

global_asm!(
    ".pushsection .text.msrgate_native, \"ax\", @progbits",
    "msrgate_native_run:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov qword ptr [{host_rsp}], rsp",
    "stmxcsr dword ptr [{host_mxcsr}]",
    "fnstcw word ptr [{host_fcw}]",
    "fxrstor64 [{input_fx}]",
    "push qword ptr [{input_flags}]",
    "popfq",
    "mov rax, qword ptr [{input} + 0x00]",
    "mov rcx, qword ptr [{input} + 0x08]",
    "mov rdx, qword ptr [{input} + 0x10]",
    "mov rbx, qword ptr [{input} + 0x18]",
    "mov rsp, qword ptr [{input} + 0x20]",
    "mov rbp, qword ptr [{input} + 0x28]",
    "mov rsi, qword ptr [{input} + 0x30]",
    "mov rdi, qword ptr [{input} + 0x38]",
    "mov r8, qword ptr [{input} + 0x40]",
    "mov r9, qword ptr [{input} + 0x48]",
    "mov r10, qword ptr [{input} + 0x50]",
    "mov r11, qword ptr [{input} + 0x58]",
    "mov r12, qword ptr [{input} + 0x60]",
    "mov r13, qword ptr [{input} + 0x68]",
    "mov r14, qword ptr [{input} + 0x70]",
    "mov r15, qword ptr [{input} + 0x78]",
    "jmp qword ptr [{instruction}]",
    "msrgate_native_taken:",
    "mov qword ptr [{taken}], 1",
    "msrgate_native_next:",
    "mov qword ptr [{output} + 0x00], rax",
    "mov qword ptr [{output} + 0x08], rcx",
    "mov qword ptr [{output} + 0x10], rdx",
    "mov qword ptr [{output} + 0x18], rbx",
    "mov qword ptr [{output} + 0x20], rsp",
    "mov qword ptr [{output} + 0x28], rbp",
    "mov qword ptr [{output} + 0x30], rsi",
    "mov qword ptr [{output} + 0x38], rdi",
    "mov qword ptr [{output} + 0x40], r8",
    "mov qword ptr [{output} + 0x48], r9",
    "mov qword ptr [{output} + 0x50], r10",
    "mov qword ptr [{output} + 0x58], r11",
    "mov qword ptr [{output} + 0x60], r12",
    "mov qword ptr [{output} + 0x68], r13",
    "mov qword ptr [{output} + 0x70], r14",
    "mov qword ptr [{output} + 0x78], r15",
    "mov rsp, qword ptr [{host_rsp}]",
    "pushfq",
    "pop qword ptr [{output_flags}]",
    "fxsave64 [{output_fx}]",
    "msrgate_native_back:",
    "mov rsp, qword ptr [{host_rsp}]",
    "cld",
    "fninit",
    "fldcw word ptr [{host_fcw}]",
    "ldmxcsr dword ptr [{host_mxcsr}]",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    ".popsection",
    input = const INPUT,
    input_flags = const INPUT + FLAGS,
    input_fx = const INPUT + FX,
    output = const OUTPUT,
    output_flags = const OUTPUT + FLAGS,
    output_fx = const OUTPUT + FX,
    host_rsp = const at(offset_of!(Context, host_rsp)),
    host_mxcsr = const at(offset_of!(Context, host_mxcsr)),
    host_fcw = const at(offset_of!(Context, host_fcw)),
    taken = const at(offset_of!(Context, taken)),
    instruction = const EXIT_TAKEN + 8,
);

unsafe extern "C" {
    fn msrgate_native_run();
    fn msrgate_native_next();
    fn msrgate_native_taken();
    fn msrgate_native_back();
}

/// The host's processor. One per process: it has fixed addresses and the signal handlers.
pub(crate) struct Host(());

impl Host {
    pub(crate) fn new() -> Self {
        map(
            CODE,
            2,
            libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
        );
        map(ARENA, ARENA_PAGES, libc::PROT_NONE);
        protect(WRITABLE, libc::PROT_READ | libc::PROT_WRITE);
        install_handlers();
        let host = Self(());
        host.write(
            EXIT_NEXT,
            &(msrgate_native_next as *const () as u64).to_le_bytes(),
        );
        host.write(
            EXIT_TAKEN,
            &(msrgate_native_taken as *const () as u64).to_le_bytes(),
        );
        host.write(EXIT_TAKEN + 8, &INSTRUCTION.to_le_bytes());
        host
    }

    /// Fills the read-only page.
    pub(crate) fn set_read_only(&mut self, bytes: &[u8]) {
        protect(READ_ONLY, libc::PROT_READ | libc::PROT_WRITE);
        self.write(READ_ONLY.start, bytes);
        protect(READ_ONLY, libc::PROT_READ);
    }

    pub(crate) fn set_instruction(&mut self, bytes: &[u8]) {
        self.write(INSTRUCTION, &code(bytes));
    }

    /// The pages that can be written.
    pub(crate) fn memory(&mut self) -> &mut [u8] {
        let len = (WRITABLE.end - WRITABLE.start) as usize;
        // SAFETY: `new` mapped these pages for reading and writing; `&mut self` makes the borrow unique.
        unsafe { core::slice::from_raw_parts_mut(WRITABLE.start as *mut u8, len) }
    }

    /// Runs the instruction.
    pub(crate) fn run(&mut self, input: &State) -> (State, End) {
        let context = CONTEXT as *mut Context;
        // SAFETY: the page at CONTEXT is mapped, and a Context is plain data that fits in.
        let context = unsafe { &mut *context };
        context.input = *input;
        (context.taken, context.fault) = (0, 0);
        // SAFETY: the assembly above keeps the C calling convention, whatever the instruction does to registers.
        unsafe { msrgate_native_run() };
        // SAFETY: as above; read anew, because the assembly wrote it.
        let context = unsafe { ptr::read_volatile(CONTEXT as *const Context) };
        let end = match (context.fault, context.taken) {
            (0, 0) => End::Next,
            (0, _) => End::Taken,
            _ => End::Fault {
                vector: context.vector as u8,
                error_code: context.error_code as u32,
                cr2: context.cr2,
                rip: context.rip,
            },
        };
        (context.output, end)
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        // SAFETY: callers name addresses within the writable pages that `new` mapped.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
    }
}

fn map(address: u64, pages: u64, protection: i32) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let len = (pages * PAGE) as usize;
    // SAFETY: MAP_FIXED_NOREPLACE replaces no mapping.
    let got = unsafe { libc::mmap(address as *mut _, len, protection, flags, -1, 0) };
    assert_eq!(got as u64, address, "the address is free");
}

fn protect(range: core::ops::Range<u64>, protection: i32) {
    let len = (range.end - range.start) as usize;
    // SAFETY: the range is within what `map` mapped for this purpose.
    let result = unsafe { libc::mprotect(range.start as *mut _, len, protection) };
    assert_eq!(result, 0);
}

fn install_handlers() {
    const STACK_BYTES: usize = 1 << 16;
    let stack = Box::leak(vec![0_u8; STACK_BYTES].into_boxed_slice());
    let stack = libc::stack_t {
        ss_sp: stack.as_mut_ptr().cast(),
        ss_flags: 0,
        ss_size: STACK_BYTES,
    };
    // SAFETY: the stack is leaked, so it stays.
    let result = unsafe { libc::sigaltstack(&stack, ptr::null_mut()) };
    assert_eq!(result, 0);
    for signal in [
        libc::SIGILL,
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGFPE,
        libc::SIGTRAP,
    ] {
        // SAFETY: all-zero is a valid sigaction.
        let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler has the signature that SA_SIGINFO asks for.
        let result = unsafe { libc::sigaction(signal, &action, ptr::null_mut()) };
        assert_eq!(result, 0);
    }
}

/// `ucontext`'s registers in encoding order.
const ORDER: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

extern "C" fn handler(signal: i32, _: *mut libc::siginfo_t, ucontext: *mut libc::c_void) {
    // SAFETY: the kernel passes a ucontext that is ours until the handler returns.
    let machine = unsafe { &mut (*ucontext.cast::<libc::ucontext_t>()).uc_mcontext };
    let mut get = |register: i32| machine.gregs[register as usize] as u64;
    let rip = get(libc::REG_RIP);
    if !(CODE..CODE + PAGE).contains(&rip) {
        // A bug of the test itself: say where, and let the signal's default action end it.
        // SAFETY: the page at CODE is mapped.
        let bytes = unsafe { ptr::read(INSTRUCTION as *const [u8; 15]) };
        eprintln!("native: signal {signal} at {rip:#x}, after {bytes:02x?}");
        // SAFETY: SIG_DFL is always valid.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    // SAFETY: the page at CONTEXT is mapped, and `Host::run` does not look at it now.
    let context = unsafe { &mut *(CONTEXT as *mut Context) };
    context.fault = 1;
    context.vector = get(libc::REG_TRAPNO);
    context.error_code = get(libc::REG_ERR);
    context.cr2 = get(libc::REG_CR2);
    context.rip = rip;
    context.output.gpr = ORDER.map(&mut get);
    context.output.rflags = get(libc::REG_EFL);
    // SAFETY: on x86-64, `fpregs` points to an FXSAVE area.
    context.output.fx = unsafe { ptr::read_unaligned(machine.fpregs.cast::<Fx>()) };
    machine.gregs[libc::REG_RIP as usize] = msrgate_native_back as *const () as i64;
    machine.gregs[libc::REG_EFL as usize] = 0x202;
}
