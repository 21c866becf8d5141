//! x87 instructions, each run on the host with the guest's x87 state.
//!
//! [`run`] is exact for the whole instruction set because the host's own unit does the work: 80-bit
//! arithmetic, tags, condition codes, pending exceptions. Which instructions may be run, and what of
//! the guest must be checked first, is the business of [`exec::fpu`](crate::exec).
//!
//! UNSAFETY: inline assembly. FXRSTOR loads the guest's state, a stub of one instruction runs, FXSAVE
//! stores what it left, and the host's control words come back; the x87 stack is empty between functions by
//! the C ABI. A stub touches no memory but the buffer that RSI points to. An exception that the
//! guest has unmasked stays pending and is cleared by FNINIT before any instruction that waits for it.
#![expect(unsafe_code, reason = "runs x87 instructions on the host")]

use core::arch::{asm, global_asm};

use crate::Fpu;

/// The memory operand of an instruction.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct Operand(pub(crate) [u8; Self::BYTES]);

impl Operand {
    /// A little more than the largest memory operand, which is FNSAVE's.
    pub(crate) const BYTES: usize = 112;

    /// All zeros.
    pub(crate) const fn zeroed() -> Self {
        Self([0; Self::BYTES])
    }
}

/// The instruction bytes D8 to DF with their ModRM: 512 with registers, then 64 with memory at RSI.
const STUB_BYTES: usize = 4;
const REGISTER_STUBS: usize = 512;

global_asm!(
    ".pushsection .text.msrgate_x87_stubs, \"ax\", @progbits",
    ".p2align 4",
    "msrgate_x87_stubs:",
    ".set msrgate_x87_i, 0",
    ".rept 512",
    ".byte 0xd8 + (msrgate_x87_i >> 6), 0xc0 + (msrgate_x87_i & 63), 0xc3, 0xcc",
    ".set msrgate_x87_i, msrgate_x87_i + 1",
    ".endr",
    ".set msrgate_x87_i, 0",
    ".rept 64",
    ".byte 0xd8 + (msrgate_x87_i >> 3), ((msrgate_x87_i & 7) << 3) + 6, 0xc3, 0xcc",
    ".set msrgate_x87_i, msrgate_x87_i + 1",
    ".endr",
    ".popsection",
);

/// What FXSAVE stores.
#[repr(C, align(16))]
struct Area {
    fcw: u16,
    fsw: u16,
    ftw: u16,
    fop: u16,
    fip: u64,
    fdp: u64,
    mxcsr: u32,
    mxcsr_mask: u32,
    st: [[u8; 16]; 8],
    rest: [u8; 352],
}

const _: () = assert!(size_of::<Area>() == 512);

/// What of the host's state is put back.
#[repr(C)]
struct Control {
    mxcsr: u32,
    fcw: u16,
}

