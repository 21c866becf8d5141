//! What must be equal after an instruction, and what the manuals leave undefined.

use core::fmt;

use iced_x86::{Code, Instruction, Mnemonic, RflagsBits};

use crate::state::{End, State};

/// Something that is not equal.
#[derive(Debug)]
pub(crate) struct Difference {
    pub(crate) what: String,
    pub(crate) wanted: String,
    pub(crate) got: String,
}

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// All that differs.
pub(crate) fn compare(
    insn: &Instruction,
    wanted: (&State, End),
    got: (&State, End),
) -> Vec<Difference> {
    let mut differences = Vec::new();
    let mut check = |what: fmt::Arguments<'_>, wanted: u128, got: u128| {
        if wanted != got {
            let (wanted, got) = (format!("{wanted:#x}"), format!("{got:#x}"));
            differences.push(Difference {
                what: what.to_string(),
                wanted,
                got,
            });
        }
    };
    let (wanted_end, got_end) = (significant(insn, wanted.1), significant(insn, got.1));
    let (wanted, got) = (wanted.0, got.0);
    for (i, name) in NAMES.iter().enumerate() {
        check(
            format_args!("{name}"),
            wanted.gpr[i].into(),
            got.gpr[i].into(),
        );
    }
    let faulted = matches!(wanted_end, End::Fault { .. });
    let flags = defined_flags(insn, faulted);
    check(
        format_args!("rflags"),
        (wanted.rflags & flags).into(),
        (got.rflags & flags).into(),
    );
    let (a, b) = (&wanted.fx, &got.fx);
    for i in 0..16 {
        check(format_args!("xmm{i}"), a.xmm[i], b.xmm[i]);
    }
    let mxcsr = defined_mxcsr(insn, a.mxcsr, wanted_end);
    check(
        format_args!("mxcsr"),
        (a.mxcsr & mxcsr).into(),
        (b.mxcsr & mxcsr).into(),
    );
    check(format_args!("fcw"), a.fcw.into(), b.fcw.into());
    check(format_args!("fsw"), a.fsw.into(), b.fsw.into());
    check(
        format_args!("ftw"),
        (a.ftw & 0xff).into(),
        (b.ftw & 0xff).into(),
    );
    for i in 0..8 {
        let low = |st: [u8; 16]| u128::from_le_bytes(st) & ((1 << 80) - 1);
        check(format_args!("st{i}"), low(a.st[i]), low(b.st[i]));
    }
    if wanted_end != got_end {
        let (wanted, got) = (format!("{wanted_end:x?}"), format!("{got_end:x?}"));
        differences.push(Difference {
            what: "end".into(),
            wanted,
            got,
        });
    }
    differences
}

/// CR2 is of interest with #PF only. Of CMPS's two operands, a processor may blame either.
fn significant(insn: &Instruction, end: End) -> End {
    match end {
        End::Fault {
            vector,
            error_code,
            cr2,
            rip,
        } => {
            let blamed = match insn.mnemonic() {
                _ if vector != 14 => 0,
                _ if compares_strings(insn) => 0,
                _ => cr2,
            };
            End::Fault {
                vector,
                error_code,
                cr2: blamed,
                rip,
            }
        }
        end => end,
    }
}

fn compares_strings(insn: &Instruction) -> bool {
    use Code::{Cmpsb_m8_m8, Cmpsd_m32_m32, Cmpsq_m64_m64, Cmpsw_m16_m16};
    matches!(
        insn.code(),
        Cmpsb_m8_m8 | Cmpsw_m16_m16 | Cmpsd_m32_m32 | Cmpsq_m64_m64
    )
}

/// All of MXCSR, but for two things that the embedded processor does not compute: PE after an unmasked
/// overflow or underflow, which says whether the result would have been exact with an unbounded exponent; and at which
/// of its steps an instruction that multiplies and adds gave up.
fn defined_mxcsr(insn: &Instruction, mxcsr: u32, end: End) -> u32 {
    const XM: u8 = 19;
    const FLAGS: u32 = 0x3f;
    const OVERFLOW_UNDERFLOW: u32 = 0x18;
    const PRECISION: u32 = 0x20;
    let unmasked = mxcsr & !(mxcsr >> 7) & OVERFLOW_UNDERFLOW != 0;
    match end {
        End::Fault { vector: XM, .. } => match insn.mnemonic() {
            Mnemonic::Dpps | Mnemonic::Dppd => !FLAGS,
            _ if unmasked => !PRECISION,
            _ => !0,
        },
        _ => !0,
    }
}

/// The arithmetic flags that the manuals define, and DF.
fn defined_flags(insn: &Instruction, faulted: bool) -> u64 {
    const BITS: [(u32, u64); 7] = [
        (RflagsBits::CF, 1 << 0),
        (RflagsBits::PF, 1 << 2),
        (RflagsBits::AF, 1 << 4),
        (RflagsBits::ZF, 1 << 6),
        (RflagsBits::SF, 1 << 7),
        (RflagsBits::DF, 1 << 10),
        (RflagsBits::OF, 1 << 11),
    ];
    let undefined = if faulted { 0 } else { insn.rflags_undefined() };
    BITS.iter()
        .filter(|(bit, _)| undefined & bit == 0)
        .map(|(_, flag)| flag)
        .sum()
}