/// Runs one x87 instruction, `opcode` being D8 to DF and `modrm` its second byte, on `fpu` and the memory operand.
/// Takes and returns the arithmetic flags in RFLAGS (FCMOVcc, FCOMI). The last instruction and data
/// pointers are not kept up.
///
/// Not for FNSTSW AX, which writes a general register.
pub(crate) fn run(fpu: &mut Fpu, opcode: u8, modrm: u8, operand: &mut Operand, flags: u64) -> u64 {
    assert!((opcode, modrm) != (0xdf, 0xe0), "writes AX");
    let escape = usize::from(opcode & 7);
    let stub = if modrm >= 0xc0 {
        escape << 6 | usize::from(modrm & 63)
    } else {
        REGISTER_STUBS + (escape << 3 | usize::from(modrm >> 3 & 7))
    };
    let mut area = Area {
        fcw: fpu.fcw,
        fsw: fpu.fsw,
        ftw: fpu.ftw.into(),
        fop: 0,
        fip: 0,
        fdp: 0,
        mxcsr: 0x1f80,
        mxcsr_mask: 0,
        st: fpu.st,
        rest: [0; 352],
    };
    let mut control = Control { mxcsr: 0, fcw: 0 };
    let mut rflags = flags & crate::flags::ARITHMETIC | 2;
    // SAFETY: `area` is what FXRSTOR and FXSAVE want: 512 bytes, aligned to 16, with a valid MXCSR; `control`
    // has room for both words. `stub` is below 576, the number of stubs, each of which executes one
    // instruction that touches nothing but the x87 unit, RFLAGS and at most 108 bytes at RSI, and returns.
    // Pushes balance pops, and RFLAGS gets arithmetic flags only.
    unsafe {
        asm!(
            "stmxcsr [r13]",
            "fnstcw [r13 + 4]",
            "fxrstor64 [r12]",
            "lea rcx, [rip + msrgate_x87_stubs]",
            "lea rcx, [rcx + {stub_bytes} * r14]",
            "push rax",
            "popfq",
            "call rcx",
            "pushfq",
            "pop rax",
            "fxsave64 [r12]",
            "fninit",
            "fldcw [r13 + 4]",
            "ldmxcsr [r13]",
            stub_bytes = const STUB_BYTES,
            in("r12") &raw mut area,
            in("r13") &raw mut control,
            in("r14") stub,
            in("rsi") operand,
            inout("rax") rflags,
            clobber_abi("C"),
        );
    }
    fpu.fcw = area.fcw;
    fpu.fsw = area.fsw;
    fpu.ftw = area.ftw as u8;
    fpu.st = area.st;
    rflags
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f, 0, 0, 0, 0, 0, 0];

    #[test]
    fn fld1_on_an_empty_stack_pushes_one() {
        let mut fpu = Fpu::default();
        run(&mut fpu, 0xd9, 0xe8, &mut Operand::zeroed(), 0);
        assert_eq!((fpu.st[0], fpu.ftw, fpu.fsw), (ONE, 0x80, 7 << 11));
    }

    #[test]
    fn fistp_of_one_stores_and_pops() {
        let mut fpu = Fpu {
            ftw: 0x80,
            fsw: 7 << 11,
            ..Fpu::default()
        };
        fpu.st[0] = ONE;
        let mut operand = Operand([0xaa; 112]);
        run(&mut fpu, 0xdf, 0x3e, &mut operand, 0);
        assert_eq!(operand.0[..9], [1, 0, 0, 0, 0, 0, 0, 0, 0xaa]);
        assert_eq!((fpu.ftw, fpu.fsw), (0, 0));
    }

    #[test]
    fn unmasked_stack_underflow_stays_pending_in_the_guest() {
        let mut fpu = Fpu {
            fcw: 0x340,
            ..Fpu::default()
        };
        run(&mut fpu, 0xd9, 0xfa, &mut Operand::zeroed(), 0);
        assert_ne!(fpu.fsw & 0x80, 0, "ES");
        run(&mut Fpu::default(), 0xd9, 0xe8, &mut Operand::zeroed(), 0);
    }

    #[test]
    fn status_that_a_guest_made_up_raises_nothing_on_the_host() {
        for fcw in 0x340..0x380 {
            for fsw in (0..0x100).filter(|fsw| fsw & !fcw & 0x3f == 0) {
                let mut fpu = Fpu {
                    fcw,
                    fsw,
                    ..Fpu::default()
                };
                run(&mut fpu, 0xd9, 0xe8, &mut Operand::zeroed(), 0);
                assert_eq!(fpu.st[0], ONE, "fcw {fcw:#x}, fsw {fsw:#x}");
            }
        }
    }

    #[test]
    fn fcomi_sets_flags() {
        let mut fpu = Fpu {
            ftw: 0xc0,
            fsw: 6 << 11,
            ..Fpu::default()
        };
        (fpu.st[0], fpu.st[1]) = (ONE, ONE);
        let flags = run(&mut fpu, 0xdb, 0xf1, &mut Operand::zeroed(), 0x8d5);
        assert_eq!(flags & 0x45, 0x40);
    }
}
